import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

/// Sends one entry `delay` after the agent last did something, and tells what is left undecided when everything has come to rest.
private func leftUndecided(seed: UInt64, _ program: AnyAgent, first: [NewEntry], last: NewEntry) throws -> Int {
    try SimulatedNode.simulate {
        let process = try SimulationProcess(seed: seed, now: Timestamp(milliseconds: 0)) { _ in [program] }
        func send(_ entry: NewEntry) {
            var append = Append(to: "agents/probe/a", [entry])
            append.creates = ChannelRow(name: "agents/probe/a", contentType: ContentType.json, isAgent: true, created: process.world.now)
            append.isInput = true
            process.channels.submit(append)
        }
        for entry in first { send(entry) }
        // The second look finds that the agent has been idle long enough, give or take what commits take.
        try process.run(until: process.world.now.advanced(by: .milliseconds(3_985 + Int(seed % 60))), steps: 10_000)
        var random = SplitMix64(seed: seed)
        for _ in 0..<random.next() % 12 { process.world.doOne() }
        send(last)
        try process.run(until: process.world.now.advanced(by: .seconds(100)), steps: 10_000)
        let channel = try #require(try process.channels.find("agents/probe/a"))
        var count = 0
        try process.channels.log.scan(.inbox, from: channel.id.key, to: channel.id.keyEnd, reversed: false) { _, _ in
            count += 1
            return true
        }
        return count
    }
}

@Suite struct `An agent that is passivated` {
    private static let message = NewEntry(.message, nil, ("by", "ann"), ("text", "x"))

    @Test(arguments: 0..<400 as Range<UInt64>)
    func `answers a message that comes at that moment`(seed: UInt64) throws {
        let program = agent { text, _ in .string(text) }
        #expect(try leftUndecided(seed: seed, program, first: [Self.message], last: Self.message) == 0)
    }

    @Test(arguments: 0..<400 as Range<UInt64>)
    func `takes an approval that comes while its turn is marked as waiting`(seed: UInt64) throws {
        let program = agent { _, turn in .string(try await turn.approval("pay", of: ["amount": 1])) }
        let approve = NewEntry(.approve, nil, ("by", "ann"), ("approval", .string("\(Offset(1))/pay")))
        #expect(try leftUndecided(seed: seed, program, first: [Self.message], last: approve) == 0)
    }

    @Test(arguments: 0..<400 as Range<UInt64>)
    func `takes a signal that comes while its turn is marked as waiting`(seed: UInt64) throws {
        let program = agent { _, turn in try await turn.wait(for: "go") }
        let signal = NewEntry(.signal, nil, ("by", "ann"), ("name", "go"))
        #expect(try leftUndecided(seed: seed, program, first: [Self.message], last: signal) == 0)
    }

    @Test(arguments: 0..<400 as Range<UInt64>)
    func `is interrupted before a sleep ends that an interrupt stands before`(seed: UInt64) throws {
        let types = try SimulatedNode.simulate {
            let process = try SimulationProcess(seed: seed, now: Timestamp(milliseconds: 0)) { _ in
                [
                    agent { _, turn in
                        try await turn.sleep(.milliseconds(50))
                        return "slept"
                    }
                ]
            }
            func send(_ entry: NewEntry) {
                var append = Append(to: "agents/probe/a", [entry])
                append.creates = ChannelRow(
                    name: "agents/probe/a", contentType: ContentType.json, isAgent: true, created: process.world.now)
                append.isInput = true
                process.channels.submit(append)
            }
            send(Self.message)
            try process.run(until: process.world.now.advanced(by: .milliseconds(45 + Int(seed % 32))), steps: 10_000)
            send(NewEntry(.interrupt, nil, ("by", "ann")))
            try process.run(until: process.world.now.advanced(by: .seconds(60)), steps: 10_000)
            let channel = try #require(try process.channels.find("agents/probe/a"))
            var types: [String] = []
            try process.channels.walk(channel, after: 0, upTo: channel.tail.head) { _, frame in
                types.append(frame.kind.name)
                return true
            }
            return types
        }
        let interrupt = types.firstIndex(of: "interrupt")!
        if let slept = types.firstIndex(of: "step.completed") { #expect(slept < interrupt) }
    }

    @Test(arguments: 0..<100 as Range<UInt64>)
    func `is taken up after a crash when its turn continued because an approval expired over a late answer`(seed: UInt64) throws {
        let last = try SimulatedNode.simulate {
            var schedule = SimulatedSchedule()
            schedule.firesTogether = true
            let (world, log) = (SimulatedWorld(seed: seed, schedule: schedule), SimulatedLog())
            let node = try SimulatedNode(world, log, agents: [Self.patient(world)])
            node.send(Self.message, to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .milliseconds(900)))
            // At the very instant at which it expires, while the turn is marked as waiting.
            world.schedule(at: world.now.advanced(by: .milliseconds(100))) {
                let approval = ("approval", JSON.string("\(Offset(1))/pay")) as (String, JSON?)
                node.send(NewEntry(.approve, nil, ("by", "ann"), approval), to: "agents/probe/a")
            }
            world.run(deadline: world.now.advanced(by: .seconds(2)))
            let later = SimulatedWorld(seed: seed, now: world.now)
            let second = try SimulatedNode(later, log.reopen(), agents: [Self.patient(later)])
            later.run(deadline: later.now.advanced(by: .seconds(60)))
            return try second.entries("agents/probe/a").last
        }
        #expect(last?["type"] == "turn.completed")
    }

    /// Asks for approval for a second, and works for five whatever the answer.
    private static func patient(_ world: SimulatedWorld) -> AnyAgent {
        agent { _, turn in
            _ = try? await turn.approval("pay", of: [1], expires: .seconds(1))
            try await turn.step("work") { _ in await pause(world, .seconds(5)) }
            return "done"
        }
    }
}
