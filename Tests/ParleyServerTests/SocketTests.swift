import Foundation
import ParleyChannels
import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `The socket` {
    static let server = try! TestServer()

    // MARK: The door

    @Test func `a page of another site, and a name that was pointed to loopback, are refused as everywhere`() throws {
        let upgrade = [
            ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        #expect(try Self.server.get("/v1/socket", upgrade + [("Origin", "https://evil.example")]).code == "origin_not_allowed")
        #expect(try Self.server.get("/v1/socket", upgrade + [("Host", "evil.example")]).code == "host_not_allowed")
        #expect(try Self.server.get("/v1/socket").status == 426)
        #expect(throws: Never.self) {
            _ = try SocketClient(Self.server, headers: [("Origin", "http://localhost:\(Self.server.server.port)")])
        }
    }

    @Test func `the client is served with its types, and costs no bytes while it is the same`() throws {
        let script = try Self.server.get("/parley.js")
        #expect(script.status == 200)
        #expect(script.headers["content-type"] == "text/javascript; charset=utf-8")
        #expect(script.headers["cache-control"] == "public, no-cache")
        #expect(script.text.contains("export class Parley "))
        let tag = try #require(script.headers["etag"])
        #expect(try Self.server.get("/parley.js", [("If-None-Match", "\"other\", \(tag)")]).status == 304)
        #expect(try Self.server.get("/parley.js", [("If-None-Match", "\"other\"")]).status == 200)
        #expect(try Self.server.get("/parley.d.ts").text.contains("export class Parley "))
        #expect(try Self.server.request("POST", "/parley.js").status == 405)
    }

    // MARK: Following

    @Test func `entries come with where to resume, and a reader that stands there gets the rest`() throws {
        let channel = try Self.server.jsonStream(#"[{"n":1},{"n":2}]"#)
        let socket = try Self.server.socket()
        try socket.follow(7, channel)
        let first = try socket.next()
        #expect(first["ref"] == 7)
        #expect(first["channel"] == .string(channel))
        #expect(first["entries"] == [["n": 1], ["n": 2]])
        #expect(first["offset"] == "0000000000000002")
        #expect(first["up_to_date"] == true)
        try Self.server.post("/v1/stream/" + channel, #"{"n":3}"#, "application/json")
        let second = try socket.next()
        #expect(second["entries"] == [["n": 3]])
        let other = try Self.server.socket()
        try other.follow(1, channel, "0000000000000002")
        #expect(try other.next()["entries"] == [["n": 3]])
        try other.follow(2, channel, "now")
        #expect(
            try other.next() == ["ref": 2, "channel": .string(channel), "entries": [], "offset": "0000000000000003", "up_to_date": true])
    }

    @Test func `the end of a channel is told, and one that was closed before is read to its end`() throws {
        let path = try Self.server.stream("application/json", "[1,2]")
        let channel = String(path.dropFirst("/v1/stream/".count))
        let socket = try Self.server.socket()
        try socket.follow(1, channel)
        #expect(try socket.entries(1, 2) == [1, 2])
        _ = try Self.server.request("POST", path, [("Stream-Closed", "true"), ("Content-Type", "application/json")], "3")
        #expect(try socket.entries(1, 1) == [3])
        #expect(try socket.next() == ["ref": 1, "ended": true, "reason": "closed"])
        try socket.follow(1, channel, "0000000000000001")
        #expect(try socket.entries(1, 2) == [2, 3])
        #expect(try socket.next() == ["ref": 1, "ended": true, "reason": "closed"])
        let gone = try Self.server.jsonStream("[1]")
        try socket.follow(2, gone)
        #expect(try socket.entries(2, 1) == [1])
        _ = try Self.server.request("DELETE", "/v1/stream/" + gone)
        #expect(try socket.next() == ["ref": 2, "ended": true, "reason": "deleted"])
    }

    @Test func `nothing comes after an unfollow, and the reference is free again`() throws {
        let channel = try Self.server.jsonStream("[1]")
        let socket = try Self.server.socket()
        try socket.follow(1, channel)
        _ = try socket.next()
        try socket.follow(1, channel)
        #expect(try socket.next()["error"]?["code"] == "ref_in_use")
        try socket.say(("op", "unfollow"), ("ref", 1))
        #expect(try socket.next() == ["ref": 1, "ended": true, "reason": "unfollowed"])
        try Self.server.post("/v1/stream/" + channel, "2", "application/json")
        try socket.say(("op", "unfollow"), ("ref", 1))
        #expect(try socket.next()["error"]?["code"] == "unknown_ref")
        try socket.follow(1, channel, "0000000000000001")
        #expect(try socket.entries(1, 1) == [2])
    }

    struct Refusal: Sendable, CustomTestStringConvertible {
        var testDescription: String { message }
        var message: String
        var code: String
        var says: [String]
    }

    static let refusals: [Refusal] = [
        .init(message: #"{"op":"fly","ref":1}"#, code: "unknown_op", says: ["'fly'", "follow, unfollow, append, ephemeral, tree"]),
        .init(message: #"{"ref":1}"#, code: "missing_field", says: ["op", "follow"]),
        .init(message: #"{"op":1,"ref":1}"#, code: "invalid_op", says: ["op is 1", "a string"]),
        .init(message: "{op}", code: "invalid_json", says: ["byte 1"]),
        .init(message: "[]", code: "invalid_json", says: ["'{'"]),
        .init(message: #"{"op":"unfollow","ref":1,"op":"append"}"#, code: "invalid_json", says: ["'op'", "once"]),
        .init(message: #"{"op":"follow","channel":"a","offset":"-1"}"#, code: "missing_field", says: ["ref", "an integer"]),
        .init(message: #"{"op":"follow","ref":-1,"channel":"a","offset":"-1"}"#, code: "invalid_ref", says: ["-1", "0 to"]),
        .init(message: #"{"op":"follow","ref":"x","channel":"a","offset":"-1"}"#, code: "invalid_ref", says: ["'x'"]),
        .init(message: #"{"op":"follow","ref":1,"offset":"-1"}"#, code: "missing_field", says: ["channel"]),
        .init(message: #"{"op":"follow","ref":1,"channel":"a"}"#, code: "missing_offset", says: ["offset", "-1, now"]),
        .init(message: #"{"op":"follow","ref":1,"channel":"a","offset":"7"}"#, code: "invalid_offset", says: ["-1, now"]),
        .init(
            message: #"{"op":"follow","ref":1,"channel":"a","offset":"-1","view":"x"}"#, code: "invalid_view",
            says: ["'x'", "raw or settled"]),
        .init(message: #"{"op":"follow","ref":1,"channel":"a//b","offset":"-1"}"#, code: "invalid_stream_name", says: ["a//b"]),
        .init(
            message: #"{"op":"follow","ref":1,"channel":"nobody-made-it","offset":"-1"}"#, code: "channel_not_found",
            says: ["nobody-made-it"]),
        .init(message: #"{"op":"unfollow","ref":9}"#, code: "unknown_ref", says: ["9"]),
        .init(message: #"{"op":"append","ref":1,"channel":"a"}"#, code: "invalid_entries", says: ["missing", "an array"]),
        .init(message: #"{"op":"append","ref":1,"channel":"a","entries":{}}"#, code: "invalid_entries", says: ["an object"]),
        .init(message: #"{"op":"append","ref":1,"channel":"a","entries":[]}"#, code: "empty_array", says: ["at least one"]),
        .init(
            message: #"{"op":"append","ref":1,"channel":"a","entries":[1],"key":""}"#, code: "invalid_idempotency_key", says: ["1 to 256"]),
        .init(
            message: #"{"op":"append","ref":1,"channel":"llm/x","entries":[1]}"#, code: "reserved_name",
            says: ["llm/x", "llm/, __ds/ or __parley/"]),
        .init(message: #"{"op":"append","ref":1,"channel":"__parley/x","entries":[1]}"#, code: "reserved_name", says: ["__parley/x"]),
        .init(
            message: #"{"op":"append","ref":1,"channel":"agents/nobody/x","entries":[{"type":"message","text":"x"}]}"#,
            code: "unknown_agent_kind", says: ["assistant, echo"]),
        .init(
            message: #"{"op":"append","ref":1,"channel":"agents/echo/x","entries":[{"type":"message","text":"x"},{"type":"shout"}]}"#,
            code: "unknown_entry_type", says: ["entry 1", "shout"]),
        .init(message: #"{"op":"ephemeral","channel":"a"}"#, code: "invalid_event", says: ["missing"]),
        .init(
            message: #"{"op":"ephemeral","channel":"a","event":{"type":"message"}}"#, code: "invalid_event",
            says: ["'message'", "typing, presence, progress"]),
        .init(message: #"{"op":"ephemeral","channel":"nobody-made-it","event":{"type":"typing"}}"#, code: "channel_not_found", says: []),
        .init(message: #"{"op":"tree","ref":1,"channel":"agents/echo/x","cursor":"x"}"#, code: "invalid_cursor", says: ["cursor"]),
    ]

    @Test(arguments: refusals) func `what cannot be done is refused with a reason, and the connection stays`(_ row: Refusal) throws {
        let socket = try Self.server.socket()
        try socket.say(row.message)
        let answer = try socket.next()
        let error = try #require(answer["error"])
        #expect(error["code"] == .string(row.code), "\(error)")
        for part in row.says { #expect(error["detail"]?.string?.contains(part) == true, "\(error)") }
        if row.message.contains(#""ref":1"#) { #expect(answer["ref"] == 1) }
        let channel = try Self.server.jsonStream("[1]")
        try socket.follow(2, channel)
        #expect(try socket.next()["entries"] == [1])
    }

    @Test func `other content than JSON, and an offset that was never given out, are refused`() throws {
        let socket = try Self.server.socket()
        let text = try Self.server.stream("text/plain", "x").dropFirst("/v1/stream/".count)
        try socket.follow(1, String(text))
        #expect(try socket.next()["error"]?["code"] == "content_type_mismatch")
        try socket.follow(1, try Self.server.jsonStream("[1]"), "0000000000000009")
        #expect(try socket.next()["error"]?["code"] == "offset_beyond_tail")
    }

    // MARK: Appending

    @Test func `an append answers with offsets, and its key makes a repeat harmless, whichever way it comes`() throws {
        let channel = try Self.server.jsonStream()
        let socket = try Self.server.socket()
        let entries: JSON = [["a": 1], ["a": 2]]
        try socket.say(("op", "append"), ("ref", 3), ("channel", .string(channel)), ("entries", entries), ("key", "once"))
        let offsets: JSON = ["0000000000000001", "0000000000000002"]
        #expect(try socket.next() == ["ref": 3, "ok": true, "offsets": offsets])
        try socket.say(("op", "append"), ("ref", 4), ("channel", .string(channel)), ("entries", entries), ("key", "once"))
        #expect(try socket.next() == ["ref": 4, "ok": true, "offsets": offsets, "replayed": true])
        let posted = try Self.server.post("/v1/stream/" + channel, entries.text, "application/json", [("Idempotency-Key", "once")])
        #expect(posted.headers["idempotent-replayed"] == "true")
        try socket.say(("op", "append"), ("ref", 5), ("channel", .string(channel)), ("entries", [3]), ("key", "once"))
        #expect(try socket.next()["error"]?["code"] == "idempotency_key_reused")
        #expect(try Self.server.get("/v1/stream/" + channel).json == entries)
    }

    @Test func `an agent is talked to as by POST`() throws {
        let socket = try Self.server.socket()
        let channel = "agents/echo/by-socket"
        try socket.say(("op", "append"), ("ref", 1), ("channel", .string(channel)), ("entries", [["type": "message", "text": "hello"]]))
        #expect(try socket.next() == ["ref": 1, "ok": true, "offsets": ["0000000000000001"]])
        try socket.follow(2, channel, view: "settled")
        let entry = try #require(try socket.next()["entries"]?.array?.first)
        #expect(entry["type"] == "message")
        #expect(entry["text"] == "hello")
        #expect(entry["by"] == "anonymous")
    }

    // MARK: Bounds

    @Test func `a message above a megabyte closes the connection`() throws {
        let socket = try Self.server.socket()
        try socket.say(("op", .string(String(repeating: "x", count: 1 << 20))))
        #expect(try socket.hear() == nil)
        #expect(socket.closing?.code == 1_009)
    }

    @Test func `so many channels on one connection, and no more`() throws {
        let server = try TestServer { $0.socketChannelsMax = 50 }
        let socket = try server.socket()
        let channels = try (0..<50).map { try server.jsonStream("[\($0)]") }
        for (index, channel) in channels.enumerated() { try socket.follow(Int64(index), channel) }
        var seen: Set<Int64> = []
        while seen.count < 50 {
            let message = try socket.next()
            let reference = try #require(message["ref"]?.integer)
            #expect(message["entries"] == [.integer(reference)])
            seen.insert(reference)
        }
        try socket.follow(50, channels[0])
        #expect(try socket.next()["error"]?["code"] == "too_many_channels")
        try socket.say(("op", "unfollow"), ("ref", 3))
        _ = try socket.next()
        try socket.follow(50, channels[3])
        #expect(try socket.next()["entries"] == [3])
        for index in [7, 49, 50] {
            try server.post("/v1/stream/" + channels[index == 50 ? 3 : index], "\"new\"", "application/json")
            let message = try socket.next()
            #expect(message["ref"] == .integer(Int64(index)))
            #expect(message["entries"] == ["new"])
        }
    }

    @Test func `a client that does not read is parked at its offsets, takes no memory, holds nobody up, and misses nothing`() throws {
        let server = try TestServer { $0.socketUnsentBytesMax = 64 << 10 }
        let channels = try (0..<4).map { _ in try server.jsonStream() }
        let slow = try server.socket(receiveBuffer: 4_096)
        let live = try server.socket()
        for (index, channel) in channels.enumerated() {
            try slow.follow(Int64(index), channel)
            try live.follow(Int64(index), channel)
        }
        let filler = String(repeating: "x", count: 10_000)
        var heard = Array(repeating: 0, count: 4)
        func hearLive(_ total: Int) throws {
            while heard.reduce(0, +) < total {
                let message = try live.next()
                heard[Int(message["ref"]!.integer!)] += message["entries"]?.array?.count ?? 0
            }
        }
        // Far more than what fits between, and than the channels keep in memory.
        for round in 0..<200 {
            for channel in channels { try server.post("/v1/stream/" + channel, #"{"n":\#(round),"x":"\#(filler)"}"#, "application/json") }
            try hearLive((round + 1) * 4)
        }
        var numbers = Array(repeating: [Int64](), count: 4)
        while numbers.contains(where: { $0.count < 200 }) {
            let message = try slow.next()
            let entries = message["entries"]?.array ?? []
            // Bounded: never more in one message than a page, or than the recent commits that it follows.
            #expect(entries.count < 60)
            numbers[Int(message["ref"]!.integer!)] += entries.compactMap { $0["n"]?.integer }
        }
        for list in numbers { #expect(list == Array(0..<200)) }
    }

    // MARK: Events that are never stored

    @Test func `an ephemeral event reaches who follows the channel, by socket and by events, on every loop, and is not in the log`() throws
    {
        let channel = try Self.server.jsonStream("[1]")
        let sockets = try (0..<6).map { _ in try Self.server.socket() }
        for (index, socket) in sockets.enumerated() {
            try socket.follow(Int64(index), channel)
            _ = try socket.next()
        }
        let events = try Self.server.connect()
        try events.send("GET", "/v1/stream/\(channel)?offset=-1&live=sse")
        _ = try events.head()
        #expect(try events.event()?.name == "data")
        #expect(try events.event()?.name == "control")
        let bystander = try Self.server.socket()
        try bystander.follow(1, try Self.server.jsonStream("[1]"))
        _ = try bystander.next()
        let teller = try Self.server.socket()
        try teller.say(
            ("op", "ephemeral"), ("ref", 5), ("channel", .string(channel)),
            ("event", ["type": "typing", "where": "box", "by": "somebody else", "at": "never"]))
        #expect(try teller.next() == ["ref": 5, "ok": true])
        for (index, socket) in sockets.enumerated() {
            let message = try socket.next()
            #expect(message["ref"] == .integer(Int64(index)))
            #expect(message["channel"] == .string(channel))
            #expect(message["entries"] == nil && message["offset"] == nil)
            let event = try #require(message["ephemeral"])
            #expect(event["type"] == "typing" && event["where"] == "box" && event["by"] == "anonymous")
            #expect(event["at"]?.string?.hasSuffix("Z") == true)
        }
        let event = try #require(try events.event())
        #expect(event.name == "ephemeral" && event.id == nil)
        #expect(event.json?["type"] == "typing")
        #expect(try Self.server.get("/v1/stream/" + channel).json == [1])
        try Self.server.post("/v1/stream/" + channel, "2", "application/json")
        #expect(try sockets[0].next()["entries"] == [2])
        try Self.server.post("/v1/stream/" + channel, "3", "application/json")
        _ = bystander
    }

    @Test func `ephemeral events are limited in number and in size`() throws {
        let server = try TestServer { $0.ephemeralPerSecond = 5 }
        let channel = try server.jsonStream()
        let socket = try server.socket()
        for number in 0..<30 {
            try socket.say(
                ("op", "ephemeral"), ("ref", .integer(Int64(number))), ("channel", .string(channel)), ("event", ["type": "progress"]))
        }
        let answers = try (0..<30).map { _ in try socket.next() }
        let refused = answers.filter { $0["error"]?["code"] == "rate_limited" }.count
        #expect((15...20).contains(refused), "\(refused)")
        let large = try Self.server.socket()
        try large.say(
            ("op", "ephemeral"), ("channel", .string(channel)),
            ("event", ["type": "progress", "x": .string(String(repeating: "x", count: 5_000))]))
        #expect(try large.next()["error"]?["code"] == "event_too_large")
    }

    // MARK: Coming and going

    @Test func `a server that stops says where to resume everything, and closes with 1001`() throws {
        let server = try TestServer()
        let channel = try server.jsonStream("[1,2]")
        try server.emit("agents/echo/root", "x")
        let socket = try server.socket()
        try socket.follow(1, channel)
        _ = try socket.next()
        try socket.say(("op", "tree"), ("ref", 2), ("channel", "agents/echo/root"))
        let cursor = try #require(try socket.next()["cursor"])
        server.server.drain(within: .seconds(5))
        let last = try socket.next()
        #expect(last["reason"] == "draining")
        #expect(
            last["resume"] == [
                ["ref": 1, "channel": .string(channel), "offset": "0000000000000002"],
                ["ref": 2, "channel": "agents/echo/root", "cursor": cursor],
            ])
        #expect(try socket.hear() == nil)
        #expect(socket.closing?.code == 1_001)
        #expect(socket.closing?.reason == "draining")
    }

    @Test func `a client that has sent its last frame and ends its side gets what it asked for, and then a close`() throws {
        let channel = try Self.server.jsonStream("[1,2]")
        let socket = try Self.server.socket()
        for number in 1...50 {
            try socket.say(("op", "append"), ("ref", .integer(Int64(number))), ("channel", .string(channel)), ("entries", [3]))
        }
        try socket.follow(51, "not/there")
        try socket.say(("op", "unfollow"), ("ref", 52))
        socket.finishSending()
        var answers: [Int64: JSON] = [:]
        while let message = try socket.hear() { answers[message["ref"]?.integer ?? 0] = message }
        #expect(socket.closing?.code == 1_000)
        for number in 1...50 { #expect(answers[Int64(number)]?["ok"] == true) }
        #expect(answers[51]?["error"]?["code"] == "channel_not_found")
        #expect(answers[52]?["error"]?["code"] == "unknown_ref")
    }

    @Test func `a socket is recycled, a quiet one is asked for a sign of life, and a dead one given up`() throws {
        let server = try TestServer {
            $0.socketLifetime = .seconds(3)
            $0.socketPingInterval = .milliseconds(200)
        }
        let channel = try server.jsonStream("[1]")
        let socket = try server.socket()
        try socket.follow(1, channel)
        _ = try socket.next()
        let last = try socket.next()
        #expect(last["reason"] == "recycled")
        #expect(last["resume"] == [["ref": 1, "channel": .string(channel), "offset": "0000000000000001"]])
        #expect(try socket.hear() == nil)
        #expect(socket.pings >= 3)
        let dead = try server.socket()
        dead.answersPings = false
        #expect(throws: TestFailure.self) { _ = try dead.hear() }
    }

    @Test func `a client that comes again at random, from where it was told, gets each entry once`() throws {
        let seed = Seed.value
        var random = SplitMix64(seed: seed)
        let server = try TestServer { $0.pageBytes = 300 }
        let channels = try (0..<3).map { _ in try server.jsonStream() }
        var written = [0, 0, 0]
        var offsets = ["-1", "-1", "-1"]
        var read: [[Int64]] = [[], [], []]
        for _ in 0..<40 {
            let socket = try server.socket()
            for index in 0..<3 { try socket.follow(Int64(index), channels[index], offsets[index]) }
            for _ in 0..<Int.random(in: 0..<12, using: &random) {
                let index = Int.random(in: 0..<3, using: &random)
                let count = Int.random(in: 1...4, using: &random)
                let body = (written[index]..<written[index] + count).map(String.init).joined(separator: ",")
                try server.post("/v1/stream/" + channels[index], "[\(body)]", "application/json")
                written[index] += count
            }
            for _ in 0..<Int.random(in: 0..<10, using: &random) {
                // Entries that have not come by then are for the next connection.
                guard (0..<3).contains(where: { read[$0].count < written[$0] }) else { break }
                try take(try socket.next(), &read, &offsets)
            }
        }
        let socket = try server.socket()
        for index in 0..<3 { try socket.follow(Int64(index), channels[index], offsets[index]) }
        while (0..<3).contains(where: { read[$0].count < written[$0] }) { try take(try socket.next(), &read, &offsets) }
        for index in 0..<3 { #expect(read[index] == (0..<written[index]).map(Int64.init), "seed \(seed)") }
    }

    private func take(_ message: JSON, _ read: inout [[Int64]], _ offsets: inout [String]) throws {
        let index = Int(try #require(message["ref"]?.integer))
        read[index] += try #require(message["entries"]?.array).compactMap(\.integer)
        offsets[index] = try #require(message["offset"]?.string)
    }
}

/// The seed of a test run: from `PARLEY_SEED`, or new.
enum Seed {
    static let value = ProcessInfo.processInfo.environment["PARLEY_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0...UInt64.max)
}
