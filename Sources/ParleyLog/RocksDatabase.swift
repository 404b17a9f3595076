internal import CRocksDB
internal import Glibc
internal import ParleySystem

/// An open RocksDB with the families of ``Family``: the C API in Swift's terms, and nothing else.
///
/// Errors are RocksDB's own text, e.g. `Corruption: block checksum mismatch ... in data/log/000012.sst offset 0 size 4096`.
final class RocksDatabase: @unchecked Sendable {
    // Guard: RocksDB is thread-safe, the handles are written by `init` alone, and `tombstones` by the writer.

    struct Failure: Error {
        let text: String
    }

    private let handle: OpaquePointer
    private let families: [OpaquePointer]
    private let defaultFamily: OpaquePointer
    private let options: RocksOptions
    private let reading = rocksdb_readoptions_create()!
    private let writing = rocksdb_writeoptions_create()!
    /// About how many range tombstones each family has in memory.
    private(set) var tombstones = [Int](repeating: 0, count: Family.allCases.count)

    /// Opens, and creates where it is missing.
    init(path: String, options: RocksOptions) throws(Failure) {
        let names = ["default"] + Family.allCases.map(\.name)
        let perFamily: [OpaquePointer?] = [options.main] + Family.allCases.map(options.forFamily)
        var opened = [OpaquePointer?](repeating: nil, count: names.count)
        let cNames = names.map { strdup($0) }
        defer { for name in cNames { free(name) } }
        var error: UnsafeMutablePointer<CChar>?
        let handle = rocksdb_open_column_families(
            options.main, path, CInt(names.count), cNames.map { UnsafePointer($0) }, perFamily, &opened, &error)
        if let failure = RocksDatabase.take(error) { throw failure }
        self.handle = handle!
        self.options = options
        defaultFamily = opened[0]!
        families = opened.dropFirst().map { $0! }
        rocksdb_writeoptions_set_sync(writing, 1)
    }

    deinit {
        rocksdb_readoptions_destroy(reading)
        rocksdb_writeoptions_destroy(writing)
        rocksdb_column_family_handle_destroy(defaultFamily)
        for family in families { rocksdb_column_family_handle_destroy(family) }
        rocksdb_close(handle)
    }

    /// Writes all batches with one write and one `fdatasync` of the write-ahead log. One thread at a time.
    func write(_ batches: [Batch]) throws(Failure) {
        let write = RocksWrite(batches, to: self)
        defer { write.destroy() }
        var error: UnsafeMutablePointer<CChar>?
        rocksdb_write(handle, writing, write.batch, &error)
        if let failure = RocksDatabase.take(error) { throw failure }
        try flushTombstones(write.tombstones)
    }

    /// Moves memtables that hold many range tombstones to table files, in the background.
    private func flushTombstones(_ added: [Int]) throws(Failure) {
        for family in Family.allCases where added[Int(family.rawValue)] > 0 {
            tombstones[Int(family.rawValue)] += added[Int(family.rawValue)]
            guard tombstones[Int(family.rawValue)] >= RocksDatabase.tombstonesMax else { continue }
            tombstones[Int(family.rawValue)] = 0
            try flush([family], waits: false)
        }
    }

    /// How many range tombstones a memtable holds: with so many, a read takes about a millisecond more.
    private static let tombstonesMax = 500

    func familyHandle(_ family: Family) -> OpaquePointer { families[Int(family.rawValue)] }

    /// Makes a copy that is consistent over all families and holds every write that has returned. `path` must not exist, its parent must.
    ///
    /// Tables are linked where the file system is the same, else copied. Nothing is flushed for it: the write-ahead log is copied up to its end, which
    /// may be in the middle of a record that is being written, as after a crash.
    func checkpoint(to path: String) throws(Failure) {
        var error: UnsafeMutablePointer<CChar>?
        let checkpoint = rocksdb_checkpoint_object_create(handle, &error)
        if let failure = RocksDatabase.take(error) { throw failure }
        defer { rocksdb_checkpoint_object_destroy(checkpoint) }
        let neverFlush = UInt64.max
        rocksdb_checkpoint_create(checkpoint, path, neverFlush, &error)
        if let failure = RocksDatabase.take(error) { throw failure }
    }

    func get(_ family: Family, _ key: Bytes) throws(Failure) -> Bytes? {
        var error: UnsafeMutablePointer<CChar>?
        // Pinned: the value is copied once, out of the block cache, and not a second time through a malloc.
        let pinned = key.withUnsafeBytes {
            rocksdb_get_pinned_cf(handle, reading, families[Int(family.rawValue)], $0.chars, $0.count, &error)
        }
        defer { rocksdb_pinnableslice_destroy(pinned) }
        if let failure = RocksDatabase.take(error) { throw failure }
        var count = 0
        guard let pinned, let value = rocksdb_pinnableslice_value(pinned, &count) else { return nil }
        return Bytes(UnsafeRawBufferPointer(start: value, count: count))
    }

