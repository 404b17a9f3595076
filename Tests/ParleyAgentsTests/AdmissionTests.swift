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

    /// A place in the queue is the name's: a call for an agent that has been deleted must not count for the next one.
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

    @Test func `agents that keep signals do not hide those with something to do`() throws {
        let open = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            let before = try SimulatedNode(first, log, agents: [])
            for number in 0..<10 {
                before.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "go")), to: "agents/probe/s\(number)")
                before.send("x", to: "agents/probe/m\(number)")
            }
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(world, log.reopen(), agents: [agent { _, _ in "done" }], activeMax: 2, waitingMax: 3)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return try (0..<10).filter { try node.entries("agents/probe/m\($0)").last?["output"] != "done" }
        }
        #expect(open.isEmpty)
    }

    /// Agents with messages behind a turn that waits can decide nothing, and stalled ones take no timer: both are looked at again and again, and the
    /// log names more of them than are remembered.
    @Test func `agents that can do nothing do not keep timers from others`() throws {
        let (open, steps) = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            let before = try SimulatedNode(
                first, log,
                agents: [
                    agent { text, turn in
                        if text == "wait" { _ = try await turn.wait(for: "go") }
                        try await turn.sleep(.seconds(60), name: "before")
                        return "slept"
                    }
                ])
            for number in 0..<6 {
                for text in ["wait", "behind"] {
                    before.send(.init(.message, nil, ("by", "ann"), ("text", .string(text))), to: "agents/probe/a\(number)")
                }
                for name in ["b", "c"] { before.send(name == "b" ? "stall" : "sleep", to: "agents/probe/\(name)\(number)") }
            }
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(
                world, log.reopen(),
                agents: [
                    agent { text, turn in
                        if text == "wait" { _ = try await turn.wait(for: "go") }
                        try await turn.sleep(.seconds(60), name: text == "stall" ? "after" : "before")
                        return "slept"
                    }
                ], activeMax: 1, waitingMax: 2)
            var steps = 0
            world.run(deadline: world.now.advanced(by: .seconds(3_600))) {
                steps += 1
                return steps == 100_000
            }
            return (try (0..<6).filter { try node.entries("agents/probe/c\($0)").last?["output"] != "slept" }, steps)
        }
        #expect(open.isEmpty && steps < 100_000, "\(open) \(steps)")
    }

    /// As a process ended with more undecided inputs than are remembered, and the first that are taken up wait in memory, for something outside.
    @Test func `those that are remembered do not pass by those of whom only the log knows`() throws {
        let ended = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 3)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        try await turn.step("work") { _ in await pause(world, .milliseconds(50)) }
                        return "done"
                    }
                ], activeMax: 1, waitingMax: 2)
            // Some of these always wait, without a pause in which the log would be asked.
            let busy = ["agents/probe/a", "agents/probe/b", "agents/probe/c"]
            for round in 0..<200 {
                world.schedule(at: world.now.advanced(by: .milliseconds(100 * round))) {
                    for name in busy { node.send("x", to: name) }
                    if round == 1 { node.send("x", to: "agents/probe/d") }
                }
            }
            let begin = world.now
            var ended: Duration?
            world.run(deadline: world.now.advanced(by: .seconds(20))) {
                ended = begin.duration(to: world.now)
                return (try? node.entries("agents/probe/d").contains { $0["type"] == "turn.completed" }) == true
            }
            return ended
        }
        #expect(ended ?? .seconds(20) < .seconds(5))
    }

    @Test func `agents that stay in memory do not keep those that the log has to be asked for from theirs`() throws {
        let open = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            let before = try SimulatedNode(first, log, agents: [])
            for number in 0..<10 { before.send("x", to: "agents/probe/a\(number)") }
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(
                world, log.reopen(),
                agents: [
                    agent { _, turn in
                        await pause(world, .seconds(86_400))
                        return "done"
                    }
                ], waitingMax: 2)
            world.run(deadline: world.now.advanced(by: .seconds(600)))
            return try (0..<10).filter { number in
                try !node.entries("agents/probe/a\(number)").contains { $0["type"] == "turn.started" }
            }
        }
        #expect(open.isEmpty)
    }

    /// An agent that cannot be passivated may wait for its timer while those of others find no room.
    @Test func `timers that find no room do not hold up those of agents in memory`() throws {
        let (fired, waited) = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            let before = try SimulatedNode(
                first, log,
                agents: [
                    agent { _, turn in
                        try await turn.sleep(.seconds(60))
                        return "slept"
                    }
                ])
            for number in 0..<8 { before.send("sleep", to: "agents/probe/a\(number)") }
            first.run(deadline: first.now.advanced(by: .seconds(40)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(
                world, log.reopen(),
                agents: [
                    agent { text, turn in
                        guard text == "both" else {
                            try await turn.sleep(.seconds(60))
                            return "slept"
                        }
                        _ = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                            if item == 0 { try await turn.sleep(.seconds(60)) }
                            return try await turn.step("s") { _ in
                                await pause(world, .seconds(600))
                                return "done"
                            }
                        }
                        return "both"
                    }
                ], activeMax: 1, waitingMax: 2)
            node.send("both", to: "agents/probe/busy")
            world.run(deadline: world.now.advanced(by: .seconds(300)))
            return (try node.entries("agents/probe/busy").count { $0["type"] == "timer.fired" }, node.runtime.waitingCount)
        }
        #expect(waited == 2 && fired == 1, "\(waited) \(fired)")
    }

    @Test(arguments: 0..<60 as Range<UInt64>)
    func `names that are deleted and recreated while they wait for room are admitted`(seed: UInt64) throws {
        let (open, waiting, timers) = try SimulatedNode.simulate {
            var random = SplitMix64(seed: seed)
            let world = SimulatedWorld(seed: seed)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        try await turn.sleep(.milliseconds(700))
                        _ = try await turn.step("work") { _ in await pause(world, .milliseconds(50)) }
                        return "done"
                    }
                ], activeMax: Int.random(in: 1...2, using: &random), waitingMax: Int.random(in: 1...4, using: &random))
            let names = (0..<6).map { "agents/probe/a\($0)" }
            for _ in 0..<60 {
                let name = names.randomElement(using: &random)!
                switch Int.random(in: 0..<4, using: &random) {
                case 0:
                    node.delete(name)
                    node.create(name)
                default: node.send("x", to: name)
                }
                for _ in 0..<Int.random(in: 0..<30, using: &random) { world.doOne() }
                if Bool.random(using: &random) {
                    world.run(deadline: world.now.advanced(by: .milliseconds(Int.random(in: 1..<400, using: &random))))
                }
            }
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            var open: [String] = []
            for name in names {
                let entries = try node.entries(name)
                let messages = entries.count { $0["type"] == "message" }
                let done = entries.count { $0["type"] == "turn.completed" }
                if messages != done { open.append("\(name) \(done)/\(messages) \(try node.runtime.status(of: name)?.text ?? "")") }
            }
            return (open, node.runtime.waitingCount, try node.rows(.timers))
        }
        #expect(open.isEmpty && waiting == 0 && timers == 0, "\(open) \(waiting) \(timers)")
    }

    /// Little room, and little memory of waiting agents, for agents that wait for all kinds of things.
    @Test(arguments: 0..<(isLong ? 100 : 10) as Range<UInt64>)
    func `are admitted in the end, whatever they wait for`(seed: UInt64) throws {
        let open = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: seed)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        let number = Int(text)!
                        switch number % 4 {
                        case 0: try await turn.sleep(.milliseconds(number * 37))
                        case 1: _ = try await turn.wait(for: "go")
                        case 2:
                            var feed = try await turn.follow("streams/f")
                            while let entry = try await feed.next(), entry.value != 3 {}
                        default: _ = try await turn.step("s") { _ in await pause(world, .milliseconds(number)) }
                        }
                        return .string(text)
                    }
                ], activeMax: 2, waitingMax: 2)
            node.publish(1, to: "streams/f")
            for number in 0..<24 { node.send("\(number)", to: "agents/probe/\(number)") }
            for round in 2...3 {
                world.run(deadline: world.now.advanced(by: .milliseconds(Int(seed) * 13 + 100)))
                node.publish(round, to: "streams/f")
            }
            for number in stride(from: 1, to: 24, by: 4) { node.send(.signal, to: "agents/probe/\(number)", ("name", "go")) }
            world.run(deadline: world.now.advanced(by: .seconds(36_000)))
            return try (0..<24).filter { try node.entries("agents/probe/\($0)").last?["type"] != "turn.completed" }
        }
        #expect(open.isEmpty)
    }
}
