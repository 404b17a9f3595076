package import ParleyLog
package import ParleySystem
internal import Synchronization

/// All channels of a node: finds them, creates them, appends to them, removes them.
///
/// Only channels in use are in memory; their number on disk costs nothing. Every change goes through the one writer (`GroupCommit`), which
/// decides it against what is staged, and is answered when it is durable.
package final class Channels: @unchecked Sendable {  // Guard: what is not constant or locked belongs to the writer thread.
    package let log: any CommitLog
    package let writer: GroupCommit
    package let world: any World
    /// `nil`: nobody outside is told of entries, and appends do nothing for it.
    package let outbox: Outbox?
    /// What partitions tell each other.
    package let messages: Messages
    let partitions: Partitions
    let observers = Mutex(ChannelObservers())

    /// What is staged and not committed.
    private var overlay = Overlay()
    /// The number of the next channel, by partition; where it is missing, the log knows.
    var nextNumber: [UInt16: UInt64] = [:]
    /// The writer's, once it has started.
    var limit: ChannelLimit?
    /// `nil`: nobody subscribes to anything, and commits do nothing for it.
    private(set) weak var subscriptions: Subscriptions?
    private let lifetimes = Mutex<DueRows?>(nil)
    /// When to look at which channel's lifetime; whether it has ended is decided by the writer, who knows of every access.
    var expiry: DueRows { lifetimes.withLock { $0! } }

    /// - Parameters:
    ///   - residentMax: How many channels stay in memory before those that nobody watches are let go.
    ///   - partitions: Those that this node owns from the start; others are opened and closed, see ``open(_:completion:)``.
    package init(
        log: any CommitLog, writer: GroupCommit, world: any World, outbox: Outbox? = nil, residentMax: Int = 65_536,
        partitions: PartitionSet = .all
    ) {
        self.log = log
        self.writer = writer
        self.world = world
        self.outbox = outbox
        messages = Messages(log, world)
        self.partitions = Partitions(open: partitions, residentMax: residentMax)
        writer.own(partitions)
        // So many at a time, so that a thousand channels of one instant do not fill the writer's queue.
        let expiry = DueRows(
            .lifetime, log: log, world: world, open: { [weak self] in self?.openPartitions ?? PartitionSet() }, atOnce: 16,
            pause: .milliseconds(20)
        ) { [weak self] name, visit in
            guard let self else { return }
            // Refused, the row is still there for the next look.
            submit(.checkLifetime(LifetimeCheck(name: name.text, id: visit.channel, visit: visit)))
        }
        lifetimes.withLock { $0 = expiry }
        messages.serve(self)
        observePartitions(messages)
        // The writer is stopped before the channels go.
        writer.beforeCommit { [unowned self] stage in self.flush(into: &stage) }
        writer.whenLost { [unowned self] failures in self.lost(failures) }
    }

    /// Has `observer` told of entries that wait for an agent's decision; `nil`: nobody any more.
    package func observeInput(_ observer: (any InputObserver)?) { observers.withLock { $0.input = observer } }

    /// Goes on with what the last process left: lifetimes that are over, messages that were not taken. Cost: some seeks a partition.
    package func start() throws(LogError) {
        try expiry.start()
        try messages.start()
    }

    /// Has `subscriptions` told of what is created and what changes. Called before the writer starts.
    func observe(_ subscriptions: Subscriptions) { self.subscriptions = subscriptions }

    // MARK: Finding

    /// The channel of that name, or `nil`. Thread-safe. Cost: a lock and a hash; for a channel not in memory three lookups in the log.
    package func find(_ name: String) throws(LogError) -> Channel? {
        guard let channel = try findAny(name), !channel.isExpired(world.now) else { return nil }
        return channel
    }

    /// The channel of that name, also when its time has come: until the writer has removed it, a crash or a clock may bring it back.
    func findAny(_ name: String) throws(LogError) -> Channel? {
        let partition = partitions[name]
        while true {
            let (known, isUnpublished, departures) = partition.residents.withLock { residents in
                (residents.channels[name], residents.unpublished.contains(name), residents.departures)
            }
            if let known { return known }
            try requireOpen(partition.number)
            // Not under the lock: the disk may be slow, and the event loops look here, too.
            guard !isUnpublished, let loaded = try load(name) else { return nil }
            if let channel = try keep(loaded, in: partition, unlessLeft: departures) { return channel }
        }
    }

    /// Keeps a channel that was read from the log in memory, unless there is one meanwhile.
    ///
    /// - Parameter departures: How many channels had left before it was read. One that has left since may be this, and have changed before.
    /// - Returns: what is in memory now; `nil` where it has to be read again.
    private func keep(_ loaded: Channel, in partition: Partition, unlessLeft departures: UInt64) throws(LogError) -> Channel? {
        let (channel, isCrowded) = try partition.residents.withLock { residents throws(LogError) -> (Channel?, Bool) in
            if let channel = residents.channels[loaded.name] { return (channel, false) }
            try requireOpen(partition.number)
            // A fork's rows are in its source's partition.
            if loaded.id.partition != partition.number { try requireOpen(loaded.id.partition) }
            guard residents.departures == departures, !residents.unpublished.contains(loaded.name) else { return (nil, false) }
            residents.channels[loaded.name] = loaded
            let excess = residents.channels.count - partitions.residentShare
            return (loaded, excess > 0 && excess % Channels.excessStep == 1)
        }
        // Where nobody writes, nothing else would let go of what is read. Refused, the next load beyond the limit tries again.
        if isCrowded { submit(.evictIdle) }
        return channel
    }

    /// How many more are loaded into a crowded shard before it is looked at again: all of it may be watched.
    private static let excessStep = 256

    /// How many channels are in memory.
    package var residentCount: Int { partitions.all.reduce(0) { $0 + $1.residents.withLock { $0.channels.count } } }

    /// The channel of that name if it is in memory. Thread-safe, and touches no disk: for event loops.
    package func resident(_ name: String) -> Channel? {
        guard let channel = partitions[name].residents.withLock({ $0.channels[name] }), !channel.isExpired(world.now) else { return nil }
        return channel
    }

    /// Whether an agent of that name was deleted and not created anew.
    package func isDeleted(_ name: String) throws(LogError) -> Bool {
        try requireOpen(Placement.partition(of: name))
        return try log.get(.names, Placement.nameKey(name)).flatMap { NameRow($0) }?.isTombstone ?? false
    }

    /// The row of a channel as of the last commit.
    package func row(_ channel: Channel) throws(LogError) -> ChannelRow? {
        try log.get(.channels, channel.id.key).flatMap { ChannelRow($0) }
    }

    private func load(_ name: String) throws(LogError) -> Channel? {
        guard let bytes = try log.get(.names, Placement.nameKey(name)), let found = NameRow(bytes), !found.isTombstone else { return nil }
        let row = try log.get(.channels, found.id.key).flatMap { ChannelRow($0) }
        guard let row, row.name.hasSameBytes(as: name) else {
            // Of two batches a crash let one through. Its number was lost with its rows, and may be another's by now.
            if found.isFork { return nil }
            throw LogError(
                .damaged, "the row of channel '\(name)' is missing or unreadable (partition \(found.id.partition), id \(found.id.number))")
        }
        let (head, lastAt) = try Channels.head(of: found.id, in: log)
        return Channel(row: row, id: found.id, head: max(head, row.fork?.head ?? 0), lastAt: lastAt)
    }

    /// The last offset of a channel and when it was given: the end of its last value in the log.
    static func head(of id: ChannelID, in log: any CommitLog) throws(LogError) -> (UInt64, Timestamp) {
        guard let last = try log.first(.log, from: id.key, to: id.keyEnd, reversed: true) else { return (0, Timestamp(milliseconds: 0)) }
        var lastAt = Timestamp(milliseconds: 0)
        let first: UInt64 = last.key.readBigEndian(at: 10)
        let head = last.value.withUnsafeBytes { bytes in
            Frame.walk(bytes, first: first) { _, frame in
                if let at = frame.at { lastAt = at }
                return true
            }
        }
        guard let head else { throw LogError(.damaged, "frames of channel \(id.number) at offset \(first) cannot be read") }
        return (head, lastAt)
    }
}

