internal import Glibc
internal import ParleySystem

/// The folder that holds everything a node has, locked against a second process while this value lives.
///
///     LOCK      locked by the process that has the folder open; says nothing itself
///     FORMAT    "parley data format 1\n": which versions can read the folder
///     log/      the log: RocksDB
///     signing-keys/  whose signatures receivers of subscriptions verify
///     SPACE     there while the log is being opened: claims the space that takes
package final class DataFolder: Sendable {
    /// The version of the layout that this program reads and writes.
    package static let format = 1

    package let path: String
    private let lock: CInt

    /// Opens the folder, and creates it (for its owner only) where it is missing.
    ///
    /// - Throws: ``LogError`` with code `data_folder_locked` (after two seconds), `data_format_newer`, `data_folder_inaccessible` (also when the
    ///   folder holds something else), `data_damaged` (the file FORMAT makes no sense) or `log_write_failed` (no space left).
    package convenience init(_ path: String) throws(LogError) {
        try self.init(path, format: DataFolder.format)
    }

    /// As if this program read and wrote up to `format`: for tests of what an older program says.
    init(_ path: String, format: Int) throws(LogError) {
        self.path = path
        try DataFolder.create(path)
        let found = DataFolder.entries(path)
        // Checked before anything is written: a mistyped path must not leave files in a person's home folder.
        guard found.contains("FORMAT") || found.allSatisfy(DataFolder.mayPrecedeFormat.contains) else {
            let names = found.sorted().prefix(3).joined(separator: ", ")
            guard !found.allSatisfy({ DataFolder.mayPrecedeFormat.contains($0) || DataFolder.own.contains($0) }) else {
                throw LogError(
                    .inaccessible,
                    "'\(path)' is not a whole data folder of parley (it holds \(names), and no file FORMAT): most likely a backup that was interrupted. Make the backup again, or name another folder with --data"
                )
            }
            throw LogError(
                .inaccessible, "'\(path)' is not empty and not a data folder of parley (it holds \(names)). Name an empty or a new folder")
        }
        lock = try DataFolder.takeLock(path)
        try checkFormat(format)
        try DataFolder.create(logPath)
    }

    deinit { close(lock) }

    /// The path of the log.
    package var logPath: String { "\(path)/log" }

    /// The folder of the keys that sign notifications of subscriptions.
    package var signingKeysPath: String { "\(path)/signing-keys" }

    /// Makes sure that the disk, the quota and the limits of the process allow a file of this size.
    /// - Throws: ``LogError`` with code `log_write_failed` or `data_folder_inaccessible`.
    func requireSpace(bytes: Int) throws(LogError) {
        let file = "\(path)/SPACE"
        let fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw LogError(.inaccessible, "cannot create '\(file)'", errno) }
        defer {
            close(fd)
            unlink(file)
        }
        let reason = posix_fallocate(fd, 0, bytes)
        guard reason == 0 else {
            throw LogError(.writeFailed, "'\(path)' has no space for \(bytes >> 20) MB, the least to start with", reason)
        }
    }

    /// The files that a killed first start can have left, or that a fresh file system holds.
    private static let mayPrecedeFormat: Set = ["LOCK", "FORMAT.new", "lost+found"]

    /// The files beside FORMAT in a data folder, and RocksDB's name for an unfinished copy of the log.
    private static let own: Set = ["log", "log.tmp", "signing-keys", "files", "SPACE"]

    private func checkFormat(_ supported: Int) throws(LogError) {
        let file = "\(path)/FORMAT"
        guard access(file, F_OK) == 0 else { return try DataFolder.write("parley data format \(supported)\n", to: "FORMAT", in: path) }
        let text = try DataFolder.read(file)
        let words = text.split(whereSeparator: \.isWhitespace)
        guard words.count == 4, words[0...2].elementsEqual(["parley", "data", "format"]), let version = Int(words[3]), version > 0 else {
            throw LogError(
                .damaged,
                "'\(file)' should read \"parley data format \(supported)\" and does not. Restore the file, or the folder from a backup")
        }
        guard version <= supported else {
            throw LogError(
                .newerFormat,
                "'\(path)' has data format \(version), and this version of parley reads formats up to \(supported). "
                    + "Run the version that wrote it, or a newer one"
            )
        }
    }
}

// MARK: - Files

