import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

/// An agent whose turns show the conversation that they see, and do what their text says.
private struct Talk {
    let world: SimulatedWorld
    let node: SimulatedNode
    let name = "agents/probe/a"

    /// - Parameter policy: How a message is handled that comes while a turn runs.
    init(
        _ log: SimulatedLog = SimulatedLog(), now: Timestamp = Timestamp(milliseconds: 0), policy: ConcurrentInput = .queue,
        historyBytes: Int = AnyAgent.historyBytesUsual
    ) throws {
        world = SimulatedWorld(seed: 3, now: now)
        var options = ScriptedModel.Options()
        (options.tokens, options.rate) = (30, 50)
        let model = ScriptedModel(options, world: world)
        let agent = AnyAgent(kind: "probe", policy: policy, historyBytes: historyBytes) { message, turn, _ in
            let before = JSON.array(turn.history.flatMap(\.messages).map { .string("\($0.role.rawValue): \($0.text)") })
            let text = message["text"]?.string ?? ""
            if text.hasPrefix("talk") {
                let first = try await turn.generate("one", model, .user("hello"))
                _ = first.redirection == nil ? try await turn.generate("two", model, .user("again")) : first
            }
            if text.hasPrefix("answer") { _ = try await turn.respond("one", model, [.user(text)], tools: []) }
            if text.hasPrefix("ask") { try await turn.approval("ask", of: ["text": JSON.string(text)]) }
            if text.hasPrefix("fail") { throw StepFailure(code: "told_to", message: "", retryable: false) }
            return (.object([JSON.Member("said", .string(text.count > 100 ? "much" : "did \(text)")), JSON.Member("before", before)]), [:])
        }
        node = try SimulatedNode(world, log, agents: [agent])
    }

    func run(for duration: Duration = .seconds(60)) { world.run(deadline: world.now.advanced(by: duration)) }

    func send(_ kind: EntryKind, _ text: String?, _ members: (String, JSON?)..., for duration: Duration = .seconds(60)) {
        node.send(NewEntry(kind, members: NewEntry.join([("by", "ann"), ("text", text.map { .string($0) })] + members)), to: name)
        run(for: duration)
    }

    /// The conversation that the last turn saw.
    func seen() throws -> [String] {
        try node.entries(name).last { $0["type"] == "turn.completed" }?["output"]?["before"]?.array?.map { text in
            text.string!.replacingOutputs
        } ?? ["no turn was completed"]
    }

    func types() throws -> [String] { try node.entries(name).map { $0["type"]!.string! } }
}

extension String {
    /// Outputs show the conversation that they saw; their own text is enough here.
    fileprivate var replacingOutputs: String {
        guard hasPrefix("assistant: {"), let json = try? JSON.parse(Array(dropFirst("assistant: ".count).utf8)) else { return self }
        return "assistant: \(json["said"]?.string ?? "")"
    }
}

@Suite struct `A conversation` {
    @Test func `has an interrupt that began a turn, also after the agent has been passivated`() throws {
        let (seen, types) = try SimulatedNode.simulate {
            let talk = try Talk()
            talk.send(.message, "one")
            talk.send(.interrupt, "two")
            // While it waits for an approval the agent is passivated; approved, it replays with what it has read from the log.
            talk.send(.message, "ask three", for: .seconds(300))
            talk.send(.approve, nil, ("approval", .string("\(Offset(9))/ask")))
            let approval = try talk.node.entries(talk.name).first { $0["type"] == "approval.requested" }
            talk.send(.approve, nil, ("approval", approval?["approval"]))
            return (try talk.seen(), try talk.types())
        }
        #expect(!types.contains("agent.stalled"))
        #expect(seen == ["user: one", "assistant: did one", "user: two", "assistant: did two"])
    }

