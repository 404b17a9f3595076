package import ParleySystem

/// Why a channel refused something. The codes are those of the HTTP answers.
package struct ChannelError: Error, Sendable, CustomStringConvertible {
    package var code: String
    package var message: String
    /// What a program may read beside the code, e.g. the tail offset or what a producer was expected to send.
    package var details: [(name: String, value: JSON)] = []

    package init(_ code: String, _ message: String, _ details: [(name: String, value: JSON)] = []) {
        self.code = code
        self.message = message
        self.details = details
    }

    package var description: String { "\(code): \(message)" }

    package subscript(detail name: String) -> JSON? { details.first { $0.name == name }?.value }

    package static func mismatch(_ contentType: String, _ expected: String) -> ChannelError {
        ChannelError("content_type_mismatch", "Content-Type is '\(contentType)'; the channel's is '\(expected)'.")
    }

    package static func closed(_ name: String, tail: Offset) -> ChannelError {
        ChannelError("channel_closed", "'\(name)' is closed: nothing can be appended.", [("tail", .string(tail.token)), ("closed", true)])
    }

    /// The code of an append that yields to an undecided entry.
    package static let undecided = "undecided_entry"

    /// The channel was removed, and is kept only for its forks.
    package static func gone(_ name: String) -> ChannelError {
        ChannelError("channel_gone", "'\(name)' was deleted. Its name becomes free when the last of its forks is deleted, too.")
    }

    /// The channel was removed while it was read.
    package static func removed(_ channel: any Tail) -> ChannelError {
        if channel.isKept { return .gone(channel.name) }
        return channel.isAgent ? .deleted(channel.name) : .notFound(channel.name)
    }

    /// Whether the channel is not there any more.
    package var isOfRemoval: Bool { ["channel_gone", "agent_deleted", "channel_not_found"].contains(code) }

    /// An agent's name, until the agent is recreated.
    package static func deleted(_ name: String) -> ChannelError {
        ChannelError(
            "agent_deleted", "'\(name)' was deleted, and a late retry does not bring it back. PUT /v1/stream/\(name) starts it anew.")
    }

    /// The refusal of an append whose condition on the tail does not hold.
    static func tailMoved(from expected: UInt64, to head: UInt64) -> ChannelError {
        ChannelError(
            "tail_moved", "If-Match is \(Offset(expected)), the tail is \(Offset(head)): read what is new, and decide again.",
            [("tail", .string(Offset(head).token))])
    }

    private static let elsewhereCode = "channel_elsewhere"
    private static let changedCode = "channel_changed"

    /// This node owns the home of the name only: the owner of the rows is to be asked, with that id.
    package static func elsewhere(_ name: String, _ id: ChannelID) -> ChannelError {
        ChannelError(
            elsewhereCode,
            "'\(name)' is in partition \(id.partition), which is not open on this node: nothing was stored. Try again later.",
            [("channel", .string(id.text))])
    }

    /// Where ``elsewhere(_:_:)`` says that the channel is.
    package var elsewhere: ChannelID? {
        code == ChannelError.elsewhereCode ? self[detail: "channel"]?.string.flatMap { ChannelID(text: $0) } : nil
    }

    /// The channel that the name was resolved to is not there any more: it is to be resolved again.
    package static func changed(_ name: String) -> ChannelError {
        ChannelError(changedCode, "the channel that was '\(name)' is not there any more: nothing was stored. Try again.")
    }

    package var isChanged: Bool { code == ChannelError.changedCode }

    static func noSource(_ source: String) -> ChannelError {
        ChannelError("fork_source_not_found", "there is no channel '\(source)' to fork from.")
    }

    static func sourceGone(_ source: String) -> ChannelError {
        ChannelError("fork_source_gone", "'\(source)' was deleted: nothing can be forked from it any more.")
    }

    package static func notFound(_ name: String) -> ChannelError {
        ChannelError("channel_not_found", "there is no channel '\(name)'. Create it with PUT, or check the name.")
    }
}
