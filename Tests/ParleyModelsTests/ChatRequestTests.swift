import ParleyAgents
import ParleyHTTP
import ParleySystem
import Synchronization
import Testing

@testable import ParleyModels

@Suite struct `The request of a Chat Completions call` {
    func send(
        _ request: ModelRequest, _ change: (inout ChatCompletionsModel.Configuration) -> Void = { _ in }
    ) -> FakeTransport.Call {
        let transport = FakeTransport()
        _ = ChatCompletionsModel.test(transport, change).start(request, RecordingSink())
        return transport.calls[0]
    }

    @Test func `carries the messages, the options and the key`() {
        var request = ModelRequest(messages: [.system("Be brief."), .user("Hello")], idempotencyKey: "k-1")
        request.options = ModelOptions(maxTokens: 9, temperature: 0.5, seed: 3, stop: ["END"])
        let call = send(request)
        #expect(call.request.method == "POST")
        #expect(call.request.url == "http://user:secret@model.test:8080/v1/chat/completions")
        #expect(call.header("Authorization") == "Bearer " + ChatCompletionsModel.testKey)
        #expect(call.header("Idempotency-Key") == "k-1")
        #expect(call.header("Content-Type") == "application/json")
        #expect(
            call.body.text
                == #"{"model":"m1","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hello"}],"stream":true,"#
                + #""stream_options":{"include_usage":true},"max_tokens":9,"temperature":0.5,"seed":3,"stop":["END"]}"#)
    }

    @Test func `leaves out what is not set`() {
        let call = send(ModelRequest(messages: [.user("Hello")])) { $0.apiKey = nil }
        #expect(call.header("Authorization") == nil && call.header("Idempotency-Key") == nil)
        #expect(call.body.members?.map(\.name) == ["model", "messages", "stream", "stream_options"])
    }

    @Test func `names the bound as the server wants it`() {
        let request = ModelRequest(messages: [.user("Hello")], options: ModelOptions(maxTokens: 9))
        let configuration = ChatCompletionsModel.Configuration(baseURL: .openAI, apiKey: "k", model: "m")
        #expect(send(request) { $0 = configuration }.body["max_completion_tokens"] == 9)
    }

    @Test func `ends with the text to continue from`() {
        let call = send(ModelRequest(messages: [.user("Count")], continuing: "one, two,"))
        #expect(call.body["messages"]?.array?.last == ["role": "assistant", "content": "one, two,"])
        #expect(call.body["continue_final_message"] == nil)
    }

    @Test func `has vLLM's fields where they are wanted, and only with a prefix`() {
        let call = send(ModelRequest(messages: [.user("Count")], continuing: "one, two,")) { $0.sendsContinuationFields = true }
        #expect(call.body["continue_final_message"] == true && call.body["add_generation_prompt"] == false)
        #expect(send(ModelRequest(messages: [.user("Count")])) { $0.sendsContinuationFields = true }.body["continue_final_message"] == nil)
    }

