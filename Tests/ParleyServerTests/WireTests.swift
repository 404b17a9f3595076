import ParleyChannels
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyServer

@Suite struct `What goes over the wire` {
    private static let server = Result { try TestServer() }
    private var server: TestServer { get throws { try Self.server.get() } }

    @Test func `HEAD says no length that GET does not have`() throws {
        let path = try server.stream("text/plain", "abc")
        #expect(try server.request("HEAD", path).headers["content-length"] == nil)
        for path in ["/healthz", "/parley.js", "/"] {
            let body = try server.get(path).body
            #expect(try server.request("HEAD", path).headers["content-length"] == "\(body.count)", "\(path)")
        }
        #expect(try server.request("HEAD", server.path()).headers["content-length"] != "0")
    }

    @Test(arguments: ["", "/"], ["", "?", "?view=settled"]) func `a URL without a path is that of the root`(path: String, query: String)
        throws
    {
        let client = try server.connect()
        try client.send(Bytes("GET http://localhost:\(server.port)\(path)\(query) HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8))
        #expect(try client.answer().status == server.get("/\(query)").status)
        #expect(try server.get("/").status == 200)
    }

    @Test func `a long page of JSON has a line for each message, and a short one is one line`() throws {
        let path = try server.stream("application/json")
        let messages = (0..<200).map { "{\"number\":\($0)}" }
        try server.post(path, "[\(messages.prefix(3).joined(separator: ","))]", "application/json")
        #expect(try server.get(path).text == "[\(messages.prefix(3).joined(separator: ","))]")
        try server.post(path, "[\(messages.dropFirst(3).joined(separator: ","))]", "application/json")
        let page = try server.get(path)
        #expect(page.text == "[\(messages.joined(separator: ",\n"))]")
        let events = try server.events(path)
        #expect(events[0].json == page.json && events[0].data == page.text)
    }

    @Test func `a page of JSON is the same in lines and in one, up to the size at which that changes`() throws {
        let path = try server.stream("application/json")
        for count in 480..<520 {
            try server.post(path, "1", "application/json")
            guard count == 480 else { continue }
            try server.post(path, "[\(Array(repeating: "1", count: count - 1).joined(separator: ","))]", "application/json")
        }
        let all = try server.get(path).json?.array?.count
        #expect(all == 519)
        let tail = try #require(UInt64(try server.tail(path), radix: 16))
        for offset in 0..<tail where offset % 7 == 0 {
            #expect(try server.get(path + "?offset=\(Offset(offset).token)").json?.array?.count == Int(tail - offset))
        }
    }

    @Test func `what is read behind a write on one connection shows it`() throws {
        let client = try server.connect()
        for number in 0..<20 {
            let path = try server.path()
            try client.send("PUT", path, [("Content-Type", "text/plain")])
            try client.send("POST", path, [("Content-Type", "text/plain")], Bytes("\(number)".utf8))
            try client.send("GET", path)
            #expect(try [client.answer(), client.answer()].map(\.status) == [201, 204])
            #expect(try client.answer().text == "\(number)")
        }
    }

    @Test func `a fork's source may be a URL that leads here, however its authority is written`() throws {
        let source = try server.stream("text/plain", "ab")
        func fork(_ origin: String, _ headers: [(String, String)]) throws -> TestClient.Answer {
            try server.request("PUT", server.path("fork"), [("Stream-Forked-From", origin + source)] + headers)
        }
        for (origin, host) in [
            ("http://localhost:80", "localhost"), ("http://localhost", "localhost:80"), ("https://LOCALHOST", "localhost"),
            ("https://localhost:443", "localhost."), ("HTTP://localhost:99", "localhost:99"), ("http://[0::1]", "[::1]:80"),
        ] { #expect(try fork(origin, [("Host", host)]).status == 201, "\(origin) \(host)") }
        #expect(try fork("https://parley.example", [("X-Forwarded-Host", "parley.example, inner")]).status == 201)
        for (origin, host) in [("http://localhost:81", "localhost"), ("http://a@localhost", "localhost"), ("http://", "localhost")] {
            #expect(try fork(origin, [("Host", host)]).code == "invalid_fork_source", "\(origin) \(host)")
        }
    }

    @Test(arguments: [
        ([("X-Forwarded-Proto", "https")], "https://localhost"), ([("X-Forwarded-Proto", "https, http")], "https://localhost"),
        ([("X-Forwarded-Proto", "http,https")], "http://localhost"), ([("X-Forwarded-Proto", "HTTPS")], "https://localhost"),
        ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http")], "https://localhost"),
        ([("X-Forwarded-Proto", "gopher")], "http://localhost"), ([("X-Forwarded-Proto", "")], "http://localhost"),
        ([("X-Forwarded-Host", "a.example, b.example"), ("X-Forwarded-Proto", "https")], "https://a.example/"),
        ([("X-Forwarded-Host", "a b")], "http://localhost"), ([("X-Forwarded-Host", "a/b")], "http://localhost"),
        ([("Forwarded", "for=1.2.3.4;proto=https;host=\"a.example:8443\", for=10.0.0.1;proto=http;host=b")], "https://a.example:8443/"),
        ([("Forwarded", "for=\"x,;\";Proto=https, proto=http")], "https://localhost"), ([("Forwarded", ";;=,")], "http://localhost"),
    ]) func `of what proxies say of the client's URL the first counts`(_ headers: [(String, String)], _ prefix: String) throws {
        let path = try server.path()
        let location = try server.request("PUT", path, headers).headers["location"]
        #expect(location?.hasPrefix(prefix) == true && location?.hasSuffix(path) == true, "\(location ?? "none")")
    }

    // MARK: Clients that end their side

    @Test func `a long poll is answered also to a client that sends nothing more`() throws {
        let path = try server.stream("text/plain", "a")
        let client = try server.connect()
        try client.send("GET", path + "?offset=\(try server.tail(path))&live=long-poll")
        client.finishSending()
        try server.eventually("the reader") { try server.metric("parley_readers") ?? 0 > 0 }
        try server.post(path, "b")
        #expect(try client.answer().text == "b")
    }

    @Test func `events continue to a client that sends nothing more, and not to one that has gone`() throws {
        let server = try TestServer()
        let path = try server.stream("text/plain", "a")
        let client = try server.follow(path)
        client.finishSending()
        #expect(try client.events { $0["upToDate"] == true }[0].data == "a")
        do {
            let gone = try server.follow(path)
            _ = try gone.events { $0["upToDate"] == true }
            try waitForReaders(2, on: server)
        }
        try waitForReaders(1, on: server)
        try server.post(path, "b", "text/plain", closed)
        #expect(try client.events()[0].data == "b")
    }

    // MARK: Conditions

    @Test func `the settled view's tag is another when what comes later leaves out what is in it`() throws {
        let server = try TestServer { $0.pageBytes = 100 }
        let path = "/v1/stream/agents/echo/tag"
        #expect(try server.request("PUT", path).status == 201)
        let position = Position(turn: 1, step: "s", attempt: 1)
        func append(_ entries: NewEntry...) throws {
            let tail = try server.tail(path)
            server.channels.submit(Append(to: "agents/echo/tag", entries))
            try server.eventually("the entries") { try server.tail(path) > tail }
        }
        func page(_ tag: String = "") throws -> TestClient.Answer { try server.get(path + "?view=settled", [("If-None-Match", tag)]) }
        try append(
            NewEntry(.stepStarted, position, ("kind", "model")),
            NewEntry(text: TextDelta(index: 0, delta: Bytes(repeating: 0x78, count: 200)), at: position),
            NewEntry(.emit, nil, ("name", "x")))
        let first = try page()
        let tag = try #require(first.headers["etag"])
        #expect(first.json?.array?.contains { $0["type"] == "text" } == true)
        #expect(try first.next < server.tail(path))
        #expect(try page(tag).status == 304)
        try append(NewEntry(.emit, nil, ("name", "y")))
        #expect(try page(tag).status == 304, "nothing in it has changed")
        try append(NewEntry(.stepCompleted, position, ("text", "x")))
        let sealed = try page(tag)
        #expect(sealed.status == 200 && sealed.next == first.next && sealed.headers["etag"] != tag)
        #expect(sealed.json?.array?.contains { $0["type"] == "text" } == false)
        #expect(try page(sealed.headers["etag"]!).status == 304)
    }

    @Test func `a request that ends with a zero is not one that closes, nor is text JSON`() throws {
        let key = [("Idempotency-Key", "k")]
        let path = try server.stream("text/plain")
        #expect(try server.post(path, "a\0", "text/plain", key).status == 204)
        #expect(try server.post(path, "a", "text/plain", key + closed).code == "idempotency_key_reused")
        #expect(try server.post(path, "a\0", "Text/Plain; charset=utf-8", key).headers["idempotent-replayed"] == "true")
        #expect(try server.get(path).text == "a\0")
        #expect(try server.request("HEAD", path).headers["stream-closed"] == nil)
        let number = [("Idempotency-Key", "number")]
        #expect(try server.post(path, "1", "text/plain", number).status == 204)
        #expect(try server.post(path, "1", "application/json", number).code == "idempotency_key_reused")
        let ended = try server.stream("text/plain")
        #expect(try server.post(ended, "a", "text/plain", key + closed).status == 204)
        #expect(try server.post(ended, "a", "text/plain", key + closed).headers["idempotent-replayed"] == "true")
        #expect(try server.post(ended, "a\0", "text/plain", key).code == "idempotency_key_reused")
    }
}
