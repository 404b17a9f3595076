import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Agents in memory` {
    /// Sends a message to each of so many new agents at once, and lets them work.
    private static func flood(
        _ count: Int, activeMax: Int, waitingMax: Int = AgentRuntime.waitingMax,
        _ program: @escaping @Sendable (SimulatedWorld, Turn) async throws -> JSON
    ) throws -> (outputs: [JSON?], most: Int, waited: Int) {
        try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 3)
            let node = try SimulatedNode(
                world, SimulatedLog(), agents: [agent { _, turn in try await program(world, turn) }], activeMax: activeMax,
                waitingMax: waitingMax)
            let names = (0..<count).map { "agents/probe/a\($0)" }
            for name in names { node.send("x", to: name) }
            var (most, waited) = (0, 0)
            world.run(deadline: world.now.advanced(by: .seconds(3_600))) {
                (most, waited) = (max(most, node.runtime.activeCount), max(waited, node.runtime.waitingCount))
                return false
            }
            return (try names.map { try node.entries($0).last?["output"] }, most, waited)
        }
    }

    private static func step(_ world: SimulatedWorld, _ turn: Turn) async throws -> JSON {
        try await turn.step("work") { _ in
            await pause(world, .milliseconds(50))
            return "done"
        }
    }

    @Test func `are never more than there may be, and the others have their turn`() throws {
        let (outputs, most, waited) = try Self.flood(40, activeMax: 3, Self.step)
        #expect(outputs.allSatisfy { $0 == "done" })
        #expect(most == 3)
        #expect(waited > 30)
    }

    @Test func `that only wait make room for those with something to do`() throws {
        let (outputs, most, _) = try Self.flood(20, activeMax: 2) { _, turn in
            try await turn.sleep(.seconds(600))
            return "slept"
        }
        #expect(outputs.allSatisfy { $0 == "slept" })
        #expect(most <= 2)
    }

    @Test func `are found in the log when more wait than are remembered`() throws {
        let (outputs, _, waited) = try Self.flood(40, activeMax: 2, waitingMax: 5, Self.step)
        #expect(outputs.allSatisfy { $0 == "done" })
        #expect(waited <= 5)
    }

    @Test func `that wait for timers while more wait than are remembered sleep no longer for it`() throws {
        let (outputs, _, waited) = try Self.flood(40, activeMax: 1, waitingMax: 3) { _, turn in
            try await turn.sleep(.seconds(60))
            return "slept"
        }
        #expect(outputs.allSatisfy { $0 == "slept" })
        #expect(waited <= 3)
    }

    /// A place in the queue is the name's: what was meant for an agent that has been deleted must not count for the next one.
    @Test func `take the whole inbox of whoever has the name when there is room`() throws {
        let output = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 3)
            let node = try SimulatedNode(
                world, SimulatedLog(), agents: [agent { _, turn in try await Self.step(world, turn) }], activeMax: 1)
            node.send("x", to: "agents/probe/first")
            for _ in 0..<9 { node.send("x", to: "agents/probe/second") }
            world.run(deadline: world.now.advanced(by: .milliseconds(20)))
            let isWaiting = node.runtime.waitingCount == 1
            node.delete("agents/probe/second")
            node.create("agents/probe/second")
            world.run(deadline: world.now.advanced(by: .milliseconds(1)))
            node.send("x", to: "agents/probe/second")
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return isWaiting ? try node.entries("agents/probe/second").last?["output"] : nil
        }
        #expect(output == "done")
    }
}
