import ParleyHTTP
import ParleySystem
import Synchronization

/// A webhook of a subscription on this machine: keeps what it is sent, and answers as it is told.
final class SubscriptionReceiver: Sendable {
    struct Notification: Sendable {
        var body: Bytes
        var signature: String
        var contentType: String
        var json: JSON { (try? JSON.parse(body)) ?? .null }
        var generation: Int64 { json["generation"]?.integer ?? 0 }

        /// The stream of that path.
        func stream(_ path: String) -> JSON? { json["streams"]?.array?.first { $0["path"]?.string == path } }
    }

    private let loops = EventLoopGroup(count: 1)
    private let server: HTTPServer
    private let handler: Handler

    /// - Parameter answer: Status and body for the notification of that number, from 0; `nil` for none.
    init(_ answer: @escaping @Sendable (Int) -> (status: Int, body: String)? = { _ in (200, "{}") }) throws {
        var configuration = HTTPServerConfiguration()
        configuration.host = "127.0.0.1"
        configuration.port = 0
        handler = Handler(answer)
        server = HTTPServer(configuration, on: loops, handler: handler)
        try server.start()
    }

    deinit {
        server.stop()
        loops.stop()
    }

    var url: String { "http://127.0.0.1:\(server.port)/hook" }
    var count: Int { handler.received.withLock { $0.count } }

    /// The notification of that number, once it has come.
    func notification(_ number: Int = 0) throws -> Notification {
        guard let found = handler.received.wait(timeout: .seconds(10), { $0.count > number ? $0[number] : nil }) else {
            throw TestFailure("notification \(number) does not come within 10 s")
        }
        return found
    }

    private final class Handler: HTTPHandler {
        let received = Monitor<[Notification]>([])
        let answer: @Sendable (Int) -> (status: Int, body: String)?

        init(_ answer: @escaping @Sendable (Int) -> (status: Int, body: String)?) { self.answer = answer }

        func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
            let notification = Notification(
                body: request.body, signature: request.header("Webhook-Signature") ?? "", contentType: request.header("Content-Type") ?? "")
            let number = received.withLock(signalAll: true) { received in
                received.append(notification)
                return received.count - 1
            }
            guard let (status, body) = answer(number) else { return }
            responder.respond(status: status, headers: [("Content-Type", "application/json")], body: Bytes(body.utf8))
        }
    }
}
