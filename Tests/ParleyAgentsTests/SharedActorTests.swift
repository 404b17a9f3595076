import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

/// An actor of the program's own, through which its tasks call the turn.
private actor Ledger {
    private var count = 0

    func enter(_ turn: Turn, _ item: Int) async throws -> Int {
        // Long enough for others to come meanwhile, when it runs on threads.
        for _ in 0..<2_000 { count &+= 1 }
        try turn.emit("entered", item)
        let value = try await turn.step("s") { _ in item }
        for _ in 0..<2_000 { count &+= 1 }
        return value
    }
}

@Suite struct `An actor that calls the turn` {
    @Test(arguments: 0..<16, [SimulatedLog.Outcome.lost, .durableUnacknowledged])
    func `is called again after a crash`(commit: Int, outcome: SimulatedLog.Outcome) throws {
        let entries = try run(seed: 3, crashes: [(commit, outcome), (4, .durableUnacknowledged)]) { world in
            [
                agent { _, turn in
                    let ledger = Ledger()
                    let all = try await turn.map("m", [1, 2, 3]) { item, turn in try await ledger.enter(turn, item) }
                    return .integer(Int64(all.reduce(0, +)))
                }
            ]
        }
        #expect(entries.last?["output"] == 6, "\(short(entries))")
        #expect(entries.filter { $0["type"] == "emit" }.compactMap { $0["data"]?.integer }.sorted() == [1, 2, 3])
    }

    /// On threads: an actor that agents share leaves a turn's task on another one's, and so does one that each turn has for itself.
    @Test(arguments: [(16, true), (1, true), (16, false), (1, false)])
    func `may leave a task of it on the thread of another`(agents: Int, isShared: Bool) async throws {
        let shared = Ledger()
        let ends = try await ThreadedNode.ends(of: agents) { turn in
            let ledger = isShared ? shared : Ledger()
            var sum = 0
            for round in 0..<(isLong ? 20 : 5) {
                let all = try await turn.map("m", Array(0..<20)) { item, turn in try await ledger.enter(turn, item + round) }
                sum += all.reduce(0, +)
            }
            return .integer(Int64(sum))
        }
        #expect(ends.count == agents && ends.allSatisfy { $0["output"]?.integer != nil }, "\(ends.count) \(ends.first?.text ?? "")")
    }
}

/// Agents on a simulated log and real threads.
private enum ThreadedNode {
    /// Sends a message to so many agents, and waits up to a minute for their turns.
    /// - Returns: the ends of the turns that have ended.
    static func ends(of agents: Int, _ program: @escaping @Sendable (Turn) async throws -> JSON) async throws -> [JSON] {
        let world = SystemWorld(threads: 4)
        let log = SimulatedLog()
        let writer = GroupCommit(log: log)
        let channels = Channels(log: log, writer: writer, world: world)
        let runtime = AgentRuntime(channels: channels, world: world, agents: [agent { _, turn in try await program(turn) }])
        writer.start()
        try runtime.start()
        defer { writer.stop() }
        let names = (0..<agents).map { "agents/probe/\($0)" }
        for name in names {
            var append = Append(to: name, [NewEntry(.message, nil, ("by", "tester"), ("text", "x"))])
            append.creates = ChannelRow(name: name, contentType: ContentType.json, isAgent: true, created: world.now)
            append.isInput = true
            channels.submit(append)
        }
        return try await OwnThread.run {
            var ends: [JSON] = []
            try? RealTime.until("the turns to end", timeout: .seconds(60)) {
                ends = try names.compactMap { try end($0, channels) }
                return ends.count == agents
            }
            return ends
        }
    }

    private static func end(_ name: String, _ channels: Channels) throws -> JSON? {
        var end: JSON?
        guard let found = try channels.find(name) else { return nil }
        try channels.walkBack(found, from: found.tail.head) { _, frame in
            if frame.kind.endsTurn { end = frame.body }
            return false
        }
        return end
    }
}
