internal import ParleySystem

/// Which streams of a subscription may have something new, in bounded memory. What does not fit is found in its links (``SubscriptionScan``).
///
/// Wakes take turns among the streams: each begins behind the last stream that the wake before has named, and continues at the first name.
struct SubscriptionNews: Equatable {
    /// Streams that may have something new.
    private(set) var candidates: Set<TextKey> = []
    /// Whether further streams may have news, which only the links tell.
    private(set) var isIncomplete = true
    private(set) var isScanning = false
    /// The streams of the next wake, in order, when more have something new than are remembered; `nil`: the links have to be scanned for them.
    private var next: [String]?
    /// The last stream that a wake has named.
    private var last: TextKey?
    /// A stream found no room since the scan began, which may have passed it.
    private var hasOverflown = false

    /// Whether the streams of the next wake can be told without a scan.
    var isNextKnown: Bool { !isIncomplete || next != nil }

    /// All candidates, beginning behind the last stream that was named.
    var inTurn: [String] {
        let sorted = candidates.sorted()
        guard let last else { return sorted.map(\.text) }
        let start = sorted.firstIndex { last < $0 } ?? 0
        return (sorted[start...] + sorted[..<start]).map(\.text)
    }

    /// Those that the next wake can name, in order. Requires ``isNextKnown``.
    var nextInTurn: [String] { isIncomplete ? next ?? [] : inTurn }

    mutating func add(_ stream: String) {
        let key = TextKey(stream)
        if candidates.count < Subscriptions.candidatesMax || candidates.contains(key) {
            candidates.insert(key)
        } else {
            (isIncomplete, hasOverflown) = (true, true)
        }
    }

    mutating func remove(_ stream: String) { candidates.remove(stream) }

    /// A wake has named streams, up to that one.
    mutating func named(upTo stream: String?) {
        if let stream { last = TextKey(stream) }
        next = nil
    }

    /// All links but those of the candidates are at the tails of their streams.
    mutating func isKnown() { (isIncomplete, next) = (false, nil) }

    /// - Returns: The stream behind which the links are to be scanned, from the first one when `nil`. What is added from now on counts as well.
    mutating func beginScan() -> String? {
        (candidates, next, isScanning, hasOverflown) = ([], nil, true, false)
        return last?.text
    }

    mutating func scanned(_ result: SubscriptionScan.Found) {
        isScanning = false
        let pending = Set(result.pending.map { TextKey($0) })
        candidates.formUnion(pending)
        isIncomplete = !result.isWhole || hasOverflown || candidates.count > Subscriptions.candidatesMax
        if candidates.count > Subscriptions.candidatesMax { candidates = pending }
        // They come back only if a clock is set back, so they are not looked for again.
        candidates.formUnion(result.expired.prefix(Subscriptions.candidatesMax - candidates.count).map { TextKey($0) })
        // A scan of all links that has missed streams is repeated.
        next = result.isWhole ? nil : result.pending
    }

    /// The links could not be read: the next look tries again.
    mutating func scanFailed() { isScanning = false }
}
