internal import CRocksDB

/// How RocksDB is set up. The constants were chosen with 200-byte messages over 1 to 1,000,000 channels, two cores and an SSD.
final class RocksOptions: @unchecked Sendable {  // Guard: written by `init` alone.
    /// The options of the database, and of the families whose keys do not begin with a channel.
    let main: OpaquePointer
    private let byChannel: OpaquePointer
    private let big: OpaquePointer

    /// The memory for the newest writes, in all families; while it is written to tables, up to twice as much.
    private static let memtableBytes = 24 << 20

    /// The bytes of `[partition u16][channel u64]`.
    static let prefixBytes = 10

    init(statistics: Bool) {
        // One cache for all families; it holds index and filter blocks too, or those would grow with the data without a bound.
        let cache = rocksdb_cache_create_lru(128 << 20)
        defer { rocksdb_cache_destroy(cache) }
        main = RocksOptions.trackingLogs(RocksOptions.family(cache))
        byChannel = RocksOptions.family(cache, prefixed: true)
        big = RocksOptions.family(cache, prefixed: true)
        RocksOptions.configureDatabase(main)
        if statistics { rocksdb_options_enable_statistics(main) }

        // Content from 4 KB up goes to blob files, which compaction does not rewrite: write amplification 2.2 instead of 3.0.
        rocksdb_options_set_enable_blob_files(big, 1)
        rocksdb_options_set_min_blob_size(big, 4 << 10)
        rocksdb_options_set_enable_blob_gc(big, 1)
    }

    deinit {
        for options in [main, byChannel, big] { rocksdb_options_destroy(options) }
    }

    func forFamily(_ family: Family) -> OpaquePointer {
        family == .big ? big : family.hasPrefix ? byChannel : main
    }

    /// Whether a range stays inside one prefix.
    static func samePrefix(_ lower: UnsafeRawBufferPointer, _ upper: UnsafeRawBufferPointer) -> Bool {
        lower.count >= prefixBytes && upper.count >= prefixBytes && lower.prefix(prefixBytes).elementsEqual(upper.prefix(prefixBytes))
    }

    /// The same options, with what the C API has no call for: the manifest tells which files the write-ahead log must have and how long each was
    /// when the next one began, so that a missing file or half of one is not taken for a log that never was longer.
    private static func trackingLogs(_ options: OpaquePointer) -> OpaquePointer {
        defer { rocksdb_options_destroy(options) }
        let tracking = rocksdb_options_create()!
        var error: UnsafeMutablePointer<CChar>?
        rocksdb_get_options_from_string(options, "track_and_verify_wals_in_manifest=true", tracking, &error)
        precondition(error == nil, "RocksDB does not know an option: \(error.map { String(cString: $0) } ?? "")")
        return tracking
    }

    private static func configureDatabase(_ options: OpaquePointer) {
        rocksdb_options_set_create_if_missing(options, 1)
        rocksdb_options_set_create_missing_column_families(options, 1)

        // A record that is cut off at the end of the log was never synced, so it was never acknowledged: it is dropped (`RocksLog` has looked at it
        // before, see RecordFile.swift). Anything else that does not check out is damage to what may have been acknowledged, and opening fails.
        // RocksDB's default, point in time, would stop there without a word and lose every acknowledged write behind it; absolute consistency would
        // refuse the cut-off record, which an ordinary crash leaves.
        rocksdb_options_set_wal_recovery_mode(options, CInt(rocksdb_tolerate_corrupted_tail_records_recovery))
        rocksdb_options_set_paranoid_checks(options, 1)

        // Bounds what is replayed after a crash to about half a second.
        rocksdb_options_set_max_total_wal_size(options, 256 << 20)
        // The memtables of all families together: each alone may have as much, and there are eleven.
        rocksdb_options_set_db_write_buffer_size(options, RocksOptions.memtableBytes)
        // One flush and one compaction: they share the cores with the server.
        rocksdb_options_set_max_background_jobs(options, 2)
        // Tables go to the disk as they are written: written all at once, 64 MB would precede the next sync of the write-ahead log.
        rocksdb_options_set_bytes_per_sync(options, 1 << 20)
        rocksdb_options_set_max_open_files(options, 1_000)
        // By default the kernel is told that tables are read at random, and then it reads nothing ahead for a reader that catches up.
        rocksdb_options_set_advise_random_on_open(options, 0)

        // RocksDB's own log says how it was opened, and nothing later: Debian builds the library with assertions, and one of them ends the process at
        // the second line that a full disk refuses. The calls report errors anyway.
        let fatal: CInt = 4
        rocksdb_options_set_info_log_level(options, fatal)
        rocksdb_options_set_max_log_file_size(options, 1 << 20)
        rocksdb_options_set_keep_log_file_num(options, 2)
        rocksdb_options_set_stats_dump_period_sec(options, 0)
    }

    private static func family(_ cache: OpaquePointer?, prefixed: Bool = false) -> OpaquePointer {
        let table = rocksdb_block_based_options_create()
        defer { rocksdb_block_based_options_destroy(table) }
        rocksdb_block_based_options_set_block_size(table, 16 << 10)
        rocksdb_block_based_options_set_block_cache(table, cache)
        rocksdb_block_based_options_set_cache_index_and_filter_blocks(table, 1)
        rocksdb_block_based_options_set_pin_l0_filter_and_index_blocks_in_cache(table, 1)
        rocksdb_block_based_options_set_filter_policy(table, rocksdb_filterpolicy_create_bloom_full(10))  // Owned by the table.
        // In parts: the whole filter of a table with a million small rows is larger than what a shard of the cache holds, and was read from the
        // file for every lookup, 0.7 ms each.
        rocksdb_block_based_options_set_index_type(table, CInt(rocksdb_block_based_table_index_type_two_level_index_search))
        rocksdb_block_based_options_set_partition_filters(table, 1)
        rocksdb_block_based_options_set_metadata_block_size(table, 4 << 10)
        rocksdb_block_based_options_set_pin_top_level_index_and_filter(table, 1)

        let options = rocksdb_options_create()!
        rocksdb_options_set_block_based_table_factory(options, table)
        if prefixed { rocksdb_options_set_prefix_extractor(options, rocksdb_slicetransform_create_fixed_prefix(prefixBytes)) }
        // 8 MB memtables with recycled logs gave a p99 of 190 ms at 10,000 messages a second.
        rocksdb_options_set_write_buffer_size(options, memtableBytes)
        rocksdb_options_set_level_compaction_dynamic_level_bytes(options, 1)
        // LZ4 took 25 % more processor time and saved nothing on short messages.
        rocksdb_options_set_compression(options, CInt(rocksdb_no_compression))
        return options
    }
}

extension Family {
    /// Whether every key is `[partition][channel]...`, so that the reads of a channel can skip files by its prefix.
    var hasPrefix: Bool {
        switch self {
        case .channels, .log, .states, .inbox, .producers, .idempotency, .outbox, .big: true
        case .names, .timers, .index: false
        }
    }
}
