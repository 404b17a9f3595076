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

    /// An append to a channel that is not in memory takes twice as long: its row and its tail are read first.
    package static let residentMax = max(16_384, SystemMemory.byteCount / 16 / residentBytes)
    /// About what a channel without a watcher takes of memory.
    private static let residentBytes = 1_024

    /// - Parameters:
    ///   - residentMax: How many channels stay in memory before those without a watcher are let go; by default as many as fill a sixteenth of it.
    ///   - partitions: Those that this node owns from the start; others are opened and closed, see ``open(_:completion:)``.
    package init(
        log: any CommitLog, writer: GroupCommit, world: any World, outbox: Outbox? = nil, residentMax: Int = Channels.residentMax,
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

    /// Resumes what the last process left: expired channels, messages that were not taken. Cost: some seeks a partition.
    package func start() throws(LogError) {
        try expiry.start()
        try messages.start()
    }

    /// Has `subscriptions` told of what is created and what changes. Called before the writer starts.
    func observe(_ subscriptions: Subscriptions) { self.subscriptions = subscriptions }

    /// How many channels are in memory.
    package var residentCount: Int { partitions.all.reduce(0) { $0 + $1.residents.withLock { $0.channels.count } } }
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
    /// Where the channel of that name is as the writer finds it: with what is staged in the current commit.
    ///
    /// One whose time has come is removed on the way; if there are forks of it, it answers from then on that it is gone. So is what a crash
    /// left of a fork's name, or of what was kept for it.
    ///
    /// - Throws: ``LogError`` with code `partition_unavailable` when this node does not own the name's home.
    func locate(_ name: String, in stage: inout Stage) throws(LogError) -> Location {
        try stage.concern(Placement.partition(of: name))
        switch try staged(name) {
        case .here(let channel):
            try stage.concern(channel.id.partition)
            return try settled(channel, in: &stage).map { .here($0) } ?? .nowhere
        case .at(let id): return .at(id)
        case .nowhere:
            if try nameRow(name, in: stage)?.isFork == true { stage.delete(.names, Placement.nameKey(name)) }
            return .nowhere
        }
    }

    /// The channel with that name and id as the writer finds it, see ``locate(_:in:)``; `nil`: the channel is not there any more. What is staged is
    /// concerned with its rows' partition only.
    func resolve(_ name: String, at id: ChannelID, in stage: inout Stage) throws(LogError) -> Channel? {
        try stage.concern(id.partition)
        guard let channel = try staged(name, at: id) else { return nil }
        return try settled(channel, in: &stage)
    }

    /// The channel that a request is for, by its name alone or, where that was resolved before, by its id as well.
    ///
    /// - Returns: `nil`: there is none of that name.
    /// - Throws: ``ChannelError/elsewhere(_:_:)``, or ``ChannelError/changed(_:)`` when the channel with that id is not there any more.
    func resolve(_ name: String, expecting id: ChannelID?, in stage: inout Stage) throws(ChannelRefusal) -> Channel? {
        guard let id else {
            switch try ChannelRefusal.wrap({ () throws(LogError) in try locate(name, in: &stage) }) {
            case .here(let channel): return channel
            case .at(let id): throw .refused(.elsewhere(name, id))
            case .nowhere: return nil
            }
        }
        let channel = try ChannelRefusal.wrap { () throws(LogError) in
            let channel = try resolve(name, at: id, in: &stage)
            if channel == nil { try missing(ChannelReference(name: name, id: id), in: &stage) }
            return channel
        }
        guard let channel else { throw .refused(.changed(name)) }
        return channel
    }

    private func staged(_ name: String) throws(LogError) -> Location {
        if let channel = overlay.created[name] { return .here(channel) }
        guard !overlay.removed.contains(name) else { return .nowhere }
        guard let id = overlay.named[name] else { return try lookUp(name) }
        guard openPartitions.contains(id.partition) else { return .at(id) }
        return try lookUp(name, at: id).map { .here($0) } ?? .nowhere
    }

    private func staged(_ name: String, at id: ChannelID) throws(LogError) -> Channel? {
        if let channel = overlay.created[name], channel.id == id { return channel }
        guard overlay.erased[id] == nil, let channel = try lookUp(name, at: id) else { return nil }
        // Removed in this commit: only a plain channel that is kept for its forks still answers to its name.
        return channel.staged.isDeleted && (channel.isAgent || !channel.isGone) ? nil : channel
    }

    /// - Returns: the channel, unless it is removed by now.
    private func settled(_ channel: Channel, in stage: inout Stage) throws(LogError) -> Channel? {
        if channel.isGone {
            try messages.ready(channel.id.partition, in: stage)
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

    /// Where the name leads, with what is staged.
    func nameRow(_ name: String, in stage: Stage) throws(LogError) -> NameRow? {
        try stage.get(.names, Placement.nameKey(name)).flatMap { NameRow($0) }
    }

    /// Whether there was an agent of that name, which was deleted.
    func hasTombstone(_ name: String, in stage: Stage) throws(LogError) -> Bool { try nameRow(name, in: stage)?.isTombstone ?? false }

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
        try stage.concern(partition)
        let subscribers = try subscriptions?.toTell(of: row.name, from: partition, in: stage) ?? []
        let isTwofold = try readyTwofold(Placement.partition(of: row.name), partition, in: stage)
        let channel = try makeRows(row, in: partition, &stage)
        giveName(row.name, NameRow(id: channel.id, isFork: row.fork != nil), telling: subscribers, from: partition, in: &stage)
        if isTwofold { tellTwofold(channel.reference, in: &stage) }
        overlay.created[row.name] = channel
        partitions[channel.id].residents.withLock { _ = $0.unpublished.insert(ResidentKey(row.name, channel.id)) }
        touch(channel)
        return channel
    }

    /// Makes the rows of a channel, staged; its name is not written.
    func makeRows(_ row: ChannelRow, in partition: UInt16, _ stage: inout Stage) throws(LogError) -> Channel {
        let id = ChannelID(partition: partition, number: try takeNumber(partition, in: &stage))
        let channel = Channel(row: row, id: id, head: row.fork?.head ?? 0, lastAt: Timestamp(milliseconds: 0))
        if let fork = row.fork {
            let source = ChannelID(partition: partition, number: fork.sourceNumber)
            stage.put(.index, ForkRow.key(source, id), Bytes(row.name.utf8))
            overlay.forked[source, default: []].append(ChannelReference(name: row.name, id: id))
        }
        channel.staged.isRowChanged = true
        if let due = setDue(channel, in: &stage) { expiry.set(due) }
        channel.staged.undecided = UndecidedEntries()
        if row.isAgent { channel.move(to: .idle, turn: nil, in: &stage) }
        return channel
    }

    private func takeNumber(_ partition: UInt16, in stage: inout Stage) throws(LogError) -> UInt64 {
        let counterKey = ChannelID(partition: partition, number: 0).key
        var number = nextNumber[partition] ?? 1
        if nextNumber[partition] == nil, let stored = try log.get(.channels, counterKey) { number = stored.readBigEndian(at: 0) }
        nextNumber[partition] = number + 1
        var counter = Bytes()
        counter.append(bigEndian: number + 1)
        stage.put(.channels, counterKey, counter)
        return number
    }

    /// Writes where a name leads from now on, and has the subscriptions told that it matches. ``Messages/ready(_:in:)`` has been called.
    func giveName(_ name: String, _ row: NameRow, telling subscribers: [String], from partition: UInt16, in stage: inout Stage) {
        stage.put(.names, Placement.nameKey(name), row.bytes)
        limit?.added(name)
        for subscriber in subscribers { messages.post(.link(subscription: subscriber, stream: name), from: partition, in: &stage) }
        overlay.removed.remove(name)
        overlay.named[name] = row.id
    }

    /// Deletes the name if it leads to that channel.
    /// - Returns: whether it did.
    @discardableResult
    func deleteName(_ channel: ChannelReference, in stage: inout Stage) throws(LogError) -> Bool {
        guard let row = try nameRow(channel.name, in: stage), row.id == channel.id, !row.isTombstone else { return false }
        stage.delete(.names, Placement.nameKey(channel.name))
        // Made in this very commit, it is found nowhere else yet.
        overlay.created[channel.name] = nil
        overlay.named[channel.name] = nil
        overlay.removed.insert(channel.name)
        return true
    }

    /// It takes the writer as long as an append of so many bytes: of those a commit has not too many either.
    private static let removalBytes = 4 << 10

    /// Removes a channel and everything it has, staged. With a `tombstone` only an explicit PUT recreates it.
    ///
    /// While there are forks of it, its entries stay, and so does a plain channel's name: it is not free.
    func remove(_ channel: Channel, tombstone: Bool, in stage: inout Stage) throws(LogError) {
        let keeper = try keeper(of: channel.id, in: &stage)
        try messages.ready(channel.id.partition, in: stage)
        try channel.loadFollowers(stage)
        if channel.isAgent { try unwatchAll(of: channel.id, in: &stage) }
        channel.tellFollowers(messages, in: &stage)
        try subscriptions?.removing(channel, in: &stage)
        stage.count(Channels.removalBytes)
        if owns(Placement.partition(of: channel.name), in: &stage) { limit?.removed(channel.name) }
        channel.staged.row.audience = keeper == nil ? .readers : .forksAlone
        if keeper != nil { channel.staged.isRowChanged = true }
        flush(channel, into: &stage)
        strip(channel.id, channel.staged.row, in: &stage)
        if tombstone {
            stage.put(.names, Placement.nameKey(channel.name), NameRow(id: channel.id, isTombstone: true).bytes)
            overlay.created[channel.name] = nil
            overlay.removed.insert(channel.name)
        } else if keeper == nil {
            try unname(channel.reference, in: &stage)
        }
        if let keeper { ask(keeper, in: &stage) } else { try collect(channel.id, in: &stage) }
        channel.staged.isDeleted = true
        channel.staged.row.closure = channel.staged.row.closure ?? ChannelRow.Closure()
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

    /// What is left of a channel is deleted in this commit.
    func erased(_ id: ChannelID, _ name: String) { overlay.erased[id] = ResidentKey(name, id) }

    func isTrimmed(_ id: ChannelID) -> Bool { overlay.trimmed.contains(id) }
    func markTrimmed(_ id: ChannelID) { overlay.trimmed.insert(id) }

    /// What was forked from a channel in the current commit: scans do not see it yet.
    func forkedInThisCommit(_ id: ChannelID) -> [ChannelReference] { overlay.forked[id] ?? [] }

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

    /// Publishes everything the commit made durable. Called by the first submission that is answered, so that a client that gets
    /// an answer also reads its own write.
    func publish() {
        messages.committed()
        guard !overlay.isClear else { return }
        for (name, channel) in overlay.created {
            partitions[channel.id].residents.withLock { $0.channels[ResidentKey(name.text, channel.id)] = channel }
            if Placement.partition(of: name.text) != channel.id.partition { note(name.text, channel.id) }
        }
        for channel in overlay.touched {
            letGo(channel)
            for watcher in channel.publish() { watcher.channelChanged(channel) }
        }
        subscriptions?.published(overlay.touched)
        for (id, key) in overlay.erased { letGo(id, key) }
        let touched = PartitionSet(overlay.touched.lazy.map(\.id.partition))
        overlay.clear()
        evictIdle(in: touched)
    }

    /// The channel is published, and leaves memory if it was removed.
    private func letGo(_ channel: Channel) {
        let key = ResidentKey(channel.name, channel.id)
        let hasLeft = partitions[channel.id].residents.withLock { residents in
            residents.unpublished.remove(key)
            guard channel.staged.isDeleted, residents.channels[key] === channel else { return false }
            residents.leave(key)
            return true
        }
        if hasLeft { forget([channel]) }
    }

    /// What was kept for its forks, or was a fork without a name, is deleted.
    private func letGo(_ id: ChannelID, _ key: ResidentKey) {
        let gone = partitions[id].residents.withLock { residents -> Channel? in
            guard let channel = residents.channels[key], channel.id == id else { return nil }
            residents.leave(key)
            return channel
        }
        guard let gone else { return }
        forget([gone])
        for watcher in gone.leave() { watcher.channelLeft(gone) }
    }

    /// What was staged in these partitions is lost, and so are they. The rest is durable.
    private func lost(_ failures: [UInt16: LogError]) {
        let lost = PartitionSet(failures.keys)
        for channel in overlay.touched where lost.contains(channel.id.partition) {
            partitions[channel.id].residents.withLock { _ = $0.unpublished.remove(ResidentKey(channel.name, channel.id)) }
        }
        overlay.lose(lost)
        for (partition, error) in failures.sorted(by: { $0.key < $1.key }) {
            Diagnostics.log(.warning, "partition lost", ["partition": "\(partition)", "reason": error.message])
            closed(partition)
        }
        // Whatever was staged with it fails, also where the batch of another partition is durable.
        publish()
    }

    func notifyInput(_ channel: Channel, offsets: ClosedRange<UInt64>) {
        observers.withLock { $0.input }?.inputCommitted(channel, offsets: offsets)
    }

    func notifyFollowed(_ follower: String) { observers.withLock { $0.input }?.followed(follower) }
    func linked(_ stream: String, to subscription: String) { subscriptions?.linked(stream, to: subscription) }
    func notifyDeleted(_ channel: Channel) { observers.withLock { $0.input }?.channelDeleted(channel) }

    /// Lets go of channels that nobody watches when a shard has grown past its share. Nothing is staged when this runs.
    func evictIdle(in grown: PartitionSet = .all) {
        for partition in grown.numbers {
            let gone = partitions.all[Int(partition)].evict(beyond: partitions.residentShare)
            if !gone.isEmpty { forget(gone) }
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
    /// Names that lead nowhere any more, and those that lead to a channel from this commit on.
    var removed: Set<TextKey> = []
    var named: [TextKey: ChannelID] = [:]
    /// Channels of which nothing is left.
    var erased: [ChannelID: ResidentKey] = [:]
    /// By their source.
    var forked: [ChannelID: [ChannelReference]] = [:]
    /// Channels whose log is rewritten.
    var trimmed: Set<ChannelID> = []

    var isClear: Bool {
        touched.isEmpty && removed.isEmpty && named.isEmpty && erased.isEmpty && forked.isEmpty && trimmed.isEmpty
    }

    mutating func clear() {
        named.removeAll(keepingCapacity: true)
        erased.removeAll()
        forked.removeAll()
        trimmed.removeAll()
        touched.removeAll(keepingCapacity: true)
        touchedIDs.removeAll(keepingCapacity: true)
        created.removeAll(keepingCapacity: true)
        removed.removeAll(keepingCapacity: true)
    }

    /// Leaves out what was staged in these partitions.
    mutating func lose(_ lost: PartitionSet) {
        for channel in touched where lost.contains(channel.id.partition) { touchedIDs.remove(ObjectIdentifier(channel)) }
        touched.removeAll { lost.contains($0.id.partition) }
        created = created.filter { !lost.contains($1.id.partition) && !lost.contains(Placement.partition(of: $0.text)) }
        erased = erased.filter { !lost.contains($0.key.partition) }
    }
}

/// Who is told of what happens to channels.
struct ChannelObservers {
    var partitions: [PartitionWatch] = []
    var input: (any InputObserver)?
}
