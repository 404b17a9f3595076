import ParleySystem
import Testing

@Suite struct `Creating, describing and removing streams` {
    static let server = try! TestServer()

    static let cases: [ProtocolCase] = [
        .init(
            "PUT creates",
            .put(201, expect: ["Location": "*", "Content-Type": "text/plain", "Stream-Next-Offset": "*", "Stream-Closed": nil])),
        .init("PUT again with the same type", .put(), .put(200, expect: ["Stream-Next-Offset": "*", "Content-Type": "text/plain"])),
        .init("PUT again in another case", .put(type: "text/plain"), .put(200, type: "TEXT/Plain")),
        .init("PUT again with a charset", .put(type: "application/json"), .put(200, type: "application/json; charset=utf-8")),
        .init("PUT again with another type", .put(), .put(409, type: "application/json", code: "channel_exists")),
        .init(
            "PUT without a type", .put(type: nil, expect: ["Content-Type": "application/octet-stream"]),
            .put(200, type: "application/octet-stream")),
        .init("PUT with first data", .put(201, [], "first"), .get(200, "", "first", expect: ["Stream-Up-To-Date": "true"])),
        .init("PUT again ignores data", .put(201, [], "first"), .put(200, [], "second"), .get(200, "", "first")),
        .init("PUT of JSON messages", .put(type: "application/json", [], "[1,2]"), .get(200, "", "[1,2]")),
        .init("PUT of no JSON messages", .put(type: "application/json", [], "[]"), .get(200, "", "[]")),
        .init("PUT of bad JSON creates nothing", .put(400, type: "application/json", [], "{", code: "invalid_json"), .get(404)),
        .init("PUT closed", .put(201, closed, expect: ["Stream-Closed": "true"]), .head(expect: ["Stream-Closed": "true"])),
        .init(
            "PUT closed with data", .put(201, closed, "all"),
            .get(200, "", "all", expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true"])),
        .init("PUT closed again", .put(201, closed), .put(200, closed, expect: ["Stream-Closed": "true"])),
        .init("PUT open where it is closed", .put(201, closed), .put(409, code: "channel_exists")),
        .init("PUT closed where it is open", .put(), .put(409, closed, code: "channel_exists")),
        .init("Stream-Closed in capitals", .put(201, [("Stream-Closed", "TRUE")]), .head(expect: ["Stream-Closed": "true"])),
        .init("Stream-Closed that is not true", .put(201, [("Stream-Closed", "yes")]), .head(expect: ["Stream-Closed": nil])),
        .init(
            "header names in capitals",
            Step(method: "PUT", headers: [("CONTENT-TYPE", "text/plain"), ("STREAM-CLOSED", "true")], status: 201),
            .head(expect: ["Stream-Closed": "true"])),
        .init(
            "HEAD", .put(201, [], "abc"),
            .head(expect: ["Content-Type": "text/plain", "Stream-Next-Offset": "*", "Cache-Control": "no-store", "Stream-Closed": nil])),
        .init("HEAD of nothing", .head(404)),
        .init("HEAD follows the tail", .put(), .post(204, "x"), .head(expect: ["Stream-Next-Offset": "0000000000000001"])),
        .init("GET of nothing", .get(404, code: "channel_not_found")),
        .init("POST to nothing", .post(404, "x", code: "channel_not_found")),
        .init("DELETE", .put(), .delete(), .get(404), .head(404), .post(404, "x"), .delete(404, code: "channel_not_found")),
        .init("DELETE of nothing", .delete(404, code: "channel_not_found")),
        .init("DELETE of a closed stream", .put(201, closed, "x"), .delete(), .get(404)),
        .init("a stream made anew has none of the old data", .put(201, [], "old"), .delete(), .put(201, [], "new"), .get(200, "", "new")),
        .init(
            "a stream made anew knows no producers", .put(), .post(200, "a", producer("p", "5", "0")), .delete(), .put(),
            .post(200, "b", producer("p", "0", "0")), .get(200, "", "b")),
        .init(
            "a stream made anew knows no sequence", .put(), .post(204, "a", [("Stream-Seq", "9")]), .delete(), .put(),
            .post(204, "b", [("Stream-Seq", "1")])),
        .init("a stream made anew may have another type", .put(), .delete(), .put(type: "application/json"), .get(200, "", "[]")),
        .init(
            "another method",
            Step(method: "PATCH", status: 405, expected: ["Allow": "GET, HEAD, PUT, POST, DELETE, OPTIONS"], code: "method_not_allowed")),
    ]

    @Test(arguments: cases) func `a stream lives as the protocol says`(_ row: ProtocolCase) throws { try row.run(on: Self.server) }

    @Test(arguments: [
        ("/v1/stream/", 400), ("/v1/stream/a//b", 400), ("/v1/stream/a/", 400), ("/v1/stream//a", 400), ("/v1/stream/a%00b", 400),
        ("/v1/stream/a%0ab", 400), ("/v1/stream/%7f", 400), ("/v1/stream/%zz", 400), ("/v1/stream/%ff", 400), ("/v1/stream/a/../b", 400),
        ("/v1/stream/./b", 400), ("/v1/stream/" + String(repeating: "x", count: 1_025), 400),
        ("/v1/stream/" + String(repeating: "x", count: 1_024), 201),
        ("/v1/stream/n%C3%A4me/with%20space", 201), ("/v1/stream/deep/er/and/deep/er", 201), ("/v1/stream/llm/x", 403),
        ("/v1/stream/__ds", 403),
        ("/v1/stream/agents", 404), ("/v1/stream/agents/echo", 404), ("/v1/stream/agents/echo/a/b", 404),
        ("/v1/stream/agents/echo/a%20b", 404),
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

    @Test func `of many that create one stream at once, one is new`() throws {
        let path = Self.server.path()
        let clients = try (0..<16).map { _ in try Self.server.connect() }
        for client in clients { try client.send("PUT", path, [("Content-Type", "text/plain")]) }
        let statuses = try clients.map { try $0.answer().status }
        #expect(statuses.filter { $0 == 201 }.count == 1)
        #expect(statuses.filter { $0 == 200 }.count == 15)
    }

    /// In Swift such names are equal: the one would be the other as long as it is in memory, whatever is on disk and whoever may read it.
    @Test func `a name that only Unicode takes for another's is refused`() throws {
        let path = Self.server.path() + "-caf"
        #expect(try Self.server.request("PUT", path + "%C3%A9").status == 201)
        for method in ["PUT", "GET", "POST", "DELETE"] {
            let answer = try Self.server.request(method, path + "e%CC%81", [("Content-Type", "text/plain")], "x")
            #expect(answer.status == 400 && answer.code == "invalid_stream_name")
        }
        #expect(try Self.server.request("GET", path + "%C3%A9").status == 200)
    }
}
