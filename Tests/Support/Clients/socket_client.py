"""A client of /v1/socket that shares nothing with Parley: the `websockets` library and docs/socket.md.

    python socket_client.py <port> <channels> <count> <seed>

Appends <count> numbers to each of <channels> streams and follows all of them on one connection, leaving and coming back at random, while
the test kills the server. Ends with status 0 when each number was seen once, in order, in each channel.
"""

import asyncio
import json
import random
import sys
import urllib.request

import websockets

port, channel_count, count, seed = (int(word) for word in sys.argv[1:5])
random.seed(seed)
channels = [f"outside/{number}" for number in range(channel_count)]
seen = {channel: [] for channel in channels}
offsets = {channel: "-1" for channel in channels}
connections = 0


def create():
    for channel in channels:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/stream/{channel}", method="PUT", headers={"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request).read()


async def connect():
    """Until it works: the server may just have been killed."""
    while True:
        try:
            return await websockets.connect(f"ws://127.0.0.1:{port}/v1/socket", subprotocols=["parley.v1"])
        except (OSError, websockets.WebSocketException):
            await asyncio.sleep(0.05)


def is_done():
    return all(len(numbers) == count for numbers in seen.values())


async def follow():
    global connections
    while not is_done():
        async with await connect() as socket:
            connections += 1
            assert socket.subprotocol == "parley.v1"
            try:
                for ref, channel in enumerate(channels):
                    await socket.send(json.dumps({"op": "follow", "ref": ref, "channel": channel, "offset": offsets[channel]}))
                for _ in range(random.randint(1, 80)):
                    message = json.loads(await asyncio.wait_for(socket.recv(), 20))
                    if "entries" not in message:
                        continue
                    channel = channels[message["ref"]]
                    assert message["channel"] == channel, message
                    seen[channel] += message["entries"]
                    offsets[channel] = message["offset"]
                    if is_done():
                        return
            except websockets.ConnectionClosed:
                continue


async def append():
    """Each number under a key of its own, sent again until it is answered: several at a time, in order within a channel."""
    numbers = {channel: 0 for channel in channels}
    while any(number < count for number in numbers.values()):
        async with await connect() as socket:
            try:
                while any(number < count for number in numbers.values()):
                    asked = [channel for channel in channels if numbers[channel] < count]
                    for ref, channel in enumerate(asked):
                        number = numbers[channel]
                        await socket.send(
                            json.dumps({"op": "append", "ref": ref, "channel": channel, "entries": [number], "key": f"n{number}"})
                        )
                    for _ in asked:
                        answer = json.loads(await asyncio.wait_for(socket.recv(), 20))
                        assert answer.get("ok"), answer
                        numbers[asked[answer["ref"]]] += 1
                    await asyncio.sleep(0.01)
            except websockets.ConnectionClosed:
                continue


async def main():
    create()
    print("ready", flush=True)
    await asyncio.gather(follow(), append())
    for channel, numbers in seen.items():
        assert numbers == list(range(count)), (channel, numbers, seed)
    print(json.dumps({"connections": connections, "numbers": count * channel_count}), flush=True)


asyncio.run(main())
