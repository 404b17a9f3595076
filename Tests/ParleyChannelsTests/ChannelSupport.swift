import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization

/// Channels on a log in memory whose writer runs when it is told to, and a clock that stands still.
final class Bench: Sendable {
    let log: SimulatedLog
    let writer: GroupCommit
    let channels: Channels
    let world: SimulatedWorld

    init(
        _ log: SimulatedLog = SimulatedLog(), partitions: PartitionSet = .all,
        world: SimulatedWorld = SimulatedWorld(seed: 1, now: Timestamp(milliseconds: 1_000))
    ) {
        self.log = log
        self.world = world
        writer = GroupCommit(log: log)
        channels = Channels(log: log, writer: writer, world: world, partitions: partitions)
    }

    /// What the next process finds.
    func reopened() -> Bench { Bench(log.reopen()) }

    /// Appends, in a commit of its own unless `commits` is false; then the answer comes with the next commit.
    @discardableResult
    func append(_ entries: [NewEntry], to name: String = "a", commits: Bool = true, with prepare: (inout Append) -> Void = { _ in })
        -> Answer<
            Appended
        >
    {
        let answer = Answer<Appended>()
        var append = Append(to: name, entries)
        prepare(&append)
        channels.submit(append) { answer.set($0) }
        if commits { writer.pump() }
        return answer
    }

    @discardableResult
    func append(_ texts: String..., to name: String = "a", commits: Bool = true, with prepare: (inout Append) -> Void = { _ in }) -> Answer<
        Appended
    > {
        append(texts.map { NewEntry(data: Bytes($0.utf8)) }, to: name, commits: commits, with: prepare)
    }

    @discardableResult
    func create(
        _ name: String = "a", type: String = ContentType.json, isAgent: Bool = false, isClosed: Bool = false, lifetime: Lifetime? = nil,
        commits: Bool = true
    ) -> Answer<(isNew: Bool, tail: UInt64, isClosed: Bool)> {
        let answer = Answer<(isNew: Bool, tail: UInt64, isClosed: Bool)>()
        var row = ChannelRow(name: name, contentType: type, isAgent: isAgent, created: world.now)
        (row.closure, row.lifetime) = (isClosed ? ChannelRow.Closure() : nil, lifetime)
        channels.submit(CreateChannel(row)) { answer.set($0) }
        if commits { writer.pump() }
        return answer
    }

    @discardableResult
    func delete(_ name: String = "a", commits: Bool = true) -> Answer<Void> {
        let answer = Answer<Void>()
        channels.submit(DeleteChannel(name)) { answer.set($0) }
        if commits { writer.pump() }
        return answer
    }

    func channel(_ name: String = "a") throws -> Channel {
        guard let channel = try channels.find(name) else { throw ChannelError.notFound(name) }
        return channel
    }

    /// The whole of a channel, as JSON.
    func whole(_ name: String = "a", view: View = .raw) throws -> [JSON] {
        try JSON.parse(try channels.page(try channel(name), after: 0, view: view, bytesMax: .max).body).array ?? []
    }

    /// How many rows a family has.
    func rows(_ family: Family) throws -> Int {
        var count = 0
        try log.scan(family, from: [0, 0], to: [255, 255], reversed: false) { _, _ in
            count += 1
            return true
        }
        return count
    }
}

/// What another thread does once, while entries are read from the log.
final class Meanwhile: Sendable {
    private let action = Mutex<(@Sendable () -> Void)?>(nil)

    /// An empty log whose next read of entries does it first.
    var log: SimulatedLog {
        SimulatedLog(readError: { [self] family, _ in
            if family == .log { action.withLock { $0.take() }?() }
            return nil
        })
    }

    func once(_ action: @escaping @Sendable () -> Void) { self.action.withLock { $0 = action } }
}

/// What a submission was answered with.
final class Answer<Value: Sendable>: Sendable {
    private let result = Mutex<Result<Value, ChannelError>?>(nil)

    func set(_ result: Result<Value, ChannelError>) { self.result.withLock { $0 = result } }
    var outcome: Result<Value, ChannelError>? { result.withLock { $0 } }
    var value: Value? { try? result.withLock { $0 }?.get() }
    var error: ChannelError? { if case .failure(let error) = result.withLock({ $0 }) { error } else { nil } }
}

/// Notes that it was told.
final class Watcher: ChannelWatcher {
    private let count = Atomic<Int>(0)
    private let left = Atomic<Bool>(false)
    func channelChanged(_ tail: any Tail) { count.add(1, ordering: .relaxed) }
    func channelLeft(_ tail: any Tail) { left.store(true, ordering: .relaxed) }
    var told: Int { count.load(ordering: .relaxed) }
    var hasLeft: Bool { left.load(ordering: .relaxed) }
}

/// How many streams wait to be linked, in all partitions: those of earlier versions, and those that a message tells of.
func newStreams(in log: any CommitLog) throws -> Int {
    var rows = try messages(in: log)
    for partition in 0..<Placement.partitionCount { try SubscriptionRows.newStreams(log, partition) { _, _ in rows += 1 } }
    return rows
}

/// How many messages between partitions have not been taken, or not been let go of.
func messages(in log: any CommitLog) throws -> Int {
    var rows = 0
    for partition in 0..<Placement.partitionCount {
        let lower = ChannelID(partition: partition, number: 0).key([2])
        try log.scan(.outbox, from: lower, to: ChannelID(partition: partition, number: 0).key([3]), reversed: false) { _, _ in
            rows += 1
            return true
        }
    }
    return rows
}

extension NewEntry {
    /// A piece of text of step `s` of turn 1.
    static func piece(
        _ text: String, at index: Int, step: String = "s", attempt: UInt32 = 1, turn: UInt64 = 1, part: TextDelta.Part = .text,
        continuesAt: Int? = nil
    ) -> NewEntry {
        NewEntry(
            text: TextDelta(part: part, index: UInt64(index), continuesAt: continuesAt.map { UInt64($0) }, delta: Bytes(text.utf8)),
            at: Position(turn: turn, step: step, attempt: attempt))
    }
}

extension [JSON] {
    var types: [String] { map { $0["type"]?.string ?? "data" } }
}
