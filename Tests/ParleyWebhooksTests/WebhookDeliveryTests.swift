import ParleyChannels
import ParleyHTTP
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyWebhooks

@Suite struct `The delivery of entries` {
    @Test func `says who waits for what and how to answer, signed, to the configured receiver`() throws {
        let receiver = SimulatedReceiver()
        let process = try WebhookProcess(receiver)
        process.append([.note, .approval(7)])
        process.run(.seconds(60))
        let delivery = try #require(receiver.deliveries.first)
        #expect(receiver.deliveries.count == 1)
        let request = delivery.request
        #expect(request.method == "POST" && request.url == "https://hooks.example.com/parley?key=hidden")
        #expect(delivery.header("Content-Type") == "application/json")
        #expect(delivery.header("User-Agent") == "parley/\(Release.version)")
        guard case .publicOnly = request.addresses else { throw Missed("the address policy is \(request.addresses)") }
        #expect(!request.usesProxy && request.connectTimeout == .seconds(5))

        let entry = try #require(try process.entries().last)
        #expect(
            delivery.body
                == JSON.compact(
                    ("type", "approval.requested"), ("agent", "waiter/a"), ("channel", "agents/waiter/a"), ("offset", entry["offset"]),
                    ("at", entry["at"]), ("entry", entry),
                    (
                        "answer",
                        [
                            "path": "/v1/agents/waiter/a",
                            "approve": ["type": "approve", "approval": "0000000000000001/order", "args_sha256": "abc"],
                            "deny": ["type": "deny", "approval": "0000000000000001/order", "args_sha256": "abc"],
                        ]
                    )))
        let secrets = try WebhookSecret.list(WebhookProcess.secret)
        for (name, value) in WebhookSignature.headers(id: delivery.id, at: delivery.at, body: request.body, secrets: secrets) {
            #expect(delivery.header(name) == value)
        }
        #expect(!delivery.id.contains("."))
        #expect(try process.rows() == 0)
        #expect(process.delivery.counters == .init(delivered: 1, failedAttempts: 0, givenUp: 0, pending: 0))
    }

    @Test func `takes the entries that were chosen, of agents only`() throws {
        let receiver = SimulatedReceiver()
        let process = try WebhookProcess(receiver, events: "emit,agent.stalled")
        process.append([.note, .approval(), .stalled, .note])
        process.run(.seconds(60))
        #expect(receiver.deliveries.map { $0.body["type"]?.string } == ["emit", "agent.stalled", "emit"])
        #expect(receiver.deliveries.allSatisfy { $0.body["answer"] == nil })
        #expect(Set(receiver.deliveries.map(\.id)).count == 3)
    }

    @Test func `writes nothing and asks nobody where there is no webhook`() throws {
        let log = SimulatedLog()
        let world = SimulatedWorld(seed: 1)
        let writer = GroupCommit(log: log)
        let channels = Channels(log: log, writer: writer, world: world)
        var append = Append(to: "agents/waiter/a", [.approval()])
        append.creates = ChannelRow(name: "agents/waiter/a", contentType: ContentType.json, isAgent: true, created: world.now)
        channels.submit(append)
        writer.pump()
        #expect(try log.first(.outbox, from: [0, 0], to: [255, 255]) == nil)
    }

    @Test func `is tried again with one id and a new signature until it is taken`() throws {
        let receiver = SimulatedReceiver { number, _ in
            switch number {
            case 0: (.status(500), .zero)
            case 1: (.fails("upstream_unreachable"), .zero)
            case 2: (.silence, .zero)
            case 3: (.status(302, headers: [("Location", "https://elsewhere.example.com/")]), .zero)
            case 4: (.status(404), .zero)
            default: (.status(200), .zero)
            }
        }
        let process = try WebhookProcess(receiver)
        process.append([.approval()])
        process.run(.seconds(3_600))
        #expect(receiver.deliveries.count == 6 && Set(receiver.deliveries.map(\.id)).count == 1)
        #expect(Set(receiver.deliveries.map { $0.header("webhook-signature") }).count == 6)
        #expect(receiver.cancelled == 1, "the one that never answered")
        let deliveries = receiver.deliveries
        let pauses = zip(deliveries, deliveries.dropFirst()).map { first, second -> Double in first.at.duration(to: second.at) / .seconds(1)
        }
        let usual: [Double] = [5, 10, 15 + 20, 40, 80]  // The third attempt itself takes 15 seconds.
        for (pause, expected) in zip(pauses, usual) {
            #expect(pause > expected * 0.79 && pause < expected * 1.21 + 1.1, "\(pauses)")
        }
        #expect(process.delivery.counters == .init(delivered: 1, failedAttempts: 5, givenUp: 0, pending: 0))
    }

    @Test func `waits as long as the receiver asks`() throws {
        let receiver = SimulatedReceiver { number, _ in
            (number == 0 ? .status(429, headers: [("Retry-After", "600")]) : .status(204), .zero)
        }
        let process = try WebhookProcess(receiver)
        process.append([.approval()])
        process.run(.seconds(3_600))
        let pause = receiver.deliveries[0].at.duration(to: receiver.deliveries[1].at)
        #expect(pause >= .seconds(600) && pause < .seconds(602))
    }

    @Test func `is given up three days after its entry, and the next one of the channel continues`() throws {
        let receiver = SimulatedReceiver { _, delivery in (delivery.offset.hasSuffix("1") ? .status(503) : .status(204), .zero) }
        let process = try WebhookProcess(receiver)
        let start = process.world.now
        process.append([.approval(1), .approval(2)])
        process.run(.seconds(2 * 86_400))
        #expect(receiver.taken.isEmpty && process.delivery.counters.pending == 2)
        process.run()
        let attempts = receiver.deliveries.filter { !$0.isTaken }
        #expect((75...110).contains(attempts.count))
        let last = try #require(attempts.last)
        #expect(start.duration(to: last.at) >= .seconds(3 * 86_400) && start.duration(to: last.at) < .seconds(3 * 86_400 + 10))
        #expect(receiver.taken.map(\.offset) == ["0000000000000002"])
        #expect(process.delivery.counters == .init(delivered: 1, failedAttempts: attempts.count, givenUp: 1, pending: 0))
        #expect(try process.rows() == 0)
    }

    @Test func `is given up at once when the receiver says that it is gone`() throws {
        let receiver = SimulatedReceiver { number, _ in (number == 0 ? .status(410) : .status(204), .zero) }
        let process = try WebhookProcess(receiver)
        process.append([.approval(1), .approval(2)])
        process.run()
        #expect(receiver.deliveries.map(\.offset) == ["0000000000000001", "0000000000000002"])
        #expect(process.delivery.counters == .init(delivered: 1, failedAttempts: 1, givenUp: 1, pending: 0))
    }

    @Test func `reads of an answer what is useful and no more`() throws {
        let receiver = SimulatedReceiver { _, _ in (.status(200, bodyBytes: 100_000_000), .zero) }
        let process = try WebhookProcess(receiver)
        process.append([.approval()])
        process.run(.seconds(60))
        #expect(receiver.deliveries.count == 1 && receiver.cancelled == 1)
        #expect(process.delivery.counters.delivered == 1)
    }

    @Test func `is tried again when its answer breaks off`() throws {
        let receiver = SimulatedReceiver { number, _ in
            switch number {
            case 0: (.breaksOff(200, body: ""), .zero)
            case 1: (.breaksOff(202, body: "{\"ok\":"), .zero)
            case 2: (.breaksOff(503, body: "no"), .zero)
            default: (.status(204), .zero)
            }
        }
        let process = try WebhookProcess(receiver)
        process.append([.approval()])
        process.run(.seconds(3_600))
        #expect(receiver.deliveries.count == 4 && Set(receiver.deliveries.map(\.id)).count == 1)
        #expect(process.delivery.counters == .init(delivered: 1, failedAttempts: 3, givenUp: 0, pending: 0))
    }

    @Test func `is given up also when the answer that says so breaks off`() throws {
        let receiver = SimulatedReceiver { number, _ in (number == 0 ? .breaksOff(410, body: "") : .status(204), .zero) }
        let process = try WebhookProcess(receiver)
        process.append([.approval(1)])
        process.run()
        #expect(process.delivery.counters == .init(delivered: 0, failedAttempts: 1, givenUp: 1, pending: 0))
    }

    @Test func `of a deleted agent ends with it, and its successor of that name is told of anew`() throws {
        let receiver = SimulatedReceiver { number, _ in (number == 0 ? .status(500) : .status(204), .zero) }
        let process = try WebhookProcess(receiver)
        process.append([.approval(), .approval()])
        process.run(.seconds(1))
        #expect(process.delivery.counters.pending == 2)
        process.delete("agents/waiter/a")
        process.run(.seconds(60))
        #expect(try process.rows() == 0)
        #expect(receiver.deliveries.count == 1 && process.delivery.counters.pending == 0)
        process.channels.submit(
            CreateChannel(ChannelRow(name: "agents/waiter/a", contentType: ContentType.json, isAgent: true, created: process.world.now)))
        process.append([.approval()])
        process.run(.seconds(60))
        #expect(receiver.deliveries.map(\.offset) == ["0000000000000001", "0000000000000001"])
        #expect(receiver.deliveries[0].id != receiver.deliveries[1].id)
    }

    @Test func `that fails while its agent is deleted leaves no row behind`() throws {
        let receiver = SimulatedReceiver { _, _ in (.status(500), .seconds(1)) }
        let process = try WebhookProcess(receiver)
        process.append([.approval()])
        process.world.run(deadline: process.world.now.advanced(by: .milliseconds(500)))
        process.delete("agents/waiter/a")
        process.run(.seconds(3_600))
        #expect(receiver.deliveries.count == 1)
        #expect(try process.rows() == 0)
        #expect(process.delivery.counters.pending == 0)
    }

    @Test func `continues after a start at the instant that was set, with one id`() throws {
        let receiver = SimulatedReceiver { number, _ in
            (number == 0 ? .status(503, headers: [("Retry-After", "100")]) : .status(204), .zero)
        }
        let process = try WebhookProcess(receiver)
        process.append([.approval()])
        process.run(.seconds(30))
        let next = try process.reopened(receiver)
        #expect(next.delivery.counters.pending == 1)
        next.run(.seconds(3_600))
        #expect(receiver.deliveries.count == 2 && Set(receiver.deliveries.map(\.id)).count == 1)
        #expect(receiver.deliveries[0].at.duration(to: receiver.deliveries[1].at) >= .seconds(100))
        #expect(next.delivery.counters == .init(delivered: 1, failedAttempts: 0, givenUp: 0, pending: 0))
    }

    @Test func `begins nothing once it drains, and the next process takes it up`() throws {
        let receiver = SimulatedReceiver { _, _ in (.status(204), .seconds(1)) }
        let process = try WebhookProcess(receiver)
        process.append([.approval(1), .approval(2)])
        process.world.run(deadline: process.world.now.advanced(by: .milliseconds(500)))
        process.delivery.drain()
        #expect(process.delivery.inFlightCount == 1)
        process.run(.seconds(60))
        #expect(receiver.deliveries.count == 1 && process.delivery.inFlightCount == 0)
        #expect(try process.rows() == 1)
        try process.reopened(receiver).run(.seconds(60))
        #expect(receiver.deliveries.map(\.offset) == ["0000000000000001", "0000000000000002"])
    }
}