    @Test func `beyond what is kept is the same on a replay`() throws {
        let (types, first, second) = try SimulatedNode.simulate {
            let talk = try Talk(historyBytes: 4_000)
            for number in 0..<12 { talk.send(.message, "\(number) " + String(repeating: "x", count: 900)) }
            talk.send(.message, "ask", for: .seconds(300))
            let started = try talk.node.entries(talk.name).last { $0["type"] == "turn.started" }
            let approval = try talk.node.entries(talk.name).first { $0["type"] == "approval.requested" }
            talk.send(.approve, nil, ("approval", approval?["approval"]))
            let seen = try talk.seen().count
            return (try talk.types(), seen, started?["history"]?.string)
        }
        #expect(!types.contains("agent.stalled") && types.last == "turn.completed")
        #expect((2...12).contains(first), "\(first) messages")
        #expect(second != nil)
    }

    @Test func `has what joined a turn as a steer`() throws {
        let seen = try SimulatedNode.simulate {
            let talk = try Talk()
            talk.send(.message, "talk", for: .milliseconds(200))
            talk.send(.steer, "be brief")
            talk.send(.message, "next")
            return try talk.seen()
        }
        #expect(seen == ["user: talk", "user: be brief", "assistant: did talk"])
    }

    @Test func `has a message that joined a turn by the agent's policy`() throws {
        let seen = try SimulatedNode.simulate {
            let talk = try Talk(policy: .steer)
            talk.send(.message, "talk", for: .milliseconds(200))
            talk.send(.message, "and this")
            talk.send(.message, "next")
            return try talk.seen()
        }
        #expect(seen == ["user: talk", "user: and this", "assistant: did talk"])
    }

    @Test func `has a redirection, behind what had been written until then`() throws {
        let (seen, partial) = try SimulatedNode.simulate {
            let talk = try Talk()
            talk.send(.message, "talk", for: .milliseconds(300))
            talk.send(.interrupt, "rather this")
            talk.send(.message, "next")
            let interrupted = try talk.node.entries(talk.name).first { $0["finish_reason"] == "interrupted" }
            return (try talk.seen(), interrupted?["text"]?.string ?? "")
        }
        #expect(!partial.isEmpty)
        #expect(seen == ["user: talk", "assistant: \(partial)", "user: rather this", "assistant: did talk"])
    }

    @Test func `has a steer and a redirection after it in log order, whichever was applied first`() throws {
        let (seen, partial, receipts) = try SimulatedNode.simulate {
            let talk = try Talk()
            talk.send(.message, "answer", for: .milliseconds(300))
            talk.send(.steer, "be brief", for: .zero)
            talk.send(.interrupt, "rather this")
            talk.send(.message, "next")
            let entries = try talk.node.entries(talk.name)
            let interrupted = entries.first { $0["finish_reason"] == "interrupted" }
            return (try talk.seen(), interrupted?["text"]?.string ?? "", entries.filter { $0["type"] == "receipt" }.map { $0["step"]?.string })
        }
        #expect(!partial.isEmpty && receipts.prefix(3) == [nil, "one", "one#2"])
        #expect(seen == ["user: answer", "assistant: \(partial)", "user: be brief", "user: rather this", "assistant: did answer"])
    }

    @Test func `leaves out turns that failed, and approvals`() throws {
        let seen = try SimulatedNode.simulate {
            let talk = try Talk()
            talk.send(.message, "fail")
            talk.send(.message, "ask")
            let approval = try talk.node.entries(talk.name).first { $0["type"] == "approval.requested" }
            talk.send(.approve, nil, ("approval", approval?["approval"]))
            talk.send(.message, "next")
            return try talk.seen()
        }
        #expect(seen == ["user: ask", "assistant: did ask"])
    }

    @Test func `is the same in the process after a crash`() throws {
        let (before, after) = try SimulatedNode.simulate {
            let talk = try Talk()
            talk.send(.message, "talk", for: .milliseconds(200))
            talk.send(.steer, "be brief")
            talk.send(.interrupt, "two")
            talk.send(.message, "three")
            let before = try talk.seen()
            let second = try Talk(talk.node.log.reopen(), now: talk.world.now)
            second.send(.message, "four")
            return (before, try second.seen())
        }
        #expect(before.count == 5)
        #expect(after.prefix(5).elementsEqual(before) && after.count == 7, "\(after)")
    }
}
