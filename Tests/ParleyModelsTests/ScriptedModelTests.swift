import ParleyAgents
import ParleySystem
import Testing

@testable import ParleyModels

@Suite struct `The scripted model` {
    func options(_ text: String) throws -> ScriptedModel.Options { try ScriptedModel.Options(parsing: text) }

    func request(_ text: String, _ options: ModelOptions = ModelOptions(), continuing: String? = nil) -> ModelRequest {
        ModelRequest(
            messages: [.system("Be brief."), .user("earlier"), .assistant("yes"), .user(text)], options: options, continuing: continuing)
    }

    func answer(_ spec: String, _ request: ModelRequest) throws -> ScriptedAnswer { ScriptedAnswer(to: request, try options(spec)) }

    /// Returns the model's events in a world of its own, and how long they took.
    func hear(_ spec: String, _ request: ModelRequest) throws -> (sink: RecordingSink, took: Duration) {
        let world = ManualWorld()
        let start = world.now
        let sink = RecordingSink()
        _ = ScriptedModel(try options(spec), world: world).start(request, sink)
        #expect(sink.events.isEmpty, "no event may come inside start")
        world.run()
        return (sink, start.duration(to: world.now))
    }

    @Test(arguments: ["", "tokens=300", "rate=0", "rate=0,tokens=7", "tokens=0", "tokens=1,rate=1", "rate=5000", "tokens=299,rate=3"])
    func `says its tokens, its usage and its end`(spec: String) throws {
        let options = try options(spec)
        let (sink, _) = try hear(spec, request("Hello"))
        let expected = try answer(spec, request("Hello"))
        #expect(expected.tokens.count == options.tokens)
        #expect(sink.events == expected.tokens.map(ModelEvent.text) + [.usage(expected.usage), .finished(reason: "stop")])
    }

