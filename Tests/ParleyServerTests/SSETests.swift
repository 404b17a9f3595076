import ParleySystem
import Testing

@Suite struct `Following by server-sent events` {
    static let server = try! TestServer()

    /// What a reader of a closed stream gets, which ends by itself.
    private func all(_ path: String, _ query: String = "?offset=-1&live=sse", _ headers: [(String, String)] = []) throws -> [TestClient
        .Event]
    {
        let client = try Self.server.connect()
        try client.send("GET", path + query, headers)
        let head = try client.head()
        guard head.status == 200 else { throw TestFailure("\(head.status)") }
        return try client.events()
    }

    private func follow(_ path: String, _ query: String = "?offset=-1&live=sse", on server: TestServer = Self.server) throws -> TestClient {
        let client = try server.connect()
        try client.send("GET", path + query)
        #expect(try client.head().status == 200)
        return client
    }

    static let refusals: [ProtocolCase] = [
        .init("without an offset", .put(), .get(400, "?live=sse", code: "missing_offset")),
        .init("of nothing", .get(404, "?live=sse&offset=-1", code: "channel_not_found")),
        .init("now of nothing", .get(404, "?live=sse&offset=now")),
        .init("a bad offset", .put(), .get(400, "?live=sse&offset=x", code: "invalid_offset")),
        .init("two offsets", .put(), .get(400, "?live=sse&offset=-1&offset=now", code: "invalid_offset")),
    ]

    @Test(arguments: refusals) func `a stream of events is refused as the protocol says`(_ row: ProtocolCase) throws {
        try row.run(on: Self.server)
    }

