internal import Synchronization

/// Counts the readers of one loop that did not keep up, by outcome.
final class ParkingCounters: Sendable {
    /// Parked now, and ever.
    private let now = Atomic(0)
    private let total = Atomic(0)
    private let settled = Atomic(0)
    /// The bytes that wait for all of them, as of the last look, which is a second ago at most.
    let unsentBytes = Atomic(0)

    func noted(_ isParked: Bool) {
        if isParked {
            now.add(1, ordering: .relaxed)
            total.add(1, ordering: .relaxed)
        } else {
            now.subtract(1, ordering: .relaxed)
        }
    }

    func notedSettled() { settled.add(1, ordering: .relaxed) }

    var parked: (now: Int, total: Int, settled: Int) {
        (now.load(ordering: .relaxed), total.load(ordering: .relaxed), settled.load(ordering: .relaxed))
    }
}
