/// What the subscriptions of a node have done since its start, and how much waits.
package struct SubscriptionCounters: Sendable, Equatable {
    package var subscriptions = 0
    /// Streams that may have something new behind a cursor; of each subscription ``pendingMax`` at most.
    package var pendingStreams = 0
    package var wakes = 0
    /// Wakes after one that failed.
    package var retries = 0
    /// Wakes that a webhook has taken, and attempts that failed; a lease that ends without an answer is one.
    package var delivered = 0
    package var failed = 0
    /// Wakes that a worker has claimed.
    package var claims = 0
    package var leasesExpired = 0

    package static var pendingMax: Int { Subscriptions.candidatesMax }

    /// Adds what one decision has done; how many there are and how much waits is not a matter of one.
    mutating func add(_ other: SubscriptionCounters) {
        wakes += other.wakes
        retries += other.retries
        delivered += other.delivered
        failed += other.failed
        claims += other.claims
        leasesExpired += other.leasesExpired
    }
}
