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
        key.append(bigEndian: due.keyed)
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
        self.due = due.clamped
    }

    init?(key: UnsafeRawBufferPointer) {
        guard key.count > 35, key[34] == UInt8(ascii: "/") else { return nil }
        guard let turn = Offset(token: String(decoding: UnsafeRawBufferPointer(rebasing: key[18..<34]), as: UTF8.self)) else { return nil }
        let path = String(decoding: UnsafeRawBufferPointer(rebasing: key[35...]), as: UTF8.self)
        self.init(turn: turn.value, path: path, due: Timestamp(milliseconds: Int64(clamping: key.readBigEndian(at: 2, as: UInt64.self))))
    }
}

/// Fires timers when they are due: one alarm for all sleeping agents, however many there are.
///
/// Only the next instant is in memory. A timer is fired again until its row is gone, so a crash in between loses none; its owner makes sure
/// that it counts once.
final class TimerService: Sendable {
    private struct State {
        /// Fired and not yet settled.
        var unsettled: Set<Bytes> = []
        /// The earliest instant for which a timer may be in the log that no pass has seen.
        var earliest: Timestamp?
        /// At most two: one that has much to do, and one for timers that have come due since.
        var passes: [Pass] = []
        var ringsAgain = false
        /// The first of the timers that there was no room for.
        var refused: Timestamp?
        var isTickScheduled = false
        var isStopped = false
    }

    /// A look at what is due, from one instant to another; it takes a rest when it has found much.
    private struct Pass {
        let from: Timestamp
        let to: Timestamp
        var partition: UInt16 = 0
        /// The key at which to continue in the partition.
        var lower: Bytes?
        var next: Timestamp?
    }

    /// The timer's owner: by name, and by the channel of that name that set it.
    typealias Fire = @Sendable (_ name: String, _ id: ChannelID, _ timer: DueTimer) -> Void

    private let log: any CommitLog
    private let open: @Sendable () -> PartitionSet
    private let world: any World
    private let fire: Fire
    private let alarm: Alarm
    private let state = Mutex(State())

    /// - Parameter open: The partitions whose timers fire.
    init(log: any CommitLog, world: any World, open: @escaping @Sendable () -> PartitionSet = { .all }, fire: @escaping Fire) {
        self.log = log
        self.open = open
        self.world = world
        self.fire = fire
        alarm = Alarm(world)
    }

    /// When the first timer of a partition is due: to be given to ``set(_:)``. Cost: one seek.
    func firstDue(_ partition: UInt16) throws(LogError) -> Timestamp? {
        let (lower, upper) = TimerService.range(partition)
        return try log.first(.timers, from: lower, to: upper)?.key.withUnsafeBytes { DueTimer(key: $0)?.due }
    }

    /// Timers that have fired in the partition are another's.
    func closed(_ partition: UInt16) {
        state.withLock { state in state.unsettled = state.unsettled.filter { DueTimer.channel(ofKey: $0).partition != partition } }
    }

    func stop() {
        state.withLock { $0.isStopped = true }
        alarm.stop()
    }

    /// A timer for `due` is in the log.
    func set(_ due: Timestamp) {
        state.withLock { $0.earliest = min($0.earliest ?? due, due) }
        alarm.set(due) { [weak self] in self?.ring() }
    }

    /// Fires again what is due and not settled: the agent to be told of it may have missed it.
    func lookAgain() {
        state.withLock { $0.unsettled = [] }
        set(Timestamp(milliseconds: 0))
    }

    /// There is no room to remember the timer's agent: it fires again behind ``fireRefused()``.
    func refused(_ timer: DueTimer, of id: ChannelID) {
        state.withLock { state in
            state.unsettled.remove(timer.key(id))
            state.refused = min(state.refused ?? timer.due, timer.due)
        }
    }

    /// There is room again. Those that have fired and are not settled do not fire again, so that there is an end to it.
    func fireRefused() { if let due = state.withLock({ $0.refused.take() }) { set(due) } }

    /// The row of a timer is gone.
    func settled(_ key: Bytes) { _ = state.withLock { $0.unsettled.remove(key) } }

    /// Removes a row that no step waits for.
    func remove(_ key: Bytes, _ channels: Channels) {
        // Refused, the next process finds the row again.
        channels.submit(RowChange.delete(.timers, key)) { [self] result in
            if case .success = result { settled(key) }
        }
    }

    /// Removes the rows of timers that have fired for a channel that is gone, and with it the agent that would settle them. Those that have not fired
    /// yet are removed when they do.
    func channelDeleted(_ id: ChannelID, _ channels: Channels) {
        let keys = state.withLock { $0.unsettled.filter { DueTimer.channel(ofKey: $0) == id } }
        // Sorted, so that a simulated run follows from its seed.
        for key in keys.sorted(by: { $0.lexicographicallyPrecedes($1) }) { remove(key, channels) }
    }

