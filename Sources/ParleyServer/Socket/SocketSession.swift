internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// One client on a socket: the channels it follows, and the requests in flight.
///
/// Memory is bounded by the number of channels: unsent bytes stay below a bound for all of them together, behind which readers park at their offsets,
/// and pages are read for few at a time.
final class SocketSession: @unchecked Sendable {  // Guard: used on the loop only.
    enum Ending: String {
        case draining, recycled, expired
        /// The client sends nothing more, and may still read.
        case finished

        var closeCode: Int { self == .finished ? 1_000 : 1_001 }
    }

    let socket: WebSocket
    let exchange: Exchange
    let context: ServerContext
    /// The client's rights, on all the channels.
    var access: Access { exchange.access }
    let readers: LoopReaders
    var subscriptions: [Int64: SocketSubscription] = [:]
    /// Channels followed or about to be, each as often as it is.
    private var channelCount = 0
    private var held: [TextKey: HeldChannel] = [:]
    var ephemeralLimit: RateLimit
    private var parked: [SocketReader] = []
    /// Pages on their way from the log.
    private var readCount = 0
    private var pendingCount = 0
    private var ending: Ending?
    private var deadline = Duration.zero
    private var lastPing = Duration.zero

    /// Two keep the pool busy; more would only hold pages in memory.
    private static let readsMax = 2

    private struct HeldChannel {
        var count = 0
        /// The place that all its readers here share.
        weak var place: ReaderPlace?
    }

    /// How often one socket may follow one channel: each time costs a reader, though not a place.
    private static let repeatsMax = 16

    init(_ socket: WebSocket, _ exchange: Exchange, _ context: ServerContext) {
        self.socket = socket
        self.exchange = exchange
        self.context = context
        readers = context.readers(on: exchange.loop)
        let rate = context.configuration.ephemeralPerSecond
        ephemeralLimit = RateLimit(burst: 2 * rate, perSecond: rate, now: socket.loop.now)
    }

    var loop: EventLoop { socket.loop }

    func begin() {
        socket.onMessage = { [unowned self] in received($0) }  // The socket lets go of these when it ends.
        socket.onDrain = { [unowned self] in resumeParked() }
        socket.onHalfClose = { [unowned self] in finished() }
        socket.onClose = { [self] in leave() }
        // Spread, so that clients that came together do not all reconnect together.
        let spread = Double(context.channels.world.random() % 1_000) / 10_000
        deadline = loop.now + context.configuration.socketLifetime * (0.9 + spread)
        readers.add(self)
    }

    /// Says where to resume everything, and closes once what is in flight has been answered. Idempotent.
    func end(_ ending: Ending) {
        guard self.ending == nil, socket.isOpen else { return }
        self.ending = ending
        let places = subscriptions.values.sorted { $0.reference < $1.reference }.compactMap(\.place)
        for subscription in subscriptions.values { subscription.leave() }
        subscriptions = [:]
        send(["resume": .array(places), "reason": .string(ending.rawValue)])
        closeIfEnded()
    }

    /// Called about once a second.
    func sweep(_ now: Duration) {
        guard socket.isOpen else { return }
        if now >= deadline { return end(.recycled) }
        if hasExpired { return end(.expired) }
        for subscription in subscriptions.values { subscription.sweep() }
        let interval = context.configuration.socketPingInterval
        // A client that has not taken what was sent cannot have seen a ping; its time is the connection's.
        guard socket.bufferedBytes == 0, now - socket.lastInput >= interval else { return }
        if now - socket.lastInput >= interval * 3 { return socket.abort() }
        guard now - lastPing >= interval else { return }
        lastPing = now
        socket.ping()
    }

    /// Whether the client's right has ended: it then connects again with another token, and resumes.
    var hasExpired: Bool { access.expires != nil && access.hasExpired(context.channels.world.now) }

    private func leave() {
        parked = []
        for subscription in subscriptions.values { subscription.leave() }
        subscriptions = [:]
        readers.remove(self)
    }

    /// Closes once what the client has sent is answered.
    private func finished() {
        guard ending == nil else { return }
        ending = .finished
        closeIfEnded()
    }

    private func closeIfEnded() {
        guard let ending, pendingCount == 0 else { return }
        socket.close(ending.closeCode, ending.rawValue)
    }

    // MARK: In flight

    func operationBegan() {
        pendingCount += 1
        if pendingCount >= context.configuration.socketPendingMax { socket.isBusy = true }
    }

    func operationEnded() {
        pendingCount -= 1
        if pendingCount <= context.configuration.socketPendingMax / 2 { socket.isBusy = false }
        closeIfEnded()
    }

    // MARK: Messages

    private func received(_ message: Bytes) {
        if ending == nil, hasExpired { return end(.expired) }
        guard ending == nil else { return }  // The client has been told to reconnect; a request lost now was not answered.
        // Unreadable messages count, too.
        let excess = overRate
        do throws(SocketRefusal) {
            let request = try SocketRequest(message)
            do throws(Problem) {
                if let excess { throw excess }
                try perform(request)
            } catch {
                refuse(request.reference, error)
            }
        } catch {
            refuse(error.reference, excess ?? error.problem)
        }
    }

