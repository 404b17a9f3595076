import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

extension DurableStreams {
    /// Optional in the protocol: `swift test --skip Subscriptions` for a server without them. Receivers of webhooks listen on loopback.
    @Suite struct `Subscriptions` {
        private var server: ProtocolServer { .shared }

        private func root(_ path: String) -> String { server.root + "__ds/subscriptions/" + path }

        /// A segment that no other test has: their streams share a server.
        private func name(_ hint: String) -> String { String(server.path(hint).dropFirst(server.root.count)) }

        private func send(_ method: String, _ path: String, _ body: JSON, token: String? = nil) throws -> TestClient.Answer {
            let headers = [("Content-Type", "application/json")] + (token.map { [("Authorization", "Bearer \($0)")] } ?? [])
            return try server.request(method, path, headers, body.bytes)
        }

        private func write(_ stream: String, _ body: String = #"{"event":1}"#) throws -> String {
            let path = server.root + stream
            let json = [("Content-Type", "application/json")]
            var answer = try server.request("POST", path, json, body)
            if answer.status == 404 { answer = try server.request("PUT", path, json, body) }
            guard (200..<300).contains(answer.status) else { throw TestFailure("\(stream) answers \(answer.status): \(answer.text)") }
            return answer.next
        }

        private func webhook(_ url: String, _ pattern: String, lease: Int64 = 1_000, description: String = "tells a worker") -> JSON {
            [
                "type": "webhook", "pattern": .string(pattern), "webhook": ["url": .string(url)], "lease_ttl_ms": .integer(lease),
                "description": .string(description),
            ]
        }

        private func pull(_ wake: String, _ pattern: String, lease: Int64 = 1_000) -> JSON {
            ["type": "pull-wake", "pattern": .string(pattern), "wake_stream": .string(wake), "lease_ttl_ms": .integer(lease)]
        }

        private func error(_ answer: TestClient.Answer) -> String? { answer.json?["error"]?["code"]?.string }

        private func acked(_ id: String, _ stream: String) throws -> String? {
            let streams = try server.get(root(id)).json?["streams"]?.array
            return streams?.first { $0["path"]?.string == stream }?["acked_offset"]?.string
        }

        // MARK: Creating

        @Test(arguments: ["https://worker.example/hooks", "http://127.0.0.1:9/hooks"])
        func `a subscription is created, confirmed by the same configuration, and refused by another`(_ url: String) throws {
            let (id, pattern) = (name("s"), name("events") + "/*")
            let body = webhook(url, pattern)
            for (method, status) in [("PUT", 201), ("PUT", 200), ("GET", 200)] {
                let answer = method == "PUT" ? try send("PUT", root(id), body) : try server.get(root(id))
                #expect(answer.status == status)
                #expect(answer.json?["id"]?.string == id && answer.json?["subscription_id"]?.string == id)
                #expect(answer.json?["type"] == "webhook" && answer.json?["lease_ttl_ms"] == 1_000)
                #expect(answer.json?["status"] == "active" && answer.json?["description"] == "tells a worker")
                #expect(answer.json?["webhook"]?["url"]?.string == url && answer.json?["webhook_secret"] == nil)
                let signing = try #require(answer.json?["webhook"]?["signing"])
                #expect(signing["alg"] == "ed25519" && signing["kid"]?.string?.hasPrefix("ds_") == true)
                let keys = try #require(signing["jwks_url"]?.string)
                #expect(keys.hasPrefix("http") && keys.hasSuffix(server.root + "__ds/jwks.json"))
                #expect(try key(signing["kid"]) != nil)
            }
            for other in [webhook(url, pattern, lease: 2_000), webhook(url, pattern + "*"), webhook(url, pattern, description: "")] {
                #expect(try send("PUT", root(id), other).status == 409)
            }
            #expect(try server.request("DELETE", root(id)).status == 204)
            #expect(try server.get(root(id)).status == 404)
            #expect([204, 404].contains(try server.request("DELETE", root(id)).status))
        }

        /// The key of that id that webhooks are signed with.
        private func key(_ id: JSON?) throws -> JSON? {
            let answer = try server.get(server.root + "__ds/jwks.json")
            #expect(
                answer.headers["content-type"] == "application/jwk-set+json" && answer.headers["cache-control"] == "public, max-age=300")
            let found = answer.json?["keys"]?.array?.first { $0["kid"] == id }
            #expect(found?["kty"] == "OKP" && found?["crv"] == "Ed25519" && found?["alg"] == "EdDSA" && found?["d"] == nil)
            return found
        }

