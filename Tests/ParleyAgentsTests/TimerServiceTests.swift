import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

@Suite struct `Timers of a partition` {
    /// Timers that were read and had not fired must fire when the partition comes back to this node.
    @Test func `that is closed while they are read fire when it is opened again`() throws {
        let fired = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [])
            let id = ChannelID(partition: 7, number: 1)
            let timer = DueTimer(turn: 1, path: "sleep", due: world.now)
            node.channels.submit(RowChange.put(.timers, timer.key(id), Bytes("agents/probe/a".utf8)))
            world.run(deadline: world.now.advanced(by: .seconds(1)))

            let isOpen = Mutex(true)
            let fired = Mutex(0)
            let log = ClosingLog(node.log) { isOpen.withLock { $0 = false } }
            let timers = TimerService(log: log, world: world, open: { isOpen.withLock { $0 } ? PartitionSet([7]) : PartitionSet() }) {
                _, _, _ in
                fired.withLock { $0 += 1 }
            }
            timers.set(timer.due)
            timers.closed(7)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            let whileClosed = fired.withLock { $0 }
            log.isPassive = true
            isOpen.withLock { $0 = true }
            timers.set(timer.due)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            return (whileClosed, fired.withLock { $0 })
        }
        #expect(fired == (0, 1))
    }
}

/// A log on which something happens behind each read of timers.
private final class ClosingLog: CommitLog {
    private let log: SimulatedLog
    private let behindScan: @Sendable () -> Void
    private let passive = Mutex(false)

    var isPassive: Bool {
        get { passive.withLock { $0 } }
        set { passive.withLock { $0 = newValue } }
    }

    init(_ log: SimulatedLog, behindScan: @escaping @Sendable () -> Void) { (self.log, self.behindScan) = (log, behindScan) }

    func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] { try log.commit(batches) }
    func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? { try log.get(family, key) }

    func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(LogError) {
        try log.scan(family, from: lower, to: upper, reversed: reversed, visit)
        if family == .timers, !isPassive { behindScan() }
    }

    func close() { log.close() }
}
