import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

/// A node tells a receiver over real HTTP when an agent waits for a person, whatever happens to the node meanwhile.
@Suite struct `Webhooks` {
    private static let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    private static let settings = ["PARLEY_MODEL": "scripted:", "PARLEY_WEBHOOK_SECRET": secret]

    private static func options(_ receiver: WebhookReceiver, _ more: String...) -> [String] {
        ["--webhook", receiver.url, "--webhook-allow-private"] + more
    }

    @Test func `tell who can approve, signed, and what they carry lets the turn continue`() async throws {
        try await OwnThread.run {
            let receiver = try WebhookReceiver()
            // A proxy that does not answer: none is asked.
            let settings = Self.settings.merging(["http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"]) { $1 }
            let node = try EndToEndNode("steps-agent", environment: settings, keeping: receiver)
            try node.start(options: Self.options(receiver))
            _ = try node.send("tea", to: "waiter/one")
            let record = try receiver.wait("the approval to be asked for") { $0.first }
            #expect(record.isSigned(by: Self.secret))
            #expect(record.header("user-agent") == "parley/\(Release.version)")
            #expect(record.body["type"] == "approval.requested" && record.body["agent"] == "waiter/one")
            #expect(record.body["entry"]?["args"]?["what"] == "tea")

            let answer = try #require(record.body["answer"])
            let path = try #require(answer["path"]?.string), approve = try #require(answer["approve"]?.text)
            #expect(try node.request("POST", path, [("Content-Type", "application/json")], approve).status == 202)
            let reader = EndToEndReader(of: "waiter/one")
            reader.attach(to: node)
            #expect(try reader.wait("the end of the turn") { $0.first("turn.completed") }["output"] == "ordered")
            #expect(receiver.records.count == 1)
            let metrics = try node.request("GET", "/metrics").text
            for line in [
                "parley_webhook_delivered_total 1", "parley_webhook_failed_attempts_total 0", "parley_webhook_given_up_total 0",
                "parley_webhook_pending 0",
            ] {
                #expect(metrics.contains("\n\(line)\n"), "\(line)")
            }
        }
    }

    @Test func `are known to be ours by the program that the documentation shows`() async throws {
        try await OwnThread.run {
            let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            let text = try String(contentsOf: root.appendingPathComponent("docs/webhooks.md"), encoding: .utf8)
            let start = try #require(text.range(of: "```python\n")?.upperBound)
            let shown = text[start..<(try #require(text.range(of: "```", range: start..<text.endIndex)?.lowerBound))]

            let receiver = try WebhookReceiver()
            let node = try EndToEndNode("steps-agent", environment: Self.settings, keeping: receiver)
            try node.start(options: Self.options(receiver))
            _ = try node.send("tea ☕", to: "waiter/one")
            let record = try receiver.wait("the approval to be asked for") { $0.first }
            let headers = JSON.object(record.headers.map { JSON.Member($0.key, .string($0.value)) })
            let program = """
                \(shown)
                import json, sys
                headers, body, secret = json.loads(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
                print(is_ours(headers, body, secret), is_ours(headers, body + b" ", secret),
                      is_ours(headers | {"webhook-timestamp": "1"}, body, secret), is_ours(headers, body, "whsec_" + "A" * 32))
                """
            let python = try ChildProcess("python3", ["-c", program, headers.text, record.bytes.text, Self.secret])
            #expect(try python.waitForExit("the program of docs/webhooks.md") == .status(0), "\(python.output.error)")
            #expect(python.output.standard == "True False False False\n")
        }
    }

    @Test(arguments: ["webhook.attempt", "webhook.delivered"])
    func `come though the node is killed between the entry and what comes of it`(failpoint: String) async throws {
        try await OwnThread.run {
            let receiver = try WebhookReceiver()
            let node = try EndToEndNode("steps-agent", environment: Self.settings, keeping: receiver)
            try node.start(failpoint: "\(failpoint):1", options: Self.options(receiver))
            _ = try? node.send("tea", to: "waiter/one")  // It may die before it has answered.
            #expect(try node.process.waitForExit("the kill at \(failpoint)") == .signal(9))
            let before = receiver.records.count
            #expect(before == (failpoint == "webhook.attempt" ? 0 : 1))

            try node.start(options: Self.options(receiver))
            let records = try receiver.wait("the delivery after the start") { $0.count > before ? $0 : nil }
            #expect(Set(records.map { $0.header("webhook-id") }).count == 1, "a repeat has the id of the first")
            #expect(Set(records.map(\.body.text)).count == 1)
            #expect(records.allSatisfy { $0.isSigned(by: Self.secret) })
            try waitUntilDelivered(node)

            // Delivered is delivered.
            try node.kill()
            try node.start(options: Self.options(receiver))
            _ = try node.send("coffee", to: "waiter/two")
            try receiver.wait("the next one") { $0.last?.body["agent"] == "waiter/two" ? true : nil }
            #expect(receiver.records.count == before + 2)
        }
    }

    @Test func `are tried again when the receiver comes back`() async throws {
        try await OwnThread.run {
            let receiver = try WebhookReceiver()
            receiver.answer(503)
            let node = try EndToEndNode("steps-agent", environment: Self.settings, keeping: receiver)
            try node.start(options: Self.options(receiver))
            _ = try node.send("tea", to: "waiter/one")
            try receiver.wait("the first attempt") { $0.first }
            receiver.answer(204)
            try waitUntilDelivered(node)
            #expect(receiver.records.count == 2)
            let said = try node.process.output.error
            #expect(said.contains("webhook attempt failed") && said.contains("status 503"), "\(said)")
            #expect(!said.contains("hidden") && !said.contains("MfKQ"), "\(said)")
        }
    }

    @Test func `go to no address inside, unless that was allowed`() async throws {
        try await OwnThread.run {
            let receiver = try WebhookReceiver()
            let node = try EndToEndNode("steps-agent", environment: Self.settings, keeping: receiver)
            try node.start(options: ["--webhook", "https://localhost:\(receiver.port)/?key=hidden"])
            _ = try node.send("tea", to: "waiter/one")
            let said = try node.process.wait("the refusal") { $0.error.contains("address_refused") ? $0.error : nil }
            #expect(said.contains("is not an address of the public Internet"), "\(said)")
            #expect(!said.contains("hidden"), "\(said)")
            #expect(receiver.connectionCount == 0 && receiver.records.isEmpty)
        }
    }

    @Test(arguments: [
        (["--webhook", "http://127.0.0.1:9/"], "https"), (["--webhook", "https://10.0.0.1/"], "--webhook-allow-private"),
        (["--webhook", "https://example.com/", "--webhook-events", "text"], "approval.requested"),
        (["--webhook-events", "emit"], "--webhook <url>"), (["--webhook-allow-private=yes"], "takes no value"),
    ])
    func `that make no sense are said before anything starts`(options: [String], says: String) async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(environment: Self.settings)
            let process = try node.launch(options: options)
            #expect(try process.waitForExit("the refusal") == .status(2))
            #expect(process.output.error.contains(says), "\(process.output.error)")
            let unsigned = try EndToEndNode(environment: ["PARLEY_MODEL": "scripted:", "PARLEY_WEBHOOK_URL": "https://example.com/"])
            let second = try unsigned.launch()
            #expect(try second.waitForExit("the refusal without a secret") == .status(2))
            #expect(second.output.error.contains("openssl rand -base64 32"), "\(second.output.error)")
        }
    }

