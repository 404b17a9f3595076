import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

/// Runs one message to its end, for ten hours at most.
private func turn(_ program: @escaping TurnProgram, then act: @escaping @Sendable (SimulatedNode) -> Void = { _ in }) throws -> [JSON] {
    try SimulatedNode.simulate {
        let world = SimulatedWorld(seed: 1)
        let node = try SimulatedNode(world, SimulatedLog(), agents: [agent { _, turn in try await program(turn, world) }])
        node.send("x", to: name)
        act(node)
        world.run(deadline: world.now.advanced(by: .seconds(36_000)))
        return try node.entries(name)
    }
}

@Suite struct `A timeout of the program's own around a wait` {
    /// The wait against so many seconds outside the turn, in the ordinary form; the first of both counts.
    private static func wait(_ turn: Turn, _ world: SimulatedWorld, _ seconds: Int, isCancellable: Bool) async throws -> JSON {
        let waiting = try turn.scope("waiting")
        return try await withThrowingTaskGroup(of: JSON.self) { group in
            group.addTask { try await waiting.wait(for: "never") }
            group.addTask {
                if isCancellable { try await rest(world, .seconds(seconds)) } else { await pause(world, .seconds(seconds)) }
                return "timed out"
            }
            defer { group.cancelAll() }
            return try await group.next()!
        }
    }

    /// Sooner than an agent that waits is passivated, and later.
    @Test(arguments: [false, true], [5, 60])
    func `comes`(isCancellable: Bool, seconds: Int) throws {
        let entries = try turn { turn, world in try await Self.wait(turn, world, seconds, isCancellable: isCancellable) }
        #expect(entries.last?["output"] == "timed out", "\(short(entries))")
    }

    @Test(arguments: [false, true])
    func `comes in a child of map, and the child continues`(isCancellable: Bool) throws {
        let entries = try turn { turn, world in
            try await turn.map("m", [0]) { _, turn -> JSON in
                let result = try await Self.wait(turn, world, 60, isCancellable: isCancellable)
                _ = try await turn.step("after") { _ in 1 }
                return result
            }[0]
        }
        #expect(entries.last?["output"] == "timed out", "\(short(entries))")
    }
}

@Suite struct `A task group of the program's own` {
    /// Cancelled by a child whose step fails, while another one waits outside the turn before its first step.
    private static func cancel(_ turn: Turn, _ world: SimulatedWorld, isCancellable: Bool) async throws {
        let (waiting, failing) = (try turn.scope("waiting"), try turn.scope("failing"))
        do {
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    if isCancellable { try await rest(world, .seconds(1)) } else { await pause(world, .seconds(1)) }
                    try await waiting.step("work") { _ in await pause(world, .seconds(100)) }
                }
                group.addTask {
                    try await failing.step("try") { _ in await pause(world, .seconds(3)) }
                    throw StepFailure(code: "no", message: "no", retryable: false)
                }
                while try await group.next() != nil {}
            }
        } catch let failure as StepFailure where failure.code == "no" {}
    }

    @Test(arguments: [false, true])
    func `that was cancelled while a child waited outside is cancelled there on the replay`(isCancellable: Bool) throws {
        let entries = try twoProcesses(
            { turn, world in
                try await Self.cancel(turn, world, isCancellable: isCancellable)
                try await turn.step("after") { _ in await pause(world, .seconds(10)) }
                return "done"
            }, for: .seconds(4))
        #expect(!entries.contains { $0["type"] == "agent.stalled" }, "\(short(entries))")
        #expect(entries.last?["output"] == "done", "\(short(entries))")
    }

    @Test func `that was cancelled while a child waited outside is no obstacle when the agent was passivated`() throws {
        let entries = try turn { turn, world in
            try await Self.cancel(turn, world, isCancellable: true)
            return try await turn.wait(for: "go")
        } then: { node in
            node.world.run(deadline: node.world.now.advanced(by: .seconds(600)))
            #expect(node.runtime.activeCount == 0)
            node.send(.signal, ("name", "go"), ("data", 7))
        }
        #expect(entries.last?["output"] == 7, "\(short(entries))")
    }

    @Test(arguments: 0..<20, [SimulatedLog.Outcome.lost, .durableUnacknowledged])
    func `has the first of several kinds of steps win, and continues`(commit: Int, outcome: SimulatedLog.Outcome) throws {
        let entries = try run(seed: 6, crashes: [(commit, outcome)]) { world in
            [
                agent { _, turn in
                    let model = PlayedModel(world, [.text("a"), .text("b"), .text("c"), .text("d"), .finished(reason: "stop")])
                    let scopes = try (0..<4).map { try turn.scope("s\($0)") }
                    let winner = try await withThrowingTaskGroup(of: String.self) { group in
                        group.addTask { try await scopes[0].generate("say", model, .user("x")).text }
                        group.addTask {
                            try await scopes[1].step("long") { _ in
                                await pause(world, .seconds(1))
                                return "long"
                            }
                        }
                        group.addTask { try await scopes[2].approval("ok", of: ["n": 1]) }
                        group.addTask {
                            try await scopes[3].sleep(.seconds(1_000))
                            return "slept"
                        }
                        defer { group.cancelAll() }
                        return try await group.next()!
                    }
                    // Never awaited: it is cancelled where the program ends.
                    async let lost: Void = turn.scope("lost").step("never awaited") { _ in await pause(world, .seconds(1)) }
                    if winner == "nobody" { _ = try await lost }
                    return .string(try await turn.step("again") { _ in winner })
                }
            ]
        }
        #expect(entries.last?["output"] == "abcd", "\(short(entries))")
    }
}

@Suite struct `A wait of a task` {
    /// A wait against so many seconds outside the turn, each in a task of the program's own.
    private static func race(_ waiting: Turn, _ world: SimulatedWorld, _ seconds: Int, isCancellable: Bool = true) async throws -> JSON {
        try await withThrowingTaskGroup(of: JSON.self) { group in
            group.addTask { try await waiting.wait(for: "never") }
            group.addTask {
                if isCancellable { try await rest(world, .seconds(seconds)) } else { await pause(world, .seconds(seconds)) }
                return "timed out"
            }
            defer { group.cancelAll() }
            return try await group.next()!
        }
    }

    @Test(arguments: [5, 60], ["map", "shielded"])
    func `a timeout of the program's own comes in a child's own scope`(seconds: Int, kind: String) throws {
        let entries = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        if kind == "map" { return try await turn.map("m", [0]) { _, turn in try await Self.race(turn, world, seconds) }[0] }
                        return try await turn.shielded { turn in try await Self.race(turn, world, seconds) }
                    }
                ])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(36_000)))
            return try node.entries(name)
        }
        #expect(entries.last?["output"] == "timed out", "\(short(entries))")
    }

    @Test func `a wait in a scope that the program's first task uses itself needs no memory`() throws {
        let count = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(), agents: [agent { _, turn in try await turn.scope("phase").wait(for: "never") }])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return node.runtime.activeCount
        }
        #expect(count == 0)
    }
}
