internal import Synchronization

/// How many calls there are at a time; the others wait for their place, in the order in which they came.
package final class CallSlots: Sendable {
    /// A place, or one's place in the queue.
    final class Ticket: Sendable {
        fileprivate let number: UInt64
        private let slots: CallSlots

        fileprivate init(_ number: UInt64, _ slots: CallSlots) { (self.number, self.slots) = (number, slots) }

        /// Gives the place back, or leaves the queue. Idempotent; may start the call that is next, on this thread.
        func leave() { slots.leave(number) }
    }

    private struct State {
        var next: UInt64 = 0
        var running: Set<UInt64> = []
        var waiting: [(number: UInt64, work: @Sendable () -> Void)] = []
        var isStarting = false
    }

    private let callsMax: Int
    private let waitingMax: Int
    private let state = Mutex(State())

    package init(callsMax: Int = 256, waitingMax: Int = 20_000) { (self.callsMax, self.waitingMax) = (callsMax, waitingMax) }

    /// Calls `work` once there is a place, perhaps inside this call; `nil` when too many wait already.
    func take(_ work: @escaping @Sendable () -> Void) -> Ticket? {
        let ticket: Ticket? = state.withLock { state in
            guard state.waiting.count < waitingMax else { return nil }
            state.next += 1
            state.waiting.append((state.next, work))
            return Ticket(state.next, self)
        }
        startNext()
        return ticket
    }

    private func leave(_ number: UInt64) {
        let wasRunning = state.withLock { state in
            if state.running.remove(number) != nil { return true }
            state.waiting.removeAll { $0.number == number }
            return false
        }
        if wasRunning { startNext() }
    }

    /// Starts the calls that there are slots for. A call that ends at once gives its slot back inside this loop, not inside itself.
    private func startNext() {
        guard
            state.withLock({ state in
                defer { state.isStarting = true }
                return !state.isStarting
            })
        else { return }
        while true {
            let work: (@Sendable () -> Void)? = state.withLock { state in
                guard state.running.count < callsMax, !state.waiting.isEmpty else {
                    state.isStarting = false
                    return nil
                }
                let first = state.waiting.removeFirst()
                state.running.insert(first.number)
                return first.work
            }
            guard let work else { return }
            work()
        }
    }
}
