"""Clients that ask for much of the real executable and take nothing, beside agents that must go on."""

import http.client
import json
import socket
import sys
import threading
import time
import unittest

from connections_test import memory
from node import Node, wait_for

MEGABYTE = 1 << 20
# What the whole node may take in any of these floods, and how long the turn of another agent may.
ALL_MAX, TURN_SECONDS_MAX = 200 * MEGABYTE, 1
HOLD_SECONDS = 4


HANDSHAKE = (
    b"GET /v1/socket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(text):
    """A message as a client sends it: at most 125 bytes, masked with zeros."""
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text


class HostileReaders(unittest.TestCase):
    def setUp(self):
        self.node = Node(model="scripted:tokens=3,rate=100")
        self.addCleanup(self.node.close)
        self.node.start()
        self.pid = self.node.process.pid
        self.held = []
        self.addCleanup(self.let_go)

    def let_go(self):
        for held in self.held:
            held.close()
        self.held = []

    def ask(self, method, path, body=b"", kind="application/json", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=40)
        try:
            connection.request(method, path, body, {"Content-Type": kind, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def stream(self, kind, *bodies):
        self.assertEqual(self.ask("PUT", "/v1/stream/large", kind=kind)[0], 201)
        for body in bodies:
            self.assertEqual(self.ask("POST", "/v1/stream/large", body, kind)[0], 204)
        return "/v1/stream/large?offset=-1"

    def turn(self, name, text="Hello", seconds=30):
        body = json.dumps({"type": "message", "text": text}).encode()
        status, answer, _ = self.ask("POST", f"/v1/agents/assistant/{name}", body, headers={"Prefer": f"wait={seconds}"})
        self.assertEqual(status, 200, answer[:200])

    def flood(self, count, requests):
        """Connections that send `requests` and read nothing. Measures the node while they are there."""
        self.turn("other")
        peak, durations, is_over = [memory(self.pid)], [], threading.Event()

        def watch():
            while not is_over.wait(0.02):
                peak.append(memory(self.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(count):
                held = socket.socket()
                self.held.append(held)
                held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                held.connect(("127.0.0.1", self.node.port))
                held.sendall(requests)
            end = time.monotonic() + HOLD_SECONDS
            while time.monotonic() < end:
                begin = time.monotonic()
                self.turn("other")
                durations.append(time.monotonic() - begin)
        finally:
            is_over.set()
            watcher.join()
        print(f"{self.id()}: {max(peak) >> 20} MiB, the longest turn {max(durations):.2f} s", file=sys.stderr)
        self.assertLess(max(peak), ALL_MAX)
        self.assertLess(sorted(durations)[len(durations) // 2], TURN_SECONDS_MAX)

    def get(self, path, times=1):
        return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() * times

    def test_one_large_message(self):
        message = json.dumps({"a": "y" * 8_000_000}).encode()
        path = self.stream("application/json", message)
        self.flood(50, self.get(path, 4))
        # Whoever reads has it, as soon as those who do not have gone.
        self.let_go()
        wait_for("the message to be read", lambda: self.ask("GET", path)[0] == 200, 30)
        self.assertEqual(self.ask("GET", path)[1], b"[" + message + b"]")

    def test_pages_of_small_messages(self):
        body = json.dumps([{"a": "y" * 100}] * 10_000).encode()
        path = self.stream("application/json", body, body)
        self.flood(300, self.get(path, 4))
        # A page may be shorter than usual, and leads to the next one all the same.
        count, next_offset = 0, "-1"
        for _ in range(2_000):
            status, page, headers = self.ask("GET", f"/v1/stream/large?offset={next_offset}")
            if status == 503:
                self.assertEqual((json.loads(page)["code"], headers["Retry-After"]), ("overloaded", "1"))
                continue
            count, next_offset = count + len(json.loads(page)), headers["Stream-Next-Offset"]
            if headers["Stream-Up-To-Date"]:
                break
        self.assertEqual(count, 20_000)

    def test_live_readers_of_a_large_message(self):
        path = self.stream("application/octet-stream", b"x" * 8_000_000)
        self.flood(100, self.get(path + "&live=sse"))

    def read_lines(self, path):
        """Reads all of one event, and says how many lines it has."""
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=60)
        try:
            connection.request("GET", path)
            answer, count, last = connection.getresponse(), 0, b""
            while b"streamNextOffset" not in last:
                piece = answer.read1(1 << 20)
                self.assertTrue(piece, "the events have ended")
                count += (last[-5:] + piece).count(b"\ndata:")
                last = (last + piece)[-200:]
            return count - 1
        finally:
            connection.close()

    def events_that_are_longer(self, path, count, lines):
        self.flood(count, self.get(path + "&live=sse"))
        self.let_go()
        # What readers held that have gone comes back, and costs nobody anything.
        wait_for("the memory to come back", lambda: memory(self.pid) < 130 * MEGABYTE, 15)
        begin = time.monotonic()
        self.turn("other")
        self.assertLess(time.monotonic() - begin, TURN_SECONDS_MAX)
        self.assertEqual(self.read_lines(path + "&live=sse"), lines)

    # Each line's end takes six bytes in events.

    def test_live_readers_of_text_that_is_all_line_ends(self):
        path = self.stream("text/plain", b"\n" * 10_000_000)
        self.events_that_are_longer(path, 100, 10_000_001)

    def test_live_readers_of_a_message_that_is_all_line_ends(self):
        path = self.stream("application/json", b"[[1," + b"\n" * 10_000_000 + b"2]]")
        self.events_that_are_longer(path, 100, 10_000_001)

    def test_live_readers_to_whom_a_large_message_comes(self):
        path = self.stream("application/json", b'{"a":1}')
        readers = [http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=40) for _ in range(3)]
        self.addCleanup(lambda: [reader.close() for reader in readers])
        for reader in readers:
            reader.request("GET", path + "&live=sse")
        answers = [reader.getresponse() for reader in readers]
        self.flood(100, self.get(path + "&live=sse"))
        before = memory(self.pid)
        self.ask("POST", "/v1/stream/large", json.dumps({"b": "y" * 8_000_000}).encode())
        for answer in answers:
            line = b""
            while not line.startswith(b'data:{"b":') and not line.startswith(b'data:[{"b":'):
                line = answer.readline()
                self.assertTrue(line, "the events have ended")
            self.assertGreater(len(line), 8_000_000)
        print(f"{self.id()}: {(memory(self.pid) - before) >> 20} MiB more", file=sys.stderr)
        self.assertLess(memory(self.pid), ALL_MAX)
        self.turn("other")

    def test_requests_of_a_large_turn(self):
        self.turn("large", "x" * 1_000_000)
        offset, entries = "-1", []
        while True:
            _, page, headers = self.ask("GET", f"/v1/stream/agents/assistant/large?offset={offset}")
            entries += json.loads(page)
            offset = headers["Stream-Next-Offset"]
            if headers["Stream-Up-To-Date"]:
                break
        step = next(entry["offset"] for entry in entries if entry["type"] == "step.started" and entry.get("kind") == "model")
        self.flood(300, self.get(f"/v1/agents/assistant/large/request?step={step}", 4))

    def test_refusals(self):
        # Small answers, of which each connection asks for many.
        self.flood(1_500, self.get("/v1/nothing", 1_400))

    def test_refusals_on_sockets(self):
        # A message of a byte, and a refusal of 300.
        self.flood(200, HANDSHAKE + frame(b"x") * 8_000)

    def test_sockets_that_follow(self):
        self.stream("application/json")
        follow = json.dumps({"op": "follow", "ref": 1, "channel": "large", "offset": "now"}).encode()
        is_over = threading.Event()

        def append():
            while not is_over.is_set():
                self.ask("POST", "/v1/stream/large", json.dumps({"a": "y" * 800}).encode())

        appender = threading.Thread(target=append)
        appender.start()
        try:
            self.flood(1_000, HANDSHAKE + frame(follow))
        finally:
            is_over.set()
            appender.join()

    def test_many_entries_at_once(self):
        body = json.dumps([{"type": "signal", "name": "n", "data": number} for number in range(30_000)]).encode()
        statuses = []

        def send(number):
            status, answer, headers = self.ask("POST", f"/v1/agents/assistant/many{number}", body)
            statuses.append((status, json.loads(answer).get("code"), headers["Retry-After"]))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
        peak = memory(self.pid)
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, memory(self.pid))
            time.sleep(0.02)
        print(f"{self.id()}: {peak >> 20} MiB; {statuses}", file=sys.stderr)
        self.assertLess(peak, ALL_MAX)
        self.assertLessEqual(set(statuses), {(202, None, None), (503, "overloaded", "1")})
        self.assertIn((202, None, None), statuses)


if __name__ == "__main__":
    unittest.main()
