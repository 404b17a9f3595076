"""What was acknowledged outlives a power cut, in the middle of everything, as often as it comes."""

import random
import time
import unittest

from rig import IS_LONG, SEED, Disk, Faults, Load, Node, Scratch


class PowerCutTest(unittest.TestCase):
    def setUp(self):
        self.scratch = Scratch()
        self.addCleanup(self.scratch.remove)
        self.disk = Disk(self.scratch.path)
        self.addCleanup(self.disk.unmount)
        self.node = Node(data=self.disk.path / "data", model="scripted:tokens=30,rate=200", options=["--text-retention", "1"])
        self.addCleanup(self.node.close)
        self.random = random.Random(SEED)

    def mount(self):
        # With `writeback` a file may have grown over blocks that were never written; with `commit` the journal goes ahead of the data or lags.
        self.disk.mount(f"data={self.random.choice(('ordered', 'writeback'))},commit={self.random.randint(1, 5)}")

    def cut(self, seconds):
        """Has power go after so long, while everybody is at work."""
        end = time.monotonic() + seconds
        while self.random.random() < 0.5 and time.monotonic() < end:
            time.sleep(self.random.uniform(0, seconds / 2))
            self.disk.write_back()
        time.sleep(max(0, end - time.monotonic()))
        # Killed first: a sync in flight while ext4 is stopped may be answered as done (seen with a program of five lines). No client
        # receives such an answer any more.
        self.node.process.kill()
        self.disk.cut()
        self.node.kill()
        self.disk.unmount()

    def test_what_was_acknowledged_is_there_unchanged_once_and_in_order(self):
        # After each cut everything is read again: many cuts are those of several disks, or the last ones would take hours.
        for round in range(10 if IS_LONG else 1):
            if round:
                self.doCleanups()
                self.setUp()
            self.survive(15 if IS_LONG else 12, SEED + round)

    def survive(self, cuts, seed):
        self.mount()
        self.node.start()
        load = Load(self.node, seed)
        load.prepare()
        for number in range(cuts):
            load.begin()
            self.cut(self.random.uniform(0.05, 1.5))
            load.end()
            self.mount()
            try:
                self.node.start()
                load.check()
            except AssertionError as failure:
                raise AssertionError(f"after power cut {number + 1}: {failure} (PARLEY_SEED={seed})") from None
        load.settle()
        print(f"power cuts: {cuts}, acknowledged and verified: {load.acknowledged} (PARLEY_SEED={seed})")

    def test_without_syncs_acknowledged_messages_are_lost_which_shows_that_the_cut_is_one(self):
        faults = Faults(self.node, self.scratch.path)
        faults["skip_syncs"] = 1
        self.disk.mount("data=ordered")
        self.node.start()
        load = Load(self.node, SEED)
        load.prepare()
        self.disk.write_back()
        load.begin()
        time.sleep(1)
        self.node.process.kill()
        self.disk.cut()
        self.node.kill()
        load.end()
        self.disk.unmount()
        self.disk.mount()
        faults.clear()
        with self.assertRaisesRegex(AssertionError, "were acknowledged and|the node ended with status 1"):
            self.node.start()
            load.check()


if __name__ == "__main__":
    unittest.main()
