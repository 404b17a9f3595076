/// Everything the channels and the agents take from outside: time, randomness and where work runs.
///
/// The running server uses threads and the system clock; a simulated world runs the same code on one thread, skips time and decides every order from
/// a seed. Commits are the other half of the seam: `CommitLog` in ParleyLog.
package protocol World: AnyObject, Sendable {
    /// Wall-clock time. It may step back; code that needs order takes the maximum with what came before.
    var now: Timestamp { get }

    /// 64 random bits: from the system, or from the seed in a simulation.
    func random() -> UInt64

    /// Calls `work` once, at or after `instant`, on a thread of the world's; never inside this call. If the clock is set back meanwhile, `work` is
    /// called when it would have been without that.
    @discardableResult
    func schedule(at instant: Timestamp, _ work: @escaping @Sendable () -> Void) -> any Scheduled

    /// Runs `work` soon, off the caller's stack. Pieces with the same `lane` run one at a time, in the order given.
    ///
    /// It is for work that does not block. Work that blocks its thread nevertheless holds up its own lane only.
    func perform(lane: UInt64, _ work: @escaping @Sendable () -> Void)

    /// Runs `work` soon, on a thread that it may block, in parallel with everything else.
    ///
    /// - Parameter owner: Whose work it is: the owners take turns, and none gets all threads.
    func perform(blocking use: BlockingUse, for owner: UInt64, _ work: @escaping @Sendable () -> Void)
}

/// The uses of blocking threads: each has threads of its own, so that none waits for another.
package enum BlockingUse: Sendable, CaseIterable {
    /// A read of the log that a caller waits for.
    case read
    /// The body of a step: the author's own code.
    case body
}

/// A piece of work that waits for its instant.
package protocol Scheduled: Sendable {
    /// Takes the work back; without effect once it has begun.
    func cancel()
}
