internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// Rows `[partition][mark][due][channel]...` of family `index`, and one alarm for the first of them.
final class DueRows: Sendable {
    /// The partitions whose rows are visited.
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
    /// After which time a row that is still stored is visited again.
    private static let patience = Duration.seconds(1)

    /// - Parameters:
    ///   - atOnce: How many rows of a partition are visited at a time; the others follow after `pause`, when the first are deleted.
    ///   - visit: Called with each due row, which it must get deleted. A row is not visited again while its ``DueVisit`` is held.
    init(
        _ mark: IndexMark, log: any CommitLog, world: any World, open: @escaping Open = { .all }, atOnce: Int, pause: Duration,
        visit: @escaping Visit
    ) {
        (self.mark, self.log, self.world, self.open) = (mark, log, world, open)
        (self.atOnce, self.pause, self.visit) = (atOnce, pause, visit)
        alarm = Alarm(world)
    }

    /// The beginning of a row of the channel.
    func key(_ due: Timestamp, _ id: ChannelID) -> Bytes { mark.key(due, id) }

    /// Sets the alarm for the first due row. Cost: one seek a partition.
    func start() throws(LogError) {
        for partition in open().numbers {
            let (lower, upper) = mark.range(partition)
            if let row = try log.first(.index, from: lower, to: upper) { set(DueRows.due(row.key)) }
        }
    }

    /// Notes that a row for `due` is in the log, or staged.
    func set(_ due: Timestamp) { alarm.set(due) { [weak self] in self?.ring() } }

    /// Looks for due rows in a partition that was opened.
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
                // The rows that are left over are due already.
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
