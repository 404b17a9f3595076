import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"

@Suite struct `A turn that waits, inside and outside` {
    @Test func `a turn that works beside a wait is taken up after a crash`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                        if item == 0 { return try await turn.wait(for: "never") }
                        // Outside the turn: an actor, a sleeping task.
                        await pause(world, .seconds(1))
                        return try await turn.step("work") { _ in
                            await pause(world, .seconds(20))
                            return "done"
                        }
                    }
                    return all[1]
                }
            }
            let first = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [program(first)])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(5)))
            let state = try node.runtime.status(of: name)?["state"]?.string
            let world = SimulatedWorld(seed: 2, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [program(world)])
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (state, try second.entries(name))
        }
        #expect(state == "running")
        #expect(entries.contains { $0["type"] == "step.completed" && $0["step"] == "m/1/work" }, "\(short(entries))")
    }

    @Test func `a wait that the program gives up is not said to wait after it`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    let waiting = try turn.scope("w")
                    _ = try? await withThrowingTaskGroup(of: Void.self) { group in
                        group.addTask { _ = try await waiting.wait(for: "never") }
                        group.addTask {
                            await pause(world, .seconds(1))
                            throw CancellationError()
                        }
                        defer { group.cancelAll() }
                        while try await group.next() != nil {}
                    }
                    return try await turn.step("work") { _ in
                        await pause(world, .seconds(20))
                        return "done"
                    }
                }
            }
            let first = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [program(first)])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(5)))
            let state = try node.runtime.status(of: name)?["state"]?.string
            let world = SimulatedWorld(seed: 2, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [program(world)])
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (state, try second.entries(name))
        }
        #expect(state == "running")
        #expect(entries.last?["output"] == "done", "\(short(entries))")
    }

    @Test(arguments: [1, 60])
    func `a turn that waits outside beside a wait continues`(seconds: Int) throws {
        let (entries, other) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        if text == "y" { return "y" }
                        let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                            if item == 0 { return try await turn.wait(for: "never") }
                            await pause(world, .seconds(seconds))
                            return try await turn.step("work") { _ in "done" }
                        }
                        return all[1]
                    }
                ], activeMax: seconds == 1 ? 1 : 100)
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .milliseconds(10)))
            if seconds == 1 { node.send("y", to: "agents/probe/b") }
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (try node.entries(name), try node.entries("agents/probe/b").last?["output"])
        }
        #expect(other == (seconds == 1 ? "y" : nil))
        #expect(entries.contains { $0["type"] == "step.completed" && $0["step"] == "m/1/work" }, "\(short(entries))")
    }

    @Test func `a wait that was given up during a replay is given up in the next`() throws {
        let (first, entries, state) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld, _ life: Int) -> AnyAgent {
                agent { _, turn in
                    let (x, b) = (try turn.scope("x"), try turn.scope("b"))
                    await withTaskGroup(of: Void.self) { group in
                        group.addTask {
                            // A wait with the program's own timeout.
                            await pause(world, .seconds(life == 1 ? 10 : 1))
                            _ = try? await withThrowingTaskGroup(of: Void.self) { group in
                                group.addTask { _ = try await x.wait(for: "never") }
                                group.addTask {
                                    await pause(world, .milliseconds(500))
                                    throw CancellationError()
                                }
                                defer { group.cancelAll() }
                                while try await group.next() != nil {}
                            }
                        }
                        group.addTask {
                            await pause(world, .seconds(2))
                            _ = try? await b.step("B") { _ in 1 }
                        }
                    }
                    _ = try await turn.step("Y") { _ in 1 }
                    _ = try await turn.step("Z") { _ in await pause(world, .seconds(10)) }
                    return "done"
                }
            }
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            var entries: [[JSON]] = []
            var state: String?
            for life in 1...3 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try SimulatedNode(world, life == 1 ? log : log.reopen(), agents: [program(world, life)])
                if life == 1 { node.send("x", to: name) }
                world.run(deadline: world.now.advanced(by: .seconds(life == 3 ? 3_600 : 5)))
                entries.append(try node.entries(name))
                state = try node.runtime.status(of: name)?["state"]?.string
                (log, now) = (node.log, world.now)
            }
            return (entries[1], entries[2], state)
        }
        #expect(first.contains { $0["type"] == "step.completed" && $0["step"] == "Y" })
        #expect(entries.last?["output"] == "done", "\(state ?? "-") \(short(entries))")
    }

    /// A timeout of the program's own around a wait, in the ordinary form.
    @Test func `a wait that lost against something outside loses on the replay too`() throws {
        let (first, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    let w = try turn.scope("w")
                    let result = try await withThrowingTaskGroup(of: String.self) { group in
                        group.addTask {
                            _ = try await w.wait(for: "never")
                            return "answered"
                        }
                        group.addTask {
                            await pause(world, .seconds(1))
                            return "timed out"
                        }
                        defer { group.cancelAll() }
                        return try await group.next()!
                    }
                    _ = try await turn.step("after") { _ in await pause(world, .seconds(10)) }
                    return .string(result)
                }
            }
            let first = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [program(first)])
            node.send("x", to: name)
            // Before the log says that it waits, so that this is not L.
            first.run(deadline: first.now.advanced(by: .milliseconds(1_100)))
            let before = try node.entries(name)
            let world = SimulatedWorld(seed: 2, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [program(world)])
            second.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "wake")), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (before, try second.entries(name))
        }
        #expect(first.contains { $0["type"] == "step.started" && $0["step"] == "after" })
        #expect(entries.last?["output"] == "timed out", "\(short(entries))")
    }

    @Test func `a turn that begins to wait right behind another is said to wait as well`() throws {
        let states = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        if text == "short" {
                            try await turn.sleep(.milliseconds(100))
                            return "short"
                        }
                        return try await turn.wait(for: "never")
                    }
                ])
            node.send("short", to: name)
            node.send("long", to: name)
            world.run(deadline: world.now.advanced(by: .milliseconds(150)))
            let early = try node.runtime.status(of: name)?["state"]?.string
            world.run(deadline: world.now.advanced(by: .milliseconds(500)))
            return [early, try node.runtime.status(of: name)?["state"]?.string]
        }
        #expect(states == ["running", "waiting"])
    }

    @Test func `a sleep that a drain kept from beginning is slept after it`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    try await turn.sleep(.milliseconds(10))
                    _ = try await turn.step("work") { _ in await pause(world, .milliseconds(100)) }
                    try await turn.sleep(.seconds(1))
                    return "done"
                }
            }
            let first = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [program(first)])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(50)))
            node.runtime.drain()
            // Another agent's body takes its time.
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            node.runtime.markDrained()
            first.settle()
            let state = try node.runtime.status(of: name)?["state"]?.string
            let world = SimulatedWorld(seed: 2, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [program(world)])
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (state, try second.entries(name))
        }
        #expect(state == "running")
        #expect(entries.last?["output"] == "done", "\(short(entries))")
    }

    @Test func `a conversation in which a later input was answered first is the same on a replay`() throws {
        let (entries, requests) = try SimulatedNode.simulate {
            let requests = Mutex<[[String]]>([])
            @Sendable func program(_ world: SimulatedWorld, _ life: Int) -> AnyAgent {
                let model = PlayedModel(world, [.text("ok"), .finished(reason: "stop")])
                return AnyAgent(kind: "probe", historyBytes: 700) { message, turn, _ in
                    let text = message["text"]?.string ?? ""
                    switch text {
                    case "x":
                        if life == 1 { _ = try await turn.wait(for: "never") } else { _ = try await turn.step("other") { _ in 1 } }
                        return ("x", [:])
                    case "nine": return (.string(String(repeating: "n", count: 200)), [:])
                    case "five": return (.string(String(repeating: "f", count: 600)), [:])
                    default:
                        requests.withLock { $0.append(turn.history.map(\.input)) }
                        let answer = try await turn.generate("answer", model, turn.history.flatMap(\.messages) + [turn.input(text)])
                        _ = try await turn.wait(for: "go")
                        return (.string(answer.text), [:])
                    }
                }
            }
            let first = SimulatedWorld(seed: 5)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [program(first, 1)])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 6, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [program(world, 2)])
            second.send("five", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            second.send(NewEntry(.interrupt, nil, ("by", "ann"), ("text", "nine")), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            second.send("last", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            let third = SimulatedWorld(seed: 7, now: world.now)
            let last = try SimulatedNode(third, second.log.reopen(), agents: [program(third, 3)])
            last.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "go")), to: name)
            third.run(deadline: third.now.advanced(by: .seconds(50)))
            return (try last.entries(name), requests.withLock { $0 })
        }
        #expect(entries.last?["output"] == "ok", "\(requests) \(short(entries).suffix(12))")
    }
}
