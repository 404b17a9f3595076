internal import ParleyChannels
internal import ParleyLog
internal import Synchronization

/// How agents came to this process, and why they left it.
final class TakeUp: Sendable {
    private struct State {
        /// Partitions that their previous owner drained.
        var drained = PartitionSet()
        var stalledAtStart: Set<String> = []
        /// Agents passivated with their turn open, because the log could not be read.
        var stopped: Set<String> = []
        /// Agents whose logs could not be read and that are tried again soon, with the timers that fired for them.
        var unread: [ChannelID: Set<DueTimer>] = [:]
    }

    private let state = Mutex(State())

    /// Whether the partition's previous owner drained it: then no open turn is to blame for its end.
    func hasDrained(_ partition: UInt16) -> Bool { state.withLock { $0.drained.contains(partition) } }
    func drained(_ partition: UInt16) { state.withLock { $0.drained.insert(partition) } }
    func drained(all partitions: PartitionSet) { state.withLock { $0.drained = partitions } }

    func stalled(_ name: String) { state.withLock { _ = $0.stalledAtStart.insert(name) } }
    /// A program that stalled may have been mended: each process tries once.
    func retriesStalled(_ name: String) -> Bool { state.withLock { $0.stalledAtStart.contains(name) } }
    /// It has been tried.
    func noteTakenUp(_ name: String) { state.withLock { _ = $0.stalledAtStart.remove(name) } }

    /// The agent was passivated with its turn open, because the log could not be read.
    func noteStopped(_ name: String) { state.withLock { _ = $0.stopped.insert(name) } }
    /// Whether the agent's turn is open because of that, and not because the process before ended.
    func hasStopped(_ name: String) -> Bool { state.withLock { $0.stopped.remove(name) != nil } }

    /// The agent's log could not be read when these timers fired.
    /// - Returns: whether a retry still has to be scheduled.
    func isFirstUnread(_ id: ChannelID, _ timers: [DueTimer]) -> Bool {
        state.withLock { state in
            defer { state.unread[id, default: []].formUnion(timers) }
            return state.unread[id] == nil
        }
    }

    /// It is tried again.
    func takeUnread(_ id: ChannelID) -> Set<DueTimer> { state.withLock { $0.unread.removeValue(forKey: id) } ?? [] }
}
