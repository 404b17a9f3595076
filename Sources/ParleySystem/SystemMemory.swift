internal import Foundation
internal import Glibc

/// The memory that this process may use: the machine's, or less where its container has a limit.
package enum SystemMemory {
    /// In bytes, as of the start of the process.
    package static let byteCount: Int = {
        let machine = sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
        // The limit of control groups, version 2 and version 1: a number, or a word for none.
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"].compactMap { path in
            (try? String(contentsOfFile: path, encoding: .utf8)).flatMap { Int($0.prefix { $0.isNumber }) }
        }
        return limits.reduce(machine) { min($0, $1) }
    }()
}
