internal import Glibc
internal import ParleySystem
internal import Synchronization

/// Something that wants to be in the log: staged by the writer, then told once how it went.
package protocol Submission: AnyObject, Sendable {
    /// The partition that it is for; where this process does not own that, it is not staged and fails. `nil`: for none.
    var partition: UInt16? { get }

    /// About how many bytes of memory it holds while it waits; counts against ``GroupCommit/Limits/queuedBytes``.
    var cost: Int { get }

    /// Whether a client or a program waits for it. Otherwise it is committed with the next urgent submission, at the latest after ``CommitTurn/pause``.
    var isUrgent: Bool { get }

    /// Writer thread. Checks preconditions against what is staged so far, and adds what it writes; may add nothing.
    ///
    /// When it throws, what it staged is taken back and it is told ``failed(_:)`` in its turn; the others of the commit go on.
    func stage(into stage: inout Stage) throws(LogError)

    /// Writer thread, after the commit in which it was staged is durable, in submission order; also when it added nothing.
    func committed()

    /// Writer thread, in submission order. It could not be staged (and wrote nothing), or the log has failed, as a whole or for a partition that
    /// it concerns: then nothing of it may be assumed durable, nor lost.
    func failed(_ error: LogError)
}

extension Submission {
    package var partition: UInt16? { nil }
    package var isUrgent: Bool { true }
}

