import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

/// A node with one agent in a simulated world, and what a test wants to know of its channel.
private struct Stage {
    let world: SimulatedWorld
    let node: SimulatedNode
    let name = "agents/probe/a"

    init(
        seed: UInt64 = 1, now: Timestamp = Timestamp(milliseconds: 1_767_225_600_000), log: SimulatedLog = SimulatedLog(),
        _ agent: (any Model) -> AnyAgent
    ) throws {
        world = SimulatedWorld(seed: seed, now: now)
        var options = ScriptedModel.Options()
        (options.tokens, options.rate) = (60, 50)
        node = try SimulatedNode(world, log, agents: [agent(ScriptedModel(options, world: world))])
    }

    func send(_ kind: EntryKind, _ members: (String, JSON?)...) {
        node.send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: name)
    }

    func run(for duration: Duration) { world.run(deadline: world.now.advanced(by: duration)) }

    func entries(_ type: String? = nil) throws -> [JSON] { try node.entries(name).filter { type == nil || $0["type"]?.string == type } }

    /// The receipts as `<of> <state> <reason>`.
    func receipts() throws -> [String] {
        try entries("receipt").map { "\(Int($0["of"]!.string!, radix: 16)!) \($0["state"]!.string!) \($0["reason"]?.string ?? "")" }
    }
}

@Suite struct `Talking to a turn` {
    /// The text that the model would have written.
    private static func whole() -> String {
        var options = ScriptedModel.Options()
        options.tokens = 60
        return ScriptedAnswer(to: ModelRequest(messages: [.user("hello")]), options).tokens.joined()
    }

    @Test func `an interrupt keeps the partial, seals it and ends the turn as interrupted`() throws {
        let (end, partial, shown, receipts, whole) = try SimulatedNode.simulate {
            let stage = try Stage({ model in agent { _, turn in .string(try await turn.generate("g", model, .user("hello")).text) } })
            stage.send(.message, ("text", "go"))
            stage.run(for: .milliseconds(500))
            stage.send(.interrupt, ("reason", "enough"))
            stage.run(for: .seconds(60))
            let completed = try stage.entries("step.completed").first!
            let shown = try stage.entries("text").compactMap { $0["delta"]?.string }.joined()
            return (try stage.entries().last!, completed, shown, try stage.receipts(), Self.whole())
        }
        #expect(end["type"] == "turn.interrupted")
        #expect(partial["finish_reason"] == "interrupted")
        let text = partial["text"]!.string!
        #expect(!text.isEmpty && whole.hasPrefix(text) && text.count < whole.count)
        #expect(shown == text, "the newest piece is shown before the end that has it")
        #expect(end["output"]?.string == text)
        #expect(receipts.last?.hasSuffix("applied ") == true)
    }

    @Test func `an interrupt with a text gives the program the partial and the redirection`() throws {
        let (output, ends) = try SimulatedNode.simulate {
            let stage = try Stage({ model in
                agent { _, turn in
                    let first = try await turn.generate("g", model, .user("hello"))
                    return .string("\(first.finishReason) \(first.redirection ?? "") \(first.text.isEmpty)")
                }
            })
            stage.send(.message, ("text", "go"))
            stage.run(for: .milliseconds(500))
            stage.send(.interrupt, ("text", "in French"))
            stage.run(for: .seconds(60))
            return (try stage.entries("turn.completed").first?["output"]?.string, try stage.entries("turn.completed").count)
        }
        #expect(output == "interrupted in French false")
        #expect(ends == 1)
    }

    @Test func `an interrupt after the turn is refused, and with a text it becomes the next message`() throws {
        let (receipts, turns) = try SimulatedNode.simulate {
            let stage = try Stage({ model in agent { text, _ in .string(text) } })
            stage.send(.message, ("text", "one"))
            stage.world.settle()
            stage.send(.interrupt)
            stage.send(.interrupt, ("text", "two"))
            stage.world.settle()
            return (try stage.receipts(), try stage.entries("turn.completed").map { $0["output"]!.string! })
        }
        #expect(receipts.count == 3)
        #expect(receipts[1].hasSuffix("rejected turn_ended"))
        #expect(receipts[2].hasSuffix("applied "))
        #expect(turns == ["one", "two"])
    }

    @Test(arguments: 0..<300)
    func `an interrupt that races the end of a turn gives one of the two legal histories, and its receipt is true`(seed: Int) throws {
        let (types, receipts) = try SimulatedNode.simulate {
            let stage = try Stage(
                seed: UInt64(seed), { model in agent { _, turn in .string(try await turn.generate("g", model, .user("x")).text) } })
            stage.send(.message, ("text", "go"))
            var random = SplitMix64(seed: UInt64(seed))
            stage.run(for: .milliseconds(Int64(random.next() % 1_400)))
            let moments = random.next() % 20
            for _ in 0..<moments { stage.world.doOne() }
            stage.send(.interrupt)
            stage.run(for: .seconds(60))
            return (try stage.entries().map { $0["type"]!.string! }, try stage.receipts())
        }
        let isInterrupted = types.contains("turn.interrupted")
        #expect(isInterrupted != types.contains("turn.completed"))
        #expect(receipts.count == 2)
        #expect(receipts.contains { $0.hasSuffix("rejected turn_ended") } == !isInterrupted)
        #expect(receipts.filter { $0.hasSuffix("applied ") }.count == (isInterrupted ? 2 : 1))
    }

