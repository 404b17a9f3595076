internal import ParleySystem

/// Makes and reads the tokens by which a worker or webhook proves that it was woken: `<wake>.<code>`, the code being an HMAC of everything the wake
/// belongs to, and nothing in it a secret but the key.
///
/// A token has no time of its own: it counts for as long as its wake is held, which the writer knows.
package struct SubscriptionTokens: Sendable {
    let key: Bytes

    /// What is said of a token that is none of a subscription's, whether there is the subscription or not.
    package static func wrong(_ id: String) -> String { "the bearer token is none of '\(id)'." }

    func make(_ subscription: Subscription, _ wake: SubscriptionWake) -> String {
        let generation = String(subscription.generation)
        return "\(generation).\(wake.id).\(code(subscription, generation, wake.id))"
    }

    /// The generation and the wake that a token of this subscription is for; `nil` when it is none of its tokens.
    func read(_ token: String, of subscription: Subscription) -> (generation: UInt64, wakeID: String)? {
        let parts = token.split(separator: ".", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 3, let generation = UInt64(parts[0]), String(generation) == parts[0],
            SubscriptionTokens.isEqual(Bytes(parts[2].utf8), Bytes(code(subscription, parts[0], parts[1]).utf8))
        else { return nil }
        return (generation, parts[1])
    }

    private func code(_ subscription: Subscription, _ generation: String, _ wakeID: String) -> String {
        // None but the last can hold a line's end.
        let text = "\(subscription.incarnation)\n\(generation)\n\(wakeID)\n\(subscription.id)"
        return Base64.encodeURL(HMACSHA256.code(Bytes(text.utf8), key: key))
    }

    /// Takes the same time wherever they differ: otherwise a code could be guessed piece by piece.
    private static func isEqual(_ a: Bytes, _ b: Bytes) -> Bool {
        a.count == b.count && zip(a, b).reduce(0) { $0 | ($1.0 ^ $1.1) } == 0
    }
}
