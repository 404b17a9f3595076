internal import Glibc
internal import Synchronization

/// Places where a test can have the process die as if by `kill -9`, named by `PARLEY_FAILPOINT=<name>[:<n>]` (the n-th passage, from 1).
///
/// Unset, which is always but in tests, a passage costs one load and one branch.
package enum Failpoint {
    private static let armed: (name: String, passage: Int)? = {
        guard let value = getenv("PARLEY_FAILPOINT").map({ String(cString: $0) }), !value.isEmpty else { return nil }
        let parts = value.split(separator: ":", maxSplits: 1)
        return (String(parts[0]), parts.count > 1 ? Int(parts[1]) ?? 1 : 1)
    }()
    private static let passages = Atomic<Int>(0)

    /// Dies here, without unwinding or flushing anything, when the environment asked for this passage.
    @inline(__always)
    package static func pass(_ name: StaticString) {
        guard let armed else { return }
        hit(name, armed)
    }

    /// As ``pass(_:)``, but dies a moment later, in the midst of what follows.
    @inline(__always)
    package static func passSoon(_ name: StaticString) {
        guard let armed, isHit(name, armed) else { return }
        _ = SystemThread(name: "failpoint") {
            // Up to a millisecond, by the passage: about as long as a commit takes.
            usleep(UInt32(armed.passage * 379 % 1_000))
            kill(getpid(), SIGKILL)
        }
    }

    private static func hit(_ name: StaticString, _ armed: (name: String, passage: Int)) {
        if isHit(name, armed) { kill(getpid(), SIGKILL) }
    }

    private static func isHit(_ name: StaticString, _ armed: (name: String, passage: Int)) -> Bool {
        name.description == armed.name && passages.add(1, ordering: .relaxed).newValue == armed.passage
    }
}