        @Test(arguments: [
            "[]", "{", #"{"type":"mail","pattern":"a"}"#, #"{"type":"pull-wake","wake_stream":"w"}"#,
            #"{"type":"pull-wake","pattern":"a"}"#,
            #"{"type":"webhook","pattern":"a"}"#,
        ])
        func `what makes no sense is refused`(body: String) throws {
            let id = name("bad")
            #expect(try server.request("PUT", root(id), [("Content-Type", "application/json")], body).status == 400)
            #expect(try server.get(root(id)).status == 404)
        }

        @Test(arguments: [
            "http://10.0.0.1/hook", "https://10.0.0.1/hook", "https://192.168.1.1/", "https://169.254.169.254/latest",
            "http://worker.example/hook",
        ])
        func `a webhook inside is refused`(url: String) throws {
            let answer = try send("PUT", root(name("inside")), webhook(url, "x/*"))
            #expect(answer.status == 400 && error(answer) == "WEBHOOK_URL_REJECTED", "\(answer.text)")
        }

        // MARK: Streams

        @Test func `streams that are there are linked at their tail, those named twice once, and a pattern outlasts a name`() throws {
            let (id, segment, wake) = (name("s"), name("events"), name("wake"))
            let tail = try write(segment + "/old")
            #expect(try send("PUT", root(id), pull(wake, segment + "/*")).status == 201)
            #expect(try acked(id, segment + "/old") == tail)
            for _ in 0..<2 {
                let streams: JSON = ["streams": .array([.string(segment + "/old"), .string(segment + "-x/y")])]
                #expect(try send("POST", root(id) + "/streams", streams).status == 204)
            }
            #expect(try links(id) == [segment + "/old": "explicit", segment + "-x/y": "explicit"])
            #expect(try server.request("DELETE", root(id) + "/streams/\(segment)%2Fold").status == 204)
            #expect(try server.request("DELETE", root(id) + "/streams/\(segment)-x/y").status == 204)
            #expect(try server.request("DELETE", root(id) + "/streams/\(segment)-x/y").status == 204)
            #expect(try links(id) == [segment + "/old": "glob"])
        }

        @Test func `streams that are named when it is created need no pattern`() throws {
            let (id, segment) = (name("s"), name("manual"))
            let body: JSON = [
                "type": "webhook", "streams": [.string(segment + "/a")], "webhook": ["url": "http://127.0.0.1:9/hooks"],
            ]
            #expect(try send("PUT", root(id), body).status == 201)
            #expect(try send("POST", root(id) + "/streams", ["streams": [.string(segment + "/b")]]).status == 204)
            #expect(try links(id) == [segment + "/a": "explicit", segment + "/b": "explicit"])
            #expect(try server.request("DELETE", root(id) + "/streams/\(segment)%2Fb").status == 204)
            #expect(try links(id) == [segment + "/a": "explicit"])
        }

        private func links(_ id: String) throws -> [String: String] {
            let streams = try server.get(root(id)).json?["streams"]?.array ?? []
            return Dictionary(uniqueKeysWithValues: streams.map { ($0["path"]?.string ?? "", $0["link_type"]?.string ?? "") })
        }

        // MARK: Webhooks

