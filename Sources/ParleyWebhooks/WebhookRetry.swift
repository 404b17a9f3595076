internal import ParleySystem

/// When a delivery that failed is tried again.
package struct WebhookRetry: Sendable {
    /// The pause after the first failure; each further one is twice as long.
    package var initialInterval = Duration.seconds(5)
    package var maximumInterval = Duration.seconds(3_600)
    /// The random part of a pause, by which it is shorter or longer, so that deliveries that failed together do not come back together.
    package var jitter = 0.2
    /// The longest pause that a receiver can ask for with Retry-After.
    package var retryAfterMax = Duration.seconds(86_400)
    /// A delivery is given up this long after its entry. At the end of that time there is one last attempt.
    package var givenUpAfter = Duration.seconds(3 * 86_400)

    package init() {}

    /// When to try again after `attempts` failures; `nil`: never.
    ///
    /// - Parameters:
    ///   - written: When the entry was.
    ///   - random: 64 random bits.
    func next(after attempts: UInt32, written: Timestamp, now: Timestamp, retryAfter: Duration?, random: UInt64) -> Timestamp? {
        let last = written.advanced(by: givenUpAfter)
        guard now < last else { return nil }
        var pause = initialInterval
        var doublings = attempts
        while doublings > 1, pause < maximumInterval {
            pause = pause * 2
            doublings -= 1
        }
        let chance = Double(random >> 11) / Double(UInt64(1) << 53)  // 0 to 1
        pause = min(pause, maximumInterval) * (1 + jitter * (2 * chance - 1))
        return min(last, now.advanced(by: max(pause, min(retryAfter ?? .zero, retryAfterMax))))
    }
}
