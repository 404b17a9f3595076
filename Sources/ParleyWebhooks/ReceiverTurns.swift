internal import ParleySystem

/// Decides which subscription's wake is delivered next, so that a receiver that is slow holds up none of the others. Decides only.
///
/// Receivers that have something waiting take turns, and each gets its own in the order in which they came. One has at most
/// ``perReceiverMax`` calls in flight, and all together ``inFlightMax``.
struct ReceiverTurns {
    static let inFlightMax = 64
    static let perReceiverMax = 16

    private struct Receiver {
        var waiting = Fifo<String>()
        var inFlightCount = 0
        /// Whether it is in the queue for its turn.
        var isListed = false
    }

    private(set) var inFlightCount = 0
    /// The receivers that have something waiting or in flight.
    private var receivers: [String: Receiver] = [:]
    private var turns = Fifo<String>()

    /// The wake of a subscription waits for its receiver.
    mutating func add(_ id: String, for name: String) {
        receivers[name, default: Receiver()].waiting.append(id)
        list(name)
    }

    /// The subscription whose turn it is; its call is in flight from now on, until ``ended(for:)``.
    mutating func next() -> (id: String, receiver: String)? {
        guard inFlightCount < ReceiverTurns.inFlightMax, let name = turns.popFirst(), let id = receivers[name]?.waiting.popFirst()
        else { return nil }
        inFlightCount += 1
        receivers[name]!.inFlightCount += 1
        receivers[name]!.isListed = false
        list(name)
        return (id, name)
    }

    /// A call of the receiver is over.
    mutating func ended(for name: String) {
        inFlightCount -= 1
        receivers[name]!.inFlightCount -= 1
        list(name)
        if receivers[name]!.inFlightCount == 0, receivers[name]!.waiting.isEmpty { receivers[name] = nil }
    }

    /// Nothing waits any more.
    mutating func dropWaiting() {
        turns = Fifo()
        receivers = receivers.compactMapValues { $0.inFlightCount > 0 ? Receiver(inFlightCount: $0.inFlightCount) : nil }
    }

    private mutating func list(_ name: String) {
        let receiver = receivers[name]!
        guard !receiver.isListed, !receiver.waiting.isEmpty, receiver.inFlightCount < ReceiverTurns.perReceiverMax else { return }
        receivers[name]!.isListed = true
        turns.append(name)
    }
}
