package import ParleyHTTP
package import ParleySystem

/// Who sent a request, and what he may do. Asked wherever a channel is touched.
package struct Access: Sendable {
    /// The principal: the `by` of what he appends.
    package let name: String
    /// Whose share of a rate it counts against: all that a holder makes of one token counts together.
    let account: String
    /// When the right ends; `nil`: it does not.
    package let expires: Timestamp?
    /// What the rights come from; `nil`: all rights.
    let token: CapabilityToken?
    /// Whether it was shown with the request, rather than being everybody's.
    let isShown: Bool
    /// The one channel that may be read, when it came as a ticket.
    private let only: String?

    /// All rights, under this name: of a key, or of everybody.
    static func full(_ name: String, isShown: Bool) -> Access {
        Access(name: name, account: name, expires: nil, token: nil, isShown: isShown, only: nil)
    }

    /// Nobody: for answers that need no right.
    static let none = Access(name: "", account: "", expires: Timestamp(milliseconds: 0), token: nil, isShown: false, only: "")

    static func bearer(_ token: CapabilityToken) -> Access {
        Access(
            name: token.name, account: "\(token.keyName):\(token.issuedTo)", expires: token.expires, token: token, isShown: true, only: nil)
    }

    /// The same, for reading one channel.
    func reading(only channel: String) -> Access {
        Access(name: name, account: account, expires: expires, token: token, isShown: true, only: channel)
    }

    package func may(_ verb: Verb, _ channel: String) -> Bool {
        // Compared as bytes: Unicode has other texts for equal.
        if let only, verb != .read || !only.utf8.elementsEqual(channel.utf8) { return false }
        return token?.allows(verb, channel) ?? true
    }

    /// Whether there is nothing that he may not do.
    var mayEverything: Bool {
        let isWhole = token?.blocks.allSatisfy { block in
            block.grants.isEmpty || block.grants.contains { $0.pattern == .everything && $0.verbs.allow(.admin) }
        }
        return only == nil && isWhole ?? true
    }

    /// - Throws: 403 `forbidden` that names the verb and the channel.
    package func require(_ verb: Verb, _ channel: String) throws(Problem) {
        guard !may(verb, channel) else { return }
        throw Access.forbidden(verb, channel)
    }

    static func forbidden(_ verb: Verb, _ channel: String) -> Problem {
        Problem(
            status: 403, code: "forbidden",
            detail: "what you present does not allow '\(verb.name)' on '\(channel)'. Ask for a token that does.",
            extra: [.init("verb", .string(verb.name)), .init("channel", .string(channel))])
    }

    func hasExpired(_ now: Timestamp) -> Bool { expires.map { $0 <= now } ?? false }
}
