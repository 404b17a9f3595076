internal import Glibc
package import ParleySystem
internal import Synchronization

/// The log of one node, in the folder `<data>/log`: RocksDB, whose write-ahead log is synced by every commit.
package final class RocksLog: CommitLog {
    /// `nil` once closed. The folder is there for its lock.
    private let state: Mutex<(database: RocksDatabase, folder: DataFolder)?>
    private let failed = Atomic(false)
    private let path: String

    /// Opens the log of `folder`; replays what the last process left in the write-ahead log, at most about 256 MB.
    ///
    /// - Parameter statistics: Whether RocksDB counts what it does, for ``syncCount``; costs a few percent.
    /// - Throws: ``LogError`` with code `data_damaged` (names the file), `data_format_newer`, `log_write_failed` (no space left) or
    ///   `data_folder_inaccessible`.
    package init(_ folder: DataFolder, statistics: Bool = false) throws(LogError) {
        path = folder.logPath
        // Opening writes about 100 KB before it can report anything: its log, a manifest and the first write-ahead log.
        try folder.requireSpace(bytes: 4 << 20)
        do {
            state = Mutex((try RocksDatabase(path: path, options: RocksOptions(statistics: statistics)), folder))
        } catch {
            throw LogError(opening: folder.logPath, error.text)
        }
    }

    /// One write and one `fdatasync` for all batches, whatever their number.
    package func commit(_ batches: [Batch]) throws(LogError) {
        let database = try open
        Failpoint.pass("commit.before")
        Failpoint.passSoon("commit.during")
        do {
            try database.write(batches)
        } catch {
            failed.store(true, ordering: .releasing)
            throw LogError(writing: path, error.text)
        }
        Failpoint.pass("commit.after")
    }

    package func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? {
        let database = try open
        do {
            return try database.get(family, key)
        } catch {
            throw LogError(reading: family, path, error.text)
        }
    }

    package func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(LogError) {
        let database = try open
        do {
            try lower.withUnsafeBufferPointer { lower throws(RocksDatabase.Failure) in
                try upper.withUnsafeBufferPointer { upper throws(RocksDatabase.Failure) in
                    try database.scan(
                        family, from: UnsafeRawBufferPointer(lower), to: UnsafeRawBufferPointer(upper), reversed: reversed, visit)
                }
            }
        } catch {
            throw LogError(reading: family, path, error.text)
        }
    }

    /// Closes RocksDB once the calls under way have returned, and lets go of the folder.
    package func close() { state.withLock { $0 = nil } }

    /// How often the write-ahead log has been synced; `nil` unless the log was opened with statistics.
    package var syncCount: Int? {
        get throws(LogError) {
            guard let text = try open.statistics else { return nil }
            // One line a counter: `rocksdb.wal.synced COUNT : 12`.
            let line = text.split(separator: "\n").first { $0.hasPrefix("rocksdb.wal.synced ") }
            return line?.split(separator: " ").last.flatMap { Int($0) }
        }
    }

    /// Moves everything from memory to table files: for tests of damage to them.
    package func flush() throws(LogError) {
        let database = try open
        do {
            try database.flush()
        } catch {
            throw LogError(writing: path, error.text)
        }
    }

    /// The database, kept alive by the caller while it uses it.
    private var open: RocksDatabase {
        get throws(LogError) {
            if failed.load(ordering: .acquiring) { throw LogError(.closed, "a write to '\(path)' has failed before; restart the server") }
            guard let database = state.withLock({ $0?.database }) else { throw LogError(.closed, "the log '\(path)' has been closed") }
            return database
        }
    }
}

// MARK: - What RocksDB says, in terms of the log

extension LogError {
    init(opening path: String, _ text: String) {
        let said = "cannot open '\(path)': \(text)"
        if text.hasPrefix("Corruption") {
            let files = text.contains(path) ? "" : " (one of: \(LogError.writeAheadFiles(path)))"
            self.init(.damaged, "\(said)\(files). Restore the folder from a backup; nothing was changed")
        } else if text.contains("olumn famil") {
            self.init(.newerFormat, "\(said). The folder was written by a newer version of parley: run that version")
        } else if LogError.isFull(text) {
            self.init(.writeFailed, "\(said). Free some space on the disk and start again")
        } else {
            self.init(.inaccessible, "\(said). The folder must be readable and writable for the user parley runs as")
        }
    }

    init(writing path: String, _ text: String) {
        let remedy = LogError.isFull(text) ? "free some space on the disk and start again" : "check the disk and start again"
        self.init(.writeFailed, "cannot write to '\(path)': \(text). Nothing acknowledged is lost; \(remedy)")
    }

    init(reading family: Family, _ path: String, _ text: String) {
        let code: Code = text.hasPrefix("Corruption") ? .damaged : .inaccessible
        self.init(code, "cannot read family '\(family)' of '\(path)': \(text)")
    }

    private static func isFull(_ text: String) -> Bool {
        [ENOSPC, EDQUOT, EFBIG].contains { text.contains(String(cString: strerror($0))) }
    }

    /// The names of the write-ahead log's files: RocksDB does not always say in which it found damage.
    private static func writeAheadFiles(_ path: String) -> String {
        DataFolder.entries(path).filter { $0.hasSuffix(".log") }.sorted().joined(separator: ", ")
    }
}
