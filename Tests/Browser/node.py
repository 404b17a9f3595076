"""The real executable in a process of its own, on folders of its own, always on the same port."""

import http.client
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("PARLEY_BIN", ROOT / ".build" / "debug"))

ASSISTANT = """---
continues: prefix
max_tokens: 100000
---
You are a helpful assistant.
"""

CLERK = """---
tools: [current_time, write_file]
---
You keep notes.
"""


def wait_for(what, find, timeout=60):
    """Waits until `find` gives something true, and gives that; `what` is said when it does not in time."""
    end = time.monotonic() + timeout
    found = None
    while time.monotonic() < end:
        found = find()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout} s for {what}; last seen: {found!r}")


class Node:
    """A node that a test starts, kills and starts again."""

    def __init__(self, executable="parley", model="scripted:", agents=None, options=(), data=None):
        """`data` is the data folder, where it is not to be one of the node's own."""
        self.executable = BIN / executable
        self.options = list(options)
        # A command that starts the node in its own process, with its options.
        self.prefix = []
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="parley-node-"))
        self.data = data or self.folder / "data"
        self.port = free_port()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "OPENAI_"))}
        self.environment["PARLEY_MODEL"] = model
        self.process = None
        (self.folder / "agents").mkdir()
        for kind, text in (agents or {"assistant": ASSISTANT, "clerk": CLERK}).items():
            (self.folder / "agents" / f"{kind}.md").write_text(text)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.launch()
        wait_for("the node to serve", self.is_ready)
        return self

    def launch(self):
        """Starts the node without waiting for anything."""
        words = [str(self.executable)] + (["serve"] if self.executable.name == "parley" else [])
        words += ["--listen", f"127.0.0.1:{self.port}", "--data", str(self.data), "--agents", f"{self.folder}/agents"] + self.options
        # The kernel kills it with the test, however that ends.
        words = self.prefix + ["setpriv", "--pdeathsig", "KILL", "--"] + words
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)

    @property
    def said(self):
        """What it has written on standard output and error, over all starts."""
        return (self.folder / "log").read_text()

    def is_ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the node ended with status {self.process.returncode}:\n{self.said}")
        try:
            # Open to everybody, also where there are keys.
            return self.request("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def kill(self):
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # What is asked of it without a browser, to compare with what the browser shows.

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def append(self, agent, **entry):
        """Appends an entry to an agent's channel; gives its offset."""
        status, body, _ = self.request("POST", f"/v1/agents/{agent}", entry)
        assert status == 202, f"{entry} answers {status}: {body}"
        return json.loads(body)["entries"][0]["offset"]

    def end(self, agent):
        """Ends an agent, which is created if it was never named."""
        status, body, _ = self.request("PUT", f"/v1/stream/agents/{agent}")
        assert status in (200, 201), f"PUT answers {status}: {body}"
        self.append(agent, type="close")

    def status(self, agent):
        return json.loads(self.request("GET", f"/v1/agents/{agent}")[1])

    def entries(self, agent, *types):
        """All entries of an agent's channel, or those of these types."""
        entries, offset = [], "-1"
        while True:
            status, body, headers = self.request("GET", f"/v1/stream/agents/{agent}?offset={offset}")
            if status == 404:
                return []
            assert status == 200, f"reading {agent} from {offset} answers {status}: {body}"
            entries += json.loads(body)
            offset = headers["Stream-Next-Offset"]
            if headers["Stream-Up-To-Date"] == "true":
                return [entry for entry in entries if not types or entry["type"] in types]

    def ended(self, agent, *types, timeout=60):
        """Waits for an entry of one of these types, and gives it."""
        return wait_for(f"{' or '.join(types)} of {agent}", lambda: next(iter(self.entries(agent, *types)), None), timeout)


def free_port():
    """A port below those that the kernel gives to outgoing connections, so that no other process takes it while the node is down."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def converged_text(entries, step):
    """The text of a step as the rules of convergence put it together from the log (docs/protocol.md)."""
    text, attempt = b"", 0
    for entry in entries:
        if entry.get("step") != step:
            continue
        if entry["type"] == "step.completed" and "text" in entry:
            return entry["text"]
        if entry["type"] == "text" and entry["part"] == "text" and entry["attempt"] >= attempt:
            if entry["attempt"] > attempt:
                text = text[: entry.get("continues_at", 0)] if attempt else b""
                attempt = entry["attempt"]
            text = text[: entry["index"]] + entry["delta"].encode()
    return text.decode()