    @Test func `says the same for the same prompt and seed, and something else for others`() throws {
        let texts = try [("", "Hello"), ("seed=2", "Hello"), ("", "Hello!"), ("seed=2", "Hello!")].map {
            try answer($0.0, request($0.1)).tokens.joined()
        }
        #expect(Set(texts).count == 4)
        #expect(try answer("", request("Hello")).tokens.joined() == texts[0])
        #expect(try answer("", request("Hello", ModelOptions(seed: 9))).tokens.joined() != texts[0])
        // Changing this text breaks the journals of people who replay with it; do so knowingly.
        let text = try answer("tokens=30", request("Hello")).tokens.joined()
        #expect(
            text
                == "You said \"Hello\". Here is what the scripted model makes of it. Every morning the steady sparrow finds the garden without a word! On."
        )
    }

    @Test func `says of a tool that it is not offered that there is none, and which there are`() throws {
        var asked = request("call: nosuch {}")
        #expect(try answer("", asked).tokens.joined() == "There is no tool nosuch; this agent has none.")
        asked.tools = ["a", "b"].map { ToolDefinition(name: $0, description: "", parameters: .object([])) }
        let answer = try answer("", asked)
        #expect(answer.tokens.joined() == "There is no tool nosuch; this agent has a, b." && answer.calls.isEmpty)
        asked.messages[3].text = "say: Here.\ncall: a {}"
        let known = try self.answer("", asked)
        #expect(known.tokens.joined() == "Here." && known.calls.map(\.name) == ["a"])
    }

    @Test func `keeps its rate`() throws {
        #expect(try hear("tokens=120", request("Hello")).took == .seconds(3))
        #expect(try hear("tokens=300,rate=3", request("Hello")).took == .seconds(100))
        #expect(try hear("tokens=300,rate=0", request("Hello")).took == .zero)
        #expect(try hear("tokens=5000,rate=5000", request("Hello")).took == .seconds(1))
    }

    @Test func `has tokens like a model's`() {
        #expect(
            ScriptedText.tokens(of: "It's one, two.\n\nThree – \"four\" 🦊") == [
                "It's", " one", ",", " two", ".", "\n\n", "Three", " –", " \"", "four", "\"", " 🦊",
            ])
        #expect(ScriptedText.tokens(of: "") == [])
        for text in ["a  b", " a", "a ", "\n a\r\nb", "x\u{301}y", "...", "\"a\" 'b'"] {
            #expect(ScriptedText.tokens(of: text).joined() == text)
        }
    }

    @Test(arguments: ["", "Hello", "Où est le café 🦊 ?", "x\u{301}\u{301} combining", String(repeating: "long ", count: 100)])
    func `continues from wherever its answer was cut`(prompt: String) throws {
        let full = try answer("tokens=90", request(prompt)).tokens.joined()
        let bytes = Bytes(full.utf8)
        for cut in 0...bytes.count {
            // Text in a log ends at a Unicode scalar.
            guard cut == bytes.count || bytes[cut] & 0xC0 != 0x80 else { continue }
            var prefix = Bytes(bytes[..<cut]).text
            while let last = prefix.unicodeScalars.last, last.properties.isWhitespace { prefix.unicodeScalars.removeLast() }
            let rest = try answer("tokens=90", request(prompt, continuing: prefix))
            #expect(rest.finishReason == "stop")
            #expect(Bytes((prefix + rest.tokens.joined()).utf8) == bytes, "cut at \(cut)")
            // With the white space left on, it is sent again, for the reader to drop.
            let kept = try answer("tokens=90", request(prompt, continuing: Bytes(bytes[..<cut]).text))
            #expect(kept == rest || kept.tokens == rest.tokens, "cut at \(cut)")
        }
    }

    @Test func `has nothing to add to a finished answer`() throws {
        let full = try answer("", request("Hello")).tokens.joined()
        let (sink, _) = try hear("", request("Hello", continuing: full + "\n"))
        #expect(sink.events.count == 2 && sink.finish == "stop")
    }

    @Test func `starts over when it does not continue`() throws {
        let full = try answer("", request("Hello")).tokens.joined()
        #expect(try hear("continues=no", request("Hello", continuing: String(full.prefix(20)))).sink.text == full)
    }

    @Test func `stops at max_tokens and at a stop text`() throws {
        let (sink, _) = try hear("", request("Hello", ModelOptions(maxTokens: 5)))
        #expect(sink.finish == "length" && sink.events.count == 7)
        #expect(try hear("tokens=5", request("Hello", ModelOptions(maxTokens: 5))).sink.finish == "stop")
        #expect(try hear("", request("say: one two END three", ModelOptions(stop: ["x", " END"]))).sink.text == "one two")
    }

    @Test func `does as it is told`() throws {
        #expect(try hear("", request(" say: Hello, world.\nBye ")).sink.text == "Hello, world.\nBye ")
        #expect(try hear("", request("say: Hello there", continuing: "Hello")).sink.text == " there")
        #expect(try hear("", request("I say: Hello")).sink.text.hasPrefix("You said \"I say: Hello\"."))
        let failure = try #require(try hear("", request("fail: model_rate_limited please")).sink.failure)
        #expect(failure.code == "model_rate_limited" && failure.retryable)
        #expect(try hear("", request("fail: model_bad_request")).sink.failure?.retryable == false)
    }

    @Test(arguments: ["rate=0", "rate=40"]) func `is silent after cancelling`(spec: String) throws {
        for steps in 0..<5 {
            let world = ManualWorld()
            let sink = RecordingSink()
            let call = ScriptedModel(try options(spec), world: world).start(request("Hello"), sink)
            for _ in 0..<steps { world.step() }
            let count = sink.events.count
            call.cancel()
            #expect(world.timerCount == 0)
            world.run()
            #expect(sink.events.count == count)
        }
    }

    @Test(arguments: ["rate=0", "rate=40"]) func `is silent at once when the sink cancels`(spec: String) throws {
        let world = ManualWorld()
        nonisolated(unsafe) var call: (any ModelCall)?  // Guard: everything here runs on the test's thread.
        let sink = RecordingSink { _ in call?.cancel() }
        call = ScriptedModel(try options(spec), world: world).start(request("Hello"), sink)
        world.run()
        #expect(sink.events.count == 1)
    }
}
