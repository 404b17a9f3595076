internal import Glibc
package import ParleySystem
internal import Synchronization

/// The log of one node, in the folder `<data>/log`: RocksDB, whose write-ahead log is synced by every commit.
package final class RocksLog: CommitLog {
    /// `nil` once closed. The folder is there for its lock.
    private let state: Mutex<(database: RocksDatabase, folder: DataFolder)?>
    private let failed = Atomic(false)
    /// The damage that reads have met.
    private let damage = Mutex<Set<String>>([])
    private static let damageMax = 1_000
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
        try RocksLog.examine(path)
        do {
            state = Mutex((try RocksDatabase(path: path, options: RocksOptions(statistics: statistics)), folder))
        } catch {
            throw LogError(opening: folder.logPath, error.text)
        }
    }

    /// One write and one `fdatasync` for all batches, whatever their number.
    @discardableResult
    package func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] {
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
        return [:]
    }

    package func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? {
        let database = try open
        do {
            return try database.get(family, key)
        } catch {
            throw unreadable(family, error)
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
            throw unreadable(family, error)
        }
    }

    /// Reports damage in the server's own log, once for each place: the clients that meet it may not report it.
    private func unreadable(_ family: Family, _ failure: RocksDatabase.Failure) -> LogError {
        let error = LogError(reading: family, path, failure.text)
        let isNew = error.code == .damaged && damage.withLock { $0.count < RocksLog.damageMax && $0.insert(failure.text).inserted }
        if isNew { Diagnostics.log(.error, "damaged data cannot be read", ["reason": error.message]) }
        return error
    }

    /// Closes RocksDB once the calls in flight have returned, and lets go of the folder.
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

    /// Its memory for the newest writes.
    package var memtableBytes: Int { get throws(LogError) { try open.memtableBytes } }

    /// About how many range tombstones are in memory, by family. Between commits.
    var tombstones: [Int] { get throws(LogError) { try open.tombstones } }

    /// Moves everything from memory to table files: for tests of damage to them.
    package func flush(_ families: [Family] = Family.allCases) throws(LogError) {
        let database = try open
        do {
            try database.flush(families)
        } catch {
            throw LogError(writing: path, error.text)
        }
    }

    /// Copies the data folder to `path`, which must not exist or be empty, while it is in use. Blocks; call it off the writer and off event loops.
    ///
    /// The copy holds everything acknowledged before the call. It can be opened as a data folder once this returns, and not before: `FORMAT` is
    /// written last.
    ///
    /// - Throws: ``LogError`` with code `data_folder_inaccessible` or `log_write_failed`; an unfinished copy stays where it is.
    package func backUp(to path: String) throws(LogError) {
        guard let (database, folder) = state.withLock({ $0 }) else { throw LogError(.closed, "the log '\(self.path)' has been closed") }
        let backup = try FolderBackup(of: folder.path, to: path)
        do { try database.checkpoint(to: "\(path)/log") } catch { throw LogError(backingUp: path, error.text) }
        // After the log: a file that the log names is there, and at least as new.
        try backup.copyRest()
        try backup.finish()
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

// MARK: - Before it is opened

extension RocksLog {
    /// Cuts off a record that a crash left unfinished, and that was never acknowledged; finds damage that RocksDB would take for such a rest.
    private static func examine(_ path: String) throws(LogError) {
        // One that CURRENT does not name well is left to RocksDB to complain about.
        let current = (try? DataFolder.read("\(path)/CURRENT"))?.filter { $0 != "\n" }
        if let current, let manifest = try? RecordFile("\(path)/\(current)"), case .damaged(let place) = try manifest.end() {
            throw LogError(damaged: manifest.path, at: place)
        }
        var isLast = true
        for name in writeAheadFiles(path).reversed() {
            let file = try RecordFile("\(path)/\(name)")
            switch try file.end() {
            case .whole: isLast = isLast && file.byteCount == 0
            case .cut(let place) where isLast:
                // RocksDB would drop it as well, but where the file has grown over sectors that were never written.
                try RecordFile.cut(file.path, at: place)
                Diagnostics.log(
                    .info, "the last write was not finished, and nobody was told of it: it is cut off",
                    ["file": file.path, "offset": "\(place)", "bytes": "\(file.byteCount - place)"])
                isLast = false
            case .cut(let place), .damaged(let place): throw LogError(damaged: file.path, at: place)
            }
        }
    }

    /// The names of the write-ahead log's files, oldest first.
    fileprivate static func writeAheadFiles(_ path: String) -> [String] {
        let numbered = DataFolder.entries(path).filter { $0.hasSuffix(".log") }.compactMap { name in
            Int(name.dropLast(4)).map { ($0, name) }
        }
        return numbered.sorted { $0.0 < $1.0 }.map(\.1)
    }

    /// The place of a wrong checksum in the write-ahead log: RocksDB does not always report it.
    fileprivate static func firstDamage(_ path: String) -> (file: String, place: Int)? {
        for name in writeAheadFiles(path) {
            let file = "\(path)/\(name)"
            if let place = try? RecordFile(file).firstDamage() { return (file, place) }
        }
        return nil
    }
}

// MARK: - What RocksDB says, in terms of the log

extension LogError {
    init(opening path: String, _ text: String) {
        let said = "cannot open '\(path)': \(text)"
        if text.hasPrefix("Corruption") {
            if !text.contains(path), let (file, place) = RocksLog.firstDamage(path) {
                self.init(damaged: file, at: place)
            } else {
                // RocksDB blames the list of all files for damage in one of them; most damage of the list itself was found before it was opened.
                let isTable = text.contains("/MANIFEST-")
                let place = isTable ? ". What is damaged is probably a table that the manifest lists, one of the .sst files" : ""
                self.init(.damaged, "\(said)\(place). \(LogError.restore)")
            }
        } else if text.contains("olumn famil") {
            self.init(.newerFormat, "\(said). The folder was written by a newer version of parley: run that version")
        } else if LogError.isFull(text) {
            self.init(.writeFailed, "\(said). Free some space on the disk and start again")
        } else {
            self.init(.inaccessible, "\(said). The folder must be readable and writable for the user parley runs as")
        }
    }

    init(damaged file: String, at place: Int) {
        self.init(.damaged, "'\(file)' is damaged at byte \(place): what was written there is not what is there now. \(LogError.restore)")
    }

    private static let restore = "Restore the folder from a backup; nothing was changed"

    init(writing path: String, _ text: String) {
        let next =
            if text.hasPrefix("Corruption") {
                // Met by what merges tables; RocksDB takes no writes then.
                LogError.restore
            } else if LogError.isFull(text) {
                "Nothing acknowledged is lost; free some space on the disk and start again"
            } else {
                "Nothing acknowledged is lost; check the disk and start again"
            }
        self.init(.writeFailed, "cannot write to '\(path)': \(text). \(next)")
    }

    init(backingUp path: String, _ text: String) {
        let remedy = LogError.isFull(text) ? "Free some space on that disk and back up into a new folder" : "Back up into another folder"
        self.init(.writeFailed, "cannot back up to '\(path)': \(text). \(remedy)")
    }

    init(reading family: Family, _ path: String, _ text: String) {
        let code: Code = text.hasPrefix("Corruption") ? .damaged : .inaccessible
        self.init(code, "cannot read family '\(family)' of '\(path)': \(text)")
    }

    private static func isFull(_ text: String) -> Bool {
        [ENOSPC, EDQUOT, EFBIG].contains { text.contains(String(cString: strerror($0))) }
    }
}
