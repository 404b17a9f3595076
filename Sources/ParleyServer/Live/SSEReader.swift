internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// A reader that gets what is appended as server-sent events, until the stream ends or its time is up.
///
/// On a channel of text it sends text as long as the data is text, see ``TextEvents``. The head of its answer says whether data is in Base64, so it
/// is sent when the first data is known, or when there is none yet. Where text turns out to be none later, the answer ends; a reader that reconnects
/// for the next data gets that in Base64.
final class SSEReader: LiveReader, @unchecked Sendable {  // Guard: used on the loop only.
    private(set) var form: EventFraming.Form
    /// The state in the last control event.
    private var lastState: EventFraming.State?
    private let whenBehind: WhenBehind
    private(set) var lineEnd = LineEnd.plain
    /// The bytes given since something last waited for the peer to take it.
    private var takenBytes = 0
    /// `nil` until the head has been sent.
    private var stream: HTTPStream?
    /// The request, until the head has been sent.
    private var unanswered: Exchange?
    /// Milliseconds of the loop's time.
    private var lastWrite: Int64 = 0
    private var deadline: Int64 = 0
    /// The part of the loop's share that the page which is read or being sent may take.
    private var reserved = 0
    private var incomplete: Incomplete?
    /// Set while an event is being sent of which a reader has got only a part.
    private var progress: Progress?
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

    /// An event that is told in several pieces: nothing else may be sent between them.
    private final class Progress {
        /// The page that is told, and what it holds of the memory for answers.
        var page: (events: PageEvents, room: MemoryReservation?)?
        /// The event that is open behind the page that was sent, and how its lines continue.
        var open: (event: PageEvents.OpenEvent, lines: EventLines)?
        /// Whether the reader ends with the event.
        var isLast = false
        /// Whether the next piece has its turn when others have had theirs.
        var hasYielded = false
    }

