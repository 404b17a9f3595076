import ParleyAgents
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyModels

@Suite struct `A failure of a Chat Completions call` {
    static let prompt = "the secret recipe of my grandmother"

    func fail(_ script: @escaping @Sendable (FakeTransport.Call) -> Void) throws -> StepFailure {
        let sink = RecordingSink()
        _ = ChatCompletionsModel.test(FakeTransport(script)).start(ModelRequest(messages: [.user(Self.prompt)]), sink)
        #expect(sink.events.count == 1)
        return try #require(sink.failure)
    }

    func fail(_ status: Int, _ body: String, _ headers: [(name: String, value: String)] = []) throws -> StepFailure {
        try fail {
            $0.head(status, headers + [(name: "Content-Type", value: "application/json")])
            // In two pieces, as a network would.
            $0.send(Bytes(Bytes(body.utf8).prefix(7)))
            $0.send(Bytes(Bytes(body.utf8).dropFirst(7)))
            $0.end()
        }
    }

    static let error = #"{"error":{"message":"no such thing","type":"t","code":null}}"#

    @Test(arguments: [
        (400, "model_bad_request", false), (401, "model_unauthorized", false), (402, "model_quota_exhausted", false),
        (403, "model_unauthorized", false),
        (404, "model_not_found", false), (408, "model_timeout", true), (413, "model_bad_request", false), (422, "model_bad_request", false),
        (429, "model_rate_limited", true), (500, "model_unavailable", true), (502, "model_unavailable", true),
        (503, "model_unavailable", true),
        (529, "model_unavailable", true), (302, "model_invalid_response", false), (204, "model_invalid_response", false),
    ])
    func `goes by the status`(status: Int, code: String, retryable: Bool) throws {
        let failure = try fail(status, Self.error)
        #expect(failure.code == code)
        #expect(failure.retryable == retryable)
        #expect(failure.message.contains("http://model.test:8080/v1"))
        #expect(!failure.message.contains("secret"))
    }

    @Test(arguments: [
        (
            401,
            "http://model.test:8080/v1 refused the credentials (401): no such thing. Remedy: set OPENAI_API_KEY to a key that may use 'm1'."
        ),
        (
            404,
            "http://model.test:8080/v1 has no model 'm1', or no Chat Completions (404): no such thing. Remedy: check PARLEY_MODEL and OPENAI_BASE_URL."
        ),
        (400, "http://model.test:8080/v1 refused the request (400): no such thing"),
        (429, "http://model.test:8080/v1 asks for fewer calls (429): no such thing"),
        (503, "http://model.test:8080/v1 is not able to answer (503): no such thing"),
    ])
    func `says what to do`(status: Int, message: String) throws {
        #expect(try fail(status, Self.error).message == message)
    }

    @Test(arguments: [429, 503, 529]) func `keeps how long to wait`(status: Int) throws {
        #expect(try fail(status, Self.error, [("Retry-After", "7")]).retryAfter == .seconds(7))
        #expect(try fail(status, Self.error, [("retry-after", "Sat, 31 Jan 2026 09:31:00 GMT")]).retryAfter == .seconds(60))
        #expect(try fail(status, Self.error).retryAfter == nil)
    }

