"""What a data folder of an earlier version holds, as it is written and as it is read again."""

import json
import pathlib
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "Faults"))

from rig import Faults, Node, wait_for

AGENTS = {
    "assistant": "---\ncontinues: prefix\nmax_tokens: 100000\n---\nYou are a helpful assistant.\n",
    "clerk": "---\ntools: [current_time, write_file]\n---\nYou keep notes.\n",
}
MODEL = "scripted:tokens=400,rate=100"
WRITE = {"path": "notes/sea.md", "text": "The sea is deep."}

SETTLED = ["assistant/settled", "controlled/failed", "controlled/cancelled", "controlled/denied", "stepper/closed"]
# Each has a turn open when the folder is left; so has controlled/expiring.
OPEN = [
    "clerk/waits", "assistant/writing", "stepper/writing", "controlled/gated", "controlled/sleeping", "controlled/signalled",
    "controlled/kept", "publisher/stalled",
]
JSON_CHANNELS = ["notes/json", "notes/closed", "forks/json", "forks/agent", "events/a", "events/b"]
TEXT = "Grüße\nfrom an older version.\n"
SUBSCRIPTIONS = "/v1/stream/__ds/subscriptions"
PRODUCER = {"Producer-Id": "scribe", "Producer-Epoch": "3", "Producer-Seq": "0"}


class Folder:
    """A node of some version on one data folder, and what is asked of it."""

    def __init__(self, data=None, first_step="changes"):
        self.node = Node("steps-agent", MODEL, AGENTS, ["--idle", "1"], data)
        self.steps = self.node.folder / "steps"
        self.steps.touch()
        self.node.environment["STEPS_FILE"] = str(self.steps)
        self.node.environment["PUBLISHER_FIRST_STEP"] = first_step

    def ask(self, method, path, body=None, headers=None, expected=(200, 201, 202, 204)):
        """Gives the answer's body, as JSON where it is, and its headers."""
        status, data, headers = self.node.request(method, path, body, headers)
        assert status in expected, f"{method} {path} answers {status}: {data}"
        is_json = "json" in (headers["Content-Type"] or "")
        return (json.loads(data) if is_json and data else data.decode()), headers

    def send(self, agent, text, key=None):
        """Sends a message; gives its offset and the answer's headers."""
        headers = {"Idempotency-Key": key} if key else None
        body, headers = self.ask("POST", f"/v1/agents/{agent}", {"type": "message", "text": text}, headers)
        return body["entries"][0]["offset"], headers

    def plan(self, agent, *operations):
        """Has an agent of kind `controlled` do these operations; gives the turn."""
        return self.node.append(agent, type="message", data={"operations": list(operations)})

    def open(self, gate):
        pathlib.Path(f"{self.steps}.{gate}").touch()

    def runs(self, agent):
        """The steps of an agent whose bodies ran on this node, in order."""
        keys = [line.split("/", 4) for line in self.steps.read_text().splitlines()]
        return [key[4] for key in keys if "/".join(key[1:3]) == agent]

    def wait(self, agent, *types, count=1, **members):
        """Waits for so many entries of one of these types with these members; gives the last."""
        def find():
            found = [entry for entry in self.node.entries(agent, *types) if members.items() <= entry.items()]
            return found[-1] if len(found) >= count else None
        return wait_for(f"{count} {types} {members} of {agent}", find)

    def ended(self, agent, count=1):
        return self.wait(agent, "turn.completed", "turn.failed", "turn.cancelled", "turn.interrupted", count=count)

    def post_text(self, channel, text, headers):
        """Gives the status and the headers of the answer."""
        request = urllib.request.Request(f"{self.node.url}/v1/stream/{channel}", text.encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers

    def acknowledge(self, subscription):
        """Claims what is new for a subscription and acknowledges all of it; gives the streams of the claim."""
        def claim():
            status, body, _ = self.node.request("POST", f"{SUBSCRIPTIONS}/{subscription}/claim", {"worker": "w"})
            return json.loads(body) if status == 200 else None
        claim = wait_for("something to claim", claim)
        body = {
            "wake_id": claim["wake_id"], "generation": claim["generation"], "done": True,
            "acks": [{"stream": stream["path"], "offset": stream["tail_offset"]} for stream in claim["streams"]],
        }
        self.ask("POST", f"{SUBSCRIPTIONS}/{subscription}/ack", body, {"Authorization": f"Bearer {claim['token']}"})
        return claim["streams"]

    def facts(self):
        """All that can be read of it, to compare with what another version reads."""
        read = lambda path: self.ask("GET", path)[0]
        return {
            "written": time.time(),
            "agents": {
                agent: {
                    "entries": self.node.entries(agent), "status": self.node.status(agent),
                    "settled": read(f"/v1/stream/agents/{agent}?offset=-1&view=settled"),
                    "trace": read(f"/v1/agents/{agent}/trace"), "audit": read(f"/v1/agents/{agent}/audit"),
                }
                for agent in SETTLED + OPEN
            },
            "channels": {channel: read(f"/v1/stream/{channel}?offset=-1") for channel in JSON_CHANNELS + ["notes/text", "notes/kept"]},
            "subscription": read(f"{SUBSCRIPTIONS}/work"),
        }
