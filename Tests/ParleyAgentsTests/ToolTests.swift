import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private struct Note: Codable, Sendable { var text: String }

/// An agent whose model calls tools, in a simulated world.
private struct Desk {
    let world = SimulatedWorld(seed: 1)
    let node: SimulatedNode
    let name = "agents/probe/a"
    let ran = Counter()

    init(
        log: SimulatedLog = SimulatedLog(), approval: ToolApproval = .none, takes: Duration = .zero,
        model played: (any World) -> (any Model)? = { _ in nil }
    ) throws {
        let (world, ran) = (world, ran)
        var options = ScriptedModel.Options()
        (options.tokens, options.rate) = (60, 50)
        let model = played(world) ?? ScriptedModel(options, world: world)
        let tool = Tool("note", "Notes.", parameters: ["type": "object"], approval: approval) { (note: Note, context) in
            if takes > .zero { await pause(world, takes) }
            try Task.checkCancellation()
            ran.add(context.step.idempotencyKey)
            if note.text == "bad" { throw StepFailure(code: "no", message: "it is bad", retryable: false) }
            return "noted \(note.text)"
        }
        node = try SimulatedNode(
            world, log,
            agents: [agent { text, turn in .string(try await turn.respond("answer", model, [.user(text)], tools: [tool]).text) }])
    }

    func send(_ kind: EntryKind, _ members: (String, JSON?)...) {
        node.send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: name)
    }

    func run(for duration: Duration = .seconds(100)) { world.run(deadline: world.now.advanced(by: duration)) }

    func entries(_ type: String? = nil) throws -> [JSON] { try node.entries(name).filter { type == nil || $0["type"]?.string == type } }
}

@Suite struct `Tools` {
    /// Returns the agent's answer after it was told to make these calls.
    private func answer(_ message: String) throws -> String? {
        try SimulatedNode.simulate {
            let desk = try Desk()
            desk.send(.message, ("text", .string(message)))
            desk.run()
            return try desk.entries("turn.completed").last?["output"]?.string
        }
    }

