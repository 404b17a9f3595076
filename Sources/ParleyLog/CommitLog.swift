package import ParleySystem

/// Makes batches durable, and reads them back.
///
/// The embedded node syncs RocksDB's write-ahead log; a clustered one would commit the same batches to a replicated log first; the
/// in-memory twin serves tests and the simulator. All pass one contract suite. Everything above is the same code.
package protocol CommitLog: AnyObject, Sendable {
    /// Makes all batches durable, then visible to reads; each batch is atomic, nothing is promised across batches.
    ///
    /// Called by one thread at a time. When it throws, nothing may be assumed about what is on disk: the caller must stop accepting
    /// work and never try the same commit again.
    ///
    /// - Returns: The partitions whose batch failed alone, with the reason: `partition_unavailable` when another owner has them (nothing was stored),
    ///   `outcome_unknown` when that cannot be determined. Their owner must give them up; the other batches are durable.
    @discardableResult
    func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError]

    /// Becomes the owner of a partition. Batches of an epoch before the one that is returned are not stored any more.
    ///
    /// - Returns: the new epoch, above 0. A log that only one process can have open knows of no other owner and returns 1.
    /// - Throws: ``LogError`` with code `log_closed`, or `partition_unavailable` when it cannot be had now.
    func acquire(_ partition: UInt16) throws(LogError) -> UInt64

    /// The value of a key as of the last commit. Thread-safe. Cost: one lookup, which may read the disk.
    func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes?

    /// Visits the pairs with `lower <= key < upper` in key order, or in reverse, until `visit` returns false.
    ///
    /// Thread-safe, over one consistent view. The buffers are valid during the call of `visit` only.
    func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(LogError)

    /// Closes the log; nothing may be called afterwards.
    func close()
}

extension CommitLog {
    package func acquire(_ partition: UInt16) throws(LogError) -> UInt64 { 1 }

    /// The first pair of the range, or the last one when `reversed`.
    package func first(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool = false
    ) throws(LogError) -> (key: Bytes, value: Bytes)? {
        var found: (key: Bytes, value: Bytes)?
        try scan(family, from: lower, to: upper, reversed: reversed) { key, value in
            found = (Bytes(key), Bytes(value))
            return false
        }
        return found
    }
}

/// The column families. Every key begins with the partition (u16), numbers are big-endian; ids and offsets are u64.
///
///     family       key after the partition              value
///     channels     [channel]; [0]: next free id         the channel's row (JSON)
///     names        [name]                               partition and id of the channel
///     log          [channel][first offset]              packed frames of one commit (Frame.swift)
///     states       [channel][turn end]                  the agent's state after that turn (JSON)
///     inbox        [channel][offset]                    kind of an entry that is not decided yet
///     timers       [due ms][channel][timer id]          what to wake
///     producers    [channel][producer id]               epoch and sequence
///     idempotency  [channel][SHA-256 of the key]        digest of the body and the offsets it was given
///     outbox       [channel][target u8][offset]         an entry that is not yet delivered to that target (Outbox.swift)
///     index        [status u8][channel]                 name: lists agents by what they do
///                  [128][channel][turn/step]            the other channel that a step follows (JSON)
///                  [132][id][0][stream]                 a subscription and its cursors (SubscriptionRows.swift)
///                  [133][channel]                       name of a stream that no subscription has linked yet
///     big          [channel][SHA-256]                   content that is stored once and referred to by hash
package enum Family: UInt8, CaseIterable, Sendable {
    case channels, names, log, states, inbox, timers, producers, idempotency, outbox, index, big

    package var name: String { "\(self)" }
}

