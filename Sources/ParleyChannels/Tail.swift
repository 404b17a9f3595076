package import ParleySystem

/// A channel as its live readers see it: constant properties, what is published after an offset, and pages of what lies further back.
///
/// ``Channel`` is the tail of a channel that this node owns; ``ChannelMirror`` follows a channel of another node. Readers call a tail once a
/// commit and reader, never once an entry.
package protocol Tail: AnyObject, Sendable {
    var name: String { get }
    var id: ChannelID { get }
    var contentType: String { get }
    var isAgent: Bool { get }
    /// When the channel expires unless it is used before; `nil`: never. Of a channel of another node it may be too early, not too late.
    var end: Timestamp? { get }
    /// Whether the channel was deleted and is kept for its forks only.
    var isKept: Bool { get }

    /// The durable end offset, and whether anything can still be appended.
    var tail: (head: UInt64, isClosed: Bool, isDeleted: Bool) { get }

    /// Returns what is published after `offset`. Cost: a lock and a search of the recent commits.
    func tail(after offset: UInt64) -> TailRead

    /// Notifies `watcher` of every publication from now on, and keeps the recent commits from now on. Attaching twice is attaching once.
    /// - Returns: `false` when the channel has another object by now: look it up again.
    func attach(_ watcher: any ChannelWatcher) -> Bool

    /// Stops notifying `watcher`. A notification that another thread has begun may still arrive. Idempotent.
    func detach(_ watcher: any ChannelWatcher)

    /// Reads one page after `offset`, see ``Channels/page(_:after:view:bytesMax:)``. Blocks on the disk or on the network: not for event loops.
    ///
    /// - Parameter channels: The channels of the node that reads.
    /// - Throws: What the log throws; `partition_unavailable` when the owner of the channel cannot be reached.
    func page(after offset: UInt64, view: View, bytesMax: Int, in channels: Channels) throws(ChannelError) -> Page

    /// Renews a sliding TTL, because a reader has begun here. Does not block.
    func touched(in channels: Channels)
}

extension Tail {
    package var isJSON: Bool { isAgent || ContentType.isJSON(contentType) }

    /// Whether it holds text in UTF-8, by its type: what is in it has not been looked at.
    package var isText: Bool { !isAgent && ContentType.isUTF8Text(contentType) }
}

/// What a tail has after an offset.
package enum TailRead {
    /// Nothing after that offset. `isEnded`: and there never will be.
    case upToDate(isEnded: Bool)
    /// The commits after that offset, in order, up to the tail. `isEnded`: nothing comes after them.
    case chunks([Chunk], isEnded: Bool)
    /// So far behind that pages must be read, up to `head`.
    case behind(head: UInt64)
}

/// Told that a channel's tail, closing or removal has been published.
package protocol ChannelWatcher: AnyObject, Sendable {
    /// Called on the writer thread, or the thread on which a link delivers; must only take note.
    func channelChanged(_ tail: any Tail)
    /// The channel has left: this node does not own it any more, or the node that owns it is another one now. Nothing will be heard of this
    /// object again, and it is not to be detached from. Called as ``channelChanged(_:)``; must only take note.
    func channelLeft(_ tail: any Tail)
}

/// The published end of a channel, as it is sent to nodes that follow.
package struct TailState: Sendable, Equatable {
    package var head: UInt64
    package var isClosed: Bool
    package var isDeleted = false
    /// Deleted, and kept for its forks only.
    package var isKept = false
}

/// A tail while it is watched: its end, its recent commits, and its watchers.
struct PublishedTail {
    var state: TailState
    /// The object has been given up, and accepts no more watchers.
    private(set) var isLeft = false
    private var recent: [Chunk] = []
    private(set) var recentBytes = 0
    private var watchers: [ObjectIdentifier: any ChannelWatcher] = [:]

    /// How many bytes of recent commits a watched channel keeps in memory; a reader further behind reads pages.
    static let recentBytesMax = 256 << 10

    init(_ state: TailState) { self.state = state }

    var isWatched: Bool { !watchers.isEmpty }

    /// The watchers to notify, outside the lock.
    var told: [any ChannelWatcher] { Array(watchers.values) }

    func read(after offset: UInt64) -> TailRead {
        if state.isDeleted { return .upToDate(isEnded: true) }
        if offset >= state.head { return .upToDate(isEnded: state.isClosed) }
        // Backwards: nearly every reader is one commit behind.
        guard let index = recent.lastIndex(where: { $0.first == offset + 1 }) else { return .behind(head: state.head) }
        return .chunks(Array(recent[index...]), isEnded: state.isClosed)
    }

    mutating func attach(_ watcher: any ChannelWatcher) -> Bool {
        guard !isLeft else { return false }
        watchers[ObjectIdentifier(watcher)] = watcher
        return true
    }

    /// - Returns: Whether it was attached.
    @discardableResult
    mutating func detach(_ watcher: any ChannelWatcher) -> Bool {
        let wasAttached = watchers.removeValue(forKey: ObjectIdentifier(watcher)) != nil
        if watchers.isEmpty { forgetRecent() }
        return wasAttached
    }

    /// Gives the object up.
    /// - Returns: The watchers to notify.
    mutating func leave() -> [any ChannelWatcher] {
        isLeft = true
        forgetRecent()
        defer { watchers = [:] }
        return told
    }

    /// Keeps a commit while the channel is watched, and drops the oldest ones beyond the limit.
    mutating func keep(_ chunk: Chunk) {
        guard isWatched else { return }
        // Without room its readers get it as a page.
        guard chunk.isRoomy() else { return forgetRecent() }
        recent.append(chunk)
        recentBytes += chunk.frames.count
        var dropped = 0
        while recentBytes > PublishedTail.recentBytesMax, dropped < recent.count - 1 {
            recentBytes -= recent[dropped].frames.count
            dropped += 1
        }
        recent.removeFirst(dropped)
    }

    mutating func forgetRecent() { (recent, recentBytes) = ([], 0) }
}
