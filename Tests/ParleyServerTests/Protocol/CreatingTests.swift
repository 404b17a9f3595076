import ParleySystem
import Testing

extension DurableStreams {
    @Suite struct `Creating, describing and removing` {
        static let cases: [ProtocolCase] = [
            // PUT.
            .init(
                "PUT creates, and says what and where",
                .put(
                    201,
                    expect: [
                        "Location": .ends("{path}"), "Content-Type": "text/plain", "Stream-Next-Offset": .any, "Stream-Closed": nil,
                    ])),
            .init(
                "PUT again with the same configuration is confirmed", .put(),
                .put(200, expect: ["Stream-Next-Offset": .any, "Content-Type": "text/plain"])),
            .init("PUT again in other letters is the same type", .put(type: "application/json"), .put(200, type: "APPLICATION/JSON")),
            .init(
                "PUT again with a charset is the same type", .put(type: "application/json"),
                .put(200, type: "application/json; charset=utf-8")),
            .init("PUT again with another type conflicts", .put(), .put(409, type: "application/json", code: "channel_exists")),
            .init("PUT without a type takes a default", .put(type: nil, expect: ["Content-Type": .any]), .get()),
            .init(
                "PUT without a type takes octets", .put(type: nil, expect: ["Content-Type": "application/octet-stream"]),
                .put(200, type: "application/octet-stream")),
            .init(
                "PUT with first data", .put(201, [], "first", expect: ["Stream-Next-Offset": .any]),
                .get(200, "", "first", expect: ["Stream-Up-To-Date": "true", "Stream-Next-Offset": "{0}"])),
            .init("PUT again leaves out its data", .put(201, [], "first"), .put(200, [], "second"), .get(200, "", "first")),
            .init("PUT of JSON messages", .put(type: "application/json", [], "[1,2]"), .get(200, "", "[1,2]")),
            .init(
                "PUT of no JSON messages is an empty stream", .put(type: "application/json", [], "[]"),
                .get(200, "", "[]", expect: ["Stream-Up-To-Date": "true"])),
            .init("PUT of bad JSON creates nothing", .put(400, type: "application/json", [], "{", code: "invalid_json"), .get(404)),
            .init(
                "names of header fields have no case",
                Step(method: "PUT", headers: [("CONTENT-TYPE", "text/plain"), ("stream-closed", "true")], status: 201),
                .head(expect: ["Stream-Closed": "true"])),
            .init(
                "names of header fields have no case in an append", .put(),
                Step(
                    method: "POST", headers: [("content-type", "text/plain"), ("stream-seq", "001")], body: Bytes("test".utf8), status: 204),
                .post(409, "again", [("STREAM-SEQ", "001")])),
            // HEAD.
            .init(
                "HEAD says what a GET would, without a body", .put(201, [], "abc"),
                .head(expect: ["Content-Type": "text/plain", "Stream-Next-Offset": "{0}", "Stream-Closed": nil]),
                .get(200, "", "abc")),
            .init("HEAD of nothing", .head(404)),
            .init(
                "HEAD follows the tail", .put(), .head(expect: ["Stream-Next-Offset": "{0}"]), .post(204, "x"),
                .head(expect: ["Stream-Next-Offset": .after("{1}")])),
            // Missing streams.
            .init("GET of nothing", .get(404, code: "channel_not_found")),
            .init("POST to nothing", .post(404, "x", code: "channel_not_found")),
            .init("POST of bad JSON to nothing", .post(404, "{", type: "application/json")),
            .init("DELETE of nothing", .delete(404, code: "channel_not_found")),
            // DELETE.
            .init(
                "DELETE removes for every verb", .put(201, [], "x"), .delete(), .get(404), .head(404), .post(404, "x"),
                .delete(404, code: "channel_not_found")),
            .init("DELETE of a closed stream", .put(201, [], "x"), .post(204, "", closed), .delete(), .head(404), .get(404)),
            .init(
                "a stream made anew has none of the old data", .put(201, [], "old"), .post(204, " and more"), .get(200, "", "old and more"),
                .delete(), .put(201, [], "new"), .get(200, "", "new", expect: ["Stream-Up-To-Date": "true"]), .post(204, "er"),
                .get(200, "", "newer")),
            .init(
                "a stream made anew knows no producers", .put(), .post(200, "a", producer("p", "5", "0")), .delete(), .put(),
                .post(200, "b", producer("p", "0", "0")), .get(200, "", "b")),
            .init(
                "a stream made anew knows no sequence", .put(), .post(204, "a", [("Stream-Seq", "9")]), .delete(), .put(),
                .post(204, "b", [("Stream-Seq", "1")])),
            .init("a stream made anew may have another type", .put(), .delete(), .put(type: "application/json"), .get(200, "", "[]")),
            // Header fields that browsers need, errors included.
            .init("GET is not sniffed", .put(201, [], "x"), .get(200, expect: ["X-Content-Type-Options": "nosniff"])),
            .init("PUT is not sniffed", .put(201, expect: ["X-Content-Type-Options": "nosniff"])),
            .init("POST is not sniffed", .put(), .post(204, "x", expect: ["X-Content-Type-Options": "nosniff"])),
            .init("HEAD is not sniffed", .put(), .head(expect: ["X-Content-Type-Options": "nosniff"])),
            .init("an error is not sniffed", .get(404, expect: ["X-Content-Type-Options": "nosniff"])),
            .init(
                "GET says which origins may embed it", .put(type: "application/octet-stream", [], "\u{1}\u{2}"),
                .get(200, expect: ["Cross-Origin-Resource-Policy": .oneOf(["cross-origin", "same-origin", "same-site"])])),
            .init("HEAD is not kept by caches", .put(), .head(expect: ["Cache-Control": .contains("no-store")])),
        ]

        @Test(arguments: cases) func `a stream lives as the protocol says`(_ row: ProtocolCase) throws { try row.run() }

        @Test func `Location is an absolute URL`() throws {
            let server = ProtocolServer.shared
            let path = server.path()
            let location = try #require(try server.request("PUT", path, [("Content-Type", "text/plain")]).headers["location"])
            #expect(location.hasPrefix("http") && location.contains("://") && location.hasSuffix(path))
        }

        @Test func `of many that create one stream at once, one is new`() throws {
            let path = ProtocolServer.shared.path()
            let clients = try (0..<16).map { _ in try ProtocolServer.shared.connect() }
            for client in clients { try client.send("PUT", path, [("Content-Type", "text/plain")]) }
            let statuses = try clients.map { try $0.answer().status }
            #expect(statuses.filter { $0 == 201 }.count == 1)
            #expect(statuses.filter { $0 == 200 }.count == 15)
        }
    }
}
