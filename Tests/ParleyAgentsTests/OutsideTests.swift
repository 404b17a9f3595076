import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

/// Runs a program until the log has crashed or nothing happens, and another one on what is left.
private func change(
    crashAt commit: Int, cancelsAfter pause: Duration? = nil, from first: @escaping @Sendable (Turn, SimulatedWorld) async throws -> JSON,
    to second: @escaping @Sendable (Turn, SimulatedWorld) async throws -> JSON
) throws -> [JSON] {
    try SimulatedNode.simulate {
        let world = SimulatedWorld(seed: 1)
        let log = SimulatedLog(outcome: { number, _ in number == commit ? .durableUnacknowledged : .acknowledged })
        let before = try SimulatedNode(world, log, agents: [agent { _, turn in try await first(turn, world) }])
        before.send("x", to: name)
        world.run(deadline: world.now.advanced(by: .seconds(600))) { log.crashed }
        #expect(log.crashed)
        let after = SimulatedWorld(seed: 2, now: world.now)
        let node = try SimulatedNode(after, log.reopen(), agents: [agent { _, turn in try await second(turn, after) }])
        if let pause {
            after.run(deadline: after.now.advanced(by: pause))
            node.send(NewEntry(.cancel, nil, ("by", "ann")), to: name)
        }
        after.run(deadline: after.now.advanced(by: .seconds(3_600)))
        return try node.entries(name)
    }
}

@Suite struct `A turn that waits for something outside` {
    @Test(arguments: 0..<200 as Range<UInt64>)
    func `continues where it was, wherever processes die`(seed: UInt64) throws {
        let entries = try run(seed: seed, crashes: crashes(seed)) { world in
            [
                agent { _, turn in
                    let sums = try await turn.map("m", [1, 2, 3]) { item, turn in
                        await pause(world, .milliseconds(Int(world.random() % 40)))
                        let first = try await turn.step("a") { _ in item }
                        await pause(world, .milliseconds(Int(world.random() % 40)))
                        try turn.emit("half", first)
                        return first + (try await turn.step("b") { _ in item * 10 })
                    }
                    await pause(world, .milliseconds(3))
                    return .integer(Int64(try await turn.step("sum") { _ in sums.reduce(0, +) }))
                }
            ]
        }
        let last = try #require(entries.last)
        #expect(last["type"] == "turn.completed" && last["output"] == 66, "seed \(seed): \(last.text)")
        let recorded = entries.filter { $0["type"] == "step.completed" }.compactMap { $0["step"]?.string }
        #expect(recorded.sorted() == ["m/0/a", "m/0/b", "m/1/a", "m/1/b", "m/2/a", "m/2/b", "sum"], "seed \(seed)")
        #expect(entries.count { $0["type"] == "emit" } == 3, "seed \(seed)")
    }

    /// The entries of one name come from two tasks, in another order on each run.
    @Test(arguments: 0..<24)
    func `publishes what it has to publish once`(commit: Int) throws {
        let entries = try run(seed: 1, crashes: [(commit, .durableUnacknowledged)]) { world in
            [
                agent { _, turn in
                    _ = try await turn.map("m", [0, 1]) { item, turn in
                        if item == 0 {
                            for number in 0..<5 {
                                await pause(world, .seconds(1))
                                try turn.emit("tick", number)
                            }
                        } else {
                            for number in 0..<3 {
                                try await turn.step("b") { _ in await pause(world, .milliseconds(1_300)) }
                                try turn.emit("tick", 100 + number)
                            }
                        }
                    }
                    return "done"
                }
            ]
        }
        let emits = entries.filter { $0["type"] == "emit" }.compactMap { $0["data"]?.integer }.sorted()
        #expect(entries.last?["output"] == "done")
        #expect(emits == [0, 1, 2, 3, 4, 100, 101, 102], "\(short(entries))")
    }

    /// Draws in two tasks: the first to draw comes to it late on a replay.
    private static func draw(
        _ turn: Turn, _ world: SimulatedWorld, _ use: @escaping @Sendable (Turn, _ isFirst: Bool) async throws -> JSON
    ) async throws -> JSON {
        .array(
            try await turn.map("m", [0, 1]) { item, turn -> JSON in
                if item == 1 {
                    try await turn.step("b") { _ in await pause(world, .seconds(3)) }
                } else {
                    _ = try await turn.step("a") { _ in 1 }
                    await pause(world, .seconds(1))
                }
                return try await use(turn, item == 0)
            })
    }

