import ParleySystem
import ParleyServer
import Testing

@Suite struct `Who is answered` {
    static let server = try! TestServer {
        $0.allowedHosts = ["parley.example"]
        $0.allowedOrigins = ["https://app.example"]
    }

    @Test(arguments: [
        ("localhost", 200), ("localhost:4437", 200), ("LocalHost:1", 200), ("a.localhost", 200), ("127.0.0.1", 200), ("127.1.2.3:80", 200),
        ("[::1]", 200),
        ("[::1]:4437", 200), ("parley.example", 200), ("PARLEY.example:443", 200), ("evil.example", 403), ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403), ("127.0.0.1.evil", 403), ("128.0.0.1", 403), ("[::2]", 403), ("10.0.0.1", 403), ("0.0.0.0", 403),
        ("127.0.0.256", 403), ("localhost.", 200), ("parley.example.:443", 200), ("[0:0::1]", 200), ("[::1].evil.com", 403),
        ("localhost:x", 403), ("", 403),
    ])
    func `a Host is loopback or configured`(_ host: String, _ status: Int) throws {
        let answer = try Self.server.get("/healthz", [("Host", host)])
        #expect(answer.status == status)
        if status == 403 { #expect(answer.code == "host_not_allowed") }
    }

    @Test(arguments: [
        ("http://localhost:4437", 200), ("https://localhost:4437", 200), ("https://app.example", 200), ("https://APP.example", 200),
        ("http://app.example", 403),
        ("http://localhost:3000", 403), ("http://evil.example", 403), ("null", 403), ("", 403), ("https://app.example.evil", 403),
    ])
    func `an Origin is the server's own or configured`(_ origin: String, _ status: Int) throws {
        let answer = try Self.server.get("/healthz", [("Host", "localhost:4437"), ("Origin", origin)])
        #expect(answer.status == status)
        if status == 403 {
            #expect(answer.code == "origin_not_allowed" && answer.json?["detail"]?.string?.contains("--cors-origin") == true)
        }
        #expect(answer.headers["access-control-allow-origin"] == (status == 200 && origin.lowercased().contains("app") ? origin : nil))
    }

    @Test(arguments: [
        ("parley.example", "http://parley.example:80", 200), ("parley.example:80", "http://parley.example", 200),
        ("parley.example:443", "https://parley.example.", 200), ("parley.example", "https://parley.example:80", 403),
        ("parley.example", "https://app.example:443", 200), ("parley.example", "https://app.example:444", 403),
    ]) func `a port that is the scheme's need not be said`(_ host: String, _ origin: String, _ status: Int) throws {
        #expect(try Self.server.get("/healthz", [("Host", host), ("Origin", origin)]).status == status)
    }

    /// The authority of a URL as target replaces the Host (RFC 9112, section 3.2.2).
    @Test(arguments: [
        ("http://evil.example/healthz", "localhost", 403), ("HTTP://evil.example/healthz", "localhost", 403),
        ("https://evil.example:4437/healthz", "localhost", 403), ("http://localhost.evil.example/healthz", "127.0.0.1", 403),
        ("http://localhost:4437/healthz", "localhost", 200), ("http://parley.example/healthz", "localhost", 200),
        ("http://[::1]/healthz", "evil.example", 200), ("http://evil.example/healthz", "evil.example", 403),
    ])
    func `a URL as request target is judged as a Host is`(_ target: String, _ host: String, _ status: Int) throws {
        let answer = try Self.server.get(target, [("Host", host)])
        #expect(answer.status == status)
        if status == 403 { #expect(answer.code == "host_not_allowed") }
    }

    @Test func `a page may not call itself the server's own by the Host, where the target names another`() throws {
        let headers = [("Host", "localhost:4437"), ("Origin", "http://localhost:4437")]
        #expect(try Self.server.get("http://parley.example/healthz", headers).code == "origin_not_allowed")
        let written = try Self.server.request("PUT", "http://evil.example" + Self.server.path(), headers, Bytes("x".utf8))
        #expect(written.code == "host_not_allowed")
    }

    /// As load balancers ask.
    @Test(arguments: ["/healthz", "/readyz"], ["GET", "HEAD"]) func `health is told without a Host`(_ path: String, _ method: String) throws
    {
        let client = try Self.server.connect()
        try client.send(Bytes("\(method) \(path) HTTP/1.0\r\n\r\n".utf8))
        #expect(try client.answer(toHead: method == "HEAD").status == 200)
    }

    @Test func `a page of another origin changes nothing`() throws {
        let path = Self.server.path()
        let answer = try Self.server.request("PUT", path, [("Origin", "http://evil.example"), ("Content-Type", "text/plain")], "x")
        #expect(answer.status == 403)
        #expect(try Self.server.get(path).status == 404)
    }

    @Test func `a browser may ask first`() throws {
        let asked = [("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "content-type, stream-seq")]
        let answer = try Self.server.request("OPTIONS", "/v1/stream/x", [("Origin", "https://app.example")] + asked)
        #expect(answer.status == 204)
        #expect(answer.headers["access-control-allow-origin"] == "https://app.example")
        #expect(answer.headers["access-control-allow-methods"]?.contains("POST") == true)
        #expect(answer.headers["access-control-allow-headers"] == "content-type, stream-seq")
        #expect(try Self.server.request("OPTIONS", "/v1/stream/x", [("Origin", "https://evil.example")] + asked).status == 403)
    }

    @Test func `a page of an allowed origin may read the protocol's headers`() throws {
        let path = try Self.server.stream("text/plain", "x")
        let answer = try Self.server.get(path, [("Origin", "https://app.example")])
        #expect(answer.headers["access-control-expose-headers"]?.contains("Stream-Next-Offset") == true)
        #expect(answer.headers["vary"] == "Origin")
    }
}

@Suite struct `Other routes` {
    static let server = try! TestServer()

    @Test func `health and readiness`() throws {
        #expect(try Self.server.get("/healthz").json == ["status": "ok"])
        #expect(try Self.server.get("/readyz").json == ["status": "ready"])
    }

    @Test(arguments: ["/nothing", "/v1", "/v1/stream", "/v1/streamx/a", "//", "/index.html"]) func `an unknown route is a problem`(
        _ path: String
    ) throws {
        let answer = try Self.server.get(path)
        #expect(answer.status == 404)
        #expect(answer.code == "route_not_found")
        #expect(answer.headers["x-content-type-options"] == "nosniff")
    }

    @Test(arguments: ["/", "/healthz", "/metrics", "/readyz"]) func `a wrong method names the right ones`(_ path: String) throws {
        let answer = try Self.server.request("POST", path)
        #expect(answer.status == 405)
        #expect(answer.headers["allow"] == "GET, HEAD")
    }

    @Test func `metrics count what was done`() throws {
        let server = try TestServer()
        for _ in 0..<3 { _ = try server.stream("text/plain", "x") }
        #expect(try server.metric("parley_submissions_total") == 3)
        #expect(try server.metric("parley_commits_total") ?? 0 >= 1)
        #expect(try server.metric("parley_commit_bytes_total") ?? 0 > 0)
        #expect(try server.metric("parley_commit_seconds_total") != nil)
        #expect(try server.metric("parley_connections") ?? 0 >= 1)
        #expect(try server.metric("parley_readers") == 0)
    }

    @Test func `the page runs nothing but its own script and loads nothing`() throws {
        let page = try Self.server.get("/")
        #expect(page.status == 200)
        #expect(page.headers["content-type"] == "text/html; charset=utf-8")
        let policy = try #require(page.headers["content-security-policy"])
        #expect(policy.contains("default-src 'none'"))
        #expect(policy.contains("connect-src 'self'"))
        let script = page.text.split(separator: "<script>", maxSplits: 1)[1].split(separator: "</script>")[0]
        #expect(policy.contains("script-src 'sha256-"))
        #expect(decodeBase64(String(policy.split(separator: "'sha256-")[1].split(separator: "'")[0])) == SHA256.digest(Bytes(script.utf8)))
        #expect(page.text.split(separator: "<script").count == 2)
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://", "src="] {
            #expect(!page.text.contains(forbidden), "the page contains \(forbidden)")
        }
    }
}
