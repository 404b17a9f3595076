internal import ParleySystem

/// A few threads for reads that may block on the disk, so that no loop waits for it.
///
/// Pieces of work start in the order they were given.
final class ReadPool: Sendable {
    private struct State {
        var work: [@Sendable () -> Void] = []
        /// The index of the next piece: taking from the front of an array would move the rest.
        var next = 0
        var isStopped = false
    }

    private let state = Monitor(State())
    private let threads: [SystemThread]
    private let queuedMax: Int

    /// - Parameter queuedMax: How many pieces may wait.
    init(threads count: Int = 2, queuedMax: Int) {
        self.queuedMax = queuedMax
        let state = state
        threads = (0..<count).map { number in
            SystemThread(name: "reader-\(number)") {
                while let work = state.wait({ ReadPool.take(&$0) }).flatMap({ $0 }) { work() }
            }
        }
    }

    /// Runs `work` on one of the threads.
    /// - Returns: false when too much waits already, or the pool has stopped: then it is not run.
    func run(_ work: @escaping @Sendable () -> Void) -> Bool {
        state.withLock(signal: true) { state in
            guard !state.isStopped, state.work.count - state.next < queuedMax else { return false }
            state.work.append(work)
            return true
        }
    }

    /// Ends the threads; waiting reads are dropped.
    func stop() {
        state.withLock(signalAll: true) { state in
            state.isStopped = true
            state.work = []
            state.next = 0
        }
        for thread in threads { thread.join() }
    }

    /// The next piece, `.some(nil)` when there will be none, `nil` to wait.
    private static func take(_ state: inout State) -> (@Sendable () -> Void)?? {
        if state.isStopped { return .some(nil) }
        guard state.next < state.work.count else { return nil }
        let work = state.work[state.next]
        state.next += 1
        if state.next == state.work.count {
            state.work.removeAll(keepingCapacity: true)
            state.next = 0
        } else if state.next >= 1_024 {
            state.work.removeFirst(state.next)
            state.next = 0
        }
        return .some(work)
    }
}
