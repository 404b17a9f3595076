package import ParleySystem

/// How a node reads the channels of another one: the internal follow, and the reads that go with it.
///
/// The link owns the connection, so that there is one reconnect with one backoff for all channels of a node. Everything in the protocol is a value,
/// and everything the other side does is a method of ``Channels`` (`Channels+Serving.swift`): a link only carries.
package protocol ChannelLink: AnyObject, Sendable {
    /// Looks up a channel of the other node. Blocks on the network: not for event loops. Waits for a connection for as long as the link allows.
    ///
    /// - Parameter id: The channel that the owner of the name's home has found; `nil`: the other node is asked as that.
    /// - Returns: `nil` when there is no such channel.
    /// - Throws: What the owner throws, see ``Channels/describe(_:at:)``; `partition_unavailable` when the owner cannot be reached.
    func find(_ name: String, at id: ChannelID?) throws(ChannelError) -> ChannelDescription?

    /// Reads a page, as ``find(_:)``.
    ///
    /// - Returns: `nil` when the channel was deleted.
    func page(_ request: PageRequest) throws(ChannelError) -> Page?

    /// Follows a channel from an offset. While there is no connection, the request waits for one.
    ///
    /// - Parameter receive: Called with one event at a time, in order, never inside this call. Must only take note. Any event but
    ///   ``FollowEvent/update(_:)`` is the last one.
    func follow(_ request: FollowRequest, _ receive: @escaping @Sendable (FollowEvent) -> Void) -> any ChannelFollow

    /// Renews a sliding TTL at the owner. Does not block, and may get lost.
    func touch(_ channel: ChannelReference)
}

/// A follow in progress.
package protocol ChannelFollow: AnyObject, Sendable {
    /// Ends the follow. An event that another thread has begun may still arrive. Idempotent.
    func end()
}

/// A channel of another node: the name, and the id that tells it from an earlier or later channel of that name.
package struct ChannelReference: Sendable, Equatable {
    package let name: String
    package let id: ChannelID
}

/// What a reader has to know of a channel before it begins.
package struct ChannelDescription: Sendable {
    package let reference: ChannelReference
    package let contentType: String
    package let isAgent: Bool
    package let end: Timestamp?
    package let state: TailState
}

package struct PageRequest: Sendable {
    package let channel: ChannelReference
    package let after: UInt64
    package let view: View
    package let bytesMax: Int
}

package struct FollowRequest: Sendable {
    package let channel: ChannelReference
    /// The last offset that the follower has; everything after it is sent.
    package let after: UInt64
}

package enum FollowEvent: Sendable {
    case update(TailUpdate)
    /// The channel was deleted, or there is another one of that name.
    case deleted
    /// The connection is gone, and with it what was on its way: ask again from the last offset.
    case broken
    /// The other node does not own the channel any more, or the link has given the node up.
    case left
}

/// The tail of a channel at one instant, with the commits that lead there.
package struct TailUpdate: Sendable {
    /// What one commit appended.
    package struct Commit: Sendable {
        package let first: UInt64
        package let last: UInt64
        package let frames: Bytes
    }

    package let state: TailState
    package let end: Timestamp?
    /// The commits after the offset sent last, in order, up to `state.head`; none when nothing was appended, or more than a tail keeps in memory: then
    /// the follower reads pages.
    package let commits: [Commit]

    init(_ tail: PublishedTail, after offset: UInt64, _ end: Timestamp?) {
        (state, self.end) = (tail.state, end)
        // A commit that is more than the recent ones may be together would hold up the other channels of the connection.
        guard case .chunks(let chunks, _) = tail.read(after: offset), !chunks.contains(where: \.isLarge) else {
            commits = []
            return
        }
        commits = chunks.map { Commit(first: $0.first, last: $0.last, frames: $0.frames) }
    }
}
