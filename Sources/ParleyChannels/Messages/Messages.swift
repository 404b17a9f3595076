package import ParleyLog
internal import ParleySystem
internal import Synchronization

/// Messages between partitions: each is taken once, in order for each pair of partitions, whatever process or owner ends in between.
///
/// A message is a row of its source, in the batch that it follows from (``post(_:from:in:)``). Once that is durable it is sent to the owner of the
/// other partition, which takes it together with the number of the last one that was taken (``Delivery``), so that a repetition does nothing. Then
/// the source lets go of the row. One delivery of a route is on its way at a time; what comes meanwhile goes with the next.
package final class Messages: @unchecked Sendable {  // Guard: `given` and `posted` belong to the writer thread, the rest is locked or constant.
    private let log: any CommitLog
    private let world: any World
    /// The channels that the messages belong to; set once.
    fileprivate weak var channels: Channels?
    /// The last sequence of each partition.
    private var given: [UInt16: UInt64] = [:]
    /// The routes of the messages that the current commit posts.
    private var posted: Set<Route> = []
    /// The clients whose answer comes by a message.
    let answers: AwaitedForks
    private let state = Mutex(State())

    private struct State {
        /// `nil`: this node's own writer.
        var carrier: (any MessageCarrier)?
        var routes: [Route: Sending] = [:]
        /// How often each partition has been closed: a delivery that began before a closing is ignored after it.
        var closings: [UInt16: UInt64] = [:]
    }

    /// The state of the messages of a route.
    fileprivate struct Sending {
        enum Phase {
            case idle
            /// The messages are being read, or delivered.
            case busy
            /// The same, and there may be messages that the read did not see.
            case busyAgain
            /// The messages were not taken, and are sent again after a pause.
            case pausing
        }

        let closings: UInt64
        var phase = Phase.idle
        /// The messages before this sequence have been taken.
        var next: UInt64 = 0
        /// How often in a row the messages, or the rows that they concern, could not be read.
        var failures = 0
    }

    init(_ log: any CommitLog, _ world: any World) { (self.log, self.world, answers) = (log, world, AwaitedForks(world)) }

    func serve(_ channels: Channels) { self.channels = channels }

    /// Sets the carrier that delivers messages in place of this node's own writer. Call it before the writer starts.
    package func carry(by carrier: any MessageCarrier) { state.withLock { $0.carrier = carrier } }

    // MARK: The writer's side

    /// Loads the last sequence of the partition for ``post(_:from:in:)``. Call it before anything is changed.
    func ready(_ source: UInt16, in stage: Stage) throws(LogError) {
        guard given[source] == nil else { return }
        given[source] = try stage.get(.outbox, MessageRows.given(source))?.readBigEndian(at: 0) ?? UInt64(0)
    }

    /// The number of the next message from there. ``ready(_:in:)`` has been called.
    func next(from source: UInt16) -> UInt64 {
        guard let last = given[source] else { preconditionFailure("no message can be posted before ready(_:in:)") }
        return last + 1
    }

    /// The number of the last message of the route that was taken.
    func taken(_ route: Route, in stage: Stage) throws(LogError) -> UInt64 {
        try stage.get(.outbox, MessageRows.taken(route))?.readBigEndian(at: 0) ?? 0
    }

    /// Posts a message to a partition, possibly the same one, as part of what is being staged.
    func post(_ message: PartitionMessage, from source: UInt16, in stage: inout Stage) {
        let number = next(from: source)
        let route = Route(source: source, destination: message.destination)
        given[source] = number
        var row = Bytes()
        row.append(bigEndian: number)
        stage.put(.outbox, MessageRows.given(source), row)
        stage.put(.outbox, MessageRows.key(route, number), message.bytes)
        posted.insert(route)
    }

    /// Sends what was posted: it is durable now.
    func committed() {
        guard !posted.isEmpty else { return }
        // Sorted, so that a simulated run follows from its seed.
        for route in posted.sorted() { send(route) }
        posted.removeAll(keepingCapacity: true)
    }

    // MARK: Sending

    /// Sends what the last process left. Cost: a seek a partition, and one for each pair of partitions with something to send.
    func start() throws(LogError) {
        for partition in channels?.openPartitions.numbers ?? [] {
            for route in try routes(from: partition) { send(route) }
        }
    }

    private func routes(from source: UInt16) throws(LogError) -> [Route] {
        try MessageRows.destinations(from: source, in: log).map { Route(source: source, destination: $0) }
    }

    /// There may be something to send.
    private func send(_ route: Route) {
        let isIdle = state.withLock { state in
            let new = Sending(closings: state.closings[route.source] ?? 0)
            return state.routes[route, default: new].isCalled()
        }
        if isIdle { look(route) }
    }

    private func look(_ route: Route) {
        world.perform(lane: UInt64(route.source)) { [weak self] in self?.deliver(route) }
    }

    private func deliver(_ route: Route) {
        guard let channels else { return }
        let (sending, carrier) = state.withLock { state in
            state.routes[route]?.phase = .busy
            return (state.routes[route], state.carrier)
        }
        guard let sending else { return }
        do throws(LogError) {
            let page = try MessageRows.page(route, from: sending.next, in: log)
            guard !page.messages.isEmpty else { return rest(route) }
            (carrier ?? channels).carry(Delivery(route: route, messages: page.messages)) { [weak self] result in
                self?.delivered(route, page, sending.closings, result)
            }
        } catch {
            guard error.code != .closed else { return }
            later(route, sending.closings, ChannelError(error))
        }
    }

    private func delivered(_ route: Route, _ page: MessageRows.Page, _ closings: UInt64, _ result: Result<Void, ChannelError>) {
        // For any reason: the closed log may be another node's. If it is this node's, the next read fails.
        if case .failure(let error) = result { return later(route, closings, error) }
        let sequences = page.messages.map(\.sequence)
        let isCurrent = state.withLock { state in
            guard state.routes[route]?.closings == closings else { return false }
            state.routes[route]!.next = sequences.last! + 1
            state.routes[route]!.failures = 0
            return true
        }
        guard isCurrent else { return }
        // Refused, they are sent again when the partition is opened the next time, and do nothing.
        channels?.submit(.forget(MessageRemoval(route: route, sequences: sequences)))
        if page.isWhole { rest(route) } else { look(route) }
    }

    /// Nothing is left to send, unless something came while that was found out.
    private func rest(_ route: Route) {
        let isAgain = state.withLock { $0.routes[route]?.rests() == false }
        if isAgain { look(route) }
    }

    /// Sends them again after a pause: the partition has no owner at this moment, or one that cannot be reached; or something about them is damaged,
    /// which holds up those behind them, is logged once, and is tried less and less often.
    private func later(_ route: Route, _ closings: UInt64, _ error: ChannelError) {
        let isDamage = error.code == LogError.Code.damaged.text
        let failures = state.withLock { state -> Int? in
            guard state.routes[route]?.closings == closings else { return nil }
            state.routes[route]!.phase = .pausing
            if isDamage { state.routes[route]!.failures += 1 }
            return state.routes[route]!.failures
        }
        guard let failures else { return }
        if isDamage, failures == 1 {
            Diagnostics.log(
                .error, "messages between partitions wait for what cannot be read",
                ["from": "\(route.source)", "to": "\(route.destination)", "reason": error.message])
        }
        world.schedule(at: world.now.advanced(by: Messages.pause(after: failures))) { [weak self] in self?.resume(route) }
    }

    private static func pause(after failures: Int) -> Duration { .milliseconds(200 << min(max(failures - 1, 0), 6)) }

    private func resume(_ route: Route) {
        let isPausing = state.withLock { state in
            guard state.routes[route]?.phase == .pausing else { return false }
            state.routes[route]!.phase = .busy
            return true
        }
        if isPausing { look(route) }
    }
}

