import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"
private let busy = ModelEvent.failed(StepFailure(code: "model_unavailable", message: "busy", retryable: true))
private let stop = ModelEvent.finished(reason: "stop")

/// An agent whose model is played, in a simulated world.
private struct Booth {
    let world: SimulatedWorld
    let node: SimulatedNode
    let model: PlayedModel

    init(
        log: SimulatedLog = SimulatedLog(), now: Timestamp = Timestamp(milliseconds: 1_767_225_600_000),
        _ model: (SimulatedWorld) -> PlayedModel,
        _ body: @escaping @Sendable (PlayedModel, String, Turn) async throws -> String
    ) throws {
        world = SimulatedWorld(seed: 1, now: now)
        let played = model(world)
        self.model = played
        node = try SimulatedNode(world, log, agents: [agent { text, turn in .string(try await body(played, text, turn)) }])
    }

    func send(_ kind: EntryKind, _ members: (String, JSON?)...) {
        node.send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: name)
    }

    func run(for duration: Duration = .seconds(600)) { world.run(deadline: world.now.advanced(by: duration)) }

    func entries(_ type: String) throws -> [JSON] { try node.entries(name).filter { $0["type"]?.string == type } }
}

@Suite struct `A step of a model` {
    @Test func `keeps what had joined its request for every attempt, and for the turn`() throws {
        let (requests, steers, journal) = try SimulatedNode.simulate {
            let booth = try Booth({ PlayedModel($0, [.text("one"), stop], [.text("tw"), busy], [busy], [.text("two"), stop]) }) {
                model, _, turn in
                _ = try await turn.generate("one", model, .user("hello"))
                try await turn.sleep(.seconds(1))
                return try await turn.generate("two", model, .user("again")).steers.joined()
            }
            booth.send(.message, ("text", "go"))
            booth.run(for: .milliseconds(200))
            booth.send(.steer, ("text", "be brief"))
            booth.run()
            return (
                booth.model.requests.map { $0.messages.map(\.text) }, try booth.entries("turn.completed").first?["output"],
                try booth.entries("step.completed").last?["steered"]
            )
        }
        #expect(requests == [["hello"], ["again", "be brief"], ["again", "be brief"], ["again", "be brief"]])
        #expect(steers == "be brief" && journal?.array?.count == 1)
    }

    @Test func `takes what steers it between two attempts into the next one`() throws {
        let requests = try SimulatedNode.simulate {
            let booth = try Booth({ PlayedModel($0, [.text("a"), busy], [.text("ok"), stop]) }) { model, text, turn in
                try await turn.generate("answer", model, .user(text)).text
            }
            booth.send(.message, ("text", "hello"))
            booth.run(for: .milliseconds(500))
            booth.send(.steer, ("text", "be brief"))
            booth.run()
            return booth.model.requests.map { $0.messages.map(\.text) }
        }
        #expect(requests == [["hello"], ["hello", "be brief"]])
    }

    @Test func `has its attempts counted by failures, not by the ends of processes`() throws {
        let (output, attempts) = try SimulatedNode.simulate {
            let log = SimulatedLog()
            var (reopened, now) = (log, Timestamp(milliseconds: 1_767_225_600_000))
            // Cut off five times in the middle of an answer, and then busy three times before it succeeds.
            for round in 0...5 {
                let booth = try Booth(
                    log: reopened, now: now,
                    { world in
                        round < 5
                            ? PlayedModel(world, [.text("a"), .text("b")])
                            : PlayedModel(world, [busy], [busy], [busy], [.text("done"), stop])
                    }
                ) { model, _, turn in try await turn.generate("g", model, .user("hello")).text }
                if round == 0 { booth.send(.message, ("text", "go")) }
                booth.run(for: round < 5 ? .milliseconds(500) : .seconds(600))
                guard round < 5 else {
                    return (try booth.entries("turn.completed").first?["output"], try booth.entries("step.started").count)
                }
                now = booth.world.now
                reopened = reopened.reopen()
            }
            return (nil, 0)
        }
        #expect(output == "done")
        #expect(attempts == 9)
    }

