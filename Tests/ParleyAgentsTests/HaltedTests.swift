import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

/// An agent whose turn stalls in its second process: the program asks for another step than the journal has.
private struct Stalled {
    let world = SimulatedWorld(seed: 6)
    let node: SimulatedNode
    let log: SimulatedLog
    static let name = "agents/probe/a"

    /// - Parameter program: What the agent does up to its step 'next'; the second process does without it.
    init(_ program: @escaping @Sendable (Turn) async throws -> Void = { _ in }) throws {
        let first = SimulatedWorld(seed: 5)
        log = SimulatedLog()
        let node = try SimulatedNode(
            first, log,
            agents: [
                agent { _, turn in
                    try await program(turn)
                    _ = try await turn.wait(for: "never", timeout: .seconds(100_000))
                    return "whole"
                }
            ])
        node.send("x", to: Self.name)
        first.run(deadline: first.now.advanced(by: .seconds(1)))
        self.node = try SimulatedNode(
            world, log.reopen(), agents: [agent { _, turn in .integer(Int64(try await turn.step("new") { _ in 1 })) }])
        // A step that waits is not touched when the process starts.
        self.node.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "other")), to: Self.name)
        run()
    }

    func run() { world.run(deadline: world.now.advanced(by: .seconds(60))) }

    /// Sends an entry, and gives what came of it: its receipt, and the types of the entries behind it.
    func send(_ kind: EntryKind, _ members: (String, JSON?)...) throws -> (receipt: String?, types: [String]) {
        let before = try node.entries(Self.name).count
        node.send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: Self.name)
        run()
        let entries = try node.entries(Self.name)
        let offset = entries[before]["offset"]
        let receipt = entries.first { $0["type"] == "receipt" && $0["of"] == offset }
        let outcome = receipt.map { "\($0["state"]!.string!) \($0["reason"]?.string ?? "")".trimmingSpaces }
        return (outcome, entries[(before + 1)...].map { $0["type"]!.string! })
    }

    func state() throws -> String? { try node.runtime.status(of: Self.name)?["state"]?.string }
}

@Suite struct `A way out of a stall` {
    @Test func `cancel ends the turn without the program, and the next message is answered`() throws {
        let (stalled, cancelled, state, next) = try SimulatedNode.simulate {
            let stage = try Stalled()
            return (try stage.state(), try stage.send(.cancel), try stage.state(), try stage.send(.message, ("text", "y")))
        }
        #expect(stalled == "stalled")
        #expect(cancelled.receipt == "applied")
        #expect(cancelled.types == ["receipt", "supervision", "step.failed", "turn.cancelled"])
        #expect(state == "idle")
        #expect(next.receipt == "applied" && next.types.last == "turn.completed")
    }

    @Test func `interrupt ends the turn, and with a text begins the next one`() throws {
        let (without, with) = try SimulatedNode.simulate {
            (try Stalled().send(.interrupt), try Stalled().send(.interrupt, ("text", "rather this")))
        }
        #expect(without.receipt == "applied" && without.types.last == "turn.interrupted")
        #expect(with.receipt == "applied")
        #expect(with.types.contains("turn.interrupted") && with.types.last == "turn.completed")
    }

