import ParleySystem
import ParleyServer
import Testing

@Suite struct `Reading what is there` {
    static let server = try! TestServer { $0.pageBytes = 1_024 }

    private static let malformed = [
        "", "%20", "1", "-2", "-1%20", "now%20", "NOW", "a,b", "0,1", "../x", "x/..", "000000000000000%00", "0000000000000000%0A",
        "00000000000000000",
        "000000000000000G", "000000000000000A", "0000000000000000_0000000000000000", "%2B000000000000000",
    ]

    static let cases: [ProtocolCase] =
        [
            .init(
                "an empty stream", .put(),
                .get(
                    200, "", "",
                    expect: [
                        "Stream-Up-To-Date": "true", "Stream-Next-Offset": "0000000000000000", "Stream-Closed": nil,
                        "Content-Type": "text/plain", "Cache-Control": "no-cache",
                    ])),
            .init(
                "an empty JSON stream", .put(type: "application/json"), .get(200, "", "[]", expect: ["Content-Type": "application/json"])),
            .init(
                "headers", .put(201, [], "x"),
                .get(
                    200, "", "x",
                    expect: [
                        "ETag": "*", "Cache-Control": "public, max-age=60, stale-while-revalidate=300",
                        "Cross-Origin-Resource-Policy": "same-origin", "Stream-Up-To-Date": "true",
                    ])),
            .init("-1 is the start", .put(201, [], "x"), .get(200, "?offset=-1", "x")),
            .init(
                "from an offset", .put(), .post(204, "a"), .post(204, "b"), .get(200, "?offset={1}", "b"),
                .get(200, "?offset={2}", "", expect: ["Stream-Next-Offset": "0000000000000002", "Stream-Up-To-Date": "true"])),
            .init(
                "now", .put(201, [], "x"),
                .get(
                    200, "?offset=now", "",
                    expect: [
                        "Stream-Next-Offset": "0000000000000001", "Stream-Up-To-Date": "true", "Cache-Control": "no-store", "ETag": nil,
                    ])),
            .init(
                "now for JSON", .put(type: "application/json", [], "[1]"),
                .get(200, "?offset=now", "[]", expect: ["Content-Type": "application/json"])),
            .init("now of a closed stream", .put(201, closed, "x"), .get(200, "?offset=now", "", expect: ["Stream-Closed": "true"])),
            .init("now of nothing", .get(404, "?offset=now")),
            .init("on from now", .put(201, [], "x"), .get(200, "?offset=now", ""), .post(204, "y"), .get(200, "?offset={1}", "y")),
            .init("two offsets", .put(), .get(400, "?offset=-1&offset=-1", code: "invalid_offset")),
            .init("an offset that was never given", .put(), .get(400, "?offset=00000000000000ff", code: "offset_beyond_tail")),
            .init("unknown parameters", .put(201, [], "x"), .get(200, "?foo=bar&offset=-1&x", "x")),
            .init("an unknown mode", .put(), .get(400, "?offset=-1&live=websocket", code: "invalid_live")),
            .init(
                "the end of a closed stream", .put(201, closed, "x"),
                .get(200, "?offset={0}", "", expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true"])),
            .init("views are of agents only", .put(201, [], "x"), .get(200, "?view=nonsense", "x")),
            .init(
                "the same data at the same offset", .put(), .post(204, "a"), .get(200, "?offset=-1", "a"), .post(204, "b"),
                .get(200, "?offset=-1", "ab"), .get(200, "?offset={1}", "b")),
        ] + malformed.map { .init("offset '\($0)'", .put(201, [], "x"), .get(400, "?offset=\($0)", code: "invalid_offset")) }

    @Test(arguments: cases) func `a read answers as the protocol says`(_ row: ProtocolCase) throws { try row.run(on: Self.server) }

    @Test func `a long stream is read in pages, and only the last one says so`() throws {
        let path = try Self.server.stream("text/plain")
        let pieces = (0..<40).map { "\($0);" + String(repeating: "x", count: 100) }
        for piece in pieces { try Self.server.post(path, piece) }
        try Self.server.post(path, "", "text/plain", closed)
        var offset = "-1"
        var read = ""
        var pages = 0
        while true {
            let page = try Self.server.get(path + "?offset=\(offset)")
            read += page.text
            pages += 1
            #expect(page.next > offset || offset == "-1")
            offset = page.next
            if page.headers["stream-closed"] != nil {
                #expect(page.headers["stream-up-to-date"] == "true")
                break
            }
            #expect(page.headers["stream-up-to-date"] == nil)
        }
        #expect(read == pieces.joined())
        #expect(pages > 3)
    }

    @Test func `an entry larger than a page comes whole`() throws {
        let big = String(repeating: "y", count: 100_000)
        let path = try Self.server.stream("text/plain", big)
        #expect(try Self.server.get(path).text == big)
    }

    @Test func `a known ETag is answered 304 until something changes`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let tag = try #require(try Self.server.get(path).headers["etag"])
        for candidate in [tag, "W/\(tag)", "\"other\", \(tag)", "*"] {
            let answer = try Self.server.get(path, [("If-None-Match", candidate)])
            #expect(answer.status == 304)
            #expect(answer.body.isEmpty)
            #expect(answer.headers["etag"] == tag)
        }
        #expect(try Self.server.get(path, [("If-None-Match", "\"other\"")]).text == "x")
        try Self.server.post(path, "y")
        let grown = try Self.server.get(path, [("If-None-Match", tag)])
        #expect(grown.text == "xy")
        try Self.server.post(path, "", "text/plain", closed)
        let ended = try Self.server.get(path, [("If-None-Match", grown.headers["etag"]!)])
        #expect(ended.status == 200)
        #expect(ended.headers["stream-closed"] == "true")
    }

    @Test func `a stream made anew has other ETags`() throws {
        let path = try Self.server.stream("text/plain", "old")
        let tag = try #require(try Self.server.get(path).headers["etag"])
        #expect(try Self.server.request("DELETE", path).status == 204)
        #expect(try Self.server.request("PUT", path, [("Content-Type", "text/plain")], "new").status == 201)
        #expect(try Self.server.get(path, [("If-None-Match", tag)]).text == "new")
    }
}

@Suite struct `Long-polling` {
    static let server = try! TestServer { $0.longPollTimeout = .milliseconds(80) }

