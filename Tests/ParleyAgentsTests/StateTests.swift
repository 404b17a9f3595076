import ParleyAgents
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/keeper/a"

/// Changes its state as a message's text says.
private struct Keeper: Agent {
    static let kind = "keeper"

    struct Limits: Codable, Sendable, Equatable {
        var daily: Int? = 10
        var total = 100
    }

    struct State: AgentState {
        var note: String? = "default"
        var plain: String?
        var limits = Limits()
        var tags: [String: Int] = ["a": 1]
    }

    func receive(_ text: String, _ turn: Turn, _ state: inout State) async throws -> String {
        switch text {
        case "clear":
            (state.note, state.plain, state.limits.daily) = (nil, nil, nil)
            state.tags["a"] = nil
        case "set": (state.note, state.plain, state.limits.daily) = ("n", "p", 5)
        case "fail": throw StepFailure(code: "no", message: "", retryable: false)
        default: break
        }
        return "\(state.note ?? "nil") \(state.plain ?? "nil") \(state.limits.daily.map(String.init) ?? "nil") \(state.tags["a"] ?? 0)"
    }
}

/// The same kind after its program was changed: with more properties.
private struct LaterKeeper: Agent {
    static let kind = "keeper"

    struct Limits: Codable, Sendable {
        var daily: Int? = 10
        var total = 100
        var weekly: Int? = 70
    }

    struct State: AgentState {
        var note: String? = "default"
        var limits = Limits()
        var added: String? = "added"
    }

    func receive(_ text: String, _ turn: Turn, _ state: inout State) async throws -> String {
        "\(state.note ?? "nil") \(state.limits.daily.map(String.init) ?? "nil") \(state.limits.weekly ?? 0) \(state.added ?? "nil")"
    }
}

/// Whose only property can leave nothing behind.
private struct Sparse: Agent {
    static let kind = "keeper"
    struct State: AgentState { var note: String? }

    func receive(_ text: String, _ turn: Turn, _ state: inout State) async throws -> String {
        if text != "read" { state.note = text == "clear" ? nil : text }
        return state.note ?? "nil"
    }
}

@Suite struct `An agent's state` {
    /// Sends the messages one after another, each to a process of its own, and gives the outputs.
    private func outputs(_ messages: [(text: String, agent: AnyAgent)]) throws -> [String?] {
        try SimulatedNode.simulate {
            var outputs: [String?] = []
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 1_000_000))
            for message in messages {
                let world = SimulatedWorld(seed: 1, now: now)
                let node = try SimulatedNode(world, log, agents: [message.agent])
                node.send(message.text, to: name)
                world.run(deadline: world.now.advanced(by: .seconds(100)))
                let end = try node.entries(name).last
                outputs.append(end?["output"]?.string ?? end?["error"]?["code"]?.string)
                log = log.reopen()
                now = world.now
            }
            return outputs
        }
    }

    @Test func `keeps nil over restarts, where the default is something else`() throws {
        let agent = AnyAgent(Keeper())
        let found = try outputs([
            ("read", agent), ("clear", agent), ("read", agent), ("set", agent), ("read", agent), ("clear", agent), ("read", agent),
        ])
        #expect(found == ["default nil 10 1", "nil nil nil 0", "nil nil nil 0", "n p 5 0", "n p 5 0", "nil nil nil 0", "nil nil nil 0"])
    }

    @Test func `that encodes to nothing is saved`() throws {
        let agent = AnyAgent(Sparse())
        #expect(try outputs([("a", agent), ("clear", agent), ("read", agent)]) == ["a", "nil", "nil"])
    }

    @Test func `gives what was added to its type a default, and leaves what was nil`() throws {
        #expect(try outputs([("clear", AnyAgent(Keeper())), ("read", AnyAgent(LaterKeeper()))])[1] == "nil nil 70 added")
        #expect(try outputs([("set", AnyAgent(Keeper())), ("read", AnyAgent(LaterKeeper()))])[1] == "n 5 70 added")
        // And back again.
        #expect(
            try outputs([("clear", AnyAgent(Keeper())), ("x", AnyAgent(LaterKeeper())), ("read", AnyAgent(Keeper()))])[2] == "nil nil nil 1"
        )
    }

    @Test func `that an earlier version saved is laid over the default`() throws {
        let old = AnyAgent(kind: "keeper") { _, _, _ in ("", ["note": "old", "limits": ["total": 3]]) }
        #expect(try outputs([("x", old), ("read", AnyAgent(Keeper()))])[1] == "old nil 10 1")
    }

    @Test func `stays that of the last completed turn when a turn fails`() throws {
        let agent = AnyAgent(Keeper())
        #expect(try outputs([("set", agent), ("fail", agent), ("read", agent)]) == ["n p 5 1", "no", "n p 5 1"])
    }
}