    /// How much of a page is framed at a time, which is what waits for a peer that takes nothing; and how many such pieces a peer that takes
    /// all gets in one turn.
    private static let (sliceBytes, slicesAtOnce) = (16 << 10, 16)

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
        // Spread, so that readers that came together do not all reconnect together.
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
        while isAttached, !isReading, progress?.hasYielded != true {
            let isTelling = progress?.page != nil
            if hasExpired, !isTelling { return end() }
            // Parked where it is: `onDrain` continues from here, in the log if need be.
            guard unsentBytes <= readers.configuration.unsentBytesMax else {
                if told < channel.tail.head { isBehind = true }
                return
            }
            if isTelling {
                tellPage()
                continue
            }
            hold(0)
            if let open = progress?.open?.event { return continueEvent(open) }
            if progress != nil {
                let isLast = progress?.isLast == true
                progress = nil
                if isLast { return end() }
            }
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

    /// Made where pages are read: megabytes would hold up all other readers on the loop.
    override var framing: (@Sendable (Page) -> PageEvents)? {
        let (form, cursor) = (form, cursor)
        guard form == .text else { return { PageEvents($0, as: form, cursor: cursor) } }
        let (events, open, isFirst) = (textEvents, progress?.open, stream == nil)
        return { PageEvents(text: $0, events, continuing: open, isFirst: isFirst) }
    }

    override var readOffset: UInt64 { progress?.open?.event.next ?? offset }

    /// So the head is sent before there is room, and a peer that is gone answers it with a reset.
    override func waitsForRoom(as form: EventFraming.Form) {
        guard stream == nil else { return }
        self.form = form
        open()
    }

    override func received(_ events: PageEvents, in room: MemoryReservation?) {
        if hasExpired { return end() }
        switch events.step {
        case .waits(let end, let tail): return wait(end, at: tail)
        case .unfit: return progress?.open == nil ? end() : giveUpText()
        case .told, .continues: form = events.form
        }
        open()
        guard let bytes = events.slices.whole else {
            progress = progress ?? Progress()
            progress?.page = (events, room)
            hold(events.byteCount)
            return advance()
        }
        apply(events)
        // The next page is read while this one is sent, as long as the reader keeps up and there is room for both.
        let readsAhead =
            events.state == .behind && progress?.isLast != true && readOffset < channel.tail.head && unsentBytes == 0
            && readers.hasRoomForPages
        if readsAhead {
            hold(bytes.count)
            read()
        }
        send(BodyPiece(bytes, room: room), events.state)
        if events.state == .closed { leave() } else if !readsAhead { advance() }
    }

    /// Applies the consequences of a page that has been sent.
    private func apply(_ events: PageEvents) {
        switch events.step {
        case .told(let next, _, let splitsLineEnd):
            progress?.open = nil
            moved(to: next, splitsLineEnd)
        case .continues(let event):
            progress = progress ?? Progress()
            progress?.open = (event, events.slices.lines)
        case .waits, .unfit: break
        }
    }

    /// The offset that the reader will have been told once the current page has been sent.
    private var told: UInt64 { if case .told(let next, _, _)? = progress?.page?.events.step { next } else { readOffset } }

    /// Sends the next pieces of the page, as long as the peer takes them.
    private func tellPage() {
        guard let progress, let state = progress.page?.events.state else { return }
        for _ in 0..<SSEReader.slicesAtOnce {
            guard unsentBytes <= readers.configuration.unsentBytesMax else { return }
            send(BodyPiece(progress.page!.events.slices.next(upTo: SSEReader.sliceBytes)), state)
            guard !progress.page!.events.slices.isDone else { return pageTold(progress, state) }
        }
        progress.hasYielded = true
        readers.loop.execute { [self] in
            self.progress?.hasYielded = false
            advance()
        }
    }

    private func pageTold(_ progress: Progress, _ state: EventFraming.State) {
        if let page = progress.page { apply(page.events) }
        progress.page = nil
        if state == .closed { leave() }
    }

    private func read() {
        let share = readers.pageShare
        hold(reserved + share)
        readPage(bytesMax: share)
    }

    /// Notes how much its pages take: those that are being read or sent.
    private func hold(_ bytes: Int) {
        readers.pageBytes += bytes - reserved
        reserved = bytes
    }

    private func drained() { if isAttached { advance() } }

    private func detach() {
        hold(0)
        progress = nil
        readers.remove(self)
    }

    override func failed(_ error: ChannelError) {
        if error.isOfRemoval, stream != nil { return isInEvent ? breakOff() : leave() }
        if !error.isOfRemoval { Diagnostics.log(.error, "a live read failed", ["channel": channel.name, "reason": error.message]) }
        detach()
        if let exchange = unanswered {
            unanswered = nil
            (exchange.responder.onClose, exchange.responder.onHalfClose) = (nil, nil)
            exchange.respond(Problem(error))
        } else {
            stream?.abort()  // A clean end would say that all is well; a cut one lets the client reconnect.
        }
    }

    override func sweep(_ now: Duration) {
        let now = now.milliseconds
        if now >= deadline || hasExpired { return end() }
        if let incomplete, now - incomplete.since >= SSEReader.completionMilliseconds { return giveUp(incomplete) }
        guard !isInEvent else { return }
        let interval = probesLeft > 0 ? 0 : readers.configuration.heartbeatInterval.milliseconds
        guard let stream, now - lastWrite >= interval, stream.bufferedBytes == 0 else { return }
        lastWrite = now
        probesLeft = max(0, probesLeft - 1)
        stream.write(EventFraming.heartbeat)
    }

    override func deliver(_ event: EphemeralDelivery) {
        guard isAttached, !isInEvent, let stream, stream.bufferedBytes <= readers.configuration.unsentBytesMax else { return }
        stream.write(event.eventForm)
    }

    override func end() {
        guard isAttached else { return }
        if let progress, isInEvent {
            // An event that has begun is sent to its end, if there is one; without it the client would get the same again.
            guard progress.page == nil, hasExpired || readOffset >= channel.tail.head else {
                progress.isLast = true
                return
            }
            guard progress.open?.event.end == .afterReturn else { return breakOff() }
            endOpenEvent(.behind)
        } else {
            writeControl(.behind)
        }
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
        if !isInEvent { stream?.write(EventFraming.heartbeat) }
    }
}

// MARK: Text that is not complete

extension SSEReader {
    /// The next events, of text.
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
        if progress?.open != nil {
            if incomplete.end == .afterReturn { endOpenEvent(.upToDate) } else { giveUpText() }
        } else if incomplete.end == .afterReturn {
            lineEnd = .allowsReturn
            advance()
        } else {
            readers.unfitText.add(channel, after: offset)
            end()
        }
    }

    /// Whether a part of an event has been sent.
    private var isInEvent: Bool { progress.map { $0.page != nil || $0.open != nil } ?? false }

    /// Continues an event with what follows in the log, or waits for it.
    private func continueEvent(_ event: PageEvents.OpenEvent) {
        let tail = channel.tail
        if tail.isDeleted { return breakOff() }
        if event.next < tail.head { return read() }
        if progress?.isLast == true { return end() }
        guard tail.isClosed else {
            if incomplete?.tail != tail.head {
                incomplete = Incomplete(end: event.end, tail: tail.head, since: readers.loop.nowMilliseconds)
            }
            return
        }
        guard event.end == .afterReturn else { return giveUpText() }
        endOpenEvent(.closed)
        leave()
    }

    /// Ends an event behind a carriage return that nothing follows.
    private func endOpenEvent(_ state: EventFraming.State) {
        guard let next = progress?.open?.event.next else { return }
        progress?.open = nil
        moved(to: next, true)
        var bytes = EventFraming.dataEnd
        EventFraming.writeControl(next: next, cursor: cursor, state, to: &bytes)
        send(BodyPiece(bytes), state)
    }

    /// The event that is being sent turns out to be no text: the reader reconnects, and gets it in Base64.
    private func giveUpText() {
        readers.unfitText.add(channel, after: offset)
        breakOff()
    }

    /// Ends the answer within an event, which the client then knows not to be complete.
    private func breakOff() {
        detach()
        stream?.abort()
    }
}
