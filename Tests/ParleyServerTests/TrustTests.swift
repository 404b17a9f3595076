import ParleyChannels
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyServer

private let secret = "0123456789abcdef0123456789abcdef"
private let json = ("Content-Type", "application/json")

private func bearer(_ text: String) -> (String, String) { ("Authorization", "Bearer \(text)") }

private func keyed(on log: GatedLog = GatedLog(), _ configure: (inout ServerConfiguration) -> Void = { _ in }) throws -> TestServer {
    try TestServer(on: log) { configuration in
        try! configuration.keys.add("main:\(secret)", separator: ",", from: "test")
        configure(&configuration)
    }
}

private func token(_ name: String, _ allow: String = "**:read") throws -> String {
    let key = try Key(name: "main", secret: secret)
    let end = TestServer.world.now.advanced(by: .seconds(60))
    return try CapabilityToken(keyName: key.name, key: key.signing, .init(name: name, expires: end, grants: [try Grant(allow)])).text
}

/// Makes a server create a channel that the next one on this log finds on the disk; returns its path.
private func keep(in log: GatedLog) throws -> String {
    let server = try keyed(on: log)
    let path = server.path("kept")
    #expect(try server.request("PUT", path, [bearer(secret), json], "[1]").status == 201)
    return path
}

@Suite struct `A right that ends while its answer is looked for` {
    private let others = try! {
        var ring = KeyRing()
        try ring.add("other:another-secret-of-32-characters", separator: ",", from: "test")
        return ring
    }()

    @Test(arguments: ["live=sse", "live=long-poll", ""])
    func `gets nothing any more`(_ mode: String) throws {
        let log = GatedLog()
        let path = try keep(in: log)
        // To this server the channel is known from the disk alone.
        let server = try keyed(on: log)
        let client = try server.connect()
        log.hold()
        try client.send("GET", "\(path)?offset=-1&\(mode)", [bearer(secret)])
        try log.waitForRead()
        try server.server.reload(others)
        log.release()
        let answer = try client.answer()
        #expect(answer.status == 401 && answer.code == "unauthorized", "\(answer.status) \(answer.text)")
        #expect(!answer.text.contains("[1]"))
    }

    @Test func `continues with a key that is still one`() throws {
        let log = GatedLog()
        let path = try keep(in: log)
        let server = try keyed(on: log)
        let client = try server.connect()
        log.hold()
        try client.send("GET", "\(path)?offset=-1", [bearer(try token("ann"))])
        try log.waitForRead()
        var ring = others
        try ring.add("main:\(secret)", separator: ",", from: "test")
        try server.server.reload(ring)
        log.release()
        #expect(try client.answer().status == 200)
    }

    @Test func `on a socket follows nothing any more`() throws {
        let log = GatedLog()
        let path = try keep(in: log)
        let server = try keyed(on: log)
        let socket = try SocketClient(server, headers: [bearer(secret)])
        log.hold()
        try socket.follow(1, String(path.dropFirst("/v1/stream/".count)))
        try log.waitForRead()
        try server.server.reload(others)
        log.release()
        while let message = try socket.hear() { #expect(message["entries"] == nil, "\(message.text)") }
        #expect(socket.closing?.code == 1_001)
    }
}

@Suite struct `Live readers of one account` {
    @Test func `have a share, and others have theirs`() throws {
        let server = try keyed { $0.readersPerAccountMax = 2 }
        let path = server.path("shared")
        #expect(try server.request("PUT", path, [bearer(secret), json], "[1]").status == 201)
        func follow(_ bearing: String) throws -> (TestClient, TestClient.Answer) {
            let client = try server.connect()
            try client.send("GET", path + "?offset=-1&live=sse", [bearer(bearing)])
            return (client, try client.head())
        }
        let ann = try token("ann")
        var held = [try follow(ann), try follow(ann)]
        #expect(held.allSatisfy { $0.1.status == 200 })
        for mode in ["sse", "long-poll"] {
            let refused = try server.get("\(path)?offset=now&live=\(mode)", [bearer(ann)])
            #expect(refused.status == 429 && refused.code == "too_many_readers", "\(refused.text)")
            #expect(refused.headers["retry-after"] != nil && refused.text.contains("main:ann"))
        }
        let socket = try SocketClient(server, headers: [bearer(ann)])
        try socket.follow(1, String(path.dropFirst("/v1/stream/".count)))
        #expect(try socket.next()["error"]?["code"] == "too_many_readers")
        // A narrowed token counts as its holder's.
        let narrowed = try #require(CapabilityToken(ann)).narrowed(.init(name: "phone")).text
        #expect(try server.get(path + "?offset=-1&live=sse", [bearer(narrowed)]).status == 429)
        held.append(try follow(try token("bob")))
        #expect(held[2].1.status == 200)
        held.removeFirst()
        try server.eventually("a place") { try follow(ann).1.status == 200 }
    }

