package import ParleySystem

/// The work of one commit, as its submissions have staged it so far: one batch per partition, and the values that later submissions must already see.
///
/// ``get(_:_:)`` sees what was staged before in every family but `log`, `states` and `inbox`, where it sees the last commit only: no decision depends
/// on them, and each put would cost a dictionary entry. Scans go to ``log`` and see the last commit only.
///
/// When a submission throws, everything it staged is rolled back.
package struct Stage {
    /// The log as of the last commit, for scans.
    package let log: any CommitLog
    /// Bytes staged so far.
    package private(set) var bytes = 0

    private(set) var batches: [Batch] = []
    private var indexes: [UInt16: Int] = [:]
    private var overlay = [[Bytes: Staged]](repeating: [:], count: Family.allCases.count)
    private var deletedRanges = DeletedRanges()
    /// The partitions that this process writes to; every further staged row is checked against it.
    private(set) var ownership: PartitionOwnership
    /// Partitions that decided the submission which is being staged, or that it writes to.
    private(set) var concerned = PartitionSet()
    /// Counts the staged operations: between a value and a deleted range, the later one holds.
    private var step = 0
    private var undo: [Undo] = []

    init(log: any CommitLog, ownership: PartitionOwnership = PartitionOwnership()) { (self.log, self.ownership) = (log, ownership) }

    // MARK: Writing

    /// Writes a value. The partition is in the key.
    package mutating func put(_ family: Family, _ key: Bytes, _ value: Bytes) {
        withBatch(of: key) { $0.put(family, key, value) }
        show(family, key, value)
    }

    /// Deletes a key, whether or not it is there.
    package mutating func delete(_ family: Family, _ key: Bytes) {
        withBatch(of: key) { $0.delete(family, key) }
        show(family, key, nil)
    }

    /// Deletes the keys with `lower <= key < upper`, staged or stored. Both are keys of the same partition.
    /// - Complexity: O(1) for a channel's own range; the log's own cost is small while the range holds few keys.
    package mutating func delete(_ family: Family, from lower: Bytes, to upper: Bytes) {
        withBatch(of: lower) { $0.delete(family, from: lower, to: upper) }
        guard family.isOverlaid else { return }
        step += 1
        undo.append(.deletedRange(deletedRanges.insert(DeletedRange(family: family, lower: lower, upper: upper, step: step))))
    }

    /// Counts bytes that the submissions will have put by the time the commit is complete.
    package mutating func count(_ bytes: Int) {
        undo.append(.counted(bytes))
        self.bytes += bytes
    }

    /// The rows of that partition decide the submission that is being staged, also where it writes nothing there: it fails with the partition.
    /// - Throws: ``LogError`` with code `partition_unavailable` when this process does not own it.
    package mutating func concern(_ partition: UInt16) throws(LogError) {
        try ownership.open.require(partition)
        concerned.insert(partition)
    }

    /// From here on this process owns the partition. Nothing of it may be staged before in this commit.
    package mutating func open(_ partition: UInt16, epoch: UInt64) { ownership.open(partition, epoch: epoch) }

    /// Nothing more of the partition is staged; the rows so far are committed.
    package mutating func close(_ partition: UInt16) { ownership.close(partition) }

    // MARK: Reading

    /// The value of a key as the submission finds it: staged before in this commit, or stored.
    /// - Throws: ``LogError`` with code `data_damaged`; thrown on by the submission, it fails that submission only.
    package func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? {
        if family.isOverlaid {
            let deleted = deletedRanges.latest(family, key)
            if let staged = overlay[family][key], staged.step > deleted ?? 0 { return staged.value }
            if deleted != nil { return nil }
        }
        return try log.get(family, key)
    }

    // MARK: The writer's side

    /// Everything staged until now stays.
    mutating func keep() {
        undo.removeAll(keepingCapacity: true)
        concerned = PartitionSet()
    }

    /// Rolls back what was staged since the last `keep()`.
    mutating func rollBack() {
        for step in undo.reversed() {
            switch step {
            case .written(let index, let mark):
                bytes -= batches[index].bytes.count - mark.bytes
                batches[index].rewind(to: mark)
            case .shown(let family, let key, let previous): overlay[family][key] = previous
            case .counted(let count): bytes -= count
            case .deletedRange(let place): deletedRanges.removeLast(place)
            }
        }
        keep()
    }

    /// The batches to commit; nothing may be staged afterwards.
    func finish() -> [Batch] { batches.filter { $0.count > 0 } }

    // MARK: Details

    private struct Staged {
        let value: Bytes?
        let step: Int
    }

    /// How to take one step back.
    private enum Undo {
        case written(Int, Batch.Mark)
        case shown(Family, Bytes, previous: Staged?)
        case deletedRange(DeletedRanges.Place)
        case counted(Int)
    }

    private mutating func withBatch(of key: Bytes, _ write: (inout Batch) -> Void) {
        let partition: UInt16 = key.readBigEndian(at: 0)
        let index: Int
        if let known = indexes[partition] {
            index = known
        } else {
            index = batches.count
            indexes[partition] = index
            batches.append(Batch(partition: partition, epoch: ownership.epochs[partition] ?? 0))
        }
        concerned.insert(partition)
        let mark = batches[index].mark
        undo.append(.written(index, mark))
        write(&batches[index])
        bytes += batches[index].bytes.count - mark.bytes
    }

    private mutating func show(_ family: Family, _ key: Bytes, _ value: Bytes?) {
        guard family.isOverlaid else { return }
        step += 1
        undo.append(.shown(family, key, previous: overlay[family].updateValue(Staged(value: value, step: step), forKey: key)))
    }
}

