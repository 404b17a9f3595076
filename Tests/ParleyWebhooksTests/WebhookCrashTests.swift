import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyWebhooks

/// Every chosen entry that is durable is delivered at least once, with one id, and none that is not, however commits end.
@Suite struct `Deliveries and crashes` {
    enum End: String, CaseIterable, Sendable { case notSubmitted, lost, partlyDurable, durableUnacknowledged }

    private static func outcome(_ end: End, _ batches: Int) -> SimulatedLog.Outcome {
        switch end {
        case .notSubmitted: .notSubmitted
        case .lost: .lost
        case .partlyDurable: .durable(batches: Set((0..<batches).filter { $0 % 2 == 0 }))
        case .durableUnacknowledged: .durableUnacknowledged
        }
    }

    @Test(arguments: End.allCases, 0..<40)
    func `lose nothing, invent nothing, and keep their ids`(end: End, commit: Int) throws {
        let seed = UInt64(commit) * 4 + UInt64(End.allCases.firstIndex(of: end)!)
        let names = (0..<5).map { "agents/waiter/c\($0)" }
        let receiver = SimulatedReceiver { number, _ in
            // Answers of every kind, among them a request that arrives while its answer does not.
            switch SplitMix64.hash(seed, number) % 6 {
            case 0: (.status(500), .milliseconds(number % 40))
            case 1: (.fails("upstream_closed", isTaken: true), .milliseconds(number % 40))
            case 2: (.silence, .zero)
            default: (.status(204), .milliseconds(number % 400))
            }
        }
        // Each process crashes a little further on than the one before, until one lives.
        var process = try WebhookProcess(
            seed: seed, receiver,
            on: SimulatedLog(outcome: { number, batches in number == commit % 10 ? Self.outcome(end, batches.count) : .acknowledged }))
        for life in 0..<4 {
            for round in 0..<4 {
                for (index, name) in names.enumerated() where (index + round + Int(seed)) % 3 != 0 {
                    process.append([.note, .approval(life * 10 + round)], to: name)
                }
                process.world.run(deadline: process.world.now.advanced(by: .milliseconds(50 * round)), until: { process.log.crashed })
            }
            process.world.run(deadline: process.world.now.advanced(by: .seconds(20)), until: { process.log.crashed })
            let crashesAt = life < 2 ? commit / (life + 1) + 3 : .max
            process = try process.reopened(receiver, seed: seed &+ UInt64(life) &+ 1_000) { number, batches in
                number == crashesAt ? Self.outcome(end, batches.count) : .acknowledged
            }
        }
        process.run()
        #expect(!process.log.crashed)

        var durable: Set<String> = []
        for name in names {
            for entry in try process.entries(name) where entry["type"] == "approval.requested" {
                durable.insert(name + "@" + (entry["offset"]?.string ?? ""))
            }
        }
        #expect(!durable.isEmpty)
        #expect(Set(receiver.taken.map { $0.channel + "@" + $0.offset }) == durable, "seed \(seed)")
        #expect(Set(receiver.deliveries.map { $0.channel + "@" + $0.offset }) == durable, "seed \(seed)")
        let ids = Dictionary(grouping: receiver.deliveries) { $0.channel + "@" + $0.offset }.mapValues { Set($0.map(\.id)) }
        #expect(ids.values.allSatisfy { $0.count == 1 }, "seed \(seed)")
        #expect(Set(ids.values.map { $0.first! }).count == durable.count, "seed \(seed)")
        #expect(Set(receiver.deliveries.map { $0.id + $0.body.text }).count == durable.count, "each delivery of an id has one body")
        for name in names {
            let first = receiver.taken.filter { $0.channel == name }.reduce(into: [String]()) {
                if !$0.contains($1.offset) { $0.append($1.offset) }
            }
            #expect(first == first.sorted(), "seed \(seed)")
        }
        #expect(try process.rows() == 0)
        #expect(process.delivery.counters.pending == 0)
    }

    @Test(arguments: End.allCases, 0..<8)
    func `reach who can answer a turn that waits, and the answer they carry lets it continue`(end: End, commit: Int) throws {
        let (deliveries, types) = try SimulatedNode.simulate {
            let receiver = SimulatedReceiver()
            let crashing = SimulatedLog(outcome: { number, batches in number == commit ? Self.outcome(end, batches.count) : .acknowledged })
            var process = try WebhookProcess(receiver, on: crashing)
            var runtime = try process.startAgents()
            /// Sends, and once more when the process dies before everything is done.
            func send(_ entry: NewEntry, key: String) throws {
                process.send(entry, key: key)
                process.world.run(deadline: process.world.now.advanced(by: .seconds(30)), until: { process.log.crashed })
                guard process.log.crashed else { return }
                process = try process.reopened(receiver)
                runtime = try process.startAgents()
                process.send(entry, key: key)
                process.run(.seconds(30))
            }
            try send(NewEntry(.message, nil, ("text", "tea")), key: "1")
            let answer = try #require(receiver.deliveries.last?.body["answer"])
            let members = (answer["approve"]?.members ?? []).filter { $0.name != "type" }.map { ($0.name, Optional($0.value)) }
            try send(NewEntry(.approve, nil, members: NewEntry.join(members)), key: "2")
            withExtendedLifetime(runtime) {}
            return (receiver.deliveries, try process.entries().compactMap { $0["type"]?.string })
        }
        #expect(Set(deliveries.map(\.id)).count == 1 && (1...2).contains(deliveries.count))
        #expect(deliveries.first?.body["entry"]?["args"]?["what"] == "tea")
        #expect(types.filter { $0 == "approval.requested" }.count == 1)
        #expect(types.last == "turn.completed")
    }
}

private struct Waiter: Agent {
    static let kind = "waiter"
    typealias State = NoState
    struct Order: Codable, Sendable { var what: String }

    func receive(_ text: String, _ turn: Turn, _ state: inout NoState) async throws -> String {
        try await turn.approval("order", of: Order(what: text))
        return "ordered"
    }
}

extension WebhookProcess {
    fileprivate func startAgents() throws -> AgentRuntime {
        let runtime = AgentRuntime(channels: channels, world: world, agents: [AnyAgent(Waiter())], node: "simulated")
        try runtime.start()
        return runtime
    }

    fileprivate func send(_ entry: NewEntry, key: String) {
        var append = Append(to: "agents/waiter/a", [entry])
        append.creates = ChannelRow(name: "agents/waiter/a", contentType: ContentType.json, isAgent: true, created: world.now)
        append.isInput = true
        append.idempotency = IdempotencyKey(key: key, body: [])
        channels.submit(append)
    }
}

extension SplitMix64 {
    /// A number that follows from both.
    static func hash(_ seed: UInt64, _ number: Int) -> UInt64 {
        var random = SplitMix64(seed: seed &* 0x9e37_79b9 &+ UInt64(number))
        return random.next()
    }
}