    @Test func `a turn that was cancelled before it stalled stays cancelled, also by an interrupt`() throws {
        let (entries, ends) = try SimulatedNode.simulate {
            // The process dies as soon as the cancel is durable, while the program still has something to finish.
            let first = SimulatedWorld(seed: 5)
            let node = try SimulatedNode(
                first, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        _ = try? await turn.wait(for: "never")
                        return try await turn.shielded { turn in try await turn.wait(for: "also never") }
                    }
                ])
            node.send("x", to: Stalled.name)
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            node.send(NewEntry(.cancel, nil, ("by", "ann"), ("reason", "changed my mind")), to: Stalled.name)
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 6, now: first.now)
            let after = try SimulatedNode(
                world, node.log.reopen(), agents: [agent { _, turn in .integer(Int64(try await turn.step("new") { _ in 1 })) }])
            after.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "other")), to: Stalled.name)
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            after.send(NewEntry(.interrupt, nil, ("by", "ann")), to: Stalled.name)
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            let entries = try after.entries(Stalled.name)
            return (entries, entries.filter { $0["type"]?.string?.hasPrefix("turn.") == true && $0["type"] != "turn.started" })
        }
        #expect(entries.contains { $0["type"] == "agent.stalled" })
        #expect(ends.map { $0["type"] } == ["turn.cancelled"] && ends[0]["reason"] == "changed my mind")
        #expect(entries.count { $0["type"] == "supervision" && $0["action"] == "cancel" } == 1)
    }

    @Test func `close ends the agent, and what waits is refused`() throws {
        let (message, closed, state) = try SimulatedNode.simulate {
            let stage = try Stalled()
            return (try stage.send(.message, ("text", "waits")), try stage.send(.close), try stage.state())
        }
        #expect(message.receipt == nil, "a message waits")
        #expect(closed.receipt == "applied" && closed.types.contains("turn.cancelled") && closed.types.last == "agent.closed")
        #expect(state == "closed")
    }

    @Test func `a message waits, and status says why and what helps`() throws {
        let (status, listed) = try SimulatedNode.simulate {
            let stage = try Stalled()
            _ = try stage.send(.message, ("text", "waits"))
            var query = AgentListQuery()
            query.state = "stalled"
            let list = try stage.node.runtime.list(query)
            return (try stage.node.runtime.status(of: Stalled.name)!, list["agents"]?.array)
        }
        #expect(listed?.count == 1 && listed?[0]["reason"] == "journal_mismatch" && listed?[0]["since"] == status["since"])
        #expect(status["state"] == "stalled" && status["reason"] == "journal_mismatch")
        #expect(status["queued"]?["reason"] == "stalled" && status["queued"]?["ahead"] == 1)
        #expect(status["remedy"]?.string?.contains("'resume'") == true && status["remedy"]?.string?.contains("'cancel'") == true)
        #expect(status["message"]?.string?.contains("'new'") == true && status["since"] != nil)
    }

    @Test func `resume tries again, and stalls again while the program is another`() throws {
        let again = try SimulatedNode.simulate { try Stalled().send(.resume) }
        #expect(again.receipt == "applied")
        #expect(again.types == ["receipt", "agent.resumed", "agent.stalled"])
    }

    @Test func `resume with the program that began the turn completes it`() throws {
        let (resumed, output) = try SimulatedNode.simulate {
            let stage = try Stalled()
            let world = SimulatedWorld(seed: 7, now: stage.world.now)
            let node = try SimulatedNode(
                world, stage.log.reopen(),
                agents: [
                    agent { _, turn in
                        _ = try await turn.wait(for: "never", timeout: .seconds(100_000))
                        return "whole"
                    }
                ])
            // A process tries each stalled agent once by itself: this one has been mended before it started.
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            let state = try node.runtime.status(of: Stalled.name)?["state"]?.string
            node.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "never")), to: Stalled.name)
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return (state, try node.entries(Stalled.name).last?["output"])
        }
        #expect(resumed == "running" || resumed == "waiting")
        #expect(output == "whole")
    }

    @Test func `resume of an agent that is not halted is refused`() throws {
        let receipts = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [agent { _, turn in try await turn.wait(for: "go") }])
            node.send(NewEntry(.resume, nil, ("by", "ann")), to: Stalled.name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            node.send("x", to: Stalled.name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            node.send(NewEntry(.resume, nil, ("by", "ann")), to: Stalled.name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            return try node.entries(Stalled.name).filter { $0["type"] == "receipt" }.compactMap { $0["reason"]?.string }
        }
        #expect(receipts == ["not_parked", "not_parked"])
    }

    @Test func `an approval is decided for the replay, by its own rules`() throws {
        let (wrong, late, approved, twice) = try SimulatedNode.simulate {
            let stage = try Stalled { turn in
                try await turn.approval("pay", of: ["amount": 1])
            }
            let approval = ("approval", JSON.string("\(Offset(1))/pay"))
            return (
                try stage.send(.approve, approval, ("args_sha256", "no")),
                try stage.send(.deny, ("approval", .string("\(Offset(1))/other"))),
                try stage.send(.approve, approval), try stage.send(.deny, approval)
            )
        }
        #expect(wrong.receipt == "rejected arguments_changed" && late.receipt == "rejected unknown_approval")
        #expect(approved.receipt == "applied" && approved.types == ["receipt", "approval.decided", "step.completed"])
        #expect(twice.receipt == "rejected already_decided")
    }

    @Test func `what a cancel does not undo is named`() throws {
        let end = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 5)
            let log = SimulatedLog()
            let first = try SimulatedNode(
                world, log,
                agents: [
                    agent { _, turn in
                        try turn.compensate("undo") { _ in }
                        _ = try await turn.step("do") { _ in 1 }
                        return try await turn.wait(for: "never")
                    }
                ])
            first.send("x", to: Stalled.name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            let after = SimulatedWorld(seed: 6, now: world.now)
            let node = try SimulatedNode(
                after, log.reopen(),
                agents: [
                    agent { _, turn in
                        try turn.compensate("undo") { _ in }
                        return .integer(Int64(try await turn.step("other") { _ in 1 }))
                    }
                ])
            node.send(NewEntry(.cancel, nil, ("by", "ann")), to: Stalled.name)
            after.run(deadline: after.now.advanced(by: .seconds(60)))
            return try node.entries(Stalled.name).last
        }
        #expect(end?["type"] == "turn.cancelled")
        #expect(end?["compensations_skipped"] == ["undo"])
    }
}

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

    @Test func `goes on at once as long as each process gets further`() throws {
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
}
