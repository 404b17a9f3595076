internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A reader that gets what is appended as server-sent events, until the stream ends or its time is up.
///
/// Of a channel of text it gets text as long as that is what comes, see ``TextEvents``. The head of its answer says whether data is in
/// Base64, so it is sent when the first data is known, or when there is none yet. Where text turns out to be none later, the answer ends; a
/// reader that comes again for what is next gets that in Base64.
final class SSEReader: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
    private(set) var form: EventFraming.Form
    /// What the last control event said.
    private var lastState: EventFraming.State?
    private let whenBehind: WhenBehind
    private(set) var lineEnd = LineEnd.plain
    /// What it was given since something last waited for the peer to take it.
    private var takenBytes = 0
    /// `nil` until the head has been sent.
    private var stream: HTTPStream?
    /// The request, until the head has been sent.
    private var unanswered: Exchange?
    /// Milliseconds of the loop's time.
    private var lastWrite: Int64 = 0
    private var deadline: Int64 = 0
    /// What the page that is read or being sent may take of the loop's share.
    private var reserved = 0
    private var incomplete: Incomplete?
    /// How often still it is looked whether a peer that sends nothing more has gone altogether.
    private var probesLeft = 0

    /// How a carriage return at the end of text is dealt with.
    enum LineEnd {
        case plain
        /// No line feed has come for a while: the line counts as ended.
        case allowsReturn
        /// It was ended so; a line feed that comes now is the rest of its end.
        case swallowsLineFeed
    }

    /// Text that waits for its completion.
    private struct Incomplete {
        let end: TextSeam.End
        /// The tail that is known to have no more.
        let tail: UInt64
        /// Milliseconds of the loop's time.
        let since: Int64
    }

    /// How long text may wait to be completed.
    private static let completionMilliseconds: Int64 = 1_000

    init(
        _ channel: any Tail, after offset: UInt64, view: View, whenBehind: WhenBehind, cursorFloor: UInt64, expires: Timestamp?,
        _ readers: LoopReaders
    ) {
        self.whenBehind = whenBehind
        form = EventFraming.form(of: channel)
        super.init(channel, after: offset, view: view, cursorFloor: cursorFloor, expires: expires, readers)
    }

    override var unsentBytes: Int { stream?.bufferedBytes ?? 0 }

    /// About what the kernel takes of a peer that does not read.
    private static let shownBytes = 128 << 10

    override var hasShownToRead: Bool { takenBytes > SSEReader.shownBytes }

    override func begin(_ exchange: Exchange) {
        unanswered = exchange
        lastWrite = readers.loop.nowMilliseconds
        // Spread, so that readers that came together do not all come again together.
        let spread = Double(readers.channels.world.random() % 1_000) / 10_000
        deadline = lastWrite + (readers.configuration.streamLifetime * (0.9 + spread)).milliseconds
        if form != .text {
            open()
        } else if readers.unfitText.contains(channel, after: offset) {
            form = .binary
            open()
        } else {
            exchange.responder.onClose = { self.detach() }
            exchange.responder.onHalfClose = {}
        }
        advance()
    }

    /// Sends the head of the answer, if it has not been sent.
    private func open() {
        guard let exchange = unanswered else { return }
        unanswered = nil
        (exchange.responder.onClose, exchange.responder.onHalfClose) = (nil, nil)
        var headers: [HeaderField] = [
            ("Content-Type", exchange.typeOfText(ContentTypeText.eventStream)),
            // A proxy that compresses collects events until a block is full: `no-transform` forbids it.
            ("Cache-Control", (channel.isAgent ? "private, no-store" : "no-cache") + ", no-transform"),
            ("X-Accel-Buffering", "no"),  // nginx would hold events back.
        ]
        if form == .binary { headers.append((StreamHeader.dataEncoding, "base64")) }
        let stream = exchange.stream(200, headers)
        self.stream = stream
        // The stream lets go of these when it ends. A closure that holds one object, and nothing else, needs no memory of its own.
        stream.onClose = { self.detach() }
        stream.onDrain = { self.drained() }
        stream.onHalfClose = { self.halfClosed() }
        if exchange.responder.peerHasFinished { halfClosed() }
    }

    override func advance() {
        while isAttached, !isReading {
            if hasExpired { return end() }
            // Parked where it is: `onDrain` continues from here, in the log if need be.
            guard unsentBytes <= readers.configuration.unsentBytesMax else {
                if offset < channel.tail.head { isBehind = true }
                return
            }
            hold(0)
            if isBehind { unpark() }
            switch readers.events(for: self) {
            case .none(isEnded: true): return finish()
            case .none(isEnded: false): return tellUpToDate()
            case .piece(let piece, let next, let state, let splitsLineEnd):
                moved(to: next, splitsLineEnd)
                send(piece, state)
                if state == .closed { return leave() }
                if state == .upToDate { return }
            case .behind:
                let tail = channel.tail
                if let incomplete, incomplete.tail == tail.head, !tail.isClosed, lineEnd != .allowsReturn { return }
                return read()
            case .waits(let end): return wait(end, at: channel.tail.head)
            case .unfit:
                guard stream == nil else { return end() }
                form = .binary
                open()
            }
        }
    }

    private func unpark() {
        isBehind = false
        guard whenBehind == .settled, view == .raw else { return }
        view = .settled
        readers.parking.notedSettled()
        writeControl(.behind, view: .settled)
    }

    override func received(_ page: Page, in room: MemoryReservation?) {
        if hasExpired { return end() }
        if form != .text { return give(page, page.body, in: room) }
        if page.isEmpty { return give(page, SSEReader.events(of: page, form, cursor), in: room) }
        receivedText(page, in: room)
    }

    /// Megabytes in Base64 would hold up everybody else on the loop.
    override var framing: (@Sendable (Page) -> Bytes)? {
        guard form != .text else { return nil }
        let (form, cursor) = (form, cursor)
        return { SSEReader.events(of: $0, form, cursor) }
    }

    private static func events(of page: Page, _ form: EventFraming.Form, _ cursor: UInt64) -> Bytes {
        var bytes = Bytes()
        bytes.reserveCapacity(page.body.count + 256)
        EventFraming.write(page, as: form, cursor: cursor, state(after: page), to: &bytes)
        return bytes
    }

    private static func state(after page: Page) -> EventFraming.State { page.isEnd ? .closed : page.isUpToDate ? .upToDate : .behind }

    private func give(_ page: Page, _ events: Bytes, in room: MemoryReservation?) {
        give(events, in: room, to: page.next, SSEReader.state(after: page), splitsLineEnd: false)
    }

    private func receivedText(_ page: Page, in room: MemoryReservation?) {
        var (events, pieces) = (textEvents, [TextEvents.Piece]())
        (events.isEnded, events.reachesTail) = (page.isEnd, page.isUpToDate)
        let (seam, body) = (page.seam, page.body)
        if seam.byteCount > 0 { pieces.append(TextEvents.Piece(text: Bytes(body[..<seam.byteCount]), last: seam.next)) }
        if seam.byteCount < body.count { pieces.append(TextEvents.Piece(text: Bytes(body[seam.byteCount...]), last: page.next)) }
        switch events.outcome(of: pieces) {
        case .events(let bytes, let next, let state, let splitsLineEnd):
            give(bytes, in: room, to: next, state, splitsLineEnd: splitsLineEnd)
        case .waits(let end): wait(end, at: page.next)
        case .unfit where stream != nil: end()
        case .unfit:
            form = .binary
            give(page, SSEReader.events(of: page, form, cursor), in: room)
        }
    }

    /// Gives what a page has become.
    private func give(
        _ bytes: Bytes, in room: MemoryReservation?, to next: UInt64, _ state: EventFraming.State, splitsLineEnd: Bool
    ) {
        if form == .text { room?.resize(to: bytes.count, isOwed: true) }  // Events are longer than the page.
        open()
        moved(to: next, splitsLineEnd)
        // The next page is read while this one is sent, as long as the reader keeps up and there is room for both.
        let goesOn = state == .behind && unsentBytes == 0 && readers.hasRoomForPages
        if goesOn {
            hold(bytes.count)
            read()
        }
        send(BodyPiece(bytes, room: room), state)
        if state == .closed { leave() } else if !goesOn { advance() }
    }

    private func read() {
        let share = readers.pageShare
        hold(reserved + share)
        readPage(bytesMax: share)
    }

    /// Says how much its pages take: those that are read or being sent.
    private func hold(_ bytes: Int) {
        readers.pageBytes += bytes - reserved
        reserved = bytes
    }

    private func drained() { if isAttached { advance() } }

    private func detach() {
        hold(0)
        readers.remove(self)
    }

    override func failed(_ error: ChannelError) {
        Diagnostics.log(.error, "a live read failed", ["channel": channel.name, "reason": error.message])
        detach()
        if let exchange = unanswered {
            unanswered = nil
            (exchange.responder.onClose, exchange.responder.onHalfClose) = (nil, nil)
            exchange.respond(Problem(error))
        } else {
            stream?.abort()  // A clean end would say that all is well; a cut one lets the client come again.
        }
    }

    override func sweep(_ now: Duration) {
        let now = now.milliseconds
        if now >= deadline || hasExpired { return end() }
        if let incomplete, now - incomplete.since >= SSEReader.completionMilliseconds { return giveUp(incomplete) }
        let interval = probesLeft > 0 ? 0 : readers.configuration.heartbeatInterval.milliseconds
        guard let stream, now - lastWrite >= interval, stream.bufferedBytes == 0 else { return }
        lastWrite = now
        probesLeft = max(0, probesLeft - 1)
        stream.write(EventFraming.heartbeat)
    }

    override func deliver(_ event: EphemeralDelivery) {
        guard isAttached, let stream, stream.bufferedBytes <= readers.configuration.unsentBytesMax else { return }
        stream.write(event.eventForm)
    }

    override func end() {
        guard isAttached else { return }
        writeControl(.behind)
        leave()
    }

    /// Nothing comes any more: the stream was closed, or removed.
    private func finish() {
        if !channel.tail.isDeleted { writeControl(.closed) }
        leave()
    }

    private func tellUpToDate() { if lastState != .upToDate { writeControl(.upToDate) } }

    private func writeControl(_ state: EventFraming.State, view: View? = nil) {
        var bytes = Bytes()
        EventFraming.writeControl(next: offset, cursor: cursor, state, view: view, to: &bytes)
        send(BodyPiece(bytes), state)
    }

    private func send(_ piece: BodyPiece, _ state: EventFraming.State) {
        open()
        guard let stream else { return }
        lastState = state
        lastWrite = readers.loop.nowMilliseconds
        takenBytes = stream.bufferedBytes == 0 ? takenBytes + piece.byteCount : 0
        stream.send(piece)
    }

    private func leave() {
        detach()
        open()
        stream?.finish()
    }

    /// The peer has ended its side: it may still read. If it has gone altogether, its system answers what is sent to it with a reset, which
    /// the next thing that is sent meets.
    private func halfClosed() {
        probesLeft = 3
        stream?.write(EventFraming.heartbeat)
    }
}

// MARK: Text that is not complete

extension SSEReader {
    /// What comes next, of text.
    var textEvents: TextEvents {
        TextEvents(cursor: cursor, allowsReturn: lineEnd == .allowsReturn, swallowsLineFeed: lineEnd == .swallowsLineFeed)
    }

    private func moved(to next: UInt64, _ splitsLineEnd: Bool) {
        offset = next
        incomplete = nil
        lineEnd = splitsLineEnd ? .swallowsLineFeed : .plain
    }

    /// All that can be told has been: the reader is up to date as far as there is text.
    private func wait(_ end: TextSeam.End, at tail: UInt64) {
        tellUpToDate()
        if incomplete?.tail != tail { incomplete = Incomplete(end: end, tail: tail, since: readers.loop.nowMilliseconds) }
    }

    private func giveUp(_ incomplete: Incomplete) {
        self.incomplete = nil
        if incomplete.end == .afterReturn {
            lineEnd = .allowsReturn
            advance()
        } else {
            readers.unfitText.add(channel, after: offset)
            end()
        }
    }
}
