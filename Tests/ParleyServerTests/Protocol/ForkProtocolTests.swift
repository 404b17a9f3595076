import ParleySystem
import Testing

private let json = "application/json"

extension DurableStreams {
    /// Besides a stream's tail, the only offset that a fork can surely begin at is that of the empty stream: `{0}` of those that are made empty.
    @Suite struct `Forks` {
        static let making: [ProtocolCase] = [
            .init(
                "at the tail, without being told", .put(201, [], "source data"), .fork(), .get(200, "?offset=-1", "source data").on("fork")),
            .init(
                "at an offset", .put(201, [], "first"), .post(204, "second"), .fork(at: "{0}"), .get(200, "?offset=-1", "first").on("fork")),
            .init(
                "at the start", .put(), .post(204, "source data"), .fork(at: "{0}"),
                .get(200, "?offset=-1", "", expect: ["Stream-Up-To-Date": "true"]).on("fork")),
            .init(
                "at the tail, when told", .put(201, [], "1"), .post(204, "2"), .head(), .fork(at: "{2}"),
                .get(200, "?offset=-1", "12").on("fork")),
            .init(
                "at every offset", .put(), .post(204, "A"), .post(204, "B"), .post(204, "C"), .fork("f0", at: "{0}"),
                .fork("f1", at: "{1}"),
                .fork("f2", at: "{2}"), .fork("f3", at: "{3}"), .get(200, "?offset=-1", "").on("f0"), .get(200, "?offset=-1", "A").on("f1"),
                .get(200, "?offset=-1", "AB").on("f2"), .get(200, "?offset=-1", "ABC").on("f3")),
            .init("of nothing", .fork("fork", 404, code: "fork_source_not_found"), .get(404).on("fork")),
            .init(
                "beyond the tail", .put(201, [], "small"), .put(201, [], "1").on("long"), .post(204, "2").on("long"),
                .post(204, "3").on("long"),
                .post(204, "4").on("long"), .post(204, String(repeating: "x", count: 50)).on("long"),
                .fork("fork", 400, at: "{5}", code: "invalid_fork_offset"), .get(404).on("fork")),
            .init(
                "at what is no offset", .put(201, [], "x"), .fork("fork", 400, at: "x,y", code: "invalid_fork_offset"), .get(404).on("fork")
            ),
            .init("onto another stream", .put(201, [], "source"), .put(type: json).on("fork"), .fork("fork", 409, type: "text/plain")),
            .init(
                "of a closed stream is open", .put(201, [], "closed data"), .post(204, "", type: nil, closed),
                .fork(expect: ["Stream-Closed": nil]),
                .post(204, " and more").on("fork"), .get(200, "", "closed data and more").on("fork")),
            .init(
                "of an empty stream", .put(), .fork(), .get(200, "?offset=-1", "", expect: ["Stream-Up-To-Date": "true"]).on("fork")),
            .init(
                "with the type of its source", .put(type: json, [], #"[{"k":"v"}]"#),
                .fork(type: json, expect: ["Content-Type": "application/json"]),
                .head(expect: ["Content-Type": "application/json"]).on("fork")),
            .init(
                "without a type has its source's", .put(type: json, [], #"[{"k":"v"}]"#),
                .fork(expect: ["Content-Type": "application/json"]),
                .head(expect: ["Content-Type": "application/json"]).on("fork"), .post(204, #"[{"k":"w"}]"#, type: json).on("fork"),
                .get(200, "", #"[{"k":"v"},{"k":"w"}]"#).on("fork")),
            .init(
                "with another type", .put(201, [], "x"), .fork("fork", 409, type: json, code: "content_type_mismatch"), .get(404).on("fork")
            ),
            .init(
                "that was refused holds nothing", .put(201, [], "x"), .fork("fork", 409, type: json), .delete(), .head(404), .put()),
            .init("again, with the same source", .put(201, [], "x"), .fork(type: "text/plain"), .fork("fork", 200, type: "text/plain")),
            .init("again, without a type", .put(201, [], "x"), .fork(), .fork("fork", 200)),
            .init("again, at another offset", .put(), .post(204, "x"), .fork(at: "{1}"), .fork("fork", 409, at: "{0}")),
            .init(
                "says nothing of being one", .put(201, [], "x"), .fork(expect: noTrace), .head(expect: noTrace).on("fork"),
                .get(expect: noTrace).on("fork")),
            .init("with data of its own", .put(201, [], "a"), .fork(type: "text/plain", [], "b"), .get(200, "", "ab").on("fork")),
        ]

        private static let noTrace: [String: Expected] = [
            "Stream-Forked-From": nil, "Stream-Fork-Offset": nil, "Stream-Fork-Sub-Offset": nil,
        ]

        @Test(arguments: making) func `a fork is made as the protocol says`(_ row: ProtocolCase) throws { try row.run() }

        /// Sub-offsets: bytes, or messages, beyond the offset.
        static let further: [ProtocolCase] =
            [
                .init(
                    "bytes within an append", .put(), .post(204, "hello"), .fork(at: "{0}", plus: "3"),
                    .get(200, "?offset=-1", "hel").on("fork")),
                .init(
                    "messages within a batch", .put(type: json), .post(204, #"[{"a":1},{"b":2},{"c":3},{"d":4}]"#, type: json),
                    .fork(at: "{0}", plus: "2"), .get(200, "?offset=-1", #"[{"a":1},{"b":2}]"#).on("fork")),
                .init(
                    "0 is none", .put(), .post(204, "data"), .fork(at: "{0}", type: "text/plain"),
                    .fork("fork", 200, at: "{0}", plus: "0", type: "text/plain")),
                .init(
                    "more bytes than there are", .put(), .post(204, "hi"),
                    .fork("fork", 400, at: "{0}", plus: "5", code: "invalid_fork_offset")),
                .init(
                    "more messages than there are", .put(type: json), .post(204, "[1,2,3]", type: json),
                    .fork("fork", 400, at: "{0}", plus: "4")),
                .init(
                    "again with the same", .put(), .post(204, "hello"), .fork(at: "{0}", plus: "2", type: "text/plain"),
                    .fork("fork", 200, at: "{0}", plus: "2", type: "text/plain")),
                .init(
                    "again with another", .put(), .post(204, "hello"), .fork(at: "{0}", plus: "2", type: "text/plain"),
                    .fork("fork", 409, at: "{0}", plus: "3", type: "text/plain")
                ),
                .init(
                    "JSON again with the same", .put(type: json), .post(204, "[1,2,3,4]", type: json),
                    .fork(at: "{0}", plus: "2", type: json),
                    .fork("fork", 200, at: "{0}", plus: "2", type: json)),
                .init(
                    "JSON again with another", .put(type: json), .post(204, "[1,2,3,4]", type: json),
                    .fork(at: "{0}", plus: "2", type: json),
                    .fork("fork", 409, at: "{0}", plus: "3", type: json)),
                .init(
                    "and appends after", .put(), .post(204, "hello"), .fork(at: "{0}", plus: "3"), .post(204, "LO").on("fork"),
                    .get(200, "?offset=-1", "helLO").on("fork"), .get(200, "", "hello")),
                .init(
                    "without a type", .put(type: json), .post(204, "[1,2]", type: json),
                    .fork(at: "{0}", plus: "1", expect: ["Content-Type": "application/json"])),
                .init(
                    "knows no producers", .put(type: json), .post(200, "[1,2,3]", type: json, producer("p", "0", "0")),
                    .fork(at: "{0}", plus: "1"),
                    .post(200, "[99]", type: json, producer("p", "0", "0")).on("fork"), .get(200, "?offset=-1", "[1,99]").on("fork")),
                .init(
                    "knows no producers within bytes", .put(), .post(200, "hello", producer("p", "0", "0")), .fork(at: "{0}", plus: "3"),
                    .post(200, "LO", producer("p", "0", "0")).on("fork"), .get(200, "?offset=-1", "helLO").on("fork")),
                .init(
                    "from the middle", .put(201, [], "first"), .post(204, "second"), .fork(at: "{0}", plus: "3"),
                    .get(200, "?offset=-1", "firstsec").on("fork")),
                .init("without an offset", .put(201, [], "data"), .fork("fork", 400, plus: "1", code: "invalid_fork_offset")),
                .init("without a source", .put(400, [("Stream-Fork-Sub-Offset", "0")]), .get(404)),
                .init(
                    "the answer says where to go on", .put(), .post(204, "hello"),
                    .fork(at: "{0}", plus: "3", expect: ["Stream-Next-Offset": .any]),
                    .get(200, "?offset={2}", "", expect: ["Stream-Up-To-Date": "true"]).on("fork"), .post(204, "x").on("fork"),
                    .get(200, "?offset={2}", "x").on("fork")),
                .init("of an empty stream", .put(), .fork("fork", 400, at: "{0}", plus: "1")),
                .init(
                    "all bytes", .put(), .post(204, "hello"), .fork(at: "{0}", plus: "5"), .get(200, "?offset=-1", "hello").on("fork")),
                .init(
                    "all messages", .put(type: json), .post(204, "[1,2,3]", type: json), .fork(at: "{0}", plus: "3"),
                    .get(200, "?offset=-1", "[1,2,3]").on("fork")),
                .init(
                    "and data of its own", .put(), .post(204, "hello"), .fork(at: "{0}", plus: "3", type: "text/plain", [], "XY"),
                    .get(200, "?offset=-1", "helXY").on("fork")),
                .init(
                    "of a closed stream", .put(), .post(204, "hello", closed), .fork(at: "{0}", plus: "3"),
                    .get(200, "?offset=-1", "hel").on("fork")),
                .init(
                    "of a fork of that kind", .put(), .post(204, "abcdef"), .fork("one", at: "{0}", plus: "4"),
                    .get(200, "?offset=-1", "abcd").on("one"),
                    .fork("two", of: "one", at: "{0}", plus: "2"), .get(200, "?offset=-1", "ab").on("two"), .post(204, "Z").on("two"),
                    .get(200, "?offset=-1", "abZ").on("two")),
            ]

        static let noNumbers = ["-1", "abc", "1.5", "05", "+1"].map { (text: String) in
            ProtocolCase(
                "'\(text)' is no number", .put(), .post(204, "data"), .fork("fork", 400, at: "{0}", plus: text, code: "invalid_fork_offset")
            )
        }

        @Test(arguments: further + noNumbers) func `a fork may begin between two offsets`(_ row: ProtocolCase) throws { try row.run() }

        static let living: [ProtocolCase] = [
            .init(
                "source and own data", .put(201, [], "source"), .fork(),
                .post(204, " fork", expect: ["Stream-Next-Offset": .any]).on("fork"),
                .get(200, "?offset=-1", "source fork").on("fork")),
            .init(
                "the source's data alone", .put(201, [], "inherited"), .fork(),
                .get(200, "?offset=-1", "inherited", expect: ["Stream-Up-To-Date": "true"]).on("fork")),
            .init(
                "own data alone", .put(201, [], "source"), .fork(), .post(204, "own").on("fork"), .get(200, "?offset={0}", "own").on("fork")
            ),
            .init(
                "across the boundary", .put(201, [], "A"), .post(204, "B"), .fork(), .post(204, "C").on("fork"),
                .get(200, "?offset=-1", "ABC").on("fork"), .get(200, "?offset={0}", "BC").on("fork")),
            .init(
                "what the source gets later is the source's", .put(201, [], "before"), .fork(), .post(204, " after"),
                .get(200, "", "before").on("fork")),
            .init(
                "what the fork gets is the fork's", .put(201, [], "initial"), .fork(), .post(204, " extra"), .get(200, "", "initial extra"),
                .post(204, " own").on("fork"), .get(200, "", "initial own").on("fork"), .get(200, "", "initial extra")),
            .init(
                "a producer of its own", .put(201, [], "source"), .fork(), .post(200, "1", producer("p", "0", "0")).on("fork"),
                .post(204, "1", producer("p", "0", "0")).on("fork"), .get(200, "", "source1").on("fork")),
            .init(
                "no producers and no seq of the source", .put(), .post(200, "a", producer("p", "3", "0") + [("Stream-Seq", "9")]), .fork(),
                .post(200, "b", producer("p", "0", "0") + [("Stream-Seq", "1")]).on("fork"), .get(200, "", "ab").on("fork")),
            .init(
                "closed for itself", .put(201, [], "source"), .fork(), .post(204, " final").on("fork"),
                .post(204, "", type: nil, closed, expect: ["Stream-Closed": "true"]).on("fork"), .head(expect: ["Stream-Closed": nil])),
            .init(
                "open when its source is closed", .put(201, [], "source"), .fork(), .post(204, "", type: nil, closed),
                .post(204, " own").on("fork"),
                .head(expect: ["Stream-Closed": nil]).on("fork")),
            .init("of a fork", .put(201, [], "0"), .fork("one"), .fork("two", of: "one"), .get(200, "", "0").on("two")),
            .init(
                "of a fork, amid what is inherited", .put(201, [], "A"), .post(204, "B"), .fork("one"), .post(204, "C").on("one"),
                .head(expect: ["Stream-Next-Offset": .any]).on("one"), .fork("two", of: "one"), .get(200, "?offset=-1", "ABC").on("two"),
                .fork("three", of: "one", at: "{0}"), .get(200, "?offset=-1", "A").on("three")),
            .init(
                "three deep", .put(201, [], "A"), .fork("one"), .post(204, "B").on("one"), .fork("two", of: "one"),
                .post(204, "C").on("two"),
                .get(200, "?offset=-1", "A"), .get(200, "?offset=-1", "AB").on("one"), .get(200, "?offset=-1", "ABC").on("two")),
            .init(
                "three deep, each for itself", .put(201, [], "X"), .fork("one"), .post(204, "Y").on("one"), .fork("two", of: "one"),
                .post(204, "Z").on("two"), .post(204, "0"), .post(204, "1").on("one"), .get(200, "?offset=-1", "X0"),
                .get(200, "?offset=-1", "XY1").on("one"), .get(200, "?offset=-1", "XYZ").on("two")),
            .init(
                "JSON", .put(type: json, [], #"[{"n":1}]"#), .fork(type: json, expect: ["Content-Type": "application/json"]),
                .get(200, "?offset=-1", #"[{"n":1}]"#, expect: ["Content-Type": "application/json"]).on("fork")),
            .init(
                "JSON across the boundary", .put(type: json, [], #"[{"n":1}]"#), .fork(type: json),
                .post(204, #"[{"n":2}]"#, type: json).on("fork"),
                .get(200, "?offset=-1", #"[{"n":1},{"n":2}]"#).on("fork")),
            .init(
                "a long-poll gets the source's data at once, and goes on with its own", .put(201, [], "source"), .fork(),
                .get(200, "?offset=-1&live=long-poll", "source", expect: ["Stream-Up-To-Date": "true"]).on("fork"),
                .post(204, " own").on("fork"),
                .get(200, "?offset={2}", " own").on("fork")),
        ]

        @Test(arguments: living) func `a fork lives a life of its own`(_ row: ProtocolCase) throws { try row.run() }

        static let removing: [ProtocolCase] = [
            .init("the fork", .put(201, [], "source"), .fork(), .delete().on("fork"), .get(404).on("fork"), .get(200, "", "source")),
            .init(
                "the source, which the fork goes on with", .put(201, [], "kept"), .fork(), .delete(), .head(410),
                .get(200, "?offset=-1", "kept").on("fork"),
                .post(204, "!").on("fork"), .get(200, "", "kept!").on("fork")),
            .init("the source at once", .put(201, [], "ephemeral"), .fork(), .delete(), .get(200, "?offset=-1", "ephemeral").on("fork")),
            .init("a removed source cannot be made anew", .put(201, [], "x"), .fork(), .delete(), .put(409)),
            .init("a removed source cannot be read", .put(201, [], "x"), .fork(), .delete(), .get(410, "?offset=-1", code: "channel_gone")),
            .init("a removed source takes nothing", .put(201, [], "x"), .fork(), .delete(), .post(410, "y", code: "channel_gone")),
            .init("a removed source cannot be removed", .put(201, [], "x"), .fork(), .delete(), .delete(410)),
            .init("a removed source cannot be forked", .put(201, [], "x"), .fork(), .delete(), .fork("two", 409, code: "fork_source_gone")),
            .init(
                "one between", .put(201, [], "A"), .fork("one"), .post(204, "B").on("one"), .fork("two", of: "one"),
                .post(204, "C").on("two"),
                .delete().on("one"), .head(410).on("one"), .get(200, "?offset=-1", "ABC").on("two"), .get(200, "?offset=-1", "A")),
            .init(
                "all forks, and the source stays", .put(201, [], "alive"), .fork("one"), .fork("two"), .delete().on("one"),
                .delete().on("two"),
                .get(200, "?offset=-1", "alive")),
        ]

        @Test(arguments: removing) func `what a fork needs outlives its removal`(_ row: ProtocolCase) throws { try row.run() }

        @Test(arguments: 1...3) func `a removed source goes with its last fork, however many lie between`(_ depth: Int) throws {
            let server = ProtocolServer.shared
            var chain = [try server.stream("text/plain", "root")]
            for _ in 0..<depth {
                let path = server.path("fork")
                #expect(try server.request("PUT", path, [("Stream-Forked-From", chain[chain.count - 1])]).status == 201)
                chain.append(path)
            }
            for path in chain.dropLast() { #expect([200, 204].contains(try server.request("DELETE", path).status)) }
            for path in chain.dropLast() { #expect(try server.request("HEAD", path).status == 410) }
            #expect([200, 204].contains(try server.request("DELETE", chain[depth]).status))
            #expect(try server.request("HEAD", chain[depth]).status == 404)
            // It may take a server a while.
            for path in chain { try server.eventually("the end of \(path)") { try server.request("HEAD", path).status == 404 } }
            #expect(try server.request("PUT", chain[0], [("Content-Type", "text/plain")], "new").status == 201)
            #expect(try server.get(chain[0]).text == "new")
        }

        @Test func `a stream has ten forks`() throws {
            let server = ProtocolServer.shared
            let source = try server.stream("text/plain", "shared")
            let forks = (0..<10).map { _ in server.path("fork") }
            for path in forks { #expect(try server.request("PUT", path, [("Stream-Forked-From", source)]).status == 201) }
            for (number, path) in forks.enumerated() { try server.post(path, " \(number)") }
            for (number, path) in forks.enumerated() { #expect(try server.get(path + "?offset=-1").text == "shared \(number)") }
            for path in forks { #expect([200, 204].contains(try server.request("DELETE", path).status)) }
        }

        @Test func `who waits at a fork hears nothing of its source`() throws {
            let server = ProtocolServer.shared
            let source = try server.stream("text/plain", "ab")
            let path = server.path("fork")
            let tail = try server.request("PUT", path, [("Stream-Forked-From", source)]).next
            let client = try server.connect()
            try client.send("GET", path + "?offset=\(tail)&live=long-poll")
            #expect(!client.hasInput(within: 200), "it does not wait")
            try server.post(source, "of the source")
            try server.post(path, "own")
            #expect(try client.answer().text == "own")
        }

        @Test func `who follows a fork gets the source's data and its own`() throws {
            let server = ProtocolServer.shared
            let source = try server.stream("text/plain", "inherited")
            let path = server.path("fork")
            #expect(try server.request("PUT", path, [("Stream-Forked-From", source)]).status == 201)
            try server.post(path, "+own")
            #expect(try server.events(path).filter { $0.name == "data" }.map(\.data).joined() == "inherited+own")
        }
    }
}
