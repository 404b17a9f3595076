"""The readers and writers of drain.sh: python3 drain.py <port> <process id> <readers>.

Each reader follows one stream by server-sent events and goes on from the last control event it got. Each writer appends numbers to every
stream, one request at a time on one connection, and notes what was acknowledged. After a while the process gets SIGTERM; when it has ended,
"restart" is printed, and everybody goes on until all have everything. What is not so is an assertion.
"""

import asyncio
import json
import os
import signal
import sys
import time

PORT, PID, READERS = (int(word) for word in sys.argv[1:4])
STREAMS, WRITERS, SECONDS = 10, 8, 3.0
PATIENCE = 60.0


async def request(reader, writer, method, path, body=b"", kind="application/json"):
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return await answer(reader)


async def answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    return int(head[0].split()[1]), fields, body


class Reader:
    def __init__(self, number):
        self.stream, self.offset, self.got = number % STREAMS, "-1", []
        self.ended_well = None

    async def follow(self, until=None):
        """Until the stream of events ends, or this many entries are there."""
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 22)
        writer.write(f"GET /v1/stream/drain/{self.stream}?offset={self.offset}&live=sse HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        assert status == b"200", status
        pending, text, last = [], b"", None
        self.ended_well = False
        try:
            while until is None or len(self.got) < until:
                size = int(await reader.readline(), 16)
                text += await reader.readexactly(size)
                await reader.readline()
                while b"\n\n" in text:
                    event, text = text.split(b"\n\n", 1)
                    lines = event.split(b"\n")
                    if lines[0].startswith(b":"):
                        continue
                    last, data = lines[0], json.loads(b"\n".join(line[5:] for line in lines if line.startswith(b"data:")))
                    if last == b"event: data":
                        pending += data
                    else:
                        # What came counts when it is known where to resume behind it.
                        self.got, pending, self.offset = self.got + pending, [], data["streamNextOffset"]
                if size == 0:
                    self.ended_well = last == b"event: control" and not pending
                    break
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        writer.close()


class Writer:
    def __init__(self, number):
        self.number, self.next, self.acknowledged, self.refused = number, 0, [], None

    async def write(self, until):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            while time.monotonic() < until:
                entry = [self.number, self.next]
                status, _, _ = await request(
                    reader, writer, "POST", f"/v1/stream/drain/{self.next % STREAMS}", json.dumps([entry]).encode())
                if status != 204:
                    self.refused = status
                    break
                self.acknowledged.append(entry)
                self.next += 1
            writer.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            # It may be there or not: its number is not used again.
            self.next += 1


async def connect():
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", PORT)
        except ConnectionError:
            assert time.monotonic() < end, "the node does not start"
            await asyncio.sleep(0.02)


async def main():
    reader, writer = await connect()
    for stream in range(STREAMS):
        status, _, _ = await request(reader, writer, "PUT", f"/v1/stream/drain/{stream}")
        assert status == 201, status
    writer.close()
    readers, writers = [Reader(number) for number in range(READERS)], [Writer(number) for number in range(WRITERS)]
    following = [asyncio.ensure_future(each.follow()) for each in readers]
    writing = [asyncio.ensure_future(each.write(time.monotonic() + PATIENCE)) for each in writers]
    await asyncio.sleep(SECONDS)
    assert not any(task.done() for task in following + writing), "a client has stopped before the signal"

    process = os.pidfd_open(PID)
    gone = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(process, lambda: gone.done() or gone.set_result(time.monotonic()))
    sent = time.monotonic()
    signal.pidfd_send_signal(process, signal.SIGTERM)
    exit_seconds = await asyncio.wait_for(gone, PATIENCE) - sent
    asyncio.get_running_loop().remove_reader(process)
    await asyncio.wait_for(asyncio.gather(*following, *writing), PATIENCE)
    told = sum(each.ended_well for each in readers)
    before = sum(len(each.acknowledged) for each in writers)
    print(f"from SIGTERM to the end of the process: {exit_seconds * 1000:.0f} ms")
    print(f"readers told where to go on: {told} of {READERS}")

    print("restart", flush=True)
    _, writer = await connect()
    writer.close()
    again = time.monotonic() + SECONDS
    following = [asyncio.ensure_future(each.follow()) for each in readers]
    await asyncio.gather(*(each.write(again) for each in writers))
    totals = []
    reader, writer = await connect()
    for stream in range(STREAMS):
        _, fields, _ = await request(reader, writer, "GET", f"/v1/stream/drain/{stream}?offset=now")
        totals.append(int(fields["stream-next-offset"], 16))
    end = time.monotonic() + PATIENCE
    while any(len(each.got) < totals[each.stream] for each in readers):
        assert time.monotonic() < end, "a reader does not get everything"
        await asyncio.sleep(0.05)
    for task in following:
        task.cancel()

    lost = repeated = 0
    acknowledged = {(number, count) for each in writers for number, count in each.acknowledged}
    for each in readers:
        got = [tuple(entry) for entry in each.got]
        repeated += len(got) - len(set(got))
        lost += len({entry for entry in acknowledged if entry[1] % STREAMS == each.stream} - set(got))
    print(f"appends acknowledged: {before} before the stop, {len(acknowledged) - before} after it; of them lost by readers: {lost}, repeated: {repeated}")
    assert told == READERS and not lost and not repeated


asyncio.run(main())
