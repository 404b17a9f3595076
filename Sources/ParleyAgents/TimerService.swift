internal import ParleyChannels
internal import ParleyLog
package import ParleySystem
internal import Synchronization

/// A timer of a turn: the row `[partition][due][channel][id]` in family `timers`, until it has fired.
package struct DueTimer: Sendable, Hashable {
    package var turn: UInt64
    package var path: String
    package var due: Timestamp

    /// `<turn>/<step>`.
    var id: String { "\(Offset(turn))/\(path)" }

    func key(_ channel: ChannelID) -> Bytes {
        var key = Bytes()
        key.append(bigEndian: channel.partition)
        key.append(bigEndian: UInt64(due.milliseconds))
        key.append(bigEndian: channel.number)
        key.append(id)
        return key
    }

    static func channel(ofKey key: Bytes) -> ChannelID {
        ChannelID(partition: key.readBigEndian(at: 0), number: key.readBigEndian(at: 10))
    }

    init(turn: UInt64, path: String, due: Timestamp) {
        self.turn = turn
        self.path = path
        self.due = due
    }

    init?(key: UnsafeRawBufferPointer) {
        guard key.count > 35, key[34] == UInt8(ascii: "/") else { return nil }
        guard let turn = Offset(token: String(decoding: UnsafeRawBufferPointer(rebasing: key[18..<34]), as: UTF8.self)) else { return nil }
        let path = String(decoding: UnsafeRawBufferPointer(rebasing: key[35...]), as: UTF8.self)
        self.init(turn: turn.value, path: path, due: Timestamp(milliseconds: Int64(key.readBigEndian(at: 2, as: UInt64.self))))
    }
}

/// Fires timers when they are due: one alarm for all sleeping agents, however many there are.
///
/// Only the next instant is in memory. A timer is fired again until its row is gone, so a crash in between loses none; its owner makes sure
/// that it counts once.
final class TimerService: Sendable {
    private struct State {
        /// Fired and not yet settled.
        var underWay: Set<Bytes> = []
    }

    /// Whose timer it is: by name, and by the channel of that name that set it.
    typealias Fire = @Sendable (_ name: String, _ id: ChannelID, _ timer: DueTimer) -> Void

    private let log: any CommitLog
    private let world: any World
    private let fire: Fire
    private let alarm: Alarm
    private let state = Mutex(State())

    init(log: any CommitLog, world: any World, fire: @escaping Fire) {
        self.log = log
        self.world = world
        self.fire = fire
        alarm = Alarm(world)
    }

    /// Finds the first timer of each partition. Cost: one seek a partition.
    func start() throws(LogError) {
        for partition in 0..<Placement.partitionCount {
            let (lower, upper) = TimerService.range(partition)
            if let row = try log.first(.timers, from: lower, to: upper), let timer = row.key.withUnsafeBytes({ DueTimer(key: $0) }) {
                set(timer.due)
            }
        }
    }

    func stop() { alarm.stop() }

    /// A timer for `due` is in the log.
    func set(_ due: Timestamp) { alarm.set(due) { [weak self] in self?.ring() } }

    /// The row of a timer is gone.
    func settled(_ key: Bytes) { _ = state.withLock { $0.underWay.remove(key) } }

    /// Removes a row that nobody waits for.
    func remove(_ key: Bytes, _ writer: GroupCommit) {
        // Refused, the next process finds the row again.
        try? writer.submit(TimerRemoval(key: key, timers: self))
    }

    /// Removes the rows of timers that have rung for a channel that is gone: whoever was to settle them is gone with it. Those that have not
    /// rung yet are removed when they do.
    func channelDeleted(_ id: ChannelID, _ writer: GroupCommit) {
        let keys = state.withLock { $0.underWay.filter { DueTimer.channel(ofKey: $0) == id } }
        // Sorted, so that a simulated run follows from its seed.
        for key in keys.sorted(by: { $0.lexicographicallyPrecedes($1) }) { remove(key, writer) }
    }

    private func ring() {
        do throws(LogError) {
            let now = world.now
            for partition in 0..<Placement.partitionCount { try fireDue(partition, now) }
        } catch {
            Diagnostics.log(.error, "timers cannot be read", ["reason": error.message])
        }
    }

    private func fireDue(_ partition: UInt16, _ now: Timestamp) throws(LogError) {
        let (lower, upper) = TimerService.range(partition)
        var due: [(name: String, id: ChannelID, timer: DueTimer)] = []
        var next: Timestamp?
        try log.scan(.timers, from: lower, to: upper, reversed: false) { key, value in
            guard let timer = DueTimer(key: key) else { return true }
            guard timer.due <= now else {
                next = timer.due
                return false
            }
            let isNew = state.withLock { $0.underWay.insert(Bytes(key)).inserted }
            let id = ChannelID(partition: partition, number: key.readBigEndian(at: 10))
            if isNew { due.append((String(decoding: value, as: UTF8.self), id, timer)) }
            return true
        }
        for entry in due { fire(entry.name, entry.id, entry.timer) }
        if let next { set(next) }
    }

    private static func range(_ partition: UInt16) -> (Bytes, Bytes) {
        var (lower, upper) = (Bytes(), Bytes())
        lower.append(bigEndian: partition)
        upper.append(bigEndian: partition + 1)
        return (lower, upper)
    }
}

/// The row of a timer whose channel is gone, on its way out.
private final class TimerRemoval: Submission {
    private let key: Bytes
    private let timers: TimerService

    init(key: Bytes, timers: TimerService) {
        self.key = key
        self.timers = timers
    }

    var cost: Int { key.count }
    func stage(into stage: inout Stage) throws(LogError) { stage.delete(.timers, key) }
    func committed() { timers.settled(key) }
    func failed(_ error: LogError) {}
}