    static let cases: [ProtocolCase] = [
        .init("without an offset", .put(), .get(400, "?live=long-poll", code: "missing_offset")),
        .init("of nothing", .get(404, "?live=long-poll&offset=now")),
        .init(
            "data is there", .put(201, [], "x"),
            .get(
                200, "?live=long-poll&offset=-1", "x",
                expect: ["Stream-Cursor": "*", "Stream-Up-To-Date": "true", "Stream-Next-Offset": "0000000000000001"])),
        .init(
            "nothing comes", .put(201, [], "x"),
            .get(
                204, "?live=long-poll&offset={0}", "",
                expect: ["Stream-Cursor": "*", "Stream-Up-To-Date": "true", "Stream-Next-Offset": "0000000000000001", "Stream-Closed": nil])
        ),
        .init(
            "now waits", .put(201, [], "x"), .get(204, "?live=long-poll&offset=now", "", expect: ["Stream-Next-Offset": "0000000000000001"])
        ),
        .init(
            "closed", .put(201, closed, "x"),
            .get(
                204, "?live=long-poll&offset={0}", "",
                expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true", "Stream-Next-Offset": "0000000000000001"])),
        .init("closed with data", .put(201, closed, "x"), .get(200, "?live=long-poll&offset=-1", "x", expect: ["Stream-Closed": "true"])),
        .init(
            "now of a closed stream", .put(201, closed, "x"), .get(204, "?live=long-poll&offset=now", "", expect: ["Stream-Closed": "true"])
        ),
        .init("a bad offset", .put(), .get(400, "?live=long-poll&offset=1,2", code: "invalid_offset")),
        .init(
            "a cursor that is no number", .put(201, [], "x"),
            .get(200, "?live=long-poll&offset=-1&cursor=abc", "x", expect: ["Stream-Cursor": "*"])),
    ]

    @Test(arguments: cases) func `a long-poll answers as the protocol says`(_ row: ProtocolCase) throws { try row.run(on: Self.server) }

    @Test func `a cursor that comes back is answered with a greater one`() throws {
        let path = try Self.server.stream("text/plain", "x")
        var cursor: UInt64 = 0
        for _ in 0..<5 {
            let answer = try Self.server.get(path + "?live=long-poll&offset=-1&cursor=\(cursor)")
            let next = try #require(UInt64(answer.headers["stream-cursor"] ?? ""))
            #expect(next > cursor)
            cursor = next
        }
    }

    @Test(arguments: ["append", "close", "append and close", "delete"])
    func `a waiting reader is answered by what happens`(_ event: String) throws {
        let server = try TestServer()
        let path = try server.stream("text/plain", "x")
        let offset = try server.tail(path)
        let readers = try (0..<3).map { _ in try server.connect() }
        for reader in readers { try reader.send("GET", path + "?live=long-poll&offset=\(offset)") }
        try waitForReaders(3, on: server)
        switch event {
        case "append": try server.post(path, "y")
        case "close": try server.post(path, "", "text/plain", closed)
        case "append and close": try server.post(path, "y", "text/plain", closed)
        default: _ = try server.request("DELETE", path)
        }
        for reader in readers {
            let answer = try reader.answer()
            switch event {
            case "append":
                #expect(answer.text == "y")
                #expect(answer.headers["stream-closed"] == nil)
            case "close":
                #expect(answer.status == 204)
                #expect(answer.headers["stream-closed"] == "true")
            case "append and close":
                #expect(answer.text == "y")
                #expect(answer.headers["stream-closed"] == "true")
            default: #expect(answer.code == "channel_not_found")
            }
        }
    }
}

/// Waits until the server has `count` live readers.
func waitForReaders(_ count: Int, on server: TestServer) throws {
    let client = try server.connect()
    for _ in 0..<2_000 {
        let text = try client.request("GET", "/metrics").text
        if text.split(separator: "\n").contains("parley_readers \(count)") { return }
    }
    throw TestFailure("the server never has \(count) live readers")
}
