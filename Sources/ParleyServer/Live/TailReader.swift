internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A reader that waits for the tail to be as far as the client knows it to be, and only then reads.
final class TailReader: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
    private let minimum: UInt64
    private let then: () -> Void
    private var exchange: Exchange!
    private var timeout: LoopTimer?

    /// How long a write that was answered elsewhere may take to get here.
    private static let patience = Duration.seconds(5)

    init(_ channel: any Tail, until minimum: UInt64, _ readers: LoopReaders, then: @escaping () -> Void) {
        (self.minimum, self.then) = (minimum, then)
        super.init(channel, after: 0, view: .raw, cursorFloor: 0, expires: nil, readers)
    }

    override func begin(_ exchange: Exchange) {
        self.exchange = exchange
        exchange.responder.onClose = { [unowned self] in leave() }  // Until it leaves: the next reader may never answer, but stream.
        exchange.responder.onHalfClose = {}  // It waits all the same, and not for long.
        timeout = readers.loop.schedule(after: TailReader.patience) { [weak self] in self?.end() }
        advance()
    }

    override func advance() {
        guard isAttached else { return }
        let tail = channel.tail
        if tail.isDeleted {
            leave()
            exchange.respond(Problem(.removed(channel)))
        } else if tail.head >= minimum {
            leave()
            then()
        } else if tail.isClosed {
            leave()
            exchange.respond(
                Problem(
                    status: 409, code: "channel_closed",
                    detail: "the channel is closed at \(Offset(tail.head)): min_offset, \(Offset(minimum)), is never reached.",
                    headers: [(StreamHeader.closed, "true"), (StreamHeader.nextOffset, Offset(tail.head).token)]))
        }
    }

    override func end() {
        guard isAttached else { return }
        leave()
        let seconds = TailReader.patience.components.seconds
        exchange.respond(
            Problem(
                status: 503, code: "min_offset_not_reached",
                detail: "the tail is \(Offset(channel.tail.head)) after \(seconds) s, min_offset is \(Offset(minimum)). Try again.",
                headers: [("Retry-After", "1")]))
    }

    private func leave() {
        timeout?.cancel()
        timeout = nil
        (exchange.responder.onClose, exchange.responder.onHalfClose) = (nil, nil)
        readers.remove(self)
    }
}
