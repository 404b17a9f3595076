package import ParleyChannels
package import ParleySystem
internal import Synchronization

/// The input of a turn, for its program: the members of a message. Only the taker holds them: a turn runs for long, and
/// holds what it needs alone.
package final class TurnInput: Sendable {
    private let members: Mutex<EntryMembers>

    package init(_ members: EntryMembers) { self.members = Mutex(members) }

    /// The value of a member.
    package subscript(name: String) -> JSON? { members.withLock { $0 }[name] }

    /// The message as text: its text, or its data as JSON; the rest is released. `nil` when it has neither.
    package func takeText() -> String? { take().messageText }

    /// Gives the members away.
    func take() -> EntryMembers {
        members.withLock { members in
            defer { members = EntryMembers() }
            return members
        }
    }
}
