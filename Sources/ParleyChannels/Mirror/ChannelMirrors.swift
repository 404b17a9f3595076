internal import ParleySystem
internal import Synchronization

/// The channels of other nodes that this node follows: one ``ChannelMirror`` a channel, for all readers of the node.
package final class ChannelMirrors: Sendable {
    private let owner: @Sendable (_ partition: UInt16) -> (any ChannelLink)?
    /// Those that are watched, by name.
    private let watched = Mutex<[TextKey: ChannelMirror]>([:])

    /// - Parameter owner: The link to the node that owns a partition, as far as is known; `nil`: nobody, or this node.
    package init(owner: @escaping @Sendable (_ partition: UInt16) -> (any ChannelLink)?) { self.owner = owner }

    /// The mirror of that name if it is watched, and knows of `offset`. Thread-safe, and asks nobody: for event loops.
    package func resident(_ name: String, reaching offset: UInt64 = 0) -> ChannelMirror? {
        let mirror = watched.withLock { $0[TextKey(name)] }
        return mirror.flatMap { $0.tail.head >= offset ? $0 : nil }
    }

    /// Returns the mirror of that name, a new one when it is not watched; `nil`: there is no such channel. Blocks on the network: not for event loops.
    ///
    /// - Parameters:
    ///   - id: The channel, where this node owns the home of the name, and has found that.
    ///   - offset: Where a reader wants to begin. It may have it from another node, which has heard of it before this one.
    /// - Throws: What the owner throws; `partition_unavailable` when there is none, or it cannot be reached.
    package func find(_ name: String, at id: ChannelID? = nil, reaching offset: UInt64 = 0) throws(ChannelError) -> ChannelMirror? {
        if let mirror = resident(name, reaching: offset), id == nil || id == mirror.id { return mirror }
        guard let (description, link) = try look(name, at: id) else { return nil }
        guard let mirror = resident(name), mirror.id == description.reference.id else {
            return ChannelMirror(description, over: link, self)
        }
        mirror.reaches(description.state.head)
        return mirror
    }

    /// Asks the owner of the name's home and, if the channel is in another partition, that one's owner: if the channel has gone meanwhile, once more.
    private func look(_ name: String, at id: ChannelID?) throws(ChannelError) -> (ChannelDescription, any ChannelLink)? {
        do throws(ChannelError) {
            return try hop(name, at: id)
        } catch {
            guard id == nil, error.isChanged else { throw error }
            return try hop(name, at: nil)
        }
    }

    private func hop(_ name: String, at id: ChannelID?) throws(ChannelError) -> (ChannelDescription, any ChannelLink)? {
        let partition = id?.partition ?? Placement.partition(of: name)
        guard let link = owner(partition) else {
            throw ChannelError("partition_unavailable", "no node is known to own partition \(partition). Try again later.")
        }
        do throws(ChannelError) {
            return try link.find(name, at: id).map { ($0, link) }
        } catch {
            guard id == nil, let elsewhere = error.elsewhere else { throw error }
            return try hop(name, at: elsewhere)
        }
    }

    /// Makes `mirror` the one of its name, when its first watcher comes.
    /// - Returns: `false` when there is another one.
    func claim(_ mirror: ChannelMirror) -> Bool {
        watched.withLock { watched in
            // An earlier channel of that name may not have heard of its deletion yet.
            if let other = watched[TextKey(mirror.name)], other !== mirror, other.id == mirror.id { return false }
            watched[TextKey(mirror.name)] = mirror
            return true
        }
    }

    /// Removes a mirror that has been given up, or whose channel was deleted. Idempotent.
    func forget(_ mirror: ChannelMirror) {
        watched.withLock { if $0[TextKey(mirror.name)] === mirror { $0[TextKey(mirror.name)] = nil } }
    }
}
