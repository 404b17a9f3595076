"""A disk that fails or is full under a node at work: it says why, stops, and has lost nothing that was acknowledged."""

import contextlib
import errno
import os
import signal
import socket
import unittest

from clients import Appender
from rig import IS_LONG, SEED, Disk, Faults, Load, Node, Scratch, wait_for


class Filler(Appender):
    """Fills the space that the write-ahead log has reserved for itself."""

    def message(self):
        return {"n": next(self.numbers), "x": "x" * 2_000_000}


class FailingDiskTest(unittest.TestCase):
    def setUp(self):
        self.scratch = Scratch()
        self.addCleanup(self.scratch.remove)

    def make_node(self, data=None):
        node = Node(data=data or self.scratch.path / "data", model="scripted:tokens=30,rate=200")
        self.addCleanup(node.close)
        return node

    def loaded(self, node):
        node.start()
        load = Load(node, SEED)
        load.prepare()
        load.begin()
        wait_for("some work to be done", lambda: load.acknowledged > 300)
        return load

    def expect_end(self, node, load, *words):
        """The node ends by itself, with the reason and what to do about it, and no client waits for an answer for ever."""
        wait_for("the node to end", lambda: node.process.poll() is not None)
        load.end()
        self.assertEqual(node.process.returncode, 1, node.said[-2_000:])
        last = node.said.splitlines()[-1]
        for word in ("stopped", *words):
            self.assertIn(word, last)

    def test_a_write_or_sync_that_fails_stops_the_node_with_the_reason_and_is_not_tried_again(self):
        node = self.make_node()
        faults = Faults(node, self.scratch.path)
        load = self.loaded(node)
        for round in range(10 if IS_LONG else 1):
            for fault, code, words in (
                ("sync_error", errno.EIO, ["Input/output error", "check the disk"]),
                ("write_error", errno.EIO, ["Input/output error", "check the disk"]),
                ("write_error", errno.ENOSPC, ["No space left on device", "free some space"]),
            ):
                with self.subTest(fault=fault, code=errno.errorcode[code], round=round, seed=SEED):
                    faults[fault] = code
                    self.expect_end(node, load, *words)
                    # A second sync would succeed, and say nothing about what the first one left.
                    self.assertEqual(faults["failed_syncs"], 1 if fault == "sync_error" else 0)
                    self.assertEqual(faults["later_syncs"], 0)
                    faults.clear()
                    node.start()
                    load.check()
                    before = load.acknowledged
                    load.begin()
                    wait_for("more work to be done", lambda: load.acknowledged > before + 100)
        node.kill()
        load.end()
        node.start()
        load.settle()

    def test_writes_that_take_a_part_are_finished(self):
        node = self.make_node()
        faults = Faults(node, self.scratch.path)
        faults["short_writes"] = 1
        load = self.loaded(node)
        node.kill()
        load.end()
        self.assertGreater(faults["shortened_writes"], 100)
        node.start()
        load.settle()

    def test_a_full_disk_stops_the_node_and_with_space_again_everything_is_there(self):
        disk = Disk(self.scratch.path, megabytes=400)
        self.addCleanup(disk.unmount)
        disk.mount()
        node = self.make_node(disk.path / "data")
        node.start()
        load = Load(node, SEED)
        load.clients.append(Filler(node, "filler", SEED))
        load.prepare()
        ballast = disk.path / "ballast"
        with open(ballast, "wb") as file, contextlib.suppress(OSError):
            while True:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), 1 << 20)
                file.truncate(file.tell() + (1 << 20))
        load.begin()
        self.expect_end(node, load, "No space left on device", "free some space")
        node.launch()
        wait_for("the node to be refused", lambda: node.process.poll() is not None)
        self.assertEqual(node.process.returncode, 1)
        self.assertIn("Free some space", node.said.splitlines()[-1])
        ballast.unlink()
        node.start()
        load.settle()

    def test_out_of_descriptors_it_goes_on_with_the_connections_it_has_and_takes_new_ones_later(self):
        node = self.make_node()
        node.prefix = ["prlimit", "--nofile=200:200"]
        load = self.loaded(node)
        connections = []
        self.addCleanup(lambda: [connection.close() for connection in connections])
        for _ in range(400):
            connections.append(socket.create_connection(("127.0.0.1", node.port), timeout=10))
        before = load.acknowledged
        wait_for("work to continue", lambda: load.acknowledged > before + 200)
        for connection in connections:
            connection.close()
        wait_for("a new connection to be served", node.is_ready)
        node.process.send_signal(signal.SIGTERM)
        wait_for("the node to end", lambda: node.process.poll() is not None)
        load.end()
        node.prefix = []
        node.start()
        load.settle()


if __name__ == "__main__":
    unittest.main()
