package import ParleyLog
internal import ParleySystem
internal import Synchronization

/// The partitions of a node's channels, those that it owns and the others.
final class Partitions: Sendable {
    let all: [Partition]
    /// How many channels of each partition stay in memory before those without watchers are evicted.
    let residentShare: Int
    private let openBits: Atomic<UInt64>

    init(open: PartitionSet, residentMax: Int) {
        all = (0..<Placement.partitionCount).map { Partition($0) }
        residentShare = residentMax / all.count
        openBits = Atomic(open.bits)
    }

    /// That of the name.
    subscript(name: String) -> Partition { all[Int(Placement.partition(of: name))] }

    /// That of the channel's rows.
    subscript(id: ChannelID) -> Partition { all[Int(id.partition)] }

    var open: PartitionSet { PartitionSet(bits: openBits.load(ordering: .acquiring)) }

    func opened(_ partition: UInt16) { openBits.bitwiseOr(PartitionSet([partition]).bits, ordering: .releasing) }
    func closed(_ partition: UInt16) { openBits.bitwiseAnd(~PartitionSet([partition]).bits, ordering: .sequentiallyConsistent) }
}

/// One partition of a node's channels: what of it is in memory while this node owns it.
///
/// It is opened with an epoch, which stands in everything that is committed from then on, and closed, or lost when the log has another owner for it.
final class Partition: Sendable {
    struct Residents {
        /// Those whose rows are in this partition.
        var channels: [ResidentKey: Channel] = [:]
        /// Channels whose creation may be durable but is not published: no second object may be loaded for them.
        var unpublished: Set<ResidentKey> = []
        /// Where names of this partition lead whose channels' rows are in another. Only what has been looked up; that the channel is in memory says
        /// that it is still so.
        var elsewhere: [TextKey: ChannelID] = [:]
        /// How many channels have left memory.
        private(set) var departures: UInt64 = 0

        mutating func leave(_ key: ResidentKey) {
            if channels.removeValue(forKey: key) != nil { departures += 1 }
        }
    }

    let number: UInt16
    let residents = Mutex(Residents())

    init(_ number: UInt16) { self.number = number }

    /// Removes all channels and all locations of names.
    func takeOut() -> [Channel] {
        residents.withLock { residents in
            let gone = residents.channels
            for key in gone.keys { residents.leave(key) }
            residents.elsewhere = [:]
            return gone.values.sorted { ($0.name, $0.id.number) < ($1.name, $1.id.number) }
        }
    }

    /// Evicts channels without watchers if there are more than `share`.
    func evict(beyond share: Int) -> [Channel] {
        residents.withLock { residents in
            guard residents.channels.count > share else { return [] }
            let gone = residents.channels.filter { $0.value.evict() }
            for key in gone.keys { residents.leave(key) }
            return Array(gone.values)
        }
    }
}

/// Which channel of a partition: its name, or its number where the name is of another partition. Two may have the same name then, for as long as
/// the messages are on their way that decide between them.
enum ResidentKey: Hashable {
    case name(TextKey)
    case number(UInt64)

    init(_ name: String, _ id: ChannelID) {
        self = Placement.partition(of: name) == id.partition ? .name(TextKey(name)) : .number(id.number)
    }
}

/// Serves what is in the partitions that this node owns.
package protocol PartitionObserver: AnyObject, Sendable {
    /// Reads what to resume in a partition that is about to be opened, and that no node writes to. Not on the writer's thread.
    ///
    /// - Returns: What takes it up. Called on the writer's thread, before anything is decided there; must only take note.
    func prepare(_ partition: UInt16) throws(LogError) -> @Sendable () -> Void
    /// Called on the writer thread when this node can commit nothing more there; must only take note.
    func partitionClosed(_ partition: UInt16)
}

extension Channels {
    /// The partitions that this node owns. Thread-safe.
    package var openPartitions: PartitionSet { partitions.open }

    /// Has `observer` told of partitions that are opened and closed. It is not kept alive.
    package func observePartitions(_ observer: any PartitionObserver) {
        observers.withLock { observers in
            observers.partitions.removeAll { $0.observer == nil }
            observers.partitions.append(PartitionWatch(observer: observer))
        }
    }

    /// Becomes the owner of a partition, and serves what is in it. Not for event loops: the log is asked.
    ///
    /// One that is open already, as far as this node knows, is closed first: another may have had it since.
    ///
    /// - Parameter completion: Called once, on the writer's thread, or here when it could not be acquired.
    package func open(_ partition: UInt16, completion: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        guard openPartitions.contains(partition) else { return acquire(partition, completion) }
        close(partition) { [self] result in
            if case .failure = result { return completion(result) }
            world.perform(lane: UInt64(partition)) { self.acquire(partition, completion) }
        }
    }

    private func acquire(_ partition: UInt16, _ completion: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        do throws(LogError) {
            let epoch = try log.acquire(partition)
            var takeUp: [@Sendable () -> Void] = []
            for observer in currentObservers { takeUp.append(try observer.prepare(partition)) }
            let opening = PartitionOpening(partition: partition, epoch: epoch, names: try names(in: partition), takeUp: takeUp)
            submit(.open(opening)) { completion($0.map { _ in }) }
        } catch {
            completion(.failure(ChannelError(error)))
        }
    }

    /// Gives a partition up: what was submitted before is committed, what comes after fails with `partition_unavailable`, live readers are told to
    /// look elsewhere, and agents leave memory.
    ///
    /// - Parameter completion: Called once, on the writer's thread, when nothing of this node's can be committed there any more.
    package func close(_ partition: UInt16, completion: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        submit(.close(partition)) { completion($0.map { _ in }) }
    }

    // MARK: The writer's side

    func opened(_ opening: PartitionOpening) {
        limit?.opened(opening.partition, names: opening.names)
        partitions.opened(opening.partition)
        for takeUp in opening.takeUp { takeUp() }
        expiry.lookAgain()
    }

    /// Evicts everything in the partition. Nothing is staged in it, or the staged part was lost.
    func closed(_ partition: UInt16) {
        guard openPartitions.contains(partition) else { return }
        partitions.closed(partition)
        nextNumber[partition] = nil
        limit?.closed(partition)
        messages.answers.fail(partition)
        // A load looks under the same lock whether the partition is open: what is taken out now is all.
        let gone = partitions.all[Int(partition)].takeOut()
        forget(gone)
        for channel in gone {
            for watcher in channel.leave() { watcher.channelLeft(channel) }
        }
        // Only now, when no thread can obtain a channel that the observers would miss.
        for observer in currentObservers { observer.partitionClosed(partition) }
    }

    private var currentObservers: [any PartitionObserver] { observers.withLock { $0.partitions.compactMap(\.observer) } }

    /// - Throws: ``LogError`` with code `partition_unavailable` unless this node owns all partitions: a list that is not complete is none.
    package func requireAllOpen() throws(LogError) {
        for partition in 0..<Placement.partitionCount where openPartitions != .all { try requireOpen(partition) }
    }

    func requireOpen(_ partition: UInt16) throws(LogError) {
        try openPartitions.require(partition)
    }
}

struct PartitionWatch {
    weak var observer: (any PartitionObserver)?
}

/// A partition that has been acquired, and what there is in it.
struct PartitionOpening: Sendable {
    let partition: UInt16
    let epoch: UInt64
    /// How many names are taken there.
    let names: Int
    let takeUp: [@Sendable () -> Void]
}
