import ParleyAgents
import ParleyChannels
import ParleySystem
import Synchronization
import Testing

@Suite struct `Agents on their channels` {
    static let server = try! TestServer()

    private static let json = "application/json"
    private static let hello = #"{"type":"message","text":"hello"}"#

    static func say(_ status: Int = 204, _ body: String = hello, _ headers: [(String, String)] = [], expect: [String: String?] = [:], code: String? = nil) -> Step {
        .post(status, body, type: json, headers, expect: expect, code: code)
    }

    static let cases: [ProtocolCase] = [
        .init("GET of one never named", .get(404, code: "channel_not_found")),
        .init("HEAD of one never named", .head(404)),
        .init("DELETE of one never named", .delete(404, code: "channel_not_found")),
        .init("PUT creates it idle", .put(201, type: json, expect: ["Content-Type": "application/json", "Stream-Next-Offset": "0000000000000000"]), .get(200, "", "[]"), .put(200, type: json)),
        .init("PUT without a type", .put(201, type: nil, expect: ["Content-Type": "application/json"])),
        .init("PUT of another type", .put(409, type: "text/plain", code: "content_type_mismatch"), .get(404)),
        .init("PUT closed", .put(400, type: json, closed, code: "not_supported"), .get(404)),
        .init("PUT with TTL", .put(400, type: json, [("Stream-TTL", "5")], code: "not_supported"), .get(404)),
        .init("PUT with a body", .put(400, type: json, [], "[1]", code: "unexpected_body")),
        .init("POST creates it", say(204, expect: ["Stream-Next-Offset": "0000000000000001"]), .head(expect: ["Content-Type": "application/json"])),
        .init("POST of another type", .post(409, "x", type: "text/plain", code: "content_type_mismatch"), .get(404)),
        .init("POST without a type", .post(400, hello, type: nil, code: "missing_content_type"), .get(404)),
        .init("answers are private", say(), .get(200, "", headers: [], expect: ["Cache-Control": "private, no-store", "ETag": "*"])),
        .init("several at once", say(204, "[\(hello),\(hello)]", expect: ["Stream-Next-Offset": "0000000000000002"])),
        .init("an empty array", say(400, "[]", code: "empty_array"), .get(404)),
        .init("a bad one among good ones", say(400, "[\(hello),{\"type\":\"nope\"}]", code: "unknown_entry_type"), .get(404)),
        .init("no JSON", say(400, "{", code: "invalid_json"), .get(404)),
        .init("no object", say(400, "42", code: "invalid_entry"), .get(404)),
        .init("a producer", say(200, hello, producer("p", "0", "0"), expect: ["Producer-Seq": "0"]), say(204, hello, producer("p", "0", "0")), .head(expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init("a first producer's gap makes nothing", say(409, hello, producer("p", "0", "3"), code: "producer_gap"), .get(404)),
        .init("an idempotency key", say(204, hello, [("Idempotency-Key", "k")]), say(204, hello, [("Idempotency-Key", "k")], expect: ["Idempotent-Replayed": "true", "Stream-Next-Offset": "0000000000000001"])),
        .init("an idempotency key with another body", say(204, hello, [("Idempotency-Key", "k")]), say(422, "[\(hello)]", [("Idempotency-Key", "k")], code: "idempotency_key_reused")),
        .init("an idempotency key and a producer", say(400, hello, [("Idempotency-Key", "k")] + producer("p", "0", "0"), code: "conflicting_headers")),
        .init("an empty idempotency key", say(400, hello, [("Idempotency-Key", "")], code: "invalid_idempotency_key")),
        .init("Stream-Closed asks for the end", say(204, hello, closed, expect: ["Stream-Closed": nil, "Stream-Next-Offset": "0000000000000002"]), .head(expect: ["Stream-Closed": nil])),
        .init("Stream-Closed alone", .post(204, "", type: nil, closed, expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init("deleted", say(), .delete(), .get(410, code: "agent_deleted"), .head(410), say(410, hello, code: "agent_deleted"), .put(201, type: json), say(204, hello, expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init("an unknown view", say(), .get(400, "?view=pretty", code: "invalid_view")),
        .init("the settled view", say(), .get(200, "?view=settled"), .get(200, "?view=raw")),
    ]

    @Test(arguments: cases) func `an agent's channel answers as the contract says`(_ row: ProtocolCase) throws {
        try row.run(on: Self.server, path: "/v1/stream/agents/echo/" + Self.server.path("a").split(separator: "/").last!)
    }

    @Test(arguments: ["PUT", "POST"]) func `an unknown kind names those there are`(_ method: String) throws {
        let answer = try Self.server.request(method, "/v1/stream/agents/nobody/x", [("Content-Type", Self.json)], method == "PUT" ? "" : Self.hello)
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
            #expect(try client.head().headers["cache-control"] == "private, no-store")
            _ = try client.event()
            return client
        }
        try Self.server.post(path, Self.hello, Self.json)
        for reader in readers { #expect(try reader.event()?.json?.array?.first?["text"] == "hello") }
    }
}

@Suite struct `The agents' routes` {
    static let server = try! TestServer()
    private static let json = "application/json"
    private static let hello = #"{"type":"message","text":"hello","id":"mine"}"#

    @Test func `POST answers 202 with the offset and id of each entry`() throws {
        let answer = try Self.server.post("/v1/agents/echo/post", "[\(Self.hello),{\"type\":\"cancel\"}]", Self.json, closed)
        #expect(answer.status == 202)
        #expect(
            answer.json == [
                "entries": [
                    ["offset": "0000000000000001", "id": "mine"], ["offset": "0000000000000002", "id": "0000000000000002"],
                    ["offset": "0000000000000003", "id": "0000000000000003"],
                ]
            ])
        #expect(answer.headers["location"] == "/v1/agents/echo/post")
    }

    @Test func `a repeat with the same key answers the same offsets`() throws {
        let key = [("Idempotency-Key", "k")]
        let first = try Self.server.post("/v1/agents/echo/repeat", Self.hello, Self.json, key)
        let second = try Self.server.post("/v1/agents/echo/repeat", Self.hello, Self.json, key)
        #expect(second.json == first.json)
        #expect(second.headers["idempotent-replayed"] == "true")
        #expect(first.headers["idempotent-replayed"] == nil)
    }

    @Test func `Prefer wait answers with the end of the turn`() throws {
        let client = try Self.server.connect()
        try client.send("POST", "/v1/agents/echo/wait", [("Content-Type", Self.json), ("Prefer", "respond-async, wait=30")], Bytes(Self.hello.utf8))
        try Self.server.agents.end("agents/echo/wait", ["type": "turn.completed", "output": ["text": "done"]])
        let answer = try client.answer()
        #expect(answer.status == 200)
        #expect(answer.json?["output"] == ["text": "done"])
        #expect(answer.json?["ended"]?["type"] == "turn.completed")
        #expect(answer.json?["entries"]?.array?.count == 1)
        #expect(answer.headers["preference-applied"] == "wait=30")
    }

    @Test func `Prefer wait that is not met answers 202 and withdraws`() throws {
        let server = try TestServer()
        let answer = try server.post("/v1/agents/echo/late", Self.hello, Self.json, [("Prefer", "wait=0")])
        #expect(answer.status == 202)
        #expect(answer.json?["entries"]?.array?.count == 1)
        #expect(server.agents.waiting.withLock { $0.isEmpty })
        #expect(server.agents.withdrawn.load(ordering: .relaxed) == 1)
    }

    @Test(arguments: [
        ("GET", "/v1/agents/echo/missing", 404, "channel_not_found"), ("DELETE", "/v1/agents/echo/missing", 404, "channel_not_found"),
        ("GET", "/v1/agents/echo", 404, "route_not_found"), ("GET", "/v1/agents/echo/a/b", 404, "route_not_found"), ("GET", "/v1/agentsx", 404, "route_not_found"),
        ("PUT", "/v1/agents/echo/a", 405, "method_not_allowed"), ("POST", "/v1/agents", 405, "method_not_allowed"),
        ("GET", "/v1/agents?limit=0", 400, "invalid_limit"), ("GET", "/v1/agents?limit=x", 400, "invalid_limit"), ("GET", "/v1/agents?limit=1001", 400, "invalid_limit"),
        ("GET", "/v1/agents?state=happy", 400, "invalid_state"), ("POST", "/v1/agents/nobody/a", 404, "unknown_agent_kind"),
    ])
    func `what is not there is said`(_ method: String, _ path: String, _ status: Int, _ code: String) throws {
        let body = method == "POST" ? Self.hello : ""
        let answer = try Self.server.request(method, path, body.isEmpty ? [] : [("Content-Type", Self.json)], body)
        #expect(answer.status == status)
        #expect(answer.code == code)
        if status == 405 { #expect(answer.headers["allow"] != nil) }
    }

    @Test(arguments: ["wait", "wait=x", "wait=-1"]) func `a wait that is no number is refused`(_ preference: String) throws {
        #expect(try Self.server.post("/v1/agents/echo/prefer", Self.hello, Self.json, [("Prefer", preference)]).code == "invalid_prefer")
    }

    @Test func `an agent is looked at, listed and removed`() throws {
        let server = try TestServer()
        try server.post("/v1/agents/echo/one", Self.hello, Self.json)
        try server.post("/v1/agents/assistant/two", Self.hello, Self.json)
        #expect(try server.get("/v1/agents/echo/one").json?["tail"] == "0000000000000001")
        #expect(try server.get("/v1/agents").json?["agents"]?.array?.count == 2)
        #expect(try server.get("/v1/agents?kind=echo&state=idle&limit=5").json?["agents"]?.array?.count == 1)
        #expect(try server.request("DELETE", "/v1/agents/echo/one").status == 204)
        #expect(try server.get("/v1/agents/echo/one").code == "agent_deleted")
        #expect(try server.post("/v1/agents/echo/one", Self.hello, Self.json).code == "agent_deleted")
    }
}

@Suite struct `Entries from clients` {
    @Test(arguments: [
        #"{"type":"message","text":"a"}"#, #"{"type":"message","data":null}"#, #"{"type":"message","data":{"a":[1]},"id":"x"}"#,
        #"{"type":"steer","text":""}"#, #"{"type":"interrupt"}"#, #"{"type":"interrupt","reason":"r","text":"t"}"#, #"{"type":"cancel"}"#,
        #"{"type":"approve","approval":"1/x","args_sha256":"f"}"#, #"{"type":"deny","approval":"1/x"}"#, #"{"type":"signal","name":"n","data":1}"#,
        #"{"type":"close"}"#, #"{"type":"message","text":"a","if_turn":"0000000000000001"}"#,
    ])
    func `are taken`(_ text: String) throws { _ = try InputEntry(Bytes(text.utf8), principal: "me") }

    @Test(arguments: [
        ("{}", "invalid_entry"), ("[]", "invalid_entry"), ("1", "invalid_entry"), (#"{"type":1}"#, "invalid_entry"), (#"{"type":"x"}"#, "unknown_entry_type"),
        (#"{"type":"turn.started"}"#, "unknown_entry_type"), (#"{"type":"text"}"#, "unknown_entry_type"), (#"{"type":"receipt"}"#, "unknown_entry_type"),
        (#"{"type":"Message","text":"a"}"#, "unknown_entry_type"), (#"{"type":"message"}"#, "invalid_entry"), (#"{"type":"message","text":1}"#, "invalid_entry"),
        (#"{"type":"steer"}"#, "invalid_entry"), (#"{"type":"approve"}"#, "invalid_entry"), (#"{"type":"deny","approval":1}"#, "invalid_entry"),
        (#"{"type":"signal"}"#, "invalid_entry"), (#"{"type":"close","id":1}"#, "invalid_entry"), (#"{"type":"close","id":""}"#, "invalid_entry"),
        (#"{"type":"message","text":"a"} x"#, "invalid_entry"),
    ])
    func `are refused`(_ text: String, _ code: String) {
        #expect { try InputEntry(Bytes(text.utf8), principal: "me") } throws: { ($0 as? ChannelError)?.code == code }
    }

    @Test func `an unknown type names those there are`() {
        #expect { try InputEntry(Bytes(#"{"type":"x"}"#.utf8), principal: "me") } throws: { error in
            ["message", "steer", "interrupt", "cancel", "approve", "deny", "signal", "close"].allSatisfy { "\(error)".contains($0) }
        }
    }

    @Test func `members are kept as they came, in order, and stamps are not the client's`() throws {
        let text = #"{ "z" : 1.0 ,"offset":1, "\u0074ype":"message","at":2,"text":"\u00e4 / \/","by":[3], "a" : { "b" : [ ] } }"#
        let entry = try InputEntry.prepare(Bytes(text.utf8), principal: "a \"b\"")
        guard case .members(let members, let hasID) = entry.content else { throw TestFailure("no members") }
        #expect(members.text == #""by":"a \"b\"","z":1.0,"text":"\u00e4 / \/","a":{ "b" : [ ] }"#)
        #expect(!hasID)
        #expect(entry.kind == .message)
    }

    @Test func `the limit counts the stamps`() throws {
        func entry(_ count: Int) throws -> NewEntry {
            try InputEntry.prepare(Bytes(#"{"type":"message","text":"\#(String(repeating: "x", count: count))"}"#.utf8), principal: "p")
        }
        func wireBytes(_ count: Int) throws -> Int {
            var frame = Bytes()
            try entry(count).write(to: &frame, at: Timestamp(milliseconds: 0))
            var wire = Bytes()
            frame.withUnsafeBytes { bytes in
                _ = Frame.walk(bytes, first: 1) { offset, frame in
                    frame.writeJSON(offset: offset, owner: "o", to: &wire)
                    return true
                }
            }
            return wire.count
        }
        let room = InputEntry.bytesMax - (try wireBytes(1) - 1)
        #expect(try wireBytes(room) == InputEntry.bytesMax)
        #expect { try entry(room + 1) } throws: { ($0 as? ChannelError)?.code == "entry_too_large" }
    }
}