/// Told of entries that wait for an agent's decision, once they are durable.
package protocol InputObserver: AnyObject, Sendable {
    /// Writer thread; must only take note.
    func inputCommitted(_ channel: Channel, offsets: ClosedRange<UInt64>)
    /// Writer thread: the agent's channel was deleted.
    func channelDeleted(_ channel: Channel)
    /// Writer thread, once that is durable: there is something new in what the agent with this channel follows. Must only take note.
    func followed(_ follower: String)
}

// MARK: - The writer's side

extension Channels {
    /// The channel as the writer finds it: with what is staged in the current commit.
    ///
    /// One whose time has come is removed on the way; if there are forks of it, it answers from then on that it is gone. So is what a crash
    /// left of a fork's name, or of what was kept for it.
    func resolve(_ name: String, in stage: inout Stage) throws(LogError) -> Channel? {
        try stage.concern(Placement.partition(of: name))
        var channel = overlay.created[name]
        if channel == nil {
            guard !overlay.removed.contains(name) else { return nil }
            channel = try findAny(name)
        }
        guard let channel else {
            let key = Placement.nameKey(name)
            if try stage.get(.names, key).flatMap({ NameRow($0) })?.isFork == true { stage.delete(.names, key) }
            return nil
        }
        try stage.concern(channel.id.partition)
        if channel.isGone {
            guard try releaseIfForsaken(channel.id, in: &stage) else { return channel }
            try collect(channel.id, in: &stage)
            channel.staged.isDeleted = true
            touch(channel)
            return nil
        }
        guard channel.isExpired(world.now) else { return channel }
        try remove(channel, tombstone: false, in: &stage)
        return channel.isGone ? channel : nil
    }

