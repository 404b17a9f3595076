import ParleyAgents
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyModels

@Suite struct `The answer of a Chat Completions call` {
    /// Starts a call and plays `script` as its upstream.
    @discardableResult
    func hear(
        _ request: ModelRequest = ModelRequest(messages: [.user("Hello")]), _ script: @escaping @Sendable (FakeTransport.Call) -> Void
    ) -> RecordingSink {
        let sink = RecordingSink()
        _ = ChatCompletionsModel.test(FakeTransport(script)).start(request, sink)
        return sink
    }

    @Test func `is heard in pieces, with its usage, and then its end`() {
        let sink = hear {
            $0.head()
            $0.send("data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n")
            $0.send(delta("Hel") + delta("lo"))
            $0.send(finishing())
            $0.send("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":33,\"completion_tokens\":2}}\n\n" + done)
            $0.end()
        }
        #expect(
            sink.events == [.text("Hel"), .text("lo"), .usage(ModelUsage(inputTokens: 33, outputTokens: 2)), .finished(reason: "stop")])
    }

    @Test(arguments: [
        ("no usage", delta("Hi") + finishing() + done), ("no [DONE]", delta("Hi") + finishing()),
        ("no last empty line", delta("Hi") + finishing() + "data: [DONE]"),
        ("pings", ": ping\n\n" + delta("Hi") + ": ping\n\n" + finishing() + done),
        ("white space in another choice", delta("Hi") + "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\" \"}}]}\n\n" + finishing() + done),
        ("empty pieces", delta("") + delta("Hi") + finishing() + done),
        ("null error", "data: {\"choices\":[],\"error\":null}\n\n" + delta("Hi") + finishing() + done),
        ("more after the end", delta("Hi") + finishing() + done + delta("more") + "data: garbage\n\n"),
        ("CRLF", (delta("Hi") + finishing() + done).split(separator: "\n", omittingEmptySubsequences: false).joined(separator: "\r\n")),
    ])
    func `may lack or have what servers differ in`(name: String, stream: String) {
        for end in [nil, OutgoingError(code: "upstream_closed", message: "closed")]
        where end == nil || stream.contains("[DONE]\n") || name == "no [DONE]" {
            let sink = hear {
                $0.head()
                $0.send(stream)
                $0.end(end)
            }
            #expect(sink.events == [.text("Hi"), .finished(reason: "stop")], "\(name)")
        }
    }

    /// Some readers take the first of two values, some the last: nothing counts as said that the model may not have said.
    @Test(arguments: [
        (#"{"choices":[{"delta":{"content":"a"}}],"choices":[{"delta":{"content":"b"}}]}"#, "choices"),
        (#"{"choices":[{"delta":{"content":"a","content":"b"}}]}"#, "content"),
        (#"{"choices":[{"delta":{"content":"a","c\u006fntent":null}}]}"#, "content"),
        (#"{"choices":[{"delta":{"content":"a"},"delta":{"content":"b"}}]}"#, "delta"),
        (#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop","finish_reason":"length"}]}"#, "finish_reason"),
        (#"{"choices":[{"index":0,"index":1,"delta":{"content":"a"}}]}"#, "index"),
        (#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"1","function":{"name":"a","name":"b","arguments":"{}"}}]}}]}"#, "name"),
        (#"{"choices":[{"delta":{"tool_calls":[{"id":"1","function":{"arguments":"{}","arguments":"{\"x\":1}"}}]}}]}"#, "arguments"),
        (#"{"choices":[{"delta":{"reasoning_content":"a","reasoning_content":"b"}}]}"#, "reasoning_content"),
        (#"{"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1,"completion_tokens":2}}"#, "completion_tokens"),
        (#"{"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1},"usage":{"completion_tokens":NaN}}"#, "usage"),
    ])
    func `fails where a chunk can be read in two ways`(chunk: String, name: String) {
        for body in ["data: \(chunk)\n\n", chunk] {
            let sink = hear {
                $0.head()
                $0.send(body + (body == chunk ? "" : finishing() + done))
                $0.end()
            }
            #expect(sink.events.count == 1)
            #expect(sink.failure?.code == "model_invalid_response" && sink.failure?.retryable == false)
            #expect(sink.failure?.message.contains("has the member '\(name)' twice") == true, "\(sink.events)")
        }
    }

    @Test(arguments: [
        #"{"choices":[{"delta":{"content":"Hi","content":"Hi"}}]}"#,
        #"{"choices":[{"index":0,"index":0.0,"delta":{"content":"Hi","role":"assistant","role":"user"}}]}"#,
        #"{"id":"1","id":"2","choices":[{"delta":{"content":"Hi"}}],"created":1,"created":2}"#,
        #"{"choices":[{"delta":{"content":"Hi"},"logprobs":null,"logprobs":{"content":[1],"content":[2]}}]}"#,
        #"{"choices":[{"delta":{"content":"Hi"}}],"usage":{"prompt_tokens_details":1,"prompt_tokens_details":2}}"#,
    ])
    func `may repeat a member with the same value, or one that nothing depends on`(chunk: String) {
        let sink = hear {
            $0.head()
            $0.send("data: \(chunk)\n\n" + finishing() + done)
            $0.end()
        }
        #expect(sink.events.filter { if case .usage = $0 { false } else { true } } == [.text("Hi"), .finished(reason: "stop")])
    }

    @Test func `stands where what follows its end can be read in two ways`() {
        let sink = hear {
            $0.head()
            $0.send(delta("Hi") + finishing() + "data: {\"choices\":[],\"usage\":1,\"usage\":2}\n\n" + done)
            $0.end()
        }
        #expect(sink.events == [.text("Hi"), .finished(reason: "stop")])
    }

    @Test func `fails where calls in a text can be read in two ways`() {
        let calls = JSON.string(#"[{"id":"1","function":{"name":"a","name":"b","arguments":"{}"}}]"#).text
        let sink = hear {
            $0.head()
            $0.send("data: {\"choices\":[{\"delta\":{\"tool_calls\":\(calls)}}]}\n\n" + finishing("tool_calls") + done)
            $0.end()
        }
        #expect(sink.failure?.code == "model_invalid_response")
    }

    @Test func `comes out the same however its bytes are cut`() {
        let stream = Bytes(
            (delta("é🦊") + delta(" 漢字\n") + "data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83e\\udd8a\"}}]}\r\n\r\n"
                + finishing("length") + done).utf8)
        for cut in 0...stream.count {
            let sink = hear {
                $0.head()
                $0.send(Bytes(stream[..<cut]))
                $0.send(Bytes(stream[cut...]))
                $0.end()
            }
            #expect(sink.text == "é🦊 漢字\n🦊" && sink.finish == "length", "cut at \(cut)")
        }
    }

    @Test(arguments: ["reasoning_content", "reasoning"]) func `tells reasoning from text`(field: String) {
        let sink = hear {
            $0.head()
            $0.send("data: {\"choices\":[{\"delta\":{\"\(field)\":\"hm\",\"content\":\"\"}}]}\n\n" + delta("Yes") + finishing() + done)
            $0.end()
        }
        #expect(sink.events == [.reasoning("hm"), .text("Yes"), .finished(reason: "stop")])
    }

    func toolDelta(_ pieces: String) -> String { "data: {\"choices\":[{\"delta\":{\"tool_calls\":[\(pieces)]}}]}\n\n" }

    @Test func `gives tool calls by number, id and name once`() {
        let stream =
            toolDelta(#"{"index":0,"id":"a","type":"function","function":{"name":"look","arguments":""}}"#)
            + toolDelta(#"{"index":0,"function":{"arguments":"{\"x\":"}}"#)
            + toolDelta(
                #"{"index":1,"id":"b","function":{"name":"find","arguments":"{}"}},{"index":0,"id":"a","function":{"name":"look","arguments":"1}"}}"#
            )
            + finishing("tool_calls") + done
        let sink = hear {
            $0.head()
            $0.send(stream)
            $0.end()
        }
        #expect(
            sink.events == [
                .toolCall(index: 0, id: "a", name: "look", arguments: ""), .toolCall(index: 0, id: nil, name: nil, arguments: "{\"x\":"),
                .toolCall(index: 1, id: "b", name: "find", arguments: "{}"), .toolCall(index: 0, id: nil, name: nil, arguments: "1}"),
                .finished(reason: "tool_calls"),
            ])
    }

    @Test func `tells tool calls apart where servers number them all 0 or not at all`() {
        let sink = hear {
            $0.head()
            $0.send(
                toolDelta(#"{"index":0,"id":"a","function":{"name":"look","arguments":{"x":1}}}"#)
                    + toolDelta(#"{"index":0,"id":"b","function":{"name":"find","arguments":"{}"}}"#))
            $0.send(toolDelta(#"{"id":"c","function":{"name":"go"}}"#) + toolDelta(#"{"function":{"arguments":"{}"}}"#))
            $0.send(finishing("tool_calls") + done)
            $0.end()
        }
        #expect(
            sink.events == [
                .toolCall(index: 0, id: "a", name: "look", arguments: "{\"x\":1}"),
                .toolCall(index: 1, id: "b", name: "find", arguments: "{}"),
                .toolCall(index: 2, id: "c", name: "go", arguments: ""), .toolCall(index: 2, id: nil, name: nil, arguments: "{}"),
                .finished(reason: "tool_calls"),
            ])
    }

    @Test(arguments: [
        ("nothing at all", "", "upstream_closed", true), ("text and no end", delta("Hi"), "upstream_closed", true),
        ("only [DONE]", done, "upstream_closed", true), ("[DONE] without a reason", delta("Hi") + done, "upstream_closed", true),
        ("a cut event", delta("Hi") + "data: {\"choi", "upstream_closed", true),
        ("garbage", "data: <html>\n\n" + done, "model_invalid_response", true),
        ("an array", "data: []\n\n", "model_invalid_response", true),
        ("an endless line", "data: " + String(repeating: "x", count: 2 << 20), "model_invalid_response", false),
        (
            "overload", delta("Hi") + #"data: {"error":{"message":"busy","type":"overloaded_error"}}"# + "\n\n" + done, "model_unavailable",
            true
        ),
        ("rate", #"data: {"error":{"message":"slow down","code":"rate_limit_exceeded"}}"# + "\n\n", "model_rate_limited", true),
        (
            "status", #"data: {"error":{"message":"too long","code":400,"type":"exceed_context_size_error"}}"# + "\n\n",
            "context_exceeded", false
        ),
        ("quota", #"data: {"error":{"message":"pay","code":"insufficient_quota"}}"# + "\n\n", "model_quota_exhausted", false),
        ("error as text", #"data: {"error":"out of memory"}"# + "\n\n", "model_unavailable", true),
    ])
    func `that breaks is a failure`(name: String, stream: String, code: String, retryable: Bool) {
        let sink = hear {
            $0.head()
            $0.send(stream)
            $0.end()
        }
        #expect(sink.failure?.code == code, "\(name)")
        #expect(sink.failure?.retryable == retryable, "\(name)")
        #expect(sink.events.count { if case .failed = $0 { true } else { false } } == 1)
    }

    @Test func `that is garbage closes the connection`() {
        let transport = FakeTransport()
        let sink = RecordingSink()
        let call = ChatCompletionsModel.test(transport).start(ModelRequest(messages: [.user("Hello")]), sink)
        transport.calls[0].head()
        transport.calls[0].send(delta("Hi") + "data: nonsense\n\n" + delta("more"))
        #expect(transport.calls[0].isCancelled)
        #expect(sink.events.count == 2 && sink.failure?.code == "model_invalid_response")
        call.cancel()
    }

    @Test func `that was finished before the connection broke is whole`() {
        for code in ["upstream_closed", "upstream_timeout", "upstream_unreachable"] {
            let sink = hear {
                $0.head()
                $0.send(delta("Hi") + finishing())
                $0.end(OutgoingError(code: code, message: "broken"))
            }
            #expect(sink.finish == "stop")
        }
    }

    @Test(arguments: [
        #"{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}"#,
        #"{"choices":[{"delta":{"content":"Hi"}}]}"# + "\n" + #"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        "data: " + #"{"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#,
    ])
    func `that came whole as JSON is whole, too, when the connection breaks or stays open behind it`(body: String) {
        for end in [OutgoingError(code: "upstream_closed", message: "reset"), nil] {
            let (transport, world, sink) = (FakeTransport(), ManualWorld(), RecordingSink())
            let call = ChatCompletionsModel.test(transport, world: world).start(ModelRequest(messages: [.user("Hello")]), sink)
            transport.calls[0].head(200, [("content-type", "application/json")])
            transport.calls[0].send(body)
            // The end of a line that has not come is known at the end of the connection only.
            if end != nil || body.hasPrefix("data") { transport.calls[0].end(end) } else { world.run() }
            #expect(sink.events == [.text("Hi"), .finished(reason: "stop")])
            withExtendedLifetime(call) {}
        }
    }

    @Test func `is not heard after cancelling, and the connection is closed at once`() {
        let transport = FakeTransport()
        let sink = RecordingSink()
        let call = ChatCompletionsModel.test(transport).start(ModelRequest(messages: [.user("Hello")]), sink)
        transport.calls[0].head()
        transport.calls[0].send(delta("Hi"))
        call.cancel()
        #expect(transport.calls[0].isCancelled)
        call.cancel()
        #expect(sink.events == [.text("Hi")])
    }

    @Test func `stops in the middle of a read when the sink cancels`() {
        let transport = FakeTransport()
        nonisolated(unsafe) var call: (any ModelCall)?  // Guard: everything here runs on the test's thread.
        let sink = RecordingSink { _ in call?.cancel() }
        call = ChatCompletionsModel.test(transport).start(ModelRequest(messages: [.user("Hello")]), sink)
        transport.calls[0].head()
        transport.calls[0].send(delta("1") + delta("2") + finishing() + done)
        #expect(sink.events == [.text("1")])
        #expect(transport.calls[0].isCancelled)
    }
}
