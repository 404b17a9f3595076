import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

private func node(_ world: SimulatedWorld, _ log: SimulatedLog = SimulatedLog(), _ program: @escaping TurnProgram) throws -> SimulatedNode {
    try SimulatedNode(world, log, agents: [agent { _, turn in try await program(turn, world) }])
}

private func hang() async { await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in } }

/// A cancel of a turn that may not run again: its compensations run, or are named.
@Suite struct `Compensations of turns that have stopped` {
    @Test func `in the pause after a crash the program takes back what it did`() throws {
        let (entries, undone) = try SimulatedNode.simulate {
            let undone = Counter()
            let program: TurnProgram = { turn, _ in
                try turn.compensate("undo") { _ in undone.add("undo") }
                try await turn.step("reserve") { _ in }
                try await turn.step("hangs") { _ in await hang() }
                return "done"
            }
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            for life in 0..<3 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try node(world, life == 0 ? log : log.reopen(), program)
                if life == 0 { node.send("x", to: name) }
                // The third process is in the pause of a second after the second crash.
                world.go(life == 2 ? .milliseconds(100) : .seconds(20))
                if life == 2 {
                    node.send(.cancel)
                    world.go()
                }
                (log, now) = (node.log, world.now)
                if life == 2 { return (try node.entries(name), undone["undo"]) }
            }
            return ([], 0)
        }
        #expect(entries.last?["type"] == "turn.cancelled", "\(short(entries))")
        #expect(undone == 1 || entries.last?["compensations_skipped"] == ["undo"], "\(entries.last!)")
    }

    @Test func `a parked turn names what is left to take back`() throws {
        let entries = try SimulatedNode.simulate {
            let program: TurnProgram = { turn, _ in
                try turn.compensate("undo") { _ in }
                try await turn.step("reserve") { _ in }
                try await turn.step("hangs") { _ in await hang() }
                return "done"
            }
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            for life in 0..<5 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try node(world, life == 0 ? log : log.reopen(), program)
                if life == 0 { node.send("x", to: name) }
                world.go(.seconds(20))
                if life == 4 {
                    node.send(.cancel)
                    world.go()
                    return try node.entries(name)
                }
                (log, now) = (node.log, world.now)
            }
            return []
        }
        #expect(entries.contains { $0["type"] == "agent.parked" })
        #expect(entries.last?["compensations_skipped"] == ["undo"], "\(short(entries)) \(entries.last!)")
    }

    @Test func `so does one that stalls before it registers anything`() throws {
        let entries = try twoProcesses(
            { turn, _ in
                try turn.compensate("undo") { _ in }
                try await turn.step("reserve") { _ in }
                return try await turn.wait(for: "never")
            }, for: .seconds(1),
            { turn, _ in
                try await turn.step("new") { _ in }
                return "x"
            },
            then: { node in
                node.send(.signal, ("name", "other"))
                node.world.run(deadline: node.world.now.advanced(by: .seconds(5)))
                node.send(.cancel)
            })
        #expect(entries.contains { $0["type"] == "agent.stalled" })
        #expect(entries.last?["compensations_skipped"] == ["undo"], "\(short(entries)) \(entries.last!)")
    }

    @Test func `and one that stalls while it takes back`() throws {
        let entries = try twoProcesses(
            { turn, _ in
                try turn.compensate("a") { _ in }
                try turn.compensate("b") { _ in await hang() }
                throw StepFailure(code: "no", message: "", retryable: false)
            }, for: .seconds(1),
            { turn, _ in
                try turn.compensate("a") { _ in }
                try turn.compensate("c") { _ in }
                throw StepFailure(code: "no", message: "", retryable: false)
            },
            then: { node in
                node.world.run(deadline: node.world.now.advanced(by: .seconds(10)))
                node.send(.cancel)
            })
        #expect(entries.contains { $0["type"] == "agent.stalled" }, "\(short(entries))")
        #expect((entries.last?["compensations_skipped"]?.array?.count ?? 0) == 2, "\(short(entries)) \(entries.last!)")
    }
}
