import ParleyHTTP
import ParleySystem
import Testing

extension DurableStreams {
    @Suite struct `Following by server-sent events` {
        private var server: ProtocolServer { .shared }

        static let refusals: [ProtocolCase] = [
            .init("without an offset", .put(), .get(400, "?live=sse", code: "missing_offset")),
            .init("of nothing", .get(404, "?live=sse&offset=-1", code: "channel_not_found")),
            .init("now of nothing", .get(404, "?live=sse&offset=now")),
            .init("a bad offset", .put(), .get(400, "?live=sse&offset=0,1", code: "invalid_offset")),
            .init("two offsets", .put(), .get(400, "?live=sse&offset=-1&offset=now", code: "invalid_offset")),
        ]

        @Test(arguments: refusals) func `a stream of events is refused as the protocol says`(_ row: ProtocolCase) throws { try row.run() }

        /// Closed streams, because their events end by themselves.
        static let heads: [ProtocolCase] = [
            .init(
                "it is an event stream, of no known length, that no cache keeps", .put(201, closed, "x"),
                .get(
                    200, "?offset=-1&live=sse",
                    expect: [
                        "Content-Type": "text/event-stream", "Content-Length": nil, "Cache-Control": .contains("no-cache"),
                    ])),
            .init(
                "of JSON, too", .put(type: "application/json", closed, "{}"),
                .get(200, "?offset=-1&live=sse", expect: ["Content-Type": "text/event-stream"])),
            .init(
                "it is not sniffed", .put(type: "application/json", closed, "{}"),
                .get(200, "?offset={0}&live=sse", expect: ["X-Content-Type-Options": "nosniff"])),
            .init(
                "text is sent as it is", .put(201, closed, "x"), .get(200, "?offset=-1&live=sse", expect: ["Stream-SSE-Data-Encoding": nil])
            ),
            .init(
                "JSON is sent as it is", .put(type: "application/json", closed, "{}"),
                .get(200, "?offset=-1&live=sse", expect: ["Stream-SSE-Data-Encoding": nil])),
            .init(
                "anything else is sent in base64", .put(type: "application/octet-stream", closed, "x"),
                .get(200, "?offset=-1&live=sse", expect: ["Stream-SSE-Data-Encoding": "base64"])),
        ]

        @Test(arguments: heads) func `the head says what follows`(_ row: ProtocolCase) throws { try row.run() }

        /// Nor do their events end.
        @Test(arguments: ["text/plain", "application/json", "application/octet-stream"], ["-1", "now", "tail"])
        func `the head of an open stream says the same`(_ type: String, _ offset: String) throws {
            let (path, client) = (try server.stream(type, "{}"), try server.connect())
            let place = offset == "tail" ? try server.tail(path) : offset
            try client.send("GET", path + "?offset=\(place)&live=sse", [("Accept", "text/event-stream")])
            let head = try client.head()
            #expect(head.status == 200 && head.headers["content-type"] == "text/event-stream")
            #expect(head.headers["content-length"] == nil && head.headers["cache-control"]?.contains("no-cache") == true)
            #expect(head.headers["stream-sse-data-encoding"] == (type == "application/octet-stream" ? "base64" : nil))
            #expect(head.headers["x-content-type-options"] == "nosniff")
        }

        @Test func `data is followed by a control event that says where to resume`() throws {
            let path = try server.stream("text/plain", "hello")
            let client = try server.follow(path)
            #expect(try client.event() == TestClient.Event(name: "data", data: "hello"))
            let control = try #require(try client.event())
            #expect(control.name == "control")
            #expect(control.json?["streamNextOffset"]?.string == (try server.tail(path)))
            #expect(control.json?["upToDate"] == true)
            #expect(control.json?["streamClosed"] == nil)
            #expect(UInt64(control.json?["streamCursor"]?.string ?? "") != nil)
        }

