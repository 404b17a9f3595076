import ParleySystem
import Testing

@Suite struct `Subscriptions beyond the protocol` {
    static let server = Result { try TestServer() }

    private func put(_ id: String, _ body: String) throws -> TestClient.Answer {
        try Self.server.get().request("PUT", "/v1/stream/__ds/subscriptions/" + id, [("Content-Type", "application/json")], body)
    }

    @Test(arguments: [
        #"{"type":"pull-wake","wake_stream":"w","pattern":"a//b"}"#,
        #"{"type":"pull-wake","wake_stream":"w","pattern":"a","lease_ttl_ms":999}"#,
        #"{"type":"pull-wake","wake_stream":"w","pattern":"a","lease_ttl_ms":600001}"#,
        #"{"type":"pull-wake","wake_stream":"w","streams":["w"]}"#, #"{"type":"pull-wake","wake_stream":"w","streams":["__ds/x"]}"#,
        #"{"type":"pull-wake","wake_stream":"agents/a/b","pattern":"a"}"#, #"{"type":"pull-wake","wake_stream":"w","streams":[1]}"#,
        #"{"type":"mail","pattern":"a"}"#,
    ])
    func `what makes no sense is refused, and nothing is made`(body: String) throws {
        let answer = try put("bad", body)
        #expect(answer.status == 400 && answer.json?["error"]?["code"] == "INVALID_REQUEST", "\(answer.text)")
        #expect(try Self.server.get().get("/v1/stream/__ds/subscriptions/bad").status == 404)
    }

    @Test(arguments: [
        "https://[::1]/", "https://0x0a000001/", "https://167772161/", "ftp://worker.example/", "no url", "https://a:b@worker.example/",
        "https://[fe80::1]/", "https://[::ffff:10.0.0.1]/", "http://localhost.example/",
    ])
    func `a webhook inside is refused, however its address is written`(url: String) throws {
        let answer = try put("inside", #"{"type":"webhook","pattern":"x/*","webhook":{"url":"\#(url)"}}"#)
        #expect(answer.status == 400 && answer.json?["error"]?["code"] == "WEBHOOK_URL_REJECTED", "\(answer.text)")
    }

    @Test func `the control prefix is never a stream`() throws {
        let server = try Self.server.get()
        #expect(try server.request("PUT", "/v1/stream/__ds/other", [("Content-Type", "text/plain")], "x").status == 404)
        let other = try server.request("PUT", "/v1/stream/__ds/other", [("Content-Type", "text/plain")], "x")
        #expect(
            other.json?["error"]?["message"]?.string?.contains(
                "Choose another first segment. Below __ds/ there are __ds/subscriptions/<id> and __ds/jwks.json.") == true, "\(other.text)")
        #expect(try server.request("PUT", "/v1/stream/__ds", [("Content-Type", "text/plain")], "x").status == 403)
        #expect(try server.request("PATCH", "/v1/stream/__ds/subscriptions/x").status == 405)
    }

    @Test func `a subscription that was removed cannot be removed again`() throws {
        let (server, path) = (try Self.server.get(), "/v1/stream/__ds/subscriptions/twice")
        #expect(try put("twice", #"{"type":"pull-wake","wake_stream":"w","pattern":"twice/*"}"#).status == 201)
        #expect(try server.request("DELETE", path).status == 204)
        #expect(try server.request("DELETE", path).status == 404)
    }

