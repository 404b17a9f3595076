import ParleyServer
import ParleySystem
import Synchronization
import Testing

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
        try client.send(
            "POST", "/v1/agents/echo/wait", [("Content-Type", Self.json), ("Prefer", "respond-async, wait=30")], Bytes(Self.hello.utf8))
        try Self.server.agents.end("agents/echo/wait", ["type": "turn.completed", "output": ["text": "done"]])
        let answer = try client.answer()
        #expect(answer.status == 200)
        #expect(answer.json?["output"] == ["text": "done"])
        #expect(answer.json?["ended"]?["type"] == "turn.completed")
        #expect(answer.json?["entries"]?.array?.count == 1)
        #expect(answer.headers["preference-applied"] == "wait=30")
    }

    @Test func `a wait of more than a minute is a minute, and the answer says so`() throws {
        let server = try TestServer()
        let client = try server.connect()
        try client.send("POST", "/v1/agents/echo/long", [("Content-Type", Self.json), ("Prefer", "wait=9999")], Bytes(Self.hello.utf8))
        try server.agents.end("agents/echo/long", ["type": "turn.completed", "output": ["text": "done"]])
        #expect(try client.answer().headers["preference-applied"] == "wait=60")
    }

    @Test func `who waits for the end of a turn is answered when the server stops`() throws {
        let server = try TestServer()
        let client = try server.connect()
        try client.send("POST", "/v1/agents/echo/wait", [("Content-Type", Self.json), ("Prefer", "wait=30")], Bytes(Self.hello.utf8))
        try server.eventually("the wait") { server.agents.waiting.withLock { !$0.isEmpty } }
        #expect(server.server.drain(within: .seconds(20)))
        let answer = try client.answer()
        #expect(answer.status == 202 && answer.json?["entries"]?.array?.count == 1)
    }

    @Test func `what a turn has said is left in the channel while answers that clients do not take fill the memory for them`() throws {
        let server = try TestServer { $0.answerBytesMax = 16 << 20 }
        let said: JSON = ["type": "turn.completed", "output": .string(String(repeating: "x", count: 8 << 20))]
        let clients = try (0..<2).map { number in
            let client = try server.connect()
            try client.send(
                "POST", "/v1/agents/echo/large\(number)", [("Content-Type", Self.json), ("Prefer", "wait=30")], Bytes(Self.hello.utf8))
            try server.eventually("the wait") { server.agents.waiting.withLock { $0["agents/echo/large\(number)"] != nil } }
            try server.agents.end("agents/echo/large\(number)", said)
            return client
        }
        // The first one does not take its answer before the second one has its own.
        #expect(try clients[1].answer().status == 202)
        #expect(try clients[0].answer().json?["output"]?.string?.utf8.count == 8 << 20)
    }

    @Test func `Prefer wait that is not met answers 202 and withdraws`() throws {
        let server = try TestServer()
        let answer = try server.post("/v1/agents/echo/late", Self.hello, Self.json, [("Prefer", "wait=0")])
        #expect(answer.status == 202)
        #expect(answer.json?["entries"]?.array?.count == 1)
        #expect(server.agents.waiting.withLock { $0.isEmpty })
        #expect(server.agents.withdrawn.load(ordering: .relaxed) == 1)
    }

    @Test(arguments: ["61", "99999999999999999999", "000000000000000000000000060", "\"99999999999999999999\""])
    func `any number of seconds above 60 counts as 60`(_ seconds: String) throws {
        let server = try TestServer()
        let client = try server.connect()
        let name = "wait-\(seconds.utf8.count)-\(seconds.first == "\"")"
        try client.send(
            "POST", "/v1/agents/echo/\(name)", [("Content-Type", Self.json), ("Prefer", "wait=\(seconds)")], Bytes(Self.hello.utf8))
        try server.agents.end("agents/echo/\(name)", ["type": "turn.completed"])
        #expect(try client.answer().headers["preference-applied"] == "wait=60")
    }

    @Test(arguments: [
        ("GET", "/v1/agents/echo/missing", 404, "channel_not_found"), ("DELETE", "/v1/agents/echo/missing", 404, "channel_not_found"),
        ("GET", "/v1/agents/echo", 404, "route_not_found"), ("GET", "/v1/agents/echo/a/b", 404, "route_not_found"),
        ("GET", "/v1/agentsx", 404, "route_not_found"), ("POST", "/v1/agents/echo/..", 404, "route_not_found"),
        ("PUT", "/v1/agents/echo/a", 405, "method_not_allowed"), ("POST", "/v1/agents", 405, "method_not_allowed"),
        ("FOO", "/v1/agents/echo/a", 501, "unsupported_method"), ("FOO", "/v1/agents", 501, "unsupported_method"),
        ("get", "/v1/stream/a", 501, "unsupported_method"), ("FOO", "/healthz", 501, "unsupported_method"),
        ("FOO", "/v1/socket", 501, "unsupported_method"), ("TRACE", "/v1/agents", 405, "method_not_allowed"),
        ("GET", "/v1/agents?limit=0", 400, "invalid_limit"), ("GET", "/v1/agents?limit=x", 400, "invalid_limit"),
        ("GET", "/v1/agents?limit=1001", 400, "invalid_limit"),
        ("GET", "/v1/agents?state=happy", 400, "invalid_state"), ("POST", "/v1/agents/nobody/a", 404, "unknown_agent_kind"),
    ])
    func `what is not there is said`(_ method: String, _ path: String, _ status: Int, _ code: String) throws {
        let body = method == "POST" ? Self.hello : ""
        let answer = try Self.server.request(method, path, body.isEmpty ? [] : [("Content-Type", Self.json)], body)
        #expect(answer.status == status)
        #expect(answer.code == code)
        if status == 405 { #expect(answer.headers["allow"] != nil) }
    }

    @Test(arguments: [
        ("GET", "/v1/agents?knid=echo", ["'knid'", "kind, state, limit, after, details, counts", "Did you mean 'kind'?"]),
        ("GET", "/v1/agents/echo/a?view=settled", ["'view'", "accepts none"]), ("POST", "/v1/agents/echo/a?wait=5", ["'wait'"]),
        ("DELETE", "/v1/agents/echo/a?force", ["'force'"]), ("GET", "/v1/agents/echo/a/trace?limt=1", ["Did you mean 'limit'?"]),
        ("GET", "/v1/agents/echo/a/audit?turn=1", ["by, type, since, until, limit, before"]),
        ("GET", "/v1/agents/echo/a/request?stp=1", ["Did you mean 'step'?"]), ("GET", "/v1/agents/echo/a/state?x=1", ["'x'"]),
        ("GET", "/v1/streams?ofset=3", ["'ofset'", "prefix, limit, after, agents"]), ("GET", "/v1/kinds?kind=echo", ["'kind'"]),
        ("POST", "/v1/tickets?channel=x", ["'channel'"]),
    ])
    func `a parameter that the route does not have is refused`(_ method: String, _ path: String, _ says: [String]) throws {
        let body = method == "POST" ? Self.hello : ""
        let answer = try Self.server.request(method, path, body.isEmpty ? [] : [("Content-Type", Self.json)], body)
        #expect(answer.status == 400 && answer.code == "unknown_parameter", "\(answer.text)")
        for words in says { #expect(answer.json?["detail"]?.string?.contains(words) == true, "\(answer.text)") }
    }

    /// Clients of the protocol add their own, so that caches take a request for another one.
    @Test func `a parameter that the protocol does not have is left alone`() throws {
        let path = try Self.server.stream("text/plain", "x")
        #expect(try Self.server.get(path + "?offset=-1&_=42").status == 200)
    }

    @Test(arguments: ["wait", "wait=x", "wait=-1"]) func `a wait that is no number is refused`(_ preference: String) throws {
        #expect(try Self.server.post("/v1/agents/echo/prefer", Self.hello, Self.json, [("Prefer", preference)]).code == "invalid_prefer")
    }

    @Test(arguments: [#"{"type":"cancel"}"#, #"{"type":"message","text":"a"}"#, #"[{"type":"cancel"},{"type":"close"}]"#])
    func `If-Match with a star creates no agent`(_ body: String) throws {
        for route in ["/v1/agents/echo/mistyped", "/v1/stream/agents/echo/mistyped"] {
            let answer = try Self.server.request("POST", route, [("Content-Type", Self.json), ("If-Match", "*")], body)
            #expect(answer.status == 404 && answer.code == "unknown_agent")
            #expect(answer.json?["agent"] == "agents/echo/mistyped")
        }
        let closing = try Self.server.request(
            "POST", "/v1/stream/agents/echo/mistyped", [("Stream-Closed", "true"), ("If-Match", "*")], "")
        #expect(closing.status == 404 && closing.code == "unknown_agent")
        let missing = try Self.server.get("/v1/agents/echo/mistyped")
        #expect(missing.code == "channel_not_found" && missing.json?["detail"]?.string?.contains("POST /v1/agents/echo/mistyped") == true)
    }

    @Test(arguments: [#"{"type":"message","text":"a"}"#, #"{"type":"cancel"}"#, #"{"type":"signal","name":"s"}"#])
    func `the first entry creates the agent`(_ body: String) throws {
        let server = try TestServer()
        #expect(try server.post("/v1/agents/echo/fresh", body, Self.json).status == 202)
        #expect(try server.get("/v1/agents/echo/fresh").status == 200)
    }

    @Test func `an agent that was created idle, or deleted, is no unknown one`() throws {
        let server = try TestServer()
        #expect(try server.request("PUT", "/v1/stream/agents/echo/idle", [("Content-Type", Self.json)], "").status == 201)
        let fields = [("Content-Type", Self.json), ("If-Match", "*")]
        #expect(try server.request("POST", "/v1/agents/echo/idle", fields, #"{"type":"cancel"}"#).status == 202)
        #expect(try server.request("DELETE", "/v1/agents/echo/idle").status == 204)
        #expect(try server.request("POST", "/v1/agents/echo/idle", fields, #"{"type":"cancel"}"#).code == "agent_deleted")
    }

    @Test func `a body that is no entry is answered with one`() throws {
        let text = try Self.server.post("/v1/agents/echo/plain", "hello", Self.json)
        #expect(text.code == "invalid_json" && text.json?["detail"]?.string?.contains(#"{"type":"message","text":"Hello"}"#) == true)
        let form = try Self.server.post("/v1/agents/echo/plain", Self.hello, "application/x-www-form-urlencoded")
        #expect(form.status == 409 && form.json?["detail"]?.string?.contains("'Content-Type: application/json'") == true)
    }

    @Test func `an agent is looked at, listed and removed`() throws {
        let server = try TestServer()
        try server.post("/v1/agents/echo/one", Self.hello, Self.json)
        try server.post("/v1/agents/assistant/two", Self.hello, Self.json)
        #expect(try server.get("/v1/agents/echo/one").json?["tail"] == "0000000000000001")
        #expect(try server.get("/v1/agents").json?["agents"]?.array?.count == 2)
        #expect(try server.get("/v1/agents?kind=echo&state=idle&limit=5").json?["agents"]?.array?.count == 1)
        #expect(try server.request("DELETE", "/v1/agents/echo/one", [("If-Match", "0000000000000009")], "").code == "tail_moved")
        #expect(try server.request("DELETE", "/v1/agents/echo/one").status == 204)
        let deleted = try server.get("/v1/agents/echo/one")
        #expect(deleted.json?["detail"]?.string?.contains("PUT /v1/stream/agents/echo/one starts it anew") == true, "\(deleted.text)")
        #expect(try server.get("/v1/agents/echo/one").code == "agent_deleted")
        #expect(try server.post("/v1/agents/echo/one", Self.hello, Self.json).code == "agent_deleted")
    }
}
