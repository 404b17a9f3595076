import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Subscriptions of the real program, which is killed in between.
@Suite struct `Subscriptions of a node` {
    private static let json = [(name: "Content-Type", value: "application/json")]
    private static let root = "/v1/stream/__ds/subscriptions/work"

    private func send(_ node: EndToEndNode, _ method: String, _ path: String, _ body: JSON, token: String? = nil) throws
        -> EndToEndHTTP.Answer
    {
        let bearer = token.map { [(name: "Authorization", value: "Bearer \($0)")] } ?? []
        return try node.request(method, path, Self.json + bearer, body.text)
    }

    @Test func `a claim outlives kill -9, what it acks stays acked, and what came meanwhile wakes once`() async throws {
        try await OwnThread.run { [self] in
            let node = try EndToEndNode()
            try node.start()
            _ = try node.request("PUT", "/v1/stream/wake/pool", Self.json, "[]")
            let subscription: JSON = ["type": "pull-wake", "pattern": "events/**", "wake_stream": "wake/pool", "lease_ttl_ms": 600_000]
            #expect(try send(node, "PUT", Self.root, subscription).status == 201)
            let keys = try node.request("GET", "/v1/stream/__ds/jwks.json").text
            for generation in 1...4 {
                // Killed with every answer that counts: each is durable before it is given.
                let stream = "events/\(generation)"
                #expect(try send(node, "PUT", "/v1/stream/" + stream, ["n": .integer(Int64(generation))]).status == 201)
                try node.kill()
                try node.start()
                let claim = try send(node, "POST", Self.root + "/claim", ["worker": "w"])
                #expect(claim.status == 200 && claim.json?["generation"] == .integer(Int64(generation)))
                try node.kill()
                try node.start()
                #expect(try send(node, "POST", Self.root + "/claim", ["worker": "x"]).status == 409)
                let streams = claim.json?["streams"]?.array?.filter { $0["has_pending"] == true } ?? []
                #expect(streams.map { $0["path"]?.string } == [stream])
                let acks = streams.map { JSON.compact(("stream", $0["path"]), ("offset", $0["tail_offset"])) }
                let ack = JSON.compact(
                    ("wake_id", claim.json?["wake_id"]), ("generation", claim.json?["generation"]), ("acks", .array(acks)), ("done", true))
                let token = claim.json?["token"]?.string
                #expect(try send(node, "POST", Self.root + "/ack", ack, token: token).json == ["ok": true, "next_wake": false])
                try node.kill()
                try node.start()
                #expect(try send(node, "POST", Self.root + "/ack", ack, token: token).json?["error"]?["code"] == "FENCED")
                #expect(try send(node, "POST", Self.root + "/claim", ["worker": "w"]).json?["error"]?["code"] == "NO_PENDING_WORK")
            }
            // A worker that claims at once may be faster than the event, but no generation has two.
            let events = try node.request("GET", "/v1/stream/wake/pool").json?.array?.compactMap { $0["generation"]?.integer } ?? []
            #expect(events == Array(Set(events)).sorted())
            #expect(try node.request("GET", "/v1/stream/__ds/jwks.json").text == keys)
            #expect(try send(node, "PUT", Self.root, subscription).status == 200)
        }
    }

    @Test func `what the documentation shows runs`() async throws {
        try await OwnThread.run {
            let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            let text = try String(contentsOf: root.appendingPathComponent("docs/subscriptions.md"), encoding: .utf8)
            let start = try #require(text.range(of: "```sh\nS=")?.lowerBound)
            let shown = text[start...].dropFirst("```sh\n".count).components(separatedBy: "```")[0]
            let node = try EndToEndNode()
            try node.start()
            let script = shown.replacingOccurrences(of: "127.0.0.1:4437", with: "127.0.0.1:\(node.port)")
            let shell = try ChildProcess("bash", ["-c", script])
            #expect(try shell.waitForExit("the example of docs/subscriptions.md") == .status(0), "\(shell.output.error)")
            let output = shell.output.standard
            #expect(output.contains(#"[{"order":1}]"#) && output.hasSuffix(#"{"ok":true,"next_wake":false}"#), "\(output)")
        }
    }
}
