internal import Synchronization

/// One appointment with the world's clock: the earliest instant of those that were asked for.
///
/// For services that keep what is due in the log and need to know when to look next, however much of it there is.
package final class Alarm: Sendable {
    private struct State {
        var next: (instant: Timestamp, scheduled: any Scheduled)?
        /// How many appointments there were, so that one that fires while another takes its place is not mistaken for that.
        var count = 0
        var isStopped = false
    }

    private let world: any World
    private let state = Mutex(State())

    package init(_ world: any World) { self.world = world }

    /// Calls `ring` at `instant`; does nothing when an earlier one is waited for already, or after ``stop()``. A later instant has to be set again
    /// when it has rung. Thread-safe.
    package func set(_ instant: Timestamp, _ ring: @escaping @Sendable () -> Void) {
        state.withLock { state in
            guard !state.isStopped, state.next.map({ instant < $0.instant }) ?? true else { return }
            state.next?.scheduled.cancel()
            state.count += 1
            let number = state.count
            let scheduled = world.schedule(at: instant) { [weak self] in
                self?.state.withLock { if $0.count == number { $0.next = nil } }
                ring()
            }
            state.next = (instant, scheduled)
        }
    }

    /// Stops the alarm: it rings no more.
    package func stop() {
        state.withLock { state in
            state.isStopped = true
            state.next?.scheduled.cancel()
            state.next = nil
        }
    }
}
