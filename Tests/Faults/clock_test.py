"""A wall clock that is set while a node is at work, or while it is down, by hours in both directions."""

import unittest

from rig import IS_LONG, SEED, Faults, Load, Node, Scratch, wait_for

HOUR = 3_600_000


class ClockTest(unittest.TestCase):
    def setUp(self):
        self.scratch = Scratch()
        self.addCleanup(self.scratch.remove)

    def make_node(self, executable="parley", **options):
        node = Node(executable, data=self.scratch.path / "data", **options)
        self.addCleanup(node.close)
        self.faults = Faults(node, self.scratch.path)
        return node

    def test_nothing_is_lost_and_nothing_hangs_whenever_it_is_set(self):
        # As fast as it can: an answer of the scripted model has a timetable of its own.
        node = self.make_node(model="scripted:tokens=30,rate=0")
        node.start()
        load = Load(node, SEED)
        load.prepare()
        for offset in (2, 1, -3, 30, -1, 0) * (10 if IS_LONG else 1):
            for restarts in (False, True):
                load.begin()
                before = load.acknowledged
                wait_for("work before the step", lambda: load.acknowledged > before + 50)
                if restarts:
                    node.kill()
                    load.end()
                self.faults["clock_offset"] = offset * HOUR
                if not restarts:
                    before = load.acknowledged
                    # The claim of a lease may wait for the wall clock; all other work continues.
                    wait_for(f"work after a step to {offset} h", lambda: load.acknowledged > before + 50)
                    node.kill()
                    load.end()
                node.start()
                load.check()
        load.settle()

    def test_set_forward_what_waits_for_an_instant_comes_at_once_and_what_lives_until_one_is_gone(self):
        node = self.make_node("steps-agent")
        node.start()
        text = {"Content-Type": "text/plain"}
        self.assertEqual(node.request("PUT", "/v1/stream/kept", headers=text)[0], 201)
        for restarts in (False, True):
            agent, stream = f"controlled/{restarts}", f"/v1/stream/short/{restarts}"
            self.assertEqual(node.request("PUT", stream, headers={**text, "Stream-TTL": "3600"})[0], 201)
            node.append(agent, type="message", data={"operations": ["sleep s"]})
            node.ended(agent, "timer.set")
            if restarts:
                node.kill()
            self.faults["clock_offset"] += 31 * 24 * HOUR
            if restarts:
                node.start()
            node.ended(agent, "turn.completed")
            self.assertEqual(len(node.entries(agent, "timer.fired", "turn.completed")), len(node.entries(agent, "timer.set")) + 1)
            wait_for("the stream to have ended", lambda: node.request("GET", stream)[0] == 404)
            self.assertEqual(node.request("GET", "/v1/stream/kept")[0], 200)

    def test_set_back_a_pause_is_no_longer_than_it_was_and_time_in_a_channel_does_not_go_back(self):
        node = self.make_node("steps-agent", model="scripted:tokens=30,rate=0")
        node.start()
        for number in range(3):
            agent = f"controlled/{number}"
            # The third attempt of a step that fails twice comes after two pauses.
            node.append(agent, type="message", data={"operations": ["flaky a", "flaky b", "flaky c", "model m"]})
            node.ended(agent, "step.failed")
            self.faults["clock_offset"] -= 5 * HOUR
            node.ended(agent, "turn.completed")
            node.append(agent, type="message", data={"operations": ["note n"]})
            wait_for("the second turn", lambda: len(node.entries(agent, "turn.completed")) == 2)
            times = [entry["at"] for entry in node.entries(agent)]
            self.assertEqual(times, sorted(times))


if __name__ == "__main__":
    unittest.main()
