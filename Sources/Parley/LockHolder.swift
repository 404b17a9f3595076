internal import Glibc

/// Finds the process that holds a lock on a file.
enum LockHolder {
    /// `process 4711`, as the kernel lists it; `nil` when it does not tell, as in another container.
    static func find(_ file: String) -> String? {
        var status = Glibc.stat()
        guard stat(file, &status) == 0 else { return nil }
        // The list is read in pieces: while others lock and unlock, a read can miss a line.
        for _ in 0..<attemptsMax {
            guard let locks = list() else { return nil }
            if let found = find(inode: UInt64(status.st_ino), in: locks) { return found }
            usleep(10_000)
        }
        return nil
    }

    /// All of the kernel's list. It gives a page at a time, so a read that is short is not the last.
    private static func list() -> String? {
        guard let file = fopen("/proc/locks", "re") else { return nil }
        defer { fclose(file) }
        var (list, page) = ([UInt8](), [UInt8](repeating: 0, count: 16 << 10))
        while case let count = fread(&page, 1, page.count, file), count > 0 { list += page[..<count] }
        return String(decoding: list, as: UTF8.self)
    }

    private static let attemptsMax = 20

    /// Each line is `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`, with the file's device and inode.
    private static func find(inode: UInt64, in locks: String) -> String? {
        for line in locks.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count > 5, words[1] == "FLOCK", words[5].hasSuffix(":\(inode)"), let process = Int(words[4]), process > 0 else {
                continue
            }
            return "process \(process)"
        }
        return nil
    }
}
