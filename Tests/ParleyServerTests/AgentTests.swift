import ParleySystem
import Testing

@Suite struct `Agents on their channels` {
    static let server = try! TestServer()

    private static let json = "application/json"
    private static let hello = #"{"type":"message","text":"hello"}"#

    static func say(
        _ status: Int = 204, _ body: String = hello, _ headers: [(String, String)] = [], expect: [String: Expected] = [:],
        code: String? = nil
    ) -> Step {
        .post(status, body, type: json, headers, expect: expect, code: code)
    }

    static let cases: [ProtocolCase] = [
        .init("GET of one never named", .get(404, code: "channel_not_found")),
        .init("HEAD of one never named", .head(404)),
        .init("DELETE of one never named", .delete(404, code: "channel_not_found")),
        .init(
            "PUT creates it idle",
            .put(201, type: json, expect: ["Content-Type": "application/json", "Stream-Next-Offset": "0000000000000000"]),
            .get(200, "", "[]"), .put(200, type: json)),
        .init("PUT without a type", .put(201, type: nil, expect: ["Content-Type": "application/json"])),
        .init("PUT of another type", .put(409, type: "text/plain", code: "content_type_mismatch"), .get(404)),
        .init("PUT closed", .put(400, type: json, closed, code: "not_supported"), .get(404)),
        .init("PUT with TTL", .put(400, type: json, [("Stream-TTL", "5")], code: "not_supported"), .get(404)),
        .init("PUT with a body", .put(400, type: json, [], "[1]", code: "unexpected_body")),
        .init(
            "POST creates it", say(204, expect: ["Stream-Next-Offset": "0000000000000001"]),
            .head(expect: ["Content-Type": "application/json"])),
        .init("POST of another type", .post(409, "x", type: "text/plain", code: "content_type_mismatch"), .get(404)),
        .init("POST without a type", .post(400, hello, type: nil, code: "missing_content_type"), .get(404)),
        .init("answers are private", say(), .get(200, "", headers: [], expect: ["Cache-Control": "private, no-store", "ETag": .any])),
        .init("several at once", say(204, "[\(hello),\(hello)]", expect: ["Stream-Next-Offset": "0000000000000002"])),
        .init("an empty array", say(400, "[]", code: "empty_array"), .get(404)),
        .init("a bad one among good ones", say(400, "[\(hello),{\"type\":\"nope\"}]", code: "unknown_entry_type"), .get(404)),
        .init("no JSON", say(400, "{", code: "invalid_json"), .get(404)),
        .init("no object", say(400, "42", code: "invalid_entry"), .get(404)),
        .init(
            "a producer", say(200, hello, producer("p", "0", "0"), expect: ["Producer-Seq": "0"]), say(204, hello, producer("p", "0", "0")),
            .head(expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init("a first producer's gap makes nothing", say(409, hello, producer("p", "0", "3"), code: "producer_gap"), .get(404)),
        .init(
            "an idempotency key", say(204, hello, [("Idempotency-Key", "k")]),
            say(204, hello, [("Idempotency-Key", "k")], expect: ["Idempotent-Replayed": "true", "Stream-Next-Offset": "0000000000000001"])),
        .init(
            "an idempotency key with another body", say(204, hello, [("Idempotency-Key", "k")]),
            say(422, "[\(hello)]", [("Idempotency-Key", "k")], code: "idempotency_key_reused")),
        .init(
            "an idempotency key and a producer",
            say(400, hello, [("Idempotency-Key", "k")] + producer("p", "0", "0"), code: "conflicting_headers")),
        .init("an empty idempotency key", say(400, hello, [("Idempotency-Key", "")], code: "invalid_idempotency_key")),
        .init(
            "Stream-Closed asks for the end",
            say(204, hello, closed, expect: ["Stream-Closed": nil, "Stream-Next-Offset": "0000000000000002"]),
            .head(expect: ["Stream-Closed": nil])),
        .init("Stream-Closed alone", .post(204, "", type: nil, closed, expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init(
            "deleted", say(), .delete(), .get(410, code: "agent_deleted"), .head(410), say(410, hello, code: "agent_deleted"),
            .put(201, type: json), say(204, hello, expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init("an unknown view", say(), .get(400, "?view=pretty", code: "invalid_view")),
        .init("an unknown choice", say(), .get(400, "?offset=-1&live=sse&behind=drop", code: "invalid_behind")),
        .init("the settled view", say(), .get(200, "?view=settled"), .get(200, "?view=raw")),
    ]

    @Test(arguments: cases) func `an agent's channel answers as the contract says`(_ row: ProtocolCase) throws {
        try row.run(on: Self.server, path: "/v1/stream/agents/echo/" + Self.server.path("a").split(separator: "/").last!)
    }

    @Test(arguments: ["PUT", "POST"]) func `an unknown kind names those there are`(_ method: String) throws {
        let answer = try Self.server.request(
            method, "/v1/stream/agents/nobody/x", [("Content-Type", Self.json)], method == "PUT" ? "" : Self.hello)
        #expect(answer.status == 404)
        #expect(answer.code == "unknown_agent_kind")
        #expect(answer.json?["kinds"] == ["assistant", "echo"])
    }

    @Test func `a bad element is named by its index, and nothing is stored`() throws {
        let path = "/v1/stream/agents/echo/index-test"
        let answer = try Self.server.post(path, "[\(Self.hello),{\"type\":\"signal\"}]", Self.json)
        #expect(answer.status == 400)
        #expect(answer.json?["index"] == 1)
        let big = "[\(Self.hello),\(Self.hello),{\"type\":\"message\",\"text\":\"\(String(repeating: "x", count: 1 << 20))\"}]"
        let tooLarge = try Self.server.post(path, big, Self.json)
        #expect(tooLarge.status == 413)
        #expect(tooLarge.code == "entry_too_large")
        #expect(tooLarge.json?["index"] == 2)
        #expect(tooLarge.json?["limit"] == .integer(1 << 20))
        #expect(try Self.server.get(path).status == 404)
    }

    @Test func `an entry is stamped, and keeps the client's own members`() throws {
        let path = "/v1/stream/agents/echo/stamps"
        try Self.server.post(path, #"{"x":1.50,"type":"message","text":"hi","by":"root","at":"never","offset":"9","id":"mine"}"#, Self.json)
        let entry = try #require(try Self.server.get(path).json?.array?.first)
        #expect(entry["offset"] == "0000000000000001")
        #expect(entry["by"] == "anonymous")
        #expect(entry["id"] == "mine")
        #expect(entry["at"]?.string.flatMap { Timestamp($0) } != nil)
        #expect(try Self.server.get(path).text.contains(#""x":1.50,"text":"hi","id":"mine"}"#))
    }

    @Test func `an agent's channel is followed live, in both views`() throws {
        let path = "/v1/stream/agents/echo/live"
        #expect(try Self.server.request("PUT", path).status == 201)
        let readers = try ["raw", "settled"].map { view in
            let client = try Self.server.connect()
            try client.send("GET", path + "?offset=-1&live=sse&view=\(view)")
            #expect(try client.head().headers["cache-control"] == "private, no-store, no-transform")
            _ = try client.event()
            return client
        }
        try Self.server.post(path, Self.hello, Self.json)
        for reader in readers { #expect(try reader.event()?.json?.array?.first?["text"] == "hello") }
    }
}