    @Test func `a call is a step with its arguments, and its result reaches the model`() throws {
        let (entries, output) = try SimulatedNode.simulate {
            let desk = try Desk()
            desk.send(.message, ("text", .string(#"call: note {"text": "milk"}"#)))
            desk.run()
            return (try desk.entries("step.started"), try desk.entries("turn.completed").last?["output"]?.string)
        }
        #expect(entries.map { $0["kind"]?.string } == ["model", "tool", "model"])
        #expect(entries[1]["step"] == "tools/0/note")
        #expect(entries[1]["request"]?["arguments"] == ["text": "milk"])
        #expect(entries[1]["request"]?["call"] == "call_1")
        #expect(output == "The result: noted milk.")
    }

    @Test(arguments: [
        (#"call: note {"text": "bad"}"#, "The result: error: it is bad."),
        (#"call: note {"words": "milk"}"#, "error: the arguments do not fit"),
        ("call: note milk", "The result: error: the arguments are not a JSON object."),
        ("call: note [1]", "The result: error: the arguments are not a JSON object."),
        ("call: note", "error: the arguments do not fit"),
    ])
    func `whatever is wrong with a call is its result`(message: String, output: String) throws {
        #expect(try answer(message)?.contains(output) == true)
    }

    /// Returns the trace's lists of tool calls that no tool ran for, one list for each model step.
    private func notRun(_ desk: Desk) throws -> [[String]] {
        let channel = try #require(try desk.node.channels.find(desk.name))
        let trace = try AgentTrace(desk.node.channels, channel).answer(TraceQuery())
        let steps = (trace["turns"]?.array?.first?["steps"]?.array ?? []).filter { $0["kind"] == "model" }
        return steps.map { step in
            (step["calls_not_run"]?.array ?? []).map { "\($0["call"]!.string!) \($0["name"]!.string!): \($0["result"]!.string!)" }
        }
    }

    @Test func `a call that is refused before it runs is in the trace, with what the model was told`() throws {
        let calls: [ModelEvent] = [(0, "note", #"{"text": "milk"}"#), (1, "note", "[1]"), (2, "paint", "{}")].map {
            index, name, arguments in
            .toolCall(index: index, id: "call_\(index)", name: name, arguments: arguments)
        }
        let (notRun, count) = try SimulatedNode.simulate {
            // The same ids in each answer, as some endpoints have them.
            let desk = try Desk { world in
                PlayedModel(
                    world, calls + [.finished(reason: "tool_calls")], [calls[0], .finished(reason: "tool_calls")],
                    [.text("done"), .finished(reason: "stop")])
            }
            desk.send(.message, ("text", "go"))
            desk.run()
            return (try self.notRun(desk), try desk.entries("step.started").count { $0["kind"] == "tool" })
        }
        #expect(
            notRun == [
                [
                    "call_1 note: error: the arguments are not a JSON object",
                    "call_2 paint: error: there is no tool 'paint'; there are: note",
                ],
                [], [],
            ])
        #expect(count == 2)
    }

    @Test func `a call that is denied is in the trace, with what the model was told`() throws {
        let notRun = try SimulatedNode.simulate {
            let desk = try Desk(approval: .required(expires: nil))
            desk.send(.message, ("text", .string(#"call: note {"text": "milk"}"#)))
            desk.run()
            desk.send(.deny, ("approval", try desk.entries("approval.requested").first?["approval"]), ("reason", "no"))
            desk.run()
            return try self.notRun(desk)
        }
        #expect(notRun == [["call_1 note: denied by ann: no"], []])
    }

    @Test func `calls of one answer run side by side, and their results keep their order`() throws {
        let output = try answer(
            """
            say: Both.
            call: note {"text": "a"}
            call: note {"text": "b"}
            """)
        #expect(output == "The result: noted a; noted b.")
    }

    @Test func `a tool behind approval runs after it, once, and its refusal is its result`() throws {
        for (decision, output, runs) in [(EntryKind.approve, "The result: noted milk.", 1), (.deny, "The result: denied by ann: no.", 0)] {
            let result = try SimulatedNode.simulate {
                let desk = try Desk(approval: .required(expires: .seconds(1_000)))
                desk.send(.message, ("text", .string(#"call: note {"text": "milk"}"#)))
                desk.run()
                let request = try desk.entries("approval.requested").first!
                let before = desk.ran["agents/probe/a/\(request["turn"]!.string!)/tools/0/note"]
                desk.send(
                    decision, ("approval", request["approval"]), ("args_sha256", request["args_sha256"]), ("reason", "no"))
                desk.run()
                return (
                    request, before, desk.ran["agents/probe/a/\(request["turn"]!.string!)/tools/0/note"],
                    try desk.entries("turn.completed").last?["output"]?.string
                )
            }
            #expect(result.0["action"] == "note" && result.0["args"] == ["text": "milk"])
            #expect(result.1 == 0 && result.2 == runs)
            #expect(result.3 == output)
        }
    }

    @Test(arguments: [
        (#"{"text":"evil","text":"safe"}"#, "'text' is given twice"), (#"{"text":"evil","t\u0065xt":"safe"}"#, "'text' is given twice"),
        (#"{"text":"milk","more":{"a":1,"a":2}}"#, "'a' is given twice"),
        (#"{"text":"milk","n":[12345678901234567890]}"#, "'n[0]' is 12345678901234567890"),
        (#"{"text":"milk","n":1e400}"#, "'n' is 1e400"),
    ])
    func `arguments that can be read in two ways are a result with an error: nobody is asked, nothing runs`(
        arguments: String, error: String
    ) throws {
        let (asked, ran, output) = try SimulatedNode.simulate {
            let desk = try Desk(approval: .required(expires: nil))
            desk.send(.message, ("text", .string("call: note \(arguments)")))
            desk.run()
            return (
                try desk.entries("approval.requested").count, try desk.entries("step.started").filter { $0["kind"] == "tool" }.count,
                try desk.entries("turn.completed").last?["output"]?.string
            )
        }
        #expect(asked == 0 && ran == 0)
        #expect(output?.contains(error) == true)
    }

    @Test func `repeated names run no tool that asks nobody either`() throws {
        let (ran, output) = try SimulatedNode.simulate {
            let desk = try Desk()
            desk.send(.message, ("text", #"call: note {"text":"evil","text":"safe"}"#))
            desk.run()
            return (
                try desk.entries("step.started").filter { $0["kind"] == "tool" }.count,
                try desk.entries("turn.completed").last?["output"]?.string
            )
        }
        #expect(ran == 0 && output?.contains("given twice") == true)
    }

    @Test(arguments: ["1.0", "1", "1e2", "-0", "1.50"])
    func `what is approved shows the numbers that came, and hashes what they come to`(number: String) throws {
        let request = try SimulatedNode.simulate {
            let desk = try Desk(approval: .required(expires: nil))
            desk.send(.message, ("text", .string(#"call: note {"text":"milk","n":\#(number)}"#)))
            desk.run()
            return try desk.entries("approval.requested").first!
        }
        #expect(request["args"]?.text == #"{"text":"milk","n":\#(number)}"#)
        let value = Double(number)!
        let canonical = #"{"n":\#(value == value.rounded() ? String(Int(value)) : String(value)),"text":"milk"}"#
        #expect(request["args_sha256"]?.string == SHA256.hex(Bytes(canonical.utf8)))
    }

    @Test func `bad arguments are refused before anybody is asked`() throws {
        let (asked, output) = try SimulatedNode.simulate {
            let desk = try Desk(approval: .required(expires: nil))
            desk.send(.message, ("text", "call: note {}"))
            desk.run()
            return (try desk.entries("approval.requested").count, try desk.entries("turn.completed").last?["output"]?.string)
        }
        #expect(asked == 0 && output?.contains("do not fit") == true)
    }

    @Test func `an interrupt with a text during a tool makes its result interrupted, and the model hears the text`() throws {
        let (failed, parts, output) = try SimulatedNode.simulate {
            let desk = try Desk(takes: .seconds(30))
            desk.send(.message, ("text", .string(#"call: note {"text": "milk"}"#)))
            desk.run(for: .seconds(5))
            desk.send(.interrupt, ("text", "say: never mind"))
            desk.run()
            return (
                try desk.entries("step.failed").first, try desk.entries("step.started").last?["request"]?["parts"]?.array,
                try desk.entries("turn.completed").last?["output"]?.string
            )
        }
        #expect(failed?["error"]?["code"] == "interrupted")
        #expect(parts?.map { $0["role"]?.string } == ["user", "assistant", "tool", "user"])
        #expect(output == "never mind")
    }

    @Test func `an interrupt without a text during a tool ends the turn as interrupted`() throws {
        let last = try SimulatedNode.simulate {
            let desk = try Desk(takes: .seconds(30))
            desk.send(.message, ("text", .string("say: Let me note it.\n" + #"call: note {"text": "milk"}"#)))
            desk.run(for: .seconds(5))
            desk.send(.interrupt)
            desk.run()
            return try desk.entries().last
        }
        #expect(last?["type"] == "turn.interrupted" && last?["output"]?.string?.hasPrefix("Let me note it.") == true)
    }

    @Test func `a steer during a tool joins the next request, behind the result`() throws {
        let (receipt, parts) = try SimulatedNode.simulate {
            let desk = try Desk(takes: .seconds(3))
            desk.send(.message, ("text", .string(#"call: note {"text": "milk"}"#)))
            desk.run(for: .seconds(1))
            desk.send(.steer, ("text", "and be brief"))
            desk.run()
            return (try desk.entries("receipt").last, try desk.entries("step.started").last?["request"]?["parts"]?.array)
        }
        #expect(receipt?["state"] == "applied" && receipt?["step"] == "answer#2")
        #expect(parts?.map { $0["role"]?.string } == ["user", "assistant", "tool", "user"])
    }

    @Test func `a steer and an interrupt after it stay in their order in every request, also after a crash`() throws {
        let (steer, interrupt, requests, types) = try SimulatedNode.simulate {
            let desk = try Desk(takes: .seconds(30))
            desk.send(.message, ("text", "Tell me about tea."))
            desk.run(for: .milliseconds(300))
            desk.send(.steer, ("text", "Only green tea."))
            desk.send(.interrupt, ("text", .string(#"call: note {"text": "milk"}"#)))
            desk.run(for: .seconds(2))
            // The process ends while the tool runs; the turn replays what came before.
            let next = try Desk(log: desk.node.log.reopen())
            next.run()
            let entries = try next.entries()
            let requests = entries.filter { $0["type"] == "step.started" && $0["kind"] == "model" }.map { $0["request"]?["parts"]?.array ?? [] }
            return (
                entries.first { $0["type"] == "steer" }?["offset"], entries.first { $0["type"] == "interrupt" }?["offset"], requests,
                entries.compactMap { $0["type"]?.string }
            )
        }
        #expect(!types.contains("agent.stalled") && types.last == "turn.completed")
        #expect(requests.count == 3 && requests.dropFirst().allSatisfy { $0.count >= 4 }, "\(requests)")
        for parts in requests.dropFirst() where parts.count >= 4 {
            #expect(parts[0..<4].map { $0["role"]?.string } == ["user", "assistant", "user", "user"])
            #expect(parts[2]["offset"] == steer && parts[3]["offset"] == interrupt, "\(parts)")
        }
    }

    @Test func `a steer and an interrupt after it stay in their order when a tool is interrupted`() throws {
        let (request, output) = try SimulatedNode.simulate {
            let desk = try Desk(takes: .seconds(30))
            desk.send(.message, ("text", .string(#"call: note {"text": "milk"}"#)))
            desk.run(for: .seconds(5))
            desk.send(.steer, ("text", "and be brief"))
            desk.send(.interrupt, ("text", "say: never mind"))
            desk.run()
            let call = try desk.entries("step.started").last
            let channel = try desk.node.channels.find(desk.name)!
            let offset = Offset(token: call?["offset"]?.string ?? "")?.value ?? 0
            return (try AgentRequest(desk.node.channels, channel).answer(offset), try desk.entries("turn.completed").last?["output"])
        }
        #expect(request["messages"]?.array?.suffix(2).map { $0["text"] } == ["and be brief", "say: never mind"])
        #expect(output == "never mind")
    }

    @Test func `a model that calls for ever is stopped`() throws {
        let (code, steps) = try SimulatedNode.simulate {
            let (world, model) = (SimulatedWorld(seed: 1), CallingModel())
            let tool = Tool("note", "Notes.", parameters: ["type": "object"]) { (_: Note, _) in "x" }
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [agent { text, turn in .string(try await turn.respond("a", model, [.user(text)], tools: [tool], rounds: 5).text) }])
            node.send("go", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            let entries = try node.entries("agents/probe/a")
            return (entries.last?["error"]?["code"]?.string, entries.count { $0["type"] == "step.started" && $0["kind"] == "model" })
        }
        #expect(code == "tool_loop" && steps == 5)
    }

    @Test func `a text that a call follows is not continued after a crash, but begun again`() throws {
        let (attempts, output, marks) = try SimulatedNode.simulate {
            let (world, log, model) = (SimulatedWorld(seed: 1), SimulatedLog(), HangingModel())
            let tool = Tool("note", "Notes.", parameters: ["type": "object"]) { (_: Note, _) in "x" }
            let agents = [agent { text, turn in .string(try await turn.respond("a", model, [.user(text)], tools: [tool]).text) }]
            let node = try SimulatedNode(world, log, agents: agents)
            node.send("go", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            let later = SimulatedWorld(seed: 2, now: world.now)
            let second = try SimulatedNode(later, log, agents: agents)
            later.run(deadline: later.now.advanced(by: .seconds(100)))
            let entries = try second.entries("agents/probe/a")
            return (
                entries.filter { $0["type"] == "step.started" }, entries.last?["output"]?.string,
                entries.count { $0["type"] == "text" && $0["delta"] == "" }
            )
        }
        #expect(attempts.count == 2 && attempts[1]["attempt"] == 2 && attempts[1]["continues_at"] == nil)
        #expect(output == "Done.")
        #expect(marks == 1)
    }
}

private final class NoCall: ModelCall { func cancel() {} }

/// Calls a tool in every answer.
private struct CallingModel: Model {
    let name = "calling"
    let continues = Continuation.no

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        sink.received(.toolCall(index: 0, id: "c", name: "note", arguments: #"{"text":"x"}"#))
        sink.received(.finished(reason: "tool_calls"))
        return NoCall()
    }
}

/// Writes a text, begins a call and then hangs; asked again, it answers.
private final class HangingModel: Model {
    let name = "hanging"
    let continues = Continuation.prefix
    private let calls = Counter()

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        calls.add("calls")
        if calls["calls"] == 1 {
            sink.received(.text("Let me"))
            sink.received(.text(" see."))
            sink.received(.toolCall(index: 0, id: "c", name: "note", arguments: "{"))
        } else {
            sink.received(.text(request.continuing == nil ? "Done." : "wrong"))
            sink.received(.finished(reason: "stop"))
        }
        return NoCall()
    }
}

/// Arguments whose errors have other words each time, as those of a library have from version to version.
private struct Moody: Decodable, Sendable {
    static let said = Atomic<Int>(0)

    init(from decoder: any Decoder) throws {
        let count = Moody.said.add(1, ordering: .relaxed).newValue
        throw DecodingError.dataCorrupted(.init(codingPath: decoder.codingPath, debugDescription: "for the \(count). time"))
    }
}

@Suite struct `What a model is told of arguments that do not fit` {
    @Test func `has the same words on every replay`() throws {
        let entries = try SimulatedNode.simulate {
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 1_000_000))
            for life in 0..<3 {
                let world = SimulatedWorld(seed: 1, now: now)
                var options = ScriptedModel.Options()
                (options.tokens, options.rate) = (60, 50)
                let model = ScriptedModel(options, world: world)
                let tool = Tool("note", "Notes.", parameters: ["type": "object"]) { (_: Moody, _) in "" }
                let node = try SimulatedNode(
                    world, log,
                    agents: [
                        agent { text, turn in
                            let answer = try await turn.respond("answer", model, [.user(text)], tools: [tool]).text
                            try await turn.sleep(.seconds(1_000))
                            return .string(answer)
                        }
                    ])
                if life == 0 { node.send("call: note {}", to: "agents/probe/a") }
                now = world.now.advanced(by: .seconds(100))
                world.run(deadline: life == 2 ? now.advanced(by: .seconds(1_000)) : now)
                if life == 2 { return try node.entries("agents/probe/a") }
                log = log.reopen()
            }
            return []
        }
        #expect(entries.last?["type"] == "turn.completed")
        #expect(entries.last?["output"]?.string?.contains("a value in it does not fit its type") == true)
    }

    private struct Order: Codable, Sendable {
        var item: String
        var count: Int8
        var parts: [Note]
    }

    @Test(arguments: [
        (#"{"count":1,"parts":[]}"#, "'item' is missing"), (#"{"item":1,"count":1,"parts":[]}"#, "'item' is a number; expected a string"),
        (#"{"item":null,"count":1,"parts":[]}"#, "'item' is null; expected a string"),
        (#"{"item":"a","count":1000,"parts":[]}"#, "a value in it does not fit its type"),
        (#"{"item":"a","count":1.5,"parts":[]}"#, "a value in it does not fit its type"),
        (#"{"item":"a","count":1,"parts":[{"text":"a"},{}]}"#, "'parts[1].text' is missing"),
        (#"{"item":"a","count":1,"parts":{}}"#, "'parts' is an object; expected an array"),
        (#"{"item":"a","count":"1","parts":[]}"#, "'count' is a string; expected a whole number"),
    ])
    func `names the place and what stands there`(arguments: String, words: String) throws {
        let output = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            var options = ScriptedModel.Options()
            (options.tokens, options.rate) = (60, 50)
            let model = ScriptedModel(options, world: world)
            let tool = Tool("order", "Orders.", parameters: ["type": "object"]) { (_: Order, _) in "" }
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [agent { text, turn in .string(try await turn.respond("answer", model, [.user(text)], tools: [tool]).text) }])
            node.send("call: order \(arguments)", to: "agents/probe/a")
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            return try node.entries("agents/probe/a").last?["output"]?.string
        }
        #expect(output?.contains(words) == true)
    }
}
