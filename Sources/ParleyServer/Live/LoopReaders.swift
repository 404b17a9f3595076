internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// The live readers of one loop, and its sockets.
///
/// It watches each channel that has readers here. The writer thread only notes which channels have changed and wakes the loop, once a tick; the loop
/// then brings each of their readers forward, from bytes that are framed once for all readers at the same place.
final class LoopReaders: @unchecked Sendable {  // Guard: `changed` and `total` are thread-safe, the rest is the loop's.
    let loop: EventLoop
    let channels: Channels
    let reads: ReadPool
    let configuration: ServerConfiguration
    /// Checks whether readers may still read; `nil` in tests of the loop alone.
    let authenticator: Authenticator?

    private struct Changed {
        var tails: [any Tail] = []
        var isWoken = false
    }

    let parking = ParkingCounters()
    private let changed = Mutex(Changed())
    private let total = Atomic(0)
    private var readers: [ObjectIdentifier: [LiveReader]] = [:]
    private var sockets: [ObjectIdentifier: SocketSession] = [:]
    private var waits: [ObjectIdentifier: TurnWait] = [:]
    /// Ephemeral events that this loop has not delivered yet.
    private let undelivered = Atomic(0)
    private static let undeliveredMax = 1_024
    private var sweeper: LoopTimer?
    /// The events of the previous reader, while a commit is given to one after the other.
    private var newest: (place: Place, events: Events)?
    private var isGivingOut = false
    /// The readers that still have to get what has changed, in the order of their turns, and the index of the next one.
    private var due: [LiveReader] = []
    private var nextDue = 0
    /// How many served readers are kept there: taking from the front of an array moves the rest.
    private static let servedMax = 1_024
    /// How long readers are served until those that have shown that they read, and whatever else the loop has to do, come first again: sending to a
    /// thousand peers that then do not read keeps a loop busy for a second.
    private static let sliceNanoseconds: Int64 = 1_000_000
    /// Bytes of pages that are being read or sent.
    var pageBytes = 0
    /// The limit for the pages of all lagging readers together; each gets a part of what is left, and never less than the least.
    private static let (pageBytesMax, pageBytesMin) = (4 << 20, 8 << 10)
    let unfitText: UnfitText
    let answers: AnswerMemory
    /// Answers that wait for room.
    let waiting: WaitingAnswers

    init(
        loop: EventLoop, channels: Channels, reads: ReadPool, configuration: ServerConfiguration, unfitText: UnfitText = UnfitText(),
        authenticator: Authenticator? = nil, answers: AnswerMemory? = nil
    ) {
        let answers = answers ?? AnswerMemory(bytesMax: configuration.answerBytesMax)
        (self.answers, waiting) = (answers, WaitingAnswers(loop, answers))
        self.authenticator = authenticator
        self.loop = loop
        self.unfitText = unfitText
        self.channels = channels
        self.reads = reads
        self.configuration = configuration
    }

    /// How many readers there are. Thread-safe.
    var count: Int { total.load(ordering: .relaxed) }

    var hasRoom: Bool { count < configuration.readersPerLoopMax }

    /// Adds a reader, which hears of every change from now on.
    /// - Returns: false when its channel's object has been released: look the channel up again.
    func add(_ reader: LiveReader) -> Bool {
        loop.assertOnLoop()
        let key = ObjectIdentifier(reader.channel)
        if readers[key] == nil {
            guard reader.channel.attach(self) else { return false }
        }
        reader.slot = readers[key]?.count ?? 0
        readers[key, default: []].append(reader)
        total.add(1, ordering: .relaxed)
        startSweeping()
        return true
    }

    /// Removes a reader. Idempotent.
    func remove(_ reader: LiveReader) {
        loop.assertOnLoop()
        let key = ObjectIdentifier(reader.channel)
        guard reader.slot >= 0, let last = readers[key]?.popLast() else { return }
        if last !== reader {
            readers[key]![reader.slot] = last
            last.slot = reader.slot
        }
        reader.slot = -1
        reader.place = nil
        reader.isBehind = false
        total.subtract(1, ordering: .relaxed)
        if readers[key]!.isEmpty {
            readers[key] = nil
            reader.channel.detach(self)
        }
    }

    func add(_ socket: SocketSession) {
        loop.assertOnLoop()
        sockets[ObjectIdentifier(socket)] = socket
        startSweeping()
    }

    func remove(_ socket: SocketSession) { sockets[ObjectIdentifier(socket)] = nil }

    func add(_ wait: TurnWait) { waits[ObjectIdentifier(wait)] = wait }

    func remove(_ wait: TurnWait) { waits[ObjectIdentifier(wait)] = nil }

