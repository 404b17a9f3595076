import ParleySystem
import Testing

private let json = "application/json"

extension DurableStreams {
    @Suite struct `Appending` {
        static let cases: [ProtocolCase] = [
            .init(
                "an append says where it ends", .put(),
                .post(204, "hello", expect: ["Stream-Next-Offset": .after("{0}"), "Stream-Closed": nil]),
                .get(200, "", "hello", expect: ["Stream-Next-Offset": "{1}", "Stream-Up-To-Date": "true"])),
            .init("appends join", .put(), .post(204, "a"), .post(204, "b"), .post(204, "c"), .get(200, "", "abc")),
            .init(
                "each append has a greater offset", .put(), .post(204, "a", expect: ["Stream-Next-Offset": .after("{0}")]),
                .post(204, "b", expect: ["Stream-Next-Offset": .after("{1}")]),
                .post(204, "c", expect: ["Stream-Next-Offset": .after("{2}")]),
                .post(204, "d", expect: ["Stream-Next-Offset": .after("{3}")]),
                .post(204, "e", expect: ["Stream-Next-Offset": .after("{4}")])),
            .init("what was put is read at once", .put(201, [], "initial"), .get(200, "", "initial")),
            .init(
                "what was appended is read at once, from where it begins", .put(201, [], "a"), .get(200, "?offset=-1", "a"),
                .post(204, "b"),
                .post(204, "c"), .get(200, "?offset={1}", "bc")),
            .init("an append without a body", .put(), .post(400, code: "empty_body")),
            .init("an append without a type", .put(), .post(400, "x", type: nil, code: "missing_content_type")),
            .init("an append of another type", .put(), .post(409, "{}", type: json, code: "content_type_mismatch"), .get(200, "", "")),
            .init(
                "an append of the same type", .put(type: json), .post(204, #"{"test":true}"#, type: json),
                .get(200, "", #"[{"test":true}]"#)),
            .init("an append of the type in capitals", .put(), .post(204, "x", type: "TEXT/PLAIN"), .get(200, "", "x")),
            .init("an append of the type with a charset", .put(), .post(204, "x", type: "text/plain; charset=utf-8")),
            .init("bad JSON of another type is of another type", .put(), .post(409, "{", type: json, code: "content_type_mismatch")),
            // Stream-Seq: bytewise, strictly rising.
            .init(
                "seq rises, and never falls", .put(), .post(204, "a", [("Stream-Seq", "001")]), .post(204, "b", [("Stream-Seq", "002")]),
                .post(409, "c", [("Stream-Seq", "001")]), .get(200, "", "ab")),
            .init(
                "seq does not repeat", .put(), .post(204, "a", [("Stream-Seq", "001")]),
                .post(409, "a", [("Stream-Seq", "001")], code: "sequence_conflict"), .get(200, "", "a")),
            .init("seq is text: 10 is before 2", .put(), .post(204, "a", [("Stream-Seq", "2")]), .post(409, "b", [("Stream-Seq", "10")])),
            .init("seq is text: 10 is after 09", .put(), .post(204, "a", [("Stream-Seq", "09")]), .post(204, "b", [("Stream-Seq", "10")])),
            .init("seq has a case: a is after Z", .put(), .post(204, "a", [("Stream-Seq", "Z")]), .post(204, "b", [("Stream-Seq", "a")])),
            .init("seq has a case: B is before a", .put(), .post(204, "a", [("Stream-Seq", "a")]), .post(409, "b", [("Stream-Seq", "B")])),
            .init(
                "appends without seq stand between", .put(), .post(204, "a", [("Stream-Seq", "5")]), .post(204, "b"),
                .post(409, "c", [("Stream-Seq", "5")])),
            .init(
                "the type is judged before seq", .put(), .post(204, "a", [("Stream-Seq", "5")]),
                .post(409, "b", type: json, [("Stream-Seq", "1")], code: "content_type_mismatch")),
        ]

        @Test(arguments: cases) func `an append is taken or refused as the protocol says`(_ row: ProtocolCase) throws { try row.run() }

        @Test func `10 MiB are taken whole, or refused as too large`() throws {
            let path = try ProtocolServer.shared.stream("application/octet-stream")
            let body = Bytes(repeating: 1, count: 10 << 20)
            let answer = try ProtocolServer.shared.request("POST", path, [("Content-Type", "application/octet-stream")], body)
            #expect([200, 204, 413].contains(answer.status))
            #expect(try ProtocolServer.shared.read(path).count == (answer.status == 413 ? 0 : body.count))
        }
    }

    @Suite struct `Closing` {
        static let cases: [ProtocolCase] = [
            .init(
                "made closed", .put(201, closed, expect: ["Stream-Closed": "true", "Stream-Next-Offset": .any]),
                .head(expect: ["Stream-Closed": "true"])),
            .init(
                "made closed with all its data", .put(201, closed, "all", expect: ["Stream-Closed": "true"]),
                .get(200, "", "all", expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true"])),
            .init("made closed again", .put(201, closed), .put(200, closed, expect: ["Stream-Closed": "true"])),
            .init("made open where it is closed", .put(201, closed), .put(409, code: "channel_exists")),
            .init("made closed where it is open", .put(), .put(409, closed, code: "channel_exists")),
            .init("true has no case", .put(201, [("Stream-Closed", "TRUE")]), .head(expect: ["Stream-Closed": "true"])),
            .init("anything but true is nothing", .put(201, [("Stream-Closed", "yes")]), .head(expect: ["Stream-Closed": nil])),
            .init("closed by an empty append", .put(), .post(204, "", type: nil, closed, expect: ["Stream-Closed": "true"])),
            .init(
                "the close says where the stream ends", .put(201, [], "content"),
                .post(204, "", type: nil, closed, expect: ["Stream-Closed": "true", "Stream-Next-Offset": "{0}"])),
            .init(
                "closed with the last data, at once", .put(), .post(204, "first "),
                .post(204, "last", closed, expect: ["Stream-Closed": "true", "Stream-Next-Offset": .after("{1}")]),
                .get(200, "", "first last", expect: ["Stream-Closed": "true"])),
            .init(
                "closed again", .put(), .post(204, "", type: nil, closed),
                .post(204, "", type: nil, closed, expect: ["Stream-Closed": "true"])),
            .init(
                "a close without data has no type", .put(type: json),
                .post(204, "", type: "text/plain", closed, expect: ["Stream-Closed": "true"])),
            .init(
                "a close with data of another type changes nothing", .put(), .post(409, "{}", type: json, closed),
                .head(expect: ["Stream-Closed": nil])),
            .init("a close of nothing", .post(404, "", type: nil, closed)),
            .init("a close must say true", .put(), .post(400, "", [("Stream-Closed", "1")], code: "empty_body")),
            .init("true has no case in a close", .put(), .post(204, "", [("Stream-Closed", "True")], expect: ["Stream-Closed": "true"])),
            .init("an empty append is none", .put(), .post(400, "", code: "empty_body"), .head(expect: ["Stream-Closed": nil])),
            .init(
                "an append to a closed stream", .put(), .post(204, "", type: nil, closed),
                .post(409, "b", expect: ["Stream-Closed": "true"]),
                .get(200, "", "")),
            .init(
                "an append to a closed stream is told where it ends", .put(201, [], "content"), .post(204, "", type: nil, closed),
                .post(409, "b", expect: ["Stream-Closed": "true", "Stream-Next-Offset": "{1}"], code: "channel_closed")),
            .init(
                "an append to a closed stream that would close it", .put(), .post(204, "", type: nil, closed),
                .post(409, "b", closed, expect: ["Stream-Closed": "true"], code: "channel_closed")),
            .init(
                "closed is judged before the type", .put(), .post(204, "", closed),
                .post(409, "{}", type: json, expect: ["Stream-Closed": "true"], code: "channel_closed")),
            .init(
                "closed is judged before seq", .put(), .post(204, "a", [("Stream-Seq", "5")]), .post(204, "", closed),
                .post(409, "b", [("Stream-Seq", "1")], expect: ["Stream-Closed": "true"], code: "channel_closed")),
            .init("HEAD says nothing of an open stream", .put(), .head(expect: ["Stream-Closed": nil])),
            .init("HEAD says it", .put(), .post(204, "", type: nil, closed), .head(expect: ["Stream-Closed": "true"])),
            .init(
                "a read to the end says it", .put(201, [], "content"), .post(204, "", type: nil, closed),
                .get(200, "", "content", expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true"])),
            .init(
                "a read at the end says it", .put(201, [], "content"), .post(204, "", type: nil, closed),
                .get(200, "?offset={1}", "", expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true"])),
            .init(
                "a read from now says it", .put(201, [], "content"), .post(204, "", type: nil, closed),
                .get(200, "?offset=now", "", expect: ["Stream-Closed": "true", "Stream-Up-To-Date": "true"])),
        ]

        @Test(arguments: cases) func `a stream ends as the protocol says`(_ row: ProtocolCase) throws { try row.run() }

        @Test func `only the page that reaches the end says that the stream is closed`() throws {
            let server = ProtocolServer.shared
            let path = try server.stream()
            for number in 0..<12 { try server.post(path, "\(number);" + String(repeating: "x", count: 200)) }
            let end = try server.post(path, "end", "text/plain", closed).next
            var offset = "-1"
            while offset != end {
                let page = try server.get(path + "?offset=\(offset)")
                try #require(page.status == 200 && (page.next > offset || offset == "-1"))
                #expect((page.headers["stream-closed"] == "true") == (page.next == end))
                #expect((page.headers["stream-up-to-date"] == "true") == (page.next == end))
                offset = page.next
            }
        }
    }

    @Suite struct `JSON messages` {
        static let cases: [ProtocolCase] = [
            .init("one value", .put(type: json), .post(204, #"{"a":1}"#, type: json), .get(200, "", #"[{"a":1}]"#)),
            .init(
                "an array is its elements", .put(type: json),
                .post(204, #"[{"a":1},{"b":2}]"#, type: json, expect: ["Stream-Next-Offset": .after("{0}")]),
                .get(200, "", #"[{"a":1},{"b":2}]"#)),
            .init("one level only", .put(type: json), .post(204, "[[1,2],[3]]", type: json), .get(200, "", "[[1,2],[3]]")),
            .init("an array in an array is one message", .put(type: json), .post(204, "[[1,2,3]]", type: json), .get(200, "", "[[1,2,3]]")),
            .init(
                "an array of arrays in an array is one message", .put(type: json), .post(204, "[[[1,2],[3,4]]]", type: json),
                .get(200, "", "[[[1,2],[3,4]]]")),
            .init(
                "arrays as messages", .put(type: json), .post(204, "[[1,2,3]]", type: json), .post(204, #"[["a","b"]]"#, type: json),
                .get(200, "", #"[[1,2,3],["a","b"]]"#)),
            .init(
                "an array of objects as one message", .put(type: json), .post(204, #"[[{"id":1},{"id":2}]]"#, type: json),
                .get(200, "", #"[[{"id":1},{"id":2}]]"#)),
            .init("an array of an empty array", .put(type: json), .post(204, "[[]]", type: json), .get(200, "", "[[]]")),
            .init(
                "appends join to one array", .put(type: json), .post(204, #"{"n":1}"#, type: json), .post(204, #"{"n":2}"#, type: json),
                .post(204, #"{"n":3}"#, type: json), .get(200, "", #"[{"n":1},{"n":2},{"n":3}]"#)),
            .init(
                "values, arrays and nested arrays, mixed", .put(type: json), .post(204, #"{"one":1}"#, type: json),
                .post(204, #"[[{"two":2},{"three":3}]]"#, type: json), .post(204, #"[[["nested","array"]]]"#, type: json),
                .post(204, "42", type: json), .get(200, "", #"[{"one":1},[{"two":2},{"three":3}],[["nested","array"]],42]"#)),
            .init(
                "a batch between two values", .put(type: json), .post(204, #"{"a":1}"#, type: json),
                .post(204, #"[{"b":1},{"b":2}]"#, type: json), .post(204, #"{"c":1}"#, type: json),
                .get(200, "", #"[{"a":1},{"b":1},{"b":2},{"c":1}]"#)),
            .init(
                "values of every kind", .put(type: json), .post(204, #"["text",42,true,null,{"o":"v"},[1,2,3],-1.5]"#, type: json),
                .post(204, "7", type: json), .post(204, #""bare""#, type: json), .post(204, "null", type: json),
                .get(200, "", #"["text",42,true,null,{"o":"v"},[1,2,3],-1.5,7,"bare",null]"#)),
            .init(
                "what is inside is kept", .put(type: json),
                .post(204, #"{"user":{"id":123,"tags":["a","b"]},"at":"2024-01-01T00:00:00Z"}"#, type: json),
                .get(200, "", #"[{"user":{"id":123,"tags":["a","b"]},"at":"2024-01-01T00:00:00Z"}]"#)),
            .init("an empty array", .put(type: json), .post(400, "[]", type: json, code: "empty_array"), .get(200, "", "[]")),
            .init("an empty array with white space", .put(type: json), .post(400, " [ \n ] ", type: json, code: "empty_array")),
            .init(
                "an empty array that would close", .put(type: json), .post(400, "[]", type: json, closed, code: "empty_array"),
                .head(expect: ["Stream-Closed": nil])),
            .init("no JSON", .put(type: json), .post(400, "{ nope }", type: json, code: "invalid_json"), .get(200, "", "[]")),
            .init("two values", .put(type: json), .post(400, "1 2", type: json, code: "invalid_json")),
            .init("a trailing comma", .put(type: json), .post(400, "[1,]", type: json, code: "invalid_json"), .get(200, "", "[]")),
            .init("no JSON for a closed stream", .put(type: json, closed), .post(409, "{", type: json, code: "channel_closed").or(400)),
            .init(
                "a charset", .put(type: "application/json; charset=utf-8"),
                .post(204, #"{"a":"b"}"#, type: "application/json; charset=utf-8"), .get(200, "", #"[{"a":"b"}]"#)),
            .init(
                "a charset for one of both", .put(type: "application/json; charset=utf-8"), .post(204, "1", type: json),
                .get(200, "", "[1]")),
            .init(
                "only application/json is cut", .put(type: "application/x-ndjson"), .post(204, "[1,2]", type: "application/x-ndjson"),
                .get(200, "", "[1,2]")),
        ]

        @Test(arguments: cases) func `messages are cut and kept as the protocol says`(_ row: ProtocolCase) throws { try row.run() }
    }
}
