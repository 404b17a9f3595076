internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// A reader that follows a channel on one loop: its offset, and how pages of the log reach it when it lags.
///
/// There are many that only wait: the order of its properties leaves no gaps.
class LiveReader: @unchecked Sendable {  // Guard: used on the loop only.
    let channel: any Tail
    unowned let readers: LoopReaders  // They outlive every loop's connections.
    /// Everything up to here has been given to the reader.
    var offset: UInt64
    /// Its index in ``LoopReaders``; -1 when it is not there.
    var slot = -1 { didSet { if slot < 0 { ticket?.isWanted.store(false, ordering: .relaxed) } } }
    /// Its place among those of its account; given back when it is removed.
    var place: ReaderPlace?
    private let cursorFloor: UInt64
    /// When the right to read ends, if it does.
    let expires: Timestamp?
    var view: View
    /// Whether more waits to be sent than a reader may hold, so that what is new waits in the log.
    var isBehind = false {
        didSet { if isBehind != oldValue { readers.parking.noted(isBehind) } }
    }
    private(set) var isReading = false
    /// Says on the read pool whether the page that is read is still wanted.
    private var ticket: ReadTicket?
    /// Whether ``LoopReaders`` has it among those whose turn will come.
    var isDue = false

    init(_ channel: any Tail, after offset: UInt64, view: View, cursorFloor: UInt64, expires: Timestamp?, _ readers: LoopReaders) {
        self.channel = channel
        self.offset = offset
        self.view = view
        self.cursorFloor = cursorFloor
        self.expires = expires
        self.readers = readers
    }

    /// Called once, when the reader has been added. The parts of the request that are not needed any more are not kept.
    func begin(_ exchange: Exchange) { preconditionFailure("a kind of reader says how it begins") }

    /// Gives what there is to give. Called whenever the channel has changed.
    func advance() { preconditionFailure("a kind of reader says how it advances") }

    /// How long it waits for room for a page before it fails; `nil`: as long as it takes.
    var patience: Duration? { nil }

    /// Turns a page into events before it is received, off the loop: they are then received in its place; `nil`: it stays a page.
    var framing: (@Sendable (Page) -> PageEvents)? { nil }

    /// The offset at which the next page begins.
    var readOffset: UInt64 { offset }

    /// Whether it has taken what it was given, so far. Readers that have are served before all others.
    var hasShownToRead: Bool { true }

    /// Called about once a second.
    func sweep(_ now: Duration) {}

    /// Bytes that wait in memory for the peer to take them.
    var unsentBytes: Int { 0 }

    /// The server stops: says where to resume, and ends the answer.
    func end() { preconditionFailure("a kind of reader says how it ends") }

    /// The channel is not to be had through this object any more: the reader continues where it is answered now.
    func channelLeft() { end() }

    /// Gives an ephemeral event to the reader; one that lags, or waits for something else, may miss it.
    func deliver(_ event: EphemeralDelivery) {}

    /// A page asked for with ``readPage()`` has come.
    ///
    /// - Parameter room: Its share of the memory for answers.
    func received(_ page: Page, in room: MemoryReservation?) { preconditionFailure("a kind of reader says what it does with a page") }

    /// The same of what ``framing`` has made of it.
    func received(_ events: PageEvents, in room: MemoryReservation?) {
        preconditionFailure("a kind of reader says what it does with events")
    }

    /// A page that has been read waits for room, and is read again then. Its form in events will not change.
    func waitsForRoom(as form: EventFraming.Form) {}

    func failed(_ error: ChannelError) { preconditionFailure("a kind of reader says how it fails") }

    var isAttached: Bool { slot >= 0 }

    /// Whether the right to read has ended since the request came: nothing more is given, and the next request needs another token.
    var hasExpired: Bool { expires.map { $0 <= readers.channels.world.now } ?? false }

    var cursor: UInt64 { max(StreamCursor.current(readers.channels.world.now), cursorFloor) }

    /// Reads the page after ``offset`` off the loop. One at a time.
    ///
    /// - Parameter bytesMax: The size at which it ends, after the entry that passes it; by default that of catch-up reads.
    func readPage(bytesMax: Int? = nil) {
        guard !isReading else { return }
        isReading = true
        read(bytesMax ?? readers.configuration.pageBytes, in: nil)
    }

    private func read(_ bytesMax: Int, in room: MemoryReservation?) {
        let (channels, channel, offset, view) = (readers.channels, channel, readOffset, view)
        let (answers, account, loop, framing) = (readers.answers, account, readers.loop, framing)
        let ticket = ReadTicket()
        self.ticket = ticket
        let isTaken = readers.reads.run {
            // When many readers come and go at once, those that have gone cost nothing.
            guard ticket.isWanted.load(ordering: .relaxed) else {
                loop.execute { self.isReading = false }
                return
            }
            let result: Result<Made<Reading>, ChannelError>
            var form: EventFraming.Form?
            do throws(ChannelError) {
                let made = try answers.make(for: account, in: room, weight: \.byteCount) { isShort throws(ChannelError) -> Reading? in
                    let page = try channel.page(
                        after: offset, view: view, bytesMax: isShort ? min(bytesMax, AnswerMemory.shortBytes) : bytesMax, in: channels)
                    guard let framing else { return .page(page) }
                    let events = framing(page)
                    form = events.form
                    return .events(events)
                }
                result = .success(made.framed)
            } catch {
                result = .failure(error)
            }
            let known = form
            loop.execute { self.pageRead(result, known, bytesMax) }
        }
        if !isTaken { pageRead(.failure(ChannelError("overloaded", "too many reads wait for the log. Try again later.")), nil, bytesMax) }
    }

    private var account: String { place?.account ?? "" }

    private func pageRead(_ result: Result<Made<Reading>, ChannelError>, _ form: EventFraming.Form?, _ bytesMax: Int) {
        if case .success(.needs) = result, isAttached, let form { waitsForRoom(as: form) }
        if case .success(.needs(let count)) = result, isAttached { return wait(for: count, bytesMax) }
        isReading = false
        ticket = nil
        guard isAttached else { return }
        switch result {
        case .success(.value(.page(let page), let room)): received(page, in: room)
        case .success(.value(.events(let events), let room)): received(events, in: room)
        case .success(.needs): break
        case .failure(let error): failed(error)
        }
    }

    private func wait(for count: Int, _ bytesMax: Int) {
        readers.waiting.wait(for: count, of: account, patience: patience, isWanted: { self.isAttached }) { room in
            if let room { return self.read(bytesMax, in: room) }
            self.pageRead(.failure(ChannelError("overloaded", Problem.answersFull + ". Try again later.")), nil, bytesMax)
        }
    }
}

/// The result of a read for a reader.
private enum Reading: Sendable {
    case page(Page)
    case events(PageEvents)

    var byteCount: Int {
        switch self {
        case .page(let page): page.body.count
        case .events(let events): events.byteCount
        }
    }
}

extension Made<Reading> {
    /// The same, with what is short framed: it has been counted as long as it is then.
    fileprivate var framed: Self {
        guard case .value(.events(var events), let room) = self else { return self }
        events.frame()
        return .value(.events(events), room)
    }
}

/// Whether a page is still wanted. Thread-safe.
private final class ReadTicket: Sendable {
    let isWanted = Atomic(true)
}