    @Test func `without a key share what their address has`() throws {
        let server = try TestServer { $0.readersPerAccountMax = 1 }
        let path = try server.stream()
        let client = try server.connect()
        try client.send("GET", path + "?offset=-1&live=sse")
        #expect(try client.head().status == 200)
        #expect(try server.get(path + "?offset=-1&live=sse").code == "too_many_readers")
    }

    @Test func `that follow a channel twice on one socket count once`() throws {
        let server = try TestServer {
            $0.readersPerAccountMax = 1
        }
        let path = try server.stream("application/json", "[1]")
        let name = String(path.dropFirst("/v1/stream/".count))
        let socket = try SocketClient(server)
        for reference in 1...16 {
            try socket.follow(Int64(reference), name)
            #expect(try socket.next()["entries"] == [1])
        }
        try socket.follow(17, name)
        #expect(try socket.next()["error"]?["code"] == "too_many_channels", "there is an end to repeats, too")
        for reference in 1...16 {
            try socket.say(("op", "unfollow"), ("ref", .integer(Int64(reference))))
            #expect(try socket.next()["reason"] == "unfollowed")
        }
        try server.eventually("the place to be free") {
            let client = try server.connect()
            try client.send("GET", path + "?offset=-1&live=sse")
            return try client.head().status == 200
        }
    }

    @Test func `have half of all places by default`() throws {
        let places = ReaderPlaces(total: 20_000, share: nil)
        #expect(places.countMax == 10_000)
        let held = try (0..<10_000).map { _ in try places.take("a") }
        #expect { try places.take("a") } throws: { ($0 as? Problem)?.code == "too_many_readers" }
        _ = try places.take("b")
        #expect(places.count(of: "a") == 10_000 && places.count(of: "b") == 0)
        withExtendedLifetime(held) {}
    }
}

@Suite struct `Wakes of subscriptions` {
    private let proof = #"{"wake_id":"w_1","generation":1,"done":true,"acks":[]}"#

    @Test(arguments: ["callback", "ack", "release"])
    func `are answered alike whether there is the subscription`(_ action: String) throws {
        let server = try keyed()
        let root = "/v1/stream/__ds/subscriptions/"
        let body = #"{"type":"pull-wake","wake_stream":"w","pattern":"a/*"}"#
        #expect(try server.request("PUT", root + "there", [bearer(secret), json], body).status == 201)
        for held in [[], [bearer("1.w_1.AAAA")], [bearer(secret)], [bearer(try token("ann"))]] {
            let answers = try ["there", "gone"].map { try server.request("POST", root + "\($0)/" + action, held + [json], proof) }
            #expect(answers.allSatisfy { $0.status == 401 }, "\(answers.map(\.text))")
            #expect(answers[0].text.replacing("there", with: "gone") == answers[1].text)
        }
    }

