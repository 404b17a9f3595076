internal import CRocksDB
internal import ParleySystem

/// A commit's write to RocksDB, with the ranges that it deletes.
///
/// A range that holds few keys is deleted key by key. RocksDB sorts all range tombstones of a memtable again for the first read behind each write, so
/// each one makes every later read and delete slower: 45,000 removed channels made it 77 ms. A range of many keys is a tombstone, and the memtables
/// that hold tombstones are flushed to table files, where they are sorted once, before there are many.
struct RocksWrite {
    private let database: RocksDatabase
    private let write = rocksdb_writebatch_create()!
    /// The keys that this write has put, by the beginning of those of one channel; kept only if it deletes ranges.
    private var placed: [Bytes: [Bytes]] = [:]
    private let deletesRanges: Bool
    /// How many range tombstones it has, by family.
    private(set) var tombstones = [Int](repeating: 0, count: Family.allCases.count)

    /// A range of more keys is a tombstone. A value of the log has up to 64 KB, and finding a key may read it.
    private static let keysMax = 64

    init(_ batches: [Batch], to database: RocksDatabase) {
        self.database = database
        deletesRanges = batches.contains(where: \.deletesRanges)
        for batch in batches {
            batch.forEach { operation, family, key, value in
                switch operation {
                case .put: put(family, key, value)
                case .delete: delete(family, key)
                case .deleteRange: delete(family, from: key, to: value)
                }
            }
        }
    }

    func destroy() { rocksdb_writebatch_destroy(write) }

    var batch: OpaquePointer { write }

    private mutating func put(_ family: Family, _ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) {
        rocksdb_writebatch_put_cf(write, database.familyHandle(family), key.chars, key.count, value.chars, value.count)
        if deletesRanges, let place = family.place(of: key) { placed[place, default: []].append(Bytes(key)) }
    }

    private func delete(_ family: Family, _ key: UnsafeRawBufferPointer) {
        rocksdb_writebatch_delete_cf(write, database.familyHandle(family), key.chars, key.count)
    }

    private mutating func delete(_ family: Family, from lower: UnsafeRawBufferPointer, to upper: UnsafeRawBufferPointer) {
        guard let keys = keys(family, lower, upper) else {
            tombstones[Int(family.rawValue)] += 1
            rocksdb_writebatch_delete_range_cf(write, database.familyHandle(family), lower.chars, lower.count, upper.chars, upper.count)
            return
        }
        for key in keys { key.withUnsafeBytes { delete(family, $0) } }
    }

    /// The keys of the range, in the log and in this write; `nil` when they are many, not of one channel, or cannot be read.
    private func keys(_ family: Family, _ lower: UnsafeRawBufferPointer, _ upper: UnsafeRawBufferPointer) -> [Bytes]? {
        guard let place = family.place(of: lower), lower.isRange(to: upper, inside: place.count - 1) else { return nil }
        var keys = (placed[place] ?? []).filter { key in key.withUnsafeBytes { !$0.precedes(lower) && $0.precedes(upper) } }
        do throws(RocksDatabase.Failure) {
            try database.visitKeys(family, from: lower, to: upper) { key in
                keys.append(Bytes(key))
                return keys.count <= RocksWrite.keysMax
            }
        } catch {
            return nil
        }
        return keys.count <= RocksWrite.keysMax ? keys : nil
    }
}

extension Batch {
    fileprivate var deletesRanges: Bool {
        var found = false
        forEach { operation, _, _, _ in found = found || operation == .deleteRange }
        return found
    }
}

extension Family {
    /// The common prefix of all keys of one channel, behind the number of the family; `nil` for a shorter key.
    fileprivate func place(of key: UnsafeRawBufferPointer) -> Bytes? {
        // In the families that are not by channel, the mark of a kind of rows comes before its number.
        let count = RocksOptions.prefixBytes + (hasPrefix ? 0 : 1)
        return key.count < count ? nil : [rawValue] + key.prefix(count)
    }
}

extension UnsafeRawBufferPointer {
    fileprivate func precedes(_ other: UnsafeRawBufferPointer) -> Bool { lexicographicallyPrecedes(other) }

    /// Whether all keys from here up to `upper` have the first `count` bytes in common.
    fileprivate func isRange(to upper: UnsafeRawBufferPointer, inside count: Int) -> Bool {
        if upper.count >= count, upper.prefix(count).elementsEqual(prefix(count)) { return true }
        return upper.elementsEqual(Bytes(prefix(count)).endOfPrefix)
    }
}
