package import ParleyHTTP
package import ParleySystem

/// The sender of a request, and its rights. Checked wherever a channel is touched.
package struct Access: Sendable {
    /// The principal: the `by` of what they append.
    package let name: String
    /// Whose share of a rate it counts against: all that a holder makes of one token counts together.
    let account: String
    /// When the right ends; `nil`: it does not.
    package let expires: Timestamp?
    /// The token that the rights come from; `nil`: all rights.
    let token: CapabilityToken?
    /// The credential it rests on, for later checks that it is still valid.
    let basis: Basis
    /// The version of the keys it was compared with: see ``Authenticator/replace(_:)``.
    var keysVersion = 0
    /// The one channel that may be read, when it came as a ticket.
    private let only: String?

    enum Basis: Sendable {
        /// The answer needs no right.
        case nothing
        /// The server had no keys.
        case noKeys
        /// The key with this digest.
        case key(digest: Bytes)
        /// The token, and so the key that signed it.
        case token
    }

    /// Whether a credential came with the request; without keys there is none.
    var isShown: Bool {
        switch basis {
        case .key, .token: true
        case .nothing, .noKeys: false
        }
    }

    /// All rights, under this name, for every sender.
    static func everybody(_ name: String) -> Access {
        Access(name: name, account: name, expires: nil, token: nil, basis: .noKeys, only: nil)
    }

    /// All rights, of a key.
    static func key(_ key: Key) -> Access {
        Access(name: key.name, account: key.name, expires: nil, token: nil, basis: .key(digest: key.digest), only: nil)
    }

    /// No sender: for answers that need no right.
    static let none = Access(name: "", account: "", expires: Timestamp(milliseconds: 0), token: nil, basis: .nothing, only: "")

    static func bearer(_ token: CapabilityToken) -> Access {
        Access(
            name: token.name, account: "\(token.keyName):\(token.issuedTo)", expires: token.expires, token: token, basis: .token, only: nil)
    }

    /// The same, for reading one channel.
    func reading(only channel: String) -> Access {
        Access(name: name, account: account, expires: expires, token: token, basis: basis, keysVersion: keysVersion, only: channel)
    }

    package func may(_ verb: Verb, _ channel: String) -> Bool {
        // Compared as bytes: Unicode has other texts for equal.
        if let only, verb != .read || !only.utf8.elementsEqual(channel.utf8) { return false }
        return token?.allows(verb, channel) ?? true
    }

    /// Whether it comes with no right at all.
    var mayNothing: Bool { if case .nothing = basis { true } else { false } }

    /// Whether there is nothing that they may not do.
    var mayEverything: Bool {
        let isWhole = token?.blocks.allSatisfy { block in
            block.grants.isEmpty || block.grants.contains { $0.pattern == .everything && $0.verbs.allow(.admin) }
        }
        return only == nil && isWhole ?? true
    }

    /// - Throws: 403 `forbidden` that names the verb and the channel.
    package func require(_ verb: Verb, _ channel: String) throws(Problem) {
        guard !may(verb, channel) else { return }
        throw Access.forbidden([verb], channel)
    }

    /// - Parameters:
    ///   - verbs: The rights of which any would do, the usual one first. `admin` always does.
    ///   - note: A further sentence on them.
    static func forbidden(_ verbs: [Verb], _ channel: String, note: String = "") -> Problem {
        let names = verbs.filter { $0 != .admin }.map(\.name) + [Verb.admin.name]
        let quoted = names.map { "'\($0)'" }
        let choice = names.count > 1 ? quoted.dropLast().joined(separator: ", ") + " or \(quoted.last!)" : quoted[0]
        return Problem(
            status: 403, code: "forbidden",
            detail:
                "your key or token does not allow this on '\(channel)', which needs \(choice) there\(note). Ask for a token that has it.",
            extra: [
                .init("verb", .string(verbs[0].name)), .init("verbs", .array(names.map { .string($0) })),
                .init("channel", .string(channel)),
            ])
    }

    /// For an agent's entries, before it is known which is sent.
    package static let usualNeed = ", whichever the type of the entry needs: 'append' for a message"

    func hasExpired(_ now: Timestamp) -> Bool { expires.map { $0 <= now } ?? false }
}
