import ParleyChannels
import ParleyLog
import ParleySystem
import Testing

@Suite struct `Conditional appends and reads` {
    static let server = Result { try TestServer() }

    static let cases: [ProtocolCase] = [
        .init(
            "If-Match at the tail", .put(), .post(204, "a", [("If-Match", "0000000000000000")]),
            .post(204, "b", [("If-Match", "\"0000000000000001\"")])),
        .init(
            "If-Match behind the tail", .put(201, [], "a"),
            .post(412, "b", [("If-Match", "0000000000000000")], expect: ["Stream-Next-Offset": "0000000000000001"], code: "tail_moved"),
            .get(200, "", "a")),
        .init("If-Match beyond the tail", .put(), .post(412, "b", [("If-Match", "0000000000000009")], code: "tail_moved")),
        .init("If-Match of anything", .put(), .post(204, "a", [("If-Match", "*")])),
        .init("If-Match that is no offset", .put(), .post(400, "a", [("If-Match", "\"x\"")], code: "invalid_if_match"), .get(200, "", "")),
        .init(
            "a repeat of what has been appended is no conflict", .put(),
            .post(204, "a", [("If-Match", "0000000000000000"), ("Idempotency-Key", "k")]),
            .post(204, "a", [("If-Match", "0000000000000000"), ("Idempotency-Key", "k")], expect: ["Idempotent-Replayed": "true"])),
        .init("closing on a condition", .put(), .post(204, "", type: nil, [("Stream-Closed", "true"), ("If-Match", "0000000000000000")])),
        .init(
            "an idempotency key repeats", .put(), .post(204, "a", [("Idempotency-Key", "k")]),
            .post(204, "a", [("Idempotency-Key", "k")], expect: ["Idempotent-Replayed": "true"]), .get(200, "", "a")),
        .init(
            "a repeat is answered as the first was, whatever came after", .put(),
            .post(204, "a", [("Idempotency-Key", "k")], expect: ["Stream-Next-Offset": "0000000000000001"]), .post(204, "b"),
            .post(
                204, "a", [("Idempotency-Key", "k")],
                expect: ["Idempotent-Replayed": "true", "Stream-Next-Offset": "0000000000000001", "Stream-Closed": nil])),
        .init(
            "a repeat that is to close is another request", .put(), .post(204, "a", [("Idempotency-Key", "k")]),
            .post(422, "a", [("Idempotency-Key", "k"), ("Stream-Closed", "true")], code: "idempotency_key_reused")),
        .init(
            "DELETE on a condition", .put(201, [], "a"), .delete(412, [("If-Match", "\"0000000000000000\"")], code: "tail_moved"),
            .get(200, "", "a"), .delete(204, [("If-Match", "\"0000000000000001\"")]), .get(404)),
        .init(
            "PUT on the condition that there is none", .put(201, [("If-None-Match", "*")]),
            .put(412, [("If-None-Match", "*")], code: "precondition_failed"), .put(200)),
        .init("PUT on a condition that is none", .put(400, [("If-Match", "*")], code: "not_supported")),
        .init(
            "a closed stream says so, whatever a producer sends", .put(), .post(200, "a", producer("p", "0", "0") + closed),
            .post(409, "z", producer("p", "0", "5"), expect: ["Stream-Closed": "true"], code: "channel_closed"),
            .post(409, "z", producer("p", "1", "1"), expect: ["Stream-Closed": "true"], code: "channel_closed")),
        .init("a field given twice", .put(), .post(400, "a", [("Stream-Seq", "1"), ("Stream-Seq", "2")], code: "invalid_header")),
        .init(
            "an encoded body", .put(), .post(415, "a", [("Content-Encoding", "gzip")], code: "unsupported_content_encoding"),
            .post(204, "a", [("Content-Encoding", "identity")])),
        .init("what is shown by a browser runs nothing", .put(201, [], "<script>"), .get(expect: ["Content-Security-Policy": "sandbox"])),
        .init(
            "nothing is kept longer than the stream", .put(201, [("Stream-TTL", "20")], "a"),
            .get(expect: ["Cache-Control": .oneOf(["public, max-age=20", "public, max-age=19"])])),
        .init(
            "min_offset behind the end of a closed stream", .put(201, closed, "a"),
            .get(409, "?min_offset=0000000000000009", code: "channel_closed")),
        .init(
            "an idempotency key with another body", .put(), .post(204, "a", [("Idempotency-Key", "k")]),
            .post(422, "b", [("Idempotency-Key", "k")], code: "idempotency_key_reused")),
        .init(
            "an idempotency key and a producer", .put(),
            .post(400, "a", [("Idempotency-Key", "k")] + producer("p", "0", "0"), code: "conflicting_headers")),
        .init("min_offset that is there", .put(201, [], "a"), .get(200, "?min_offset=0000000000000001", "a")),
        .init("min_offset that is none", .put(), .get(400, "?min_offset=now", code: "invalid_min_offset")),
    ]

    @Test(arguments: cases) func `hold or are refused`(_ row: ProtocolCase) throws { try row.run(on: try Self.server.get()) }

    @Test func `min_offset waits for what is still to come`() throws {
        let server = try Self.server.get()
        let path = try server.stream("text/plain", "a")
        let client = try server.connect()
        try client.send("GET", path + "?min_offset=0000000000000003")
        try server.post(path, "b")
        try server.post(path, "c")
        let answer = try client.answer()
        #expect(answer.status == 200 && answer.text == "abc")
    }

    @Test(arguments: ["&live=sse", "&live=long-poll", ""]) func `a client that has waited for min_offset may go away while it reads`(_ live: String)
        throws
    {
        let server = try TestServer()
        let path = try server.stream("text/plain", "a")
        var client: TestClient? = try server.connect()
        try client!.send("GET", path + "?offset=-1&min_offset=0000000000000002" + live)
        try server.eventually("the reader") { try server.metric("parley_readers") == 1 }
        try server.post(path, "b")
        if live == "&live=sse" { #expect(try client!.head().status == 200) }
        client = nil
        try server.eventually("its end") { try server.metric("parley_readers") == 0 && server.metric("parley_connections") ?? 9 <= 1 }
        #expect(try server.get(path).text == "ab")
    }

    @Test func `a producer whose name is no UTF-8 is not taken for another`() throws {
        let server = try Self.server.get()
        let path = try server.stream("text/plain")
        let client = try server.connect()
        let head = "POST \(path) HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n"
        try client.send(Bytes((head + "Producer-Epoch: 0\r\nProducer-Seq: 0\r\nProducer-Id: Zo").utf8) + [0xe9] + Bytes("\r\n\r\na".utf8))
        let answer = try client.answer()
        #expect(answer.status == 400 && answer.code == "invalid_header" && answer.text.contains("Producer-Id"))
        #expect(try server.get(path).text == "")
    }

    @Test func `a request has not too many messages`() throws {
        let server = try Self.server.get()
        let path = try server.stream("application/json")
        let body = "[" + String(repeating: "0,", count: 100_000) + "0]"
        #expect(try server.post(path, body, "application/json").code == "too_many_messages")
        #expect(try server.tail(path) == "0000000000000000")
    }
}
