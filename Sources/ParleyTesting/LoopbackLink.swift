package import ParleyChannels
package import ParleySystem
internal import Synchronization

/// A link to the channels of another node in the same process, whose connection can be slow and can be cut.
///
/// Messages on one connection arrive in order, each after a delay, unless the connection is cut before; then they are lost. Works in a simulated
/// world and in the system's.
package final class LoopbackLink: ChannelLink {
    private struct State {
        /// `nil` while it is cut.
        var connection: Connection?
        /// Follows that wait for a connection.
        var waiting: [Follow] = []
        var isGone = false
    }

    private let owner: Channels
    private let world: any World
    private let delay: @Sendable () -> Duration
    /// How long a read waits for a connection.
    private let patience: Duration
    private let state: Monitor<State>
    /// Messages that arrive here run on one lane, those that arrive at the owner on another.
    private let (here, there): (UInt64, UInt64)
    private let counted = Mutex(Counts())

    /// The traffic over the link.
    package struct Counts: Sendable {
        package var follows = 0
        package var cuts = 0
        package var pages = 0
        package var commits = 0
        /// Events on their way at one time, at most.
        package var inFlightMost = 0
    }

    /// - Parameters:
    ///   - delay: Asked for each message.
    ///   - patience: How long a page or a lookup waits while the link is cut, on its own thread; in a simulated world, not at all.
    package init(to owner: Channels, world: any World, patience: Duration = .zero, delay: @escaping @Sendable () -> Duration = { .zero }) {
        (self.owner, self.world, self.delay, self.patience) = (owner, world, delay, patience)
        (here, there) = (world.random(), world.random())
        state = Monitor(State(connection: Connection()))
    }

    package var counts: Counts { counted.withLock { $0 } }

    // MARK: Its fate

    /// Loses what is on its way, and breaks every follow. Until ``restore()``, nothing passes.
    package func cut() {
        guard
            let connection = state.withLock({ state in
                defer { state.connection = nil }
                return state.connection
            })
        else { return }
        counted.withLock { $0.cuts += 1 }
        for follow in connection.close() {
            perform(there) { follow.endFeed() }
            perform(here) { follow.receive(.broken) }
        }
    }

    package func restore() {
        let waiting = state.withLock(signalAll: true) { state -> [Follow] in
            guard state.connection == nil, !state.isGone else { return [] }
            state.connection = Connection()
            defer { state.waiting = [] }
            return state.waiting
        }
        for follow in waiting { begin(follow) }
    }

    /// Gives the other node up.
    package func giveUp() {
        let follows = state.withLock(signalAll: true) { state -> [Follow] in
            state.isGone = true
            defer { (state.connection, state.waiting) = (nil, []) }
            return state.waiting + (state.connection?.close() ?? [])
        }
        for follow in follows {
            perform(there) { follow.endFeed() }
            perform(here) { follow.receive(.left) }
        }
    }

    private func perform(_ lane: UInt64, _ work: @escaping @Sendable () -> Void) { world.perform(lane: lane, work) }

    // MARK: Reads

    package func find(_ name: String, at id: ChannelID?) throws(ChannelError) -> ChannelDescription? {
        try read { () throws(ChannelError) in try owner.describe(name, at: id) }
    }

    package func page(_ request: PageRequest) throws(ChannelError) -> Page? {
        counted.withLock { $0.pages += 1 }
        return try read { () throws(ChannelError) in try owner.page(request) }
    }

    /// A read whose connection is cut meanwhile is lost, and is sent again.
    private func read<Value>(_ body: () throws(ChannelError) -> Value) throws(ChannelError) -> Value {
        while true {
            guard let connection = connection() else {
                throw ChannelError("partition_unavailable", "the owner cannot be reached. Try again later.")
            }
            let value = try body()
            if connection.isOpen { return value }
        }
    }

    private func connection() -> Connection? {
        guard patience > .zero else { return state.withLock { $0.connection } }
        let found = state.wait(timeout: patience) { state -> Connection?? in
            if state.isGone { return .some(nil) }
            return state.connection.map { .some($0) }
        }
        return found ?? nil
    }

    // MARK: Follows

    package func follow(_ request: FollowRequest, _ receive: @escaping @Sendable (FollowEvent) -> Void) -> any ChannelFollow {
        counted.withLock { $0.follows += 1 }
        let follow = Follow(request, receive)
        begin(follow)
        return follow
    }

    package func touch(_ channel: ChannelReference) {
        guard let connection = state.withLock({ $0.connection }) else { return }
        send(on: connection, to: there) { [owner] in owner.touch(channel) }
    }

    private func begin(_ follow: Follow) {
        let connection = state.withLock { state -> Connection? in
            if state.isGone {
                perform(here) { follow.receive(.left) }
            } else if state.connection?.take(follow) != true {
                state.waiting.append(follow)
            } else {
                return state.connection
            }
            return nil
        }
        guard let connection else { return }
        follow.whenEnded { [weak self] in self?.end(follow, on: connection) }
        send(on: connection, to: there) { [self] in
            let feed = owner.feed(follow.request) { [weak self] in
                guard let self else { return }
                perform(there) { self.pump(follow, on: connection) }
            }
            // Cut or ended meanwhile: nothing else would end the feed.
            guard follow.serve(with: feed), connection.isOpen else { return follow.endFeed() }
            pump(follow, on: connection)
        }
    }

    /// Tells the owner; should that get lost, the cut does.
    private func end(_ follow: Follow, on connection: Connection) {
        send(on: connection, to: there) {
            connection.drop(follow)
            follow.endFeed()
        }
    }

    /// How many events of one follow may be in flight, as the buffer of a connection.
    private static let inFlightMax = 4

    /// Sends what the feed has, as far as the connection has room.
    private func pump(_ follow: Follow, on connection: Connection) {
        while connection.isOpen, let event = follow.next(LoopbackLink.inFlightMax) {
            if case .update(let update) = event { counted.withLock { $0.commits += update.commits.count } }
            counted.withLock { $0.inFlightMost = max($0.inFlightMost, follow.inFlight) }
            send(on: connection, to: here) { [self] in
                follow.arrived()
                follow.receive(event)
                perform(there) { self.pump(follow, on: connection) }
            }
        }
    }

    // MARK: Messages

    private func send(on connection: Connection, to lane: UInt64, _ work: @escaping @Sendable () -> Void) {
        let due = connection.queue(work, to: lane, at: world.now.advanced(by: delay()))
        if due <= world.now { return deliver(connection) }
        world.schedule(at: due) { [weak self] in self?.deliver(connection) }
    }

    private func deliver(_ connection: Connection) {
        connection.takeDue(world.now) { lane, work in
            world.perform(lane: lane) { if connection.isOpen { work() } }
        }
    }
}

