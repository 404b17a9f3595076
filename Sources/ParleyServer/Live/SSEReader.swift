internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A reader that gets what is appended as server-sent events, until the stream ends or its time is up.
final class SSEReader: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
    private var hasSentControl = false
    private let whenBehind: WhenBehind
    /// What it was given since something last waited for the peer to take it.
    private var takenBytes = 0
    private var stream: HTTPStream!
    /// Milliseconds of the loop's time.
    private var lastWrite: Int64 = 0
    private var deadline: Int64 = 0
    /// What the page that is read or being sent may take of the loop's share.
    private var reserved = 0

    init(
        _ channel: Channel, after offset: UInt64, view: View, whenBehind: WhenBehind, cursorFloor: UInt64, expires: Timestamp?,
        _ readers: LoopReaders
    ) {
        self.whenBehind = whenBehind
        super.init(channel, after: offset, view: view, cursorFloor: cursorFloor, expires: expires, readers)
    }

    override var unsentBytes: Int { stream.bufferedBytes }

    /// About what the kernel takes of a peer that does not read.
    private static let shownBytes = 128 << 10

    override var hasShownToRead: Bool { takenBytes > SSEReader.shownBytes }

    override func begin(_ exchange: Exchange) {
        var headers: [HeaderField] = [
            ("Content-Type", ContentTypeText.eventStream), ("Cache-Control", channel.isAgent ? "private, no-store" : "no-cache"),
            ("X-Accel-Buffering", "no"),  // nginx would hold events back.
        ]
        if !EventFraming.isText(channel) { headers.append((StreamHeader.dataEncoding, "base64")) }
        stream = exchange.stream(200, headers)
        // The stream lets go of these when it ends. A closure that holds one object, and nothing else, needs no memory of its own.
        stream.onClose = { self.detach() }
        stream.onDrain = { self.drained() }
        lastWrite = readers.loop.nowMilliseconds
        // Spread, so that readers that came together do not all come again together.
        let spread = Double(readers.channels.world.random() % 1_000) / 10_000
        deadline = lastWrite + (readers.configuration.streamLifetime * (0.9 + spread)).milliseconds
        advance()
    }

    override func advance() {
        while isAttached, !isReading {
            if hasExpired { return end() }
            // Parked where it is: `onDrain` goes on from here, in the log if need be.
            guard stream.bufferedBytes <= readers.configuration.unsentBytesMax else {
                if offset < channel.tail.head { isBehind = true }
                return
            }
            hold(0)
            if isBehind { unpark() }
            switch readers.events(for: self) {
            case .none(isEnded: true): return finish()
            case .none(isEnded: false):
                if !hasSentControl { writeControl(.upToDate) }
                return
            case .piece(let piece, let next, let state):
                offset = next
                send(piece)
                if state == .closed { return leave() }
                if state == .upToDate { return }
            case .behind: return read()
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

    override func received(_ page: Page) {
        if hasExpired { return end() }
        let state: EventFraming.State = page.isEnd ? .closed : page.isUpToDate ? .upToDate : .behind
        var bytes = Bytes()
        bytes.reserveCapacity(page.body.count + 256)
        EventFraming.write(page, of: channel, cursor: cursor, state, to: &bytes)
        offset = page.next
        // The next page is read while this one is sent, as long as the reader keeps up and there is room for both.
        let goesOn = state == .behind && stream.bufferedBytes == 0 && readers.hasRoomForPages
        if goesOn {
            hold(bytes.count)
            read()
        }
        send(BodyPiece(bytes))
        if page.isEnd { leave() } else if !goesOn { advance() }
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
        stream.abort()  // A clean end would say that all is well; a cut one lets the client come again.
        detach()
    }

    override func sweep(_ now: Duration) {
        let now = now.milliseconds
        if now >= deadline || hasExpired { return end() }
        guard now - lastWrite >= readers.configuration.heartbeatInterval.milliseconds, stream.bufferedBytes == 0 else { return }
        lastWrite = now
        stream.write(SSEWriter.heartbeat)
    }

    override func deliver(_ event: EphemeralDelivery) {
        guard isAttached, stream.bufferedBytes <= readers.configuration.unsentBytesMax else { return }
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

    private func writeControl(_ state: EventFraming.State, view: View? = nil) {
        var bytes = Bytes()
        EventFraming.writeControl(next: offset, cursor: cursor, state, view: view, to: &bytes)
        send(BodyPiece(bytes))
    }

    private func send(_ piece: BodyPiece) {
        hasSentControl = true
        lastWrite = readers.loop.nowMilliseconds
        takenBytes = stream.bufferedBytes == 0 ? takenBytes + piece.byteCount : 0
        stream.send(piece)
    }

    private func leave() {
        detach()
        stream.finish()
    }
}