    private func waitUntilDelivered(_ node: EndToEndNode) throws {
        let limit = ContinuousClock.now + .seconds(60)
        // The number is there to be polled.
        while try !node.request("GET", "/metrics").text.contains("parley_webhook_pending 0\n") {
            guard ContinuousClock.now < limit else { throw Missed("something is still to be delivered") }
            _ = Monitor(()).wait(timeout: .milliseconds(50)) { _ in nil as Void? }
        }
    }
}

/// The receiver: an HTTP server in the test's own process.
private final class WebhookReceiver: Sendable {
    struct Record: Sendable {
        var headers: [String: String]
        var bytes: Bytes
        var body: JSON { (try? JSON.parse(bytes)) ?? .null }

        func header(_ name: String) -> String? { headers[name] }

        /// As a receiver checks it (docs/webhooks.md).
        func isSigned(by secret: String) -> Bool {
            guard let key = Base64.decode(secret.dropFirst("whsec_".count)), let id = header("webhook-id"),
                let at = header("webhook-timestamp")
            else { return false }
            var expected = Bytes("v1,".utf8)
            Base64.encode(HMACSHA256.code(Bytes("\(id).\(at).".utf8) + bytes, key: key), to: &expected)
            return header("webhook-signature")?.split(separator: " ").contains { Bytes($0.utf8) == expected } == true
        }
    }

    private let core = WebhookReceiverCore()
    private let group = EventLoopGroup(count: 1, name: "receiver")
    private let server: HTTPServer

    init() throws {
        server = HTTPServer(on: group, handler: core)
        try server.start()
    }

    deinit {
        server.stop()
        group.stop()
    }

    var port: Int { server.port }
    var connectionCount: Int { server.connectionCount }
    var url: String { "http://127.0.0.1:\(port)/hook?key=hidden" }
    var records: [Record] { core.state.withLock { $0.records } }

    func answer(_ status: Int) { core.state.withLock { $0.status = status } }

    @discardableResult
    func wait<Value>(_ phase: String, _ find: ([Record]) -> Value?) throws -> Value {
        guard let value = core.state.wait(timeout: .seconds(60), { find($0.records) }) else { throw Missed("waited for \(phase)") }
        return value
    }
}

/// The state of the receiver's loop, which must never be the last to hold the receiver.
private final class WebhookReceiverCore: HTTPHandler {
    let state = Monitor((records: [WebhookReceiver.Record](), status: 204))

    func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
        var headers: [String: String] = [:]
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature", "user-agent", "content-type"] {
            headers[name] = request.header(name)
        }
        let status = state.withLock(signalAll: true) { state in
            state.records.append(WebhookReceiver.Record(headers: headers, bytes: request.body))
            return state.status
        }
        responder.respond(status: status)
    }
}
