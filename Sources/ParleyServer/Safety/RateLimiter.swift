internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// Lets everybody have so many requests a second, and a burst of two seconds' worth: a bucket of tokens for each account.
final class RateLimiter: Sendable {
    private struct Bucket {
        var tokens: Double
        var filled: Duration
    }

    private let buckets = Mutex<[String: Bucket]>([:])
    private let rate: Double
    private let burst: Double

    /// Beyond it those who have waited long enough are forgotten; all who are still unknown then share one bucket.
    private static let accountsMax = 10_000
    private static let others = "*"

    /// - Parameter rate: Requests a second, above 0.
    init(rate: Double) {
        self.rate = rate
        burst = max(1, rate * 2)
    }

    /// Takes a token.
    ///
    /// - Parameter now: By a clock that never steps back.
    /// - Throws: 429 `too_many_requests` that says when there is one again.
    func take(_ account: String, _ now: Duration) throws(Problem) {
        let wait = buckets.withLock { buckets -> Double? in
            var account = account
            if buckets[account] == nil, buckets.count >= RateLimiter.accountsMax {
                buckets = buckets.filter { level($0.value, now) < burst }
                if buckets.count >= RateLimiter.accountsMax { account = RateLimiter.others }
            }
            let tokens = buckets[account].map { level($0, now) } ?? burst
            // The loops' clocks are the same one, each as of its own tick: time that was counted must not be counted again.
            let filled = max(now, buckets[account]?.filled ?? now)
            buckets[account] = Bucket(tokens: tokens >= 1 ? tokens - 1 : tokens, filled: filled)
            return tokens >= 1 ? nil : (1 - tokens) / rate
        }
        guard let wait else { return }
        throw Problem(
            status: 429, code: "too_many_requests", detail: "more than \(rate) requests a second; the limit is each sender's own. Wait.",
            headers: [("Retry-After", String(max(1, Int(wait.rounded(.up)))))])
    }

    private func level(_ bucket: Bucket, _ now: Duration) -> Double {
        min(burst, bucket.tokens + max(0, (now - bucket.filled) / .seconds(1)) * rate)
    }

    /// Who an address belongs to: of IPv6 the network, of which one customer has all the addresses.
    static func account(ofPeer address: String) -> String {
        // No key and no holder of a token has a blank in its name.
        "peer " + network(of: address)
    }

    private static func network(of address: String) -> String {
        guard address.contains(":"), !address.contains(".") else { return address }
        let groups = address.prefix(while: { $0 != "%" }).split(separator: ":", omittingEmptySubsequences: false)
        guard let gap = groups.dropFirst().firstIndex(of: ""), gap < 4 else { return groups.prefix(4).joined(separator: ":") }
        return groups.prefix(gap).joined(separator: ":") + "::"
    }
}

/// Counts what was refused, by the code of the answer.
final class RefusalCounter: Sendable {
    private let counts = Mutex<[String: Int]>([:])

    func count(_ code: String) { counts.withLock { $0[code, default: 0] += 1 } }

    /// Sorted by code.
    var all: [(code: String, count: Int)] { counts.withLock { $0.map { ($0.key, $0.value) } }.sorted { $0.0 < $1.0 } }
}
