import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Input from outside is wrong: the answer says what, where and what to do, nothing changes, and the node lives on.
@Suite struct `Bad input` {
    struct Case: Sendable, CustomTestStringConvertible {
        var name: String
        var method = "POST"
        var path = "/v1/agents/writer/one"
        var headers = [(name: "Content-Type", value: "application/json")]
        var body = #"{"type":"message","text":"hi"}"#
        var status: Int
        var code: String
        /// The words that the answer must contain.
        var says: [String] = []

        var testDescription: String { name }
    }

    static let cases = [
        Case(name: "no JSON", body: "{\"type\": \"message\", ", status: 400, code: "invalid_json"),
        Case(name: "no object", body: "42", status: 400, code: "invalid_entry"),
        Case(name: "an empty body", body: "", status: 400, code: "empty_body"),
        Case(name: "an empty array", body: "[]", status: 400, code: "empty_array"),
        Case(name: "no type", body: #"{"text":"hi"}"#, status: 400, code: "invalid_entry", says: ["type", "message"]),
        Case(
            name: "an unknown type", body: #"{"type":"mesage","text":"hi"}"#, status: 400, code: "unknown_entry_type",
            says: ["mesage", "message"]),
        Case(name: "an entry of the owner's", body: #"{"type":"turn.completed","output":"x"}"#, status: 400, code: "unknown_entry_type"),
        Case(
            name: "one bad element", body: #"[{"type":"message","text":"a"},{"type":"nope"}]"#, status: 400, code: "unknown_entry_type",
            says: ["1"]),
        Case(name: "a message without text", body: #"{"type":"message"}"#, status: 400, code: "invalid_entry", says: ["text"]),
        Case(name: "text that is none", body: #"{"type":"message","text":7}"#, status: 400, code: "invalid_entry", says: ["text"]),
        Case(name: "an unknown kind", path: "/v1/agents/wirter/one", status: 404, code: "unknown_agent_kind", says: ["wirter", "writer"]),
        Case(name: "a name of four segments", path: "/v1/agents/writer/one/two", status: 404, code: "route_not_found"),
        Case(name: "an unknown route", method: "GET", path: "/v2/agents", status: 404, code: "route_not_found"),
        Case(name: "a wrong method", method: "PATCH", status: 405, code: "method_not_allowed", says: ["PATCH"]),
        Case(
            name: "an agent that was never named", method: "GET", path: "/v1/agents/writer/nobody", status: 404, code: "channel_not_found"),
        Case(name: "a wrong offset", method: "GET", path: "/v1/stream/agents/writer/one?offset=seven", status: 400, code: "invalid_offset"),
        Case(
            name: "a wrong view", method: "GET", path: "/v1/stream/agents/writer/one?offset=-1&view=nice", status: 400,
            code: "invalid_view", says: ["nice"]),
        Case(
            name: "a body of another type", headers: [(name: "Content-Type", value: "text/plain")], body: "hi", status: 409,
            code: "content_type_mismatch"),
        Case(
            name: "a foreign host", headers: [(name: "Content-Type", value: "application/json"), (name: "Host", value: "evil.example")],
            status: 403, code: "host_not_allowed"),
        Case(
            name: "an entry above the limit", body: #"{"type":"message","text":""# + String(repeating: "x", count: 1 << 20) + #""}"#,
            status: 413, code: "entry_too_large"),
        Case(
            name: "a body above the limit", body: #"{"type":"message","text":""# + String(repeating: "x", count: 11 << 20) + #""}"#,
            status: 413, code: "body_too_large"),
    ]

    @Test func `is answered with what is wrong and what to do, changes nothing, and harms nobody`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 10, rate: 0)
            let first = try node.send("Write.", to: "writer/one")
            let reader = EndToEndReader(of: "writer/one")
            reader.attach(to: node)
            try reader.waitForTurnEnd()
            let before = try node.entries("writer/one")
            for bad in `Bad input`.cases {
                let answer = try node.request(bad.method, bad.path, bad.headers, bad.body)
                let problem = answer.json
                #expect(answer.status == bad.status, "\(bad.name): \(answer.status) \(answer.text.prefix(300))")
                #expect(problem?["code"]?.string == bad.code, "\(bad.name): \(answer.text.prefix(300))")
                #expect(answer.header("Content-Type") == "application/problem+json", "\(bad.name)")
                let detail = problem?["detail"]?.string ?? ""
                #expect(detail.count > 10, "\(bad.name): no detail")
                for word in bad.says { #expect(detail.contains(word), "\(bad.name): '\(detail)' does not name \(word)") }
            }
            #expect(try node.entries("writer/one") == before)
            #expect(before.first?["offset"]?.string == first)
            #expect(upstream.records.count == 1)
            try expectAlive(node)
        }
    }

    @Test func `an idempotency key used for another body is refused, and for the same body answered as before`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 10, rate: 0)
            let first = try node.send("one", to: "writer/one", key: "k")
            #expect(try node.send("one", to: "writer/one", key: "k") == first)
            let answer = try node.request(
                "POST", "/v1/agents/writer/one", [("Content-Type", "application/json"), ("Idempotency-Key", "k")],
                #"{"type":"message","text":"two"}"#)
            #expect(answer.status == 422 && answer.json?["code"] == "idempotency_key_reused")
            try expectAlive(node)
            #expect(try node.entries("writer/one").count { $0["type"] == "message" } == 1)
        }
    }

