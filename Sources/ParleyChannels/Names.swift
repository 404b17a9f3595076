internal import ParleyLog
internal import ParleySystem

// A channel's name is in its home partition, its rows may be in another, and the two may have different owners. Then the rows say whether there is a
// channel, and the owner of the home what it is called: whatever the one finds that the other has to do is a message.

extension Channels {
    /// Whether this node owns the partition. If so, what is being staged is concerned with it.
    func owns(_ partition: UInt16, in stage: inout Stage) -> Bool {
        do throws(LogError) {
            try stage.concern(partition)
            return true
        } catch { return false }
    }

    // MARK: For the owner of both

    /// Whether a channel is written to two partitions of which the log may refuse one, because there are other owners. Then each has the other told by
    /// a message, and ``Messages/ready(_:in:)`` is called for both here.
    func readyTwofold(_ home: UInt16, _ partition: UInt16, in stage: Stage) throws(LogError) -> Bool {
        guard home != partition, openPartitions != .all else { return false }
        for partition in [home, partition] { try messages.ready(partition, in: stage) }
        return true
    }

    /// Name and rows have been written.
    func tellTwofold(_ channel: ChannelReference, in stage: inout Stage) {
        messages.post(.hasRows(channel), from: channel.id.partition, in: &stage)
        messages.post(.hasName(channel), from: channel.home, in: &stage)
    }

    // MARK: For the owner of the rows

    /// Frees the name of this channel: at once if this node owns the name's home, else by a message. ``Messages/ready(_:in:)`` has been
    /// called.
    func unname(_ channel: ChannelReference, in stage: inout Stage) throws(LogError) {
        guard owns(channel.home, in: &stage) else {
            return messages.post(.unname(channel), from: channel.id.partition, in: &stage)
        }
        let isTwofold = try readyTwofold(channel.home, channel.id.partition, in: stage)
        guard try deleteName(channel, in: &stage), isTwofold else { return }
        messages.post(.unname(channel), from: channel.id.partition, in: &stage)
        messages.post(.unmake(channel), from: channel.home, in: &stage)
    }

    /// Deletes a name that leads to a missing channel, unless it leads elsewhere by now.
    func missing(_ channel: ChannelReference, in stage: inout Stage) throws(LogError) {
        guard channel.home != channel.id.partition else { return }
        try messages.ready(channel.id.partition, in: stage)
        try unname(channel, in: &stage)
    }

    /// Has a fork removed that keeps its source, should its name not lead to it: only who owns the name's home can say.
    func ask(_ fork: ChannelReference, in stage: inout Stage) {
        guard !owns(fork.home, in: &stage) else { return }
        messages.post(.hasRows(fork), from: fork.id.partition, in: &stage)
    }

    /// Whether a name leads to that fork, or may lead to it as far as this partition knows.
    ///
    /// - Parameter announced: See ``Fork/announced``.
    func mayHaveName(_ fork: ChannelReference, _ announced: UInt64?, in stage: inout Stage) throws(LogError) -> Bool {
        guard owns(fork.home, in: &stage) else { return true }
        // Before the name is looked at: the home writes both at once.
        let isDecided = try announced.map { number throws(LogError) in
            try messages.taken(Route(source: fork.id.partition, destination: fork.home), in: stage) >= number
        }
        return try nameRow(fork.name, in: stage)?.id == fork.id || isDecided == false
    }

    /// Removes the rows of a channel whose name leads to another channel, or to none. ``Messages/ready(_:in:)`` has been called.
    func removeNameless(_ channel: ChannelReference, in stage: inout Stage) throws(LogError) -> [Effect] {
        // A channel that is kept for its own forks is deleted by `resolve`, or with the last of them.
        guard let found = try resolve(channel.name, at: channel.id, in: &stage), !found.isGone else { return [] }
        return try delete(found, in: &stage)
    }

    /// Deletes a name if the channel that it leads to does not exist.
    func nameIsThere(_ channel: ChannelReference, in stage: inout Stage) throws(LogError) {
        if try resolve(channel.name, at: channel.id, in: &stage) == nil { try missing(channel, in: &stage) }
    }

    // MARK: For the owner of the name's home

    /// Deletes the name of a channel that does not exist any more.
    func rowsAreGone(_ channel: ChannelReference, in stage: inout Stage) throws(LogError) {
        if try deleteName(channel, in: &stage) { limit?.removed(channel.name) }
    }

    /// Has the rows of a fork removed unless its name leads to them. ``Messages/ready(_:in:)`` has been called.
    func rowsAreThere(_ fork: ChannelReference, in stage: inout Stage) throws(LogError) {
        if try nameRow(fork.name, in: stage)?.id == fork.id { return }
        messages.post(.unmake(fork), from: fork.home, in: &stage)
    }
}

extension ChannelReference {
    /// The partition of the name.
    var home: UInt16 { Placement.partition(of: name) }
}
