/// When a step that failed is tried again. It is the only layer that retries: models and tools below it do not.
public struct RetryPolicy: Sendable, Equatable {
    /// The pause after the first failure.
    public var initialInterval: Duration
    /// The factor from each pause to the next; at least 1.
    public var backoffCoefficient: Double
    /// No pause is longer, unless the other side asks for more (Retry-After), and then none is longer than ``longestPause``.
    public var maximumInterval: Duration
    /// How often the step is tried in all; at least 1. An attempt that the end of a process cut off is not counted.
    public var maximumAttempts: Int

    public init(
        initialInterval: Duration = .seconds(1), backoffCoefficient: Double = 2, maximumInterval: Duration = .seconds(60),
        maximumAttempts: Int = 4
    ) {
        self.initialInterval = initialInterval
        self.backoffCoefficient = backoffCoefficient
        self.maximumInterval = maximumInterval
        self.maximumAttempts = maximumAttempts
    }

    /// Four attempts, pauses of 1, 2 and 4 seconds.
    public static let standard = RetryPolicy()
    public static let never = RetryPolicy(maximumAttempts: 1)

    /// No pause is longer, whatever the other side asks for: a mistaken Retry-After would hold up the turn for days.
    public static let longestPause = Duration.seconds(900)

    /// The pause after the failure number `count` (from 1) of a step; `nil`: no further attempt. Interrupted attempts do not count as failures.
    func pause(after count: Int, _ failure: StepFailure) -> Duration? {
        guard failure.retryable, count < maximumAttempts else { return nil }
        return max(pause(after: count), min(failure.retryAfter ?? .zero, RetryPolicy.longestPause))
    }

    private func pause(after count: Int) -> Duration {
        let longest = max(.zero, maximumInterval)
        let coefficient = backoffCoefficient > 1 ? backoffCoefficient : 1
        var pause = min(max(.zero, initialInterval), longest)
        for _ in 1..<max(1, count) where pause > .zero && pause < longest {
            // Compared before it is multiplied: a product may be longer than a duration can be.
            guard pause / longest * coefficient < 1 else { return longest }
            let next = pause * coefficient
            guard next > pause else { break }
            pause = next
        }
        return pause
    }
}

/// The guarantee on a step's effect on the outside world.
public enum StepContract: String, Sendable {
    /// After a crash it may run again, with the same `idempotencyKey`.
    case atLeastOnce
    /// It never runs twice: after a crash in between, the step throws `outcome_unknown`.
    case atMostOnce
}

/// The context that a step's body receives.
public struct StepContext: Sendable {
    /// The same over all attempts: derived from channel, turn and step. Pass it to any service that must not act twice.
    public let idempotencyKey: String
    /// Rises with each activation of the agent: a service that remembers the highest can refuse a stale owner.
    public let fence: UInt64
    /// From 1.
    public let attempt: Int
}