    private var overRate: Problem? {
        do throws(Problem) { try context.rates?.take(account, loop.now) } catch { return error }
        return nil
    }

    private lazy var account = context.account(of: exchange)

    func send(_ message: JSON) { socket.send(message.bytes) }

    func refuse(_ reference: Int64?, _ problem: Problem) {
        context.refusals.count(problem.code)
        var message = Bytes("{".utf8)
        if let reference { message.append("\"ref\":\(reference),") }
        message.append("\"error\":")
        message.append(contentsOf: problem.body)
        message.append(UInt8(ascii: "}"))
        socket.send(message)
    }

    // MARK: Channels

    /// Counts channels that are to be followed.
    ///
    /// - Throws: 429 `too_many_channels`; nothing is counted then.
    func hold(_ names: [String]) throws(Problem) {
        let most = context.configuration.socketChannelsMax
        guard channelCount + names.count <= most else {
            throw Problem(
                status: 429, code: "too_many_channels",
                detail: "this connection follows \(channelCount) channels; expected at most \(most). Unfollow some, or open another one.")
        }
        if let name = names.first(where: { held[TextKey($0)]?.count ?? 0 >= SocketSession.repeatsMax }) {
            throw Problem(
                status: 429, code: "too_many_channels",
                detail: "this connection follows '\(name)' \(SocketSession.repeatsMax) times already. Follow it once, and share what comes."
            )
        }
        for name in names { held[TextKey(name), default: HeldChannel()].count += 1 }
        channelCount += names.count
    }

    func release(_ name: String) {
        guard let count = held[TextKey(name)]?.count else { return }
        channelCount -= 1
        if count > 1 { held[TextKey(name)]!.count = count - 1 } else { held[TextKey(name)] = nil }
    }

    /// The place of a reader of a channel that is held.
    ///
    /// - Throws: 401 when what the client showed is not good any more, 429 `too_many_readers`, 503 `overloaded`.
    func place(for name: String) throws(Problem) -> ReaderPlace {
        if let problem = context.authenticator.problem(with: access) { throw problem }
        if let place = held[TextKey(name)]?.place { return place }
        let place = try context.places.take(account)
        guard readers.hasRoom else { throw .overloaded("\(readers.count) readers follow channels already") }
        held[TextKey(name)]?.place = place
        return place
    }

    // MARK: Readers

    /// Whether there is room for more to be sent.
    var hasRoom: Bool {
        socket.bufferedBytes <= (socket.isCrowded ? context.configuration.unsentBytesMax : context.configuration.socketUnsentBytesMax)
    }

    func park(_ reader: SocketReader) {
        reader.isParked = true
        parked.append(reader)
    }

    /// - Returns: whether a page may be read now; then ``readEnded()`` follows.
    func mayRead() -> Bool {
        guard readCount < SocketSession.readsMax else { return false }
        readCount += 1
        return true
    }

    func readEnded() {
        readCount -= 1
        resumeParked()
    }

    /// Lets the parked readers that waited longest continue, as long as there is room.
    private func resumeParked() {
        var rest = parked.count
        while rest > 0, ending == nil, socket.isOpen, hasRoom, readCount < SocketSession.readsMax, !parked.isEmpty {
            rest -= 1
            let reader = parked.removeFirst()
            reader.isParked = false
            reader.advance()
        }
    }
}

/// Something followed under a reference of the client's: a channel or a tree.
class SocketSubscription: @unchecked Sendable {  // Guard: used on the loop only.
    let reference: Int64
    unowned let session: SocketSession  // It outlives what it holds.
    /// It no longer follows anything.
    private(set) var isLeft = false

    init(_ reference: Int64, _ session: SocketSession) {
        self.reference = reference
        self.session = session
    }

    /// The place to continue at; `nil` while that is not known.
    var place: JSON? { nil }

    /// Stops following. Idempotent.
    func leave() { isLeft = true }

    /// Called about once a second.
    func sweep() {}

    /// A reader has got so far, and what it is about to send says so.
    func advanced(_ reader: SocketReader, to offset: UInt64, children: @autoclosure () -> [String]) {}

    /// The beginning of a message of `reader`: `{"ref":1,`, and the members that the subscription adds.
    func head(for reader: SocketReader) -> Bytes { preconditionFailure("a kind of subscription says how its messages begin") }

    /// The name under which the reader's channel is counted.
    func heldName(of reader: SocketReader) -> String { reader.channel.name }

    /// The message has been queued.
    func sent() {}

    /// The reader's channel has nothing more to give.
    func ended(_ reader: SocketReader, _ reason: String, _ problem: Problem?) {}

    /// Removes the subscription under its reference.
    func forget() {
        leave()
        if session.subscriptions[reference] === self { session.subscriptions[reference] = nil }
    }
}
