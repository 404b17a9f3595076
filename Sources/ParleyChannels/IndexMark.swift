internal import ParleyLog
package import ParleySystem

/// What a row of family `index` is about, by the byte behind the partition: `[partition][mark]...`. Below are the agents' states. The raw value
/// is stored.
package enum IndexMark: UInt8, Sendable {
    /// `[channel][step]`: the other channel that a step of an agent follows.
    case follow = 128
    /// `[source][fork]`: name of a channel that was forked from another.
    case fork
    /// `[due][channel]`: when to look at a channel's lifetime.
    case lifetime
    /// `[due][channel][from]`: when sealed text is to go.
    case sealedText
    /// `[id]...`: a subscription and its links.
    case subscription
    /// `[channel]`: name of a new stream that matches a subscription; written by earlier versions.
    case newStream
    /// Nothing: the previous owner of the partition gave it up in an orderly way, so a turn that was open is not to blame.
    case drained
    /// `[channel][follower][step]`: who is to be told of what is new in a channel.
    case watch

    /// What every such row of the partition begins with.
    package func key(_ partition: UInt16) -> Bytes {
        var key = Bytes()
        key.append(bigEndian: partition)
        key.append(rawValue)
        return key
    }

    /// What every such row of the channel begins with.
    func key(_ id: ChannelID) -> Bytes {
        var key = key(id.partition)
        key.append(bigEndian: id.number)
        return key
    }

    /// What such a row of the channel begins with that is due then.
    func key(_ due: Timestamp, _ id: ChannelID) -> Bytes {
        var key = key(id.partition)
        key.append(bigEndian: due.keyed)
        key.append(bigEndian: id.number)
        return key
    }

    /// All such rows of the partition.
    func range(_ partition: UInt16) -> (lower: Bytes, upper: Bytes) {
        let lower = key(partition)
        return (lower, lower.endOfPrefix)
    }

    /// All such rows of the channel.
    func range(_ id: ChannelID) -> (lower: Bytes, upper: Bytes) {
        (key(id), key(ChannelID(partition: id.partition, number: id.number + 1)))
    }
}