    @Test(arguments: 0..<16)
    func `draws the same random numbers in each of its tasks`(commit: Int) throws {
        let entries = try run(seed: 1, crashes: [(commit, .durableUnacknowledged)]) { world in
            [
                agent { _, turn in
                    try await Self.draw(turn, world) { turn, isFirst in
                        let drawn = turn.uuid()
                        // Nothing in the journal shows that it has drawn.
                        if isFirst { await pause(world, .seconds(5)) }
                        let recorded = try await turn.step("drawn") { _ in drawn }
                        try await turn.step("end") { _ in await pause(world, .seconds(5)) }
                        return recorded == drawn ? "same" : "different"
                    }
                }
            ]
        }
        #expect(entries.last?["output"] == ["same", "same"], "\(short(entries))")
    }

    /// The values that it draws are part of its requests: after a crash, and when the agent was passivated.
    @Test(arguments: ["uuid", "now"], [Duration.seconds(4), .seconds(600)])
    func `asks for the same by what it draws`(kind: String, life: Duration) throws {
        let entries = try twoProcesses(
            { turn, world in
                try await Self.draw(turn, world) { turn, _ in
                    try await turn.approval("pay", of: ["id": kind == "uuid" ? turn.uuid() : turn.now.description])
                    return "paid"
                }
            }, for: life,
            then: { node in
                node.world.run(deadline: node.world.now.advanced(by: .seconds(600)))
                for item in 0..<2 { node.send(.approve, ("approval", .string("\(Offset(1).token)/m/\(item)/pay"))) }
            })
        #expect(!entries.contains { $0["type"] == "agent.stalled" }, "\(short(entries))")
        #expect(entries.last?["output"] == ["paid", "paid"])
    }

    /// A turn of which one part comes back only after an hour, asked to do something when it was taken up again.
    private func resumed(
        _ entry: NewEntry, _ program: @escaping @Sendable (Turn, SimulatedWorld) async throws -> JSON
    ) throws -> (entries: [JSON], took: Duration) {
        try SimulatedNode.simulate {
            let log = SimulatedLog()
            let world = SimulatedWorld(seed: 3)
            let first = try SimulatedNode(world, log, agents: [agent { _, turn in try await program(turn, world) }])
            first.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(7_000)))
            let after = SimulatedWorld(seed: 4, now: world.now)
            let node = try SimulatedNode(after, log.reopen(), agents: [agent { _, turn in try await program(turn, after) }])
            after.run(deadline: after.now.advanced(by: .seconds(1)))
            let start = after.now
            node.send(entry, to: name)
            after.run(deadline: after.now.advanced(by: .seconds(20_000))) {
                (try? node.entries(name).last?["type"]?.string?.hasPrefix("turn.")) == true
            }
            return (try node.entries(name), start.duration(to: after.now))
        }
    }

    @Test(arguments: [false, true])
    func `has what was approved meanwhile decided, also before it asks for the approval again`(isLate: Bool) throws {
        let token = try firstOffset()
        let approve = NewEntry(.approve, nil, ("by", "ann"), ("approval", .string("\(token)/ok")))
        let (entries, _) = try resumed(approve) { turn, world in
            let (late, asking) = (try turn.scope("late"), turn)
            async let slow = {
                await pause(world, .seconds(3_600))
                return try await late.step("step") { _ in 1 }
            }()
            if isLate { await pause(world, .seconds(3_600)) }
            let by = try await asking.approval("ok", of: ["n": 1])
            return .string("\(by) \(try await slow)")
        }
        #expect(entries.last?["output"] == "ann 1", "\(entries.last?.text ?? "")")
        let receipts = entries.filter { $0["type"] == "receipt" }.map { $0["state"]?.string }
        #expect(receipts == ["applied", "applied"])
    }

    @Test func `ends soon when it is cancelled, though its replay waits`() throws {
        let (entries, took) = try resumed(NewEntry(.cancel, nil, ("by", "ann"))) { turn, world in
            _ = try await turn.step("before") { _ in 1 }
            try await rest(world, .seconds(3_600))
            _ = try await turn.step("after") { _ in 1 }
            return .string("\(try await turn.wait(for: "never"))")
        }
        #expect(entries.last?["type"] == "turn.cancelled", "\(entries.last?.text ?? "")")
        #expect(took < .seconds(60))
    }

    private func firstOffset() throws -> String {
        try SimulatedNode.simulate {
            let node = try SimulatedNode(SimulatedWorld(seed: 1), SimulatedLog(), agents: [agent { _, _ in .null }])
            node.send("x", to: name)
            node.world.settle()
            return try node.entries(name)[0]["offset"]!.string!
        }
    }
}