    @Test func `the head says what follows`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let client = try Self.server.connect()
        try client.send("GET", path + "?offset=-1&live=sse")
        let head = try client.head()
        #expect(head.headers["content-type"] == "text/event-stream")
        #expect(head.headers["cache-control"] == "no-cache")
        #expect(head.headers["x-accel-buffering"] == "no")
        #expect(head.headers["content-length"] == nil)
        #expect(head.headers["x-content-type-options"] == "nosniff")
        #expect(head.headers["stream-sse-data-encoding"] == nil)
    }

    @Test func `data is followed by a control event that says where to go on`() throws {
        let client = try follow(try Self.server.stream("text/plain", "hello"))
        #expect(try client.event() == TestClient.Event(name: "data", data: "hello"))
        let control = try #require(try client.event())
        #expect(control.name == "control")
        #expect(control.id == "0000000000000001")
        #expect(control.json?["streamNextOffset"] == "0000000000000001")
        #expect(control.json?["upToDate"] == true)
        #expect(control.json?["streamClosed"] == nil)
        #expect(UInt64(control.json?["streamCursor"]?.string ?? "") != nil)
    }

    @Test(arguments: ["-1", "now"]) func `a reader with nothing to read is told so at once`(_ offset: String) throws {
        let client = try follow(try Self.server.stream("text/plain"), "?offset=\(offset)&live=sse")
        let control = try #require(try client.event())
        #expect(control.name == "control")
        #expect(control.json?["upToDate"] == true)
        #expect(control.json?["streamNextOffset"] == "0000000000000000")
    }

    @Test func `now leaves out what was there`() throws {
        let path = try Self.server.stream("text/plain", "old")
        let client = try follow(path, "?offset=now&live=sse")
        #expect(try client.event()?.json?["streamNextOffset"] == "0000000000000001")
        try Self.server.post(path, "new")
        #expect(try client.event()?.data == "new")
    }

    @Test func `the end of a closed stream is said without a cursor, and the connection goes on`() throws {
        let path = try Self.server.stream("text/plain", "x", closed: true)
        let client = try follow(path)
        let events = try client.events()
        #expect(events.map(\.name) == ["data", "control"])
        #expect(events[1].json == ["streamNextOffset": "0000000000000001", "upToDate": true, "streamClosed": true])
        #expect(try client.request("GET", path).text == "x")
    }

    @Test func `an empty closed stream says its end and nothing else`() throws {
        let events = try all(try Self.server.stream("text/plain", "", closed: true))
        #expect(events.map(\.name) == ["control"])
        #expect(events[0].json?["streamClosed"] == true)
    }

    /// Payloads that try to be more than data, and what a reader must get of them.
    private static let payloads: [(String, String)] = [
        ("line1\nline2\nline3", "line1\nline2\nline3"), ("ends\n", "ends\n"), ("\n", "\n"), ("\n\n", "\n\n"),
        (" leading space", " leading space"),
        ("a\r\nb", "a\nb"), ("a\rb", "a\nb"), ("a\r\n\r\nevent: control\r\ndata: {}\r\n\r\nb", "a\n\nevent: control\ndata: {}\n\nb"),
        ("a\n\nevent: data\ndata: fake\n\nb", "a\n\nevent: data\ndata: fake\n\nb"),
        ("a\r\revent: control\rdata: {}\r\rb", "a\n\nevent: control\ndata: {}\n\nb"),
        ("data: x", "data: x"), (": comment", ": comment"), ("id: 5", "id: 5"), ("ä€😀", "ä€😀"), ("\u{2028}", "\u{2028}"),
    ]

    @Test(arguments: payloads) func `no payload can forge an event`(_ payload: String, _ expected: String) throws {
        let events = try all(try Self.server.stream("text/plain", payload, closed: true))
        #expect(events.map(\.name) == ["data", "control"])
        #expect(events[0].data == expected)
    }

    @Test func `JSON comes as an array, white space and line ends of its own included`() throws {
        let path = try Self.server.stream("application/json", "[{\"a\":\n1}, 2]", closed: true)
        let events = try all(path)
        #expect(events[0].json == [["a": 1], 2])
    }

    @Test(arguments: ["application/octet-stream", "image/png", "application/x-protobuf"])
    func `what is neither text nor JSON comes in base64`(_ type: String) throws {
        for bytes in [[0], [0, 255], [1, 2, 3], Bytes((0...255).map { UInt8($0) }), Bytes(repeating: 10, count: 50_000)] {
            let path = Self.server.path()
            #expect(try Self.server.request("PUT", path, [("Content-Type", type)] + closed, bytes).status == 201)
            let client = try Self.server.connect()
            try client.send("GET", path + "?offset=-1&live=sse")
            #expect(try client.head().headers["stream-sse-data-encoding"] == "base64")
            let events = try client.events()
            #expect(decodeBase64(events[0].data) == bytes)
            #expect(events[1].json?["streamClosed"] == true)
        }
    }

    @Test func `appends come in order, each with a greater offset, also over many connections`() throws {
        let path = try Self.server.stream("application/json")
        let readers = try (0..<6).map { _ in try follow(path) }
        for number in 0..<50 { try Self.server.post(path, "\(number)", "application/json") }
        try Self.server.post(path, "", "application/json", closed)
        for reader in readers {
            let events = try reader.events()
            let numbers = events.filter { $0.name == "data" }.flatMap { $0.json?.array ?? [] }.compactMap(\.integer)
            #expect(numbers == (0..<50).map { Int64($0) })
            let offsets = events.filter { $0.name == "control" }.compactMap { $0.json?["streamNextOffset"]?.string }
            #expect(offsets == offsets.sorted())
            for (event, next) in zip(events, events.dropFirst()) where event.name == "data" { #expect(next.name == "control") }
        }
    }

    @Test func `a reader goes on where it stopped, with no gap and nothing twice`() throws {
        let path = try Self.server.stream("application/json", "[1,2]")
        let first = try follow(path)
        _ = try first.event()
        let offset = try #require(try first.event()?.id)
        try Self.server.post(path, "[3,4]", "application/json", closed)
        #expect(try all(path, "?offset=\(offset)&live=sse")[0].json == [3, 4])
        // What a browser does by itself: the old URL, and how far it got.
        #expect(try all(path, "?offset=-1&live=sse", [("Last-Event-ID", offset)])[0].json == [3, 4])
        #expect(try all(path, "?offset=-1&live=sse", [("Last-Event-ID", "nonsense")])[0].json == [1, 2, 3, 4])
    }

    @Test func `a cursor that comes back is answered with a greater one`() throws {
        let path = try Self.server.stream("text/plain")
        let first = try #require(try follow(path).event()?.json?["streamCursor"]?.string.flatMap { UInt64($0) })
        let second = try #require(
            try follow(path, "?offset=-1&live=sse&cursor=\(first)").event()?.json?["streamCursor"]?.string.flatMap { UInt64($0) })
        #expect(second > first)
    }

    @Test(arguments: 0..<20) func `a waiting reader gets the data that comes with the end`(_ round: Int) throws {
        let path = try Self.server.stream("text/plain")
        let readers = try (0..<4).map { _ in try follow(path) }
        // Half of them are known to wait, the others may still be on their way in.
        for reader in readers[..<2] { #expect(try reader.event()?.json?["upToDate"] == true) }
        try Self.server.post(path, "last words \(round)", "text/plain", closed)
        for reader in readers {
            let events = try reader.events()
            #expect(events.filter { $0.name == "data" }.map(\.data) == ["last words \(round)"])
            #expect(events.last?.json?["streamClosed"] == true)
            #expect(events.filter { $0.json?["streamClosed"] != nil }.count == 1)
        }
    }

    @Test func `a stream that is removed ends without claiming to be closed`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let client = try follow(path)
        _ = try client.events { $0["upToDate"] == true }
        #expect(try Self.server.request("DELETE", path).status == 204)
        #expect(try client.events().allSatisfy { $0.json?["streamClosed"] == nil })
    }

    @Test func `a reader of a stream that is removed and made anew does not see the new one`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let client = try follow(path)
        _ = try client.events { $0["upToDate"] == true }
        #expect(try Self.server.request("DELETE", path).status == 204)
        #expect(try Self.server.request("PUT", path, [("Content-Type", "text/plain")], "new").status == 201)
        #expect(try client.events().filter { $0.name == "data" }.isEmpty)
    }
}

func decodeBase64(_ text: String) -> Bytes? {
    let alphabet = Bytes("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    guard text.utf8.count % 4 == 0 else { return nil }
    var bits: UInt32 = 0
    var count = 0
    var output = Bytes()
    for byte in text.utf8 where byte != UInt8(ascii: "=") {
        guard let value = alphabet.firstIndex(of: byte) else { return nil }
        bits = bits << 6 | UInt32(value)
        count += 6
        if count >= 8 {
            count -= 8
            output.append(UInt8(truncatingIfNeeded: bits >> UInt32(count)))
        }
    }
    return output
}