        @Test(arguments: [true, false]) func `what was appended before comes whole`(_ isClosed: Bool) throws {
            let path = try server.stream("text/plain", "message one;")
            try server.post(path, "message two;", "text/plain", isClosed ? closed : [])
            #expect(try server.events(path).filter { $0.name == "data" }.map(\.data).joined() == "message one;message two;")
        }

        @Test(arguments: ["-1", "now"], ["text/plain", "application/octet-stream", "application/json"])
        func `a reader with nothing to read is told so at once`(_ offset: String, _ type: String) throws {
            let path = try server.stream(type)
            let control = try #require(try server.follow(path, "?offset=\(offset)&live=sse").event())
            #expect(control.name == "control")
            #expect(control.json?["upToDate"] == true)
            #expect(control.json?["streamNextOffset"]?.string == (try server.get(path).next))
            #expect(control.json?["streamNextOffset"] != "-1")
        }

        @Test(arguments: ["text/plain", "application/octet-stream"]) func `now leaves out what was there`(_ type: String) throws {
            let path = try server.stream(type, "old")
            let client = try server.follow(path, "?offset=now&live=sse")
            let first = try #require(try client.event())
            #expect(first.name == "control" && first.json?["upToDate"] == true)
            #expect(first.json?["streamNextOffset"]?.string == (try server.tail(path)))
            try server.post(path, "new", type)
            #expect(try client.event()?.data == (type == "text/plain" ? "new" : "bmV3"))
        }

        @Test func `the end of a closed stream is said without a cursor, and then the events end`() throws {
            let path = try server.stream("text/plain", "x", closed: true)
            let client = try server.follow(path)
            let events = try client.events()
            #expect(events.map(\.name) == ["data", "control"])
            let control = try #require(events.last?.json)
            #expect(control["streamNextOffset"]?.string == (try server.tail(path)))
            #expect(control["streamClosed"] == true && control["streamCursor"] == nil && control["upToDate"] != false)
        }

