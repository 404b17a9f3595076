internal import Glibc
internal import Synchronization

/// The loops of a process.
package final class EventLoopGroup: Sendable {
    package let loops: [EventLoop]
    private let turn = Atomic<Int>(0)

    /// Starts `count` loops; by default one per processor core.
    package init(count: Int? = nil, name: String = "loop") {
        let cores = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))
        loops = (0..<max(1, count ?? cores)).map { EventLoop(name: "\(name)-\($0)") }
        for loop in loops { loop.start() }
    }

    /// A loop for something new, in turn.
    package func next() -> EventLoop {
        let count = turn.wrappingAdd(1, ordering: .relaxed).newValue
        return loops[Int(UInt(bitPattern: count) % UInt(loops.count))]
    }

    /// Stops all loops and waits for their threads. Not to be called on one of them.
    package func stop() { for loop in loops { loop.stop() } }
}
