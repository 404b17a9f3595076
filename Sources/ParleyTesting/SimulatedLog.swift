package import ParleyLog
package import ParleySystem
internal import Synchronization

/// A log in memory whose every commit can end in any way that a crash allows, and which can be opened again afterwards.
///
/// After a crash or a failure every call throws `log_closed`, as it would of a process that is gone; ``reopen(readError:outcome:)``
/// gives the log that the next process finds.
package final class SimulatedLog: CommitLog {
    /// How a commit ends.
    package enum Outcome: Sendable {
        /// Durable, and the caller is told.
        case acknowledged
        /// Crash before anything was handed to the disk.
        case notSubmitted
        /// Crash after it was handed over; nothing of it was durable yet.
        case lost
        /// Crash after some of the batches, by index, were durable. A batch is atomic.
        case durable(batches: Set<Int>)
        /// Crash after all was durable and before any submitter was told.
        case durableUnacknowledged
        /// The disk fails the write; the process continues, but the log does not.
        case failed(LogError)
    }

    /// Decides on the commit with this number, from 0.
    package typealias Decision = @Sendable (_ commit: Int, _ batches: [Batch]) -> Outcome
    /// An error to throw for a read of the key, or of the range that begins there.
    package typealias ReadError = @Sendable (_ family: Family, _ key: Bytes) -> LogError?

    private struct State {
        var commits = 0
        var crashed = false
        /// Why every call throws.
        var ended: LogError?
    }

    /// The durable content, which several processes may share.
    private final class Store: Sendable {
        let contents: Mutex<MemoryContents>
        init(_ contents: MemoryContents) { self.contents = Mutex(contents) }
    }

    private let store: Store
    private let state = Mutex(State())
    private let other = Mutex<(@Sendable () -> Void)?>(nil)
    private let outcome: Decision
    private let readError: ReadError

    /// An empty log.
    package convenience init(readError: @escaping ReadError = { _, _ in nil }, outcome: @escaping Decision = { _, _ in .acknowledged }) {
        self.init(Store(MemoryContents()), readError, outcome)
    }

    private init(_ store: Store, _ readError: @escaping ReadError, _ outcome: @escaping Decision) {
        self.store = store
        self.readError = readError
        self.outcome = outcome
    }

    /// The log of the next process: everything durable, in a log that works again. Its commits count from 0.
    package func reopen(
        readError: @escaping ReadError = { _, _ in nil }, outcome: @escaping Decision = { _, _ in .acknowledged }
    ) -> SimulatedLog {
        SimulatedLog(Store(store.contents.withLock { $0 }), readError, outcome)
    }

    /// The same log as another process sees it, at the same time: as a replicated log, it continues when one of them ends, and the process that
    /// acquired a partition last owns it.
    package func shared(
        readError: @escaping ReadError = { _, _ in nil }, outcome: @escaping Decision = { _, _ in .acknowledged }
    ) -> SimulatedLog {
        SimulatedLog(store, readError, outcome)
    }

    /// Calls `other` in each commit, before anything of it is durable and again before the writer is told: it stands for the work of other threads.
    package func meanwhile(_ other: @escaping @Sendable () -> Void) { self.other.withLock { $0 = other } }

    /// Whether a commit ended in a crash.
    package var crashed: Bool { state.withLock { $0.crashed } }

    /// Commits so far, however they ended.
    package var commits: Int { state.withLock { $0.commits } }

    @discardableResult
    package func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] {
        let other = other.withLock { $0 }
        other?()
        let failures = try settle(batches)
        other?()
        return failures
    }

    package func acquire(_ partition: UInt16) throws(LogError) -> UInt64 {
        if let ended = state.withLock({ $0.ended }) { throw ended }
        return store.contents.withLock { $0.acquire(partition) }
    }

    private func settle(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] {
        let number = try state.withLock { state throws(LogError) in
            if let ended = state.ended { throw ended }
            defer { state.commits += 1 }
            return state.commits
        }
        // Asked outside the lock: the decision may look into the log.
        let outcome = outcome(number, batches)
        let failures = store.contents.withLock { contents in
            var failures: [UInt16: LogError] = [:]
            for (index, batch) in batches.enumerated() where outcome.makesDurable(index) {
                failures[batch.partition] = contents.take(batch)
            }
            return failures
        }
        return try state.withLock { state throws(LogError) in
            switch outcome {
            case .acknowledged: return failures
            case .failed(let error):
                state.ended = LogError(.closed, "the log has failed before: \(error.message)")
                throw error
            case .notSubmitted, .lost, .durable, .durableUnacknowledged:
                let crash = LogError(.closed, "simulated crash at commit \(number): \(outcome)")
                state.crashed = true
                state.ended = crash
                throw crash
            }
        }
    }

    package func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? {
        try snapshot(family, key).get(family, key)
    }

    package func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(LogError) {
        try snapshot(family, lower).scan(family, from: lower, to: upper, reversed: reversed, visit)
    }

    package func close() { state.withLock { $0.ended = $0.ended ?? LogError(.closed, "the simulated log has been closed") } }

    private func snapshot(_ family: Family, _ key: Bytes) throws(LogError) -> MemoryContents {
        if let error = readError(family, key) { throw error }
        if let ended = state.withLock({ $0.ended }) { throw ended }
        return store.contents.withLock { $0 }
    }
}

extension SimulatedLog.Outcome {
    fileprivate func makesDurable(_ batch: Int) -> Bool {
        switch self {
        case .acknowledged, .durableUnacknowledged: true
        case .notSubmitted, .lost, .failed: false
        case .durable(let batches): batches.contains(batch)
        }
    }
}
