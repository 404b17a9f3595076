import ParleySystem
import Testing

extension DurableStreams {
    @Suite struct `Idempotent producers` {

        static let cases: [ProtocolCase] = [
            .init(
                "first", .put(),
                .post(200, "a", producer("p", "0", "0"), expect: ["Producer-Epoch": "0", "Producer-Seq": "0", "Stream-Next-Offset": .any])),
            .init(
                "in sequence", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(200, "b", producer("p", "0", "1"), expect: ["Producer-Seq": "1"]), .get(200, "", "ab")),
            .init(
                "many in sequence", .put(), .post(200, "0", producer("p", "0", "0")), .post(200, "1", producer("p", "0", "1")),
                .post(200, "2", producer("p", "0", "2")), .post(200, "3", producer("p", "0", "3")),
                .post(200, "4", producer("p", "0", "4")),
                .get(200, "", "01234")),
            .init(
                "a duplicate", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(204, "a", producer("p", "0", "0"), expect: ["Producer-Seq": "0"]), .get(200, "", "a")),
            .init(
                "an old duplicate names the highest", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(200, "b", producer("p", "0", "1")), .post(200, "c", producer("p", "0", "2")),
                .post(204, "b", producer("p", "0", "1"), expect: ["Producer-Seq": "2", "Producer-Epoch": "0"]), .get(200, "", "abc")),
            .init(
                "a duplicate does not set back", .put(), .post(200, "a", producer("p", "0", "0")), .post(204, "a", producer("p", "0", "0")),
                .post(200, "b", producer("p", "0", "1")), .get(200, "", "ab")),
            .init(
                "a gap", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(
                    409, "c", producer("p", "0", "2"), expect: ["Producer-Expected-Seq": "1", "Producer-Received-Seq": "2"],
                    code: "producer_gap"), .get(200, "", "a")),
            .init(
                "a first gap", .put(),
                .post(409, "c", producer("p", "0", "2"), expect: ["Producer-Expected-Seq": "0"], code: "producer_gap")),
            .init(
                "a new epoch", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(200, "b", producer("p", "1", "0"), expect: ["Producer-Epoch": "1", "Producer-Seq": "0"])),
            .init(
                "back to an epoch between", .put(), .post(200, "a", producer("p", "2", "0")), .post(403, "b", producer("p", "1", "0")),
                .get(200, "", "a")),
            .init("a new epoch that skips", .put(), .post(200, "a", producer("p", "0", "0")), .post(200, "b", producer("p", "7", "0"))),
            .init(
                "a new epoch not at 0", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(400, "b", producer("p", "1", "1"), code: "producer_epoch_sequence")),
            .init(
                "an old epoch", .put(), .post(200, "a", producer("p", "1", "0")),
                .post(403, "b", producer("p", "0", "0"), expect: ["Producer-Epoch": "1"], code: "producer_fenced"), .get(200, "", "a")),
            .init(
                "split brain", .put(), .post(200, "a", producer("p", "0", "0")), .post(200, "b", producer("p", "1", "0")),
                .post(403, "c", producer("p", "0", "1"), expect: ["Producer-Epoch": "1"]), .post(200, "d", producer("p", "1", "1")),
                .get(200, "", "abd")),
            .init(
                "producers are apart", .put(), .post(200, "a", producer("p", "0", "0")), .post(200, "b", producer("q", "3", "0")),
                .post(200, "c", producer("p", "0", "1")), .get(200, "", "abc")),
            .init(
                "producers in turns", .put(), .post(200, "A0", producer("A", "0", "0")), .post(200, "B0", producer("B", "0", "0")),
                .post(200, "A1", producer("A", "0", "1")), .post(200, "B1", producer("B", "0", "1")), .get(200, "", "A0B0A1B1")),
            .init(
                "one header without the others", .put(), .post(400, "a", [("Producer-Id", "p")]),
                .post(400, "a", [("Producer-Epoch", "0")]),
                .post(400, "a", [("Producer-Id", "p"), ("Producer-Epoch", "0")]), .get(200, "", "")),
            .init(
                "what is no number leaves no trace", .put(), .post(400, "a", producer("p", "0", "1abc")),
                .post(400, "a", producer("p", "0xyz", "0")),
                .post(400, "a", producer("p", "1e3", "0")), .post(400, "a", producer("p", "-1", "0")),
                .post(200, "a", producer("p", "0", "0")),
                .get(200, "", "a")),
            .init("without an epoch", .put(), .post(400, "a", [("Producer-Id", "p"), ("Producer-Seq", "0")], code: "invalid_producer")),
            .init(
                "without a sequence", .put(), .post(400, "a", [("Producer-Id", "p"), ("Producer-Epoch", "0")], code: "invalid_producer")),
            .init("without an id", .put(), .post(400, "a", [("Producer-Epoch", "0"), ("Producer-Seq", "0")], code: "invalid_producer")),
            .init("an empty id", .put(), .post(400, "a", producer("", "0", "0"), code: "invalid_producer")),
            .init("a sequence with junk", .put(), .post(400, "a", producer("p", "0", "1abc"), code: "invalid_producer")),
            .init("an epoch with junk", .put(), .post(400, "a", producer("p", "0x", "0"), code: "invalid_producer")),
            .init("an exponent", .put(), .post(400, "a", producer("p", "1e3", "0"), code: "invalid_producer")),
            .init("a negative epoch", .put(), .post(400, "a", producer("p", "-1", "0"), code: "invalid_producer")),
            .init("a fraction", .put(), .post(400, "a", producer("p", "0", "0.0"), code: "invalid_producer")),
            .init("the largest epoch", .put(), .post(200, "a", producer("p", "9007199254740991", "0"))),
            .init("past the largest epoch", .put(), .post(400, "a", producer("p", "9007199254740992", "0"), code: "invalid_producer")),
            .init("no stream", .post(404, "a", producer("p", "0", "0"))),
            .init(
                "another type", .put(), .post(409, "{}", type: "application/json", producer("p", "0", "0"), code: "content_type_mismatch"),
                .post(200, "a", producer("p", "0", "0"))),
            .init("no body", .put(), .post(400, "", producer("p", "0", "0"), code: "empty_body")),
            .init(
                "invalid JSON", .put(type: "application/json"), .post(400, "{", type: "application/json", producer("p", "0", "0")),
                .post(200, "1", type: "application/json", producer("p", "0", "0"))),
            .init("an empty array", .put(type: "application/json"), .post(400, "[]", type: "application/json", producer("p", "0", "0"))),
            .init(
                "with seq", .put(), .post(200, "a", producer("p", "0", "0") + [("Stream-Seq", "1")]),
                .post(204, "a", producer("p", "0", "0") + [("Stream-Seq", "1")]),
                .post(409, "b", producer("p", "0", "1") + [("Stream-Seq", "1")], code: "sequence_conflict"),
                .post(200, "b", producer("p", "0", "1") + [("Stream-Seq", "2")])),
            .init(
                "JSON", .put(type: "application/json"),
                .post(200, #"{"event":"e","value":42}"#, type: "application/json", producer("p", "0", "0")),
                .get(200, "", #"[{"event":"e","value":42}]"#)),
            .init(
                "JSON in sequence", .put(type: "application/json"),
                .post(200, #"{"n":0}"#, type: "application/json", producer("p", "0", "0")),
                .post(200, #"{"n":1}"#, type: "application/json", producer("p", "0", "1")),
                .post(200, #"{"n":2}"#, type: "application/json", producer("p", "0", "2")), .get(200, "", #"[{"n":0},{"n":1},{"n":2}]"#)),
            .init(
                "a duplicate of JSON", .put(type: "application/json"),
                .post(200, #"{"n":1}"#, type: "application/json", producer("p", "0", "0")),
                .post(204, #"{"n":1}"#, type: "application/json", producer("p", "0", "0")),
                .post(200, #"{"n":2}"#, type: "application/json", producer("p", "0", "1")), .get(200, "", #"[{"n":1},{"n":2}]"#)),
            .init(
                "a batch of JSON", .put(type: "application/json"), .post(200, "[1,2]", type: "application/json", producer("p", "0", "0")),
                .post(204, "[1,2]", type: "application/json", producer("p", "0", "0")),
                .post(200, "[3]", type: "application/json", producer("p", "0", "1")), .get(200, "", "[1,2,3]")),
            // With closing.
            .init(
                "close with data", .put(),
                .post(
                    200, "a", producer("p", "0", "0") + closed,
                    expect: ["Stream-Closed": "true", "Producer-Epoch": "0", "Producer-Seq": "0"]),
                .get(200, "", "a", expect: ["Stream-Closed": "true"])),
            .init(
                "close alone", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(
                    204, "", type: nil, producer("p", "0", "1") + closed,
                    expect: ["Stream-Closed": "true", "Producer-Seq": "1", "Producer-Epoch": "0"])),
            .init(
                "close again, same tuple", .put(), .post(200, "a", producer("p", "0", "0") + closed),
                .post(204, "a", producer("p", "0", "0") + closed, expect: ["Stream-Closed": "true"]), .get(200, "", "a")),
            .init(
                "close again, same tuple, another body", .put(), .post(200, "a", producer("p", "0", "0") + closed),
                .post(204, "b", producer("p", "0", "0") + closed), .get(200, "", "a")),
            .init(
                "close alone again", .put(), .post(204, "", type: nil, producer("p", "0", "0") + closed),
                .post(204, "", type: nil, producer("p", "0", "0") + closed, expect: ["Stream-Closed": "true"])),
            .init(
                "close again by another", .put(), .post(200, "a", producer("p", "0", "0") + closed),
                .post(409, "b", producer("q", "0", "0") + closed, expect: ["Stream-Closed": "true"])),
            .init(
                "close again, next sequence", .put(), .post(200, "a", producer("p", "0", "0") + closed),
                .post(409, "b", producer("p", "0", "1") + closed, expect: ["Stream-Closed": "true"])),
            .init(
                "an old epoch after close", .put(), .post(200, "a", producer("p", "0", "0")),
                .post(200, "b", producer("p", "1", "0") + closed),
                .post(409, "c", producer("p", "0", "1") + closed).or(403)),
        ]

        @Test(arguments: cases) func `a producer is heard once`(_ row: ProtocolCase) throws { try row.run() }

        @Test func `of many retries of one append, one is in the stream`() throws {
            let path = try ProtocolServer.shared.stream()
            let clients = try (0..<12).map { _ in try ProtocolServer.shared.connect() }
            for client in clients {
                try client.send("POST", path, [("Content-Type", "text/plain")] + producer("p", "0", "0"), Bytes("x".utf8))
            }
            let statuses = try clients.map { try $0.answer().status }
            #expect(statuses.filter { $0 == 200 }.count == 1)
            #expect(statuses.filter { $0 == 204 }.count == 11)
            #expect(try ProtocolServer.shared.get(path).text == "x")
        }
    }
}
