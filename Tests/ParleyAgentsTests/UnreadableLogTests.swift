import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"

@Suite struct `A log that cannot be read for a moment` {
    @Test(arguments: 1..<6)
    func `a wake whose agent's name cannot be read at that moment is not lost`(number: Int) throws {
        let output = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            let before = try SimulatedNode(first, log, agents: [])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let fault = ReadFault(at: number, isArmed: true) { $0 == .names || $0 == .channels }
            let node = try SimulatedNode(
                world,
                log.reopen(readError: fault.readError), agents: [agent { _, _ in "done" }])
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return try node.entries(name).last?["output"]
        }
        #expect(output == "done")
    }

    /// A timer whose agent's name cannot be read at that moment.
    @Test(arguments: 0..<4)
    func `a timer whose agent cannot be found at that moment is not lost`(number: Int) throws {
        let output = try SimulatedNode.simulate {
            let program = agent { _, turn in
                try await turn.sleep(.seconds(600))
                return "done"
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(100)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let fault = ReadFault(at: number, isArmed: true) { $0 == .names || $0 == .channels }
            let node = try SimulatedNode(
                world,
                before.log.reopen(readError: fault.readError), agents: [program])
            world.run(deadline: world.now.advanced(by: .seconds(100_000)))
            fault.disarm()
            return try node.entries(name).last?["output"]
        }
        #expect(output == "done")
    }

    @Test(arguments: 0..<60)
    func `a read that fails once costs no input`(number: Int) throws {
        let (output, entries) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 2)
            let fault = ReadFault(at: number) { $0 != .names }
            let log = SimulatedLog(readError: fault.readError)
            let node = try SimulatedNode(
                world, log,
                agents: [
                    agent { _, turn in
                        _ = try await turn.step("a") { _ in await pause(world, .milliseconds(10)) }
                        try await turn.sleep(.milliseconds(10))
                        _ = try await turn.step("b") { _ in await pause(world, .milliseconds(10)) }
                        return "done"
                    }
                ])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .milliseconds(5)))
            fault.arm()
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            fault.disarm()
            return (try node.entries(name).last?["output"], try node.entries(name))
        }
        #expect(output == "done", "\(short(entries).suffix(6))")
    }

    /// How a turn ends that a second process takes up, when read number `number` of the families that are meant fails there once.
    private static func takeUp(
        failing number: Int, as code: LogError.Code = .damaged, _ isMeant: @escaping @Sendable (Family) -> Bool = { _ in true }
    ) throws -> (output: JSON?, entries: [JSON]) {
        try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    _ = try await turn.step("a") { _ in await pause(world, .milliseconds(100)) }
                    try await turn.sleep(.milliseconds(10))
                    return "done"
                }
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program(first)])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(50)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let fault = ReadFault(at: number, as: code) { isMeant($0) }
            let node = try SimulatedNode(
                world,
                before.log.reopen(readError: fault.readError), agents: [program(world)])
            fault.arm()
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            fault.disarm()
            return (try node.entries(name).last?["output"], try node.entries(name))
        }
    }

    @Test(arguments: 0..<12)
    func `a read of the writer's that fails once costs no turn`(number: Int) throws {
        let (output, entries) = try Self.takeUp(failing: number)
        #expect(output == "done", "\(short(entries).suffix(6))")
    }

    @Test(arguments: 0..<8, [LogError.Code.damaged, .inaccessible])
    func `a look of the writer's at the inbox that fails once costs no turn`(number: Int, code: LogError.Code) throws {
        let (output, entries) = try Self.takeUp(failing: number, as: code) { $0 == .inbox }
        #expect(output == "done", "\(short(entries).suffix(6))")
    }

    @Test(arguments: 0..<16)
    func `an agent that stalled is tried again by the next process, also if that cannot read it at first`(number: Int) throws {
        let entries = try SimulatedNode.simulate {
            @Sendable func program(_ step: String) -> AnyAgent {
                agent { _, turn in
                    try await turn.step(step) { _ in }
                    return try await turn.wait(for: "go")
                }
            }
            var world = SimulatedWorld(seed: 1)
            var node = try SimulatedNode(world, SimulatedLog(), agents: [program("a")])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            // Input makes the changed program run.
            node.send(.signal, ("name", "go"), ("data", "done"))
            world = SimulatedWorld(seed: 2, now: world.now)
            node = try SimulatedNode(world, node.log.reopen(), agents: [program("b")])
            node.send(.signal, ("name", "go"), ("data", "done"))
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            let fault = ReadFault(at: number) { $0 != .names }
            world = SimulatedWorld(seed: 3, now: world.now)
            node = try SimulatedNode(world, node.log.reopen(readError: fault.readError), agents: [program("a")])
            fault.arm()
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            fault.disarm()
            return try node.entries(name)
        }
        #expect(entries.contains { $0["type"] == "agent.stalled" })
        #expect(entries.last?["output"] == "done", "\(short(entries).suffix(6))")
    }

    @Test func `an agent that cannot be read is tried again at intervals, however much was sent to it`() throws {
        let (count, output) = try SimulatedNode.simulate {
            let reads = Mutex<Int?>(nil)
            let world = SimulatedWorld(seed: 2)
            let log = SimulatedLog(readError: { family, _ in
                guard family == .states else { return nil }
                return reads.withLock { count in
                    count = count.map { $0 + 1 }
                    return count.map { _ in LogError(.damaged, "damaged") }
                }
            })
            let node = try SimulatedNode(world, log, agents: [agent { _, _ in "done" }])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            reads.withLock { $0 = 0 }
            for number in 0..<50 {
                node.send("y\(number)", to: name)
                world.run(deadline: world.now.advanced(by: .milliseconds(100)))
            }
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            reads.withLock { $0 = 0 }
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            let count = reads.withLock { $0.take() }!
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return (count, try node.entries(name).count { $0["output"] == "done" })
        }
        #expect(count <= 11, "\(count) reads in 100 s")
        #expect(output == 51)
    }

    @Test func `reads that fail are no ends of the process`() throws {
        let entries = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 2)
            let fault = ReadFault(at: 0) { $0 == .inbox }
            let log = SimulatedLog(readError: fault.readError)
            let node = try SimulatedNode(
                world, log,
                agents: [
                    agent { text, turn in
                        try await turn.step("long") { _ in await pause(world, .seconds(200)) }
                        return "done"
                    }
                ])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            for number in 0..<5 {
                node.send("y\(number)", to: name)
                while world.doOne() { if (try? node.entries(name).last?["text"]?.string) == "y\(number)" { break } }
                fault.arm()
                world.run(deadline: world.now.advanced(by: .seconds(20)))
                fault.disarm()
            }
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return try node.entries(name)
        }
        #expect(!entries.contains { $0["type"] == "supervision" && $0["cause"] == "crash" }, "\(short(entries).suffix(12))")
        #expect(!entries.contains { $0["type"] == "agent.parked" })
    }

    @Test(arguments: 0..<100 as Range<UInt64>)
    func `reads that fail now and then cost no input and decide none twice`(seed: UInt64) throws {
        let (entries, state) = try SimulatedNode.simulate {
            let random = Mutex(SplitMix64(seed: seed))
            let fails = Mutex(false)
            let world = SimulatedWorld(seed: seed)
            let log = SimulatedLog(readError: { family, _ in
                guard family == .log || family == .states, fails.withLock({ $0 }) else { return nil }
                return random.withLock { $0.next() % 12 == 0 } ? LogError(.damaged, "unreadable for a moment") : nil
            })
            let node = try SimulatedNode(
                world, log,
                agents: [
                    agent { text, turn in
                        _ = try await turn.step("a") { _ in await pause(world, .milliseconds(30)) }
                        return "done"
                    }
                ])
            for number in 0..<12 {
                node.send("y\(number)", to: name)
                if number % 3 == 0 { node.send(NewEntry(.approve, nil, ("by", "ann"), ("approval", "x/y")), to: name) }
                for _ in 0..<3 { world.doOne() }
                fails.withLock { $0 = true }
                world.run(deadline: world.now.advanced(by: .milliseconds(Int(random.withLock { $0.next() } % 60))))
                if number % 4 == 3 { world.run(deadline: world.now.advanced(by: .seconds(11))) }
                fails.withLock { $0 = false }
            }
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (try node.entries(name), try node.runtime.status(of: name)?["state"]?.string)
        }
        let inputs = entries.filter { ["message", "approve"].contains($0["type"]?.string) }
        let wrong = inputs.filter { input in entries.count { $0["type"] == "receipt" && $0["of"] == input["offset"] } != 1 }
        #expect(wrong.isEmpty && state == "idle", "\(state ?? "-") wrong \(wrong.map { $0["offset"]!.text }) \(short(entries).suffix(20))")
    }

    /// Signals that come in pairs while steps begin and end: the first one cannot be read, and the second one needs another activation.
    @Test(arguments: 0..<24 as Range<UInt64>)
    func `an agent that stops is not there again before what it wrote is in the log`(seed: UInt64) throws {
        let entries = try SimulatedNode.simulate {
            var random = SplitMix64(seed: seed)
            let fault = ReadFault(at: 0) { $0 == .log }
            let world = SimulatedWorld(seed: seed)
            let log = SimulatedLog(readError: fault.readError)
            let node = try SimulatedNode(
                world, log,
                agents: [
                    agent { _, turn in
                        let (waiting, steps) = (try turn.scope("w"), try turn.scope("steps"))
                        async let never = waiting.wait(for: "go", match: ["x": 1])
                        for number in 0..<200 { _ = try await steps.step("s") { _ in number } }
                        return try await never
                    }
                ])
            node.send("x", to: name)
            for _ in 0..<12 {
                for _ in 0..<random.next() % 40 { world.doOne() }
                for _ in 0..<2 { node.send(.signal, ("name", "go"), ("data", ["x": 0])) }
                fault.arm()
                for _ in 0..<random.next() % 12 { world.doOne() }
                fault.disarm()
            }
            node.send(.signal, ("name", "go"), ("data", ["x": 1]))
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return try node.entries(name)
        }
        let starts = entries.filter { $0["type"] == "step.started" }.map { "\($0["step"]!.text) \($0["attempt"]!.text)" }
        let ends = entries.filter { $0["type"] == "step.completed" }.map { $0["step"]!.text }
        #expect(entries.last?["type"] == "turn.completed", "\(short(entries).suffix(4))")
        #expect(Set(starts).count == starts.count && Set(ends).count == ends.count, "seed \(seed)")
    }

    @Test func `a conversation that cannot be read does not have its agent loop`() throws {
        let (count, reads, tail) = try SimulatedNode.simulate {
            let program = agent { text, turn in
                if turn.history.isEmpty { return "first" }
                try await turn.sleep(.seconds(600))
                return "slept"
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program])
            before.send("one", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(5)))
            before.send("two", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(5)))
            let world = SimulatedWorld(seed: 2, now: first.now.advanced(by: .seconds(1_000)))
            let reads = Mutex(0)
            let armed = Mutex(true)
            let node = try SimulatedNode(
                world,
                before.log.reopen(readError: { family, key in
                    guard family == .log, armed.withLock({ $0 }), key.count >= 18 else { return nil }
                    let offset = key[10..<18].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
                    guard (1...4).contains(offset) else { return nil }
                    reads.withLock { $0 += 1 }
                    return LogError(.damaged, "damaged for ever")
                }), agents: [program])
            var steps = 0
            world.run(deadline: world.now.advanced(by: .seconds(60))) {
                steps += 1
                return steps > 3_000
            }
            armed.withLock { $0 = false }
            let entries = try node.entries(name)
            return (entries.count { $0["type"] == "supervision" }, reads.withLock { $0 }, short(entries).suffix(4))
        }
        #expect(count < 20, "\(count) supervision entries, \(reads) reads in a minute, \(tail)")
    }
}
