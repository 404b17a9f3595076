package import ParleyChannels
package import ParleyHTTP
package import ParleyLog
package import ParleySystem
internal import Synchronization

/// Delivers the rows of the outbox to a receiver, until each was taken with 2xx or is given up.
///
/// At least once: a row goes when its delivery has been answered, so a crash in between delivers again, with the same id. Rows are read
/// when their turn comes; memory holds ``DeliveryQueue`` and the attempts in flight.
package final class WebhookDelivery: OutboxObserver {
    package struct Counters: Sendable, Equatable {
        package var delivered = 0
        package var failedAttempts = 0
        package var givenUp = 0
        /// Rows that wait to be delivered, in the partitions that are open.
        package var pending = 0
    }

    private struct State {
        var queue = DeliveryQueue()
        var done = Counters()
        /// Rows that wait to be delivered, by partition.
        var pending: [UInt16: Int] = [:]
        var counters: Counters {
            var counters = done
            counters.pending = pending.values.reduce(0, +)
            return counters
        }
        var calls: [ChannelID: WebhookCall] = [:]
        /// Before this no scan is begun because of the time.
        var nextScan = Timestamp(milliseconds: 0)
        /// Rows the scan in flight has passed.
        var scannedRows = 0
        var health = ReceiverHealth()
        /// Before this, further dropped rows are not logged but counted.
        var nextReport = Timestamp(milliseconds: 0)
        var untold = 0
        var isWorkPending = false
        var isPaused = false
        var isStopped = false
    }

    private let configuration: WebhookConfiguration
    private let retry: WebhookRetry
    private let channels: Channels
    private let world: any World
    private let transport: any OutgoingTransport
    /// Everything that reads the log runs here, one at a time.
    private let lane: UInt64
    private let alarm: Alarm
    private let state = Mutex(State())

    /// - Parameter channels: Made with an outbox of the configuration's events.
    package init(
        _ configuration: WebhookConfiguration, channels: Channels, world: any World, transport: any OutgoingTransport,
        retry: WebhookRetry = WebhookRetry()
    ) {
        self.configuration = configuration
        self.retry = retry
        self.channels = channels
        self.world = world
        self.transport = transport
        lane = world.random()
        alarm = Alarm(world)
    }

    package var counters: Counters { state.withLock { $0.counters } }

    /// How many attempts are in flight.
    package var inFlightCount: Int { state.withLock { $0.queue.inFlight.count } }

    /// Counts what the last process left, and hears of new rows from now on. Call it before the writer starts. Cost: a visit of every row.
    package func prepare() throws(LogError) {
        for partition in channels.openPartitions.numbers {
            let rows = try count(partition)
            state.withLock { $0.pending[partition] = rows }
        }
        channels.outbox?.observe(self)
        channels.observePartitions(self)
    }

    private func count(_ partition: UInt16) throws(LogError) -> Int {
        var rows = 0
        try OutboxRow.scan(channels.log, in: PartitionSet([partition]), from: ChannelID(partition: partition, number: 0)) { _ in
            rows += 1
            return true
        }
        return rows
    }

    /// Continues with what the last process left.
    package func start() { wake() }

    /// Begins no attempt any more; those in flight continue until they end, see ``inFlightCount``, or the transport does.
    package func drain() {
        state.withLock { $0.isStopped = true }
        alarm.stop()
    }

    /// Breaks off what is in flight, too; it is delivered at the next start.
    package func stop() {
        drain()
        for call in state.withLock({ Array($0.calls.values) }) { call.cancel() }
    }

    // MARK: The outbox

    package func outboxCommitted(_ id: ChannelID, rows: Int) {
        state.withLock { state in
            state.pending[id.partition, default: 0] += rows
            state.queue.add(id)
        }
        wake()
    }

    package func outboxRemoved(_ id: ChannelID, rows: Int) { state.withLock { $0.pending[id.partition, default: 0] -= rows } }

    // MARK: Working

    private func wake() {
        let isNeeded = state.withLock { state in
            defer { state.isWorkPending = true }
            return !state.isWorkPending && !state.isStopped
        }
        if isNeeded { world.perform(lane: lane) { [weak self] in self?.work() } }
    }

    private func work() {
        let now = world.now
        state.withLock { $0.isWorkPending = false }
        while true {
            switch state.withLock({ $0.isStopped ? .nothing : $0.queue.next(now: now) }) {
            case .deliver(let id): begin(id)
            case .scan(let first, let count): guard scan(from: first, atMost: count, now) else { return }
            case .wait(let instant): return pause(until: instant)
            case .nothing: return
            }
        }
    }

    /// Begins to deliver the oldest row of a channel, if it is due.
    private func begin(_ id: ChannelID) {
        do throws(LogError) {
            guard channels.openPartitions.contains(id.partition), let row = try OutboxRow.first(of: id, in: channels.log) else {
                return state.withLock { $0.queue.dropped(id) }
            }
            guard row.due <= world.now else {
                state.withLock { $0.queue.dropped(id) }
                return ring(at: row.due)
            }
            do throws(LogError) {
                guard let message = try WebhookMessage(row, in: channels) else { return settle(row, .removed) }
                send(row, message)
            } catch  where error.code == .damaged {
                // It must not hold up the others, and will not mend itself.
                giveUp(row, reason: error.message)
            }
        } catch {
            unreadable(id, error)
        }
    }

    private func send(_ row: OutboxRow, _ message: WebhookMessage) {
        Failpoint.pass("webhook.attempt")
        let headers = WebhookSignature.headers(id: message.id, at: world.now, body: message.body, secrets: configuration.secrets)
        let call = WebhookCall(
            transport, world, url: configuration.url, headers: headers, body: message.body,
            addresses: configuration.allowsPrivate ? .any : .publicOnly
        ) { [self] outcome in
            world.perform(lane: lane) { self.ended(row, written: message.at, outcome) }
        }
        // On this lane, so before `ended`.
        state.withLock { $0.calls[row.channel] = call }
    }

    private func ended(_ row: OutboxRow, written: Timestamp, _ outcome: WebhookCall.Outcome) {
        state.withLock { $0.calls[row.channel] = nil }
        switch outcome {
        case .delivered:
            Failpoint.pass("webhook.delivered")
            if case .answersAgain(let count)? = state.withLock({ $0.health.delivered(configuration.origin) }) {
                Diagnostics.log(.info, "webhook answers again", ["receiver": configuration.origin, "failed_attempts": count])
            }
            settle(row, .delivered)
        case .gone: giveUp(row, reason: "status 410")
        case .failed(let reason, let retryAfter):
            var next = row
            next.attempts += 1
            let due = retry.next(
                after: next.attempts, written: written, now: world.now, retryAfter: retryAfter, random: world.random())
            guard let due else { return giveUp(next, reason: reason) }
            next.due = due
            report(next, reason)
            settle(next, .failed)
        }
    }

    /// Says so at most once a minute, and how many others there were: a receiver that is gone for good has many rows.
    private func giveUp(_ row: OutboxRow, reason: String) {
        let now = world.now
        let untold: Int? = state.withLock { state in
            guard now >= state.nextReport else {
                state.untold += 1
                return nil
            }
            state.nextReport = now.advanced(by: WebhookDelivery.reportInterval)
            defer { state.untold = 0 }
            return state.untold
        }
        if let untold {
            Diagnostics.log(
                .error, "webhook given up",
                [
                    "receiver": configuration.origin, "channel": name(row), "offset": Offset(row.offset), "attempts": max(1, row.attempts),
                    "reason": reason, "others_since": untold,
                ])
        }
        settle(row, .givenUp)
    }

    /// Says that the receiver has begun to fail: not for each of the rows that wait, nor for each attempt.
    private func report(_ row: OutboxRow, _ reason: String) {
        let now = world.now
        let (report, pending) = state.withLock { ($0.health.failed(configuration.origin, now), $0.counters.pending) }
        guard report == .fails else { return }
        Diagnostics.log(
            .warning, "webhook attempt failed",
            [
                "receiver": configuration.origin, "channel": name(row), "offset": Offset(row.offset), "reason": reason,
                "next_attempt": row.due, "pending": pending,
            ])
    }

    private static let reportInterval = Duration.seconds(60)

    private func name(_ row: OutboxRow) -> String {
        let found = try? channels.log.get(.channels, row.channel.key).flatMap { ChannelRow($0)?.name }
        return found ?? "\(row.channel.partition)/\(row.channel.number)"
    }

    // MARK: The fate of a row

    fileprivate enum Settlement { case delivered, failed, givenUp, removed }

    /// Writes what became of a row; only then is the channel's next one tried.
    private func settle(_ row: OutboxRow, _ settlement: Settlement) {
        var change: RowChange =
            settlement == .failed ? .put(.outbox, row.key, row.value, ifThere: true) : .delete(.outbox, row.key, ifThere: true)
        // The attempts in flight bound it.
        change.isBounded = false
        channels.submit(change) { [weak self] result in self?.settled(row, settlement, result) }
    }

    private func settled(_ row: OutboxRow, _ settlement: Settlement, _ result: Result<Bool, ChannelError>) {
        guard case .success(let wasThere) = result else {
            if case .failure(let error) = result { unwritten(row, error) }
            return
        }
        let now = world.now
        state.withLock { state in
            if wasThere, settlement != .failed { state.pending[row.channel.partition, default: 0] -= 1 }
            switch settlement {
            case .delivered:
                state.done.delivered += 1
                state.queue.delivered(row.channel)
            case .failed:
                state.done.failedAttempts += 1
                state.queue.failed(row.channel, now: now)
            case .givenUp:
                state.done.failedAttempts += 1
                state.done.givenUp += 1
                state.queue.failed(row.channel, now: now)
                state.queue.add(row.channel)
            case .removed:
                state.queue.dropped(row.channel)
                state.queue.add(row.channel)
            }
        }
        if settlement == .failed, wasThere { ring(at: row.due) }
        wake()
    }

    /// The row is as it was, and is delivered again.
    private func unwritten(_ row: OutboxRow, _ error: ChannelError) {
        state.withLock { $0.queue.dropped(row.channel) }
        guard error.code != LogError.Code.closed.text else { return drain() }
        // The new owner of the partition delivers it again.
        guard error.code != LogError.Code.partitionUnavailable.text else { return wake() }
        Diagnostics.log(.error, "outbox cannot be written", ["channel": name(row), "reason": error.message])
        ring(at: world.now.advanced(by: WebhookDelivery.afterError))
    }

    private func unreadable(_ id: ChannelID, _ error: LogError) {
        state.withLock { $0.queue.dropped(id) }
        unreadable(error)
    }

    private func unreadable(_ error: LogError) {
        guard error.code != .closed else { return drain() }
        Diagnostics.log(.error, "outbox cannot be read", ["reason": error.message])
        ring(at: world.now.advanced(by: WebhookDelivery.afterError))
    }

    private static let afterError = Duration.seconds(60)

    // MARK: Looking for what is due

    /// A scan begun because of the time lets so many rows pass a second at most: with very many that wait, each for another instant, nothing
    /// else would be done.
    private static let rowsScannedPerSecond = 10_000

    /// - Returns: false when the log cannot be read.
    private func scan(from first: ChannelID, atMost count: Int, _ now: Timestamp) -> Bool {
        var due: [ChannelID] = []
        var last: ChannelID?
        var (nextDue, next): (Timestamp?, ChannelID?) = (nil, nil)
        var rows = 0
        do throws(LogError) {
            try OutboxRow.scan(channels.log, in: channels.openPartitions, from: first) { row in
                rows += 1
                guard row.channel != last else { return true }  // Behind the oldest of its channel.
                if due.count == count {
                    next = row.channel
                    return false
                }
                last = row.channel
                if row.due <= now { due.append(row.channel) } else { nextDue = min(nextDue ?? row.due, row.due) }
                return true
            }
        } catch {
            unreadable(error)
            return false
        }
        state.withLock { state in
            state.scannedRows += rows
            if next == nil {
                let pause = max(.seconds(1), .seconds(state.scannedRows) / WebhookDelivery.rowsScannedPerSecond)
                state.nextScan = now.advanced(by: pause)
                state.scannedRows = 0
            }
            state.queue.scanned(due, upTo: next)
        }
        if let nextDue { ring(at: nextDue) }
        return true
    }

    /// Looks again at `instant`, or soon after.
    private func ring(at instant: Timestamp) {
        alarm.set(state.withLock { max(instant, $0.nextScan) }) { [weak self] in self?.rang() }
    }

    /// Continues with what is known at `instant`.
    private func pause(until instant: Timestamp) {
        let isNew = state.withLock { state in
            defer { state.isPaused = true }
            return !state.isPaused
        }
        guard isNew else { return }
        world.schedule(at: instant) { [weak self] in
            self?.state.withLock { $0.isPaused = false }
            self?.wake()
        }
    }

    private func rang() {
        state.withLock { $0.queue.scanAgain() }
        wake()
    }
}

extension WebhookDelivery: PartitionObserver {
    package func prepare(_ partition: UInt16) throws(LogError) -> @Sendable () -> Void {
        let rows = try count(partition)
        return { [self] in
            state.withLock { $0.pending[partition] = rows }
            rang()
        }
    }

    package func partitionClosed(_ partition: UInt16) { state.withLock { $0.pending[partition] = nil } }
}
