/// What a client or the node asks of a subscription.
package enum SubscriptionRequest: Sendable {
    /// Creates the subscription, or confirms that it exists with the same configuration.
    ///
    /// With a page: links the last of its streams, which completes it.
    case put(SubscriptionConfiguration, root: String, SubscriptionMaking.Page? = nil)
    /// Links streams of a subscription that is being made.
    case link(SubscriptionMaking.Page)
    /// Removes the links of a subscription whose creation has failed.
    case unmake(UInt64?)
    case delete
    /// Links streams by name, from their tails on.
    case add([String])
    /// Removes what links a stream by name.
    case remove(String)
    /// A worker claims the wake.
    case claim(worker: String)
    /// The same, after it has waited for a scan of the links.
    case claimAgain(worker: String)
    /// The holder of the wake has processed something, or is still working.
    case acknowledge(SubscriptionProof, [SubscriptionAck], isDone: Bool, isCallback: Bool)
    /// The holder of the wake releases it.
    case release(SubscriptionProof)
    /// The webhook has taken the wake; with `done` it has processed it.
    case delivered(wakeID: String, done: [SubscriptionAck]?)
    /// The webhook could not be told of the wake.
    case failed(wakeID: String)
    /// Checks for news, and for what is due.
    case look
    /// The same, called by the alarm.
    case ring
    /// Its links have been scanned.
    case scanned(SubscriptionScan.Outcome)
    /// Removes links of streams that have gone.
    case sweep([String])
}

/// Proves that a request comes from the holder of a wake.
package struct SubscriptionProof: Sendable {
    package var token: String
    package var wakeID: String
    package var generation: UInt64

    package init(token: String, wakeID: String, generation: UInt64) {
        (self.token, self.wakeID, self.generation) = (token, wakeID, generation)
    }
}

/// A stream has been processed up to that offset, the entry of the offset included.
package struct SubscriptionAck: Sendable {
    package var stream: String
    package var offset: UInt64

    package init(stream: String, offset: UInt64) { (self.stream, self.offset) = (stream, offset) }
}

package enum SubscriptionAnswer: Sendable {
    case created(Subscription)
    case confirmed(Subscription)
    case claimed(Subscription, SubscriptionWake, token: String, streams: [SubscriptionStream])
    case acknowledged(nextWake: Bool)
    case done
}
