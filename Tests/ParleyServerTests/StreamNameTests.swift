import ParleySystem
import Testing

@Suite struct `Names, offsets and limits of streams` {
    static let server = try! TestServer()

    static let cases: [ProtocolCase] = [
        .init(
            "offsets count entries", .put(expect: ["Stream-Next-Offset": "0000000000000000"]),
            .post(204, "x", expect: ["Stream-Next-Offset": "0000000000000001"]), .head(expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init(
            "offsets count messages", .put(type: "application/json"),
            .post(204, "[1,2]", type: "application/json", expect: ["Stream-Next-Offset": "0000000000000002"]),
            .get(200, "?offset=0000000000000001", "[2]")),
        .init(
            "bytes of JSON are kept", .put(type: "application/json"),
            .post(204, #" { "b" : 1.0 , "a":"\u00e4", "c":-1.5e3 } "#, type: "application/json"),
            .get(200, "", #"[{ "b" : 1.0 , "a":"\u00e4", "c":-1.5e3 }]"#)),
        .init(
            "a charset comes back", .put(type: "application/json; charset=utf-8"),
            .get(200, "", "[]", expect: ["Content-Type": "application/json; charset=utf-8"])),
        .init("an empty stream is asked for again", .put(), .get(expect: ["Cache-Control": "no-cache"])),
        .init(
            "a stream with data is kept for a minute", .put(201, [], "x"),
            .get(expect: ["Cache-Control": "public, max-age=60, stale-while-revalidate=300", "Cross-Origin-Resource-Policy": "same-origin"])
        ),
        .init("an offset that was never given", .put(), .get(400, "?offset=00000000000000ff", code: "offset_beyond_tail")),
        .init("an unknown mode", .put(), .get(400, "?offset=-1&live=websocket", code: "invalid_live")),
        .init("views are of agents only", .put(201, [], "x"), .get(200, "?view=nonsense", "x")),
        .init("no seconds at all", .put(201, [("Stream-TTL", "0")]), .get(404)),
        .init(
            "an instant that is past", .put(201, [("Stream-Expires-At", "2001-01-01T00:00:00Z")]), .get(404), .head(404), .post(404, "x")),
        .init(
            "another method",
            Step(method: "PATCH", status: 405, expected: ["Allow": "GET, HEAD, PUT, POST, DELETE, OPTIONS"], code: "method_not_allowed")),
    ]

    @Test(arguments: cases) func `what the protocol leaves open is as Parley says`(_ row: ProtocolCase) throws {
        try row.run(on: Self.server)
    }

    @Test(arguments: [
        "1", "-2", "-1%20", "now%20", "NOW", "000000000000000%00", "0000000000000000%0A", "00000000000000000", "000000000000000G",
        "000000000000000A", "0000000000000000_0000000000000000", "%2B000000000000000",
    ])
    func `what is no offset of ours is refused`(_ text: String) throws {
        #expect(try Self.server.get(try Self.server.stream("text/plain", "x") + "?offset=\(text)").code == "invalid_offset")
    }

    @Test func `a body above the limit is 413`() throws {
        let path = try Self.server.stream("application/octet-stream")
        let answer = try Self.server.request(
            "POST", path, [("Content-Type", "application/octet-stream")], Bytes(repeating: 1, count: (10 << 20) + 1))
        #expect(answer.status == 413)
        #expect(answer.headers["x-content-type-options"] == "nosniff" && answer.headers["cache-control"] == "no-store")
        #expect(try Self.server.tail(path) == "0000000000000000")
    }

    @Test func `a known ETag is found in a list, weak or by a star`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let tag = try #require(try Self.server.get(path).headers["etag"])
        for candidate in [tag, "W/\(tag)", "\"other\", \(tag)", "*"] {
            let answer = try Self.server.get(path, [("If-None-Match", candidate)])
            #expect(answer.status == 304 && answer.body.isEmpty && answer.headers["etag"] == tag)
        }
    }

    @Test(arguments: [
        ("/v1/stream/", 400), ("/v1/stream/a//b", 400), ("/v1/stream/a/", 400), ("/v1/stream//a", 400), ("/v1/stream/a%00b", 400),
        ("/v1/stream/a%0ab", 400), ("/v1/stream/%7f", 400), ("/v1/stream/%zz", 400), ("/v1/stream/%ff", 400), ("/v1/stream/a/../b", 400),
        ("/v1/stream/./b", 400), ("/v1/stream/" + String(repeating: "x", count: 1_025), 400),
        ("/v1/stream/" + String(repeating: "x", count: 1_024), 201),
        ("/v1/stream/n%C3%A4me/with%20space", 201), ("/v1/stream/deep/er/and/deep/er", 201), ("/v1/stream/llm/x", 403),
        ("/v1/stream/__ds", 403),
        ("/v1/stream/agents", 404), ("/v1/stream/agents/echo", 404), ("/v1/stream/agents/echo/a/b", 404),
        ("/v1/stream/agents/echo/a%20b", 404), ("/v1/stream/agents/%CC%B8x/y", 404),
        ("/v1/stream/agents/echo/" + String(repeating: "x", count: 129), 404), ("/v1/stream/agentsandmore/x", 201),
    ])
    func `names are taken or refused`(_ path: String, _ status: Int) throws {
        let answer = try Self.server.request("PUT", path, [("Content-Type", "application/json")])
        #expect(answer.status == status, "\(answer.text)")
        if status >= 400 { #expect(answer.code != nil) }
    }

    @Test func `an encoded name is the same stream`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let encoded = path.replacing("-", with: "%2D")
        #expect(try Self.server.get(encoded).text == "x")
    }

    @Test func `Location is the absolute URL that was used`() throws {
        let path = Self.server.path()
        let answer = try Self.server.request("PUT", path, [("Host", "127.0.0.1:99")])
        #expect(answer.headers["location"] == "http://127.0.0.1:99" + path)
        let behindProxy = try Self.server.request("PUT", Self.server.path(), [("X-Forwarded-Proto", "https")])
        #expect(behindProxy.headers["location"]?.hasPrefix("https://localhost") == true)
    }

    @Test func `a name that only Unicode takes for another's is another stream`() throws {
        let path = Self.server.path() + "-caf"
        let names = [path + "%C3%A9", path + "e%CC%81"]
        for (index, name) in names.enumerated() {
            #expect(try Self.server.request("PUT", name, [("Content-Type", "text/plain")]).status == 201)
            #expect(try Self.server.request("POST", name, [("Content-Type", "text/plain")], "\(index)").status == 204)
        }
        for (index, name) in names.enumerated() { #expect(try Self.server.request("GET", name).body.text == "\(index)") }
        #expect(try Self.server.request("DELETE", names[0]).status == 204)
        #expect(try Self.server.request("GET", names[1]).status == 200)
    }
}