    @Test func `a steer joins the next model call, with a receipt that names its step`() throws {
        let (request, receipt, steers) = try SimulatedNode.simulate {
            let stage = try Stage({ model in
                agent { _, turn in
                    _ = try await turn.generate("one", model, .user("hello"))
                    let second = try await turn.generate("two", model, .user("hello again"))
                    return .array(second.steers.map { .string($0) })
                }
            })
            stage.send(.message, ("text", "go"))
            stage.run(for: .milliseconds(300))
            stage.send(.steer, ("text", "be brief"))
            stage.run(for: .seconds(100))
            let started = try stage.entries("step.started").last!
            return (started, try stage.entries("receipt").last!, try stage.entries("turn.completed").first?["output"])
        }
        #expect(request["steered"]?.array?.count == 1)
        #expect(request["request"]?["parts"]?.array?.last?["offset"] == request["steered"]?.array?.first)
        #expect(receipt["state"] == "applied" && receipt["step"] == "two")
        #expect(steers == ["be brief"])
    }

    @Test func `a steer that joined a call which failed is part of the attempts after it`() throws {
        let (calls, steers) = try SimulatedNode.simulate {
            let (world, model) = (SimulatedWorld(seed: 1), FailingModel(failures: 2))
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        try await turn.sleep(.seconds(1))
                        return .array(try await turn.generate("g", model, .user("hello")).steers.map { .string($0) })
                    }
                ])
            node.send("go", to: "agents/probe/a")
            node.send(NewEntry(.steer, members: NewEntry.join([("by", "ann"), ("text", "be brief")])), to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return (model.asked, try node.entries("agents/probe/a").last?["output"])
        }
        #expect(calls == Array(repeating: ["hello", "be brief"], count: 3))
        #expect(steers == ["be brief"])
    }

    @Test func `a steer that no call takes becomes the next message, or expires when it was meant for that turn`() throws {
        let (outputs, receipts) = try SimulatedNode.simulate {
            let stage = try Stage({ model in
                agent { text, turn in
                    try await turn.sleep(.seconds(1))
                    return .string(text)
                }
            })
            stage.send(.message, ("text", "one"))
            stage.world.settle()
            stage.send(.steer, ("text", "two"))
            stage.send(.steer, ("text", "three"), ("if_turn", "0000000000000001"))
            stage.run(for: .seconds(20))
            return (try stage.entries("turn.completed").map { $0["output"]!.string! }, try stage.receipts())
        }
        #expect(outputs == ["one", "two"])
        #expect(receipts.filter { $0.contains("expired") }.count == 1)
    }

    @Test func `a cancel ends steps and turn, leaves the state, and the next message runs`() throws {
        let (types, state) = try SimulatedNode.simulate {
            let stage = try Stage({ model in
                agent { text, turn in
                    if text == "long" { try await turn.sleep(.seconds(1_000_000)) }
                    return .string(text)
                }
            })
            stage.send(.message, ("text", "long"))
            stage.world.settle()
            stage.send(.cancel, ("reason", "no need"))
            stage.send(.message, ("text", "short"))
            stage.run(for: .seconds(100))
            var timers = 0
            try stage.node.log.scan(.timers, from: [0, 0], to: [0xFF], reversed: false) { _, _ in
                timers += 1; return true
            }
            return (try stage.entries().map { $0["type"]!.string! }.filter { $0.hasPrefix("turn.") || $0 == "step.failed" }, timers)
        }
        #expect(types == ["turn.started", "step.failed", "turn.cancelled", "turn.started", "turn.completed"])
        #expect(state == 0)
    }

    @Test func `an approval is bound to its arguments, decided once, and names who decided`() throws {
        let (decided, receipts, output) = try SimulatedNode.simulate {
            let stage = try Stage({ model in agent { _, turn in .string(try await turn.approval("pay", of: ["amount": 5, "to": 7])) } })
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(120))
            let request = try stage.entries("approval.requested").first!
            stage.send(.approve, ("approval", request["approval"]), ("args_sha256", "00"))
            stage.send(.approve, ("approval", request["approval"]), ("args_sha256", request["args_sha256"]))
            stage.send(.approve, ("approval", request["approval"]))
            stage.run(for: .seconds(10))
            return (
                try stage.entries("approval.decided"), try stage.receipts(), try stage.entries("turn.completed").first?["output"]?.string
            )
        }
        #expect(decided.count == 1 && decided[0]["decision"] == "approved" && decided[0]["decided_by"] == "ann")
        #expect(receipts.filter { $0.hasSuffix("rejected arguments_changed") }.count == 1)
        #expect(receipts.filter { $0.contains("rejected already_decided") || $0.contains("rejected unknown_approval") }.count == 1)
        #expect(output == "ann")
    }

    @Test func `an approval expires in the log, and a later decision is refused`() throws {
        let (output, receipts) = try SimulatedNode.simulate {
            let stage = try Stage({ model in
                agent { _, turn in
                    do { return .string(try await turn.approval("pay", of: [1], expires: .seconds(100))) } catch is ApprovalExpired {
                        return "expired"
                    }
                }
            })
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(200))
            let request = try stage.entries("approval.requested").first!
            stage.send(.approve, ("approval", request["approval"]))
            stage.run(for: .seconds(10))
            return (try stage.entries("turn.completed").first?["output"]?.string, try stage.receipts())
        }
        #expect(output == "expired")
        #expect(receipts.last?.contains("rejected") == true)
    }

    @Test func `a signal is kept until it is waited for, matched by its data, and a wait can time out`() throws {
        let outputs = try SimulatedNode.simulate {
            let stage = try Stage({ model in
                agent { _, turn in
                    let paid = try await turn.wait(for: "paid", match: ["order": 2])
                    do {
                        _ = try await turn.wait(for: "never", timeout: .seconds(50))
                        return "?"
                    } catch let failure as StepFailure { return .string("\(paid["amount"]?.integer ?? 0) \(failure.code)") }
                }
            })
            stage.send(.signal, ("name", "paid"), ("data", ["order": 1, "amount": 10]))
            stage.send(.signal, ("name", "paid"), ("data", ["order": 2, "amount": 20]))
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(300))
            return try stage.entries("turn.completed").map { $0["output"]!.string! }
        }
        #expect(outputs == ["20 wait_timeout"])
    }

    @Test(arguments: 0..<40)
    func `nothing that was sent is lost, whatever the process dies in`(crashAt: Int) throws {
        let (receipts, sent, ends) = try SimulatedNode.simulate {
            let probe = { @Sendable (model: any Model) in
                agent { text, turn in .string(try await turn.generate("g", model, .user(text)).text) }
            }
            let log = SimulatedLog(outcome: { commit, _ in
                commit == crashAt ? (crashAt % 3 == 0 ? .lost : .durableUnacknowledged) : .acknowledged
            })
            var stage = try Stage(seed: UInt64(crashAt), log: log, probe)
            let inputs: [(EntryKind, [(String, JSON?)])] = [
                (.message, [("text", "one")]), (.steer, [("text", "more")]), (.interrupt, [("text", "other")]),
                (.message, [("text", "two")]), (.cancel, []),
                (.signal, [("name", "s")]), (.message, [("text", "three")]),
            ]
            for (index, input) in inputs.enumerated() {
                stage.node.send(NewEntry(input.0, members: NewEntry.join([("by", "ann")] + input.1)), to: stage.name, key: "k\(index)")
                for _ in 0..<9 { stage.world.doOne() }
            }
            stage.run(for: .seconds(30))
            if log.crashed {
                stage = try Stage(seed: UInt64(crashAt) + 1_000, now: stage.world.now, log: log.reopen(), probe)
                for (index, input) in inputs.enumerated() {
                    stage.node.send(NewEntry(input.0, members: NewEntry.join([("by", "ann")] + input.1)), to: stage.name, key: "k\(index)")
                }
                stage.run(for: .seconds(300))
            }
            let entries = try stage.entries()
            let inputsInLog = entries.filter { ["message", "steer", "interrupt", "cancel"].contains($0["type"]!.string!) }.map {
                $0["offset"]!.string!
            }
            let receipts = entries.filter { $0["type"] == "receipt" }.map { $0["of"]!.string! }
            let starts = entries.filter { $0["type"] == "turn.started" }.count
            let ends = entries.filter {
                ["turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled"].contains($0["type"]!.string!)
            }.count
            return (receipts.sorted(), inputsInLog.sorted(), ends == starts)
        }
        #expect(sent.count == 6)
        #expect(receipts == sent)
        #expect(ends)
    }
}

/// Fails so many calls, then answers; remembers what it was asked.
private final class FailingModel: Model {
    private final class Call: ModelCall { func cancel() {} }

    let name = "failing"
    let continues = Continuation.no
    private let failures: Int
    private let calls = Mutex<[[String]]>([])

    init(failures: Int) { self.failures = failures }

    var asked: [[String]] { calls.withLock { $0 } }

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        let count = calls.withLock { calls in
            calls.append(request.messages.map(\.text))
            return calls.count
        }
        if count <= failures {
            sink.received(.failed(StepFailure(code: "model_unavailable", message: "gone", retryable: true)))
        } else {
            sink.received(.text("Hello."))
            sink.received(.finished(reason: "stop"))
        }
        return Call()
    }
}
