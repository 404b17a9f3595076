internal import ParleySystem

/// The streams of the current wake that have gone since it began, and their links with them: an acknowledgement of them moves nothing, and must not
/// keep those of other streams from counting.
struct GoneStreams {
    private var generation: UInt64
    private var names: Set<TextKey> = []
    /// Whether further streams may have been removed.
    private var isIncomplete: Bool

    /// No wake names more; some streams were named by wakes before.
    private static let namesMax = 4 * Subscriptions.streamsPerWakeMax

    /// The streams of a wake of the last process are unknown.
    init(_ subscription: Subscription) { (generation, isIncomplete) = (subscription.generation, subscription.wake != nil) }

    mutating func add(_ stream: String, _ generation: UInt64) {
        if generation != self.generation { (self.generation, names, isIncomplete) = (generation, [], false) }
        names.insert(stream)
        if names.count > GoneStreams.namesMax { (names, isIncomplete) = ([], true) }
    }

    /// Whether the wake of that generation may have named a stream that has gone.
    func contains(_ stream: String, _ generation: UInt64) -> Bool {
        generation == self.generation && (isIncomplete || names.contains(stream))
    }
}