extension Messages.Sending {
    /// - Returns: whether no read of them has begun.
    fileprivate mutating func isCalled() -> Bool {
        switch phase {
        case .idle:
            phase = .busy
            return true
        case .busy: phase = .busyAgain
        // They are looked for soon.
        case .busyAgain, .pausing: break
        }
        return false
    }

    /// - Returns: false when there may be more.
    fileprivate mutating func rests() -> Bool {
        guard phase == .busy else { return false }
        phase = .idle
        return true
    }
}

/// Brings messages to the owner of the partition that they are for.
package protocol MessageCarrier: AnyObject, Sendable {
    /// - Parameter taken: Called once, on any thread: the owner has taken them, durably; or it is not known that it has, and they come again.
    func carry(_ delivery: Delivery, taken: @escaping @Sendable (Result<Void, ChannelError>) -> Void)
}

extension Channels: MessageCarrier {
    package func carry(_ delivery: Delivery, taken: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        submit(.deliver(delivery)) { taken($0.map { _ in }) }
    }
}

extension Messages: PartitionObserver {
    package func prepare(_ partition: UInt16) throws(LogError) -> @Sendable () -> Void {
        let routes = try routes(from: partition)
        return { [self] in
            for route in routes { send(route) }
            // The messages that wait for the owner of this partition.
            for route in state.withLock({ $0.routes.keys.filter { $0.destination == partition }.sorted() }) { resume(route) }
        }
    }

    package func partitionClosed(_ partition: UInt16) {
        given[partition] = nil
        posted = posted.filter { $0.source != partition }
        state.withLock { state in
            state.closings[partition, default: 0] += 1
            for route in state.routes.keys where route.source == partition { state.routes[route] = nil }
        }
    }
}