    /// Whether there was an agent of that name, which was deleted.
    func hasTombstone(_ name: String, in stage: inout Stage) throws(LogError) -> Bool {
        try stage.get(.names, Placement.nameKey(name)).flatMap { NameRow($0) }?.isTombstone ?? false
    }

    /// Stores when the channel was last used, and when to look at its lifetime next.
    func setDue(_ channel: Channel, in stage: inout Stage) -> Timestamp? {
        guard channel.lifetime != nil else { return nil }
        if let before = channel.staged.row.due { stage.delete(.index, expiry.key(before, channel.id)) }
        channel.staged.row.accessed = Timestamp(milliseconds: channel.accessed.load(ordering: .relaxed))
        channel.staged.isRowChanged = true
        let due = channel.staged.row.due!
        stage.put(.index, expiry.key(due, channel.id), Bytes(channel.name.utf8))
        return due
    }

    /// Makes a channel, staged. The name must be free.
    func create(_ row: ChannelRow, in stage: inout Stage, partition: UInt16? = nil) throws(LogError) -> Channel {
        let partition = partition ?? Placement.partition(of: row.name)
        let counterKey = ChannelID(partition: partition, number: 0).key
        let number: UInt64
        try stage.concern(partition)
        let subscribers = try subscriptions?.toTell(of: row.name, from: partition, in: stage) ?? []
        if let next = nextNumber[partition] {
            number = next
        } else {
            number = try log.get(.channels, counterKey)?.readBigEndian(at: 0) ?? 1
        }
        nextNumber[partition] = number + 1
        var counter = Bytes()
        counter.append(bigEndian: number + 1)
        stage.put(.channels, counterKey, counter)
        let id = ChannelID(partition: partition, number: number)
        stage.put(.names, Placement.nameKey(row.name), NameRow(id: id, isFork: row.fork != nil).bytes)
        let channel = Channel(row: row, id: id, head: row.fork?.head ?? 0, lastAt: Timestamp(milliseconds: 0))
        if let fork = row.fork {
            let source = ChannelID(partition: partition, number: fork.sourceNumber)
            stage.put(.index, ForkRow.key(source, id), Bytes(row.name.utf8))
            overlay.forked[source, default: []].append((id, row.name))
        }
        channel.staged.isRowChanged = true
        if let due = setDue(channel, in: &stage) { expiry.set(due) }
        channel.staged.undecided = UndecidedEntries()
        if row.isAgent { channel.move(to: .idle, turn: nil, in: &stage) }
        limit?.added(row.name)
        for subscriber in subscribers { messages.post(.link(subscription: subscriber, stream: row.name), from: partition, in: &stage) }
        overlay.created[row.name] = channel
        partitions[row.name].residents.withLock { $0.unpublished.insert(row.name) }
        overlay.removed.remove(row.name)
        touch(channel)
        return channel
    }

