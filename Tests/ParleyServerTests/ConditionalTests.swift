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
}
