"""Connections that want too much of the real executable, beside clients that must stay served.

Ten thousand of them, or as many as `ulimit -n` lets both sides have.
"""

import asyncio
import http.client
import os
import pathlib
import re
import resource
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "Browser"))
from node import Node, wait_for  # noqa: E402

WANTED = 10_000
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, HARD))
# Each connection is a descriptor on both sides, each of which has others, too.
COUNT = WANTED if HARD == resource.RLIM_INFINITY else min(WANTED, HARD - 500)

HEAD = b"GET /v1/stream/a HTTP/1.1\r\nHost: a\r\nX-Slow: "
BODY = b"POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n"
# What one connection that holds nothing but the start of a head or a body may cost the server, with all that the kernel does not count.
BYTES_EACH = 24 << 10


def memory(pid):
    """Resident bytes."""
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) << 10


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


async def read_to_end(reader, timeout=60):
    """All that comes until the server closes, however it does."""
    answer = b""
    try:
        while piece := await asyncio.wait_for(reader.read(65_536), timeout):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


class HostileConnections(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        # On by default in tests, it logs what is slow, and is.
        asyncio.get_running_loop().set_debug(False)

    def start(self, *options):
        self.node = Node(options=options)
        self.addCleanup(self.node.close)
        self.node.start()
        self.request("PUT", "/v1/stream/a", "text/plain")
        self.pid = self.node.process.pid
        self.before = descriptors(self.pid)

    def request(self, method, path, kind="application/json", body=""):
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=30)
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    async def connect(self, number):
        # Addresses of this machine by turns: one address has fewer than 30,000 ports.
        return await asyncio.open_connection("127.0.0.1", self.node.port, local_addr=(f"127.0.0.{1 + number % 8}", 0))

    async def open(self, count, begin):
        """Connections that send `begin` and no more; those that the server did not take are left out."""
        connections = []
        for first in range(0, count, 100):
            batch = range(first, min(first + 100, count))
            connections += await asyncio.gather(*(self.connect(number) for number in batch))
            for _, writer in connections[first:]:
                writer.write(begin)
        self.addAsyncCleanup(self.close, connections)
        return connections

    async def close(self, connections):
        for _, writer in connections:
            writer.transport.abort()

    async def serves(self, times=20):
        """A client that keeps its connection and new ones are served, each at once."""
        for number in range(times):
            status, _ = await asyncio.to_thread(self.request, "POST", "/v1/stream/a", "text/plain", f"{number},")
            self.assertEqual(status, 204)

    async def comes_back(self):
        await asyncio.to_thread(wait_for, "the descriptors to come back", lambda: descriptors(self.pid) <= self.before + 2)

    def refused(self, code):
        found = re.search(rf'parley_refused_total{{code="{code}"}} (\d+)', self.request("GET", "/metrics")[1].decode())
        return int(found[1]) if found else 0

    async def test_many_that_never_finish(self):
        """Heads and bodies that stop, or come byte by byte, cost what they hold, keep no other client out, and are answered in their time."""
        self.start()
        keeps = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=30)

        def ask():
            keeps.request("GET", "/healthz")
            answer = keeps.getresponse()
            return answer.status, answer.read()

        self.assertEqual((await asyncio.to_thread(ask))[0], 200)
        memory_before = memory(self.pid)
        heads = await self.open(COUNT * 3 // 4, HEAD)
        bodies = await self.open(COUNT // 4, BODY)
        everyone = heads + bodies
        await asyncio.to_thread(wait_for, "all to be taken", lambda: descriptors(self.pid) >= self.before + len(everyone), 60)
        drips = asyncio.create_task(self.drip(heads[:50] + bodies[:50]))
        await self.serves()
        self.assertEqual((await asyncio.to_thread(ask))[0], 200)
        keeps.close()
        # What is announced takes no memory: a body's buffer is reserved for 64 KiB at most, and untouched it is none.
        used = memory(self.pid) - memory_before
        print(f"{len(everyone)} half-open connections: {used >> 10} KiB", file=sys.stderr)
        self.assertLess(used, (32 << 20) + len(everyone) * BYTES_EACH)
        silent = heads[50:] + bodies[50:] + heads[:50]
        answers = await asyncio.gather(*(read_to_end(reader, 120) for reader, _ in silent))
        self.assertEqual({answer.split(b"\r\n")[0] for answer in answers}, {b"HTTP/1.1 408 Request Timeout"})
        # A body of a million bytes may take its time, a byte at a time not for ever; here it is broken off.
        drips.cancel()
        await self.close(bodies[:50])
        await self.serves(1)
        await self.comes_back()

    async def drip(self, connections):
        """A byte a second on each, until the task is cancelled."""
        while True:
            for _, writer in connections:
                if not writer.is_closing():
                    writer.write(b"x")
            await asyncio.sleep(1)

    async def test_more_than_there_may_be(self):
        """Beyond the limit, connections that have sent nothing are closed first, so every request is served and no client is left waiting."""
        self.start("--max-connections", "200")
        connections = await self.open(600, HEAD)
        await asyncio.sleep(1.5)  # From a second on, one that asks nothing may be closed for another.
        await self.serves()
        self.assertLess(descriptors(self.pid), self.before + 260)
        self.assertGreater(self.refused("too_many_connections"), 0)
        await self.close(connections)
        await self.comes_back()

    async def test_heads_and_bodies_that_are_too_large(self):
        """Each is answered with its own status and closed, and what came of it is not kept."""
        self.start()
        floods = {
            431: b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1_000,
            414: b"GET /" + b"a" * 20_000,
            413: b"POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n",
            501: b"A" * 1_000,
            505: b"GET / HTTP/3.0\r\n",
            400: b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        }
        memory_before = memory(self.pid)
        for status, flood in floods.items():
            connections = await self.open(100, flood)
            answers = await asyncio.gather(*(read_to_end(reader) for reader, _ in connections))
            self.assertEqual({answer[9:12] for answer in answers}, {str(status).encode()})
        # A head that never ends, as fast as it goes.
        reader, writer = await self.connect(0)
        try:
            for _ in range(1_000):
                writer.write(b"X: " + b"a" * 1_000 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            pass
        writer.transport.abort()
        self.assertLess(memory(self.pid) - memory_before, 64 << 20)
        await self.serves()
        await self.comes_back()

    async def test_chunks_of_one_byte(self):
        """A body in the smallest chunks there are, each with the longest extension, is taken as what it is, or refused; never more."""
        self.start()
        line = b"1;" + b"e" * 250 + b"\r\n"
        reader, writer = await self.connect(0)
        writer.write(b"POST /v1/stream/a HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for _ in range(2_000):
            writer.write(line + b"x\r\n")
        writer.write(b"0\r\n\r\n")
        answer = await read_to_end(reader)
        self.assertTrue(answer.startswith(b"HTTP/1.1 204"), answer[:200])
        self.assertEqual(self.request("GET", "/v1/stream/a")[1], b"x" * 2_000)
        writer.close()


if __name__ == "__main__":
    unittest.main()
