internal import Glibc
internal import ParleySystem

/// A copy of a data folder that is made while the folder is in use: everything but the log, which RocksDB copies.
struct FolderBackup {
    private let source: String
    private let target: String

    /// The files that are not copied: the log, those of the process, and `FORMAT`, which is written last.
    private static let passedOver: Set = ["log", "LOCK", "SPACE", "FORMAT", "FORMAT.new", "lost+found"]

    /// Creates the target folder.
    /// - Throws: ``LogError`` with code `invalid_folder` when the folder cannot be created, or is not empty.
    init(of source: String, to target: String) throws(LogError) {
        (self.source, self.target) = (source, target)
        do { try DataFolder.create(target) } catch {
            throw error.code == .inaccessible
                ? LogError(.invalidFolder, "\(error.message). Name a folder that the server can create") : error
        }
        let found = DataFolder.entries(target)
        guard found.isEmpty else {
            let names = found.sorted().prefix(3).joined(separator: ", ")
            throw LogError(.invalidFolder, "'\(target)' is not empty (it holds \(names)). Name a new or an empty folder for each backup")
        }
    }

    /// Copies keys and agents' files.
    func copyRest() throws(LogError) {
        for name in DataFolder.entries(source) where !FolderBackup.passedOver.contains(name) {
            try copy("\(source)/\(name)", to: "\(target)/\(name)")
        }
    }

    /// Makes the copy a data folder, durably.
    func finish() throws(LogError) {
        try DataFolder.syncFolder("\(target)/log")
        try DataFolder.write("parley data format \(DataFolder.format)\n", to: "FORMAT", in: target)
    }

    /// Copies a file, or a folder with all it holds. Links, and files that are gone by now, are passed over.
    private func copy(_ from: String, to path: String) throws(LogError) {
        var status = stat()
        guard lstat(from, &status) == 0 else { return }
        switch status.st_mode & S_IFMT {
        case S_IFDIR:
            guard mkdir(path, status.st_mode & 0o777) == 0 else { throw LogError(.writeFailed, "cannot create '\(path)'", errno) }
            // A file that an agent is writing begins with a dot until it is whole.
            for name in DataFolder.entries(from) where !name.hasPrefix(".") { try copy("\(from)/\(name)", to: "\(path)/\(name)") }
            try DataFolder.syncFolder(path)
        case S_IFREG: try copyFile(from, to: path, mode: status.st_mode & 0o777)
        default: break
        }
    }

    private func copyFile(_ from: String, to path: String, mode: mode_t) throws(LogError) {
        let input = open(from, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
        guard input >= 0 else {
            if errno == ENOENT { return }
            throw LogError(.inaccessible, "cannot read '\(from)'", errno)
        }
        defer { close(input) }
        let output = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode)
        guard output >= 0 else { throw LogError(.writeFailed, "cannot create '\(path)'", errno) }
        defer { close(output) }
        var buffer = Bytes(repeating: 0, count: 64 << 10)
        while true {
            let count = read(input, &buffer, buffer.count)
            guard count >= 0 else { throw LogError(.inaccessible, "cannot read '\(from)'", errno) }
            guard count > 0 else { break }
            guard write(output, buffer, count) == count else { throw LogError(.writeFailed, "cannot write '\(path)'", errno) }
        }
        guard fsync(output) == 0 else { throw LogError(.writeFailed, "cannot sync '\(path)'", errno) }
    }
}