/// One connection: its messages in flight, and the follows that use it.
private final class Connection: Sendable {
    private struct Message {
        let due: Timestamp
        let lane: UInt64
        let work: @Sendable () -> Void
    }

    private struct State {
        var isOpen = true
        var follows: [Follow] = []
        var messages: [Message] = []
    }

    private let state = Mutex(State())

    var isOpen: Bool { state.withLock { $0.isOpen } }

    func take(_ follow: Follow) -> Bool {
        state.withLock { state in
            guard state.isOpen else { return false }
            state.follows.append(follow)
            return true
        }
    }

    func drop(_ follow: Follow) { state.withLock { $0.follows.removeAll { $0 === follow } } }

    /// - Returns: The follows that were in progress.
    func close() -> [Follow] {
        state.withLock { state in
            state.isOpen = false
            defer { (state.follows, state.messages) = ([], []) }
            return state.follows
        }
    }

    /// Adds a message behind those that are on their way.
    /// - Returns: When it arrives.
    func queue(_ work: @escaping @Sendable () -> Void, to lane: UInt64, at instant: Timestamp) -> Timestamp {
        state.withLock { state in
            let due = max(instant, state.messages.last?.due ?? instant)
            if state.isOpen { state.messages.append(Message(due: due, lane: lane, work: work)) }
            return due
        }
    }

    /// Gives out what has arrived, in order. `perform` must only queue.
    func takeDue(_ now: Timestamp, _ perform: (_ lane: UInt64, _ work: @escaping @Sendable () -> Void) -> Void) {
        state.withLock { state in
            let count = state.messages.prefix { $0.due <= now }.count
            for message in state.messages.prefix(count) { perform(message.lane, message.work) }
            state.messages.removeFirst(count)
        }
    }
}

/// A follow over a loopback link: both of its ends.
private final class Follow: ChannelFollow {
    private struct State {
        var feed: ChannelFeed?
        var inFlight = 0
        var isEnded = false
        var whenEnded: (@Sendable () -> Void)?
    }

    let request: FollowRequest
    private let receiver: @Sendable (FollowEvent) -> Void
    private let state = Mutex(State())

    init(_ request: FollowRequest, _ receiver: @escaping @Sendable (FollowEvent) -> Void) {
        (self.request, self.receiver) = (request, receiver)
    }

    func whenEnded(_ body: @escaping @Sendable () -> Void) { state.withLock { $0.whenEnded = body } }

    func end() {
        let tell = state.withLock { state in
            state.isEnded = true
            defer { state.whenEnded = nil }
            return state.whenEnded
        }
        tell?()
    }

    func receive(_ event: FollowEvent) { if !state.withLock({ $0.isEnded }) { receiver(event) } }

    // MARK: The owner's end

    /// - Returns: Whether the follow is still wanted.
    func serve(with feed: ChannelFeed) -> Bool {
        state.withLock { state in
            state.feed = feed
            return !state.isEnded
        }
    }

    func endFeed() {
        let feed = state.withLock { state in
            defer { state.feed = nil }
            return state.feed
        }
        feed?.end()
    }

    var inFlight: Int { state.withLock { $0.inFlight } }

    func next(_ inFlightMax: Int) -> FollowEvent? {
        state.withLock { state in
            guard state.inFlight < inFlightMax, let event = state.feed?.next() else { return nil }
            state.inFlight += 1
            return event
        }
    }

    func arrived() { state.withLock { $0.inFlight -= 1 } }
}
