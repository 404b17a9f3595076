internal import Glibc

/// The resources that a server's processes have used since they started.
///
/// Bytes to the disk are not read from `/proc/<pid>/io`: where the page cache has large folios, it counts a whole one for each small write.
struct Usage {
    var processor: Nanoseconds = 0

    static func - (left: Usage, right: Usage) -> Usage {
        // A process that ended in between takes its numbers with it.
        Usage(processor: left.processor - min(left.processor, right.processor))
    }

    /// The usage of `pid` and the processes it has forked.
    init(of pid: Int32) {
        for process in [pid] + Usage.children(of: pid) {
            for task in Usage.entries("/proc/\(process)/task") {
                // Nanoseconds on a processor; the first number of three.
                processor += Usage.read("/proc/\(process)/task/\(task)/schedstat").split(separator: " ").first.flatMap { UInt64($0) } ?? 0
            }
        }
    }

    private init(processor: Nanoseconds) { self.processor = processor }

    private static func children(of pid: Int32) -> [Int32] {
        read("/proc/\(pid)/task/\(pid)/children").split(separator: " ").compactMap { Int32($0) }
    }

    static func read(_ path: String) -> String {
        guard let file = fopen(path, "r") else { return "" }
        defer { fclose(file) }
        var buffer = [UInt8](repeating: 0, count: 16 << 10)
        let count = fread(&buffer, 1, buffer.count, file)
        return String(decoding: buffer.prefix(count), as: UTF8.self)
    }

    private static func entries(_ path: String) -> [String] {
        guard let folder = opendir(path) else { return [] }
        defer { closedir(folder) }
        var names: [String] = []
        while let entry = readdir(folder) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names
    }
}