    /// It takes the writer as long as an append of so many bytes: of those a commit has not too many either.
    private static let removalBytes = 4 << 10

    /// Removes a channel and everything it has, staged. With a `tombstone` only an explicit PUT makes it anew.
    ///
    /// While there are forks of it, its entries stay, and so does a plain channel's name: it is not free.
    func remove(_ channel: Channel, tombstone: Bool, in stage: inout Stage) throws(LogError) {
        let isKept = try hasForks(channel.id, in: &stage)
        try messages.ready(channel.id.partition, in: stage)
        try channel.loadFollowers(stage)
        if channel.isAgent { try unwatchAll(of: channel.id, in: &stage) }
        channel.tellFollowers(messages, in: &stage)
        try subscriptions?.removing(channel, in: &stage)
        stage.count(Channels.removalBytes)
        limit?.removed(channel.name)
        channel.staged.row.isSoftDeleted = isKept
        if isKept { channel.staged.isRowChanged = true }
        flush(channel, into: &stage)
        strip(channel.id, channel.staged.row, in: &stage)
        let nameKey = Placement.nameKey(channel.name)
        if tombstone {
            stage.put(.names, nameKey, NameRow(id: channel.id, isTombstone: true).bytes)
        } else if !isKept {
            stage.delete(.names, nameKey)
        }
        if !isKept { try collect(channel.id, in: &stage) }
        channel.staged.isDeleted = true
        channel.staged.row.isClosed = true
        // Made in this very commit and kept for its forks, it is found nowhere else yet.
        if tombstone || !isKept { overlay.created[channel.name] = nil }
        if tombstone || !isKept { overlay.removed.insert(channel.name) }
        touch(channel)
    }

    /// Deletes what a channel has beside its entries.
    func strip(_ id: ChannelID, _ row: ChannelRow, in stage: inout Stage) {
        for family in [Family.states, .inbox, .producers, .idempotency, .outbox] { stage.delete(family, from: id.key, to: id.keyEnd) }
        if let due = row.due { stage.delete(.index, expiry.key(due, id)) }
        for mark in [IndexMark.follow, .watch] {
            let (lower, upper) = mark.range(id)
            stage.delete(.index, from: lower, to: upper)
        }
    }

    /// The name of a channel that was kept for its forks has become free.
    func free(_ name: String) {
        overlay.created[name] = nil
        overlay.removed.insert(name)
        overlay.freed.append(name)
    }

    func isTrimmed(_ id: ChannelID) -> Bool { overlay.trimmed.contains(id) }
    func markTrimmed(_ id: ChannelID) { overlay.trimmed.insert(id) }

    /// What was forked from a channel in the current commit: scans do not see it yet.
    func forkedInThisCommit(_ id: ChannelID) -> [(id: ChannelID, name: String)] { overlay.forked[id] ?? [] }

    func touch(_ channel: Channel) {
        if overlay.touchedIDs.insert(ObjectIdentifier(channel)).inserted { overlay.touched.append(channel) }
    }

    private func flush(into stage: inout Stage) {
        // In the order of their keys: where one went into the memtable, the next is looked for from there.
        overlay.touched.sort { ($0.id.partition, $0.id.number) < ($1.id.partition, $1.id.number) }
        for channel in overlay.touched { flush(channel, into: &stage) }
    }