extension DataFolder {
    /// The names in a folder; none when it cannot be read.
    static func entries(_ path: String) -> [String] {
        guard let folder = opendir(path) else { return [] }
        defer { closedir(folder) }
        var names: [String] = []
        while let entry = readdir(folder) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
            if name != "." && name != ".." { names.append(name) }
        }
        return names
    }

    /// Creates a folder where it is missing, with those above it, and makes their names durable.
    static func create(_ path: String) throws(LogError) {
        switch reasonAgainst(path) {
        case 0: return
        case ENOENT: if parent(path) != path { try create(parent(path)) }
        case let reason: throw LogError(.inaccessible, "cannot open the folder '\(path)'", reason)
        }
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
            let reason = errno
            throw LogError(reason == ENOSPC ? .writeFailed : .inaccessible, "cannot create the folder '\(path)'", reason)
        }
        try syncFolder(parent(path))
    }

    /// Why a path is not a folder that can be listed and entered; 0 when it is one.
    private static func reasonAgainst(_ path: String) -> CInt {
        let fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard fd >= 0 else { return errno }
        defer { close(fd) }
        return faccessat(fd, ".", X_OK, AT_EACCESS) == 0 ? 0 : errno
    }

    private static func parent(_ path: String) -> String {
        var parts = path.split(separator: "/", omittingEmptySubsequences: true)
        _ = parts.popLast()
        return path.hasPrefix("/") ? "/" + parts.joined(separator: "/") : parts.isEmpty ? "." : parts.joined(separator: "/")
    }

    private static func takeLock(_ path: String) throws(LogError) -> CInt {
        let file = "\(path)/LOCK"
        let fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw LogError(.inaccessible, "cannot open '\(file)'", errno) }
        // The system releases the lock when the process ends, however it ends: a LOCK file that stays behind keeps no process out. The release may
        // take a moment: a killed process is still being taken apart when its successor starts.
        var attempts = 100
        while flock(fd, LOCK_EX | LOCK_NB) != 0 {
            attempts -= 1
            if errno == EINTR || errno == EWOULDBLOCK && attempts > 0 {
                usleep(20_000)
                continue
            }
            let code = errno
            close(fd)
            guard code == EWOULDBLOCK else { throw LogError(.inaccessible, "cannot lock '\(file)'", code) }
            throw LogError(.locked, "another process has '\(path)' open. Stop it, or give this one a folder of its own with --data")
        }
        return fd
    }

    /// The text of a small file.
    static func read(_ file: String) throws(LogError) -> String {
        let fd = open(file, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { throw LogError(.inaccessible, "cannot open '\(file)'", errno) }
        defer { close(fd) }
        var buffer = Bytes(repeating: 0, count: 256)
        let count = Glibc.read(fd, &buffer, buffer.count)
        guard count >= 0 else { throw LogError(.inaccessible, "cannot read '\(file)'", errno) }
        return Bytes(buffer.prefix(count)).text
    }

    /// Writes a small file that is afterwards there as a whole or not at all, whenever the power goes.
    static func write(_ text: String, to name: String, in folder: String) throws(LogError) {
        let (new, file) = ("\(folder)/\(name).new", "\(folder)/\(name)")
        let fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw LogError(.inaccessible, "cannot create '\(new)'", errno) }
        let bytes = Bytes(text.utf8)
        let written = Glibc.write(fd, bytes, bytes.count) == bytes.count && fsync(fd) == 0
        let code = errno
        close(fd)
        guard written else { throw LogError(.writeFailed, "cannot write '\(new)'", code) }
        guard rename(new, file) == 0 else { throw LogError(.inaccessible, "cannot rename '\(new)' to '\(file)'", errno) }
        try syncFolder(folder)
    }

    static func syncFolder(_ path: String) throws(LogError) {
        let fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard fd >= 0 else { throw LogError(.inaccessible, "cannot open the folder '\(path)'", errno) }
        defer { close(fd) }
        guard fsync(fd) == 0 else { throw LogError(.writeFailed, "cannot sync the folder '\(path)'", errno) }
    }
}

extension LogError {
    /// The error of a failed system call, with the system's reason.
    init(_ code: Code, _ said: String, _ reason: CInt) {
        let remedy =
            switch reason {
            case EACCES, EPERM: ". Give it to the user parley runs as, or name another folder with --data"
            case ENOSPC, EDQUOT, EFBIG: ". Free some space on the disk, or raise the quota or limit"
            case EROFS: ". The file system is mounted read-only"
            default: ""
            }
        self.init(code, "\(said): \(String(cString: strerror(reason)))\(remedy)")
    }
}
