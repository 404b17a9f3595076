import ParleyChannels
import ParleySystem
import Testing

@Suite struct `Forks over HTTP` {
    private static let server = Result { try TestServer() }
    private var server: TestServer { get throws { try Self.server.get() } }

    /// A path with a fork of `source`, and the answer to the request that asked for it.
    private func fork(_ source: String, _ headers: [(String, String)] = [], type: String? = nil, _ body: String = "") throws -> (
        path: String, answer: TestClient.Answer
    ) {
        let path = try server.path("fork")
        let typed = type.map { [("Content-Type", $0)] } ?? []
        return (path, try server.request("PUT", path, typed + [("Stream-Forked-From", source)] + headers, body))
    }

    @Test func `a fork is at the tail, or where it is told, by the path of its source`() throws {
        let source = try server.stream("text/plain", "ab")
        let first = try server.tail(source)
        try server.post(source, "cd")
        for (headers, text) in [
            ([], "abcd"), ([("Stream-Fork-Offset", first)], "ab"), ([("Stream-Fork-Offset", "-1")], ""),
            ([("Stream-Fork-Offset", first), ("Stream-Fork-Sub-Offset", "1")], "abc"),
        ] {
            let (path, answer) = try fork(source, headers)
            #expect(answer.status == 201 && answer.headers["content-type"] == "text/plain")
            #expect(answer.headers.keys.allSatisfy { !$0.hasPrefix("stream-fork") })
            #expect(try server.tail(path) == answer.next)
            try server.post(path, "!")
            #expect(try server.get(path).text == text + "!")
            #expect(try server.get(path + "?offset=\(answer.next)").text == "!")
        }
        #expect(try fork("http://localhost:\(server.port)" + source).answer.status == 201)
        let foreign = try fork("http://example.com" + source).answer
        #expect(foreign.status == 400 && foreign.code == "invalid_fork_source" && foreign.text.contains("example.com"))
        #expect(try fork(String(source.dropFirst("/v1/stream/".count))).answer.status == 201)
    }

    @Test func `a fork may begin with data of its own, and be closed though its source is not`() throws {
        let source = try server.stream("application/json", "[1]")
        let (path, answer) = try fork(source, [("Stream-Closed", "true")], type: "application/json", "[2, 3]")
        #expect(answer.status == 201 && answer.headers["stream-closed"] == "true")
        #expect(try server.get(path).text == "[1,2,3]")
        let closed = try server.stream("text/plain", "x", closed: true)
        #expect(try server.post(try fork(closed).path, "y").status == 204)
    }

    @Test func `what is wrong with a fork is said, and nothing is made`() throws {
        let source = try server.stream("text/plain", "ab")
        for (headers, type, status, code) in [
            ([("Stream-Fork-Offset", "x,y")], nil, 400, "invalid_fork_offset"),
            ([("Stream-Fork-Offset", "00000000000000ff")], nil, 400, "invalid_fork_offset"),
            ([("Stream-Fork-Offset", "-1"), ("Stream-Fork-Sub-Offset", "3")], nil, 400, "invalid_fork_offset"),
            ([("Stream-Fork-Offset", "-1"), ("Stream-Fork-Sub-Offset", "01")], nil, 400, "invalid_fork_offset"),
            ([("Stream-Fork-Sub-Offset", "1")], nil, 400, "invalid_fork_offset"),
            ([], "application/json", 409, "content_type_mismatch"),
        ] as [([(String, String)], String?, Int, String)] {
            let (path, answer) = try fork(source, headers, type: type)
            #expect(answer.status == status && answer.code == code, "\(headers): \(answer.text)")
            #expect(try server.get(path).status == 404)
        }
        #expect(try fork("/v1/stream/nowhere").answer.code == "fork_source_not_found")
        #expect(try fork("/v1/stream/a//b").answer.code == "invalid_stream_name")
        let alone = try server.request("PUT", try server.path(), [("Stream-Fork-Offset", "-1")])
        #expect(alone.code == "invalid_fork_offset")
        let agent = try server.request("PUT", "/v1/stream/agents/echo/forked", [("Stream-Forked-From", source)])
        #expect(agent.status == 403 && agent.code == "use_agent_fork")
    }

    @Test(arguments: ["", "-1", "+1", "01", "1.5", "1e3", " 1", "abc", "1000000001", "99999999999999999999"])
    func `seconds that are none are refused`(_ text: String) throws {
        let path = try server.path()
        #expect(try server.request("PUT", path, [("Stream-TTL", text)]).code == (text == " 1" ? nil : "invalid_ttl"))
        #expect(try server.get(path).status == (text == " 1" ? 200 : 404), "white space around a value is none of it")
    }

    @Test(arguments: ["", "tomorrow", "2999-01-01", "2999-01-01T00:00:00", "2999-13-01T00:00:00Z", "1700000000"])
    func `an instant that is none is refused`(_ text: String) throws {
        #expect(try server.request("PUT", try server.path(), [("Stream-Expires-At", text)]).code == "invalid_expires_at")
    }
}
