internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A reader that gets what is appended as server-sent events, until the stream ends or its time is up.
final class SSEReader: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
    private var stream: HTTPStream!
    private var hasSentControl = false
    private var lastWrite = Duration.zero
    private var deadline = Duration.zero
    private let whenBehind: WhenBehind

    init(
        _ channel: Channel, after offset: UInt64, view: View, whenBehind: WhenBehind, cursorFloor: UInt64, _ exchange: Exchange,
        _ readers: LoopReaders
    ) {
        self.whenBehind = whenBehind
        super.init(channel, after: offset, view: view, cursorFloor: cursorFloor, exchange, readers)
    }

    override var unsentBytes: Int { stream.bufferedBytes }

    override func begin() {
        var headers: [HeaderField] = [
            ("Content-Type", ContentTypeText.eventStream), ("Cache-Control", channel.isAgent ? "private, no-store" : "no-cache"),
            ("X-Accel-Buffering", "no"),  // nginx would hold events back.
        ]
        if !EventFraming.isText(channel) { headers.append((StreamHeader.dataEncoding, "base64")) }
        stream = exchange.stream(200, headers)
        stream.onClose = { [unowned self] in readers.remove(self) }  // The stream lets go of this when it ends.
        stream.onDrain = { [unowned self] in if isAttached { advance() } }
        lastWrite = readers.loop.now
        // Spread, so that readers that came together do not all come again together.
        let spread = Double(readers.channels.world.random() % 1_000) / 10_000
        deadline = lastWrite + readers.configuration.streamLifetime * (0.9 + spread)
        advance()
    }

    override func advance() {
        guard isAttached, !isReading else { return }
        if hasExpired { return end() }
        guard stream.bufferedBytes <= readers.configuration.unsentBytesMax else {
            // Parked where it is: `onDrain` goes on from here, in the log if need be.
            if offset < channel.tail.head { isBehind = true }
            return
        }
        if isBehind { unpark() }
        switch channel.tail(after: offset) {
        case .upToDate(isEnded: true): finish()
        case .upToDate(isEnded: false): if !hasSentControl { writeControl(.upToDate) }
        case .chunks(let chunks, let isEnded):
            for chunk in chunks { write(chunk, isEnded ? .closed : .upToDate, isLast: chunk === chunks.last) }
            if isEnded { leave() }
        case .behind: readPage()
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
        var bytes = Bytes()
        EventFraming.write(page, of: channel, cursor: cursor, page.isEnd ? .closed : page.isUpToDate ? .upToDate : .behind, to: &bytes)
        offset = page.next
        send(bytes)
        if page.isEnd { leave() } else { advance() }
    }

    override func failed(_ error: ChannelError) {
        Diagnostics.log(.error, "a live read failed", ["channel": channel.name, "reason": error.message])
        stream.abort()  // A clean end would say that all is well; a cut one lets the client come again.
        readers.remove(self)
    }

    override func sweep(_ now: Duration) {
        if now >= deadline || hasExpired { return end() }
        guard now - lastWrite >= readers.configuration.heartbeatInterval, stream.bufferedBytes == 0 else { return }
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

    private func write(_ chunk: Chunk, _ lastState: EventFraming.State, isLast: Bool) {
        let state = isLast ? lastState : .behind
        let cursor = cursor
        send(
            chunk.wire("e\(view.rawValue)\(cursor)\(state.rawValue)") { chunk in
                var bytes = Bytes()
                EventFraming.write(chunk.page(of: channel, view: view), of: channel, cursor: cursor, state, to: &bytes)
                return bytes
            })
        offset = chunk.last
    }

    private func writeControl(_ state: EventFraming.State, view: View? = nil) {
        var bytes = Bytes()
        EventFraming.writeControl(next: offset, cursor: cursor, state, view: view, to: &bytes)
        send(bytes)
    }

    private func send(_ bytes: Bytes) {
        hasSentControl = true
        lastWrite = readers.loop.now
        stream.write(bytes)
    }

    private func leave() {
        readers.remove(self)
        stream.finish()
    }
}
