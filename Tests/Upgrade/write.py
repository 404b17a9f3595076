"""Writes the data folders that `upgrade_test.py` opens, with the program of an earlier commit:

    git clone . ../earlier && cd ../earlier && git checkout 3d40d80 && swift build --product steps-agent && cd -
    PARLEY_BIN=$PWD/../earlier/.build/debug .venv/bin/python Tests/Upgrade/write.py 3d40d80

That is one archive in which the node was killed, and one in which it was told to stop. They stay as they are: a later version has archives
of its own beside them.
"""

import json
import signal
import sys
import tarfile

from folder import HERE, PRODUCER, SUBSCRIPTIONS, TEXT, WRITE, Folder

PLAIN = {"Content-Type": "text/plain"}


def write(commit, how):
    folder = Folder()
    node = folder.node
    try:
        node.start()
        write_settled(folder)
        write_plain(folder)
        write_subscription(folder)
        node.append("publisher/stalled", type="message", text="Notes")
        folder.wait("publisher/stalled", "approval.requested")
        stop(node, signal.SIGTERM)
        # With another first step the open turn of the publisher is stalled as soon as it is replayed.
        node.environment["PUBLISHER_FIRST_STEP"] = "renamed"
        node.start()
        write_open(folder)
        facts = folder.facts()
        # Last, so that its second has not passed when the node is gone.
        folder.plan("controlled/expiring", "note a", "expiring e")
        folder.wait("controlled/expiring", "approval.requested")
        stop(node, signal.SIGTERM if how == "stopped" else signal.SIGKILL)
        pack(node.data, facts, HERE / f"{commit}-{how}.tar.gz")
    finally:
        node.close()


def write_settled(folder):
    for number, text in enumerate(["say: one", "say: two", "Tell me of the sea."]):
        folder.send("assistant/settled", text, key=f"message-{number}")
        folder.ended("assistant/settled", count=number + 1)
    folder.ask("POST", "/v1/agents/controlled/failed", {"type": "message", "data": {"operations": "none"}})
    folder.ended("controlled/failed")
    folder.plan("controlled/cancelled", "note a", "wait w")
    folder.wait("controlled/cancelled", "step.started", step="w")
    folder.node.append("controlled/cancelled", type="cancel", reason="enough")
    folder.ended("controlled/cancelled")
    folder.plan("controlled/denied", "approval p")
    requested = folder.wait("controlled/denied", "approval.requested")
    folder.node.append("controlled/denied", type="deny", approval=requested["approval"], reason="no")
    folder.ended("controlled/denied")
    folder.send("stepper/closed", "say: done")
    folder.ended("stepper/closed")
    folder.node.append("stepper/closed", type="close")
    folder.wait("stepper/closed", "agent.closed")
    folder.send("assistant/deleted", "say: gone")
    folder.ended("assistant/deleted")
    folder.ask("DELETE", "/v1/agents/assistant/deleted")


def write_plain(folder):
    def channel(name, *bodies, headers=None, closes=False):
        folder.ask("PUT", f"/v1/stream/{name}", [], headers)
        for body in bodies:
            folder.ask("POST", f"/v1/stream/{name}", body)
        if closes:
            folder.ask("POST", f"/v1/stream/{name}", headers={"Stream-Closed": "true"})

    channel("notes/json", {"n": 1}, {"n": 2})
    second = folder.ask("GET", "/v1/stream/notes/json?offset=-1")[1]["Stream-Next-Offset"]
    folder.ask("POST", "/v1/stream/notes/json", [{"n": 3}, {"n": 4}], PRODUCER)
    channel("notes/closed", {"last": True}, closes=True)
    channel("notes/kept", headers={"Stream-TTL": "1000000000"})
    channel("notes/short", headers={"Stream-TTL": "1"})
    text = {**PLAIN, "Idempotency-Key": "greeting"}
    folder.node.request("PUT", "/v1/stream/notes/text", headers=PLAIN)
    folder.post_text("notes/text", TEXT, text)
    folder.ask("PUT", "/v1/stream/forks/json", headers={"Stream-Forked-From": "/v1/stream/notes/json", "Stream-Fork-Offset": second})
    folder.ask("POST", "/v1/stream/forks/json", {"n": "own"})
    folder.ask("PUT", "/v1/stream/forks/agent", headers={"Stream-Forked-From": "/v1/stream/agents/assistant/settled"})


def write_subscription(folder):
    folder.ask("PUT", "/v1/stream/wake/pool", [])
    folder.ask("PUT", f"{SUBSCRIPTIONS}/work", {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wake/pool"})
    folder.ask("PUT", "/v1/stream/events/a", {"order": 1})
    folder.acknowledge("work")
    folder.ask("PUT", "/v1/stream/events/b", {"order": 2})


def write_open(folder):
    node = folder.node
    requested = folder.wait("publisher/stalled", "approval.requested")
    folder.wait("publisher/stalled", "agent.stalled")
    approve = node.append("publisher/stalled", type="approve", approval=requested["approval"])
    folder.wait("publisher/stalled", "receipt", of=approve, state="applied")
    folder.send("clerk/waits", f"call: write_file {json.dumps(WRITE)}")
    folder.wait("clerk/waits", "approval.requested")
    folder.plan("controlled/gated", "note a", "model m", "gate g", "note d")
    folder.wait("controlled/gated", "step.started", step="g")
    folder.plan("controlled/gated", "note queued")
    folder.plan("controlled/sleeping", "note a", "sleep s", "note b")
    folder.wait("controlled/sleeping", "timer.set")
    folder.plan("controlled/signalled", "note a", "wait w")
    folder.wait("controlled/signalled", "step.started", step="w")
    node.append("controlled/kept", type="signal", name="early", data={"text": "kept"})
    folder.plan("controlled/kept", "gate k", "wait early")
    folder.wait("controlled/kept", "step.started", step="k")
    for agent in ("assistant/writing", "stepper/writing"):
        folder.send(agent, "Tell me of the mountains.")
    for agent in ("assistant/writing", "stepper/writing"):
        folder.wait(agent, "text", count=5)


def stop(node, number):
    node.process.send_signal(number)
    node.process.wait(timeout=20)


def pack(data, facts, archive):
    """The folder without RocksDB's diary, and what was read of it."""
    for path in data.rglob("LOG*"):
        path.unlink()
    (data.parent / "facts.json").write_text(json.dumps(facts, ensure_ascii=False))
    with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
        tar.add(data, "data")
        tar.add(data.parent / "facts.json", "facts.json")
    print(archive, archive.stat().st_size, "bytes")


if __name__ == "__main__":
    for how in ("killed", "stopped"):
        write(sys.argv[1], how)