    /// The most timers that are fired at a time, with a pause after them: a hundred thousand that came due while the node was down, or at one
    /// instant, would hold up everything else for as long as they take.
    private static let atOnce = 16
    private static let pause = Duration.milliseconds(5)
    private static let passesMax = 2

    private func ring() {
        let now = world.now
        let later = state.withLock { state -> Timestamp? in
            guard state.passes.count < TimerService.passesMax else {
                state.ringsAgain = true
                return nil
            }
            guard let from = state.earliest, from <= now else { return state.earliest }
            state.earliest = nil
            state.passes.append(Pass(from: from, to: now))
            return nil
        }
        if let later { set(later) }
        tick()
    }

    /// Continues with each pass. On the timers' thread.
    private func tick() {
        var (passes, isStopped) = state.withLock { ($0.passes, $0.isStopped) }
        guard !isStopped else { return }
        let isOver = passes.indices.map { isFinished(&passes[$0]) }
        let rest = zip(passes, isOver).filter { !$0.1 }.map(\.0)
        let ringsAgain = state.withLock { state in
            state.passes = rest
            defer { if state.passes.count < TimerService.passesMax { state.ringsAgain = false } }
            return state.ringsAgain && state.passes.count < TimerService.passesMax
        }
        for (pass, isOver) in zip(passes, isOver) where isOver { if let next = pass.next { set(next) } }
        scheduleTick()
        if ringsAgain { ring() }
    }

    /// Continues with the pass; one that cannot read is made again soon.
    private func isFinished(_ pass: inout Pass) -> Bool {
        do throws(LogError) { return try fireNext(&pass) } catch {
            Diagnostics.log(.error, "timers cannot be read", ["reason": error.message])
            let from = pass.from
            state.withLock { $0.earliest = min($0.earliest ?? from, from) }
            // A log that is closed says nothing any more.
            if error.code != .closed { pass.next = world.now.advanced(by: .seconds(1)) }
            return true
        }
    }

    private func scheduleTick() {
        let isNeeded = state.withLock { state in
            guard !state.passes.isEmpty, !state.isTickScheduled else { return false }
            state.isTickScheduled = true
            return true
        }
        guard isNeeded else { return }
        world.schedule(at: world.now.advanced(by: TimerService.pause)) { [weak self] in
            self?.state.withLock { $0.isTickScheduled = false }
            self?.tick()
        }
    }

    /// Fires what the pass finds next.
    /// - Returns: whether it is over.
    private func fireNext(_ pass: inout Pass) throws(LogError) -> Bool {
        var left = TimerService.atOnce
        while pass.partition < Placement.partitionCount {
            let due = open().contains(pass.partition) ? try find(&pass, left) : []
            state.withLock { state in
                for entry in due { state.unsettled.insert(entry.timer.key(entry.id)) }
            }
            if open().contains(pass.partition) {
                for entry in due { fire(entry.name, entry.id, entry.timer) }
            } else {
                // Closed since it was read: should it be opened here again, nothing of it has fired.
                closed(pass.partition)
            }
            left -= due.count
            if left == 0 { return false }
            pass.partition += 1
            pass.lower = nil
        }
        return true
    }

    private typealias Due = (name: String, id: ChannelID, timer: DueTimer)

    /// Finds the timers of the pass's partition that are due and not in flight, at most so many.
    private func find(_ pass: inout Pass, _ count: Int) throws(LogError) -> [Due] {
        let (start, upper) = TimerService.range(pass.partition, from: pass.from)
        let (partition, to) = (pass.partition, pass.to)
        var (due, last, next) = ([Due](), Bytes?.none, pass.next)
        try log.scan(.timers, from: pass.lower ?? start, to: upper, reversed: false) { key, value in
            guard let timer = DueTimer(key: key) else { return true }
            guard timer.due <= to else {
                next = min(next ?? timer.due, timer.due)
                return false
            }
            let isNew = state.withLock { !$0.unsettled.contains(Bytes(key)) }
            let id = ChannelID(partition: partition, number: key.readBigEndian(at: 10))
            if isNew { due.append((String(decoding: value, as: UTF8.self), id, timer)) }
            last = Bytes(key)
            return due.count < count
        }
        pass.next = next
        // The next key that there could be.
        if due.count == count { pass.lower = last! + [0] }
        return due
    }

    private static func range(_ partition: UInt16, from: Timestamp? = nil) -> (Bytes, Bytes) {
        var (lower, upper) = (Bytes(), Bytes())
        lower.append(bigEndian: partition)
        if let from { lower.append(bigEndian: from.keyed) }
        upper.append(bigEndian: partition + 1)
        return (lower, upper)
    }
}