    @Test func `a broken agent file is named with its line, and the others load`() async throws {
        try await OwnThread.run {
            let upstream = try ScriptedUpstream()
            let node = try EndToEndNode(
                agents: [
                    "writer.md": "---\nkind: writer\n---\nYou write.\n", "hot.md": "---\nkind: hot\ntemperature: hot\n---\nYou burn.\n",
                    "typo.md": "---\nmodle: x\n---\nYou err.\n",
                ], environment: ["PARLEY_MODEL": "openai:x", "OPENAI_BASE_URL": upstream.baseURL], keeping: upstream)
            try node.start()
            let said = try node.process.output.error
            #expect(said.contains("hot.md:3: temperature \"hot\""), "\(said)")
            #expect(said.contains("typo.md:2: modle") && said.contains("model"), "\(said)")
            #expect(said.contains("agents: writer"), "\(said)")
            let answer = try node.request(
                "POST", "/v1/agents/hot/one", [("Content-Type", "application/json")], #"{"type":"message","text":"hi"}"#)
            #expect(answer.status == 404 && answer.json?["code"] == "unknown_agent_kind")
            try expectAlive(node)
        }
    }

    @Test func `a model that nobody serves fails the turn, with the address and the remedy, after its retries`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["writer.md": "---\nkind: writer\n---\nYou write.\n"],
                environment: [
                    "PARLEY_MODEL": "openai:x", "OPENAI_BASE_URL": "http://127.0.0.1:\(FreePort.take())/v1", "PARLEY_MODEL_CONTINUES": "no",
                ])
            try node.start()
            _ = try node.send("Write.", to: "writer/one")
            let reader = EndToEndReader(of: "writer/one")
            reader.attach(to: node)
            let end = try reader.waitForTurnEnd()
            #expect(end["type"] == "turn.failed")
            #expect(end["error"]?["code"] == "model_unreachable")
            #expect(end["error"]?["message"]?.string?.contains("OPENAI_BASE_URL") == true)
            let failures = reader.seen.entries.filter { $0["type"] == "step.failed" }
            #expect(failures.count == 4)
            #expect(failures.map { $0["final"]?.bool } == [false, false, false, true])
            #expect(failures.dropLast().allSatisfy { $0["retry_at"] != nil })
            #expect(try node.request("GET", "/v1/agents/writer/one").json?["state"] == "idle")
        }
    }

    @Test func `without a model configured, the start says so, and what to set`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(agents: ["writer.md": "---\nkind: writer\n---\nYou write.\n"])
            try node.launch()
            let said = try node.process.wait("a word about the model") { $0.error.contains("PARLEY_MODEL") ? $0.error : nil }
            #expect(said.contains("scripted:") || said.contains("openai:"), "\(said)")
        }
    }
}