    @Test func `offers tools, and says what was called and what came of it`() {
        let call = ToolCall(id: "c1", name: "note", arguments: "")
        let tool = ToolDefinition(name: "note", description: "Notes.", parameters: ["type": "object"])
        let sent = send(
            ModelRequest(messages: [.user("Go"), .assistant("", calls: [call]), .result("done", of: call)], tools: [tool])
        ).body
        #expect(
            sent["messages"]?.array?.dropFirst().map(\.text) == [
                #"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"note","arguments":"{}"}}]}"#,
                #"{"role":"tool","content":"done","tool_call_id":"c1"}"#,
            ])
        #expect(
            sent["tools"]?.text
                == #"[{"type":"function","function":{"name":"note","description":"Notes.","parameters":{"type":"object"}}}]"#)
    }

    /// The messages of what is sent, as `role: content`, with the ids of calls and results.
    func conversation(_ messages: ModelMessage...) -> [String] {
        (send(ModelRequest(messages: messages)).body["messages"]?.array ?? []).map { message in
            let calls = (message["tool_calls"]?.array ?? []).map {
                "\($0["id"]?.string ?? "-")(\($0["function"]?["arguments"]?.string ?? "-"))"
            }
            let content = message["content"].map { $0.string ?? $0.text } ?? "-"
            return ([message["role"]!.string!, content] + calls + [message["tool_call_id"]?.string].compactMap { $0 }).joined(
                separator: " ")
        }
    }

    @Test func `has no assistant's message that says nothing`() {
        let said = conversation(
            .system("s"), .user("one"), .assistant(""), .user("two"), .assistant(" \n"), .user("three"), .assistant("yes"))
        #expect(said == ["system s", "user one", "user two", "user three", "assistant yes"])
    }

    @Test(arguments: [
        (500, "Jinja Exception: After the optional system message, conversation roles must alternate user/assistant"),
        (400, "Unexpected role 'user' after role 'user'"), (422, "invalid request"), (400, ""),
    ])
    func `has what one party says in a row in one message, once that was refused`(status: Int, words: String) {
        let transport = FakeTransport { call in
            let roles = (call.body["messages"]?.array ?? []).map { $0["role"]!.string! }
            if zip(roles, roles.dropFirst()).contains(where: { $0 == $1 }) {
                call.head(status, [])
                call.send(words.isEmpty ? "" : #"{"error":{"message":"\#(words)"}}"#)
            } else {
                call.head()
                call.send(delta("Hi") + finishing() + done)
            }
            call.end()
        }
        let model = ChatCompletionsModel.test(transport)
        let request = ModelRequest(messages: [
            .system("s"), .user("one"), .assistant(""), .user("two"), .assistant("yes"), .assistant("and"), .user("three"),
        ])
        for _ in 0..<2 {
            let sink = RecordingSink()
            _ = model.start(request, sink)
            #expect(sink.finish == "stop")
        }
        #expect(transport.calls.count == 3)
        #expect(
            transport.calls.last?.body["messages"]?.array?.compactMap { $0["content"]?.string } == [
                "s", "one\n\ntwo", "yes\n\nand", "three",
            ])
    }

    /// Refuses a role behind another one, in words.
    static func refusing(_ role: String, behind other: String, _ status: Int, _ words: String) -> FakeTransport {
        FakeTransport { call in
            let roles = (call.body["messages"]?.array ?? []).map { $0["role"]!.string! }
            if zip(roles, roles.dropFirst()).contains(where: { $0 == other && $1 == role }) {
                call.head(status, [])
                call.send(words)
            } else {
                call.head()
                call.send(delta("Hi") + finishing() + done)
            }
            call.end()
        }
    }

    @Test(arguments: [
        (
            400,
            #"{"object":"error","message":"Unexpected role 'user' after role 'tool'","type":"invalid_request_message_order","code":"3230"}"#
        ),
        (500, #"{"error":{"message":"Conversation roles must alternate user/assistant/user/assistant/...","type":"server_error"}}"#),
    ])
    func `has a word of the assistant between a result and a user's message, once those were refused`(status: Int, words: String) {
        let transport = Self.refusing("user", behind: "tool", status, words)
        let model = ChatCompletionsModel.test(transport)
        let call = ToolCall(id: "a", name: "look", arguments: "{}")
        let request = ModelRequest(messages: [.user("go"), .assistant("", calls: [call]), .result("done", of: call), .user("be brief")])
        for _ in 0..<2 {
            let sink = RecordingSink()
            _ = model.start(request, sink)
            #expect(sink.finish == "stop")
        }
        let sent = transport.calls.map {
            ($0.body["messages"]?.array ?? []).map { "\($0["role"]!.string!) \($0["content"]?.string ?? "-")" }
        }
        #expect(sent.map(\.count) == [4, 5, 5])
        #expect(sent.last == ["user go", "assistant -", "tool done", "assistant OK.", "user be brief"])
    }

    @Test func `is sent once where a conversation is refused that has no user behind a result`() {
        let transport = Self.refusing("user", behind: "assistant", 400, #"{"error":{"message":"Unexpected role 'user'"}}"#)
        let sink = RecordingSink()
        _ = ChatCompletionsModel.test(transport).start(ModelRequest(messages: [.user("a"), .assistant("b"), .user("c")]), sink)
        #expect(sink.failure?.code == "model_bad_request" && transport.calls.count == 1)
    }

    @Test(arguments: [
        ("look", "look"), ("functions.look:0 ☃", "functions_look_0____"), ("evil\u{1B}[2J\n", "evil__2J_"), ("", "unnamed"),
        (String(repeating: "n", count: 5_000), String(repeating: "n", count: 64)),
    ])
    func `names a tool that a model made up in a form that all take`(name: String, sent: String) {
        let call = ToolCall(id: "a", name: name, arguments: "{}")
        let body = send(ModelRequest(messages: [.user("go"), .assistant("", calls: [call]), .result("there is none", of: call)])).body
        #expect(body["messages"]?.array?[1]["tool_calls"]?.array?.first?["function"]?["name"]?.string == sent)
    }

    @Test(arguments: [
        ("functions.look:0", true), ("a/b#c", true), (String(repeating: "i", count: 64), true), (String(repeating: "i", count: 65), false),
        ("a \"x\"", false), ("é", false), ("call_1__thought__" + String(repeating: "s", count: 900), true),
    ])
    func `sends ids back as they came, or shorter ones that stay a pair`(id: String, isKept: Bool) throws {
        let calls = [ToolCall(id: id, name: "look", arguments: "{}"), ToolCall(id: "b", name: "look", arguments: "{}")]
        let request = ModelRequest(messages: [.user("go"), .assistant("", calls: calls)] + calls.map { .result("done", of: $0) })
        let messages = try #require(send(request).body["messages"]?.array)
        let sent = try #require(messages[1]["tool_calls"]?.array).map { $0["id"]!.string! }
        #expect(messages.dropFirst(2).map { $0["tool_call_id"]!.string! } == sent)
        #expect(isKept ? sent[0] == id : sent[0].utf8.count == 9 && sent[0].allSatisfy { $0.isLetter || $0.isNumber })
        #expect(send(request).body["messages"]?.array == messages)
    }

    @Test func `is not sent again for messages in a row when the server is only busy`() {
        let transport = FakeTransport { call in
            call.head(503, [])
            call.end()
        }
        let sink = RecordingSink()
        _ = ChatCompletionsModel.test(transport).start(ModelRequest(messages: [.user("one"), .user("two")]), sink)
        #expect(sink.failure?.code == "model_unavailable" && transport.calls.count == 1)
    }

    @Test func `gives each call an id, arguments that are an object, and a result right behind it`() {
        let good = ToolCall(id: "a", name: "look", arguments: #"{"x":1}"#)
        let bad = ToolCall(id: "", name: "look", arguments: #"{"x":"#)
        let list = ToolCall(id: "b", name: "look", arguments: "[1]")
        let said = conversation(
            .user("go"), .assistant("", calls: [good, bad, list]), .result("", of: bad), .result("one", of: good), .user("and?"))
        #expect(
            said == [
                "user go", #"assistant null a({"x":1}) c00001001({}) b({})"#, "tool one a", "tool (empty) c00001001",
                "tool error: there is no result b", "user and?",
            ])
    }

    @Test func `gives back what an answer with calls wants to see again, until it is refused`() {
        var call = ToolCall(id: "a", name: "look", arguments: "{}")
        call.returned = ["extra_content": ["google": ["thought_signature": "c2ln"]], "function": ["thought": "f"]]
        let said: ModelMessage = .assistant("", calls: [call], returned: ["reasoning_content": "hm", "role": "system"])
        let request = ModelRequest(messages: [.user("go"), said, .result("done", of: call)])
        let transport = FakeTransport { call in
            if call.body["messages"]?.array?[1]["reasoning_content"] != nil {
                call.head(400, [])
                call.send(#"{"error":{"message":"property 'reasoning_content' is unsupported"}}"#)
            } else {
                call.head()
                call.send(delta("Hi") + finishing() + done)
            }
            call.end()
        }
        let sink = RecordingSink()
        let model = ChatCompletionsModel.test(transport)
        _ = model.start(request, sink)
        _ = model.start(request, RecordingSink())
        #expect(sink.finish == "stop")
        let sent = transport.calls.map { $0.body["messages"]!.array![1] }
        #expect(
            sent[0].text
                == #"{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"look","arguments":"{}","thought":"f"},"#
                + #""extra_content":{"google":{"thought_signature":"c2ln"}}}],"reasoning_content":"hm"}"#)
        #expect(sent.count == 3 && sent.dropFirst().allSatisfy { $0["reasoning_content"] == nil })
    }

    @Test func `leaves out what was refused, from then on`() {
        let transport = FakeTransport { call in
            if call.body["stream_options"] != nil {
                call.head(400, [])
                call.send(#"{"error":{"message":"unknown field stream_options"}}"#)
            } else {
                call.head()
                call.send(delta("Hi") + finishing() + done)
            }
            call.end()
        }
        let model = ChatCompletionsModel.test(transport)
        for _ in 0..<3 { _ = model.start(ModelRequest(messages: [.user("Hello")]), RecordingSink()) }
        #expect(transport.calls.map { $0.body["stream_options"] != nil } == [true, false, false, false])
    }

    @Test func `does not continue from a text once that was refused`() {
        let transport = FakeTransport { call in
            call.head(400, [])
            call.send(#"{"error":{"message":"Expected last role User or Tool"}}"#)
            call.end()
        }
        let model = ChatCompletionsModel.test(transport)
        #expect(model.continues == .prefix)
        let sink = RecordingSink()
        _ = model.start(ModelRequest(messages: [.user("Count")], continuing: "one,"), sink)
        #expect(sink.failure?.code == "prefix_refused" && sink.failure?.retryable == true)
        #expect(model.continues == .no)
    }

    @Test func `continues from texts after a refusal for another reason, until the same call is taken without its text`() {
        let transport = FakeTransport { call in
            let isContinuing = call.body["messages"]?.array?.last?["role"] == "assistant"
            call.head(isContinuing ? 400 : 200, [("content-type", isContinuing ? "application/json" : "text/event-stream")])
            call.send(isContinuing ? #"{"error":{"message":"The message is too rude"}}"# : delta("Hi") + finishing() + done)
            call.end()
        }
        let model = ChatCompletionsModel.test(transport)
        func ask(_ key: String, continuing: String?) -> String? {
            let sink = RecordingSink()
            _ = model.start(ModelRequest(messages: [.user("Count")], continuing: continuing, idempotencyKey: key), sink)
            return sink.failure?.code
        }
        #expect(ask("a", continuing: "one,") == "prefix_refused")
        #expect(model.continues == .prefix)
        #expect(ask("b", continuing: nil) == nil)
        #expect(model.continues == .prefix, "another call proves nothing")
        #expect(ask("a", continuing: nil) == nil)
        #expect(model.continues == .no)
    }

    @Test func `takes an empty prefix for none`() {
        #expect(send(ModelRequest(messages: [.user("Count")], continuing: "")).body["messages"]?.array?.count == 1)
    }
}

@Suite struct `Probing whether a model continues` {
    final class Answers: Sendable {
        private let given = Mutex<[Bool]>([])
        var all: [Bool] { given.withLock { $0 } }
        func take(_ answer: Bool) { given.withLock { $0.append(answer) } }
    }

    func probe(_ model: ChatCompletionsModel) -> [Bool] {
        let answers = Answers()
        model.probeContinuation { answers.take($0) }
        return answers.all
    }

    static func answering(_ text: String, refusesFields: Bool = false) -> FakeTransport {
        FakeTransport { call in
            if refusesFields, call.body["continue_final_message"] != nil {
                call.head(400, [])
            } else {
                call.head()
                call.send(delta(text) + finishing("length") + done)
            }
            call.end()
        }
    }

    @Test(arguments: [
        (" six, seven", true), (" Six, seven,", true), ("\nsix", true), ("six, seven", false), ("One, two, three", false),
        ("one, two, three, four, five, six", false),
        ("Sure! six", false), ("", false), (" ", false),
    ])
    func `goes by how the answer begins`(text: String, continues: Bool) {
        #expect(probe(.test(Self.answering(text), continues: .auto)) == [continues])
    }

    @Test func `is one small call, remembered for the server and the model`() {
        let transport = Self.answering(" six, seven")
        let probes = ContinuationProbes()
        let model = ChatCompletionsModel.test(transport, continues: .auto, probes: probes)
        #expect(probe(model) == [true])
        #expect(probe(model) == [true])
        #expect(probe(.test(transport, continues: .auto, probes: probes)) == [true])
        #expect(transport.calls.count == 1)
        #expect(transport.calls[0].body["max_tokens"] == 8 && transport.calls[0].body["temperature"] == 0.0)
        #expect(probe(.test(transport, continues: .auto, probes: probes) { $0.model = "m2" }) == [true])
        #expect(transport.calls.count == 2)
    }

    @Test func `tries vLLM's fields, and uses them where they were taken`() {
        let transport = Self.answering(" six, seven")
        let model = ChatCompletionsModel.test(transport, continues: .auto)
        #expect(probe(model) == [true])
        _ = model.start(ModelRequest(messages: [.user("Count")], continuing: "one,"), RecordingSink())
        #expect(transport.calls.map { $0.body["continue_final_message"] } == [true, true])
    }

    @Test func `does without the fields where they are refused`() {
        let transport = Self.answering(" six, seven", refusesFields: true)
        let model = ChatCompletionsModel.test(transport, continues: .auto)
        #expect(probe(model) == [true])
        _ = model.start(ModelRequest(messages: [.user("Count")], continuing: "one,"), RecordingSink())
        #expect(transport.calls.map { $0.body["continue_final_message"] } == [true, nil, nil])
    }

    @Test func `takes a refusal of the prefix for a no`() {
        let transport = FakeTransport {
            $0.head(422, [])
            $0.end()
        }
        let model = ChatCompletionsModel.test(transport, continues: .auto)
        #expect(probe(model) == [false] && probe(model) == [false])
        #expect(transport.calls.count == 2)
    }

    @Test(arguments: [401, 429, 500]) func `does not remember an upstream that could not be asked`(status: Int) {
        let transport = FakeTransport {
            $0.head(status, [])
            $0.end()
        }
        let model = ChatCompletionsModel.test(transport, continues: .auto)
        #expect(probe(model) == [false] && probe(model) == [false])
        #expect(transport.calls.count == 2)
    }

    @Test func `is shared by those who ask at the same time`() {
        let transport = FakeTransport()
        let model = ChatCompletionsModel.test(transport, continues: .auto)
        let answers = Answers()
        for _ in 0..<3 { model.probeContinuation { answers.take($0) } }
        #expect(transport.calls.count == 1 && answers.all.isEmpty)
        transport.calls[0].head()
        transport.calls[0].send(delta(" six") + finishing() + done)
        #expect(answers.all == [true, true, true])
    }

    @Test(arguments: [(Continuation.prefix, true), (.no, false)]) func `asks nobody where it is declared`(
        continues: Continuation, answer: Bool
    ) {
        let transport = FakeTransport()
        #expect(probe(.test(transport, continues: continues)) == [answer])
        #expect(transport.calls.isEmpty)
    }
}