@Suite struct `Many deliveries` {
    @Test(arguments: 0..<2 as Range<UInt64>)
    func `are sixteen at once, one a channel and in its order, with bounded memory`(seed: UInt64) throws {
        let receiver = SimulatedReceiver { number, _ in
            (number % 7 == 3 ? .status(500) : .status(204), .milliseconds(1 + number * 37 % 90))
        }
        let process = try WebhookProcess(seed: seed, receiver)
        let (channels, each) = (1_500, 2)  // More channels than are remembered.
        for number in 0..<each {
            for channel in 0..<channels { process.append([.approval(number)], to: "agents/waiter/c\(channel)") }
        }
        process.run()
        #expect(receiver.inFlightMax == (16, 1))
        #expect(receiver.taken.count == channels * each)
        var last: [String: String] = [:]
        for delivery in receiver.taken {
            #expect(last[delivery.channel, default: ""] < delivery.offset)
            last[delivery.channel] = delivery.offset
        }
        #expect(last.count == channels)
        #expect(try process.rows() == 0)
        #expect(process.delivery.counters.pending == 0)
    }

    @Test func `are held back from a receiver that is down, and continue when it is up`() throws {
        let up = Timestamp(milliseconds: 1_767_225_600_000).advanced(by: .seconds(600))
        let receiver = SimulatedReceiver { _, delivery in
            (delivery.at < up ? .fails("upstream_unreachable") : .status(204), .milliseconds(5))
        }
        let process = try WebhookProcess(receiver)
        for channel in 0..<1_500 { process.append([.approval()], to: "agents/waiter/c\(channel)") }
        process.run(.seconds(600))
        #expect((500...700).contains(receiver.deliveries.count), "\(receiver.deliveries.count)")
        process.run()
        #expect(receiver.taken.count == 1_500)
        let first = try #require(receiver.taken.first), half = receiver.taken[1_000]
        #expect(up.duration(to: first.at) < .seconds(3))
        #expect(first.at.duration(to: half.at) < .seconds(10), "the rest does not wait for one second each")
    }
}