@Suite struct `A program that was changed under a turn` {
    private typealias Program = @Sendable (Turn, SimulatedWorld) async throws -> JSON

    /// Expects that the changed program stalls, and that nothing new ran.
    private func expectStall(
        crashAt commit: Int, from first: @escaping Program, to second: @escaping Program,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let entries = try change(crashAt: commit, from: first, to: second)
        let stalled = entries.last { $0["type"] == "agent.stalled" }
        #expect(stalled?["reason"] == "journal_mismatch", "\(entries.map(\.text))", sourceLocation: sourceLocation)
        #expect(!entries.contains { $0["step"]?.string?.hasSuffix("new") == true }, sourceLocation: sourceLocation)
        #expect(!entries.contains { $0["type"] == "turn.completed" }, sourceLocation: sourceLocation)
    }

    private static let old: Program = { turn, world in
        await pause(world, .milliseconds(5))
        _ = try await turn.step("old") { _ in 1 }
        _ = try await turn.step("next") { _ in 1 }
        return 1
    }

    @Test func `stalls where it asks for another step, also behind a wait`() throws {
        try expectStall(crashAt: 3, from: Self.old) { turn, world in
            await pause(world, .milliseconds(5))
            _ = try await turn.step("new") { _ in 1 }
            return 1
        }
    }

    @Test func `stalls where it ends too early`() throws {
        try expectStall(crashAt: 3, from: Self.old) { _, world in
            await pause(world, .milliseconds(5))
            return 1
        }
    }

    private static let mapped: Program = { turn, world in
        _ = try await turn.map("m", [1, 2]) { item, turn in
            await pause(world, .milliseconds(item))
            return try await turn.step("s") { _ in item }
        }
        _ = try await turn.step("next") { _ in 1 }
        return 1
    }

    @Test func `stalls where it does not open a scope that it had opened`() throws {
        try expectStall(crashAt: 4, from: Self.mapped) { turn, _ in
            _ = try await turn.step("new") { _ in 1 }
            return 1
        }
    }

    @Test func `stalls where a task ends without its step`() throws {
        try expectStall(crashAt: 4, from: Self.mapped) { turn, world in
            _ = try await turn.map("m", [1, 2]) { _, _ in await pause(world, .milliseconds(1)) }
            _ = try await turn.step("new") { _ in 1 }
            return 1
        }
    }

    @Test func `stalls where its tasks are fewer`() throws {
        try expectStall(crashAt: 6, from: Self.mapped) { turn, _ in
            _ = try await turn.map("m", [1]) { item, turn in try await turn.step("s") { _ in item } }
            _ = try await turn.step("new") { _ in 1 }
            return 1
        }
    }

    @Test func `runs nothing new where it uses a scope of another name, and can be cancelled`() throws {
        let entries = try change(crashAt: 2, cancelsAfter: .seconds(100)) { turn, world in
            let scope = try turn.scope("one")
            async let value: Int = {
                let value = try await scope.step("s") { _ in 1 }
                await pause(world, .milliseconds(5))
                return value
            }()
            return .integer(Int64(try await value))
        } to: { turn, _ in
            let scope = try turn.scope("other")
            async let value = scope.step("new") { _ in 1 }
            return .integer(Int64(try await value))
        }
        #expect(entries.last?["type"] == "turn.cancelled", "\(entries.map(\.text))")
        #expect(!entries.contains { $0["step"]?.string?.hasSuffix("new") == true })
    }
}