    @Test func `starts over when its text is refused, whatever the policy allows, and without that text`() throws {
        let refused = ModelEvent.failed(.prefixRefused("no prefill"))
        let (requests, output, failures) = try SimulatedNode.simulate {
            let booth = try Booth({
                PlayedModel($0, continues: .prefix, [.text("one, "), .text("two,"), busy], [refused], [.text("One, two, three."), stop])
            }) { model, _, turn in
                try await turn.generate("g", model, [.user("count")], retry: RetryPolicy(maximumAttempts: 2)).text
            }
            booth.send(.message, ("text", "go"))
            booth.run()
            return (
                booth.model.requests.map { $0.continuing ?? "-" }, try booth.entries("turn.completed").first?["output"],
                try booth.entries("step.failed").map { $0["error"]?["code"]?.string ?? "" }
            )
        }
        #expect(requests == ["-", "one, two,", "-"])
        #expect(output == "One, two, three.")
        #expect(failures == ["model_unavailable", "prefix_refused"])
    }

    @Test(arguments: [
        ("text", [ModelEvent](repeating: .text(String(repeating: "x", count: 1 << 20)), count: 5)),
        ("reasoning", [ModelEvent](repeating: .reasoning(String(repeating: "x", count: 1 << 20)), count: 5)),
        ("arguments", [.toolCall(index: 0, id: "a", name: "t", arguments: String(repeating: "x", count: (1 << 20) + 1))]),
        ("calls", (0..<129).map { .toolCall(index: $0, id: "\($0)", name: "t", arguments: "{}") }),
        ("an index", [.toolCall(index: .max, id: "a", name: "t", arguments: "{}")]),
        ("a negative index", [.toolCall(index: -1, id: "a", name: "t", arguments: "{}")]),
    ])
    func `whose answer is beyond its bounds fails once, aloud, and buys no more`(part: String, events: [ModelEvent]) throws {
        let (failures, calls, cancelled) = try SimulatedNode.simulate {
            let booth = try Booth({ PlayedModel($0, events + [.text("more"), stop]) }) { model, _, turn in
                try await turn.generate("g", model, .user("hello")).text
            }
            booth.send(.message, ("text", "go"))
            booth.run()
            return (
                try booth.entries("turn.failed").map { $0["error"]!["code"]!.string! }, booth.model.requests.count,
                booth.model.cancelledCalls
            )
        }
        #expect(failures == ["answer_too_large"], "\(part)")
        #expect(calls == 1 && cancelled == 1)
    }

