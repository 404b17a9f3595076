package import ParleyLog
package import ParleySystem
internal import Synchronization

/// Which entries of agents are delivered to webhooks, and by which observer.
///
/// Such an entry has a row in family `outbox`, written in the batch that makes it durable, until it has been delivered. So a crash between
/// the two loses nothing, and no webhook receives what is not durable.
package final class Outbox: Sendable {
    package let kinds: Set<EntryKind>
    private let observer = Mutex<(any OutboxObserver)?>(nil)

    package init(kinds: Set<EntryKind>) { self.kinds = kinds }

    /// Sets the observer of rows that have become durable.
    package func observe(_ observer: any OutboxObserver) { self.observer.withLock { $0 = observer } }

    // MARK: The writer's side

    /// - Returns: how many rows were staged.
    func stage(_ entries: [NewEntry], _ offsets: [UInt64], of channel: Channel, in stage: inout Stage) -> Int {
        guard channel.isAgent else { return 0 }
        var count = 0
        for (entry, offset) in zip(entries, offsets) where kinds.contains(entry.kind) {
            stage.put(.outbox, OutboxRow.key(channel.id, offset), [])
            count += 1
        }
        return count
    }

    func committed(_ id: ChannelID, rows: Int) { observer.withLock { $0 }?.outboxCommitted(id, rows: rows) }
    func removed(_ id: ChannelID, rows: Int) { observer.withLock { $0 }?.outboxRemoved(id, rows: rows) }
}

/// Observes the rows of the outbox.
package protocol OutboxObserver: AnyObject, Sendable {
    /// Writer thread, once they are durable; must only take note.
    func outboxCommitted(_ id: ChannelID, rows: Int)
    /// Writer thread: so many rows were deleted with their channel.
    func outboxRemoved(_ id: ChannelID, rows: Int)
}

/// An entry that waits to be delivered: `[partition][channel][1][offset]` in family `outbox`; the value is empty until an attempt has failed.
package struct OutboxRow: Sendable, Hashable {
    package var channel: ChannelID
    package var offset: UInt64
    /// Attempts that failed.
    package var attempts: UInt32 = 0
    /// No attempt before.
    package var due = Timestamp(milliseconds: 0)

    /// What is delivered to outside; other numbers are left to what is delivered to other agents.
    private static let target: UInt8 = 1

    package static func key(_ channel: ChannelID, _ offset: UInt64) -> Bytes {
        var key = channel.key([target])
        key.append(bigEndian: offset)
        return key
    }

    package var key: Bytes { OutboxRow.key(channel, offset) }

    package var value: Bytes {
        guard attempts > 0 else { return [] }
        var value = Bytes()
        value.append(bigEndian: attempts)
        value.append(bigEndian: due.keyed)
        return value
    }

    /// `nil` for rows of another target.
    init?(_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) {
        guard key.count == 19, key[10] == OutboxRow.target else { return nil }
        channel = ChannelID(partition: key.readBigEndian(at: 0), number: key.readBigEndian(at: 2))
        offset = key.readBigEndian(at: 11)
        guard value.count == 12 else { return }
        attempts = value.readBigEndian(at: 0)
        due = Timestamp(milliseconds: value.readBigEndian(at: 4))
    }

    /// The oldest row of a channel.
    package static func first(of channel: ChannelID, in log: any CommitLog) throws(LogError) -> OutboxRow? {
        var found: OutboxRow?
        try log.scan(.outbox, from: channel.key([target]), to: channel.key([target + 1]), reversed: false) { key, value in
            found = OutboxRow(key, value)
            return false
        }
        return found
    }

    /// How many rows a channel has. Those staged and not committed are not counted.
    static func count(of channel: ChannelID, in log: any CommitLog) throws(LogError) -> Int {
        var count = 0
        try log.scan(.outbox, from: channel.key([target]), to: channel.key([target + 1]), reversed: false) { _, _ in
            count += 1
            return true
        }
        return count
    }

    /// Visits the rows from `start` on, partition by partition and in each by channel and offset, until `visit` returns false.
    package static func scan(
        _ log: any CommitLog, in partitions: PartitionSet, from start: ChannelID, _ visit: (OutboxRow) -> Bool
    ) throws(LogError) {
        var continues = true
        for partition in partitions.numbers where continues && partition >= start.partition {
            let number = partition == start.partition ? start.number : 0
            let lower = ChannelID(partition: partition, number: number).key
            let upper = ChannelID(partition: partition, number: .max).key
            try log.scan(.outbox, from: lower, to: upper, reversed: false) { key, value in
                if let row = OutboxRow(key, value) { continues = visit(row) }
                return continues
            }
        }
    }
}