    /// Ends every reader after telling it where to resume, and answers the waits for the end of a turn.
    func endAll() {
        for wait in waits.values { wait.end() }
        for socket in sockets.values { socket.end(.draining) }
        for reader in readers.values.flatMap({ $0 }) { reader.end() }
    }

    /// Gives an event to the readers here that follow its channel. Thread-safe.
    /// - Returns: false when too many wait already: then it is dropped.
    func deliver(_ event: EphemeralDelivery) -> Bool {
        guard undelivered.add(1, ordering: .relaxed).newValue <= LoopReaders.undeliveredMax else {
            undelivered.subtract(1, ordering: .relaxed)
            return false
        }
        loop.execute { [self] in
            undelivered.subtract(1, ordering: .relaxed)
            guard let channel = channels.resident(event.channel) else { return }
            for reader in readers[ObjectIdentifier(channel)] ?? [] { reader.deliver(event) }
        }
        return true
    }

    // MARK: Events for readers

    /// The next events for a reader.
    enum Events {
        /// Nothing yet; or never, when the channel has ended.
        case none(isEnded: Bool)
        /// The piece that brings it to `next`. `splitsLineEnd`: see ``TextEvents/Outcome``.
        case piece(BodyPiece, next: UInt64, EventFraming.State, splitsLineEnd: Bool)
        /// Only the log has it.
        case behind
        /// Text that is not complete.
        case waits(TextSeam.End)
        /// The next data is no text.
        case unfit
    }

    /// The values that decide which events come next.
    private struct Place: Equatable {
        let channel: ObjectIdentifier
        let offset: UInt64
        let view: View
        let cursor: UInt64
        let form: EventFraming.Form
        let lineEnd: SSEReader.LineEnd
    }

    /// Whose share a piece counts against that many readers get, and from where on it is counted.
    private static let (sharedAccount, countedBytes) = ("", 64 << 10)

    /// A piece ends behind the commit with which it passes this.
    private static let pieceBytes = 32 << 10
    /// A commit that is longer in events is not framed on the loop, nor at once: its readers get it as a page.
    private static let commitBytesMax = 16 << 20

    /// Returns the next events for a reader. While a change is given out, they are made once for all readers at the same place.
    func events(for reader: SSEReader) -> Events {
        let place = Place(
            channel: ObjectIdentifier(reader.channel), offset: reader.offset, view: reader.view, cursor: reader.cursor, form: reader.form,
            lineEnd: reader.lineEnd)
        if let newest, newest.place == place { return newest.events }
        let events: Events
        switch reader.channel.tail(after: reader.offset) {
        case .upToDate(let isEnded): events = .none(isEnded: isEnded)
        case .behind: events = .behind
        case .chunks(let chunks, let isEnded):
            let isLarge = chunks.contains(where: \.isLarge)
            let room = isLarge ? room(for: chunks, as: reader.form) : nil
            if isLarge, room == nil {
                events = .behind
            } else if reader.form == .text {
                events = counted(textEvents(chunks, isEnded, for: reader, place), in: room)
            } else {
                events = counted(dataEvents(chunks, isEnded, of: reader.channel, place), in: room)
            }
        }
        return noted(events, at: place)
    }

    /// Room for the events of a large commit, before they are made; `nil` when there is none, or that is too much to make here.
    private func room(for chunks: [Chunk], as form: EventFraming.Form) -> MemoryReservation? {
        let count = chunks.reduce(0) { $0 + EventFraming.byteCountMax(of: $1.frames, as: form) }
        guard count <= min(LoopReaders.commitBytesMax, answers.budget.bytesMax) else { return nil }
        return answers.reserve(count, for: LoopReaders.sharedAccount)
    }

    /// A large piece is shared by many, and counted once; without room for it, each reads it from the log once there is.
    private func counted(_ events: Events, in room: MemoryReservation?) -> Events {
        guard case .piece(let piece, let next, let state, let splitsLineEnd) = events, piece.byteCount > LoopReaders.countedBytes else {
            return events
        }
        room?.resize(to: min(piece.byteCount, room?.bytes ?? 0))
        guard let room = room ?? answers.reserve(piece.byteCount, for: LoopReaders.sharedAccount) else { return .behind }
        return .piece(piece.holding(room), next: next, state, splitsLineEnd: splitsLineEnd)
    }

    private func noted(_ events: Events, at place: Place) -> Events {
        if isGivingOut { newest = (place, events) }
        return events
    }

