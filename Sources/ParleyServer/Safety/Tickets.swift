internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// The credential of a browser's EventSource, which cannot send header fields: a word in the URL that is worth one GET of one channel, soon.
///
/// A URL gets into histories and the logs of proxies; by then the ticket is used up. Tickets are in memory only: after a restart clients ask for
/// another.
final class Tickets: Sendable {
    /// The use that a ticket is good for.
    enum Use { case channel, socket }

    private struct Ticket {
        var use: Use
        var access: Access
        var expires: Timestamp
    }

    private struct State {
        /// By digest: the time of a lookup must not reveal how much of a guess was right.
        var tickets: [Bytes: Ticket] = [:]
        /// The digests in the order in which they end.
        var order: [Bytes] = []
        var first = 0
    }

    private let state = Mutex(State())

    static let lifetime = Duration.seconds(60)
    /// All of them together; a holder of a token cannot have many more than they can use.
    static let countMax = 10_000

    /// - Returns: `nil` when there are too many unused ones.
    func issue(_ access: Access, for use: Use = .channel, _ now: Timestamp) -> (text: String, expires: Timestamp)? {
        var random = SystemRandomNumberGenerator()
        let secret = (0..<24).map { _ in UInt8.random(in: .min ... .max, using: &random) }
        let text = "ticket_" + Base64.encodeURL(secret)
        let expires = min(now.advanced(by: Tickets.lifetime), access.expires ?? Timestamp(milliseconds: .max))
        return state.withLock { state in
            Tickets.dropEnded(&state, now)
            guard state.tickets.count < Tickets.countMax else { return nil }
            let digest = SHA256.digest(Bytes(text.utf8))
            state.tickets[digest] = Ticket(use: use, access: access, expires: expires)
            state.order.append(digest)
            return (text, expires)
        }
    }

    /// Returns the rights of the ticket, once.
    func redeem(_ text: String, for use: Use = .channel, _ now: Timestamp) -> Access? {
        let digest = SHA256.digest(Bytes(text.utf8))
        guard let ticket = state.withLock({ $0.tickets.removeValue(forKey: digest) }), now < ticket.expires, ticket.use == use
        else { return nil }
        return ticket.access
    }

    func dropAll() { state.withLock { $0 = State() } }

    /// Some end before the 60 seconds are over; they are dropped with those around them.
    private static func dropEnded(_ state: inout State, _ now: Timestamp) {
        while state.first < state.order.count {
            let digest = state.order[state.first]
            if let ticket = state.tickets[digest] {
                guard ticket.expires <= now else { break }
                state.tickets[digest] = nil
            }
            state.first += 1
        }
        if state.first * 2 > state.order.count, state.first >= 64 {
            state.order.removeFirst(state.first)
            state.first = 0
        }
    }
}
