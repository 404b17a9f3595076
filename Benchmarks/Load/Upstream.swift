/// A model server on the loop of the load: generates at a steady rate and notes when each client goes away.
final class Upstream {
    /// One answer being generated.
    final class Call {
        let name: String
        let startedAt: Nanoseconds
        fileprivate let connection: Connection
        var sent = 0
        fileprivate(set) var closedAt: Nanoseconds?

        fileprivate init(_ name: String, _ connection: Connection) {
            (self.name, self.connection, startedAt) = (name, connection, Clock.now)
        }
    }

    private(set) var port: UInt16 = 0
    private(set) var calls: [String: Call] = [:]
    private let loop: Loop
    private let rate: UInt64

    init(_ loop: Loop, rate: Int) {
        (self.loop, self.rate) = (loop, UInt64(rate))
        port = loop.listen { [unowned self] in accepted($0) }
    }

    /// A request for an answer of that name.
    static func request(_ name: String) -> [UInt8] {
        Array("POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nIdempotency-Key: \(name)\r\nContent-Length: 2\r\n\r\n{}".utf8)
    }

    /// The answer for an agent, or for the client of that name.
    func call(of name: String) -> Call? {
        calls.first { $0.key == name || $0.key.hasPrefix("agents/\(name)/") }?.value
    }

    func forgetCalls() { calls = [:] }

    private func accepted(_ connection: Connection) {
        var call: Call?
        connection.onClose = { [unowned self] connection in
            call?.closedAt = Clock.now
            loop.remove(connection)
        }
        connection.onInput = { [unowned self] connection in
            guard let request = HTTPAnswer.request(connection.unread) else { return }
            let head = String(decoding: connection.unread.prefix(request.head), as: UTF8.self)
            connection.take(request.length)
            let key = head.split(separator: "\r\n").first { $0.lowercased().hasPrefix("idempotency-key: ") }?.dropFirst(17) ?? ""
            call = Call(String(key), connection)
            calls[String(key)] = call
            connection.send(Array("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".utf8))
        }
    }

    /// Generates what is due.
    /// - Returns: When the next token is.
    func tick(_ now: Nanoseconds) -> Nanoseconds {
        var next = now + 1_000_000_000
        for call in calls.values where call.closedAt == nil {
            while due(call) <= now {
                let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"token \(call.sent) \"},\"finish_reason\":null}]}\n\n"
                call.sent += 1
                call.connection.send(Array("\(String(event.utf8.count, radix: 16))\r\n\(event)\r\n".utf8))
            }
            next = min(next, due(call))
        }
        return next
    }

    private func due(_ call: Call) -> Nanoseconds { call.startedAt + UInt64(call.sent + 1) * 1_000_000_000 / rate }
}
