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

    /// - Parameter program: The agent's program up to its step 'next'; the second process does without it.
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
            world, log.reopen(),
            agents: [
                agent { _, turn in
                    _ = try await turn.step("new") { _ in 1 }
                    return .array(turn.history.flatMap(\.messages).map { .string($0.text) })
                }
            ])
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

    @Test func `what an interrupt begins remembers what was said to the turn that it ended`() throws {
        let output = try SimulatedNode.simulate {
            let stage = try Stalled()
            _ = try stage.send(.interrupt, ("text", "rather this"))
            return try stage.node.entries(Stalled.name).last { $0["type"] == "turn.completed" }?["output"]
        }
        #expect(output == ["x"])
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

    @Test func `close for the turn that stalled ends the agent`() throws {
        let closed = try SimulatedNode.simulate { try Stalled().send(.close, ("if_turn", .string(Offset(1).token))) }
        #expect(closed.receipt == "applied" && closed.types.last == "agent.closed")
    }

    @Test func `none is a program that another kind was declared with`() throws {
        let entries = try SimulatedNode.simulate {
            let stage = try Stalled()
            for number in 0..<3 {
                try stage.node.runtime.declare([agent("kind\(number)") { _, _ in .null }])
                stage.run()
                stage.node.send("y", to: Stalled.name)
                stage.run()
            }
            return try stage.node.entries(Stalled.name)
        }
        #expect(entries.count { $0["type"] == "agent.stalled" } == 1, "\(short(entries))")
    }

    /// While the agent is in memory, and when it has left it.
    @Test(arguments: [1, 100])
    func `resume goes by the program that is declared by then`(seconds: Int) throws {
        let entries = try SimulatedNode.simulate {
            let stage = try Stalled()
            stage.node.send(.signal, ("name", "another"))
            stage.world.run(deadline: stage.world.now.advanced(by: .seconds(1)))
            try stage.node.runtime.declare([
                agent { _, turn in
                    _ = try await turn.wait(for: "never", timeout: .seconds(100_000))
                    return "whole"
                }
            ])
            stage.world.run(deadline: stage.world.now.advanced(by: .seconds(seconds)))
            stage.node.send(.resume)
            stage.run()
            stage.node.send(.signal, ("name", "never"))
            stage.run()
            return try stage.node.entries(Stalled.name)
        }
        #expect(entries.last?["output"] == "whole", "\(short(entries))")
    }
}
