internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// Rows `[partition][mark][due][channel]...` of family `index`, and one alarm for the first of them.
final class DueRows: Sendable {
    /// The partitions that are looked at.
    typealias Open = @Sendable () -> PartitionSet
    typealias Visit = @Sendable (_ value: Bytes, _ visit: DueVisit) -> Void

    private let mark: IndexMark
    private let log: any CommitLog
    private let open: Open
    private let alarm: Alarm
    private let world: any World
    private let atOnce: Int
    private let pause: Duration
    private let visit: Visit
    /// Rows that a visit holds, and that are still stored.
    fileprivate let inFlight = Mutex(Set<Bytes>())
    /// When those are looked at again that nobody took.
    private static let patience = Duration.seconds(1)

    /// - Parameters:
    ///   - atOnce: So many of a partition are given at a time; those that are left over after `pause`, when the first are gone.
    ///   - visit: Gets each row that is due, and sees to it that it goes. It is not given again while anybody holds its ``DueVisit``.
    init(
        _ mark: IndexMark, log: any CommitLog, world: any World, open: @escaping Open = { .all }, atOnce: Int, pause: Duration,
        visit: @escaping Visit
    ) {
        (self.mark, self.log, self.world, self.open) = (mark, log, world, open)
        (self.atOnce, self.pause, self.visit) = (atOnce, pause, visit)
        alarm = Alarm(world)
    }

    /// What a row of the channel begins with.
    func key(_ due: Timestamp, _ id: ChannelID) -> Bytes { mark.key(due, id) }

    /// Finds out when the first is due. Cost: one seek a partition.
    func start() throws(LogError) {
        for partition in open().numbers {
            let (lower, upper) = mark.range(partition)
            if let row = try log.first(.index, from: lower, to: upper) { set(DueRows.due(row.key)) }
        }
    }

    /// A row for `due` is in the log, or about to be.
    func set(_ due: Timestamp) { alarm.set(due) { [weak self] in self?.ring() } }

    /// What is due in a partition that was opened is looked for.
    func lookAgain() { set(world.now) }

    func stop() { alarm.stop() }

    private func ring() {
        do throws(LogError) {
            for partition in open().numbers { try ring(partition, world.now) }
        } catch {
            Diagnostics.log(.error, "what is due cannot be read", ["rows": "\(mark)", "reason": error.message])
        }
    }

    private func ring(_ partition: UInt16, _ now: Timestamp) throws(LogError) {
        let (lower, upper) = mark.range(partition)
        var (found, next) = ([(row: Bytes, value: Bytes)](), Timestamp?.none)
        try log.scan(.index, from: lower, to: upper, reversed: false) { key, value in
            let due = DueRows.due(Bytes(key))
            guard due <= now, found.count < atOnce else {
                // Those that are left over are due already.
                next = max(due, now.advanced(by: pause))
                return false
            }
            found.append((Bytes(key), Bytes(value)))
            return true
        }
        for (row, value) in found where inFlight.withLock({ $0.insert(row).inserted }) {
            visit(value, DueVisit(ChannelID(partition: partition, number: row.readBigEndian(at: 11)), row, self))
        }
        if !found.isEmpty {
            let later = now.advanced(by: DueRows.patience)
            next = min(next ?? later, later)
        }
        if let next { set(next) }
    }

    private static func due(_ key: Bytes) -> Timestamp { Timestamp(milliseconds: Int64(key.readBigEndian(at: 3, as: UInt64.self))) }
}

/// Held by the component that handles a due row, until the row is deleted or the attempt has failed.
final class DueVisit: Sendable {
    let channel: ChannelID
    let row: Bytes
    private let rows: DueRows

    fileprivate init(_ channel: ChannelID, _ row: Bytes, _ rows: DueRows) { (self.channel, self.row, self.rows) = (channel, row, rows) }

    deinit { rows.inFlight.withLock { _ = $0.remove(row) } }
}
