"""What was acknowledged outlives `kill -9` at any moment."""

import random
import time
import unittest

from rig import IS_LONG, SEED, Load, Node


class KillTest(unittest.TestCase):
    def test_what_was_acknowledged_is_there_unchanged_once_and_in_order(self):
        # After each kill everything is read again: many kills are those of several nodes, or the last ones would take hours.
        for round in range(10 if IS_LONG else 1):
            self.kill(20 if IS_LONG else 15, SEED + round)

    def kill(self, kills, seed):
        # Text leaves the log a second after its step's end: what stays must stay as it is.
        node = Node(model="scripted:tokens=30,rate=200", options=["--text-retention", "1"])
        self.addCleanup(node.close)
        node.start()
        load = Load(node, seed)
        load.prepare()
        moments = random.Random(seed)
        for number in range(kills):
            load.begin()
            time.sleep(moments.uniform(0.02, 0.8))
            node.kill()
            load.end()
            try:
                node.start()
                load.check()
            except AssertionError as failure:
                raise AssertionError(f"after kill {number + 1}: {failure} (PARLEY_SEED={seed})") from None
        load.settle()
        node.kill()
        print(f"kills: {kills}, acknowledged and verified: {load.acknowledged} (PARLEY_SEED={seed})")


if __name__ == "__main__":
    unittest.main()
