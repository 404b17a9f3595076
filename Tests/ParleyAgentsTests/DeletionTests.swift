import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private let name = "agents/probe/a"

extension SimulatedNode {
    func delete(_ channel: String) { channels.submit(DeleteChannel(channel)) }

    func create(_ channel: String) {
        channels.submit(CreateChannel(ChannelRow(name: channel, contentType: ContentType.json, isAgent: true, created: world.now)))
    }
}

@Suite struct `Agents that are deleted` {
    @Test func `the timer of a deleted agent is removed when it is due, and does not wake its successor`() throws {
        let (slept, rows) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        let before = turn.now
                        try await turn.sleep(.seconds(text == "first" ? 100 : 1_000))
                        return .integer(before.duration(to: turn.now).components.seconds)
                    }
                ])
            node.send("first", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            node.delete(name)
            node.create(name)
            world.settle()
            node.send("second", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10_000)))
            return (try node.entries(name).last?["output"]?.integer, try node.rows(.timers))
        }
        #expect(slept == 1_000)
        #expect(rows == 0)
    }

    @Test(arguments: 0..<5, 0..<20)
    func `a timer that rings in the instant in which its agent is deleted leaves no row behind`(seed: UInt64, moment: Int) throws {
        let rows = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: seed)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        try await turn.sleep(.seconds(100))
                        return .null
                    }
                ])
            node.send("sleep", to: name)
            world.settle()
            // By then it was passivated: it comes back when the timer fires, and is deleted at any moment of that.
            let due = try #require(try node.entries(name).compactMap { $0["due"]?.string.flatMap { Timestamp($0) } }.first)
            world.run(deadline: due.advanced(by: .milliseconds(-1)))
            var steps = 0
            world.run(deadline: due) {
                steps += 1
                return steps > moment
            }
            node.delete(name)
            world.run(deadline: due.advanced(by: .seconds(100)))
            return try node.rows(.timers)
        }
        #expect(rows == 0)
    }

    @Test(arguments: 0..<20) func `a message to a recreated agent reaches it while its predecessor leaves`(seed: UInt64) throws {
        let output = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: seed)
            let node = try SimulatedNode(
                world, SimulatedLog(), agents: [agent { text, turn in .string(try await turn.step("s") { _ in text }) }])
            node.send("first", to: name)
            world.settle()
            node.delete(name)
            node.create(name)
            node.send("second", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            return try node.entries(name).last?["output"]?.string
        }
        #expect(output == "second")
    }

    @Test func `what the body of a deleted agent's step gives does not get into its successor's channel`() throws {
        let results = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        .string(
                            try await turn.step("s") { _ in
                                await pause(world, .seconds(text == "first" ? 10 : 20))
                                return text
                            })
                    }
                ])
            node.send("first", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            node.delete(name)
            node.create(name)
            world.settle()
            node.send("second", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            return try node.entries(name).filter { $0["type"] == "step.completed" }.map { $0["result"]?.string }
        }
        #expect(results == ["second"])
    }
}
