package import ParleyLog
package import ParleySystem

/// Where a channel's rows are: its partition and its number in it.
package struct ChannelID: Hashable, Sendable {
    package let partition: UInt16
    package let number: UInt64

    package init(partition: UInt16, number: UInt64) {
        self.partition = partition
        self.number = number
    }

    /// The key prefix of everything that belongs to the channel: partition and number.
    package var key: Bytes {
        var key = Bytes()
        key.reserveCapacity(48)
        key.append(bigEndian: partition)
        key.append(bigEndian: number)
        return key
    }

    /// The first key behind all those of the channel.
    package var keyEnd: Bytes { ChannelID(partition: partition, number: number + 1).key }

    package func key(_ offset: UInt64) -> Bytes {
        var key = key
        key.append(bigEndian: offset)
        return key
    }

    package func key(_ suffix: some Sequence<UInt8>) -> Bytes {
        var key = key
        key.append(contentsOf: suffix)
        return key
    }
}

/// How names are spread over partitions.
package enum Placement {
    /// How many partitions a data folder has. Part of the format: changing it for an existing folder would lose channels.
    package static let partitionCount = PartitionSet.countMax

    /// The partition that holds the row of `name`, and a new channel of that name: FNV-1a, 64 bits, folded.
    package static func partition(of name: String) -> UInt16 {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in name.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        return UInt16(truncatingIfNeeded: (hash ^ hash >> 32) % UInt64(partitionCount))
    }

    /// All keys of a partition.
    package static func range(_ partition: UInt16) -> (lower: Bytes, upper: Bytes) {
        var (lower, upper) = (Bytes(), Bytes())
        lower.append(bigEndian: partition)
        upper.append(bigEndian: partition + 1)
        return (lower, upper)
    }

    /// Whether the row only counts for its partition: it stays when everything else has gone.
    package static func isCounter(_ family: Family, _ key: UnsafeRawBufferPointer) -> Bool {
        guard key.count >= 10, key.readBigEndian(at: 2, as: UInt64.self) == 0 else { return false }
        return family == .channels || family == .outbox && MessageRows.isCounter(key)
    }

    /// The key of the row that says where the channel of that name is.
    package static func nameKey(_ name: String) -> Bytes {
        var key = Bytes()
        key.append(bigEndian: partition(of: name))
        key.append(name)
        return key
    }
}
