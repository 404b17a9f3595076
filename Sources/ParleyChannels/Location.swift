package import ParleyLog
internal import ParleySystem
internal import Synchronization

/// Where the channel of a name is, according to the owner of the name's home.
package enum Location: Sendable {
    /// On this node.
    case here(Channel)
    /// In a partition that this node does not own: ask its owner for the channel by its name and this id.
    case at(ChannelID)
    /// There is none.
    case nowhere
}

// MARK: - Finding

extension Channels {
    /// Returns where the channel of that name is. Thread-safe. Cost: a lock and a hash; for a channel not in memory three lookups in the log.
    ///
    /// - Throws: ``LogError`` with code `partition_unavailable` when this node does not own the name's home.
    package func locate(_ name: String) throws(LogError) -> Location {
        let location = try lookUp(name)
        if case .here(let channel) = location, channel.isExpired(world.now) { return .nowhere }
        return location
    }

    /// The channel of that name, or `nil`. As ``locate(_:)``, where this node owns the channel's rows as well.
    ///
    /// - Throws: ``LogError`` with code `partition_unavailable` when this node does not own both.
    package func find(_ name: String) throws(LogError) -> Channel? { try here(locate(name)) }

    /// The channel with that name and id; `nil`: the channel is not there any more. Thread-safe. Only the partition of its rows is asked.
    ///
    /// - Throws: ``LogError`` with code `partition_unavailable` when this node does not own that.
    package func find(_ name: String, at id: ChannelID) throws(LogError) -> Channel? {
        guard let channel = try lookUp(name, at: id), !channel.isExpired(world.now) else { return nil }
        return channel
    }

    /// The channel of that name, even if it has expired: until the writer has removed it, a crash or a clock that is set back may revive it.
    func findAny(_ name: String) throws(LogError) -> Channel? { try here(lookUp(name)) }

    private func here(_ location: Location) throws(LogError) -> Channel? {
        switch location {
        case .here(let channel): return channel
        case .at(let id):
            throw LogError(
                .partitionUnavailable, "the channel is in partition \(id.partition), which is not open on this node. Try again later.")
        case .nowhere: return nil
        }
    }

    /// The channel of that name if it is in memory. Thread-safe, and touches no disk: for event loops.
    package func resident(_ name: String) -> Channel? {
        guard let channel = residentAny(name), !channel.isExpired(world.now) else { return nil }
        return channel
    }

    /// As ``resident(_:)``, by name and id.
    package func resident(_ name: String, at id: ChannelID) -> Channel? {
        guard let channel = residentAny(name, at: id), !channel.isExpired(world.now) else { return nil }
        return channel
    }

    private func residentAny(_ name: String) -> Channel? {
        let key = TextKey(name)
        let (known, id) = partitions[name].residents.withLock { ($0.channels[.name(key)], $0.elsewhere[key]) }
        return known ?? id.flatMap { residentAny(name, at: $0) }
    }

    private func residentAny(_ name: String, at id: ChannelID) -> Channel? {
        partitions[id].residents.withLock { $0.channels[ResidentKey(name, id)] }?.unless(otherThan: name, id)
    }

    /// Whether an agent of that name was deleted and not recreated.
    package func isDeleted(_ name: String) throws(LogError) -> Bool {
        try requireOpen(Placement.partition(of: name))
        return try nameRow(name)?.isTombstone ?? false
    }

    /// Where the name leads as of the last commit.
    private func nameRow(_ name: String) throws(LogError) -> NameRow? {
        try log.get(.names, Placement.nameKey(name)).flatMap { NameRow($0) }
    }
}

// MARK: - Reading from the log

extension Channels {
    /// As ``locate(_:)``, also for an expired channel.
    func lookUp(_ name: String) throws(LogError) -> Location {
        if let known = residentAny(name) { return .here(known) }
        let home = Placement.partition(of: name)
        try requireOpen(home)
        let isUnpublished = partitions[name].residents.withLock { $0.unpublished.contains(.name(TextKey(name))) }
        guard !isUnpublished, let row = try nameRow(name), !row.isTombstone else { return .nowhere }
        guard openPartitions.contains(row.id.partition) else { return .at(row.id) }
        guard let channel = try lookUp(name, at: row.id) else {
            // A crash has kept one of two batches. The number was lost with the rows, and may belong to another channel by now.
            if !row.isFork { try requireUndamaged(name, row) }
            return .nowhere
        }
        if row.id.partition != home { note(name, row.id) }
        return .here(channel)
    }