@Suite struct `The queue of deliveries` {
    private func id(_ number: Int) -> ChannelID { ChannelID(partition: UInt16(number % 64), number: UInt64(number / 64 + 1)) }
    private let now = Timestamp(milliseconds: 1_000)

    @Test func `begins with a scan, for it knows nothing`() {
        var queue = DeliveryQueue()
        #expect(queue.next(now: now) == .scan(from: ChannelID(partition: 0, number: 0), atMost: 256))
        queue.scanned([id(1)], upTo: nil)
        #expect(queue.next(now: now) == .deliver(id(1)))
        #expect(queue.next(now: now) == .nothing)
    }

    @Test func `remembers a bounded number, and scans for the others`() {
        var queue = DeliveryQueue()
        queue.scanned([], upTo: nil)
        for number in 0..<5_000 { queue.add(id(number)) }
        var delivered = 0
        while case .deliver(let id) = queue.next(now: now) {
            delivered += 1
            queue.dropped(id)
        }
        #expect(delivered == DeliveryQueue.readyMax)
        #expect(queue.next(now: now) == .scan(from: ChannelID(partition: 0, number: 0), atMost: 256))
        queue.scanned([id(1)], upTo: id(2))
        #expect(queue.next(now: now) == .deliver(id(1)))
        #expect(queue.next(now: now) == .scan(from: id(2), atMost: 256))
    }

