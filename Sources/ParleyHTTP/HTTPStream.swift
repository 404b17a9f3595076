package import ParleySystem

/// The body of an answer in pieces: server-sent events, long downloads; or, behind a 101, both directions of another protocol.
///
/// Belongs to the connection's loop. Pieces written in one tick leave in one send. Nothing bounds what is queued but the
/// writer: it looks at `bufferedBytes` and waits for `onDrain` when that is too much.
package final class HTTPStream: @unchecked Sendable {  // Guard: used on the loop only.
    enum Framing: Equatable {
        case chunked, untilClose
        /// This many bytes are still to come.
        case announced(Int)
        /// Writes are not sent.
        case none
    }

    package let loop: EventLoop
    /// `onDrain` is called when the queue falls to this after having been above it.
    package static let lowWaterBytes = 16 << 10
    /// Called on the loop when the peer has taken enough for more to be written.
    package var onDrain: (() -> Void)?
    /// Called once on the loop if the peer goes away, or the server gives up, before `finish()`.
    package var onClose: (() -> Void)?

    /// Called on the loop when the peer has ended its side, and may still read. Where it is not set, the peer counts as gone.
    package var onHalfClose: (() -> Void)?

    /// Behind a 101: called on the loop with the peer's input, valid during the call. Returns how much it has taken; less than all only where it has
    /// set ``isInputPaused`` or called ``resumeInputLater()``, and then the rest is given again after that, with nothing if there is none.
    package var onInput: ((UnsafeRawBufferPointer) -> Int)?
    private var framing: Framing
    private var wasAboveLowWater = false
    /// Behind a 101: while it is set, no more is read than has been.
    package var isInputPaused = false {
        didSet { if isInputPaused != oldValue { responder?.inputPauseChanged() } }
    }

    private var responder: HTTPResponder?

    init(_ responder: HTTPResponder, _ framing: Framing) {
        loop = responder.loop
        self.responder = responder
        self.framing = framing
    }

    /// The budget that the requests of the server share, including the input behind a 101.
    var budget: MemoryBudget? { responder?.connection?.listener.budget }

    /// Whether the peer is still there to write for.
    package var isOpen: Bool { responder?.isOpen ?? false }

    /// Bytes written and not yet taken by the socket.
    package var bufferedBytes: Int { responder?.bufferedBytes ?? 0 }

    /// Whether all peers of the loop together have so much to take that each may have little waiting.
    package var isCrowded: Bool { responder?.connection?.listener.isCrowded ?? false }

    /// Behind a 101: whether enough input has been processed that other connections must have their turn first.
    package var mustYield: Bool { responder?.connection?.isSliceOver ?? false }

    /// Behind a 101: delivers the input that was not taken again, in its turn.
    package func resumeInputLater() { responder?.connection?.resumeInputLater() }

    /// Calls `onDrain` when the peer has taken something, even where the queue has been low all the time.
    package func awaitDrain() { wasAboveLowWater = true }

    /// Behind a 101: the peer has ended its side, so the connection may close as soon as what is queued has been sent.
    package func inputEnded() { responder?.inputEnded() }

    /// Queues what `build` appends, without a buffer in between, and then `shared`, which is not copied when it is large.
    ///
    /// - Parameter room: The share of `shared` in the server's memory until it has been sent.
    package func write(_ shared: Bytes, _ room: MemoryReservation? = nil, behind build: (inout Bytes) -> Void) {
        precondition(framing == .untilClose || framing == .none, "framing a piece needs its length")
        write(count: shared.count + 1) { queue in
            queue.build(build)
            queue.append(shared, room)
        }
    }

    /// Sends a piece at once if nothing waits before it; the part that the socket does not take is queued, and shared.
    ///
    /// For data that goes to many streams: there is no copy and nothing is allocated, and it does not wait for the end of the tick.
    package func send(_ piece: BodyPiece) {
        loop.assertOnLoop()
        guard let responder, framing == .chunked else {
            return write(count: piece.content.count) { $0.append(Bytes(piece.content), piece.room) }
        }
        if !responder.send(piece), responder.bufferedBytes > HTTPStream.lowWaterBytes { wasAboveLowWater = true }
    }

    /// Queues a piece; large ones are shared, not copied.
    package func write(_ bytes: Bytes) { write(count: bytes.count) { $0.append(bytes) } }

    /// Queues several pieces as one.
    package func write(_ pieces: [Bytes]) {
        write(count: pieces.reduce(0) { $0 + $1.count }) { queue in
            for piece in pieces { queue.append(piece) }
        }
    }

    /// Queues a copy of bytes that are valid during the call only.
    package func write(_ bytes: UnsafeRawBufferPointer) {
        write(count: bytes.count) { queue in queue.build { $0.append(contentsOf: bytes) } }
    }

    /// Ends the body. Queued bytes are still sent. Idempotent; less than the announced length is an `abort()`.
    package func finish() {
        loop.assertOnLoop()
        guard let responder, responder.isOpen else { return }
        if case .announced(1...) = framing { return abort() }
        if framing == .chunked { responder.output { queue in queue.build { $0.append(contentsOf: "0\r\n\r\n".utf8) } } }
        release()
        responder.complete()
    }

    /// Closes the connection at once, so that the peer sees a body that was cut off. `onClose` is not called. Idempotent.
    package func abort() {
        loop.assertOnLoop()
        guard let responder else { return }
        release()
        responder.onClose = nil
        responder.abort()
    }

    private func write(count: Int, _ body: (inout OutputQueue) -> Void) {
        loop.assertOnLoop()
        guard let responder, count > 0, framing != .none else { return }
        if case .announced(let rest) = framing {
            precondition(count <= rest, "a body of announced length is \(count - rest) bytes too long")
            framing = .announced(rest - count)
        }
        responder.output { queue in
            if framing == .chunked {
                queue.build {
                    $0.append(hexadecimal: count)
                    $0.append(contentsOf: "\r\n".utf8)
                }
            }
            body(&queue)
            if framing == .chunked { queue.build { $0.append(contentsOf: "\r\n".utf8) } }
        }
        if responder.bufferedBytes > HTTPStream.lowWaterBytes { wasAboveLowWater = true }
    }

    /// The socket has taken bytes.
    func drained() {
        guard wasAboveLowWater, bufferedBytes <= HTTPStream.lowWaterBytes else { return }
        wasAboveLowWater = false
        onDrain?()
    }

    /// Lets go of a connection that is gone.
    /// - Returns: The callback to call.
    func connectionClosed() -> (() -> Void)? {
        defer { release() }
        return onClose
    }

    /// The callbacks often hold the stream, so they go with the connection.
    private func release() { (responder, onDrain, onClose, onHalfClose, onInput) = (nil, nil, nil, nil, nil) }
}

/// A piece of a body, framed once for all streams that it is sent to.
package struct BodyPiece: Sendable {
    /// The piece as a chunk.
    let bytes: Bytes
    /// Its share of the server's memory, once for all streams.
    let room: MemoryReservation?
    private let start: Int

    package init(_ content: Bytes, room: MemoryReservation? = nil) {
        self.room = room
        var bytes = Bytes()
        bytes.reserveCapacity(content.count + 20)
        bytes.append(hexadecimal: content.count)
        bytes.append("\r\n")
        start = bytes.count
        bytes += content
        bytes.append("\r\n")
        self.bytes = bytes
    }

    private init(_ piece: BodyPiece, room: MemoryReservation) { (bytes, start, self.room) = (piece.bytes, piece.start, room) }

    /// The same piece, which says what it holds of the server's memory.
    package func holding(_ room: MemoryReservation) -> BodyPiece { BodyPiece(self, room: room) }

    package var byteCount: Int { bytes.count }

    var content: ArraySlice<UInt8> { bytes[start..<bytes.count - 2] }
}