        @Test(arguments: ["", "x"]) func `a reader at the end of a closed stream is told of its end, and nothing else`(_ body: String)
            throws
        {
            let path = try server.stream("text/plain", body, closed: true)
            let events = try server.events(path, "?offset=\(try server.tail(path))&live=sse")
            #expect(events.map(\.name) == ["control"])
            #expect(events[0].json?["streamClosed"] == true && events[0].json?["streamCursor"] == nil)
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

        @Test(arguments: payloads, [true, false])
        func `no payload can forge an event`(_ payload: (sent: String, received: String), _ isClosed: Bool) throws {
            let events = try server.events(try server.stream("text/plain", payload.sent, closed: isClosed))
            #expect(events.map(\.name) == ["data", "control"])
            #expect(events.first?.data == payload.received)
            #expect(events.last?.json?["streamNextOffset"]?.string != nil)
        }

        private static let messages: [(String, JSON)] = [
            (#"{"id": 1}"#, [["id": 1]]),
            (
                "[{\"a\":\n1}, {\"text\": \"1\\n2\\r\\n\\r\\nevent: control\\r\\ndata: {}\"}]",
                [["a": 1], ["text": "1\n2\r\n\r\nevent: control\r\ndata: {}"]]
            ),
        ]

        @Test(arguments: messages, [true, false])
        func `JSON comes as an array, whatever lines are in its white space and its strings`(
            _ messages: (sent: String, received: JSON), _ isClosed: Bool
        ) throws {
            let events = try server.events(try server.stream("application/json", messages.sent, closed: isClosed))
            #expect(events.map(\.name) == ["data", "control"])
            #expect(events.first?.json == messages.received)
            #expect(events.last?.json?["streamNextOffset"]?.string != nil)
        }

        @Test(arguments: ["application/octet-stream", "image/png", "application/x-protobuf"], [true, false])
        func `what is neither text nor JSON comes in base64, and control events do not`(_ type: String, _ isClosed: Bool) throws {
            for bytes in [
                [], [0], Bytes("Hello".utf8), [0xff, 0xfe, 0xfd], [0, 0x0a, 0x0d, 0xff, 0xfe, 0, 0x0a, 0x0d],
                [0x89, 0x50, 0x4e, 0x47, 13, 10],
                [8, 6, 18, 4, 110, 97, 109, 101], Bytes((0..<1_024).map { UInt8(truncatingIfNeeded: $0) }),
                Bytes(repeating: 10, count: 50_000),
            ] as [Bytes] {
                let path = server.path()
                #expect(try server.request("PUT", path, [("Content-Type", type)] + (isClosed ? closed : []), bytes).status == 201)
                let events = try server.events(path)
                let data = events.filter { $0.name == "data" }.map { decodeBase64($0.data.filter { !$0.isNewline }) ?? [] }
                #expect(data.reduce([], +) == bytes)
                #expect(events.last?.json?["streamNextOffset"]?.string == (try server.tail(path)))
                #expect(events.last?.json?["streamClosed"] == (isClosed ? true : nil))
            }
        }

        @Test func `an open stream of octets has control events with a cursor`() throws {
            let client = try server.follow(try server.stream("application/octet-stream", "x"))
            #expect(try client.event()?.data == "eA==")
            let control = try #require(try client.event()?.json)
            #expect(control["streamNextOffset"]?.string != nil && control["streamCursor"]?.string != nil)
        }

        @Test func `appends come in order, each with a greater offset, also over many connections`() throws {
            let path = try server.stream("application/json")
            let readers = try (0..<6).map { _ in try server.follow(path) }
            for number in 0..<50 { try server.post(path, "\(number)", "application/json") }
            try server.post(path, "", "application/json", closed)
            for reader in readers {
                let events = try reader.events { $0["streamClosed"] == true }
                let numbers = events.filter { $0.name == "data" }.flatMap { $0.json?.array ?? [] }.compactMap(\.integer)
                #expect(numbers == (0..<50).map { Int64($0) })
                var offsets: [String] = []
                for (event, next) in zip(events, events.dropFirst()) where event.name == "data" {
                    #expect(next.name == "control")
                    offsets.append(try #require(next.json?["streamNextOffset"]?.string))
                }
                #expect(offsets == Set(offsets).sorted())
            }
        }

        @Test func `a reader continues where it stopped, with no gap and nothing twice`() throws {
            let path = try server.stream("text/plain", "1;")
            try server.post(path, "2;")
            let offset = try #require(try server.events(path).last?.json?["streamNextOffset"]?.string)
            try server.post(path, "3;")
            #expect(try server.events(path, "?offset=\(offset)&live=sse").filter { $0.name == "data" }.map(\.data).joined() == "3;")
        }

        @Test func `a cursor that comes back is answered with a greater one`() throws {
            let path = try server.stream("text/plain", "x")
            func cursor(_ query: String = "") throws -> UInt64? {
                let control = try server.follow(path, "?offset=-1&live=sse" + query).events { $0["streamCursor"] != nil }.last
                return control?.json?["streamCursor"]?.string.flatMap { UInt64($0) }
            }
            let first = try #require(try cursor())
            #expect(try #require(try cursor("&cursor=\(first)")) > first)
        }

        @Test(arguments: 0..<20) func `a waiting reader gets the data that comes with the end`(_ round: Int) throws {
            let path = try server.stream("text/plain", "initial")
            let tail = try server.tail(path)
            let readers = try (0..<4).map { _ in try server.follow(path, "?offset=\(tail)&live=sse") }
            // Half of them are known to wait, the others may still be on their way in.
            for reader in readers[..<2] { #expect(try reader.event()?.json?["upToDate"] == true) }
            try server.post(path, "last words \(round)", "text/plain", closed)
            for reader in readers {
                let events = try reader.events { $0["streamClosed"] == true }
                #expect(events.filter { $0.name == "data" }.map(\.data).joined() == "last words \(round)")
            }
        }
    }
}