    @Test func `looks again at a channel that got a row while it was found to have none`() {
        var queue = DeliveryQueue()
        queue.scanned([id(1)], upTo: nil)
        #expect(queue.next(now: now) == .deliver(id(1)))
        queue.add(id(1))
        #expect(queue.next(now: now) == .nothing, "one at a time")
        queue.dropped(id(1))
        #expect(queue.next(now: now) == .deliver(id(1)))
        queue.dropped(id(1))
        #expect(queue.next(now: now) == .nothing)
    }

    @Test func `scans from the start again for what it could not remember behind the scan`() {
        var queue = DeliveryQueue()
        queue.scanned([], upTo: id(100))
        for number in 0..<5_000 { queue.add(id(number)) }
        while case .deliver(let id) = queue.next(now: now) { queue.dropped(id) }
        #expect(queue.next(now: now) == .scan(from: id(100), atMost: 256))
        queue.scanned([], upTo: nil)
        #expect(queue.next(now: now) == .scan(from: ChannelID(partition: 0, number: 0), atMost: 256))
        queue.scanned([], upTo: nil)
        #expect(queue.next(now: now) == .nothing)
    }

    @Test func `gives a receiver that only fails one attempt a second, until one succeeds`() {
        var queue = DeliveryQueue()
        queue.scanned([], upTo: nil)
        for number in 0..<100 { queue.add(id(number)) }
        for _ in 0..<DeliveryQueue.failuresMax {
            guard case .deliver(let id) = queue.next(now: now) else { return #expect(Bool(false)) }
            queue.failed(id, now: now)
        }
        let later = now.advanced(by: .seconds(1))
        #expect(queue.next(now: now) == .wait(until: later))
        guard case .deliver(let next) = queue.next(now: later) else { return #expect(Bool(false)) }
        #expect(queue.next(now: later) == .nothing)
        queue.delivered(next)
        guard case .deliver = queue.next(now: later), case .deliver = queue.next(now: later) else { return #expect(Bool(false)) }
    }
}
