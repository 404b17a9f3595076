"""Large messages to agents of the real executable, beside other agents that must go on."""

import concurrent.futures
import http.client
import json
import sys
import threading
import time
import unittest

from connections_test import memory
from node import Node

MEGABYTE = 1 << 20
# What the whole node may take in any of these floods, and how long the turn of another agent may.
ALL_MAX, TURN_SECONDS_MAX = 200 * MEGABYTE, 1
AGENTS = {
    "quick": "---\nmodel: scripted:tokens=3,rate=100\n---\nYou are terse.\n",
    # Its turns last as long as the test.
    "slow": "---\nmodel: scripted:tokens=3000,rate=1\n---\nYou are slow.\n",
}


class HostileTurns(unittest.TestCase):
    def setUp(self):
        self.node = Node(agents=AGENTS)
        self.addCleanup(self.node.close)
        self.node.start()
        self.pid = self.node.process.pid

    def ask(self, method, path, body=b"", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=40)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def send(self, path, body):
        """Sends until it is taken: refused with 503, it is sent again, as it asks for."""
        while True:
            status, answer, headers = self.ask("POST", path, body)
            if status != 503:
                self.assertEqual(status, 202, answer[:200])
                return
            time.sleep(float(headers["Retry-After"]))

    def flood(self, paths, body, at_once, until=lambda: True):
        """Sends `body` to all `paths` while another agent has turns, and then goes on until `until`. The peak of memory, and how long the turns took."""
        peak, durations, is_over = [memory(self.pid)], [], threading.Event()

        def watch():
            while not is_over.wait(0.02):
                peak.append(memory(self.pid))

        def take_turns():
            while not is_over.wait(0.1):
                begin = time.monotonic()
                status, answer, _ = self.ask("POST", "/v1/agents/quick/other", b'{"type":"message","text":"say: hi"}', {"Prefer": "wait=30"})
                self.assertEqual(status, 200, answer[:200])
                durations.append(time.monotonic() - begin)

        threads = [threading.Thread(target=watch), threading.Thread(target=take_turns)]
        for thread in threads:
            thread.start()
        try:
            with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda path: self.send(path, body), paths))
            while not until():
                time.sleep(0.1)
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        durations.sort()
        print(f"{self.id()}: {max(peak) >> 20} MiB, the longest turn {durations[-1]:.2f} s of {len(durations)}", file=sys.stderr)
        self.assertLess(max(peak), ALL_MAX)
        self.assertLess(durations[len(durations) // 2], TURN_SECONDS_MAX)

    def state(self, path):
        return json.loads(self.ask("GET", path)[1])["state"]

    def test_messages_with_very_many_values(self):
        for name, piece in (("lists", b"[],"), ("objects", b'{"":0},')):
            with self.subTest(name):
                body = b'{"type":"message","data":[' + piece * (MEGABYTE // len(piece) - 1_000) + b"0]}"
                paths = [f"/v1/agents/quick/{name}{number}" for number in range(12)]
                self.flood(paths, body, 6, lambda: all(self.state(path) == "idle" for path in paths))

    def test_values_where_a_name_belongs(self):
        body = b'{"type":[' + b"[]," * 340_000 + b"0]}"
        peak = memory(self.pid)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(self.ask, "POST", "/v1/agents/quick/a", body) for _ in range(16)]
            while not all(answer.done() for answer in answers):
                peak = max(peak, memory(self.pid))
                time.sleep(0.01)
        for answer in answers:
            status, text, _ = answer.result()
            self.assertEqual((status, json.loads(text)["code"]), (400, "invalid_entry"))
            self.assertIn("'type' is an array; expected a string", json.loads(text)["detail"])
        self.assertLess(peak, ALL_MAX)

    def test_many_large_turns_at_once(self):
        body = json.dumps({"type": "message", "text": "x" * 900_000}).encode()
        end = time.monotonic() + 5
        paths = [f"/v1/agents/slow/{number}" for number in range(250)]
        self.flood(paths, body, 4, lambda: time.monotonic() > end)
        metrics = self.ask("GET", "/metrics")[1].decode()
        waiting = next(line for line in metrics.splitlines() if line.startswith("parley_agents_waiting_for_memory "))
        self.assertGreater(float(waiting.split()[1]), 100)
        # A control reaches one that runs, and what it held is another's.
        self.assertEqual(self.state("/v1/agents/slow/0"), "running")
        self.send("/v1/agents/slow/0", b'{"type":"cancel"}')


if __name__ == "__main__":
    unittest.main()