/// The one writer of a log: collects what many threads submit while the last commit syncs, and commits it with one sync.
///
/// Every submission that was taken is told exactly once, `committed` or `failed`. A failed commit is never retried, because after
/// a failed `fdatasync` nobody can know what is on disk: everything that waits fails, and so does everything that comes later.
///
/// Batches of all partitions share one sync. A partition that the log takes nothing for any more is lost alone: what concerns it fails, the rest
/// continues.
///
/// The *writer* is the thread that has the turn (``CommitTurn``): the log's own or, when next to nothing waits, that of the event loop or lane which
/// has submitted it. So a client or an agent that is alone pays for no switch of threads. Only the log's own waits for a slow disk.
package final class GroupCommit: @unchecked Sendable {  // Guard: `carried` and `ownership` belong to the writer, one thread at a time.
    /// Bounds of the queue and of one commit.
    package struct Limits: Sendable {
        /// Submissions taken and not yet settled; more are refused.
        package var queuedSubmissions = 100_000
        /// Sum of the `cost` of those.
        package var queuedBytes = 256 << 20
        /// Submissions of one commit. Batches of 10,000 made those at the head of the queue wait 20 to 40 ms.
        package var commitSubmissions = 5_000
        /// Bytes after which a commit takes no further submission; a single larger one still goes through.
        package var commitBytes = 4 << 20

        package init() {}
    }

    /// What the writer has done since it was made.
    package struct Counters: Sendable {
        package var commits = 0
        package var submissions = 0
        /// Bytes of the batches that were committed.
        package var bytes = 0
        /// Time spent in ``CommitLog/commit(_:)``, which is nearly all waiting for the disk.
        package var commitNanoseconds = 0
    }

    private struct Queued {
        let submission: any Submission
        let cost: Int  // As it was when the submission was taken, so that the sum comes back to zero.
    }

    private struct State {
        var queue: [Queued] = []
        var turn = CommitTurn()
        /// Submissions taken and not yet settled, and the sum of their costs.
        var unsettled = 0
        var unsettledBytes = 0
        var hooks: [@Sendable () -> Void] = []
        var finishers: [@Sendable (inout Stage) -> Void] = []
        var losers: [@Sendable (_ failures: [UInt16: LogError]) -> Void] = []
        var stopping = false
        var failure: LogError?
        var thread: SystemThread?

        /// Nothing more is taken.
        var isEnding: Bool { stopping || failure != nil }
    }

    private let log: any CommitLog
    private let limits: Limits
    private let onFailure: @Sendable (LogError) -> Void
    private let state = Monitor(State())
    /// What the writer has taken from the queue and not yet staged, the next one last. What the bounds of one commit leave here
    /// goes first in the next.
    private var carried: [Queued] = []
    private var ownership = PartitionOwnership()

    private let commits = Atomic(0)
    private let submissions = Atomic(0)
    private let bytes = Atomic(0)
    private let commitNanoseconds = Atomic(0)

    /// - Parameter onFailure: Called once, on the writer thread, when the log has failed and everything that waited has been told.
    package init(log: any CommitLog, limits: Limits = Limits(), onFailure: @escaping @Sendable (LogError) -> Void = { _ in }) {
        self.log = log
        self.limits = limits
        self.onFailure = onFailure
    }

    /// Takes a submission. Thread-safe; returns at once.
    ///
    /// - Throws: ``LogError`` with code `log_overloaded` (the queue is full, trying again later is safe) or `log_closed`. When it
    ///   throws, the submission was not taken and none of its methods is ever called.
    ///
    /// - Parameter isBounded: false takes it however full the queue is: for those whose number is bounded by other means, and who could
    ///   not go on without.
    package func submit(_ submission: any Submission, isBounded: Bool = true) throws(LogError) {
        let (cost, isUrgent) = (submission.cost, submission.isUrgent)
        let leads = isUrgent && EndOfWork.add(self)
        let next: Result<CommitTurn.Action, LogError> = state.withLock { state in
            if let refusal = refusal(of: cost, isBounded, state) { return .failure(refusal) }
            state.queue.append(Queued(submission: submission, cost: cost))
            state.unsettled += 1
            state.unsettledBytes += cost
            return .success(state.turn.submitted(isUrgent: isUrgent, leads: leads))
        }
        if try next.get() == .signal { state.signal() }
    }

    private func refusal(of cost: Int, _ isBounded: Bool, _ state: State) -> LogError? {
        if let failure = state.failure { return LogError(.closed, "the log has failed before: \(failure.message)") }
        if state.stopping { return LogError(.closed, "the log is closing") }
        // An empty queue takes anything: otherwise what is larger than the bound could never be written.
        let full = state.unsettled >= limits.queuedSubmissions || state.unsettledBytes + cost > limits.queuedBytes
        guard full && isBounded && state.unsettled > 0 else { return nil }
        return LogError(.overloaded, "\(state.unsettled) submissions (\(state.unsettledBytes) bytes) wait for the disk; try again later")
    }

    /// Has `finisher` called on the writer thread when a commit takes no further submission, to add what its submissions share.
    package func beforeCommit(_ finisher: @escaping @Sendable (inout Stage) -> Void) {
        state.withLock { $0.finishers.append(finisher) }
    }

    /// Has `loser` called on the writer thread when the log took nothing for some partitions, before anybody who is concerned is told.
    package func whenLost(_ loser: @escaping @Sendable (_ failures: [UInt16: LogError]) -> Void) {
        state.withLock { $0.losers.append(loser) }
    }

    /// Which partitions this process owns from the start, without having acquired them: all, unless it is said before the writer starts.
    package func own(_ partitions: PartitionSet) { ownership = PartitionOwnership(partitions) }

    /// Has `hook` called on the writer thread after each commit, once all its submissions were told: to wake loops once per commit.
    package func afterCommit(_ hook: @escaping @Sendable () -> Void) {
        state.withLock { $0.hooks.append(hook) }
    }

    /// Starts the writer's thread. Call it once, or not at all and use ``pump()``.
    package func start() {
        let thread = SystemThread(name: "log-writer") {
            repeat { self.waitForTurn() } while self.commitInTurn() > 0 || !self.isEnding
        }
        state.withLock { $0.thread = thread }
    }

    /// Refuses new submissions, commits those that were taken, and ends the writer's thread. Not on the writer's thread.
    package func stop() {
        let thread = state.withLock(signal: true) { state in
            state.stopping = true
            defer { state.thread = nil }
            return state.thread
        }
        if let thread { thread.join() } else { while pump() {} }
    }

    package var counters: Counters {
        Counters(
            commits: commits.load(ordering: .relaxed), submissions: submissions.load(ordering: .relaxed),
            bytes: bytes.load(ordering: .relaxed), commitNanoseconds: commitNanoseconds.load(ordering: .relaxed))
    }

    /// Submissions taken and not yet settled.
    package var queued: Int { state.withLock { $0.unsettled } }
}

// MARK: - The writer

extension GroupCommit {
    /// Runs one commit on the caller's thread, when no thread was started: for simulations and tests.
    /// - Returns: Whether there was anything to do.
    @discardableResult
    package func pump() -> Bool { commitNext() > 0 }

    /// - Returns: how many submissions it had.
    private func commitNext() -> Int {
        if carried.count < limits.commitSubmissions { takeQueue() }
        guard !carried.isEmpty else { return 0 }
        var stage = Stage(log: log, ownership: ownership)
        var staged: [Staged] = []
        do throws(LogError) {
            try fill(&stage, &staged)
            for finisher in state.withLock({ $0.finishers }) { finisher(&stage) }
            ownership = stage.ownership
            lose(try commit(stage.finish()), &staged)
        } catch {
            fail(staged, error)
            return staged.count
        }
        settle(staged)
        return staged.count
    }

    private struct Staged {
        let queued: Queued
        var error: LogError?
        let concerned: PartitionSet
    }

