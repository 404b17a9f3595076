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

    /// - Parameters:
    ///   - answer: Status and body for the notification of that number, from 0; `nil` for none.
    ///   - breaksOff: Whether the connection breaks behind the body, before the end of the answer.
    init(
        _ answer: @escaping @Sendable (Int) -> (status: Int, body: String)? = { _ in (200, "{}") },
        breaksOff: @escaping @Sendable (Int) -> Bool = { _ in false }
    ) throws {
        var configuration = HTTPServerConfiguration()
        configuration.host = "127.0.0.1"
        configuration.port = 0
        handler = Handler(answer, breaksOff)
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

        let breaksOff: @Sendable (Int) -> Bool

        init(_ answer: @escaping @Sendable (Int) -> (status: Int, body: String)?, _ breaksOff: @escaping @Sendable (Int) -> Bool) {
            (self.answer, self.breaksOff) = (answer, breaksOff)
        }

        func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
            let notification = Notification(
                body: request.body, signature: request.header("Webhook-Signature") ?? "", contentType: request.header("Content-Type") ?? "")
            let number = received.withLock(signalAll: true) { received in
                received.append(notification)
                return received.count - 1
            }
            guard let (status, body) = answer(number) else { return }
            if breaksOff(number) {
                let stream = responder.stream(status: status, headers: [("Content-Type", "application/json")])
                stream.write(Bytes(body.utf8))
                // The body leaves before the connection is closed.
                stream.loop.schedule(after: .milliseconds(20)) { stream.abort() }
                return
            }
            responder.respond(status: status, headers: [("Content-Type", "application/json")], body: Bytes(body.utf8))
        }
    }
}