/// The part of one commit for one partition, written atomically. No batch spans two partitions: a partition is what one owner owns.
///
/// The operations are packed into one buffer, which is also what a replicated log would carry:
///
///     u8 operation (0 put, 1 delete, 2 delete range) | u8 family | u32 key bytes | u32 value bytes | key | value
///
/// For a range, "key" is the first key and "value" the end, which is not deleted. Operations apply in the order they were added.
package struct Batch: Sendable {
    package let partition: UInt16
    /// The owner's, see ``CommitLog/acquire(_:)``; 0 where partitions have no owners.
    package internal(set) var epoch: UInt64 = 0
    package private(set) var bytes = Bytes()
    package private(set) var count = 0

    package init(partition: UInt16, epoch: UInt64 = 0) { (self.partition, self.epoch) = (partition, epoch) }

    package enum Operation: UInt8, Sendable { case put, delete, deleteRange }

    package mutating func put(_ family: Family, _ key: Bytes, _ value: Bytes) { add(.put, family, key, value) }
    package mutating func delete(_ family: Family, _ key: Bytes) { add(.delete, family, key, []) }
    package mutating func delete(_ family: Family, from lower: Bytes, to upper: Bytes) {
        // RocksDB would find out after the write-ahead log has it, and then the whole commit has failed.
        precondition(!upper.lexicographicallyPrecedes(lower), "a range of family \(family) that ends before it begins")
        add(.deleteRange, family, lower, upper)
    }

    private mutating func add(_ operation: Operation, _ family: Family, _ key: Bytes, _ value: Bytes) {
        precondition(key.count >= 2 && key.readBigEndian(at: 0) == partition, "a key of family \(family) outside partition \(partition)")
        bytes.append(operation.rawValue)
        bytes.append(family.rawValue)
        bytes.append(bigEndian: UInt32(key.count))
        bytes.append(bigEndian: UInt32(value.count))
        bytes.append(contentsOf: key)
        bytes.append(contentsOf: value)
        count += 1
    }

    /// How far the batch has got, for ``rewind(to:)``.
    struct Mark {
        let bytes: Int
        let count: Int
    }

    var mark: Mark { Mark(bytes: bytes.count, count: count) }

    /// Removes every operation added since `mark`.
    mutating func rewind(to mark: Mark) {
        bytes.removeLast(bytes.count - mark.bytes)
        count = mark.count
    }

    /// Calls `body` for each operation, in the order they were added. The buffers are valid during the call only.
    package func forEach(
        _ body: (_ operation: Operation, _ family: Family, _ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Void
    ) {
        bytes.withUnsafeBytes { buffer in
            var position = 0
            while position < buffer.count {
                let operation = Operation(rawValue: buffer[position])!
                let family = Family(rawValue: buffer[position + 1])!
                let keyCount = Int(buffer.readBigEndian(at: position + 2, as: UInt32.self))
                let valueCount = Int(buffer.readBigEndian(at: position + 6, as: UInt32.self))
                let key = UnsafeRawBufferPointer(rebasing: buffer[(position + 10)..<(position + 10 + keyCount)])
                position += 10 + keyCount
                let value = UnsafeRawBufferPointer(rebasing: buffer[position..<(position + valueCount)])
                position += valueCount
                body(operation, family, key, value)
            }
        }
    }
}

/// Why the log cannot be opened, read or written.
package struct LogError: Error, Sendable, CustomStringConvertible {
    /// Stable snake_case text.
    package struct Code: Sendable, Hashable {
        package let text: String
        package init(_ text: String) { self.text = text }
        /// Another process has the folder open.
        package static let locked = Code("data_folder_locked")
        /// The folder cannot be created, read or written.
        package static let inaccessible = Code("data_folder_inaccessible")
        /// The folder that was named for a backup cannot take one; nothing was written.
        package static let invalidFolder = Code("invalid_folder")
        /// The folder was written by a newer version.
        package static let newerFormat = Code("data_format_newer")
        /// A checksum or a structure on disk is wrong.
        package static let damaged = Code("data_damaged")
        /// No space left, or the disk failed a write or a sync.
        package static let writeFailed = Code("log_write_failed")
        /// More is queued than the bound allows: nothing was taken, trying again later is safe.
        package static let overloaded = Code("log_overloaded")
        /// This process does not own the partition: nothing was stored, another may take it now or later.
        package static let partitionUnavailable = Code("partition_unavailable")
        /// The batch may be stored, now or later.
        package static let outcomeUnknown = Code("outcome_unknown")
        /// The log has been closed, or has failed before.
        package static let closed = Code("log_closed")
    }

    package var code: Code
    package var message: String
    package var description: String { "\(code.text): \(message)" }

    package init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }
}
