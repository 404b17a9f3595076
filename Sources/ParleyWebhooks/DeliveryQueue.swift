package import ParleyChannels
package import ParleySystem

/// Decides which channel is delivered from next, in memory that is bounded however many rows wait. Decides only: time is passed in, and
/// what is to be done comes out.
///
/// Only the oldest row of a channel counts, and one attempt is in flight at a time: so a receiver gets a channel's entries in their order. Where more
/// channels wait than are remembered, the log is scanned for them.
package struct DeliveryQueue {
    package enum Step: Equatable {
        /// Deliver the oldest row of this channel, which is in flight from now on.
        case deliver(ChannelID)
        /// Look for channels with a row that is due, from this one on, and tell ``scanned(_:upTo:)``.
        case scan(from: ChannelID, atMost: Int)
        /// Ask again at this instant.
        case wait(until: Timestamp)
        case nothing
    }

    /// Attempts at once, over all channels.
    package static let inFlightMax = 16
    /// Channels remembered.
    package static let readyMax = 1_024
    /// A receiver that has failed so often in a row gets one attempt a second until one succeeds: however many rows wait, a receiver that
    /// is down or overwhelmed is not overrun by them.
    package static let failuresMax = 32
    package static let failingPause = Duration.seconds(1)

    package private(set) var inFlight: Set<ChannelID> = []
    package private(set) var failuresInARow = 0
    /// In the order in which they came; the ones before `firstReady` are taken.
    private var ready: [ChannelID] = []
    private var firstReady = 0
    private var known: Set<ChannelID> = []
    /// Added while they were in flight.
    private var addedMeanwhile: Set<ChannelID> = []
    private var scan = Scan.from(ChannelID(partition: 0, number: 0))
    /// A channel was not remembered since the scan in flight began; it may lie behind.
    private var isMissing = false
    private var lastFailure = Timestamp(milliseconds: 0)

    private enum Scan: Equatable {
        case none
        case from(ChannelID)
    }

    /// Begins with a scan: nothing is known of what the last process left.
    package init() {}

    /// A channel may have a row that is due.
    package mutating func add(_ id: ChannelID) {
        guard !inFlight.contains(id) else {
            // Its row may have come after the delivery in flight has looked.
            addedMeanwhile.insert(id)
            return
        }
        guard !known.contains(id) else { return }
        guard known.count < DeliveryQueue.readyMax else { return scanAgain() }
        known.insert(id)
        ready.append(id)
    }

    /// Rows that waited may be due.
    package mutating func scanAgain() {
        if scan == .none { scan = .from(ChannelID(partition: 0, number: 0)) } else { isMissing = true }
    }

    package mutating func next(now: Timestamp) -> Step {
        guard inFlight.count < DeliveryQueue.inFlightMax else { return .nothing }
        if failuresInARow >= DeliveryQueue.failuresMax, firstReady < ready.count || scan != .none {
            guard inFlight.isEmpty else { return .nothing }
            let instant = lastFailure.advanced(by: DeliveryQueue.failingPause)
            // A clock that was set back must not make this long.
            if now < instant, now >= lastFailure { return .wait(until: instant) }
        }
        if firstReady < ready.count {
            let id = takeReady()
            inFlight.insert(id)
            return .deliver(id)
        }
        if case .from(let id) = scan { return .scan(from: id, atMost: DeliveryQueue.readyMax / 4) }
        return .nothing
    }

    /// Takes the findings of a scan, and where it stopped; `nil`: it has reached the end.
    package mutating func scanned(_ ids: [ChannelID], upTo next: ChannelID?) {
        if let next {
            scan = .from(next)
        } else {
            scan = .none
            if isMissing { scanAgain() }
            isMissing = false
        }
        for id in ids { add(id) }
    }

    /// The delivery in flight is over. The channel may have another row that is due.
    package mutating func delivered(_ id: ChannelID) {
        failuresInARow = 0
        end(id)
        add(id)
    }

    /// The oldest row of the channel waits now, or was given up.
    package mutating func failed(_ id: ChannelID, now: Timestamp) {
        failuresInARow += 1
        lastFailure = now
        end(id)
    }

    /// There was nothing to deliver after all.
    package mutating func dropped(_ id: ChannelID) { end(id) }

    private mutating func end(_ id: ChannelID) {
        inFlight.remove(id)
        if addedMeanwhile.remove(id) != nil { add(id) }
    }

    private mutating func takeReady() -> ChannelID {
        let id = ready[firstReady]
        firstReady += 1
        if firstReady == ready.count {
            ready.removeAll(keepingCapacity: true)
            firstReady = 0
        } else if firstReady > DeliveryQueue.readyMax {
            ready.removeFirst(firstReady)
            firstReady = 0
        }
        known.remove(id)
        return id
    }
}
