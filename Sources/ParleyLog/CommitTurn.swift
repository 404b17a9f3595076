/// Whose turn it is to commit: the log's own thread, or a thread that has submitted next to nothing and does it itself at the end of its work
/// (``EndOfWork``), which spares two switches of threads.
///
/// The thread that takes the turn is the writer until ``ended(_:isSlow:isForced:isEmpty:)``, and sees to it that later submissions are committed
/// next, so they wake no other thread. The log's thread looks at the queue every ``pause`` as long as it finds something. There it finds what can be
/// left for a moment: what is not urgent, or what its own thread is about to commit.
package struct CommitTurn: Sendable, Equatable {
    /// What is to be done now.
    package enum Action: Sendable {
        case nothing
        /// Commit: the turn has been taken.
        case commit
        /// Signal the log's thread.
        case signal
    }

    /// How often the log's thread looks at the queue while there is something to do.
    package static let pause = Duration.milliseconds(2)
    /// No more submissions than these are committed by the thread that submitted them: more are better left to the log's while others compute.
    package static let loneMax = 2
    /// A commit that takes longer is not one for an event loop to wait for, ...
    package static let slow = Duration.milliseconds(2)
    /// ... nor are the next ones.
    package static let reservedCommits = 16

    private var isTaken = false
    /// The log's thread is to commit as soon as it can.
    private var isCalled = false
    /// The log's thread waits until it is signalled.
    package private(set) var isAsleep = true
    /// Something was submitted since the log's thread last looked.
    private var isBusy = false
    /// The queue has something that a client or a program waits for.
    private var isUrgent = false
    private var lastCount = 0
    /// How many commits the log's thread makes before another may.
    private var reserved = 0

    package init() {}

    /// Something has come into the queue.
    ///
    /// - Parameters:
    ///   - isUrgent: A client or a program waits for it.
    ///   - leads: The thread that submitted it calls ``workEnded(queued:mayLead:)`` soon.
    package mutating func submitted(isUrgent: Bool, leads: Bool) -> Action {
        isBusy = true
        if isUrgent { self.isUrgent = true }
        guard !isTaken else { return .nothing }
        if isUrgent && !leads {
            isCalled = true
            return .signal
        }
        return isAsleep ? .signal : .nothing
    }

    /// The work of a thread that has submitted something has ended.
    ///
    /// - Parameter mayLead: The log's thread runs, and has left nothing over from its last commit.
    package mutating func workEnded(queued: Int, mayLead: Bool) -> Action {
        guard !isTaken, isUrgent, !isCalled else { return .nothing }
        if mayLead, queued <= CommitTurn.loneMax, lastCount <= CommitTurn.loneMax, reserved == 0 {
            isTaken = true
            return .commit
        }
        isCalled = true
        return .signal
    }

    /// The log's thread asks what it has to do, when it has been signalled or has nothing else to do.
    /// - Returns: `nil`: to wait. ``Action/nothing``: to ask again after ``pause``.
    package mutating func next(isForced: Bool) -> Action? {
        guard !isTaken else { return nil }
        if isCalled || isForced { return take() }
        guard isAsleep, isBusy else { return nil }
        isAsleep = false
        return .nothing
    }

    /// It has waited for ``pause``.
    package mutating func looked(isEmpty: Bool) -> Action {
        isAsleep = !isBusy
        isBusy = false
        return isTaken || isEmpty ? .nothing : take()
    }

    private mutating func take() -> Action {
        isTaken = true
        return .commit
    }

    /// The writer has taken everything from the queue.
    package mutating func tookQueue() { (isUrgent, isCalled) = (false, false) }

    /// The writer is done, and is it no more.
    ///
    /// - Parameters:
    ///   - count: How many submissions the writer has settled.
    ///   - isForced: The log's thread has something to do in any case.
    package mutating func ended(_ count: Int, isSlow: Bool, isForced: Bool, isEmpty: Bool) -> Action {
        isTaken = false
        lastCount = count
        reserved = isSlow ? CommitTurn.reservedCommits : max(0, reserved - 1)
        if isUrgent || isForced {
            isCalled = true
            return .signal
        }
        return isAsleep && !isEmpty ? .signal : .nothing
    }
}
