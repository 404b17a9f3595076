import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Turns that wait` {
    @Test(arguments: 0..<60)
    func `a sleep that ends while its agent is leaving memory is not slept through`(seed: UInt64) throws {
        let (output, status) = try SimulatedNode.simulate {
            let process = try SimulationProcess(seed: seed, now: Timestamp(milliseconds: 0)) { _ in
                [
                    agent { _, turn in
                        // As long as an idle agent stays in memory, give or take what a commit takes.
                        try await turn.sleep(.milliseconds(1_990 + Int(seed)))
                        return "woken"
                    }
                ]
            }
            var message = Append(to: "agents/probe/a", [NewEntry(.message, nil, ("text", "x"))])
            message.creates = ChannelRow(name: "agents/probe/a", contentType: ContentType.json, isAgent: true, created: process.world.now)
            message.isInput = true
            process.channels.submit(message)
            try process.run(until: process.world.now.advanced(by: .seconds(100)), steps: 10_000)
            let channel = try #require(try process.channels.find("agents/probe/a"))
            var output: JSON?
            try process.channels.walk(channel, after: 0, upTo: channel.tail.head) { _, frame in
                if frame.kind == .turnCompleted { output = frame.body["output"] }
                return true
            }
            return (output, try process.channels.row(channel)?.agent?.status)
        }
        #expect(output == "woken")
        #expect(status == .idle)
    }
}

@Suite struct `Agents at rest` {
    @Test func `thousands that sleep take no memory, and each wakes once at its instant`() throws {
        #if DEBUG
            let count = 2_000
        #else
            let count = 10_000
        #endif
        let (asleep, timers, active, fired, late) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let agents = [
                agent { text, turn in
                    let due = turn.now.advanced(by: .seconds(86_400 + Int(text)! % 1_000))
                    try await turn.sleep(until: due)
                    return .integer(due.duration(to: turn.now).components.seconds)
                }
            ]
            let log = SimulatedLog()
            let node = try SimulatedNode(world, log, agents: agents)
            for number in 0..<count { node.send("\(number)", to: "agents/probe/a\(number)") }
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            let (asleep, timers) = (node.runtime.activeCount, try node.rows(.timers))
            world.run(deadline: world.now.advanced(by: .seconds(100_000)))
            var (fired, late) = (0, 0)
            for number in 0..<count {
                let channel = try #require(try node.channels.find("agents/probe/a\(number)"))
                try node.channels.walk(channel, after: 0, upTo: channel.tail.head) { _, frame in
                    if frame.kind == .timerFired { fired += 1 }
                    if frame.kind == .turnCompleted, frame.body["output"] != 0 { late += 1 }
                    return true
                }
            }
            return (asleep, timers, node.runtime.activeCount, fired, late)
        }
        #expect(asleep == 0 && timers == count, "asleep")
        #expect(active == 0 && fired == count && late == 0, "woken")
    }

    @Test func `whoever looks sees soon that a turn waits, and that it runs again`() throws {
        let states = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        _ = try await turn.wait(for: "go")
                        try await turn.step("work") { _ in await pause(world, .seconds(10)) }
                        return "done"
                    }
                ])
            func state() throws -> String? { try node.runtime.status(of: "agents/probe/a")?["state"]?.string }
            node.send("x", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .milliseconds(50)))
            var states = [try state()]
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            states.append(try state())
            node.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "go")), to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            states.append(try state())
            world.run(deadline: world.now.advanced(by: .seconds(20)))
            return states + [try state()]
        }
        #expect(states == ["running", "waiting", "running", "idle"])
    }

    @Test func `one that sleeps is not touched when the process starts`() throws {
        let (started, ended) = try SimulatedNode.simulate {
            let agents = [
                agent { _, turn in
                    try await turn.sleep(.seconds(86_400))
                    return "woken"
                }
            ]
            let world = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            try SimulatedNode(world, log, agents: agents).send("x", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            let after = SimulatedWorld(seed: 2, now: world.now)
            let node = try SimulatedNode(after, log.reopen(), agents: agents)
            after.run(deadline: after.now.advanced(by: .seconds(60)))
            let started = (node.runtime.activeCount, try node.entries("agents/probe/a").count)
            after.run(deadline: after.now.advanced(by: .seconds(100_000)))
            return (started, try node.entries("agents/probe/a").compactMap { $0["type"]?.string })
        }
        #expect(started == (0, 5))
        #expect(
            ended == ["message", "receipt", "turn.started", "step.started", "timer.set", "timer.fired", "step.completed", "turn.completed"])
    }
}

@Suite struct `Fencing` {
    @Test(arguments: 0..<20 as Range<UInt64>)
    func `of two runtimes that own one agent only the younger one appends`(seed: UInt64) throws {
        let entries = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: seed)
            let ran = Counter()
            let agents = [
                agent { _, turn in
                    for index in 0..<6 {
                        _ = try await turn.step("s\(index)") { _ in
                            ran.add("\(index)")
                            await pause(world, .milliseconds(Int(world.random() % 10)))
                            return 1
                        }
                    }
                    return "done"
                }
            ]
            let node = try SimulatedNode(world, SimulatedLog(), agents: agents)
            node.send("x", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .milliseconds(10 + Int(seed))))
            // As if this process had not noticed that another one has taken over.
            let second = AgentRuntime(channels: node.channels, world: world, agents: agents)
            try second.start()
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            return try node.entries("agents/probe/a")
        }
        #expect(entries.last?["type"] == "turn.completed")
        #expect(entries.filter { $0["type"] == "turn.completed" }.count == 1)
        let completed = entries.filter { $0["type"] == "step.completed" }.compactMap { $0["step"]?.string }
        #expect(completed == (0..<6).map { "s\($0)" })
    }
}