    private func dataEvents(_ chunks: [Chunk], _ isEnded: Bool, of channel: any Tail, _ place: Place) -> Events {
        var (bytes, next, state) = (Bytes(), place.offset, EventFraming.State.behind)
        let isOfNow = place.cursor == StreamCursor.current(channels.world.now)
        for chunk in chunks where bytes.count < LoopReaders.pieceBytes {
            if chunk === chunks.last { state = isEnded ? .closed : .upToDate }
            let make = { (chunk: Chunk) -> Bytes in
                var bytes = Bytes()
                EventFraming.write(chunk.page(of: channel, view: place.view), as: place.form, cursor: place.cursor, state, to: &bytes)
                return bytes
            }
            // A cursor that is not the time's own came from the client: kept, there would be a form for each.
            let name = "e\(place.form.rawValue)\(place.view.rawValue)\(place.cursor)\(state.rawValue)"
            let form = isOfNow && !chunk.isLarge ? chunk.wire(name, make) : make(chunk)
            if bytes.isEmpty { bytes = form } else { bytes += form }
            next = chunk.last
        }
        return .piece(BodyPiece(bytes), next: next, state, splitsLineEnd: false)
    }

    private func textEvents(_ chunks: [Chunk], _ isEnded: Bool, for reader: SSEReader, _ place: Place) -> Events {
        var events = reader.textEvents
        (events.isEnded, events.bytesMax) = (isEnded, LoopReaders.pieceBytes)
        let pieces = chunks.map { TextEvents.Piece(text: $0.page(of: reader.channel, view: .raw).body, last: $0.last) }
        switch events.outcome(of: pieces) {
        case .events(let bytes, let next, let state, let splitsLineEnd):
            return .piece(BodyPiece(bytes), next: next, state, splitsLineEnd: splitsLineEnd)
        case .waits(let end): return .waits(end)
        case .unfit: return .unfit
        }
    }

    /// How large a page a lagging reader may have, so that a thousand that stop reading hold no more than a few do.
    var pageShare: Int { min(configuration.pageBytes, max(LoopReaders.pageBytesMin, (LoopReaders.pageBytesMax - pageBytes) / 8)) }

    var hasRoomForPages: Bool { pageBytes < LoopReaders.pageBytesMax / 2 }

    // MARK: Sweeping

    /// Heartbeats and the ends of streams are checked for all readers at once: a timer each would cost more than they do.
    private func startSweeping() {
        guard sweeper?.isWaiting != true else { return }
        let period = max(.milliseconds(10), min(.seconds(1), configuration.shortestInterval / 4))
        sweeper = loop.schedule(after: period) { [unowned self] in sweep() }  // The loop stops before its readers go.
    }

    private func sweep() {
        let now = loop.now
        var unsent = 0
        for reader in readers.values.flatMap({ $0 }) {
            unsent += reader.unsentBytes
            reader.sweep(now)
        }
        parking.unsentBytes.store(unsent, ordering: .relaxed)
        for socket in sockets.values { socket.sweep(now) }
        if count > 0 || !sockets.isEmpty { startSweeping() }
    }
}

extension LoopReaders: ChannelWatcher {
    func channelChanged(_ tail: any Tail) {
        let mustWake = changed.withLock { changed in
            changed.tails.append(tail)
            defer { changed.isWoken = true }
            return !changed.isWoken
        }
        if mustWake { loop.execute { self.flushChanged() } }
    }

    func channelLeft(_ tail: any Tail) {
        loop.execute { [self] in
            // A copy: each takes itself out.
            for reader in readers[ObjectIdentifier(tail)] ?? [] { reader.channelLeft() }
        }
    }

    private func flushChanged() {
        let tails = changed.withLock { changed in
            changed.isWoken = false
            defer { changed.tails.removeAll(keepingCapacity: true) }
            return changed.tails
        }
        let isServing = !due.isEmpty
        newest = nil
        givingOut {
            var seen: Set<ObjectIdentifier> = []
            for tail in tails where seen.insert(ObjectIdentifier(tail)).inserted {
                // A copy: a reader that has reached its end takes itself out.
                for reader in readers[ObjectIdentifier(tail)] ?? [] where !reader.isDue {
                    if reader.hasShownToRead {
                        reader.advance()
                    } else {
                        reader.isDue = true
                        due.append(reader)
                    }
                }
            }
        }
        if !isServing { giveToDue() }
    }

    /// Serves those whose turn it is, for a while.
    private func giveToDue() {
        let end = loop.preciseNanoseconds + LoopReaders.sliceNanoseconds
        givingOut {
            while nextDue < due.count, loop.preciseNanoseconds < end {
                let reader = due[nextDue]
                nextDue += 1
                reader.isDue = false
                reader.advance()
            }
        }
        if nextDue == due.count || nextDue >= LoopReaders.servedMax {
            due.removeFirst(nextDue)
            nextDue = 0
        }
        if !due.isEmpty { loop.execute { self.giveToDue() } }
    }

    private func givingOut(_ body: () -> Void) {
        isGivingOut = true
        body()
        isGivingOut = false
        // A reader that waits for its turn gets the same, unless something has changed by then.
        if nextDue == due.count { newest = nil }
    }
}