private struct DeletedRange {
    let family: Family
    let lower: Bytes
    let upper: Bytes
    let step: Int

    func contains(_ key: Bytes) -> Bool { !key.lexicographicallyPrecedes(lower) && key.lexicographicallyPrecedes(upper) }
}

/// Ranges that were deleted, by what all keys of the range begin with: a commit may remove a thousand channels, with several ranges each.
private struct DeletedRanges {
    /// The place of a range; `nil` among those whose keys have too little in common.
    typealias Place = Bytes?

    private var byPrefix: [Bytes: [DeletedRange]] = [:]
    private var others: [DeletedRange] = []
    /// `[partition u16][channel u64]`, and behind the partition the mark of a kind of rows.
    private static let prefixBytes = [10, 11]

    mutating func insert(_ range: DeletedRange) -> Place {
        for count in DeletedRanges.prefixBytes where range.lower.count == count {
            // Up to the next channel's: all keys in between begin like the first.
            guard range.upper == range.lower.endOfPrefix else { continue }
            byPrefix[range.lower, default: []].append(range)
            return range.lower
        }
        others.append(range)
        return nil
    }

    /// Removes the range that was inserted last.
    mutating func removeLast(_ place: Place) {
        guard let place else { return others.removeLast(1) }
        byPrefix[place]!.removeLast()
        if byPrefix[place]!.isEmpty { byPrefix[place] = nil }
    }

    /// The step that deleted the key last, if any did.
    func latest(_ family: Family, _ key: Bytes) -> Int? {
        if byPrefix.isEmpty && others.isEmpty { return nil }
        var latest = others.last { $0.family == family && $0.contains(key) }?.step
        for count in DeletedRanges.prefixBytes where key.count >= count {
            guard let ranges = byPrefix[Bytes(key[..<count])] else { continue }
            if let step = ranges.last(where: { $0.family == family })?.step { latest = max(latest ?? 0, step) }
        }
        return latest
    }
}

extension Family {
    fileprivate var isOverlaid: Bool { self != .log && self != .states && self != .inbox }
}

extension Array {
    fileprivate subscript(family: Family) -> Element {
        get { self[Int(family.rawValue)] }
        _modify { yield &self[Int(family.rawValue)] }
    }
}
