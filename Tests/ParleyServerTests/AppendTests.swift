import ParleySystem
import Testing

@Suite struct `Appending and closing` {
    static let server = try! TestServer()

    static let cases: [ProtocolCase] = [
        .init(
            "POST", .put(), .post(204, "x", expect: ["Stream-Next-Offset": "0000000000000001", "Stream-Closed": nil]), .get(200, "", "x")),
        .init("appends join", .put(), .post(204, "a"), .post(204, "b"), .post(204, "c"), .get(200, "", "abc")),
        .init(
            "read your write at once", .put(), .post(204, "a"), .get(200, "?offset=-1", "a"), .post(204, "b"), .get(200, "?offset={1}", "b")
        ),
        .init("no body", .put(), .post(400, code: "empty_body")),
        .init("no type", .put(), .post(400, "x", type: nil, code: "missing_content_type")),
        .init("another type", .put(), .post(409, "x", type: "application/json", code: "content_type_mismatch"), .get(200, "", "")),
        .init("the type in capitals", .put(), .post(204, "x", type: "TEXT/PLAIN")),
        .init("the type with a charset", .put(), .post(204, "x", type: "text/plain; charset=utf-8")),
        .init("invalid JSON where there is nothing", .post(404, "{", type: "application/json")),
        .init("invalid JSON for another type", .put(), .post(409, "{", type: "application/json", code: "content_type_mismatch")),
        .init(
            "invalid JSON for a closed stream", .put(type: "application/json", closed),
            .post(409, "{", type: "application/json", code: "channel_closed")),
        // Stream-Seq: bytewise, strictly rising.
        .init("seq rises", .put(), .post(204, "a", [("Stream-Seq", "001")]), .post(204, "b", [("Stream-Seq", "002")])),
        .init(
            "seq repeats", .put(), .post(204, "a", [("Stream-Seq", "1")]),
            .post(409, "a", [("Stream-Seq", "1")], code: "sequence_conflict"), .get(200, "", "a")),
        .init("seq falls", .put(), .post(204, "a", [("Stream-Seq", "2")]), .post(409, "b", [("Stream-Seq", "1")])),
        .init("2 then 10", .put(), .post(204, "a", [("Stream-Seq", "2")]), .post(409, "b", [("Stream-Seq", "10")])),
        .init("09 then 10", .put(), .post(204, "a", [("Stream-Seq", "09")]), .post(204, "b", [("Stream-Seq", "10")])),
        .init("Z then a", .put(), .post(204, "a", [("Stream-Seq", "Z")]), .post(204, "b", [("Stream-Seq", "a")])),
        .init("a then Z", .put(), .post(204, "a", [("Stream-Seq", "a")]), .post(409, "b", [("Stream-Seq", "Z")])),
        .init(
            "without seq in between", .put(), .post(204, "a", [("Stream-Seq", "5")]), .post(204, "b"),
            .post(409, "c", [("Stream-Seq", "5")])),
        .init(
            "type is judged before seq", .put(), .post(204, "a", [("Stream-Seq", "5")]),
            .post(409, "b", type: "application/json", [("Stream-Seq", "1")], code: "content_type_mismatch")),
        // Closing.
        .init(
            "close", .put(), .post(204, "", closed, expect: ["Stream-Closed": "true", "Stream-Next-Offset": "0000000000000000"]),
            .head(expect: ["Stream-Closed": "true"])),
        .init("close again", .put(), .post(204, "", closed), .post(204, "", closed, expect: ["Stream-Closed": "true"])),
        .init("close ignores the type", .put(), .post(204, "", type: "application/json", closed, expect: ["Stream-Closed": "true"])),
        .init("close without a type", .put(), .post(204, "", type: nil, closed)),
        .init(
            "close with data", .put(), .post(204, "end", closed, expect: ["Stream-Closed": "true"]),
            .get(200, "", "end", expect: ["Stream-Closed": "true"])),
        .init(
            "close with data of another type", .put(), .post(409, "{}", type: "application/json", closed),
            .head(expect: ["Stream-Closed": nil])),
        .init("close what is not there", .post(404, "", closed)),
        .init(
            "append after close", .put(), .post(204, "a", closed),
            .post(409, "b", expect: ["Stream-Closed": "true", "Stream-Next-Offset": "0000000000000001"], code: "channel_closed"),
            .get(200, "", "a")),
        .init(
            "append and close after close", .put(), .post(204, "", closed),
            .post(409, "b", closed, expect: ["Stream-Closed": "true"], code: "channel_closed")),
        .init(
            "closed is judged before the type", .put(), .post(204, "", closed),
            .post(409, "{}", type: "application/json", code: "channel_closed")),
        .init(
            "closed is judged before seq", .put(), .post(204, "a", [("Stream-Seq", "5")]), .post(204, "", closed),
            .post(409, "b", [("Stream-Seq", "1")], code: "channel_closed")),
        .init("close says true only", .put(), .post(400, "", [("Stream-Closed", "1")], code: "empty_body")),
        .init("close in capitals", .put(), .post(204, "", [("Stream-Closed", "True")], expect: ["Stream-Closed": "true"])),
        // JSON.
        .init("one value", .put(type: "application/json"), .post(204, #"{"a":1}"#, type: "application/json"), .get(200, "", #"[{"a":1}]"#)),
        .init(
            "an array is its elements", .put(type: "application/json"),
            .post(204, #"[{"a":1},{"b":2}]"#, type: "application/json", expect: ["Stream-Next-Offset": "0000000000000002"]),
            .get(200, "", #"[{"a":1},{"b":2}]"#)),
        .init(
            "one level only", .put(type: "application/json"), .post(204, "[[1,2],[3]]", type: "application/json"),
            .get(200, "", "[[1,2],[3]]"), .get(200, "?offset=0000000000000001", "[[3]]")),
        .init(
            "an array of an empty array", .put(type: "application/json"), .post(204, "[[]]", type: "application/json"),
            .get(200, "", "[[]]")),
        .init(
            "an empty array", .put(type: "application/json"), .post(400, "[]", type: "application/json", code: "empty_array"),
            .get(200, "", "[]")),
        .init(
            "an empty array with white space", .put(type: "application/json"),
            .post(400, " [ \n ] ", type: "application/json", code: "empty_array")),
        .init(
            "an empty array that closes", .put(type: "application/json"),
            .post(400, "[]", type: "application/json", closed, code: "empty_array"), .head(expect: ["Stream-Closed": nil])),
        .init(
            "primitives", .put(type: "application/json"), .post(204, #"[1,"a",null,true,-1.5e3]"#, type: "application/json"),
            .get(200, "", #"[1,"a",null,true,-1.5e3]"#)),
        .init("a bare primitive", .put(type: "application/json"), .post(204, "42", type: "application/json"), .get(200, "", "[42]")),
        .init(
            "bytes are kept", .put(type: "application/json"), .post(204, #" { "b" : 1.0 , "a":"\u00e4" } "#, type: "application/json"),
            .get(200, "", #"[{ "b" : 1.0 , "a":"\u00e4" }]"#)),
        .init(
            "invalid JSON", .put(type: "application/json"), .post(400, "{ nope }", type: "application/json", code: "invalid_json"),
            .get(200, "", "[]")),
        .init("two values", .put(type: "application/json"), .post(400, "1 2", type: "application/json", code: "invalid_json")),
        .init(
            "a trailing comma", .put(type: "application/json"), .post(400, "[1,]", type: "application/json", code: "invalid_json"),
            .get(200, "", "[]")),
        .init(
            "a charset", .put(type: "application/json; charset=utf-8"), .post(204, "1", type: "application/json"),
            .get(200, "", "[1]", expect: ["Content-Type": "application/json; charset=utf-8"])),
        .init(
            "only application/json is cut", .put(type: "application/x-ndjson"), .post(204, "[1,2]", type: "application/x-ndjson"),
            .get(200, "", "[1,2]"), .head(expect: ["Stream-Next-Offset": "0000000000000001"])),
        // Idempotency keys work on plain streams too.
        .init(
            "an idempotency key repeats", .put(), .post(204, "a", [("Idempotency-Key", "k")]),
            .post(204, "a", [("Idempotency-Key", "k")], expect: ["Idempotent-Replayed": "true"]), .get(200, "", "a")),
        .init(
            "an idempotency key with another body", .put(), .post(204, "a", [("Idempotency-Key", "k")]),
            .post(422, "b", [("Idempotency-Key", "k")], code: "idempotency_key_reused")),
        .init(
            "an idempotency key and a producer", .put(),
            .post(400, "a", [("Idempotency-Key", "k")] + producer("p", "0", "0"), code: "conflicting_headers")),
    ]

    @Test(arguments: cases) func `an append is taken or refused as the protocol says`(_ row: ProtocolCase) throws {
        try row.run(on: Self.server)
    }

    @Test func `every byte comes back as it was`() throws {
        let path = try Self.server.stream("application/octet-stream")
        let all = (0...255).map { UInt8($0) }
        #expect(try Self.server.request("POST", path, [("Content-Type", "application/octet-stream")], all).status == 204)
        #expect(try Self.server.get(path).body == all)
    }

    @Test func `a body above the limit is 413`() throws {
        let path = try Self.server.stream("application/octet-stream")
        let answer = try Self.server.request(
            "POST", path, [("Content-Type", "application/octet-stream")], Bytes(repeating: 1, count: (10 << 20) + 1))
        #expect(answer.status == 413)
        #expect(try Self.server.tail(path) == "0000000000000000")
    }

    @Test func `appends of many connections are all there, each whole`() throws {
        let path = try Self.server.stream("application/json")
        let clients = try (0..<8).map { _ in try Self.server.connect() }
        for round in 0..<20 {
            for (number, client) in clients.enumerated() {
                try client.send("POST", path, [("Content-Type", "application/json")], Bytes("[\(number * 100 + round),\"x\"]".utf8))
            }
            for client in clients { #expect(try client.answer().status == 204) }
        }
        let messages = try #require(try Self.server.get(path).json?.array)
        #expect(messages.count == 320)
        #expect(Set(messages.compactMap(\.integer)).count == 160)
        for pair in stride(from: 0, to: 320, by: 2) { #expect(messages[pair].integer != nil && messages[pair + 1] == "x") }
    }
}
