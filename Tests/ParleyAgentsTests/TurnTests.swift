import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

/// Runs one message through an agent made of a closure, in a simulated world.
func agent(_ kind: String = "probe", _ body: @escaping @Sendable (String, Turn) async throws -> JSON) -> AnyAgent {
    AnyAgent(kind: kind) { message, turn, _ in (try await body(message["text"]?.string ?? "", turn), [:]) }
}

final class Counter: Sendable {
    private let value = Mutex<[String: Int]>([:])
    func add(_ name: String) { value.withLock { $0[name, default: 0] += 1 } }
    subscript(name: String) -> Int { value.withLock { $0[name] ?? 0 } }
    var counts: [String: Int] { value.withLock { $0 } }
}

@Suite struct `Turns` {
    @Test func `what is encoded has its members in one order, in every process`() throws {
        struct Wide: Encodable { var (h, g, f, e, d, c, b, a) = (8, 7, 6, 5, 4, 3, 2, 1) }
        #expect(try JSON(encoding: Wide()).text == #"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8}"#)
    }

    @Test func `a message runs a turn whose steps and output stand in the channel`() throws {
        let types = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        let length = try await turn.step("count") { _ in text.count }
                        return .integer(Int64(length))
                    }
                ])
            node.send("hello", to: "agents/probe/a")
            world.settle()
            return try node.entries("agents/probe/a").map { "\($0["type"]!.string!) \($0["output"]?.text ?? "")" }
        }
        #expect(types == ["message ", "receipt ", "turn.started ", "step.started ", "step.completed ", "turn.completed 5"])
    }

    @Test(arguments: 0..<12, 1...3)
    func `a crash at any commit neither loses a message nor repeats a recorded step`(crashAt: Int, seed: Int) throws {
        let ran = Counter()
        let (outputs, results, crashed) = try SimulatedNode.simulate {
            let agents = [
                agent { text, turn in
                    let first = try await turn.step("a") { _ in
                        ran.add("a"); return Int.random(in: 0...1_000_000)
                    }
                    let rest = try await turn.map("m", [1, 2, 3]) { item, turn in
                        try await turn.step("b") { _ in
                            ran.add("b"); return item * 10
                        }
                    }
                    let last = try await turn.step("c") { _ in first }
                    return .string("\(first == last) \(rest)")
                }
            ]
            var world = SimulatedWorld(seed: UInt64(seed))
            let log = SimulatedLog(outcome: { commit, _ in
                commit == crashAt ? (crashAt % 2 == 0 ? .durableUnacknowledged : .lost) : .acknowledged
            })
            var node = try SimulatedNode(world, log, agents: agents)
            let sent = Counter()
            node.send("x", to: "agents/probe/a", key: "k") { if case .success = $0 { sent.add("ok") } }
            world.settle()
            let crashed = log.crashed
            if crashed {
                world = SimulatedWorld(seed: UInt64(seed) + 100)
                node = try SimulatedNode(world, log.reopen(), agents: agents)
                if sent["ok"] == 0 { node.send("x", to: "agents/probe/a", key: "k") }
                world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            }
            let entries = try node.entries("agents/probe/a")
            let outputs = entries.filter { $0["type"]?.string == "turn.completed" }.map { $0["output"]!.string! }
            let completed = entries.filter { $0["type"]?.string == "step.completed" }.map { $0["step"]!.string! }.sorted()
            return (outputs, completed, crashed)
        }
        #expect(outputs == ["true [10, 20, 30]"], "seed \(seed), crash at \(crashAt), crashed \(crashed)")
        #expect(results == ["a", "c", "m/0/b", "m/1/b", "m/2/b"])
    }

    @Test func `a turn that sleeps for thirty days is passivated, and ends once, at its instant`() throws {
        let (slept, ended, active) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 3)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        let before = turn.now
                        try await turn.sleep(.seconds(30 * 86_400))
                        return .integer(before.duration(to: turn.now).components.seconds)
                    }
                ])
            node.send("x", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(86_400)))
            let active = node.runtime.activeCount
            world.run()
            let entries = try node.entries("agents/probe/a")
            return (entries.filter { $0["type"]?.string == "timer.fired" }.count, entries.last?["output"]?.integer, active)
        }
        #expect(slept == 1)
        #expect(ended == Int64(30 * 86_400))
        #expect(active == 0)
    }

    @Test(arguments: [true, false])
    func `a sleep that was due while nobody was here ends once, at the next start`(leftMemory: Bool) throws {
        let probe = agent { _, turn in
            try await turn.sleep(.seconds(86_400))
            return "woken"
        }
        let (fired, ended, at) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 9)
            let log = SimulatedLog()
            let node = try SimulatedNode(world, log, agents: [probe])
            node.send("x", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: leftMemory ? .seconds(600) : .seconds(1)))
            // The process is gone for a week.
            let later = world.now.advanced(by: .seconds(7 * 86_400))
            let after = SimulatedWorld(seed: 10, now: later)
            let next = try SimulatedNode(after, log.reopen(), agents: [probe])
            after.run(deadline: later.advanced(by: .seconds(3_600)))
            let entries = try next.entries("agents/probe/a")
            let ends = entries.filter { $0["type"] == "turn.completed" }
            return (
                entries.filter { $0["type"] == "timer.fired" }.count, ends.count,
                ends.first?["at"]?.string.flatMap { Timestamp($0) }.map { later.duration(to: $0) }
            )
        }
        #expect(fired == 1)
        #expect(ended == 1)
        #expect(at ?? .seconds(100) < .seconds(1))
    }

    @Test(arguments: [0, 2, 3, 4, 5])
    func `a step that the program cancels ends at once, also when the process dies around it`(crashAt: Int) throws {
        let agents = [
            agent { _, turn in
                await withThrowingTaskGroup(of: String.self) { group in
                    let (slow, quick) = (try! turn.scope("slow"), try! turn.scope("quick"))
                    group.addTask {
                        try await slow.sleep(.seconds(86_400))
                        return "slow"
                    }
                    group.addTask { try await quick.step("now") { _ in "quick" } }
                    let first = try? await group.next()
                    group.cancelAll()
                    do {
                        _ = try await group.next()
                        return JSON.string("\(first ?? "") won, and the other went on")
                    } catch { return JSON.string("\(first ?? "") won: \((error as? StepFailure)?.code ?? "\(error)")") }
                }
            }
        ]
        let (output, took, timers) = try SimulatedNode.simulate {
            var world = SimulatedWorld(seed: 7)
            let start = world.now
            let log = SimulatedLog(outcome: { commit, _ in commit == crashAt && crashAt > 0 ? .durableUnacknowledged : .acknowledged })
            var node = try SimulatedNode(world, log, agents: agents)
            node.send("x", to: "agents/probe/a")
            world.settle()
            if log.crashed {
                world = SimulatedWorld(seed: 8)
                node = try SimulatedNode(world, log.reopen(), agents: agents)
            }
            world.run(deadline: start.advanced(by: .seconds(3_600)))
            let entries = try node.entries("agents/probe/a")
            var timers = 0
            try node.log.scan(.timers, from: [0, 0], to: [0xFF], reversed: false) { _, _ in
                timers += 1; return true
            }
            return (entries.last?["output"]?.string, start.duration(to: Timestamp(entries.last!["at"]!.string!)!), timers)
        }
        #expect(output == "quick won: cancelled")
        #expect(took < .seconds(3_600))
        #expect(timers == 0)
    }

    @Test func `a step on a scope of another task is refused`() throws {
        let code = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 4)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        _ = try await turn.step("mine") { _ in 1 }
                        return try await withThrowingTaskGroup(of: JSON.self) { group in
                            group.addTask {
                                do {
                                    _ = try await turn.step("theirs") { _ in 1 }
                                    return "no error"
                                } catch let error as TurnError { return .string(error.code) }
                            }
                            return try await group.next()!
                        }
                    }
                ])
            node.send("x", to: "agents/probe/a")
            world.settle()
            return try node.entries("agents/probe/a").last?["output"]?.string
        }
        #expect(code == "concurrent_scope")
    }

    @Test func `a program that was changed under a turn stalls and says what was expected and found`() throws {
        let stalled = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 5)
            let log = SimulatedLog(outcome: { commit, _ in commit == 3 ? .durableUnacknowledged : .acknowledged })
            let first = try SimulatedNode(
                world, log,
                agents: [
                    agent { _, turn in
                        _ = try await turn.step("old") { _ in 1 }
                        return .integer(Int64(try await turn.step("next") { _ in 1 }))
                    }
                ])
            first.send("x", to: "agents/probe/a")
            world.settle()
            let after = SimulatedWorld(seed: 6)
            let second = try SimulatedNode(
                after, log.reopen(), agents: [agent { _, turn in .integer(Int64(try await turn.step("new") { _ in 1 })) }])
            after.run()
            return try second.entries("agents/probe/a").last!
        }
        #expect(stalled["type"] == "agent.stalled")
        #expect(stalled["reason"] == "journal_mismatch")
        #expect(stalled["message"]?.string?.contains("'old'") == true)
        #expect(stalled["message"]?.string?.contains("'new'") == true)
        #expect(stalled["source"]?.string?.contains("TurnTests.swift:") == true)
    }
}
