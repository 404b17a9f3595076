internal import ParleyChannels

/// Finds tails by name: among the channels of this node, else over the links to the nodes that own them.
struct TailDirectory: Sendable {
    let channels: Channels
    /// `nil`: there is no other node, and a channel that is not here is not found.
    let mirrors: ChannelMirrors?

    /// Returns the tail if it is in memory and knows of `offset`. Touches neither disk nor network: for event loops.
    ///
    /// - Throws: `channel_gone`.
    func resident(_ name: String, reaching offset: UInt64) throws(ChannelError) -> (any Tail)? {
        guard let channel = channels.resident(name) else { return mirrors?.resident(name, reaching: offset) }
        guard !channel.isSoftDeleted else { throw .gone(name) }
        return channel
    }

    /// Returns the tail, or `nil` when no node has a channel of that name. Blocks.
    ///
    /// - Parameter offset: The offset at which its reader wants to begin.
    /// - Throws: As ``Channels/readable(_:)``.
    func find(_ name: String, reaching offset: UInt64) throws(ChannelError) -> (any Tail)? {
        do throws(ChannelError) {
            return try look(name, reaching: offset)
        } catch {
            // Gone between two looks: what has the name now is found by another.
            guard error.isChanged else { throw error }
            return try look(name, reaching: offset)
        }
    }

    private func look(_ name: String, reaching offset: UInt64) throws(ChannelError) -> (any Tail)? {
        do throws(ChannelError) {
            return try channels.readable(name)
        } catch {
            guard let mirrors else { throw error }
            if let id = error.elsewhere { return try mirrors.find(name, at: id, reaching: offset) }
            guard error.code == "partition_unavailable" else { throw error }
            return try mirrors.find(name, reaching: offset)
        }
    }
}