    func scan(
        _ family: Family, from lower: UnsafeRawBufferPointer, to upper: UnsafeRawBufferPointer, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(Failure) {
        let options = rocksdb_readoptions_create()
        defer { rocksdb_readoptions_destroy(options) }
        // RocksDB keeps pointers to the bounds as long as the iterator lives, which is shorter than this call.
        rocksdb_readoptions_set_iterate_lower_bound(options, lower.chars, lower.count)
        rocksdb_readoptions_set_iterate_upper_bound(options, upper.chars, upper.count)
        // Frames of the log are usually read once: if they were cached, one reader of a long channel would push everything else out. The kernel's
        // page cache still has them, and reading 1 GB from there is no slower.
        if family == .log && !reversed { rocksdb_readoptions_set_fill_cache(options, 0) }
        // Inside one prefix the prefix filters spare most files; a seek that leaves it would miss keys with them.
        let onePrefix = family.hasPrefix && RocksOptions.samePrefix(lower, upper)
        rocksdb_readoptions_set_total_order_seek(options, onePrefix ? 0 : 1)

        let iterator = rocksdb_create_iterator_cf(handle, options, families[Int(family.rawValue)])
        defer { rocksdb_iter_destroy(iterator) }
        // With an upper bound, seeking to the last pair ends strictly below it.
        if reversed { rocksdb_iter_seek_to_last(iterator) } else { rocksdb_iter_seek(iterator, lower.chars, lower.count) }
        while rocksdb_iter_valid(iterator) != 0 {
            var (keyCount, valueCount) = (0, 0)
            let key = rocksdb_iter_key(iterator, &keyCount)
            let value = rocksdb_iter_value(iterator, &valueCount)
            let more = visit(
                UnsafeRawBufferPointer(start: key, count: keyCount), UnsafeRawBufferPointer(start: value, count: valueCount))
            guard more else { return }
            if reversed { rocksdb_iter_prev(iterator) } else { rocksdb_iter_next(iterator) }
        }
        // A damaged block ends the loop just like the end of the range does.
        var error: UnsafeMutablePointer<CChar>?
        rocksdb_iter_get_error(iterator, &error)
        if let failure = RocksDatabase.take(error) { throw failure }
    }

    /// Visits the keys with `lower <= key < upper` until `visit` returns false. All begin with the same prefix, where the family has prefixes.
    func visitKeys(
        _ family: Family, from lower: UnsafeRawBufferPointer, to upper: UnsafeRawBufferPointer, _ visit: (UnsafeRawBufferPointer) -> Bool
    ) throws(Failure) {
        let options = rocksdb_readoptions_create()
        defer { rocksdb_readoptions_destroy(options) }
        rocksdb_readoptions_set_iterate_upper_bound(options, upper.chars, upper.count)
        rocksdb_readoptions_set_fill_cache(options, 0)
        if family.hasPrefix {
            rocksdb_readoptions_set_prefix_same_as_start(options, 1)
        } else {
            rocksdb_readoptions_set_total_order_seek(options, 1)
        }
        let iterator = rocksdb_create_iterator_cf(handle, options, familyHandle(family))
        defer { rocksdb_iter_destroy(iterator) }
        rocksdb_iter_seek(iterator, lower.chars, lower.count)
        while rocksdb_iter_valid(iterator) != 0 {
            var count = 0
            let key = rocksdb_iter_key(iterator, &count)
            guard visit(UnsafeRawBufferPointer(start: key, count: count)) else { return }
            rocksdb_iter_next(iterator)
        }
        var error: UnsafeMutablePointer<CChar>?
        rocksdb_iter_get_error(iterator, &error)
        if let failure = RocksDatabase.take(error) { throw failure }
    }

    /// Writes what is in memory to table files, so that later reads go through them.
    func flush(_ families: [Family], waits: Bool = true) throws(Failure) {
        let options = rocksdb_flushoptions_create()
        defer { rocksdb_flushoptions_destroy(options) }
        rocksdb_flushoptions_set_wait(options, waits ? 1 : 0)
        for family in families {
            var error: UnsafeMutablePointer<CChar>?
            rocksdb_flush_cf(handle, options, self.families[Int(family.rawValue)], &error)
            if let failure = RocksDatabase.take(error) { throw failure }
        }
    }

    /// The memory of the newest writes, in all families.
    var memtableBytes: Int {
        families.reduce(0) { sum, family in
            var bytes: UInt64 = 0
            rocksdb_property_int_cf(handle, family, "rocksdb.cur-size-all-mem-tables", &bytes)
            return sum + Int(bytes)
        }
    }

    /// RocksDB's statistics as text; `nil` unless ``RocksOptions`` asked for them.
    var statistics: String? {
        guard let text = rocksdb_options_statistics_get_string(options.main) else { return nil }
        defer { rocksdb_free(text) }
        return String(cString: text)
    }

    private static func take(_ error: UnsafeMutablePointer<CChar>?) -> Failure? {
        guard let error else { return nil }
        defer { rocksdb_free(error) }
        return Failure(text: String(cString: error))
    }
}

extension UnsafeRawBufferPointer {
    /// The start as C sees it. The bytes lie in arrays, whose buffers have an address even when they are empty.
    var chars: UnsafePointer<CChar> { baseAddress!.assumingMemoryBound(to: CChar.self) }
}
