internal import Glibc

/// The memory of a process, in bytes.
struct Memory {
    /// Everything that is its own and no file's.
    var anonymous = 0
    /// The most that was ever resident, files included.
    var peak = 0

    init(of pid: Int32) {
        anonymous = Memory.field("Anonymous:", in: "/proc/\(pid)/smaps_rollup")
        peak = Memory.field("VmHWM:", in: "/proc/\(pid)/status")
    }

    /// The kernel's memory for all TCP connections of the machine.
    static var sockets: Int {
        let words = Usage.read("/proc/net/sockstat").split(separator: "\n").first { $0.hasPrefix("TCP:") }?.split(separator: " ") ?? []
        return (words.last.flatMap { Int($0) } ?? 0) * sysconf(Int32(_SC_PAGESIZE))
    }

    private static func field(_ name: String, in path: String) -> Int {
        let line = Usage.read(path).split(separator: "\n").first { $0.hasPrefix(name) }
        return (line?.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0) << 10
    }
}

/// The pages that the kernel keeps of a folder's files.
enum PageCache {
    /// Writes the files out and drops the kernel's cache of them, as if they had never been read. Needs no rights, and leaves other files alone.
    static func drop(_ folder: String) {
        for file in files(folder) {
            let descriptor = open(file, O_RDONLY)
            guard descriptor >= 0 else { continue }
            fdatasync(descriptor)
            posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED)
            close(descriptor)
        }
    }

    /// All files below a folder.
    static func files(_ folder: String) -> [String] {
        guard let opened = opendir(folder) else { return [] }
        defer { closedir(opened) }
        var files: [String] = []
        while let entry = readdir(opened) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
            if name == "." || name == ".." { continue }
            let path = "\(folder)/\(name)"
            if entry.pointee.d_type == UInt8(DT_DIR) { files += self.files(path) } else { files.append(path) }
        }
        return files
    }
}
