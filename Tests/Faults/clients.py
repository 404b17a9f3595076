"""Clients that load a node until it is gone, remember what they sent and what they were told, and compare that with what they find afterwards.

Each has its channels to itself and one request in flight, so it knows exactly what may be there: everything that was acknowledged, in the order
in which it was sent, and either all or nothing of the request in flight when the node died. What was read once must stay.
"""

import http.client
import itertools
import json
import random
import threading

# What a client meets when its node goes.
GONE = (OSError, http.client.HTTPException)


class Refused(Exception):
    """The node is there and cannot write: the request in flight may be in the log, or not."""


class Client:
    """One thread that sends until the node is gone."""

    def __init__(self, node, name, seed):
        self.node, self.name, self.random = node, name, random.Random(f"{seed} {name}")
        self.acknowledged = 0
        self.connection = self.thread = self.failure = None
        self.numbers = itertools.count()

    def begin(self):
        self.failure = None
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.thread.start()

    def end(self):
        """Waits until the client has noticed that the node is gone."""
        self.thread.join(60)
        assert not self.thread.is_alive(), f"{self.name} still waits for an answer"
        if self.failure:
            raise self.failure

    def prepare(self):
        """Makes what the client needs; before the first load."""

    def act(self):
        """Sends something, and remembers the answer."""
        raise NotImplementedError

    def check(self):
        """Compares what is there with what was told, and takes what is there as known from then on."""
        raise NotImplementedError

    def _run(self):
        try:
            while True:
                self.act()
        except (*GONE, Refused):
            pass
        except BaseException as failure:
            self.failure = failure
        self.close()

    def close(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def request(self, method, path, body=None, headers=None, type="application/json"):
        """One request on the client's own connection: status, body and header fields."""
        if not self.connection:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=30)
        fields = {**({"Content-Type": type} if body is not None else {}), **(headers or {})}
        self.connection.request(method, path, body, fields)
        answer = self.connection.getresponse()
        status, data, headers = answer.status, answer.read(), answer.headers
        if status >= 500:
            raise Refused(f"{method} {path} is answered {status}: {data[:300]}")
        return status, data, headers

    def expect(self, statuses, method, path, body=None, headers=None, **options):
        status, data, headers = self.request(method, path, body, headers, **options)
        statuses = statuses if isinstance(statuses, tuple) else (statuses,)
        assert status in statuses, f"{self.name}: {method} {path} is answered {status}, expected {statuses}: {data[:300]}"
        return data, headers

    def read(self, path, offset="-1"):
        """Everything behind an offset, page by page, and the last page's header fields."""
        data = []
        while True:
            page, headers = self.expect(200, "GET", f"{path}?offset={offset}")
            data.append(page)
            offset = headers["Stream-Next-Offset"]
            if headers["Stream-Up-To-Date"]:
                return data, headers

    def entries(self, path, offset="-1"):
        return [entry for page in self.read(path, offset)[0] for entry in json.loads(page)]

    def message(self):
        """Something that is sent once, of very different sizes: a commit may be one sector, or many blocks of the log."""
        size = self.random.choice((0, 30, 200, 1_000, 5_000, self.random.choice((100, 40_000))))
        return {"by": self.name, "n": next(self.numbers), "x": self.random.randbytes(size // 2).hex()}


class Appender(Client):
    """Appends messages to a stream, one or a batch at a time."""

    def __init__(self, node, name, seed, batch=1):
        super().__init__(node, name, seed)
        self.path, self.batch = f"/v1/stream/{name}", batch
        self.sent, self.edges = [], {0}
        # The offset that was told after so many messages.
        self.offsets = {0: "-1"}

    def prepare(self):
        self.expect(201, "PUT", self.path, "[]")

    def act(self):
        messages = [self.message() for _ in range(self.random.randint(1, self.batch))]
        self.send(messages)

    def send(self, messages, headers=None):
        self.sent += messages
        self.edges.add(len(self.sent))
        _, headers = self.expect((200, 204), "POST", self.path, json.dumps(messages), headers)
        self.acknowledged = len(self.sent)
        self.offsets[self.acknowledged] = headers["Stream-Next-Offset"]

    def check(self):
        found = self.entries(self.path)
        count = len(found)
        assert count >= self.acknowledged, f"{self.name}: {self.acknowledged} messages were acknowledged and {count} are there"
        assert found == self.sent[:count], f"{self.name}: {difference(found, self.sent)}"
        assert count in self.edges, f"{self.name}: {count} messages are there, the last batch in part"
        for known in self.random.sample(sorted(self.offsets), min(5, len(self.offsets))):
            assert self.entries(self.path, self.offsets[known]) == found[known:], f"{self.name}: offset {self.offsets[known]} has moved"
        # The next one is numbered as if the request in flight had never been sent.
        self.sent, self.acknowledged, self.edges = found, count, {edge for edge in self.edges if edge <= count}
        self.numbers = itertools.count(count)


class Producer(Appender):
    """Appends with an id, an epoch and a sequence, and sends again what it got no answer to."""

    def __init__(self, node, name, seed):
        super().__init__(node, name, seed, batch=3)
        self.epoch, self.sequence, self.pending = 0, 0, None

    def act(self):
        self.pending = self.pending or [self.message() for _ in range(self.random.randint(1, self.batch))]
        self.send(self.pending, self.fields())
        self.pending = None
        self.sequence += 1
        if self.random.random() < 0.02:
            self.epoch, self.sequence = self.epoch + 1, 0

    def fields(self, epoch=None):
        return {"Producer-Id": self.name, "Producer-Epoch": str(self.epoch if epoch is None else epoch), "Producer-Seq": str(self.sequence)}

    def check(self):
        super().check()
        if self.pending:
            # Either it is there, and then the repetition is known as one, or it is not, and then it comes now.
            repeated = self.sent[-len(self.pending):] == self.pending
            self.expect(204 if repeated else 200, "POST", self.path, json.dumps(self.pending), self.fields())
            if not repeated:
                self.sent += self.pending
                self.edges.add(len(self.sent))
            self.acknowledged = len(self.sent)
            self.pending = None
            self.sequence += 1
        if self.epoch > 0 and self.sequence > 0:
            self.expect(403, "POST", self.path, "[0]", self.fields(epoch=self.epoch - 1))
        found = self.entries(self.path)
        assert found == self.sent, f"{self.name}: {difference(found, self.sent)}"
        self.numbers = itertools.count(len(found))


class Follower(Client):
    """Follows an appender's stream by long-poll: no reader may ever see an entry that is later gone."""

    def __init__(self, appender):
        super().__init__(appender.node, f"follower of {appender.name}", 0)
        self.appender, self.seen, self.offset = appender, [], "-1"

    def act(self):
        status, data, headers = self.request("GET", f"{self.appender.path}?offset={self.offset}&live=long-poll")
        assert status in (200, 204), f"{self.name} is answered {status}: {data[:300]}"
        self.seen += json.loads(data) if data else []
        self.offset = headers["Stream-Next-Offset"]

    def check(self):
        """After the appender's."""
        there = self.appender.sent
        self.acknowledged = len(self.seen)
        assert self.seen == there[: len(self.seen)], f"{self.name} has seen what is not there: {difference(self.seen, there)}"


class Maker(Client):
    """Makes streams, appends to them, forks them, closes them and removes them: what it was told last of each holds."""

    KEPT = 25

    def __init__(self, node, name, seed):
        super().__init__(node, name, seed)
        # By path: the states that may be there, the newest last. One, unless the answer to the last change never came. `None`: no such stream.
        self.streams = {}

    def act(self):
        there = [path for path, states in self.streams.items() if states[-1] is not None]
        choice = self.random.random()
        open_ones = [path for path in there if not self.streams[path][-1][1]]
        if len(there) < 3 or choice < 0.2:
            text = f"begun by {next(self.numbers)}. "
            self.change(f"/v1/stream/{self.name}/{next(self.numbers)}", (text, False), 201, "PUT", text)
        elif choice < 0.4:
            source = self.random.choice(there)
            self.change(
                f"/v1/stream/{self.name}/{next(self.numbers)}", (self.streams[source][-1][0], False), 201, "PUT", None,
                {"Stream-Forked-From": source})
        elif choice < 0.5 and len(there) > self.KEPT // 2 or len(self.streams) > self.KEPT:
            self.change(self.random.choice(there), None, 204, "DELETE")
        elif open_ones:
            path = self.random.choice(open_ones)
            text, closes = f"{next(self.numbers)} {'-' * self.random.choice((1, 100, 9_000))}. ", choice > 0.93
            headers = {"Stream-Closed": "true"} if closes else {}
            self.change(path, (self.streams[path][-1][0] + text, closes), 204, "POST", text, headers)

    def change(self, path, state, status, method, body=None, headers=None):
        self.streams.setdefault(path, [None]).append(state)
        self.expect(status, method, path, body, headers, type="text/plain")
        self.streams[path] = [state]
        self.acknowledged += 1

    def check(self):
        for path, states in list(self.streams.items()):
            state = self.state(path)
            allowed = [None if known is None else (known[0][:40], len(known[0]), known[1]) for known in states]
            assert state in states, f"{path} is {state and (state[0][:40], len(state[0]), state[1])}, expected one of {allowed}"
            self.streams[path] = [state]
            if state is None and len(self.streams) > self.KEPT:
                del self.streams[path]

    def state(self, path):
        status, data, _ = self.request("HEAD", path)
        if status in (404, 410):
            return None
        pages, headers = self.read(path)
        return b"".join(pages).decode(), headers["Stream-Closed"] == "true"


class Talker(Client):
    """Sends messages to an agent, each with a key until it is accepted, while the agent answers."""

    def __init__(self, node, name, seed, agent, pause=0.15):
        super().__init__(node, name, seed)
        self.agent, self.pause, self.pending = agent, pause, None
        self.accepted, self.known = {}, {}
        self.path = f"/v1/stream/agents/{agent}"

    def prepare(self):
        self.expect(201, "PUT", self.path, headers={"Content-Type": "application/json"})

    def act(self):
        self.pending = self.pending or f"{self.name} {next(self.numbers)}"
        body = json.dumps({"type": "message", "text": self.pending})
        data, _ = self.expect(202, "POST", f"/v1/agents/{self.agent}", body, {"Idempotency-Key": self.pending})
        self.accepted[self.pending] = json.loads(data)["entries"][0]["offset"]
        self.pending = None
        self.acknowledged = len(self.accepted)
        threading.Event().wait(self.pause)

    def check(self):
        entries = self.entries(self.path)
        found = {entry["offset"]: entry for entry in entries}
        assert [entry["offset"] for entry in entries] == sorted(found), f"{self.agent}: entries are repeated or out of order"
        assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries), f"{self.agent}: time goes back"
        # Text that was sealed is let go of after a while; nothing else may ever go or change.
        for offset, entry in self.known.items():
            assert found.get(offset, entry) == entry, f"{self.agent}: the entry at {offset} was {entry} and is {found[offset]}"
            assert offset in found or entry["type"] == "text", f"{self.agent}: the entry at {offset} is gone: {entry}"
        messages = {entry["text"]: entry["offset"] for entry in entries if entry["type"] == "message"}
        assert len(messages) == sum(entry["type"] == "message" for entry in entries), f"{self.agent}: a message is there twice"
        for text, offset in self.accepted.items():
            assert messages.get(text) == offset, f"{self.agent}: '{text}' was accepted at {offset} and is at {messages.get(text)}"
        extra = set(messages) - set(self.accepted)
        assert extra <= {self.pending}, f"{self.agent}: {extra} was never acknowledged"
        self.known.update(found)

    def settled(self):
        """Whether every message has its one receipt and its turn's end. Both are looked for in the whole log."""
        entries = self.entries(self.path)
        for type, field in (("receipt", "of"), ("turn.completed", "turn")):
            offsets = sorted(entry[field] for entry in entries if entry["type"] == type)
            if len(offsets) < len(self.accepted):
                return False
            messages = sorted(entry["offset"] for entry in entries if entry["type"] == "message")
            assert offsets == messages, f"{self.agent}: {type} for {offsets}, messages {messages}"
        return True


class Worker(Client):
    """Feeds a stream, and claims and acks it by a subscription: what was acked is not brought again, and what was not, is."""

    def __init__(self, node, name, seed):
        super().__init__(node, name, seed)
        self.path, self.subscription = f"/v1/stream/{name}", f"/v1/stream/__ds/subscriptions/{name}"
        self.acked, self.acking, self.generation = "0" * 16, None, 0

    def prepare(self):
        self.expect(201, "PUT", self.path, "[]")
        body = {"type": "pull-wake", "streams": [self.name], "wake_stream": f"{self.name}-wakes", "lease_ttl_ms": 1_000}
        self.expect(201, "PUT", self.subscription, json.dumps(body))

    def act(self):
        self.expect(204, "POST", self.path, json.dumps([self.message()]))
        status, data, _ = self.request("POST", f"{self.subscription}/claim", json.dumps({"worker": "w"}))
        if status != 200:
            # The lease of before the crash holds; or the wake of this message comes in a moment.
            assert status == 409, f"{self.name}: a claim is answered {status}: {data[:300]}"
            threading.Event().wait(0.05)
            return
        claim = json.loads(data)
        assert claim["generation"] > self.generation, f"{self.name}: generation {claim['generation']} after {self.generation}"
        self.generation = claim["generation"]
        stream = claim["streams"][0]
        assert stream["acked_offset"] in (self.acked, self.acking), f"{self.name}: acked {self.acked} and is brought {stream}"
        self.acked, self.acking = stream["acked_offset"], stream["tail_offset"]
        ack = {
            "wake_id": claim["wake_id"], "generation": self.generation, "done": True,
            "acks": [{"stream": self.name, "offset": self.acking}],
        }
        # Refused, when the lease is over.
        status, data, _ = self.request("POST", f"{self.subscription}/ack", json.dumps(ack), {"Authorization": f"Bearer {claim['token']}"})
        assert status == 200 or status == 409 and b"FENCED" in data, f"{self.name}: an ack is answered {status}: {data[:300]}"
        self.acked, self.acking = self.acking if status == 200 else self.acked, None
        self.acknowledged += 1

    def check(self):
        data, _ = self.expect(200, "GET", self.subscription)
        cursor = json.loads(data)["streams"][0]["acked_offset"]
        assert cursor in (self.acked, self.acking), f"{self.name}: acked {self.acked} (or {self.acking}), and the cursor is {cursor}"
        self.acked, self.acking = cursor, None


def difference(found, expected):
    """Where two lists part, in a few words."""
    for index, (one, other) in enumerate(itertools.zip_longest(found, expected)):
        if one != other:
            return f"message {index} is {str(one)[:80]}, sent was {str(other)[:80]} ({len(found)} found, {len(expected)} sent)"
    return "no difference"
