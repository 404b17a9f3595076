import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `A turn that ends its process` {
    /// Starts process after process, each of which dies as soon as the program runs, and gives how long each took to come to it.
    private static func crash(_ times: Int, before die: @escaping @Sendable (Turn) async throws -> Void = { _ in }) throws -> (
        pauses: [Duration], log: SimulatedLog, now: Timestamp
    ) {
        var (log, now, pauses): (SimulatedLog, Timestamp, [Duration]) = (SimulatedLog(), Timestamp(milliseconds: 0), [])
        for life in 0..<times {
            let world = SimulatedWorld(seed: UInt64(life), now: now)
            let hasDied = Counter()
            let node = try SimulatedNode(
                world, life == 0 ? log : log.reopen(),
                agents: [
                    agent { _, turn in
                        try await die(turn)
                        hasDied.add("died")
                        // The process is gone: nothing more happens in this world.
                        await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in }
                        return .null
                    }
                ])
            if life == 0 { node.send("x", to: "agents/probe/a") }
            world.run(deadline: world.now.advanced(by: .seconds(60))) { hasDied["died"] > 0 }
            pauses.append(now.duration(to: world.now))
            (log, now) = (node.log, world.now)
        }
        return (pauses, log, now)
    }

    @Test func `is resumed after a second, after five, and then parked as poison`() throws {
        let (pauses, entries, status) = try SimulatedNode.simulate {
            let (pauses, log, now) = try Self.crash(3)
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(world, log.reopen(), agents: [agent { _, _ in "never" }])
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return (pauses, try node.entries("agents/probe/a"), try node.runtime.status(of: "agents/probe/a")!)
        }
        #expect(pauses[1] >= .seconds(1) && pauses[1] < .seconds(2))
        #expect(pauses[2] >= .seconds(5) && pauses[2] < .seconds(6))
        #expect(entries.last?["type"] == "agent.parked" && entries.last?["reason"] == "poison")
        #expect(entries.dropLast().last?["action"] == "park" && entries.dropLast().last?["cause"] == "crash")
        #expect(status["state"] == "parked" && status["reason"] == "poison" && status["remedy"] != nil)
    }

    @Test func `is parked after the fourth end, if there was something new before the first, and says what counts`() throws {
        let (states, message) = try SimulatedNode.simulate {
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            var states: [JSON] = []
            for life in 0..<5 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let hang = agent { _, turn in
                    // It begins before the first end of the process, and does not end.
                    try await turn.step("work") { _ in
                        await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in }
                    }
                    return .null
                }
                let node = try SimulatedNode(world, life == 0 ? log : log.reopen(), agents: [hang])
                if life == 0 { node.send("x", to: "agents/probe/a") }
                world.run(deadline: world.now.advanced(by: .seconds(60)))
                states.append(try node.runtime.status(of: "agents/probe/a")?["state"] ?? .null)
                if life == 4 { return (states, try node.runtime.status(of: "agents/probe/a")?["message"]?.string ?? "") }
                (log, now) = (node.log, world.now)
            }
            return (states, "")
        }
        #expect(states == ["running", "running", "running", "running", "parked"])
        #expect(
            message.contains("three times in a row") && message.contains("each time without anything new in the turn's journal"),
            "\(message)")
    }

    @Test func `does not hide that others ran in the process, which may have ended it`() throws {
        let (alone, together) = try SimulatedNode.simulate {
            func park(_ names: [String]) throws -> [JSON] {
                var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
                for life in 0..<4 {
                    let world = SimulatedWorld(seed: UInt64(life), now: now)
                    let hang = agent { _, _ in
                        await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in }
                        return .null
                    }
                    let node = try SimulatedNode(world, life == 0 ? log : log.reopen(), agents: [hang])
                    if life == 0 { for name in names { node.send("x", to: name) } }
                    world.run(deadline: world.now.advanced(by: .seconds(60)))
                    if life == 3 { return try names.map { try node.runtime.status(of: $0)! } }
                    (log, now) = (node.log, world.now)
                }
                return []
            }
            return (try park(["agents/probe/a"]), try park(["agents/probe/a", "agents/probe/b", "agents/probe/c"]))
        }
        #expect(alone.count == 1 && alone[0]["reason"] == "poison" && alone[0]["message"]?.string?.contains("other") == false)
        #expect(together.count == 3)
        for status in together {
            #expect(status["reason"] == "poison" && status["message"]?.string?.contains("turns of 2 other agents") == true, "\(status)")
            #expect(status["message"]?.string?.contains("agents/probe") == false, "who may see one may not know of all")
        }
    }

    @Test func `stays parked over processes until it is resumed, and then may crash as often again`() throws {
        let (parked, output) = try SimulatedNode.simulate {
            let (_, log, now) = try Self.crash(3)
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(world, log.reopen(), agents: [agent { _, _ in "never" }])
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            let after = SimulatedWorld(seed: 10, now: world.now)
            let second = try SimulatedNode(after, node.log.reopen(), agents: [agent { _, _ in "mended" }])
            after.run(deadline: after.now.advanced(by: .seconds(60)))
            let parked = try second.runtime.status(of: "agents/probe/a")?["state"]
            second.send(NewEntry(.resume, nil, ("by", "ann")), to: "agents/probe/a")
            after.run(deadline: after.now.advanced(by: .seconds(60)))
            return (parked, try second.entries("agents/probe/a").last?["output"])
        }
        #expect(parked == "parked")
        #expect(output == "mended")
    }

    @Test func `can be cancelled while it pauses`() throws {
        let last = try SimulatedNode.simulate {
            let (_, log, now) = try Self.crash(2)
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(
                world, log.reopen(), agents: [agent { _, _ in preconditionFailure("a cancelled turn runs no more") }])
            world.run(deadline: world.now.advanced(by: .milliseconds(100)))
            node.send(NewEntry(.cancel, nil, ("by", "ann")), to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return try node.entries("agents/probe/a").last?["type"]
        }
        #expect(last == "turn.cancelled")
    }

    @Test func `has what came before a cancel decided before it`() throws {
        let entries = try SimulatedNode.simulate {
            let (_, log, now) = try Self.crash(2)
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(world, log.reopen(), agents: [agent { _, turn in try await turn.wait(for: "go") }])
            world.run(deadline: world.now.advanced(by: .milliseconds(100)))
            let decision = NewEntry(.deny, nil, ("by", "ann"), ("approval", "none"))
            node.send(decision, to: "agents/probe/a")
            node.send(NewEntry(.cancel, nil, ("by", "ann")), to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return try node.entries("agents/probe/a")
        }
        let receipts = entries.filter { $0["type"] == "receipt" }.compactMap { $0["of"]?.string }
        #expect(receipts == receipts.sorted() && receipts.count == 3, "\(short(entries))")
        #expect(entries.last?["type"] == "turn.cancelled")
    }

    @Test func `is cancelled with its program when something is shielded`() throws {
        let entries = try SimulatedNode.simulate {
            let hangs: @Sendable (Turn) async throws -> Void = { turn in
                try await turn.shielded("paying") { turn in
                    _ = try await turn.step("pay") { _ in
                        await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in }
                    }
                }
            }
            let (_, log, now) = try Self.crash(2, before: hangs)
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(
                world, log.reopen(),
                agents: [
                    agent { _, turn in
                        try await turn.shielded("paying") { turn in _ = try await turn.step("pay") { _ in } }
                        try await turn.sleep(.seconds(1))
                        return .null
                    }
                ])
            world.run(deadline: world.now.advanced(by: .milliseconds(100)))
            node.send(NewEntry(.cancel, nil, ("by", "ann")), to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return try node.entries("agents/probe/a")
        }
        #expect(entries.last?["type"] == "turn.cancelled")
        #expect(entries.contains { $0["type"] == "step.completed" && $0["step"] == "paying/pay" }, "\(short(entries))")
    }

    @Test func `continues at once as long as each process gets further`() throws {
        let (pauses, types) = try SimulatedNode.simulate {
            let (pauses, log, now) = try Self.crash(5) { turn in
                // Each process does one step more than the one before.
                for number in 0..<100 {
                    let isNew = Counter()
                    _ = try await turn.step("s\(number)") { _ in
                        isNew.add("ran")
                        return number
                    }
                    if isNew["ran"] > 0 { return }
                }
            }
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(world, log.reopen(), agents: [agent { _, _ in "never" }])
            return (pauses, try node.entries("agents/probe/a").compactMap { $0["type"]?.string })
        }
        #expect(pauses.dropFirst().allSatisfy { $0 < .milliseconds(500) }, "\(pauses)")
        #expect(!types.contains("agent.parked"))
    }

    @Test func `is out of the reach of further crashes once it only waits`() throws {
        let (state, parks) = try SimulatedNode.simulate {
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            for life in 0..<8 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try SimulatedNode(
                    world, life == 0 ? log : log.reopen(), agents: [agent { _, turn in try await turn.wait(for: "go") }])
                if life == 0 { node.send("x", to: "agents/probe/a") }
                // The first process dies before the log says that the turn waits, the others some time later.
                world.run(deadline: world.now.advanced(by: life == 0 ? .milliseconds(50) : .seconds(8)))
                (log, now) = (node.log, world.now)
            }
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(world, log.reopen(), agents: [agent { _, turn in try await turn.wait(for: "go") }])
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return (
                try node.runtime.status(of: "agents/probe/a")?["state"],
                try node.entries("agents/probe/a").count { $0["type"] == "agent.parked" }
            )
        }
        #expect(state == "waiting")
        #expect(parks == 0)
    }

    @Test func `that does very much after it has crashed is parked while it does it, and resumed for as much again`() throws {
        let (parked, stepsBefore, resumed, stepsAfter, cause) = try SimulatedNode.simulate {
            let endless = agent { _, turn in
                for number in 0..<100_000 { _ = try await turn.step("s\(number)") { _ in number } }
                return .null
            }
            let first = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [endless])
            node.send("x", to: "agents/probe/a")
            func steps(_ node: SimulatedNode) throws -> Int { try node.entries("agents/probe/a").count { $0["type"] == "step.completed" } }
            first.run(deadline: first.now.advanced(by: .seconds(60))) { ((try? steps(node)) ?? 0) >= 5 }
            let before = try steps(node)
            let world = SimulatedWorld(seed: 2, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [endless])
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            let (status, done) = (try second.runtime.status(of: "agents/probe/a")!, try steps(second) - before)
            second.send(NewEntry(.resume, nil, ("by", "ann")), to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            let cause = try second.entries("agents/probe/a").last { $0["type"] == "supervision" }?["cause"]
            return (status, done, try second.runtime.status(of: "agents/probe/a")!, try steps(second) - before, cause)
        }
        #expect(parked["state"] == "parked" && parked["reason"] == "work" && cause == "work")
        #expect(stepsBefore >= 1_000 && stepsBefore < 1_010)
        #expect(resumed["state"] == "parked" && resumed["reason"] == "work")
        #expect(stepsAfter >= 2_000 && stepsAfter < 2_020)
    }

    @Test func `is not blamed for the end of a process that drained`() throws {
        let (causes, state) = try SimulatedNode.simulate {
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            for life in 0..<5 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try SimulatedNode(
                    world, life == 0 ? log : log.reopen(),
                    agents: [
                        agent { _, _ in
                            await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in }
                            return .null
                        }
                    ])
                if life == 0 { node.send("x", to: "agents/probe/a") }
                world.run(deadline: world.now.advanced(by: .milliseconds(100)))
                node.runtime.drain()
                node.runtime.markDrained()
                world.settle()
                (log, now) = (node.log, world.now)
            }
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(world, log.reopen(), agents: [agent { _, _ in "done" }])
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            let causes = try node.entries("agents/probe/a").compactMap { $0["cause"]?.string }
            return (causes, try node.runtime.status(of: "agents/probe/a")?["state"])
        }
        #expect(causes == Array(repeating: "drain", count: 5))
        #expect(state == "idle")
    }

    /// In the third process, which pauses for a second before it continues with the turn, and after that second.
    @Test(arguments: [Duration.milliseconds(100), .seconds(5)])
    func `is given a signal that came before a cancel`(moment: Duration) throws {
        let entries = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                        if item == 0 { return try await turn.wait(for: "go") }
                        try await turn.step("long") { _ in await pause(world, .seconds(100)) }
                        return "done"
                    }
                    return .array(all)
                }
            }
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            for life in 0..<2 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try SimulatedNode(world, life == 0 ? log : log.reopen(), agents: [program(world)])
                if life == 0 { node.send("x", to: "agents/probe/a") }
                world.run(deadline: world.now.advanced(by: .milliseconds(life == 0 ? 100 : 1))) {
                    life == 1 && (try? node.entries("agents/probe/a").last?["type"] == "supervision") == true
                }
                (log, now) = (node.log, world.now)
            }
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(world, log.reopen(), agents: [program(world)])
            world.run(deadline: world.now.advanced(by: moment))
            node.send(.signal, ("name", "go"))
            node.send(.cancel)
            world.run(deadline: world.now.advanced(by: .seconds(600)))
            return try node.entries("agents/probe/a")
        }
        #expect(receipt(entries, of: "signal") == "applied", "\(short(entries))")
        #expect(receipt(entries, of: "cancel") == "applied")
    }
}