    @Test func `of a used-up quota is not tried again`() throws {
        let failure = try fail(429, #"{"error":{"message":"pay first","code":"insufficient_quota"}}"#)
        #expect(failure.code == "model_quota_exhausted" && !failure.retryable)
    }

    @Test(arguments: [
        #"{"error":{"message":"WORDS"}}"#, #"{"error":"WORDS"}"#, #"{"message":"WORDS"}"#, #"{"detail":"WORDS"}"#,
        #"{"detail":[{"msg":"WORDS","input":"x"}]}"#,
    ])
    func `quotes the upstream wherever it says why`(body: String) throws {
        #expect(try fail(400, body.replacing("WORDS", with: "bad temperature")).message.hasSuffix("(400): bad temperature"))
    }

    @Test(arguments: ["", "<html><br></html>", "[1]", "{\"error\":7}"]) func `does without words where there are none`(body: String) throws
    {
        #expect(try fail(400, body).message == "http://model.test:8080/v1 refused the request (400)")
    }

    @Test func `shortens the upstream's words`() throws {
        let message = try fail(400, #"{"error":{"message":"\#(String(repeating: "é\\n", count: 500))"}}"#).message
        let words = try #require(message.split(separator: "(400): ").last)
        #expect(words.count == 300 && words.hasSuffix("…") && !words.contains("\n"))
    }

    @Test(arguments: ["you sent: \(prompt)", "near 'recipe of my grandmother'", "key \(ChatCompletionsModel.testKey) is wrong"])
    func `leaves out words that quote the conversation or the key`(words: String) throws {
        for status in [400, 401, 404, 429, 500] {
            let failure = try fail(status, #"{"error":{"message":"\#(words)"}}"#)
            #expect(!failure.message.contains("grandmother") && !failure.message.contains(ChatCompletionsModel.testKey))
        }
    }

    @Test(arguments: [
        ("you sent: \(prompt), which is bad", "you sent: [...], which is bad"),
        ("near 'recipe of my grandmother'", "near '[...]'"), ("key \(ChatCompletionsModel.testKey) is wrong", "key [...] is wrong"),
        ("key \(ChatCompletionsModel.testKey.prefix(12))... is wrong", "key [...]... is wrong"), ("\(prompt)", nil),
        ("recipes are bad", "recipes are bad"),
    ])
    func `has a mark for what quotes the conversation or the key, and the rest of the words`(words: String, left: String?) throws {
        let message = try fail(400, #"{"error":{"message":"\#(words)"}}"#).message
        #expect(message == "http://model.test:8080/v1 refused the request (400)" + (left.map { ": " + $0 } ?? ""))
    }

    @Test func `has no part of a key that its words are cut in`() throws {
        let words = String(repeating: "x", count: 290) + ChatCompletionsModel.testKey
        #expect(try !fail(400, #"{"error":{"message":"\#(words)"}}"#).message.contains("sk-"))
    }

    @Test(arguments: [
        ("upstream_unreachable", "model_unreachable", true), ("upstream_timeout", "model_timeout", true),
        ("upstream_closed", "upstream_closed", true), ("upstream_encoding", "model_invalid_response", false),
        ("upstream_head_too_large", "model_invalid_response", false), ("upstream_not_http", "model_invalid_response", true),
        ("invalid_url", "model_unreachable", false),
    ])
    func `below HTTP names the base URL without its credentials`(given: String, code: String, retryable: Bool) throws {
        for hasHead in [false, true] {
            let failure = try fail {
                if hasHead { $0.head() }
                $0.end(OutgoingError(code: given, message: "connection refused"))
            }
            #expect(failure.code == code && failure.retryable == retryable)
            #expect(failure.message.contains("http://model.test:8080/v1") && !failure.message.contains("secret"))
        }
    }

    @Test func `to connect says what to do`() throws {
        let failure = try fail { $0.end(OutgoingError(code: "upstream_unreachable", message: "connection refused")) }
        #expect(
            failure.message
                == "cannot reach http://model.test:8080/v1 (connection refused). Remedy: start the model server, or check OPENAI_BASE_URL.")
        let untrusted = "SSL certificate problem: self-signed certificate"
        #expect(
            try fail { $0.end(OutgoingError(code: "upstream_unreachable", message: untrusted)) }.message.contains("PARLEY_CA_FILE"))
    }

    @Test func `of a page instead of a stream points at the base URL`() throws {
        let failure = try fail {
            $0.head(200, [("Content-Type", "text/html")])
            $0.send("<html>")
            $0.end()
        }
        #expect(failure.code == "model_invalid_response" && !failure.retryable)
        #expect(
            failure.message
                == "http://model.test:8080/v1 answered text/html instead of text/event-stream. Remedy: check OPENAI_BASE_URL; it usually ends in /v1."
        )
    }

    @Test func `hidden in a 200 is found`() throws {
        #expect(try fail(200, #"{"error":{"message":"busy","code":503}}"#).code == "model_unavailable")
    }
}
