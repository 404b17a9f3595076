import ParleyChannels
import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `The records of agents` {
    static let server = try! TestServer()
    static let json = "application/json"

    @Test(arguments: [
        ("GET", "/v1/agents/echo/missing/trace", 404, "channel_not_found"),
        ("GET", "/v1/agents/echo/missing/audit", 404, "channel_not_found"),
        ("GET", "/v1/agents/echo/trace", 404, "channel_not_found"), ("GET", "/v1/agents/echo/there/history", 404, "route_not_found"),
        ("GET", "/v1/agents/echo/a/b/trace", 404, "route_not_found"), ("POST", "/v1/agents/echo/there/trace", 405, "method_not_allowed"),
        ("DELETE", "/v1/agents/echo/there/audit", 405, "method_not_allowed"),
        ("GET", "/v1/agents/echo/there/trace?limit=0", 400, "invalid_limit"),
        ("GET", "/v1/agents/echo/there/trace?limit=201", 400, "invalid_limit"),
        ("GET", "/v1/agents/echo/there/trace?turn=1", 400, "invalid_turn"),
        ("GET", "/v1/agents/echo/there/trace?before=x", 400, "invalid_before"),
        ("GET", "/v1/agents/echo/there/trace?turn=0000000000000001&before=0000000000000001", 400, "conflicting_parameters"),
        ("GET", "/v1/agents/echo/there/trace?turn=0000000000000009", 404, "turn_not_found"),
        ("GET", "/v1/agents/echo/there/request", 400, "invalid_step"), ("GET", "/v1/agents/echo/there/request?step=1", 400, "invalid_step"),
        ("GET", "/v1/agents/echo/there/request?step=0000000000000001", 404, "step_not_found"),
        ("GET", "/v1/agents/echo/missing/request?step=0000000000000001", 404, "channel_not_found"),
        ("POST", "/v1/agents/echo/there/request?step=0000000000000001", 405, "method_not_allowed"),
        ("GET", "/v1/agents/echo/there/audit?limit=1001", 400, "invalid_limit"),
        ("GET", "/v1/agents/echo/there/audit?type=approve,nope", 400, "invalid_type"),
        ("GET", "/v1/agents/echo/there/audit?since=yesterday", 400, "invalid_since"),
        ("GET", "/v1/agents/echo/there/audit?until=2026", 400, "invalid_until"),
        ("GET", "/v1/agents/echo/there/audit?before=-1", 400, "invalid_before"),
    ])
    func `what is asked wrongly is said`(_ method: String, _ path: String, _ status: Int, _ code: String) throws {
        try Self.server.post("/v1/agents/echo/there", #"{"type":"message","text":"hello"}"#, Self.json)
        let answer = try Self.server.request(method, path, [], "")
        #expect(answer.status == status)
        #expect(answer.code == code)
        if status == 405 { #expect(answer.headers["allow"] != nil) }
    }

    @Test func `what there is of an agent is told to whoever asks for something else of it`() throws {
        let answer = try Self.server.request("GET", "/v1/agents/echo/there/trase", [], "")
        #expect(answer.code == "route_not_found")
        for part in ["agents/echo/there has no 'trase'", "audit, request, state, definition", "Did you mean trace?"] {
            #expect(answer.text.contains(part), "\(answer.text)")
        }
    }

    @Test func `a trace and an audit are answered as JSON that nobody keeps`() throws {
        let server = Self.server
        try server.post("/v1/agents/echo/asked", #"[{"type":"message","text":"hello"},{"type":"cancel","reason":"no"}]"#, Self.json)
        let channels = server.channels
        var owned = Append(
            to: "agents/echo/asked",
            [
                NewEntry(.receipt, Position(turn: 1), ("of", "0000000000000001"), ("state", "applied")),
                NewEntry(.turnStarted, Position(turn: 1), ("input", "0000000000000001")),
                NewEntry(.stepStarted, Position(turn: 1, step: "a/0/b", attempt: 1), ("kind", "tool"), ("name", "b")),
                NewEntry(.stepCompleted, Position(turn: 1, step: "a/0/b", attempt: 1), ("result", 1)),
                NewEntry(.receipt, Position(turn: 1), ("of", "0000000000000002"), ("state", "applied")),
                NewEntry(.turnCancelled, Position(turn: 1), ("reason", "no")),
            ])
        owned.owner.decides = [1, 2]
        channels.submit(owned)
        // Once this is answered, the submission before it is in the log.
        try server.post("/v1/agents/echo/asked", #"{"type":"signal","name":"s"}"#, Self.json)

        let trace = try server.get("/v1/agents/echo/asked/trace?limit=5")
        #expect(trace.status == 200 && trace.headers["content-type"] == Self.json && trace.headers["cache-control"] == "private, no-store")
        let turn = trace.json?["turns"]?.array?.first
        #expect(turn?["state"] == "cancelled" && turn?["controls"]?.array?.first?["type"] == "cancel")
        #expect(turn?["steps"]?.array?.first?["steps"]?.array?.first?["steps"]?.array?.first?["kind"] == "tool")
        #expect(try server.get("/v1/agents/echo/asked/trace?turn=0000000000000001").json?["turns"]?.array?.first == turn)

        let audit = try server.get("/v1/agents/echo/asked/audit")
        #expect(audit.json?["records"]?.array?.map { $0["receipt"]?["state"] } == ["applied", "applied", nil])
        #expect(try server.get("/v1/agents/echo/asked/audit?type=cancel,signal&limit=1").json?["records"]?.array?.count == 1)
        #expect(try server.get("/v1/agents/echo/asked/audit?by=nobody").json?["records"] == [])
        #expect(try server.request("HEAD", "/v1/agents/echo/asked/audit").status == 200)
    }

    @Test func `of an agent that was deleted there is none`() throws {
        try Self.server.post("/v1/agents/echo/gone", #"{"type":"message","text":"hello"}"#, Self.json)
        #expect(try Self.server.request("DELETE", "/v1/agents/echo/gone").status == 204)
        #expect(try Self.server.get("/v1/agents/echo/gone/trace").code == "agent_deleted")
        #expect(try Self.server.get("/v1/agents/echo/gone/audit").status == 410)
    }
}
