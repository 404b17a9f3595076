import Glibc
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyServer

/// A server with keys, and what asks it.
private let secret = "0123456789abcdef0123456789abcdef"
private let server = try! TestServer { configuration in
    try! configuration.keys.add("main:\(secret),second:another-secret-of-32-characters", separator: ",", from: "test")
}
private let json = ("Content-Type", "application/json")

private func bearer(_ text: String) -> (String, String) { ("Authorization", "Bearer \(text)") }
private var key: (String, String) { bearer(secret) }

private func token(_ allow: String..., name: String = "ann", for time: Duration = .seconds(60), secret: String = secret) throws -> String {
    let key = try Key(name: "main", secret: secret)
    let end = TestServer.world.now.advanced(by: time)
    return try CapabilityToken(
        keyName: key.name, key: key.signing, .init(name: name, expires: end, grants: try allow.map { try Grant($0) })
    ).text
}

private func agentPath(_ hint: String = "assistant") -> String {
    "/v1/agents/\(hint)/" + server.path("a").split(separator: "/").last!
}

@Suite struct `A server with keys` {
    @Test(arguments: ["/v1/agents", "/v1/stream/x", "/v1/agents/assistant/me", "/readyz", "/metrics", "/nothing", "/v1/tokens"])
    func `answers nobody without one`(_ path: String) throws {
        let answer = try server.get(path)
        #expect(answer.status == 401)
        #expect(answer.code == "unauthorized")
        #expect(answer.json?["reason"] == "missing")
        #expect(answer.headers["www-authenticate"]?.hasPrefix("Bearer") == true)
    }

    @Test func `serves its page and its health to everybody`() throws {
        #expect(try server.get("/").status == 200)
        #expect(try server.get("/healthz").status == 200)
        #expect(try server.get("/healthz", [bearer("wrong")]).status == 200)
    }

    @Test(arguments: [
        "Bearer 0123456789abcdef0123456789abcdee", "Bearer 0123456789abcdef0123456789abcde", "Bearer 0123456789abcdef0123456789abcdef0",
        "Bearer", "Bearer ",
        "Basic 0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef", "Bearer 0123456789abcdef0123456789abcdef x",
        "Bearer parley_v1_",
        "Bearer parley_v1_AAAA", "Bearer parley_v9_AAAA", "Bearer ticket_x",
    ]) func `refuses`(_ field: String) throws {
        let answer = try server.get("/v1/agents", [("Authorization", field)])
        #expect(answer.status == 401)
        #expect(answer.json?["reason"] == "invalid")
        #expect(!answer.text.contains("0123456789abcdef"), "the answer repeats what was presented")
    }

    @Test func `takes any of its keys, once`() throws {
        #expect(try server.get("/v1/agents", [key]).status == 200)
        #expect(try server.get("/v1/agents", [("authorization", "bearer \(secret)")]).status == 200)
        #expect(try server.get("/v1/agents", [bearer("another-secret-of-32-characters")]).status == 200)
        #expect(try server.get("/v1/agents", [key, key]).status == 401)
        #expect(try server.get("/v1/agents?ticket=x", [key]).status == 200)
    }