    @Test func `a receiver that does not answer keeps no other from its wakes`() throws {
        let server = try TestServer()
        let (silent, quick) = (try SubscriptionReceiver { _ in nil }, try SubscriptionReceiver { _ in (200, #"{"done":true}"#) })
        let json = [("Content-Type", "application/json")]
        func subscribe(_ id: String, _ pattern: String, _ url: String) throws {
            let body = #"{"type":"webhook","pattern":"\#(pattern)","webhook":{"url":"\#(url)"}}"#
            #expect(try server.request("PUT", "/v1/stream/__ds/subscriptions/" + id, json, Bytes(body.utf8)).status == 201)
        }
        for number in 0..<80 { try subscribe("silent-\(number)", "a/*", "\(silent.url)/\(number)") }
        try subscribe("quick", "b/*", quick.url)
        #expect(try server.request("PUT", "/v1/stream/a/1", json, "1").status == 201)
        _ = try silent.notification(15)
        #expect(try server.request("PUT", "/v1/stream/b/1", json, "1").status == 201)
        _ = try quick.notification()
        #expect(silent.count == 16)
    }

    @Test func `an answer that breaks off accepts no wake and acknowledges nothing`() throws {
        let server = try TestServer()
        let receiver = try SubscriptionReceiver({ $0 == 0 ? (200, #"{"done":true}"#) : (202, "") }, breaksOff: { $0 == 0 })
        let json = [("Content-Type", "application/json")]
        let body = #"{"type":"webhook","pattern":"a/*","webhook":{"url":"\#(receiver.url)"}}"#
        #expect(try server.request("PUT", "/v1/stream/__ds/subscriptions/cut", json, Bytes(body.utf8)).status == 201)
        #expect(try server.request("PUT", "/v1/stream/a/1", json, "1").status == 201)
        let second = try receiver.notification(1)
        #expect(second.generation == 2)
        #expect(second.stream("a/1")?["has_pending"] == true)
        #expect(try server.metric("parley_subscription_failed_attempts_total") == 1)
    }

    @Test func `an answer that is too long accepts a wake and acknowledges nothing`() throws {
        let server = try TestServer()
        let long = #"{"done":true}"# + String(repeating: " ", count: 100_000)
        let receiver = try SubscriptionReceiver { _ in (200, long) }
        let json = [("Content-Type", "application/json")]
        let body = #"{"type":"webhook","pattern":"a/*","webhook":{"url":"\#(receiver.url)"}}"#
        #expect(try server.request("PUT", "/v1/stream/__ds/subscriptions/long", json, Bytes(body.utf8)).status == 201)
        #expect(try server.request("PUT", "/v1/stream/a/1", json, "1").status == 201)
        try server.eventually("a delivery") { try server.metric("parley_subscription_delivered_total") == 1 }
        #expect(try server.metric("parley_subscription_streams_pending") == 1)
    }

    @Test func `metrics say what subscriptions have done, and how much waits`() throws {
        let server = try TestServer()
        let receiver = try SubscriptionReceiver { $0 == 0 ? (500, "") : (200, #"{"done":true}"#) }
        let json = [("Content-Type", "application/json")]
        func put(_ path: String, _ body: String) throws {
            #expect(try server.request("PUT", "/v1/stream/" + path, json, body).status == 201)
        }
        func metric(_ name: String) throws -> Double? { try server.metric("parley_subscription" + name) }
        #expect(try metric("s") == 0)
        try put("__ds/subscriptions/hook", #"{"type":"webhook","pattern":"hook/*","webhook":{"url":"\#(receiver.url)"}}"#)
        try put("__ds/subscriptions/pull", #"{"type":"pull-wake","pattern":"pull/*","wake_stream":"wake","lease_ttl_ms":1000}"#)
        #expect(try metric("s") == 2 && metric("_wakes_total") == 0 && metric("_streams_pending") == 0)
        // Fails once, and is taken the second time.
        try put("hook/a", "1")
        try server.eventually("a delivery") { try metric("_delivered_total") == 1 }
        #expect(try metric("_failed_attempts_total") == 1 && metric("_retries_total") == 1 && metric("_wakes_total") == 2)
        try server.eventually("nothing waiting") { try metric("_streams_pending") == 0 }
        // Held until its lease is over.
        try put("pull/a", "1")
        try put("pull/b", "1")
        #expect(try server.request("POST", "/v1/stream/__ds/subscriptions/pull/claim", json, #"{"worker":"w"}"#).status == 200)
        #expect(try metric("_claims_total") == 1 && metric("_leases_expired_total") == 0)
        try server.eventually("two streams to wait") { try metric("_streams_pending") == 2 }
        try server.eventually("the end of the lease") { try metric("_leases_expired_total") == 1 }
        #expect(try metric("_wakes_total") == 4, "another worker is woken")
        #expect(try server.request("DELETE", "/v1/stream/__ds/subscriptions/pull").status == 204)
        #expect(try metric("s") == 1 && metric("_streams_pending") == 0)
    }
}
