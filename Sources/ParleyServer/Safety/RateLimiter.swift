internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// Allows each account so many requests a second, and a burst of two seconds' worth: a bucket of tokens for each.
final class RateLimiter: Sendable {
    private let rate: TokenBucket.Rate
    /// Buckets of requests with a key or token, and of those without: however many of the latter there are, the former keep theirs.
    private let tables = Mutex((holders: BucketTable(), peers: BucketTable()))

    /// - Parameter rate: Requests a second, above 0.
    init(rate: Double) { self.rate = .init(perSecond: rate, burst: max(1, rate * 2)) }

    /// Takes a token.
    ///
    /// - Parameter now: The time of a clock that never steps back.
    /// - Throws: 429 `too_many_requests` that says when there is one again.
    func take(_ account: String, _ now: Duration) throws(Problem) {
        let wait = tables.withLock { tables in
            account.hasPrefix(RateLimiter.peerPrefix)
                ? tables.peers.take(account, now, rate) : tables.holders.take(account, now, rate)
        }
        guard let wait else { return }
        throw Problem(
            status: 429, code: "too_many_requests",
            detail: "more than \(rate.perSecond) requests a second; the limit is each sender's own. Wait.",
            headers: [("Retry-After", String(max(1, Int(wait.rounded(.up)))))])
    }

    // No key and no holder of a token has a blank in its name.
    private static let peerPrefix = "peer "

    /// The account of a peer's address: for IPv6 that of the network, as one customer has all its addresses.
    static func account(ofPeer address: String) -> String {
        peerPrefix + network(of: address)
    }

    private static func network(of address: String) -> String {
        guard address.utf8.contains(UInt8(ascii: ":")), !address.utf8.contains(UInt8(ascii: ".")) else { return address }
        let groups = address.prefix(while: { $0 != "%" }).split(separator: ":", omittingEmptySubsequences: false)
        guard let gap = groups.dropFirst().firstIndex(of: ""), gap < 4 else { return groups.prefix(4).joined(separator: ":") }
        return groups.prefix(gap).joined(separator: ":") + "::"
    }
}

/// Tokens that come back with time.
private struct TokenBucket {
    struct Rate {
        let perSecond: Double
        /// The capacity of a bucket.
        let burst: Double
    }

    private var tokens: Double
    private var filled: Duration

    init(full rate: Rate, _ now: Duration) { (tokens, filled) = (rate.burst, now) }

    func isFull(_ now: Duration, _ rate: Rate) -> Bool { level(now, rate) >= rate.burst }

    /// - Returns: Seconds until there is a token; `nil` when one was taken.
    mutating func take(_ now: Duration, _ rate: Rate) -> Double? {
        tokens = level(now, rate)
        // The loops' clocks are the same one, each as of its own tick: time that was counted must not be counted again.
        filled = max(now, filled)
        guard tokens >= 1 else { return (1 - tokens) / rate.perSecond }
        tokens -= 1
        return nil
    }

    private func level(_ now: Duration, _ rate: Rate) -> Double {
        min(rate.burst, tokens + max(0, (now - filled) / .seconds(1)) * rate.perSecond)
    }
}

/// The buckets of accounts, in bounded memory.
///
/// An account is forgotten only once its bucket is full, which makes no difference to it. Accounts for which there is no room share buckets, a few in
/// each, until there is; then each continues with what is left of its shared one. So no account gets a full bucket by being one of many.
private struct BucketTable {
    private var own: [String: TokenBucket] = [:]
    private var shared: [TokenBucket?] = []
    /// When to look next for accounts that can be forgotten: that visits all of them.
    private var nextSweep = Duration.zero

    private static let ownMax = 10_000
    /// Many, so that a flood of accounts leaves most others alone; clients cannot know which one is an account's.
    private static let sharedCount = 1_024
    private static let sweepInterval = Duration.seconds(1)

    /// - Returns: Seconds until there is a token; `nil` when one was taken.
    mutating func take(_ account: String, _ now: Duration, _ rate: TokenBucket.Rate) -> Double? {
        if own[account] != nil { return own[account]!.take(now, rate) }
        let place = Int(UInt(bitPattern: account.hashValue) % UInt(BucketTable.sharedCount))
        var bucket = (shared.isEmpty ? nil : shared[place]) ?? TokenBucket(full: rate, now)
        defer { keep(bucket, of: account, at: place, now, rate) }
        return bucket.take(now, rate)
    }

    private mutating func keep(_ bucket: TokenBucket, of account: String, at place: Int, _ now: Duration, _ rate: TokenBucket.Rate) {
        if own.count >= BucketTable.ownMax, now >= nextSweep {
            own = own.filter { !$0.value.isFull(now, rate) }
            nextSweep = now + BucketTable.sweepInterval
        }
        guard own.count >= BucketTable.ownMax else { return own[account] = bucket }
        if shared.isEmpty { shared = Array(repeating: nil, count: BucketTable.sharedCount) }
        shared[place] = bucket
    }
}

/// Counts what was refused, by the code of the answer.
final class RefusalCounter: Sendable {
    private let counts = Mutex<[String: Int]>([:])

    func count(_ code: String) { counts.withLock { $0[code, default: 0] += 1 } }

    /// Sorted by code.
    var all: [(code: String, count: Int)] { counts.withLock { $0.map { ($0.key, $0.value) } }.sorted { $0.0 < $1.0 } }
}
