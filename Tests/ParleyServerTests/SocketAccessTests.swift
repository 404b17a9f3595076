import Glibc
import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `A socket with a token` {
    private static let secret = "0123456789abcdef"
    private static let server = try! TestServer { configuration in
        try! configuration.keys.add("main:\(secret)", separator: ",", from: "test")
        configuration.socketPingInterval = .milliseconds(200)
    }
    private static let key = ("Authorization", "Bearer \(secret)")

    private func bearer(_ allow: String..., for time: Duration = .seconds(60)) throws -> [(String, String)] {
        let key = try Key(name: "main", secret: Self.secret)
        let end = TestServer.world.now.advanced(by: time)
        let token = try CapabilityToken(
            keyName: "main", key: key.signing, .init(name: "ann", expires: end, grants: try allow.map { try Grant($0) }))
        return [("Authorization", "Bearer \(token.text)")]
    }

    private func stream(_ body: String) throws -> String {
        let path = Self.server.path()
        #expect(try Self.server.request("PUT", path, [Self.key, ("Content-Type", "application/json")], body).status == 201)
        return String(path.dropFirst("/v1/stream/".count))
    }

    @Test func `needs for each message what the same thing needs elsewhere`() throws {
        #expect(throws: TestFailure.self) { try SocketClient(Self.server) }
        let (mine, other) = (try stream("[1]"), try stream("[2]"))
        let socket = try SocketClient(Self.server, headers: try bearer("\(mine):read", "agents/echo/**:read,append"))
        try socket.follow(1, mine)
        #expect(try socket.next()["entries"] == [1])
        try socket.follow(2, other)
        let refused = try socket.next()
        #expect(refused["ref"] == 2)
        #expect(refused["error"]?["code"] == "forbidden")
        #expect(refused["error"]?["channel"]?.string == other)
        try socket.say(("op", "tree"), ("ref", 3), ("channel", "agents/assistant/hidden"))
        #expect(try socket.next()["error"]?["verb"] == "read")
        try socket.say(("op", "append"), ("ref", 4), ("channel", .string(mine)), ("entries", [3]))
        #expect(try socket.next()["error"]?["verb"] == "append")
        try socket.say(("op", "ephemeral"), ("ref", 5), ("channel", .string(mine)), ("event", ["type": "typing"]))
        #expect(try socket.next()["error"]?["verb"] == "append")
        try socket.say(("op", "append"), ("ref", 6), ("channel", "agents/echo/a"), ("entries", [["type": "cancel"]]))
        #expect(try socket.next()["error"]?["verb"] == "stop")
        try socket.say(("op", "append"), ("ref", 7), ("channel", "agents/echo/a"), ("entries", [["type": "message", "text": "x"]]))
        #expect(try socket.next()["ok"] == true)
        try socket.follow(8, "agents/echo/a")
        #expect(try socket.entries(8, 1).first?["by"] == "ann")
    }

    @Test func `takes only those children of a tree that may be read`() throws {
        try Self.server.emit("agents/echo/parent", "x")
        try Self.server.emit("agents/assistant/child", "secret")
        try Self.server.startChild("agents/assistant/child", of: "agents/echo/parent")
        let socket = try SocketClient(Self.server, headers: try bearer("agents/echo/*:read"))
        try socket.say(("op", "tree"), ("ref", 1), ("channel", "agents/echo/parent"))
        let messages = try socket.hear { $0["channel"] == "agents/assistant/child" }
        #expect(messages.last?["error"]?["code"] == "forbidden")
        #expect(messages.allSatisfy { $0["channel"] != "agents/assistant/child" || $0["entries"] == nil })
    }

    @Test func `says where to resume when the token ends`() throws {
        let channel = try stream("[1]")
        let socket = try SocketClient(Self.server, headers: try bearer("**:read", for: .milliseconds(600)))
        try socket.follow(1, channel)
        _ = try socket.next()
        let last = try socket.next()
        #expect(last["reason"] == "expired")
        #expect(last["resume"] == [["ref": 1, "channel": .string(channel), "offset": "0000000000000001"]])
        #expect(try socket.hear() == nil)
    }

    @Test func `may come with a ticket for sockets, once`() throws {
        let channel = try stream("[1]")
        func ticket(_ body: String) throws -> String {
            let answer = try Self.server.request(
                "POST", "/v1/tickets", try bearer("\(channel):read") + [("Content-Type", "application/json")], body)
            return try #require(answer.json?["ticket"]?.string)
        }
        let good = try ticket(#"{"socket":true}"#)
        let upgrade = [
            ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        func status(_ ticket: String) throws -> Int {
            let client = try Self.server.connect()
            try client.send("GET", "/v1/socket?ticket=\(ticket)", upgrade)
            return try client.head().status
        }
        #expect(try status(good) == 101)
        #expect(try status(good) == 401)
        #expect(try status(try ticket("{\"channel\":\"\(channel)\"}")) == 401)
        #expect(try Self.server.get("/v1/stream/\(channel)?ticket=\(try ticket(#"{"socket":true}"#))").status == 401)
    }
}