    @Test func `gives each call an id of its own, and keeps what its endpoint wants back`() throws {
        let (calls, again) = try SimulatedNode.simulate {
            let booth = try Booth({
                PlayedModel(
                    $0,
                    [
                        .toolCall(index: 0, id: nil, name: "t", arguments: "{}"),
                        .toolCall(index: 0, id: nil, name: nil, arguments: #"{"x":1}"#),
                        .toolCall(index: 1, id: "same", name: "t", arguments: "{}"),
                        .toolCall(index: 2, id: "same", name: "t", arguments: ""),
                        .returned(call: 1, ["sign": "s"]), .returned(call: nil, ["reasoning_content": "hm"]),
                        .finished(reason: "tool_calls"),
                    ], [.text("done"), stop])
            }) { model, _, turn in
                let answer = try await turn.generate("g", model, .user("hello"))
                let said: ModelMessage = .assistant(answer.text, calls: answer.toolCalls, returned: answer.returned)
                return try await turn.generate("h", model, .user("hello"), said).text
            }
            booth.send(.message, ("text", "go"))
            booth.run()
            return (try booth.entries("step.completed").first?["tool_calls"]?.array ?? [], booth.model.requests.last)
        }
        #expect(calls.map { $0["arguments"]?.string } == [#"{"x":1}"#, "{}", ""])
        let ids = calls.compactMap { $0["id"]?.string }
        #expect(Set(ids).count == 3 && ids[1] == "same")
        #expect([ids[0], ids[2]].allSatisfy { $0.utf8.count == 9 && $0.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber) } })
        #expect(again?.messages.last?.returned == ["reasoning_content": "hm"])
        #expect(again?.messages.last?.toolCalls[1].returned == ["sign": "s"])
    }

    @Test func `waits no longer than a quarter of an hour, whatever is asked for`() throws {
        let failure = StepFailure(code: "model_rate_limited", message: "", retryable: true, retryAfter: .seconds(86_400 * 30))
        let times = try SimulatedNode.simulate {
            let booth = try Booth({ PlayedModel($0, [.failed(failure)], [.text("done"), stop]) }) { model, _, turn in
                try await turn.generate("g", model, .user("hello")).text
            }
            booth.send(.message, ("text", "go"))
            booth.run(for: .seconds(86_400))
            return try booth.entries("step.started").compactMap { $0["at"]?.string.flatMap { Timestamp($0) } }
        }
        #expect(times.count == 2)
        #expect((.seconds(900)...(.seconds(901))).contains(times[0].duration(to: times[1])))
    }
}

@Suite struct `An answer that was cut inside its calls` {
    private struct Note: Codable, Sendable { var text: String? }

    /// Returns the requests to the model in turn, how often the tool ran, and how the turn ended.
    private func play(_ answers: [[ModelEvent]]) throws -> (requests: [[String]], runs: Int, end: JSON) {
        let ran = Counter()
        let (requests, end) = try SimulatedNode.simulate {
            let booth = try Booth({ PlayedModel($0, answers: answers) }) { model, text, turn in
                let tool = Tool("note", "Notes.", parameters: ["type": "object"]) { (note: Note, _) in
                    ran.add("note")
                    return "noted \(note.text ?? "nothing")"
                }
                return try await turn.respond("answer", model, [.user(text)], tools: [tool], options: ModelOptions(maxTokens: 9)).text
            }
            booth.send(.message, ("text", "go"))
            booth.run()
            return (
                booth.model.requests.map { $0.messages.map { "\($0.role.rawValue): \($0.text)" } },
                try booth.node.entries(name).last { $0["type"]!.string!.hasPrefix("turn.") }!
            )
        }
        return (requests, ran["note"], end)
    }

    private func cut(_ arguments: String) -> [ModelEvent] {
        [.toolCall(index: 0, id: "a", name: "note", arguments: arguments), .finished(reason: "length")]
    }

    @Test(arguments: ["", #"{"text":"mi"#, #"{"text":"milk"}"#]) func `is not run, and the model is told why`(arguments: String) throws {
        let (requests, runs, end) = try play([cut(arguments), [.text("Sorry."), stop]])
        #expect(runs == 0)
        #expect(end["output"] == "Sorry.")
        #expect(
            requests.count == 2 && requests[1].last?.hasPrefix("tool: error: not run. the answer was cut at its limit of 9 tokens") == true)
    }

    @Test func `is not bought again and again`() throws {
        let (requests, runs, end) = try play([cut(#"{"text":"mi"#)])
        #expect(requests.count == 2 && runs == 0)
        #expect(end["error"]?["code"] == "answer_cut" && end["error"]?["message"]?.string?.contains("max_tokens") == true)
    }

    @Test func `may be followed by one that is whole, and by another cut one`() throws {
        let whole: [ModelEvent] = [.toolCall(index: 0, id: "a", name: "note", arguments: "{}"), .finished(reason: "tool_calls")]
        let (requests, runs, end) = try play([cut(""), whole, cut(""), [.text("done"), stop]])
        #expect(requests.count == 4 && runs == 1 && end["output"] == "done")
    }
}