    @Test func `has subscriptions made by who may do everything; whoever holds a wake proves it by the wake's own token`() throws {
        let base = "/v1/stream/__ds/subscriptions/guarded"
        let body = #"{"type":"pull-wake","pattern":"x/*","wake_stream":"wakes/guarded"}"#
        #expect(try server.request("PUT", base, [json], body).status == 401)
        #expect(try server.request("PUT", base, [json, bearer(try token("x/*:read,append"))], body).status == 403)
        #expect(try server.request("GET", base, [bearer(try token("**:read"))]).status == 403)
        #expect([200, 201].contains(try server.request("PUT", base, [json, key], body).status))
        #expect(try server.request("POST", base + "/claim", [json], #"{"worker":"w"}"#).status == 401)
        #expect(try server.get("/v1/stream/__ds/jwks.json").status == 200)
        for path in ["/ack", "/release", "/callback"] {
            let answer = try server.request("POST", base + path, [json, bearer("made-up")], #"{"wake_id":"w","generation":1,"acks":[]}"#)
            #expect(answer.json?["reason"] == nil && answer.status != 200 && answer.status != 204, "\(path): \(answer.text)")
        }
        #expect(try server.request("POST", base + "/ack/more", [json], "{}").status == 401)
    }

    @Test func `may be addressed by any name, and by pages only from where it is told`() throws {
        #expect(try server.get("/v1/agents", [key, ("Host", "parley.example")]).status == 200)
        #expect(try server.get("/v1/agents", [key, ("Origin", "https://evil.example")]).status == 403)
    }

    @Test func `lets no shared cache keep what it answers to somebody`() throws {
        let path = server.path("cached")
        _ = try server.request("PUT", path, [key, json], "[1]")
        #expect(try server.get(path, [key]).headers["cache-control"]?.hasPrefix("private") == true)
        #expect(try server.get(path + "?offset=-1&live=long-poll", [key]).headers["cache-control"]?.hasPrefix("private") == true)
    }

    @Test func `stamps entries with the key's name`() throws {
        let path = agentPath()
        let body = #"{"type":"message","text":"hi","by":"root"}"#
        #expect(try server.request("POST", path, [bearer("another-secret-of-32-characters"), json], body).status == 202)
        let ann = try token("agents/assistant/*:append")
        #expect(try server.request("POST", path, [bearer(ann), json], body).status == 202)
        let entries = try server.get(path.replacing("/v1/", with: "/v1/stream/"), [key]).json?.array
        #expect(entries?.map { $0["by"] } == ["second", "ann"])
    }

    @Test func `counts nothing that is secret`() throws {
        let metrics = try server.get("/metrics", [key])
        #expect(metrics.status == 200)
        #expect(!metrics.text.contains(secret))
        #expect(try server.get("/metrics", [bearer(try token("a:admin"))]).status == 403)
        #expect(try server.get("/metrics", [bearer(try token("__ds/metrics:read"))]).status == 200)
    }
}

@Suite struct `What a token allows` {
    /// Each row needs exactly the verb it names, and is answered otherwise than with 403 with it.
    static let rows: [(Verb, String, String, String)] = [
        (.read, "GET", "/v1/stream/CHANNEL", ""),
        (.read, "GET", "/v1/stream/CHANNEL?offset=-1&live=long-poll", ""),
        (.read, "HEAD", "/v1/stream/CHANNEL", ""),
        (.append, "PUT", "/v1/stream/CHANNEL", ""),
        (.append, "POST", "/v1/stream/CHANNEL", "[1]"),
        (.stop, "POST close", "/v1/stream/CHANNEL", ""),
        (.admin, "DELETE", "/v1/stream/CHANNEL", ""),
        (.read, "GET", "/v1/stream/AGENT", ""),
        (.append, "PUT", "/v1/stream/AGENT", ""),
        (.admin, "DELETE", "/v1/stream/AGENT", ""),
        (.read, "GET", "/v1/AGENT", ""),
        (.read, "GET", "/v1/AGENT/trace", ""),
        (.read, "GET", "/v1/AGENT/audit", ""),
        (.admin, "DELETE", "/v1/AGENT", ""),
        (.append, "POST", "/v1/AGENT", #"{"type":"message","text":"x"}"#),
        (.append, "POST", "/v1/AGENT", #"{"type":"signal","name":"x"}"#),
        (.steer, "POST", "/v1/AGENT", #"{"type":"steer","text":"x"}"#),
        (.stop, "POST", "/v1/AGENT", #"{"type":"interrupt"}"#),
        (.stop, "POST", "/v1/AGENT", #"{"type":"interrupt","text":"x"}"#),
        (.stop, "POST", "/v1/AGENT", #"{"type":"cancel"}"#),
        (.stop, "POST", "/v1/AGENT", #"{"type":"close"}"#),
        (.stop, "POST close", "/v1/stream/AGENT", ""),
        (.approve, "POST", "/v1/AGENT", #"{"type":"approve","approval":"x"}"#),
        (.approve, "POST", "/v1/AGENT", #"{"type":"deny","approval":"x"}"#),
        (.steer, "POST", "/v1/stream/AGENT", #"{"type":"steer","text":"x"}"#),
    ]

    @Test(arguments: rows) func `is one verb for each route and entry`(_ verb: Verb, _ method: String, _ path: String, _ body: String)
        throws
    {
        for other in Verb.allCases {
            let isAllowed = other == verb || other == .admin
            let agent = String(agentPath().dropFirst(4))
            let channel = String(server.path("plain").dropFirst("/v1/stream/".count))
            if !path.contains("stream/AGENT") || !method.hasPrefix("PUT") {
                _ = try server.request("PUT", "/v1/stream/\(agent)", [key, json], "")
                _ = try server.request("PUT", "/v1/stream/\(channel)", [key, json], "[0]")
            }
            let closes = method.hasSuffix(" close") ? [("Stream-Closed", "true")] : []
            let url = path.replacing("CHANNEL", with: channel).replacing("AGENT", with: agent)
            let held = try token("\(path.contains("AGENT") ? agent : channel):\(other.name)")
            let answer = try server.request(
                String(method.split(separator: " ")[0]), url, [bearer(held), json] + closes, body)
            #expect((answer.status == 403) == !isAllowed, "\(method) \(path) \(body) with '\(other)': \(answer.status) \(answer.text)")
            if answer.status == 403 {
                if method == "HEAD" { continue }
                #expect(answer.code == "forbidden")
                // Without any right to say something the answer names all that let one say something.
                let verbs = answer.json?["verbs"]?.array ?? []
                #expect(
                    verbs.contains(.string(verb.name)) && verbs.last == "admin" && verbs.first == answer.json?["verb"], "\(answer.text)")
                for verb in verbs { #expect(answer.json?["detail"]?.string?.contains("'\(verb.string ?? "")'") == true) }
                #expect(answer.json?["channel"]?.string == (path.contains("AGENT") ? agent : channel))
            } else {
                #expect(answer.status < 300, "\(method) \(path) with '\(other)': \(answer.status) \(answer.text)")
            }
        }
    }

    @Test func `is all of a batch or nothing`() throws {
        let path = agentPath()
        let held = bearer(try token("agents/**:append,read"))
        let body = #"[{"type":"message","text":"a"},{"type":"cancel"}]"#
        let answer = try server.request("POST", path, [held, json], body)
        #expect(answer.status == 403)
        #expect(answer.json?["verb"] == "stop")
        #expect(answer.json?["index"] == 1)
        #expect(try server.get(path, [held]).status == 404, "nothing was stored")
        // The header closes as the entry does.
        #expect(try server.request("POST", path, [held, json, ("Stream-Closed", "true")], #"{"type":"message","text":"a"}"#).status == 403)
    }

    @Test func `says the same of channels that are there and that are not`() throws {
        let held = bearer(try token("mine/*:read,append,admin"))
        let there = server.path("hidden")
        _ = try server.request("PUT", there, [key, json], "[1]")
        for method in ["GET", "PUT", "DELETE"] {
            let (a, b) = (
                try server.request(method, there, [held, json], ""), try server.request(method, there + "-not", [held, json], "")
            )
            #expect(a.status == 403 && b.status == 403)
        }
        #expect(try server.get("/v1/agents/nokind/x", [held]).status == 403)
        #expect(try server.request("POST", "/v1/agents/nokind/x", [held, json], #"{"type":"message","text":"a"}"#).status == 403)
    }

    @Test(arguments: [
        "/v1/stream/mine%2Fx", "/v1/stream/mine/%78", "/v1/stream/%6dine/x",
    ]) func `goes by the decoded name`(_ path: String) throws {
        #expect(try server.request("PUT", path, [bearer(try token("mine/x:append")), json], "").status < 300)
    }

    @Test(arguments: [
        "/v1/stream/mine/../other/x", "/v1/stream/mine/%2e%2e/other/x", "/v1/stream/mine/x%2F..%2F..%2Fother", "/v1/stream/mine//x",
        "/v1/stream/mine/x/",
        "/v1/stream/agents/a%2Fb", "/v1/stream/mine/x%00",
    ]) func `is not got around with`(_ path: String) throws {
        let answer = try server.request("PUT", path, [bearer(try token("mine/**:append", "agents/a:append")), json], "")
        #expect([400, 403, 404].contains(answer.status), "\(answer.status)")
    }

    @Test func `includes the source of a fork`() throws {
        let source = server.path("source")
        _ = try server.request("PUT", source, [key, json], "[1]")
        let fork = [json, ("Stream-Forked-From", source)]
        let name = String(source.dropFirst("/v1/stream/".count))
        #expect(try server.request("PUT", "/v1/stream/mine/\(name)", [bearer(try token("mine/*:append"))] + fork, "").status == 403)
        #expect(
            try server.request("PUT", "/v1/stream/mine/\(name)", [bearer(try token("mine/*:append", "\(name):read"))] + fork, "").status
                == 201)
    }

    @Test func `includes the output that a message waits for`() throws {
        let body = #"{"type":"message","text":"x"}"#
        let answer = try server.request("POST", agentPath(), [bearer(try token("agents/**:append")), json, ("Prefer", "wait=1")], body)
        #expect(answer.status == 403)
        #expect(answer.json?["verb"] == "read")
    }

    @Test func `shows in a list only what may be read`() throws {
        let (mine, other) = (agentPath(), agentPath("echo"))
        for path in [mine, other] { _ = try server.request("PUT", "/v1/stream" + path.dropFirst(3), [key, json], "") }
        let list = try server.get("/v1/agents?limit=1000", [bearer(try token("agents/assistant/*:read", "agents/echo/*:append"))])
        let names = list.json?["agents"]?.array?.compactMap { $0["agent"]?.string } ?? []
        #expect(names.contains(String(mine.dropFirst(4))))
        #expect(!names.contains { $0.hasPrefix("agents/echo/") })
        let held = bearer(try token("agents/assistant/*:read", "agents/echo/*:append"))
        var (streams, after): ([String], String?) = ([], nil)
        repeat {
            let page = try server.get("/v1/streams?limit=2" + (after.map { "&after=\($0)" } ?? ""), [held])
            streams += page.json?["streams"]?.array?.compactMap { $0["name"]?.string } ?? []
            after = page.json?["next"]?.string
            if let after { #expect(after.hasPrefix("agents/assistant/"), "it names what may not be read") }
        } while after != nil
        #expect(streams.contains(String(mine.dropFirst(4))))
        #expect(streams.allSatisfy { $0.hasPrefix("agents/assistant/") })
    }

    @Test func `is nothing on a route that asks for no verb`() throws {
        let answer = try server.get("/v1/something-new", [bearer(try token("**:read,append,steer,approve,stop"))])
        #expect(answer.status == 403)
        #expect(try server.get("/v1/something-new", [bearer(try token("**:admin"))]).status == 404)
    }

    @Test func `ends at its instant`() throws {
        let now = TestServer.world.now
        let key = try Key(name: "main", secret: secret)
        func held(_ end: Timestamp) throws -> String {
            try CapabilityToken(keyName: "main", key: key.signing, .init(name: "a", expires: end, grants: [try Grant("**:read")])).text
        }
        #expect(try server.get("/v1/agents", [bearer(try held(now.advanced(by: .seconds(5))))]).status == 200)
        let late = try server.get("/v1/agents", [bearer(try held(Timestamp(milliseconds: now.milliseconds - 1_000)))])
        #expect(late.status == 401)
        #expect(late.json?["reason"] == "expired")
        let narrowed = try CapabilityToken(try held(now.advanced(by: .seconds(50))))!.narrowed(.init(expires: now)).text
        #expect(try server.get("/v1/agents", [bearer(narrowed)]).status == 401)
        #expect(try server.get("/v1/agents", [bearer(try token("**:read", secret: "fedcba9876543210"))]).status == 401)
    }
}

@Suite struct `Tokens and tickets from the server` {
    @Test func `a key issues a token`() throws {
        let answer = try server.request(
            "POST", "/v1/tokens", [key, json], #"{"name":"ann","allow":["agents/assistant/*:read,steer"],"expires_in":60}"#)
        #expect(answer.status == 201)
        let token = try #require(answer.json?["token"]?.string.flatMap { CapabilityToken($0) })
        #expect(token.name == "ann")
        #expect(token.keyName == "main")
        #expect(try server.get("/v1/agents", [bearer(token.text)]).status == 200)
        #expect(answer.headers["cache-control"] == "no-store")
    }

    @Test func `a token issues none, unless it may do everything: and then a part of itself`() throws {
        let body = #"{"name":"bob","allow":["**:read"],"expires_in":60}"#
        for held in ["*:admin", "agents/**:admin", "**:read,append"] {
            #expect(try server.request("POST", "/v1/tokens", [bearer(try token(held)), json], body).status == 403, "\(held)")
        }
        let answer = try server.request("POST", "/v1/tokens", [bearer(try token("**:admin")), json], body)
        #expect(answer.json?["name"] == "ann/bob")
    }

    @Test(arguments: [
        "", "[]", "{}", #"{"name":"a","allow":[],"expires_in":60}"#, #"{"name":"a","allow":["x:read"]}"#,
        #"{"name":"a","allow":["x:read"],"expires_in":0}"#, #"{"name":"a","allow":["x:read"],"expires_in":-1}"#,
        #"{"name":"a","allow":["x:read"],"expires_in":1e30}"#, #"{"name":"a","allow":["x:read"],"expires_in":9000000000}"#,
        #"{"name":"a","allow":["x:read"],"expires_at":"2001-01-01T00:00:00Z"}"#,
        #"{"name":"a","allow":["x:read"],"expires_in":60,"expires_at":"2030-01-01T00:00:00Z"}"#,
        #"{"name":"a b","allow":["x:read"],"expires_in":60}"#, #"{"allow":["x:read"],"expires_in":60}"#,
        #"{"name":"a","allow":["x"],"expires_in":60}"#,
        #"{"name":"a","allow":[1],"expires_in":60}"#, #"{"name":"a","alow":["x:read"],"expires_in":60}"#,
        #"{"name":"a","name":"b","allow":["x:read"],"expires_in":60}"#,
    ]) func `what a token is asked with is checked`(_ body: String) throws {
        let answer = try server.request("POST", "/v1/tokens", [key, json], body)
        #expect(answer.status == 400, "\(answer.text)")
        #expect((answer.json?["detail"]?.string ?? "").count > 10)
    }

    @Test(arguments: [
        ("tickets", "[]", "invalid_ticket_request"), ("tickets", "7", "invalid_ticket_request"),
        ("tickets", "{}", "invalid_ticket_request"),
        ("tickets", #"{"chanel":"x"}"#, "invalid_ticket_request"), ("tickets", #"{"channel":7}"#, "invalid_ticket_request"),
        ("tickets", #"{"channel":"x","socket":true}"#, "invalid_ticket_request"), ("tickets", "{", "invalid_json"),
        ("tokens", "[]", "invalid_token_request"), ("tokens", #"{"alow":["x:read"]}"#, "invalid_token_request"),
        ("tokens", #"{"name":"a","name":"b"}"#, "invalid_json"),
    ]) func `a body of the wrong shape has the code of its route`(_ route: String, _ body: String, _ code: String) throws {
        let answer = try server.request("POST", "/v1/\(route)", [key, json], body)
        #expect(answer.status == 400 && answer.code == code, "\(answer.text)")
    }

    @Test func `without keys there is nothing to sign with`() throws {
        let open = try TestServer()
        let answer = try open.request("POST", "/v1/tokens", [json], #"{"name":"a","allow":["x:read"],"expires_in":60}"#)
        #expect(answer.status == 409)
        #expect(answer.code == "no_keys")
        let ticket = try open.request("POST", "/v1/tickets", [json], #"{"channel":"x"}"#)
        #expect(ticket.status == 201, "so that a page does the same everywhere")
    }

    @Test func `a ticket ends with the key that it came by`() throws {
        let own = try TestServer { try! $0.keys.add("one:\(secret)", separator: ",", from: "test") }
        let path = own.path("ticketed")
        #expect(try own.request("PUT", path, [key, json]).status == 201)
        let tickets = try (0..<2).map { _ in
            let answer = try own.request("POST", "/v1/tickets", [key, json], "{\"channel\":\"\(path.dropFirst(own.root.count))\"}")
            return try #require(answer.json?["ticket"]?.string)
        }
        #expect(try own.get("\(path)?ticket=\(tickets[0])").status == 200)
        var others = KeyRing()
        try others.add("two:another-secret-of-32-characters", separator: ",", from: "test")
        try own.server.reload(others)
        #expect(try own.get("\(path)?ticket=\(tickets[1])").status == 401)
    }

    @Test func `a ticket is worth one GET of one channel`() throws {
        let path = server.path("ticketed")
        let name = String(path.dropFirst("/v1/stream/".count))
        for path in [path, path + "-other"] { _ = try server.request("PUT", path, [key, json], "[1]") }
        func ticket() throws -> String {
            let answer = try server.request(
                "POST", "/v1/tickets", [bearer(try token("\(name):read,append")), json], "{\"channel\":\"\(name)\"}")
            #expect(answer.status == 201)
            return try #require(answer.json?["ticket"]?.string)
        }
        let first = try ticket()
        #expect(try server.get("\(path)?ticket=\(first)").status == 200)
        #expect(try server.get("\(path)?ticket=\(first)").status == 401, "used")
        #expect(try server.get("\(path)-other?ticket=\(try ticket())").status == 403)
        #expect(try server.request("POST", "\(path)?ticket=\(try ticket())", [json], "[1]").status == 401)
        #expect(try server.request("DELETE", "\(path)?ticket=\(try ticket())", [json], "").status == 401)
        #expect(try server.get("/v1/agents?ticket=\(try ticket())").json?["agents"] == [])
        #expect(try server.get("\(path)?ticket=ticket_AAAA").status == 401)
        let other = try server.request("POST", "/v1/tickets", [bearer(try token("\(name):append")), json], "{\"channel\":\"\(name)\"}")
        #expect(other.status == 403)
        let client = try server.connect()
        try client.send("GET", "\(path)?offset=-1&live=sse&ticket=\(try ticket())")
        #expect(try client.head().status == 200)
        #expect(try client.event()?.data == "[1]")
    }

    @Test func `a ticket ends after a minute or with its token, and there is an end to them`() {
        let tickets = Tickets()
        let now = Timestamp(milliseconds: 1_000_000)
        let access = Access.key(try! Key(name: "a", secret: secret))
        let first = tickets.issue(access, now)!
        #expect(first.expires == now.advanced(by: .seconds(60)))
        #expect(tickets.redeem(first.text, first.expires) == nil)
        let second = tickets.issue(access, now)!
        #expect(tickets.redeem(second.text, Timestamp(milliseconds: second.expires.milliseconds - 1)) != nil)
        for _ in 0..<Tickets.countMax { #expect(tickets.issue(access, now) != nil) }
        #expect(tickets.issue(access, now) == nil)
        #expect(tickets.issue(access, now.advanced(by: .seconds(60))) != nil)
    }
}

@Suite struct `A reader whose token ends` {
    @Test func `is told where to resume, and continues with another token: nothing is lost`() throws {
        let server = try TestServer { configuration in
            try! configuration.keys.add("main:\(secret)", separator: ",", from: "test")
            configuration.heartbeatInterval = .milliseconds(200)
        }
        let path = server.path("follow")
        _ = try server.request("PUT", path, [key, json], "[0]")
        let client = try server.connect()
        try client.send("GET", path + "?offset=-1&live=sse", [bearer(try token("**:read", for: .milliseconds(700)))])
        #expect(try client.head().status == 200)
        let hasEnded = Monitor(false)
        let written = Monitor(0)
        let writer = SystemThread(name: "writer") {
            func write() {
                let number = written.withLock { $0 + 1 }
                if (try? server.request("POST", path, [key, json], "[\(number)]"))?.status == 204 { written.withLock { $0 = number } }
            }
            while !hasEnded.withLock({ $0 }) { write() }
            for _ in 0..<5 { write() }
        }
        let events = try client.events()
        hasEnded.withLock { $0 = true }
        writer.join()
        let count = written.withLock { $0 }
        let last = try #require(events.last)
        #expect(last.name == "control")
        #expect(last.json?["streamClosed"] == nil)
        var seen = events.filter { $0.name == "data" }.flatMap { (try? JSON.parse($0.data).array) ?? [] }
        #expect(seen.count <= count, "it ended in the middle")
        let offset = try #require(last.json?["streamNextOffset"]?.string)
        let held = bearer(try token("**:read", for: .milliseconds(1)))
        let due = TestServer.world.now.advanced(by: .milliseconds(2))
        try RealTime.until("the token to expire") { TestServer.world.now >= due }
        #expect(try server.get("\(path)?offset=\(offset)&live=sse", [held]).status == 401)
        let rest = try server.get("\(path)?offset=\(offset)", [bearer(try token("**:read"))])
        seen += rest.json?.array ?? []
        #expect(seen == (0...count).map { .integer(Int64($0)) })
    }

    @Test func `waits for no longer than its token lasts`() throws {
        let path = server.path("poll")
        _ = try server.request("PUT", path, [key, json], "[0]")
        let begin = TestServer.world.now
        let tail = try server.request("HEAD", path, [key]).next
        let answer = try server.get("\(path)?offset=\(tail)&live=long-poll", [bearer(try token("**:read", for: .milliseconds(300)))])
        #expect(answer.status == 204)
        #expect(answer.next == tail)
        #expect(begin.duration(to: TestServer.world.now) < .seconds(5))
    }
}

@Suite struct `Keys` {
    @Test(arguments: [
        "main", ":0123456789abcdef", "main:short", "main:", "ma in:0123456789abcdef", "a:0123456789abcdef,a:0123456789abcdeg",
        "main:parley_0123456789abcdef", "main:0123456789abcdé", "main:0123456789 abcdef",
    ]) func `are refused without being said`(_ text: String) {
        var ring = KeyRing()
        do {
            try ring.add(text, separator: ",", from: "PARLEY_KEYS")
            Issue.record("'\(text)' was taken")
        } catch {
            #expect(!error.message.contains("0123456789"), "\(error.message)")
            #expect(error.message.count > 20)
        }
    }

    @Test func `come from a file that only its owner may read`() throws {
        let path = "/tmp/parley-keys-\(getpid())"
        defer { unlink(path) }
        func write(_ text: String, mode: mode_t) {
            unlink(path)
            let descriptor = open(path, O_WRONLY | O_CREAT, mode)
            fchmod(descriptor, mode)
            _ = text.withCString { Glibc.write(descriptor, $0, strlen($0)) }
            close(descriptor)
        }
        var ring = KeyRing()
        write("# mine\n\nmain:0123456789abcdef\n next:0123,456#789abcdef\n", mode: 0o600)
        try ring.addFile(path)
        #expect(ring.keys.map(\.name) == ["main", "next"])
        #expect(ring.key(secret: "0123,456#789abcdef")?.name == "next")
        for mode: mode_t in [0o644, 0o640, 0o604, 0o660] {
            write("main:0123456789abcdef", mode: mode)
            let error = #expect(throws: SafetyError.self) { try KeyRing().adding(path) }
            #expect(error?.message.contains("chmod 600") == true)
        }
        write("# nothing\n", mode: 0o600)
        #expect(throws: SafetyError.self) { try KeyRing().adding(path) }
        #expect(throws: SafetyError.self) { try KeyRing().adding(path + "-not") }
        #expect(throws: SafetyError.self) { try KeyRing().adding("/tmp") }
    }
}

extension KeyRing {
    fileprivate func adding(_ path: String) throws(SafetyError) {
        var ring = self
        try ring.addFile(path)
    }
}
