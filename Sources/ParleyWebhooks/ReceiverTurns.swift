internal import ParleySystem

/// Decides which subscription's wake is delivered next, so that a receiver that is slow holds up none of the others. Decides only.
///
/// Receivers that have something waiting take turns, and each gets its own in the order in which they came. One has at most
/// ``perReceiverMax`` calls in flight, and all together ``underWayMax``.
struct ReceiverTurns {
    static let underWayMax = 64
    static let perReceiverMax = 16

    private struct Receiver {
        var waiting = Fifo<String>()
        var underWay = 0
        /// Whether it is in the queue for its turn.
        var isListed = false
    }

    private(set) var underWay = 0
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
        guard underWay < ReceiverTurns.underWayMax, let name = turns.popFirst(), let id = receivers[name]?.waiting.popFirst()
        else { return nil }
        underWay += 1
        receivers[name]!.underWay += 1
        receivers[name]!.isListed = false
        list(name)
        return (id, name)
    }

    /// A call of the receiver is over.
    mutating func ended(for name: String) {
        underWay -= 1
        receivers[name]!.underWay -= 1
        list(name)
        if receivers[name]!.underWay == 0, receivers[name]!.waiting.isEmpty { receivers[name] = nil }
    }

    /// Nothing waits any more.
    mutating func dropWaiting() {
        turns = Fifo()
        receivers = receivers.compactMapValues { $0.underWay > 0 ? Receiver(underWay: $0.underWay) : nil }
    }

    private mutating func list(_ name: String) {
        let receiver = receivers[name]!
        guard !receiver.isListed, !receiver.waiting.isEmpty, receiver.underWay < ReceiverTurns.perReceiverMax else { return }
        receivers[name]!.isListed = true
        turns.append(name)
    }
}
