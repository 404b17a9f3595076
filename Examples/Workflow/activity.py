"""A long-running activity that people can follow, steer and kill: an import in plain Python, with no agent runtime behind it.

    activity.py <workflow id> [--steps 20] [--pace 0.5] [--server http://127.0.0.1:4437]

It publishes what it does on the channel `workflows/<id>`, listens to people on `workflows/<id>/control`, and closes its channel when it is
done. What it has published is all that it remembers: after kill -9 it reads its own channel and continues from there.
"""

import argparse
import sys
import time
import uuid

import httpx
from durable_streams import DurableStream, DurableStreamError, StreamExistsError

JSON = "application/json"


class Superseded(Exception):
    """Another process has taken over the activity."""


def patiently(request):
    """Makes a request until the server answers. Everything sent this way is safe to repeat."""
    while True:
        try:
            return request()
        except httpx.TransportError as error:
            print(f"the server cannot be reached ({error}); trying again", file=sys.stderr, flush=True)
        except DurableStreamError as error:
            if error.status not in (429, 500, 502, 503, 504):
                raise
        time.sleep(0.2)


class Channel:
    """One JSON channel, created if it does not exist."""

    def __init__(self, client, url):
        self.url = url
        self.handle = DurableStream(url, content_type=JSON, client=client, batching=False)
        try:
            patiently(self.handle.create_stream)
        except StreamExistsError:
            pass  # Closed: the activity was over before this process began.

    def read(self, offset="-1", live=False):
        """The entries after `offset`, and where to continue; with `live`, waits for at least one."""

        def page():
            with self.handle.stream(offset=offset, live="long-poll" if live else False) as answer:
                entries = []
                for batch in answer.iter_json_batches():
                    entries += batch
                    if live:
                        break
                return entries, answer.offset

        return patiently(page)


class Journal:
    """The activity's channel as its only writer sees it: each entry is published once, even after retries and crashes.

    The server knows producer, epoch and sequence number of every entry: it recognises a repeated one and refuses a process with an older
    epoch. An epoch begins with an entry that claims it. The channel is read only after that, when no older process can add to it any more.
    """

    def __init__(self, client, url, name):
        self.channel = Channel(client, url)
        self.client, self.name, self.epoch, self.sequence = client, name, 0, 0
        self.entries, _ = self.channel.read()

    @property
    def is_done(self):
        return bool(self.entries) and self.entries[-1]["type"] == "done"

    def claim(self):
        claim = {"type": "claimed", "epoch": 1 + self.last_epoch(), "runner": uuid.uuid4().hex}
        self.epoch, self.sequence = claim["epoch"], 0
        self.publish(claim)
        self.entries, _ = self.channel.read()
        if claim not in self.entries:
            raise Superseded()  # Another process claimed the same epoch at the same moment, and was first.

    def last_epoch(self):
        return max((entry["epoch"] for entry in self.entries if entry["type"] == "claimed"), default=-1)

    def publish(self, entry, closes=False):
        headers = {"Producer-Id": self.name, "Producer-Epoch": str(self.epoch), "Producer-Seq": str(self.sequence)}
        if closes:
            headers["Stream-Closed"] = "true"
        writer = DurableStream(self.channel.url, content_type=JSON, headers=headers, client=self.client, batching=False)
        try:
            patiently(lambda: writer.append(entry))
        except DurableStreamError as error:
            if error.status in (403, 409):  # An older epoch, or the channel was closed meanwhile.
                raise Superseded() from error
            raise
        self.sequence += 1


class Activity:
    """Imports batches of rows, one per step. Its state is the sum of its entries."""

    def __init__(self, client, server, name, steps, pace):
        self.journal = Journal(client, f"{server}/v1/stream/workflows/{name}", name)
        self.control = Channel(client, f"{server}/v1/stream/workflows/{name}/control")
        self.pace = pace
        self.state = {"step": 0, "of": steps, "rows": 10, "imported": 0, "is_paused": False, "is_stopped": False, "obeyed": 0}

    def run(self):
        if self.journal.is_done:
            return
        self.journal.claim()
        for entry in self.journal.entries:
            self.apply(entry)
        # Skips the commands that were obeyed before: the channel has their number.
        entries, self.control_offset = self.control.read()
        self.obey(entries[self.state["obeyed"] :])
        while self.state["step"] < self.state["of"] and not self.state["is_stopped"]:
            self.listen()
            if not self.state["is_paused"] and not self.state["is_stopped"]:
                self.do_step()
        self.record({"type": "done", "imported": self.state["imported"], "is_stopped": self.state["is_stopped"]}, closes=True)

    def do_step(self):
        # The work. Its effects must be safe to repeat, because a kill may come before the entry that records them.
        time.sleep(self.pace)
        self.record({"type": "progress", "step": self.state["step"] + 1, "of": self.state["of"], "rows": self.state["rows"]})

    def listen(self):
        """Obeys the commands sent since the last step; waits for one while paused."""
        entries, self.control_offset = self.control.read(self.control_offset, live=self.state["is_paused"])
        self.obey(entries)

    def obey(self, entries):
        for said in entries:
            # A command is recorded before it is obeyed.
            self.record({"type": "steered", "number": self.state["obeyed"] + 1, "said": said, "refused": self.refusal(said)})

    @staticmethod
    def refusal(said):
        command = said.get("command") if isinstance(said, dict) else None
        if command not in ("rows", "pause", "resume", "stop"):
            return "expected a command: rows, pause, resume or stop"
        rows = said.get("value")
        if command == "rows" and not (isinstance(rows, int) and not isinstance(rows, bool) and 0 < rows <= 10_000):
            return "expected a value from 1 to 10000"
        return None

    def record(self, entry, closes=False):
        self.journal.publish(entry, closes)
        self.apply(entry)

    def apply(self, entry):
        """The only place where the state changes, for new entries and for those read after a restart."""
        state = self.state
        if entry["type"] == "progress":
            state["step"], state["of"] = entry["step"], entry["of"]
            state["imported"] += entry["rows"]
        elif entry["type"] == "steered":
            state["obeyed"] = entry["number"]
            if entry["refused"] is None:
                command = entry["said"]["command"]
                state["is_paused"] = command == "pause" if command in ("pause", "resume") else state["is_paused"]
                state["is_stopped"] = state["is_stopped"] or command == "stop"
                state["rows"] = entry["said"]["value"] if command == "rows" else state["rows"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", help="the workflow's id, which names its channel")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pace", type=float, default=0.5, help="how long a step takes, in seconds")
    parser.add_argument("--server", default="http://127.0.0.1:4437")
    options = parser.parse_args()
    # A long-poll is answered within 20 seconds.
    with httpx.Client(timeout=30) as client:
        try:
            Activity(client, options.server.rstrip("/"), options.name, options.steps, options.pace).run()
        except Superseded:
            sys.exit("another process has taken this activity over")


if __name__ == "__main__":
    main()
