package import ParleySystem

/// What a `receipt` says became of an entry that a client sent.
package struct Receipt {
    package let offset: UInt64
    package let at: Timestamp
    /// The offset of the entry that it is for.
    package let of: UInt64
    package let state: JSON?
    package let reason: JSON?
    /// The turn and the step that the entry was applied to.
    package let turn: JSON?
    package let step: JSON?

    /// Returns `nil` for anything but the receipt of an entry that is wanted. Only such a receipt is parsed.
    package init?(_ entry: LogEntry, isWanted: (_ of: UInt64) -> Bool) {
        guard entry.kind == .receipt, let of = Receipt.subject(of: entry), isWanted(of) else { return nil }
        let (body, position) = (entry.body, entry.position)
        (offset, at, self.of) = (entry.offset, entry.at, of)
        (state, reason) = (body["state"], body["reason"])
        turn = position.map { .string(Offset($0.turn).token) }
        step = position.flatMap { $0.step.isEmpty ? nil : .string($0.step) }
    }

    /// The members as settled entries and records show them, with the time if it is given.
    package func members(at: Timestamp? = nil) -> [(String, JSON?)] {
        [
            ("offset", .string(Offset(offset).token)), ("at", at.map { .string($0.description) }), ("state", state), ("reason", reason),
            ("turn", turn), ("step", step),
        ]
    }

    /// The entry that it is for, without parsing where the receipt begins as agents write it.
    private static func subject(of entry: LogEntry) -> UInt64? {
        let members = entry.frame.members
        guard entry.frame.membersBegin(with: prefix), members.count >= prefix.count + 16 else {
            return entry.body["of"]?.string.flatMap { Offset(token: $0)?.value }
        }
        return Offset(token: String(decoding: members[prefix.count..<prefix.count + 16], as: UTF8.self))?.value
    }

    private static let prefix = Bytes("\"of\":\"".utf8)
}