        @Test func `a webhook gets a signed wake, and done acks what it was told of`() throws {
            let receiver = try SubscriptionReceiver { _ in (200, #"{"done":true}"#) }
            let (id, segment) = (name("s"), name("events"))
            let created = try send("PUT", root(id), webhook(receiver.url, segment + "/*"))
            #expect(created.status == 201)
            let tail = try write(segment + "/a")
            let first = try receiver.notification()
            #expect(first.contentType == "application/json" && first.json["subscription_id"]?.string == id && first.generation == 1)
            let stream = try #require(first.stream(segment + "/a"))
            #expect(stream["has_pending"] == true && stream["tail_offset"]?.string == tail && stream["link_type"] == "glob")
            #expect(first.json["callback_url"]?.string?.hasSuffix(root(id) + "/callback") == true)

            let parts = try #require(try /t=(\d+),kid=([^,]+),ed25519=([A-Za-z0-9_-]+)/.wholeMatch(in: first.signature)?.output)
            #expect(abs(Double(parts.1)! - Date().timeIntervalSince1970) <= 300)
            let key = try #require(try key(.string(String(parts.2))))
            let (signature, publicKey) = (Base64.decodeURL(String(parts.3)) ?? [], Base64.decodeURL(key["x"]?.string ?? "") ?? [])
            let signed = Bytes("\(parts.1).".utf8) + first.body
            #expect(Ed25519.verifies(signature, of: signed, by: publicKey))
            #expect(!Ed25519.verifies(signature, of: signed + [0], by: publicKey))

            try server.eventually("the ack of the snapshot") { try acked(id, segment + "/a") == tail }
            let next = try write(segment + "/a")
            #expect(try receiver.notification(1).generation == 2)
            try server.eventually("the second ack") { try acked(id, segment + "/a") == next }
            // Nothing was told a third time meanwhile: the next generation is that of the next entry.
            _ = try write(segment + "/b")
            let third = try receiver.notification(2)
            #expect(third.generation == 3 && third.stream(segment + "/b")?["has_pending"] == true)
        }

        @Test func `a callback acks once, and whoever is late is fenced`() throws {
            let receiver = try SubscriptionReceiver()
            let (id, segment) = (name("s"), name("events"))
            _ = try send("PUT", root(id), webhook(receiver.url, segment + "/**", lease: 30_000))
            let tail = try write(segment + "/a/b")
            let wake = try receiver.notification().json
            let callback = root(id) + "/callback"
            let (token, wakeID) = (wake["callback_token"]?.string ?? "", wake["wake_id"] ?? .null)
            func body(_ generation: Int64 = 1, _ offset: String? = nil, wake: JSON? = nil, done: Bool = true) -> JSON {
                [
                    "wake_id": wake ?? wakeID, "generation": .integer(generation), "done": .bool(done),
                    "acks": [["stream": .string(segment + "/a/b"), "offset": .string(offset ?? tail)]],
                ]
            }
            let before = try acked(id, segment + "/a/b")
            #expect(before != tail)
            #expect(error(try send("POST", callback, body())) == "TOKEN_INVALID")
            #expect(error(try send("POST", callback, body(), token: token + "x")) == "TOKEN_INVALID")
            #expect(error(try send("POST", callback, body(2), token: token)) == "FENCED")
            #expect(error(try send("POST", callback, body(wake: "w_other"), token: token)) == "FENCED")
            #expect(error(try send("POST", callback, body(1, "00000000000000ff"), token: token)) == "INVALID_OFFSET")
            #expect(error(try send("POST", callback, body(1, "-1"), token: token)) == "INVALID_OFFSET")
            #expect(error(try send("POST", root(id) + "/ack", body(), token: token)) == "INVALID_REQUEST")
            #expect(try acked(id, segment + "/a/b") == before)
            #expect(try send("POST", callback, body(done: false), token: token).json == ["ok": true, "next_wake": false])
            // New while the wake is held: announced at the end.
            _ = try write(segment + "/a/b")
            #expect(try send("POST", callback, body(), token: token).json == ["ok": true, "next_wake": true])
            let late = try send("POST", callback, body(), token: token)
            #expect(late.status == 409 && error(late) == "FENCED")
            let next = try receiver.notification(1)
            #expect(next.stream(segment + "/a/b")?["acked_offset"]?.string == tail)
            let last: JSON = [
                "wake_id": next.json["wake_id"] ?? .null, "generation": .integer(next.generation), "done": true,
                "acks": [["stream": .string(segment + "/a/b"), "offset": next.stream(segment + "/a/b")?["tail_offset"] ?? .null]],
            ]
            let done = try send("POST", callback, last, token: next.json["callback_token"]?.string)
            #expect(done.status == 200 && done.json == ["ok": true, "next_wake": false])
            #expect(error(try send("POST", callback, last, token: next.json["callback_token"]?.string)) == "FENCED")
            #expect(try server.request("DELETE", root(id)).status == 204)
            #expect(try send("POST", callback, body(), token: token).status == 404)
            // With the same id, and yet another subscription: the old tokens are none of its.
            _ = try send("PUT", root(id), webhook(receiver.url, segment + "/**", lease: 30_000))
            #expect(["TOKEN_INVALID", "FENCED"].contains(error(try send("POST", callback, body(), token: token))))
        }

        @Test func `a webhook that fails is told again, and the subscription says so meanwhile`() throws {
            let receiver = try SubscriptionReceiver { $0 == 0 ? (500, "") : (200, #"{"done":true}"#) }
            let (id, segment) = (name("s"), name("events"))
            _ = try send("PUT", root(id), webhook(receiver.url, segment + "/*", lease: 30_000))
            let tail = try write(segment + "/a")
            let first = try receiver.notification()
            try server.eventually("the failure") { try server.get(root(id)).json?["status"] == "failed" }
            #expect(try receiver.notification(1).generation >= first.generation + (server.isOurs ? 1 : 0))
            try server.eventually("the ack") { try acked(id, segment + "/a") == tail }
            #expect(try server.get(root(id)).json?["status"] == "active")
        }

        @Test func `a webhook that never calls back is told again when its lease is over`() throws {
            let receiver = try SubscriptionReceiver()
            let (id, segment) = (name("s"), name("events"))
            _ = try send("PUT", root(id), webhook(receiver.url, segment + "/*"))
            _ = try write(segment + "/a")
            let (first, second) = (try receiver.notification(), try receiver.notification(1))
            #expect(second.generation == first.generation + 1 && second.json["wake_id"] != first.json["wake_id"])
            let late = try send(
                "POST", root(id) + "/callback",
                ["wake_id": first.json["wake_id"]!, "generation": .integer(first.generation), "done": true],
                token: first.json["callback_token"]?.string)
            #expect(error(late) == "FENCED")
        }

        // MARK: Pull-wake

        @Test func `workers claim, ack, extend and release, one at a time`() throws {
            let (id, segment, wake) = (name("s"), name("events"), name("wake"))
            _ = try server.request("PUT", server.root + wake, [("Content-Type", "application/json")], "[]")
            #expect(try send("PUT", root(id), pull(wake, segment + "/*")).status == 201)
            #expect(error(try send("POST", root(id) + "/claim", ["worker": "w1"])) == "NO_PENDING_WORK")
            let tail = try write(segment + "/a")
            try server.eventually("the wake event") { try server.get(server.root + wake).json?.array?.count == 1 }
            let event = try #require(try server.get(server.root + wake).json?.array?.first)
            #expect(event["type"] == "wake" && event["subscription_id"]?.string == id && event["stream"]?.string == segment + "/a")
            #expect(event["generation"] == 1 && event["ts"]?.integer != nil)

            let claim = try send("POST", root(id) + "/claim", ["worker": "w1"])
            #expect(claim.status == 200 && claim.json?["generation"] == 1 && claim.json?["lease_ttl_ms"] == 1_000)
            #expect(claim.json?["streams"]?.array?.first?["tail_offset"]?.string == tail)
            let busy = try send("POST", root(id) + "/claim", ["worker": "w2"])
            #expect(busy.status == 409 && error(busy) == "ALREADY_CLAIMED")
            #expect(busy.json?["error"]?["current_holder"] == "w1" && busy.json?["error"]?["generation"] == 1)

            let (token, wakeID) = (claim.json?["token"]?.string, claim.json?["wake_id"] ?? .null)
            // Held beyond its time by a worker that shows it is there.
            for _ in 0..<4 {
                RealTime.pass(.milliseconds(400))
                let beat = try send("POST", root(id) + "/ack", ["wake_id": wakeID, "generation": 1], token: token)
                #expect(beat.json == ["ok": true, "next_wake": false])
            }
            let release = try send("POST", root(id) + "/release", ["wake_id": wakeID, "generation": 1], token: token)
            #expect(release.status == 204)
            #expect(error(try send("POST", root(id) + "/release", ["wake_id": wakeID, "generation": 1], token: token)) == "FENCED")
            try server.eventually("another wake event") { try server.get(server.root + wake).json?.array?.count == 2 }

            let second = try send("POST", root(id) + "/claim", ["worker": "w2"])
            #expect(second.json?["generation"] == 2)
            let ack: JSON = [
                "wake_id": second.json?["wake_id"] ?? .null, "generation": 2, "done": true,
                "acks": [["stream": .string(segment + "/a"), "offset": .string(tail)]],
            ]
            #expect(error(try send("POST", root(id) + "/ack", ack, token: token)) == "FENCED")
            let done = try send("POST", root(id) + "/ack", ack, token: second.json?["token"]?.string)
            #expect(done.status == 200 && done.json == ["ok": true, "next_wake": false])
            #expect(try acked(id, segment + "/a") == tail)
            #expect(error(try send("POST", root(id) + "/claim", ["worker": "w1"])) == "NO_PENDING_WORK")
            // No event was needed.
            _ = try write(segment + "/b")
            #expect(try send("POST", root(id) + "/claim", ["worker": "w1"]).json?["generation"] == 3)
        }

        @Test func `a lease that ends wakes the next worker, and fences the one before`() throws {
            let (id, segment, wake) = (name("s"), name("events"), name("wake"))
            _ = try server.request("PUT", server.root + wake, [("Content-Type", "application/json")], "[]")
            _ = try send("PUT", root(id), pull(wake, segment + "/*"))
            _ = try write(segment + "/a")
            let claim = try send("POST", root(id) + "/claim", ["worker": "gone"])
            try server.eventually("a wake event of the next generation") {
                try server.get(server.root + wake).json?.array?.contains { $0["generation"] == 2 } == true
            }
            let late: JSON = ["wake_id": claim.json?["wake_id"] ?? .null, "generation": 1, "done": true]
            #expect(error(try send("POST", root(id) + "/ack", late, token: claim.json?["token"]?.string)) == "FENCED")
            #expect(try send("POST", root(id) + "/claim", ["worker": "next"]).json?["generation"] == 2)
        }
    }
}
