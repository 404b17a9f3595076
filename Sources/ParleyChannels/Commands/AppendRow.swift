package import ParleyLog
package import ParleySystem

/// A row that stands or falls with the entries of an append.
package enum AppendRow: Sendable {
    /// What the log says of the agent, and its open turn.
    case status(AgentStatus, turn: UInt64?)
    case put(Family, key: Bytes, value: Bytes)
    case delete(Family, key: Bytes)
    /// The agent's state as of the entry with that number in the append.
    case state(Bytes, entry: Int)
    case follow(FollowChange)
    /// Text up to the append's last entry is to go then.
    case sealed(SealedText, due: Timestamp)

    var isOfFollow: Bool { if case .follow = self { true } else { false } }

    /// Reads what has to be known before anything is changed: what there is of a follow that ends.
    func before(in stage: Stage) throws(LogError) -> FollowRow? {
        guard case .follow(.ends(let follow)) = self else { return nil }
        return try follow.row(in: stage)
    }

    /// - Parameters:
    ///   - before: See ``before(in:)``.
    ///   - offsets: Those of the append's entries.
    func write(_ before: FollowRow?, to channel: Channel, _ offsets: [UInt64], _ messages: Messages, in stage: inout Stage) {
        switch self {
        case .status(let status, let turn): channel.move(to: status, turn: turn, in: &stage)
        case .put(let family, let key, let value): stage.put(family, key, value)
        case .delete(let family, let key): stage.delete(family, key)
        case .state(let state, let entry): stage.put(.states, channel.id.key(offsets[entry]), state)
        case .follow(let change): change.write(channel.id, before, messages, in: &stage)
        case .sealed(var text, let due):
            text.upTo = channel.staged.head
            stage.put(.index, text.key(due, channel.id), text.value)
        }
    }
}
