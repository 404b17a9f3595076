"""Bits that change on the disk: reported with file and place by every part that reads them, and never served."""

import json
import random
import shutil
import signal
import unittest

from rig import IS_LONG, SEED, Node, Scratch, wait_for


class DamageTest(unittest.TestCase):
    STREAMS = 6

    def setUp(self):
        self.scratch = Scratch()
        self.addCleanup(self.scratch.remove)
        self.random = random.Random(SEED)
        self.node = Node(data=self.scratch.path / "data")
        self.addCleanup(self.node.close)
        self.contents = {}
        self.node.start()
        for number in range(DamageTest.STREAMS):
            messages = [{"n": n, "x": self.random.randbytes(200).hex()} for n in range(150)]
            path = f"/v1/stream/damaged/{number}"
            self.assertEqual(self.node.request("PUT", path, messages)[0], 201)
            self.contents[path] = messages

    def stop(self):
        self.node.process.send_signal(signal.SIGTERM)
        wait_for("the node to end", lambda: self.node.process.poll() is not None)

    def files(self, suffix):
        return sorted(path for path in (self.node.data / "log").iterdir() if path.name.endswith(suffix) and path.stat().st_size)

    def test_in_a_table_the_reads_that_meet_it_fail_and_no_others(self):
        self.stop()
        # What the write-ahead log has goes to tables at the next start.
        self.node.start()
        self.stop()
        original = self.scratch.path / "original"
        shutil.copytree(self.node.data, original)
        outcomes = {"refused": 0, "unread": 0, "read": 0}
        for _ in range(200 if IS_LONG else 15):
            shutil.rmtree(self.node.data)
            shutil.copytree(original, self.node.data)
            # The largest holds the streams; the small ones are looked at as well.
            tables = sorted(self.files(".sst"), key=lambda path: path.stat().st_size)
            self.flip(self.random.choice((tables[-1], self.random.choice(tables))))
            self.node.launch()
            if self.has_started():
                for path, messages in self.contents.items():
                    outcomes[self.read(path, messages)] += 1
                self.node.kill()
            else:
                outcomes["refused"] += 1
                self.assertIn("data_damaged", self.node.said.splitlines()[-1], self.what)
                self.assertIn(".sst", self.node.said.splitlines()[-1], self.what)
        self.assertGreater(outcomes["unread"], 0, f"nothing was damaged (PARLEY_SEED={SEED})")
        print(f"flipped bits in tables: {outcomes} (PARLEY_SEED={SEED})")

    def test_in_the_write_ahead_log_the_node_does_not_start(self):
        self.node.kill()
        file = self.files(".log")[-1]
        contents = file.read_bytes()
        for _ in range(100 if IS_LONG else 10):
            file.write_bytes(contents)
            self.flip(file)
            self.node.launch()
            self.assertFalse(self.has_started(), self.what)
            self.assertEqual(self.node.process.returncode, 1)
            last = self.node.said.splitlines()[-1]
            for word in ("data_damaged", str(file), "at byte", "Restore the folder from a backup"):
                self.assertIn(word, last, self.what)

    def flip(self, file):
        contents = bytearray(file.read_bytes())
        place, bit = self.random.randrange(len(contents)), self.random.randrange(8)
        contents[place] ^= 1 << bit
        file.write_bytes(contents)
        self.what = f"bit {bit} of byte {place} of {len(contents)} of {file.name} (PARLEY_SEED={SEED})"

    def has_started(self):
        """Whether the node serves; or else it has ended."""
        try:
            wait_for("the node to serve", self.node.is_ready)
            return True
        except AssertionError:
            self.assertIsNotNone(self.node.process.poll(), self.what)
            return False

    def read(self, path, messages):
        status, body, headers = self.node.request("GET", f"{path}?offset=-1")
        if status == 200:
            # All of it is less than a page.
            self.assertEqual(json.loads(body), messages, self.what)
            return "read"
        problem = json.loads(body)
        self.assertEqual((status, problem["code"]), (500, "data_damaged"), self.what)
        # A live reader's answer breaks off, before anything wrong or behind a hole is in it.
        status, body, headers = self.node.request("GET", f"{path}?offset=-1&live=long-poll")
        self.assertEqual((status, json.loads(body)["code"]), (500, "data_damaged"), self.what)
        self.assertIn(".sst", self.node.said, self.what)
        return "unread"


if __name__ == "__main__":
    unittest.main()