    /// As ``find(_:at:)``, also for an expired channel.
    func lookUp(_ name: String, at id: ChannelID) throws(LogError) -> Channel? {
        let (partition, key) = (partitions[id], ResidentKey(name, id))
        while true {
            let (known, isUnpublished, departures) = partition.residents.withLock { residents in
                (residents.channels[key], residents.unpublished.contains(key), residents.departures)
            }
            if let known { return known.unless(otherThan: name, id) }
            try requireOpen(partition.number)
            // Not under the lock: the disk may be slow, and event loops take this lock, too.
            guard !isUnpublished, let loaded = try load(name, id) else { return nil }
            if let channel = try keep(loaded, key, unlessLeft: departures) { return channel.unless(otherThan: name, id) }
        }
    }

    /// Keeps a channel that was read from the log in memory, unless there is one meanwhile.
    ///
    /// - Parameter departures: How many channels had left before it was read. One that has left since may be this, and have changed before.
    /// - Returns: what is in memory now; `nil` where it has to be read again.
    private func keep(_ loaded: Channel, _ key: ResidentKey, unlessLeft departures: UInt64) throws(LogError) -> Channel? {
        let (channel, isCrowded) = try partitions[loaded.id].residents.withLock { residents throws(LogError) -> (Channel?, Bool) in
            if let channel = residents.channels[key] { return (channel, false) }
            try requireOpen(loaded.id.partition)
            guard residents.departures == departures, !residents.unpublished.contains(key) else { return (nil, false) }
            residents.channels[key] = loaded
            let excess = residents.channels.count - partitions.residentShare
            return (loaded, excess > 0 && excess % Channels.excessStep == 1)
        }
        // Without writes, nothing else would evict what is read. If this is refused, the next load beyond the limit tries again.
        if isCrowded { submit(.evictIdle) }
        return channel
    }

    /// How many more are loaded into a crowded shard before it is looked at again: all of it may be watched.
    private static let excessStep = 256

    /// Remembers where a name leads whose channel is in memory with another partition.
    func note(_ name: String, _ id: ChannelID) {
        let home = partitions[name]
        home.residents.withLock { residents in
            guard openPartitions.contains(home.number) else { return }
            // What a channel that has left memory meanwhile leaves behind has a bound, too.
            if residents.elsewhere.count >= partitions.residentShare { residents.elsewhere.removeAll() }
            residents.elsewhere[name] = id
        }
    }

    /// Forgets the locations of channels that have left memory.
    func forget(_ gone: [Channel]) {
        for channel in gone where Placement.partition(of: channel.name) != channel.id.partition {
            partitions[channel.name].residents.withLock { residents in
                if residents.elsewhere[channel.name] == channel.id { residents.elsewhere[channel.name] = nil }
            }
        }
    }

    private func load(_ name: String, _ id: ChannelID) throws(LogError) -> Channel? {
        guard let row = try row(id), row.name.hasSameBytes(as: name) else { return nil }
        // The name of an agent that is kept for its forks belongs to a tombstone, or to the next agent.
        guard !(row.isAgent && row.isSoftDeleted) else { return nil }
        let (head, lastAt) = try Channels.head(of: id, in: log)
        return Channel(row: row, id: id, head: max(head, row.fork?.head ?? 0), lastAt: lastAt)
    }

    private func row(_ id: ChannelID) throws(LogError) -> ChannelRow? { try log.get(.channels, id.key).flatMap { ChannelRow($0) } }

    /// Name and rows are in one partition, and so are there together; one of the two may have been read before the other was deleted.
    private func requireUndamaged(_ name: String, _ row: NameRow) throws(LogError) {
        if try self.row(row.id)?.name.hasSameBytes(as: name) == true { return }
        guard try nameRow(name)?.id == row.id else { return }
        throw LogError(
            .damaged, "the row of channel '\(name)' is missing or unreadable (partition \(row.id.partition), id \(row.id.number))")
    }

    /// The row of a channel as of the last commit.
    package func row(_ channel: Channel) throws(LogError) -> ChannelRow? { try row(channel.id) }

    /// The last offset of a channel and when it was given: the end of its last value in the log.
    static func head(of id: ChannelID, in log: any CommitLog) throws(LogError) -> (UInt64, Timestamp) {
        guard let last = try log.first(.log, from: id.key, to: id.keyEnd, reversed: true) else { return (0, Timestamp(milliseconds: 0)) }
        var lastAt = Timestamp(milliseconds: 0)
        let first: UInt64 = last.key.readBigEndian(at: 10)
        let head = last.value.withUnsafeBytes { bytes in
            Frame.walk(bytes, first: first) { _, frame in
                if let at = frame.at { lastAt = at }
                return true
            }
        }
        guard let head else { throw LogError(.damaged, "frames of channel \(id.number) at offset \(first) cannot be read") }
        return (head, lastAt)
    }
}

extension Channel {
    /// - Returns: `nil` when it is another channel: a number that was lost with its rows may have been given again.
    fileprivate func unless(otherThan name: String, _ id: ChannelID) -> Channel? {
        self.id == id && self.name.hasSameBytes(as: name) ? self : nil
    }
}
