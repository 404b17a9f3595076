"""The examples that are programs of their own: the follower in Python and the Swift package, each run as its README says."""

import json
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Tests" / "Browser"))

from node import Node, wait_for  # noqa: E402
from samples import samples  # noqa: E402


class ExamplesTest(unittest.TestCase):
    def follow(self, *words):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "Examples/Follow/follow.py"), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_the_follower_waits_for_the_first_message_survives_kills_and_ends_with_the_agent(self):
        node = Node(model="scripted:tokens=150,rate=60").start()
        self.addCleanup(node.close)
        follower = self.follow("assistant/sea", node.url)
        node.append("assistant/sea", type="message", text="Tell me about the sea.")
        lines = [json.loads(follower.stdout.readline())]
        self.assertEqual(lines[0]["type"], "message")
        wait_for("some of the answer", lambda: len(node.entries("assistant/sea", "text")) > 20)
        node.kill()
        node.start()
        node.ended("assistant/sea", "turn.completed")
        node.append("assistant/sea", type="close")
        lines += [json.loads(line) for line in follower.stdout]
        self.assertEqual(follower.wait(60), 0, follower.stderr.read())
        offsets = [entry["offset"] for entry in lines]
        self.assertEqual(offsets, sorted(set(offsets)), "no gap is seen, and nothing comes twice")
        entries = node.entries("assistant/sea")
        whole = {entry["offset"] for entry in entries if entry["type"] not in ("text", "receipt")}
        self.assertLessEqual(whole, set(offsets))
        # From an offset on.
        again = self.follow("assistant/sea", node.url, offsets[3])
        self.assertEqual(again.wait(60), 0)
        self.assertEqual([json.loads(line)["offset"] for line in again.stdout][0], next(
            entry["offset"] for entry in json.loads(node.request("GET", f"/v1/stream/agents/assistant/sea?offset={offsets[3]}&view=settled")[1])))

    def test_the_followers_end_when_the_name_is_wrong(self):
        node = Node().start()
        self.addCleanup(node.close)
        for name, reason in [("asistant/me", "there is no agent kind 'asistant'; expected one of assistant, clerk"),
                             ("assistant", "'assistant' names no agent; expected <kind>/<id>"),
                             ("assistant/m?e", "'assistant/m?e' names no agent"), ("agents/assistant/me", "names no agent")]:
            follower = self.follow(name, node.url)
            self.assertEqual(follower.wait(60), 1, name)
            self.assertIn(reason, follower.stderr.read())
        program = next(sample for sample in samples(ROOT / "docs" / "quickstart-http.md") if sample.options.get("file") == "follow.py").text
        self.assertIn("http://127.0.0.1:4437", program)
        program = program.replace("http://127.0.0.1:4437", node.url)
        for name in ["asistant/me", "assistant", "assistant/me"]:
            found = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, timeout=60)
            self.assertEqual(found.returncode, 1, name)
            self.assertIn(f"agents/{name}?view=settled (status=404)", found.stderr)
            self.assertIn('"detail":', found.stderr)

    def test_the_follower_of_the_quickstart_reads_each_entry_once_and_ends_with_the_agent(self):
        node = Node().start()
        self.addCleanup(node.close)
        program = next(sample for sample in samples(ROOT / "docs" / "quickstart-http.md") if sample.options.get("file") == "follow.py").text
        node.append("assistant/me", type="message", text="say: Hello.")
        follower = subprocess.Popen(
            [sys.executable, "-c", program.replace("http://127.0.0.1:4437", node.url), "assistant/me"], stdout=subprocess.PIPE, text=True)
        self.addCleanup(follower.kill)
        while "turn.completed" not in follower.stdout.readline():
            pass
        node.append("assistant/me", type="close")
        rest = follower.stdout.read().split("\n")
        self.assertEqual(follower.wait(60), 0)
        self.assertNotIn("turn.completed Hello.", rest)
        self.assertEqual([line for line in rest if line.startswith("agent.")], ["agent.closed "])

    def test_the_client_shows_what_a_live_read_without_an_offset_needs(self):
        from durable_streams import DurableStreamError, stream

        node = Node().start()
        self.addCleanup(node.close)
        node.append("assistant/me", type="message", text="say: Hello.")
        for live in ["sse", "long-poll"]:
            with self.assertRaises(DurableStreamError) as raised:
                stream(f"{node.url}/v1/stream/agents/assistant/me", live=live)
            self.assertIn("Send offset=-1 to read from the start", raised.exception.details)
        follower = self.follow("unknown/me", node.url, "not-an-offset")
        self.assertNotEqual(follower.wait(60), 0)
        self.assertIn("expected -1, now or a Stream-Next-Offset", follower.stderr.read())

    def test_the_swift_package_builds_and_its_agent_counts_over_restarts(self):
        build = subprocess.run(
            ["swift", "build", "--package-path", str(ROOT / "Examples/OwnPackage"), "--product", "counter"], capture_output=True, text=True)
        self.assertEqual(build.returncode, 0, build.stdout[-4000:] + build.stderr[-4000:])
        node = Node()
        node.executable = ROOT / "Examples/OwnPackage/.build/debug/counter"
        self.addCleanup(node.close)
        for text, output in [("one two three", "3 words, 3 in all."), ("four", "1 words, 4 in all.")]:
            node.start()
            status, body, _ = node.request("POST", "/v1/agents/counter/me", {"type": "message", "text": text}, {"Prefer": "wait=60"})
            self.assertEqual((status, json.loads(body)["output"]), (200, output))
            node.kill()


if __name__ == "__main__":
    unittest.main()
