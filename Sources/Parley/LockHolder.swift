internal import FoundationEssentials
internal import Glibc

/// Who holds a lock on a file.
enum LockHolder {
    /// `process 4711`, as the kernel lists it; `nil` when it does not tell, as in another container.
    static func find(_ file: String) -> String? {
        var status = Glibc.stat()
        guard stat(file, &status) == 0 else { return nil }
        // The list is read in pieces: while others lock and unlock, a read can miss a line.
        for _ in 0..<attemptsMax {
            guard let locks = FileManager.default.contents(atPath: "/proc/locks") else { return nil }
            if let found = find(inode: UInt64(status.st_ino), in: String(decoding: locks, as: UTF8.self)) { return found }
            usleep(10_000)
        }
        return nil
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
