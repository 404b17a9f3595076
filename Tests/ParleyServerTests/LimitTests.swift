import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyServer

private let json = ("Content-Type", "application/json")

@Suite struct `Limits` {
    @Test func `too many requests are told when to come again`() throws {
        let server = try TestServer { $0.rate = 2 }
        let answers = try (0..<8).map { _ in try server.get("/v1/agents") }
        #expect(answers.prefix(4).allSatisfy { $0.status == 200 }, "a burst")
        let refused = try #require(answers.last)
        #expect(refused.status == 429)
        #expect(refused.code == "too_many_requests")
        #expect(refused.headers["retry-after"] == "1")
        for _ in 0..<20 { #expect(try server.get("/healthz").status == 200) }
        #expect(try server.get("/v1/agents", [("X", "y")]).status == 429)
    }

    @Test func `each key, and each holder of a token, has a rate of its own`() throws {
        let server = try TestServer { configuration in
            try! configuration.keys.add("a:0123456789abcdef,b:fedcba9876543210", separator: ",", from: "test")
            configuration.rate = 1
        }
        let key = try Key(name: "a", secret: "0123456789abcdef")
        let end = TestServer.world.now.advanced(by: .seconds(60))
        let token = try CapabilityToken(keyName: "a", key: key.signing, .init(name: "ann", expires: end, grants: [try Grant("**:read")]))
        func ask(_ bearer: String) throws -> Int { try server.get("/v1/agents", [("Authorization", "Bearer \(bearer)")]).status }
        #expect(try (0..<4).map { _ in try ask("0123456789abcdef") }.contains(429))
        #expect(try ask("fedcba9876543210") == 200)
        // A token that its holder narrowed counts as the holder's.
        let statuses = try (0..<6).map { number in try ask(try token.narrowed(.init(name: "n\(number)")).text) }
        #expect(statuses.prefix(2) == [200, 200])
        #expect(statuses.contains(429))
        // Guessing is counted by address.
        let guesses = try (0..<6).map { try ask("guess-\($0)") }
        #expect(guesses.first == 401 && guesses.contains(429))
        #expect(try ask("fedcba9876543210") == 200, "others do not suffer")
    }

    @Test func `a bucket fills with time, and there is an end to buckets`() throws {
        let limiter = RateLimiter(rate: 10)
        func isFree(_ account: String, _ milliseconds: Int) -> Bool { (try? limiter.take(account, .milliseconds(milliseconds))) != nil }
        #expect((0..<20).allSatisfy { _ in isFree("a", 1_000) })
        #expect(!isFree("a", 1_000))
        #expect(!isFree("a", 900), "a clock of another loop may be behind")
        #expect(isFree("a", 1_100))
        #expect(!isFree("a", 1_100))
        for number in 0..<20_000 { _ = isFree("x\(number)", 1_100) }
        #expect(!isFree("a", 1_100), "who has not waited is not forgotten")
    }

    @Test func `nobody gets a full bucket by being one of very many accounts`() throws {
        let limiter = RateLimiter(rate: 10)
        func isFree(_ account: String, _ milliseconds: Int) -> Bool { (try? limiter.take(account, .milliseconds(milliseconds))) != nil }
        func flood(_ milliseconds: Int) { for number in 0..<10_000 { _ = isFree("x\(number)", milliseconds) } }
        flood(1_000)
        // There is no room for its own bucket, so it shares one, and has no other when there is room again.
        #expect((0..<20).allSatisfy { _ in isFree("late", 1_000) })
        #expect(!isFree("late", 1_000))
        flood(1_050)
        #expect(!isFree("late", 1_050))
        #expect(isFree("late", 2_200), "those that are full are forgotten, and it has a bucket of its own")
        #expect((0..<20).count { _ in isFree("late", 2_200) } < 12, "with what was left in the one before")
    }

    @Test func `accounts for which there is no room do not all share one bucket`() throws {
        let limiter = RateLimiter(rate: 10)
        for number in 0..<10_000 { try? limiter.take("x\(number)", .zero) }
        for _ in 0..<30 { try? limiter.take("greedy", .zero) }
        let free = (0..<1_000).count { (try? limiter.take("y\($0)", .zero)) != nil }
        #expect(free > 900)
    }

    @Test func `however many addresses ask, those who show a key have their buckets`() throws {
        let limiter = RateLimiter(rate: 1)
        for number in 0..<50_000 { try? limiter.take(RateLimiter.account(ofPeer: "10.0.\(number >> 8).\(number & 255)"), .zero) }
        for key in 0..<1_000 { try limiter.take("key-\(key)", .zero) }
    }

    @Test(arguments: [
        ("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "::ffff:10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2"),
        ("2001:db8::1", "2001:db8::"),
        ("2001:db8:1:2::9", "2001:db8:1:2"), ("fe80::1%eth0", "fe80::"), ("", ""),
    ])
    func `an address of IPv6 counts by its network`(_ address: String, _ account: String) {
        #expect(RateLimiter.account(ofPeer: address) == "peer " + account)
    }

    @Test func `channels beyond the limit are not made`() throws {
        let server = try TestServer(channelsMax: 3)
        let paths = (0..<3).map { _ in server.path() }
        for path in paths { #expect(try server.request("PUT", path, [json], "").status == 201) }
        let refused = try server.request("PUT", server.path(), [json], "")
        #expect(refused.status == 507)
        #expect(refused.code == "too_many_channels")
        #expect(try server.request("POST", "/v1/agents/assistant/new", [json], #"{"type":"message","text":"x"}"#).status == 507)
        #expect(try server.request("PUT", paths[0], [json], "").status == 200, "it is there")
        #expect(try server.request("DELETE", paths[0], [], "").status == 204)
        #expect(try server.request("POST", "/v1/agents/assistant/new", [json], #"{"type":"message","text":"x"}"#).status == 202)
        #expect(try server.request("PUT", server.path(), [json], "").status == 507)
    }

    @Test func `what was refused is counted by its code`() throws {
        let server = try TestServer()
        _ = try server.get("/nothing")
        _ = try server.get("/v1/stream/none")
        let client = try server.connect()
        try client.send("GET", "/", [("X-Long", String(repeating: "x", count: 20_000))])
        #expect(try client.answer().status == 431)
        let metrics = try server.get("/metrics").text
        for code in ["route_not_found", "channel_not_found", "head_too_large"] {
            #expect(metrics.contains("parley_refused_total{code=\"\(code)\"} 1\n"), "\(code)")
        }
    }
}

@Suite struct `Another origin` {
    static let server = try! TestServer { configuration in
        configuration.allowedOrigins = ["https://app.example"]
        try! configuration.keys.add("a:0123456789abcdef", separator: ",", from: "test")
    }

    @Test func `may ask before it has a key, and read what is wrong with the one it has`() throws {
        let origin = ("Origin", "https://app.example")
        let asked = try Self.server.request(
            "OPTIONS", "/v1/agents",
            [origin, ("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "authorization")])
        #expect(asked.status == 204)
        #expect(asked.headers["access-control-allow-headers"] == "authorization")
        let refused = try Self.server.get("/v1/agents", [origin])
        #expect(refused.status == 401)
        #expect(refused.headers["access-control-allow-origin"] == "https://app.example")
        for answer in [asked, refused] { #expect(answer.headers["access-control-allow-credentials"] == nil) }
    }

    @Test func `any origin is still answered with its own name and no credentials`() throws {
        let open = try TestServer { $0.allowedOrigins = ["*"] }
        let answer = try open.get("/v1/agents", [("Origin", "https://anyone.example")])
        #expect(answer.headers["access-control-allow-origin"] == "https://anyone.example")
        #expect(answer.headers["vary"] == "Origin")
        #expect(answer.headers["access-control-allow-credentials"] == nil)
    }
}