    @Test func `count as refusals, and against a rate`() throws {
        let server = try keyed { $0.rate = 2 }
        let path = "/v1/stream/__ds/subscriptions/any/ack"
        let answers = try (0..<8).map { _ in try server.request("POST", path, [bearer("1.w.A"), json], proof) }
        #expect(answers.first?.status == 401 && answers.last?.status == 429, "\(answers.map(\.status))")
        #expect(try server.get("/v1/stream/__ds/jwks.json").status == 429)
        let metrics = try server.get("/metrics", [bearer(secret)]).text
        #expect(metrics.contains(#"parley_refused_total{code="TOKEN_INVALID"}"#) && metrics.contains(#"code="too_many_requests""#))
    }
}

@Suite struct `A body that is not wanted` {
    private func head(_ method: String, _ path: String, _ headers: [(String, String)], _ count: Int) -> Bytes {
        let fields = ([("Host", "localhost"), ("Content-Type", "text/plain"), ("Content-Length", "\(count)")] + headers)
            .map { "\($0.0): \($0.1)\r\n" }.joined()
        return Bytes("\(method) \(path) HTTP/1.1\r\n\(fields)\r\n".utf8)
    }

    @Test func `is refused by its head`() throws {
        let server = try keyed()
        let reader = bearer(try token("ann"))
        let large = 5 << 20
        let cases: [(String, String, [(String, String)], Int, Int)] = [
            ("POST", "/v1/stream/a", [], large, 401), ("PUT", "/v1/stream/a", [bearer("wrong")], large, 401),
            ("POST", "/v1/stream/a", [reader], large, 403), ("PUT", "/v1/stream/a", [reader], large, 403),
            ("POST", "/v1/agents/assistant/a", [reader], large, 403), ("POST", "/v1/stream/agents/assistant/a", [reader], large, 403),
            ("POST", "/v1/agents/nobody/a", [bearer(secret)], large, 404), ("PUT", "/v1/stream/llm/x", [bearer(secret)], large, 403),
            ("PUT", "/v1/stream/__ds/subscriptions/a", [reader], large, 403),
            ("POST", "/v1/stream/a", [bearer(secret), ("Origin", "https://evil.example")], large, 403),
            ("POST", "/v1/stream/a", [bearer(secret), ("Content-Encoding", "gzip")], large, 415),
            ("POST", "/v1/tokens", [bearer(secret)], large, 413), ("GET", "/v1/agents", [bearer(secret)], large, 413),
            ("POST", "/v1/stream/__ds/subscriptions/a/ack", [bearer("1.w.A")], large, 413), ("POST", "/", [], large, 413),
            ("POST", "/v1/stream/a", [bearer(secret)], 11 << 20, 413),
        ]
        for (method, path, headers, count, status) in cases {
            let client = try server.connect()
            try client.send(head(method, path, headers, count))
            let answer = try client.answer()
            #expect(answer.status == status, "\(method) \(path): \(answer.status) \(answer.text)")
        }
    }

    @Test func `of a request to a wrong host is dropped, and answered when it ends`() throws {
        let server = try TestServer()
        let client = try server.connect()
        let fields = "Host: evil.example\r\nContent-Type: text/plain\r\nContent-Length: 3000000\r\n"
        try client.send(Bytes("POST /v1/stream/a HTTP/1.1\r\n\(fields)\r\n".utf8) + Bytes(repeating: 0x61, count: 2_999_999))
        #expect(try #require(try server.metric("parley_request_bytes")) < 10_000)
        try client.send(Bytes("a".utf8))
        #expect(try client.answer().code == "host_not_allowed")
    }

    @Test func `is drained where it is short, and the connection serves the next request`() throws {
        let server = try keyed()
        let client = try server.connect()
        for _ in 0..<3 {
            try client.send(head("POST", "/v1/stream/a", [], 10_000))
            #expect(try client.answer().status == 401)
            try client.send(Bytes(repeating: 0x61, count: 10_000))
            #expect(try client.request("GET", "/healthz").status == 200)
        }
    }
}
