import ParleySystem
import Testing

extension DurableStreams {
    @Suite struct `Reading` {
        static let cases: [ProtocolCase] =
            [
                .init(
                    "an empty stream", .put(),
                    .get(
                        200, "", "", expect: ["Stream-Up-To-Date": "true", "Stream-Next-Offset": .other(than: "-1"), "Stream-Closed": nil])),
                .init(
                    "an empty JSON stream", .put(type: "application/json"),
                    .get(200, "", "[]", expect: ["Content-Type": "application/json"])),
                .init(
                    "all there is", .put(201, [], "test data"),
                    .get(
                        200, "", "test data",
                        expect: ["Content-Type": "text/plain", "Stream-Next-Offset": "{0}", "Stream-Up-To-Date": "true", "ETag": .any])),
                .init(
                    "the type of JSON", .put(type: "application/json", [], #"{"a":1}"#), .get(expect: ["Content-Type": "application/json"])),
                .init("-1 is the start", .put(201, [], "x"), .get(200, "?offset=-1", "x", expect: ["Stream-Up-To-Date": "true"])),
                .init("no offset is the start", .put(201, [], "hello"), .get(200, "", "hello"), .get(200, "?offset=-1", "hello")),
                .init(
                    "on from an offset", .put(201, [], "a"), .get(200, "", "a"), .post(204, "b"), .get(200, "?offset={1}", "b"),
                    .get(200, "", "ab")),
                .init(
                    "on from where a write ended", .put(), .post(204, "a"), .post(204, "b"), .get(200, "?offset={1}", "b"),
                    .get(200, "?offset={2}", "", expect: ["Stream-Next-Offset": "{2}", "Stream-Up-To-Date": "true"])),
                .init(
                    "nothing twice", .put(), .post(204, "1"), .get(200, "", "1"), .post(204, "2"), .get(200, "?offset={2}", "2"),
                    .post(204, "3"),
                    .get(200, "?offset={4}", "3")),
                .init(
                    "at the tail", .put(201, [], "x"), .get(200, "", "x"),
                    .get(200, "?offset={1}", "", expect: ["Stream-Up-To-Date": "true", "Stream-Next-Offset": "{1}"])),
                .init(
                    "the same data at the same offset", .put(), .post(204, "a"), .get(200, "?offset=-1", "a"), .post(204, "b"),
                    .post(204, "c"),
                    .get(200, "?offset=-1", "abc"), .get(200, "?offset={1}", "bc"), .get(200, "?offset={2}", "bc")),
                .init("unknown parameters are nothing", .put(201, [], "x"), .get(200, "?offset=-1&foo=bar&baz=qux", "x")),
                // now.
                .init(
                    "now is the tail, and is not kept by caches", .put(201, [], "old"),
                    .get(
                        200, "?offset=now", "",
                        expect: ["Stream-Next-Offset": .any, "Stream-Up-To-Date": "true", "Cache-Control": .contains("no-store")])),
                .init("now has no ETag", .put(201, [], "x"), .get(200, "?offset=now", "", expect: ["ETag": nil])),
                .init(
                    "now says where the tail is", .put(201, [], "old"), .get(),
                    .get(200, "?offset=now", "", expect: ["Stream-Next-Offset": "{1}"])),
                .init(
                    "on from now", .put(201, [], "old"), .get(200, "?offset=now", ""), .post(204, "new"), .get(200, "?offset={1}", "new")),
                .init(
                    "now of an empty stream", .put(),
                    .get(200, "?offset=now", "", expect: ["Stream-Up-To-Date": "true", "Stream-Next-Offset": "{0}"])),
                .init(
                    "now of JSON", .put(type: "application/json", [], #"[{"a":1}]"#),
                    .get(
                        200, "?offset=now", "[]",
                        expect: ["Content-Type": "application/json", "Stream-Up-To-Date": "true", "Stream-Next-Offset": "{0}"])),
                .init(
                    "now of anything else", .put(201, [], "old"),
                    .get(200, "?offset=now", "", expect: ["Stream-Up-To-Date": "true", "Stream-Next-Offset": "{0}"])),
                .init("now of nothing", .get(404, "?offset=now")),
                .init("now of nothing, by long-poll", .get(404, "?offset=now&live=long-poll")),
                .init("now of nothing, by events", .get(404, "?offset=now&live=sse")),
                // Texts that are no offset.
                .init("two offsets", .put(201, [], "x"), .get(400, "?offset=-1&offset=-1", code: "invalid_offset")),
                .init("two offsets that are none", .put(201, [], "x"), .get(400, "?offset=a&offset=b", code: "invalid_offset")),
                // ETags.
                .init(
                    "a known ETag", .put(201, [], "x"), .get(expect: ["ETag": .any]),
                    .get(304, "", "", headers: [("If-None-Match", "{1.ETag}")]), .get(200, "", "x")),
                .init("an unknown ETag", .put(201, [], "x"), .get(200, "", "x", headers: [("If-None-Match", "\"other\"")])),
                .init(
                    "another ETag when there is more", .put(201, [], "a"), .get(), .post(204, "b"),
                    .get(200, "", "ab", headers: [("If-None-Match", "{1.ETag}")], expect: ["ETag": .other(than: "{1.ETag}")])),
                .init(
                    "another ETag when it is closed", .put(201, [], "a"), .get(), .post(204, "", type: nil, closed),
                    .get(
                        200, "", "a", headers: [("If-None-Match", "{1.ETag}")],
                        expect: ["ETag": .other(than: "{1.ETag}"), "Stream-Closed": "true"])),
                .init(
                    "another ETag when it is made anew", .put(201, [], "old"), .get(), .delete(), .put(201, [], "new"),
                    .get(200, "", "new", headers: [("If-None-Match", "{1.ETag}")])),
            ]

        static let noOffsets = ["", "0%201", "0,1", "../x", "x/..", "x/y", "0%00", "0%0A", "0%0D%0A"].map { text in
            ProtocolCase("'\(text)' is no offset", .put(201, [], "x"), .get(400, "?offset=\(text)", code: "invalid_offset"))
        }

        @Test(arguments: cases + noOffsets) func `a read answers as the protocol says`(_ row: ProtocolCase) throws { try row.run() }

        @Test(arguments: ["PUT", "POST"], [256, 100 << 10])
        func `octets that are written at once are read to the end, whatever the pages are`(_ method: String, _ count: Int) throws {
            let server = ProtocolServer.shared
            let path = method == "PUT" ? server.path() : try server.stream("application/octet-stream")
            let body = (0..<count).map { UInt8(truncatingIfNeeded: $0) }
            let answer = try server.request(method, path, [("Content-Type", "application/octet-stream")], body)
            #expect((200..<300).contains(answer.status))
            #expect(try server.read(path) == body)
        }

        @Test func `a long stream is read page by page, each beginning where the last one ended`() throws {
            let path = try ProtocolServer.shared.stream()
            let pieces = (0..<40).map { "\($0);" + String(repeating: "x", count: 100) }
            for piece in pieces { try ProtocolServer.shared.post(path, piece) }
            #expect(try ProtocolServer.shared.read(path).text == pieces.joined())
        }
    }

    @Suite struct `Long-polling` {
        static let cases: [ProtocolCase] = [
            .init("without an offset", .put(), .get(400, "?live=long-poll", code: "missing_offset")),
            .init("of nothing", .get(404, "?live=long-poll&offset=-1")),
            .init("a bad offset", .put(), .get(400, "?live=long-poll&offset=1,2", code: "invalid_offset")),
            .init(
                "what is there comes at once", .put(201, [], "existing"),
                .get(
                    200, "?live=long-poll&offset=-1", "existing",
                    expect: ["Stream-Cursor": .digits, "Stream-Up-To-Date": "true", "Stream-Next-Offset": "{0}"])),
            .init(
                "nothing is sniffed", .put(201, [], "x"),
                .get(200, "?live=long-poll&offset=-1", "x", expect: ["X-Content-Type-Options": "nosniff"])),
            .init(
                "a cursor that is no number", .put(201, [], "x"),
                .get(200, "?live=long-poll&offset=-1&cursor=abc", "x", expect: ["Stream-Cursor": .digits])),
            .init(
                "a closed stream", .put(), .post(204, "", type: nil, closed),
                .get(204, "?live=long-poll&offset={1}", "", expect: ["Stream-Closed": "true"])),
            .init(
                "the end of a closed stream", .put(201, [], "data"), .post(204, "", type: nil, closed),
                .get(
                    204, "?live=long-poll&offset={1}", "",
                    expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true", "Stream-Next-Offset": "{1}"])),
            .init(
                "a closed stream with data", .put(201, closed, "x"),
                .get(200, "?live=long-poll&offset=-1", "x", expect: ["Stream-Closed": "true"])),
            .init(
                "now of a closed stream", .put(201, closed, "x"),
                .get(204, "?live=long-poll&offset=now", "", expect: ["Stream-Closed": "true"])),
        ]

        @Test(arguments: cases) func `a long-poll answers as the protocol says`(_ row: ProtocolCase) throws { try row.run() }

        @Test func `a cursor that comes back is answered with a greater one`() throws {
            let path = try ProtocolServer.shared.stream("text/plain", "x")
            var cursor: UInt64 = 0
            for _ in 0..<5 {
                let answer = try ProtocolServer.shared.get(path + "?live=long-poll&offset=-1&cursor=\(cursor)")
                let next = try #require(UInt64(answer.headers["stream-cursor"] ?? ""))
                #expect(next > cursor)
                cursor = next
            }
        }

        /// All of them at once, because a server may let each wait for a minute.
        @Test func `who waits in vain is told where to resume, and with which cursor`() throws {
            let server = ProtocolServer.shared
            let (empty, full) = (try server.stream(), try server.stream("text/plain", "x"))
            let waits = try [(empty, try server.tail(empty)), (full, try server.tail(full)), (empty, "now"), (full, "now")].map {
                path, offset in
                let client = try server.connect()
                try client.send("GET", path + "?offset=\(offset)&live=long-poll")
                return (path, client)
            }
            let answers = try waits.map { try $0.1.answer() }
            for ((path, _), answer) in zip(waits, answers) {
                #expect(answer.status == 204 && answer.body.isEmpty)
                #expect(answer.next == (try server.tail(path)))
                #expect(answer.headers["stream-up-to-date"] == "true" && answer.headers["stream-closed"] == nil)
                #expect(UInt64(answer.headers["stream-cursor"] ?? "") != nil)
                #expect(answer.headers["x-content-type-options"] == "nosniff")
            }
            try server.post(empty, "first")
            #expect(try server.get(empty + "?offset=\(answers[2].next)").text == "first")
        }

        /// Another reader waits before, and still does when they are answered: unless this machine is too busy, and it is tried again.
        @Test(arguments: ["", "data"]) func `at the end of a closed stream nobody waits`(_ body: String) throws {
            let server = ProtocolServer.shared
            for _ in 0..<3 {
                let (waiting, open) = (try server.connect(), try server.stream())
                try waiting.send("GET", open + "?live=long-poll&offset=\(try server.tail(open))")
                let path = try server.stream("text/plain", body, closed: true)
                let answer = try server.get(path + "?live=long-poll&offset=\(try server.tail(path))")
                #expect(answer.status == 204 && answer.headers["stream-closed"] == "true")
                if !waiting.hasInput(within: 0) { return }
            }
            Issue.record("the end of a closed stream is told no sooner than who waits in vain is answered")
        }

        @Test func `who waits from now on gets what comes, and nothing that was there`() throws {
            let server = ProtocolServer.shared
            let path = try server.stream("text/plain", "old;")
            let reader = try server.connect()
            try reader.send("GET", path + "?live=long-poll&offset=now")
            // When `now` was, only the server knows.
            for _ in 0..<1_000 where !reader.hasInput(within: 20) { try server.post(path, "new;") }
            let answer = try reader.answer()
            #expect(answer.status == 200 && answer.headers["stream-up-to-date"] == "true")
            #expect(answer.text.hasPrefix("new;") && !answer.text.contains("old"))
        }

        /// Two of them wait by then, the third may still be on its way in.
        @Test(arguments: ["append", "close", "append and close", "delete"], ["-1 of nothing", "the tail of nothing", "the tail"])
        func `a waiting reader is answered by what happens`(_ event: String, _ place: String) throws {
            let server = ProtocolServer.shared
            let path = try server.stream("text/plain", place == "the tail" ? "old" : "")
            let offset = place == "-1 of nothing" ? "-1" : try server.tail(path)
            let readers = try (0..<3).map { _ in try server.connect() }
            for (number, reader) in readers.enumerated() {
                if number == 2 { for reader in readers[..<2] { #expect(!reader.hasInput(within: 100), "it does not wait") } }
                try reader.send("GET", path + "?live=long-poll&offset=\(offset)")
            }
            switch event {
            case "append": try server.post(path, "new")
            case "close": try server.post(path, "", "text/plain", closed)
            case "append and close": try server.post(path, "new", "text/plain", closed)
            default: _ = try server.request("DELETE", path)
            }
            for reader in readers {
                let answer = try reader.answer()
                switch event {
                case "append":
                    #expect(answer.status == 200 && answer.text == "new")
                    #expect(answer.headers["stream-up-to-date"] == "true" && answer.headers["stream-closed"] == nil)
                case "close": #expect(answer.body.isEmpty && answer.headers["stream-closed"] == "true")
                case "append and close": #expect(answer.text == "new" && answer.headers["stream-closed"] == "true")
                default: #expect([204, 404, 410].contains(answer.status))
                }
            }
        }
    }
}
