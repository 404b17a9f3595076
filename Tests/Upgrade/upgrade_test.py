"""Data folders of earlier versions: all that they hold can be read, and what was open in them continues.

`write.py` writes them. The clock of the node that opens one is set to ten minutes after that, so that nothing depends on the day.
"""

import json
import pathlib
import tarfile
import tempfile
import time
import unittest

from folder import HERE, OPEN, PRODUCER, SETTLED, SUBSCRIPTIONS, TEXT, WRITE, Faults, Folder, wait_for

MINUTE, DAY = 60, 86_400


class UpgradeTest(unittest.TestCase):
    maxDiff = 2_000

    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="parley-upgrade-")
        self.addCleanup(scratch.cleanup)
        self.scratch = pathlib.Path(scratch.name)

    def open(self, archive):
        with tarfile.open(archive) as tar:
            tar.extractall(self.scratch, filter="data")
        self.old = json.loads((self.scratch / "facts.json").read_text())
        self.folder = Folder(self.scratch / "data")
        self.addCleanup(self.folder.node.close)
        self.clock = Faults(self.folder.node, self.scratch)
        self.set_clock(10 * MINUTE)
        self.folder.node.start()

    def set_clock(self, seconds):
        """To so long after the folder was written."""
        self.clock["clock_offset"] = int((self.old["written"] + seconds - time.time()) * 1_000)

    def test_a_folder_of_a_killed_node(self):
        self.check("3d40d80-killed.tar.gz")

    def test_a_folder_of_a_node_that_was_told_to_stop(self):
        self.check("3d40d80-stopped.tar.gz")

    def check(self, archive):
        self.open(HERE / archive)
        for part in (self.read, self.plain_channels, self.agents, self.open_turns, self.later):
            with self.subTest(part.__name__):
                part()

    def assertHolds(self, old, new, path="$"):
        """What an answer had before it has still; there may be more by now."""
        if isinstance(old, dict):
            for name, value in old.items():
                self.assertIn(name, new, path)
                self.assertHolds(value, new[name], f"{path}.{name}")
        elif isinstance(old, list):
            self.assertEqual(len(old), len(new), path)
            for index, value in enumerate(old):
                self.assertHolds(value, new[index], f"{path}[{index}]")
        else:
            self.assertEqual(old, new, path)

    # What can be read.

    def read(self):
        new = self.folder.facts()
        self.assertEqual(new["channels"], self.old["channels"])
        self.assertHolds(self.old["subscription"], new["subscription"])
        for agent in SETTLED:
            old, now = self.old["agents"][agent], new["agents"][agent]
            self.assertEqual(now["entries"], old["entries"])
            self.assertEqual(now["settled"], old["settled"])
            self.assertHolds(old["trace"]["turns"], now["trace"]["turns"])
            self.assertHolds(old["audit"]["records"], now["audit"]["records"])
            for name in ("state", "epoch", "tail_offset", "created", "undecided"):
                self.assertEqual(now["status"][name], old["status"][name], f"{name} of {agent}")
        for agent in OPEN:
            entries = self.old["agents"][agent]["entries"]
            self.assertEqual(new["agents"][agent]["entries"][: len(entries)], entries)
        known = {agent["agent"] for agent in self.folder.ask("GET", "/v1/agents?limit=100")[0]["agents"]}
        self.assertEqual(known, {f"agents/{name}" for name in [*SETTLED, *OPEN, "controlled/expiring"]})

    def plain_channels(self):
        ask, node = self.folder.ask, self.folder.node
        self.assertEqual(node.request("GET", "/v1/stream/notes/short?offset=-1")[0], 404)
        self.assertEqual(ask("HEAD", "/v1/stream/notes/kept")[1]["Stream-TTL"], "1000000000")
        # A repeat is known as one, by producer and by key.
        body, headers = ask("POST", "/v1/stream/notes/json", [{"n": 3}, {"n": 4}], PRODUCER)
        self.assertEqual(headers["Producer-Seq"], "0")
        text = {"Content-Type": "text/plain", "Idempotency-Key": "greeting"}
        self.assertEqual(self.folder.post_text("notes/text", TEXT, text)[1]["Idempotent-Replayed"], "true")
        ask("POST", "/v1/stream/notes/json", {"n": 5}, {**PRODUCER, "Producer-Seq": "1"})
        ask("POST", "/v1/stream/forks/json", {"n": "new"})
        self.assertEqual([entry["n"] for entry in ask("GET", "/v1/stream/notes/json?offset=-1")[0]], [1, 2, 3, 4, 5])
        self.assertEqual([entry["n"] for entry in ask("GET", "/v1/stream/forks/json?offset=-1")[0]], [1, 2, "own", "new"])
        self.assertEqual(node.request("POST", "/v1/stream/notes/closed", {"n": 1})[0], 409)
        claimed = self.folder.acknowledge("work")
        self.assertEqual([stream["path"] for stream in claimed if stream["has_pending"]], ["events/b"])
        ask("POST", "/v1/stream/events/a", {"order": 3})
        claimed = self.folder.acknowledge("work")
        self.assertEqual([stream["path"] for stream in claimed if stream["has_pending"]], ["events/a"])

    # Agents continue.

    def agents(self):
        folder, node = self.folder, self.folder.node
        settled = self.old["agents"]["assistant/settled"]["entries"]
        offset, headers = folder.send("assistant/settled", "Tell me of the sea.", key="message-2")
        self.assertEqual(headers["Idempotent-Replayed"], "true")
        self.assertIn(offset, [entry["offset"] for entry in settled if entry["type"] == "message"])
        folder.send("assistant/settled", "say: four")
        self.assertEqual(folder.ended("assistant/settled", count=4)["output"], "four")
        # The request has the whole conversation.
        step = node.entries("assistant/settled", "step.started")[-1]["offset"]
        request = folder.ask("GET", f"/v1/agents/assistant/settled/request?step={step}")[0]
        answers = [entry["text"] for entry in settled if entry["type"] == "step.completed"]
        said = [message["text"] for message in request["messages"] if message["role"] == "assistant"]
        self.assertEqual(said, answers)
        self.assertEqual(node.request("POST", "/v1/agents/stepper/closed", {"type": "message", "text": "more"})[0], 409)
        status, body, _ = node.request("POST", "/v1/agents/assistant/deleted", {"type": "message", "text": "more"})
        self.assertEqual((status, json.loads(body)["code"]), (410, "agent_deleted"))
        folder.ask("PUT", "/v1/stream/agents/assistant/deleted")
        folder.send("assistant/deleted", "say: back")
        self.assertEqual(folder.ended("assistant/deleted")["output"], "back")

    def open_turns(self):
        for agent, act in (
            ("clerk/waits", self.approve), ("assistant/writing", self.nothing), ("stepper/writing", self.nothing),
            ("controlled/gated", self.open_gates), ("controlled/signalled", self.signal), ("controlled/kept", self.nothing),
            ("controlled/expiring", self.nothing), # Its program has its first step again, so it is no longer stalled.
            ("publisher/stalled", self.nothing),
        ):
            act(agent)
        for agent in ("clerk/waits", "assistant/writing", "stepper/writing", "controlled/signalled", "controlled/kept"):
            self.assertEqual(self.folder.ended(agent)["type"], "turn.completed", agent)
            self.one_result_a_step(agent)
        self.written()
        self.assertIn('string("now")', self.gave("controlled/signalled")[1])
        self.assertIn('string("kept")', self.gave("controlled/kept")[1])
        self.assertEqual(self.gave("controlled/expiring"), ["note", "expired"])
        self.assertEqual(self.folder.ended("publisher/stalled")["output"], "Published, as anonymous approved.")
        self.one_result_a_step("publisher/stalled")
        # The message that was queued has its turn, too.
        self.folder.ended("controlled/gated", count=2)
        self.assertEqual(self.folder.runs("controlled/gated"), ["g", "d", "queued"])
        self.assertEqual(self.folder.runs("stepper/writing"), ["after"])
        for agent in ("controlled/sleeping", "controlled/signalled", "controlled/expiring"):
            self.assertEqual(self.folder.runs(agent), [], f"{agent} ran a step again that had its result")

    def written(self):
        """A file, and two answers that continue where they were left."""
        self.assertEqual((self.scratch / "data/files/kind-clerk/id-waits" / WRITE["path"]).read_text(), WRITE["text"])
        for agent in ("assistant/writing", "stepper/writing"):
            completed = self.folder.wait(agent, "step.completed", step="answer")
            self.assertGreater(completed["recovered_tokens"], 0, agent)
            entries = self.old["agents"][agent]["entries"]
            known = "".join(entry["delta"] for entry in entries if entry["type"] == "text")
            self.assertTrue(known and completed["text"].startswith(known), agent)

    def one_result_a_step(self, agent):
        steps = [(entry["turn"], entry["step"]) for entry in self.folder.node.entries(agent, "step.completed")]
        self.assertEqual(len(steps), len(set(steps)), agent)

    def gave(self, agent):
        return [given["text"] for given in self.folder.ended(agent)["output"]["gave"]]

    def nothing(self, agent):
        pass

    def approve(self, agent):
        requested = self.folder.wait(agent, "approval.requested")
        self.folder.node.append(agent, type="approve", approval=requested["approval"], args_sha256=requested["args_sha256"])

    def open_gates(self, agent):
        self.folder.open("g")
        self.folder.open("k")

    def signal(self, agent):
        self.folder.node.append(agent, type="signal", name="w", data={"text": "now"})

    def later(self):
        """A month later the sleep ends, and the text that was sealed long ago is gone from the raw view."""
        folder = self.folder
        self.assertEqual(folder.node.status("controlled/sleeping")["state"], "waiting")
        self.set_clock(31 * DAY)
        self.assertEqual(folder.ended("controlled/sleeping")["type"], "turn.completed")
        self.assertEqual(folder.runs("controlled/sleeping"), ["b"])
        self.assertEqual(self.gave("controlled/sleeping"), ["note", "slept", "note"])
        old = self.old["agents"]["assistant/settled"]["entries"]
        kept = [entry for entry in old if entry["type"] != "text"]
        # The fork shares the first turns' text, so it stays; nothing shares this one's.
        wait_for("the text to be trimmed", lambda: not folder.node.entries("controlled/gated", "text"))
        self.assertEqual(folder.ask("GET", "/v1/stream/forks/agent?offset=-1")[0], self.old["channels"]["forks/agent"])
        entries = folder.node.entries("assistant/settled")[: len(old)]
        self.assertEqual([entry for entry in entries if entry["type"] != "text"][: len(kept)], kept)


if __name__ == "__main__":
    unittest.main()