    private func flush(_ channel: Channel, into stage: inout Stage) {
        if !channel.staged.isDeleted { channel.flush(into: &stage) }
    }

    /// Publishes everything the commit made durable. Called by the first submission that is answered, so that whoever gets an answer also
    /// reads his own write.
    func publish() {
        messages.committed()
        guard !overlay.touched.isEmpty else { return }
        for (name, channel) in overlay.created { partitions[name.text].residents.withLock { $0.channels[name] = channel } }
        for channel in overlay.touched {
            partitions[channel.name].residents.withLock { residents in
                residents.unpublished.remove(channel.name)
                if channel.staged.isDeleted, residents.channels[channel.name] === channel { residents.leave(channel.name) }
            }
            for watcher in channel.publish() { watcher.channelChanged(channel) }
        }
        subscriptions?.published(overlay.touched)
        for name in overlay.freed {
            partitions[name].residents.withLock { if $0.channels[name]?.isSoftDeleted == true { $0.leave(name) } }
        }
        overlay.clear()
        evictIdle()
    }

    /// What was staged in these partitions is lost, and so are they.
    private func lost(_ failures: [UInt16: LogError]) {
        func isLost(_ channel: Channel) -> Bool {
            failures[channel.id.partition] != nil || failures[Placement.partition(of: channel.name)] != nil
        }
        for channel in overlay.touched where isLost(channel) {
            partitions[channel.name].residents.withLock { $0.unpublished.remove(channel.name) }
            overlay.touchedIDs.remove(ObjectIdentifier(channel))
        }
        overlay.touched.removeAll(where: isLost)
        overlay.created = overlay.created.filter { !isLost($0.value) }
        if overlay.touched.isEmpty { overlay.clear() }
        for (partition, error) in failures.sorted(by: { $0.key < $1.key }) {
            Diagnostics.log(.warning, "partition lost", ["partition": "\(partition)", "reason": error.message])
            closed(partition)
        }
    }

    func notifyInput(_ channel: Channel, offsets: ClosedRange<UInt64>) {
        observers.withLock { $0.input }?.inputCommitted(channel, offsets: offsets)
    }

    func notifyFollowed(_ follower: String) { observers.withLock { $0.input }?.followed(follower) }
    func linked(_ stream: String, to subscription: String) { subscriptions?.linked(stream, to: subscription) }
    func notifyDeleted(_ channel: Channel) { observers.withLock { $0.input }?.channelDeleted(channel) }

    /// Lets go of channels that nobody watches when a shard has grown past its share. Nothing is staged when this runs.
    func evictIdle() {
        for partition in partitions.all {
            partition.residents.withLock { residents in
                guard residents.channels.count > partitions.residentShare else { return }
                for (name, channel) in residents.channels where channel.evict() { residents.leave(name) }
            }
        }
    }
}

/// What the current commit has made of channels, beside what is in the stage: readers learn of it once it is durable.
private struct Overlay {
    /// Channels with something staged, in the order in which they were touched.
    var touched: [Channel] = []
    var touchedIDs: Set<ObjectIdentifier> = []
    /// By name.
    var created: [TextKey: Channel] = [:]
    var removed: Set<TextKey> = []
    /// Names of channels that were kept for their forks.
    var freed: [String] = []
    /// By their source.
    var forked: [ChannelID: [(id: ChannelID, name: String)]] = [:]
    /// Channels whose log is rewritten.
    var trimmed: Set<ChannelID> = []

    mutating func clear() {
        freed.removeAll()
        forked.removeAll()
        trimmed.removeAll()
        touched.removeAll(keepingCapacity: true)
        touchedIDs.removeAll(keepingCapacity: true)
        created.removeAll(keepingCapacity: true)
        removed.removeAll(keepingCapacity: true)
    }
}

/// Who is told of what happens to channels.
struct ChannelObservers {
    var partitions: [PartitionWatch] = []
    var input: (any InputObserver)?
}