    private func takeQueue() {
        var queue: [Queued] = []
        state.withLock { state in
            swap(&queue, &state.queue)
            state.turn.tookQueue()
        }
        carried = queue.reversed() + carried
    }

    /// Stages what the bounds of one commit allow.
    private func fill(_ stage: inout Stage, _ staged: inout [Staged]) throws(LogError) {
        while staged.count < limits.commitSubmissions, stage.bytes < limits.commitBytes, let next = carried.popLast() {
            do throws(LogError) {
                if let partition = next.submission.partition { try stage.concern(partition) }
                try next.submission.stage(into: &stage)
                staged.append(Staged(queued: next, error: nil, concerned: stage.concerned))
                stage.keep()
            } catch {
                stage.rollBack()
                staged.append(Staged(queued: next, error: error, concerned: PartitionSet()))
                // The log itself is gone, and not only a value of it: nothing staged here could be committed.
                if error.code == .closed || error.code == .writeFailed { throw error }
            }
        }
    }

    private func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] {
        guard !batches.isEmpty else { return [:] }
        let start = GroupCommit.nanoseconds
        let failures = try log.commit(batches)
        commitNanoseconds.add(GroupCommit.nanoseconds - start, ordering: .relaxed)
        commits.add(1, ordering: .relaxed)
        bytes.add(batches.reduce(0) { $0 + $1.bytes.count }, ordering: .relaxed)
        return failures
    }

    /// Fails what concerns partitions that the log took nothing for.
    private func lose(_ failures: [UInt16: LogError], _ staged: inout [Staged]) {
        guard !failures.isEmpty else { return }
        for partition in failures.keys { ownership.close(partition) }
        for loser in state.withLock({ $0.losers }) { loser(failures) }
        for index in staged.indices where staged[index].error == nil {
            staged[index].error = failures.sorted { $0.key < $1.key }.first { staged[index].concerned.contains($0.key) }?.value
        }
    }

    private func settle(_ staged: [Staged]) {
        submissions.add(staged.count, ordering: .relaxed)
        for entry in staged {
            if let error = entry.error { entry.queued.submission.failed(error) } else { entry.queued.submission.committed() }
        }
        let hooks = state.withLock { state in
            state.unsettled -= staged.count
            for entry in staged { state.unsettledBytes -= entry.queued.cost }
            return state.hooks
        }
        for hook in hooks { hook() }
    }

    private func fail(_ staged: [Staged], _ error: LogError) {
        // First the door is shut, then the queue emptied: nothing can slip in between and wait for ever.
        state.withLock { state in
            state.failure = error
            state.unsettled = 0
            state.unsettledBytes = 0
        }
        takeQueue()
        for entry in staged { entry.queued.submission.failed(entry.error ?? error) }
        while let next = carried.popLast() { next.submission.failed(error) }
        onFailure(error)
    }

    fileprivate static var nanoseconds: Int {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return now.tv_sec * 1_000_000_000 + now.tv_nsec
    }
}

// MARK: - Whose turn it is

extension GroupCommit: EndOfWork.Task {
    /// Commits what the caller's thread has submitted, if it is next to alone.
    package func workEnded() {
        let next = state.withLock { state in
            state.turn.workEnded(queued: state.queue.count, mayLead: state.thread != nil && !state.isEnding)
        }
        switch next {
        case .commit: commitInTurn()
        case .signal: state.signal()
        case .nothing: break
        }
    }

    /// Commits, with the turn taken, and gives it back.
    /// - Returns: how many submissions there were.
    @discardableResult
    private func commitInTurn() -> Int {
        let start = GroupCommit.nanoseconds
        let count = commitNext()
        let isSlow = .nanoseconds(GroupCommit.nanoseconds - start) > CommitTurn.slow
        let next = state.withLock { state in
            let isForced = !carried.isEmpty || state.isEnding
            return state.turn.ended(count, isSlow: isSlow, isForced: isForced, isEmpty: state.queue.isEmpty)
        }
        if next == .signal { state.signal() }
        return count
    }

    /// Log's thread: waits until it is to commit, and takes the turn.
    private func waitForTurn() {
        while true {
            // Only this thread puts itself to sleep.
            let isAsleep = state.withLock { $0.turn.isAsleep }
            let next =
                state.wait(timeout: isAsleep ? nil : CommitTurn.pause) { $0.turn.next(isForced: $0.isEnding) }
                ?? state.withLock { $0.turn.next(isForced: $0.isEnding) ?? $0.turn.looked(isEmpty: $0.queue.isEmpty) }
            if next == .commit { return }
        }
    }

    private var isEnding: Bool { state.withLock { $0.isEnding } }
}
