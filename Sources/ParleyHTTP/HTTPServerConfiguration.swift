/// Where a server listens, and its bounds.
package struct HTTPServerConfiguration: Sendable {
    /// An address or a name that resolves to one; `::` is every address, IPv4 and IPv6.
    package var host = "127.0.0.1"
    /// 0 lets the system choose: see `HTTPServer.port`.
    package var port = 0
    /// Speaks TLS with this certificate; `nil`: plain HTTP.
    package var tls: TLSIdentity?
    package var limits = HTTPParserLimits()
    /// Connections beyond it are answered with 503 and closed.
    package var connectionCountMax = 20_000
    /// Requests of one connection that are handled before the first of them is answered.
    package var pipelinedCountMax = 16
    /// A handshake must be over in this time.
    package var handshakeTimeout = Duration.seconds(10)
    /// A whole head must arrive in this time.
    package var headTimeout = Duration.seconds(30)
    /// Bytes that requests may take in memory together, from their first byte until they are answered; more is answered 503 `overloaded`.
    package var requestBytesMax = 64 << 20
    /// A body must not pause for longer, and in each such span must bring a thousand bytes a second on average.
    package var bodyTimeout = Duration.seconds(30)
    /// A connection without a request is kept this long.
    package var idleTimeout = Duration.seconds(75)
    /// A connection that has asked nothing for so long may be closed for a new one when all are taken.
    package var patience = Duration.seconds(1)
    /// A peer that takes none of the waiting bytes is disconnected after this time.
    package var writeTimeout = Duration.seconds(120)
    /// The same while the handler is short of memory for answers.
    package var crowdedWriteTimeout = Duration.seconds(10)
    /// The bytes that one connection may bring before the others of its loop have their turn.
    package var readBytes = 64 << 10
    /// Bytes that connections of one loop may hold together of what waits: answers to be sent, and input behind them. Beyond it, a connection that has
    /// not taken its own gets no further.
    package var waitingBytesMax = 8 << 20
    /// The kernel's send buffer per connection, which a slow reader can fill.
    package var sendBufferBytes = 128 << 10

    package init() {}
}

/// The decision on a request whose body has not come.
package enum HTTPAdmission: Sendable {
    /// Its body is taken.
    ///
    /// - Parameters:
    ///   - account: Whose share of the memory for requests it counts against.
    ///   - context: The value of ``HTTPRequest/admission`` when the body is there.
    ///   - bodyBytesMax: The most bytes that the body may have; `nil` for the server's usual limit.
    case accepted(account: String, context: (any Sendable)? = nil, bodyBytesMax: Int? = nil)
    /// Its body is dropped as it comes; once it is complete, the handler gets the request without it.
    case ignored
    /// It is answered at once, and its body is dropped.
    case refused(Problem, headers: [(name: String, value: String)])
}

/// Takes the requests of a server.
package protocol HTTPHandler: AnyObject, Sendable {
    /// Called on the connection's loop with a complete request; must not block.
    ///
    /// Requests of one connection come in their order, and may come before earlier ones are answered; the answers leave in order.
    func handle(_ request: HTTPRequest, _ responder: HTTPResponder)

    /// Decides whether a request's body is wanted. Called on the connection's loop when the head has come and the body has not.
    ///
    /// A body that is refused here takes no memory. Only for requests that have a body.
    /// - Parameters:
    ///   - request: The request without its body.
    ///   - peer: The numeric address of the other side. Cost: a system call.
    func admit(_ request: HTTPRequest, peer: () -> String) -> HTTPAdmission

    /// Reports that the server itself has refused a request, or a connection, so that it can be counted.
    ///
    /// - Parameter head: The request's head, if it had come.
    /// - Returns: Further fields of the answer.
    func refused(_ problem: Problem, _ head: HTTPRequestHead?) -> [(name: String, value: String)]

    /// Whether answers wait for memory that those hold which peers do not take. Called on each loop about once a second.
    var isShortOfMemory: Bool { get }
}

extension HTTPHandler {
    package func admit(_ request: HTTPRequest, peer: () -> String) -> HTTPAdmission { .accepted(account: "") }
    package func refused(_ problem: Problem, _ head: HTTPRequestHead?) -> [(name: String, value: String)] { [] }
    package var isShortOfMemory: Bool { false }
}

/// Why a server could not start.
package struct HTTPServerError: Error, Sendable, CustomStringConvertible {
    /// `invalid_address` or `cannot_listen`.
    package var code: String
    package var message: String
    package var remedy: String
    package var description: String { "\(code): \(message). \(remedy)" }
}
