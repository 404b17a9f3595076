"""Bodies that no route waits for, and connections that ask for nothing more, beside clients that must stay served by the real executable."""

import http.client
import json
import resource
import socket
import sys
import time
import unittest

import connections_test
from connections_test import memory
from node import Node, wait_for

KEY, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
MEGABYTE = 1 << 20
CONNECTIONS = 60
LENGTH = 10 * MEGABYTE
PIECE = b"x" * (64 << 10)
# What a flood without a key may cost, and the whole node with any flood.
STRANGERS_MAX, ALL_MAX = 40 * MEGABYTE, 200 * MEGABYTE
# What a flood with a key may cost: the memory for requests, and as much again for what the allocator keeps.
BUDGET_MAX = 130 * MEGABYTE


class HostileBodies(unittest.TestCase):
    def start(self, *options):
        self.node = Node(options=options)
        self.node.environment["PARLEY_KEYS"] = f"main:{KEY},other:{OTHER}"
        self.addCleanup(self.node.close)
        self.node.start()
        self.assertEqual(self.ask("PUT", "/v1/stream/a", KEY, kind="text/plain")[0], 201)
        self.pid = self.node.process.pid
        self.held = []
        self.addCleanup(self.let_go)

    def let_go(self):
        for held in self.held:
            held.close()
        self.held = []

    def ask(self, method, path, key=None, body=b"", kind="application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=10)
        try:
            headers = {"Content-Type": kind, **({"Authorization": f"Bearer {key}"} if key else {})}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def connect(self):
        held = socket.create_connection(("127.0.0.1", self.node.port), timeout=10)
        self.held.append(held)
        return held

    def flood(self, fields, path="/v1/stream/a"):
        """Bodies all but finished; what the server does not take is not sent."""
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n{fields}Content-Length: {LENGTH}\r\n\r\n".encode()
        sockets = [self.connect() for _ in range(CONNECTIONS)]
        left = {}
        for held in sockets:
            held.sendall(head)
            held.setblocking(False)
            left[held] = LENGTH - 1
        end = time.monotonic() + 10
        while left and time.monotonic() < end:
            before = dict(left)
            for held in list(left):
                try:
                    left[held] -= held.send(PIECE[: left[held]])
                except BlockingIOError:
                    continue
                except OSError:
                    left[held] = 0
                if left[held] == 0:
                    del left[held]
            if before == left:
                time.sleep(0.02)
        return sockets

    def answers(self, sockets):
        statuses = []
        for held in sockets:
            held.setblocking(False)
            try:
                statuses.append(held.recv(4_096)[9:12].decode())
            except OSError:
                statuses.append("")
        return statuses

    def serves(self, key, times=10):
        for _ in range(times):
            self.assertEqual(self.ask("POST", "/v1/stream/a", key, b"small", "text/plain")[0], 204)

    def grown(self, before, most, what):
        peak = memory(self.pid) - before
        # What was refused is free at once, and the allocator gives its pages back some seconds later.
        wait_for(f"{what} to take less than {most >> 20} MiB", lambda: memory(self.pid) - before < most, 20)
        print(f"{what}: {peak >> 10} KiB more, {memory(self.pid) - before >> 10} KiB after a while", file=sys.stderr)
        self.assertLess(memory(self.pid), ALL_MAX)

    def test_bodies_without_a_key_cost_nothing(self):
        for path in ("/v1/stream/a", "/v1/agents/assistant/me", "/v1/stream/__ds/subscriptions/s/ack", "/", "/v1/tokens"):
            with self.subTest(path=path):
                self.start()
                before = memory(self.pid)
                sockets = self.flood("", path)
                self.serves(KEY)
                self.grown(before, STRANGERS_MAX, f"{CONNECTIONS} unfinished bodies to {path} without a key")
                self.assertLessEqual(set(self.answers(sockets)), {"401", "413", ""})
                self.let_go()
                self.node.close()

    def test_bodies_with_a_key_share_what_there_is(self):
        self.start()
        before = memory(self.pid)
        sockets = self.flood(f"Authorization: Bearer {KEY}\r\n")
        # Of another key, and of the same one: what is small has room.
        self.serves(OTHER)
        self.serves(KEY)
        self.assertEqual(self.ask("POST", "/v1/stream/a", OTHER, b"x" * 2 * MEGABYTE, "text/plain")[0], 204)
        self.grown(before, BUDGET_MAX, f"{CONNECTIONS} unfinished bodies with a key")
        wait_for("one of them to be refused", lambda: "503" in self.answers(sockets), 10)
        for held in sockets:
            held.close()
        deadline = time.monotonic() + 10
        while self.ask("POST", "/v1/stream/a", KEY, b"x" * 9 * MEGABYTE, "text/plain")[0] != 204:
            self.assertLess(time.monotonic(), deadline, "the memory does not come back")

    def test_messages_of_sockets_that_do_not_end_share_it_as_well(self):
        self.start()
        body = json.dumps({"name": "ann", "allow": ["a:read"], "expires_in": 600}).encode()
        token = json.loads(self.ask("POST", "/v1/tokens", KEY, body)[1])["token"]
        before = memory(self.pid)
        handshake = (
            "GET /v1/socket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
        message = bytes([0x81, 0xFF]) + (1_000_000).to_bytes(8, "big") + bytes(4) + b"x" * 999_999
        for _ in range(200):
            held = self.connect()
            try:
                held.sendall(handshake + message)
            except OSError:
                pass  # Closed with 1013.
        self.serves(KEY)
        self.grown(before, BUDGET_MAX, "200 unfinished messages")

    def test_heads_that_do_not_end_share_it_as_well(self):
        self.start()
        before = memory(self.pid)
        resource.setrlimit(resource.RLIMIT_NOFILE, (connections_test.HARD, connections_test.HARD))
        for _ in range(min(6_000, connections_test.COUNT)):
            try:
                self.connect().sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 15_000)
            except OSError:
                pass
        self.ask("GET", "/healthz")  # Behind all that have just come.
        self.serves(KEY)
        self.grown(before, 160 * MEGABYTE, f"{len(self.held)} unfinished heads")

    def test_idle_connections_make_place(self):
        self.start("--max-connections", "200")
        request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
        for _ in range(200):
            held = self.connect()
            try:
                held.sendall(request)
                held.recv(4_096)
            except OSError:
                pass
        time.sleep(1.2)  # From a second on, one that waits may be closed for another.
        # More than there are places come one after the other, keep their connections, and are all served.
        for _ in range(100):
            begin = time.monotonic()
            held = self.connect()
            held.sendall(request)
            self.assertIn(b"200 OK", held.recv(4_096))
            self.assertLess(time.monotonic() - begin, 1)
        self.serves(KEY)

    def test_one_token_does_not_take_all_places_of_readers(self):
        self.start()
        body = json.dumps({"name": "ann", "allow": ["a:read"], "expires_in": 600}).encode()
        token = json.loads(self.ask("POST", "/v1/tokens", KEY, body)[1])["token"]
        statuses = []
        for _ in range(min(11_000, connections_test.COUNT)):
            held = self.connect()
            held.sendall(f"GET /v1/stream/a?offset=now&live=sse HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        for held in self.held[-50:]:
            statuses.append(held.recv(4_096)[9:12])
        reader = self.connect()
        reader.sendall(f"GET /v1/stream/a?offset=now&live=sse HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {OTHER}\r\n\r\n".encode())
        self.assertEqual(reader.recv(4_096)[9:12], b"200", statuses[-1])
        self.serves(OTHER)
        self.assertLess(memory(self.pid), ALL_MAX)


if __name__ == "__main__":
    unittest.main()
