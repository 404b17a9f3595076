package import ParleySystem

/// Answers one request, once: with `respond` or with `stream`. Every responder must be answered.
///
/// Belongs to the loop of its connection. Code that has the answer on another thread goes there first:
///
///     responder.loop.execute { responder.respond(status: 200, body: bytes) }
///
/// Answering after the peer has gone does nothing.
package final class HTTPResponder: @unchecked Sendable {  // Guard: used on `loop` only.
    package let loop: EventLoop
    /// Called once on the loop if the peer goes away, or the server gives up, before the answer is complete.
    package var onClose: (() -> Void)?

    /// Called on the loop when the peer has ended its side, and may still read. Where `onClose` is set and this is not, the peer counts as
    /// gone.
    package var onHalfClose: (() -> Void)?

    let minorVersion: UInt8  // Small: there is a responder for each reader that waits.
    let isHead: Bool
    let keepsAlive: Bool
    /// Whether the connection ends with this answer; decided when the answer's head is written.
    var closesConnection = false
    private(set) var isComplete = false
    private var hasAnswered = false
    /// The answer, while earlier requests of the connection still wait for theirs.
    var held = OutputQueue()
    /// The request's share of the server's memory until it is answered.
    var reservation: MemoryReservation?
    /// Whether the answer may be as large as what has been stored: then few are made at a time.
    var mayBeLarge = false
    /// Whether the request asks for nothing to be changed.
    let isSafe: Bool
    private(set) var stream: HTTPStream?
    private(set) var connection: HTTPConnection?

    init(_ connection: HTTPConnection, method: String, minorVersion: Int, keepsAlive: Bool) {
        loop = connection.loop
        self.connection = connection
        isHead = method == "HEAD"
        isSafe = HTTPResponder.isSafe(method)
        self.minorVersion = UInt8(minorVersion)
        self.keepsAlive = keepsAlive
    }

    /// RFC 9110, section 9.2.1.
    static func isSafe(_ method: String) -> Bool { method == "GET" || method == "HEAD" || method == "OPTIONS" }

    /// Whether the answer is not complete yet and the peer is still there for it.
    package var isOpen: Bool { connection != nil && !isComplete }

    /// Whether the peer has ended its side: `onHalfClose` is not called any more.
    package var peerHasFinished: Bool { connection?.peerHasFinished ?? true }

    var bufferedBytes: Int { connection?.bufferedBytes(of: self) ?? 0 }

    /// Sends a complete answer. `Date`, `Content-Length` and `Connection` are added.
    ///
    /// To HEAD, a `Content-Length` that is given is kept; without one it is that of `body`, and an empty body says nothing about what GET
    /// would bring.
    ///
    /// - Parameter room: The body's share of the server's memory until it has been sent.
    package func respond(
        status: Int, headers: [(name: String, value: String)] = [], body: Bytes = [], room: MemoryReservation? = nil
    ) {
        answer(status, headers, isHead ? .withheld(body.isEmpty ? nil : body.count) : .whole(body.count)) { queue in
            if !self.isHead && HTTPResponseHead.mayHaveBody(status) { queue.append(body, room) }
        }
        complete()
    }

    /// Counts the memory that the request's body was turned into, until it is answered; never more than an account can get besides the bodies of
    /// several such requests.
    ///
    /// - Parameter count: The bytes that the request takes now, its body included.
    /// - Returns: false when there is no room for it; nothing has changed then.
    package func hold(_ count: Int) -> Bool {
        guard let reservation, let budget = connection?.listener.budget else { return true }
        return reservation.resize(to: min(count, max(reservation.bytes, budget.bytesMax / 4)))
    }

    /// Starts an answer whose body comes in pieces.
    ///
    /// It is framed by the `Content-Length` among the headers; without one, in chunks, or for HTTP/1.0 by closing the connection.
    package func stream(status: Int = 200, headers: [(name: String, value: String)] = []) -> HTTPStream {
        let length = headers.first { HTTPResponseHead.isContentLength($0.name) }.flatMap { Int($0.value) }
        let framing: HTTPStream.Framing = length.map { .announced($0) } ?? (minorVersion == 1 ? .chunked : .untilClose)
        let stream = HTTPStream(self, isHead || !HTTPResponseHead.mayHaveBody(status) ? .none : framing)
        answer(status, headers, length != nil ? .announced : minorVersion == 1 ? .chunked : .untilClose) { _ in }
        if connection != nil { self.stream = stream }
        return stream
    }

    /// Answers 101: from here on the connection carries another protocol, both ways, and ends with it.
    ///
    /// Call it while the request is handled: the peer's input behind it goes to the stream's `onInput`.
    package func upgrade(headers: [(name: String, value: String)]) -> HTTPStream {
        let stream = HTTPStream(self, .untilClose)
        answer(101, headers, .upgraded) { _ in }
        if let connection {
            self.stream = stream
            connection.upgrade(to: stream)
        }
        return stream
    }

    /// Appends to what this answer sends.
    func output(_ write: (inout OutputQueue) -> Void) { connection?.output(of: self, write) }

    /// Sends at once what can be, and queues the rest.
    /// - Returns: Whether all has been sent.
    func send(_ piece: BodyPiece) -> Bool { connection?.send(piece, of: self) ?? false }

    /// The answer has been queued to its end; the connection continues with the next one.
    func complete() {
        isComplete = true
        (onClose, onHalfClose, stream, reservation) = (nil, nil, nil, nil)
        connection?.completed(self)
    }

    func abort() { connection?.close() }

    func inputPauseChanged() { connection?.inputPauseChanged() }

    func inputEnded() { connection?.inputEnded() }

    /// Lets go of the connection after the answer.
    func detach() { connection = nil }

    /// Lets go of a connection that is gone, and says so unless the answer was complete.
    func connectionClosed() {
        let callbacks = [onClose, stream?.connectionClosed()]
        (connection, onClose, onHalfClose, stream, reservation) = (nil, nil, nil, nil, nil)
        held = OutputQueue()
        for callback in callbacks { callback?() }
    }

    private func answer(
        _ status: Int, _ headers: [(name: String, value: String)], _ body: HTTPResponseHead.Body, _ more: (inout OutputQueue) -> Void
    ) {
        loop.assertOnLoop()
        precondition(!hasAnswered, "a request is answered twice")
        hasAnswered = true
        guard let connection else { return }
        closesConnection = !keepsAlive || body == .untilClose || body == .upgraded || connection.closesAfter(self)
        let connectionField: HTTPResponseHead.Connection =
            body == .upgraded ? .implied : closesConnection ? .close : minorVersion == 0 ? .keepAlive : .implied
        let date = connection.listener.dateField
        connection.output(of: self) { queue in
            queue.build { HTTPResponseHead.write(status, headers, body, connectionField, date, to: &$0) }
            more(&queue)
        }
    }
}
