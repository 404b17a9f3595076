package import ParleySystem

/// What the submissions of one commit have staged so far: one batch per partition, and what later submissions must already see.
///
/// ``get(_:_:)`` sees what was staged before in every family but `log` and `states`, where it sees the last commit only: nobody
/// decides anything by them, and each put would cost a dictionary entry. Scans go to ``log`` and see the last commit only.
///
/// When a submission throws, everything it staged is taken back.
package struct Stage {
    /// The log as of the last commit, for scans.
    package let log: any CommitLog
    /// Bytes staged so far.
    package private(set) var bytes = 0

    private(set) var batches: [Batch] = []
    private var indexes: [UInt16: Int] = [:]
    private var overlay = [[Bytes: Bytes?]](repeating: [:], count: Family.allCases.count)
    private var deletedRanges: [DeletedRange] = []
    private var undo: [Undo] = []

    init(log: any CommitLog) { self.log = log }

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
    /// - Complexity: O(what is staged in the family), and one range tombstone.
    package mutating func delete(_ family: Family, from lower: Bytes, to upper: Bytes) {
        let range = DeletedRange(family: family, lower: lower, upper: upper)
        withBatch(of: lower) { $0.delete(family, from: lower, to: upper) }
        guard family.isOverlaid else { return }
        for key in overlay[family].keys where range.contains(key) { show(family, key, nil) }
        undo.append(.deletedRanges(deletedRanges.count))
        deletedRanges.append(range)
    }

    /// Counts bytes that the submissions will have put by the time the commit is complete.
    package mutating func count(_ bytes: Int) {
        undo.append(.counted(bytes))
        self.bytes += bytes
    }

    // MARK: Reading

    /// The value of a key as the submission finds it: staged before in this commit, or stored.
    /// - Throws: ``LogError`` with code `data_damaged`; thrown on by the submission, it fails that submission only.
    package func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? {
        if family.isOverlaid {
            if let staged = overlay[family][key] { return staged }
            if deletedRanges.contains(where: { $0.family == family && $0.contains(key) }) { return nil }
        }
        return try log.get(family, key)
    }

    // MARK: The writer's side

    /// Everything staged until now stays.
    mutating func keep() { undo.removeAll(keepingCapacity: true) }

    /// Takes back what was staged since the last `keep()`.
    mutating func takeBack() {
        for step in undo.reversed() {
            switch step {
            case .written(let index, let mark):
                bytes -= batches[index].bytes.count - mark.bytes
                batches[index].rewind(to: mark)
            case .shown(let family, let key, let previous): overlay[family][key] = previous
            case .counted(let count): bytes -= count
            case .deletedRanges(let count): deletedRanges.removeLast(deletedRanges.count - count)
            }
        }
        keep()
    }

    /// The batches to commit; nothing may be staged afterwards.
    func finish() -> [Batch] { batches.filter { $0.count > 0 } }

    // MARK: Details

    private struct DeletedRange {
        let family: Family
        let lower: Bytes
        let upper: Bytes

        func contains(_ key: Bytes) -> Bool { !key.lexicographicallyPrecedes(lower) && key.lexicographicallyPrecedes(upper) }
    }

    /// How to take one step back.
    private enum Undo {
        case written(Int, Batch.Mark)
        case shown(Family, Bytes, previous: Bytes??)
        case deletedRanges(Int)
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
            batches.append(Batch(partition: partition))
        }
        let mark = batches[index].mark
        undo.append(.written(index, mark))
        write(&batches[index])
        bytes += batches[index].bytes.count - mark.bytes
    }

    private mutating func show(_ family: Family, _ key: Bytes, _ value: Bytes?) {
        guard family.isOverlaid else { return }
        undo.append(.shown(family, key, previous: overlay[family].updateValue(value, forKey: key)))
    }
}

extension Family {
    fileprivate var isOverlaid: Bool { self != .log && self != .states }
}

extension [[Bytes: Bytes?]] {
    fileprivate subscript(family: Family) -> [Bytes: Bytes?] {
        get { self[Int(family.rawValue)] }
        _modify { yield &self[Int(family.rawValue)] }
    }
}
