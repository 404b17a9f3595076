import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyChannels

/// Nodes on one log, as on one that is replicated, each of which owns some of the partitions; and what a router does to reach them.
final class OwnersBench: MessageCarrier, Sendable {
    struct Node {
        let log: SimulatedLog
        let writer: GroupCommit
        let channels: Channels
    }

    let world: SimulatedWorld
    /// What all of them read, also when one has ended.
    let log = SimulatedLog()
    private let state: Mutex<(nodes: [Node], owners: [UInt16: Int])>
    /// How the next commit of a node ends.
    private let doomed = Mutex<[Int: SimulatedLog.Outcome]>([:])

    /// - Parameters:
    ///   - owner: The node that a partition has from the start; by its number.
    ///   - outcome: How the commits of the nodes end.
    init(
        nodes: Int = 2, seed: UInt64 = 1, owner: (UInt16) -> Int = { Int($0 % 2) },
        outcome: (Int) -> SimulatedLog.Decision = { _ in { _, _ in .acknowledged } }
    ) throws {
        world = SimulatedWorld(seed: seed)
        state = Mutex(([], [:]))
        let owners = Dictionary(uniqueKeysWithValues: (0..<Placement.partitionCount).map { ($0, owner($0)) })
        state.withLock { $0.owners = owners }
        for number in 0..<nodes {
            let node = node(number, PartitionSet(owners.filter { $0.value == number }.keys), outcome(number))
            state.withLock { $0.nodes.append(node) }
        }
        world.drive { self.nodes.map { $0.writer.pump() }.contains(true) }
    }

    private func node(_ number: Int, _ partitions: PartitionSet, _ outcome: @escaping SimulatedLog.Decision) -> Node {
        let log = log.shared(outcome: { [unowned self] commit, batches in
            doomed.withLock { $0.removeValue(forKey: number) } ?? outcome(commit, batches)
        })
        let writer = GroupCommit(log: log)
        let channels = Channels(log: log, writer: writer, world: world, partitions: partitions)
        channels.messages.carry(by: self)
        return Node(log: log, writer: writer, channels: channels)
    }

    var nodes: [Node] { state.withLock { $0.nodes } }
    func owner(_ partition: UInt16) -> Channels { state.withLock { $0.nodes[$0.owners[partition]!] }.channels }
    func home(_ name: String) -> Channels { owner(Placement.partition(of: name)) }

    func carry(_ delivery: Delivery, taken: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        owner(delivery.destination).carry(delivery, taken: taken)
    }

    // MARK: What happens to nodes

    /// Another node has the partition from now on; the one before is asked to give it up, or learns of it with its next commit.
    func hand(_ partition: UInt16, to node: Int, isAsked: Bool = true) {
        let before = owner(partition)
        state.withLock { $0.owners[partition] = node }
        guard owner(partition) !== before else { return }
        if isAsked { before.close(partition) { _ in } }
        owner(partition).open(partition) { _ in }
    }

    /// Has a node crash with its next commit, if it has one soon.
    func crash(_ number: Int, _ outcome: SimulatedLog.Outcome) {
        doomed.withLock { $0[number] = outcome }
        for _ in 0..<20 { world.doOne() }
        doomed.withLock { $0 = [:] }
    }

    /// Has the nodes that have crashed replaced, each by one that owns what it owned.
    func restart() {
        for (number, old) in nodes.enumerated() where old.log.crashed {
            let node = node(number, PartitionSet()) { _, _ in .acknowledged }
            let owned = state.withLock { state in
                state.nodes[number] = node
                return state.owners.filter { $0.value == number }.keys.sorted()
            }
            for partition in owned { node.channels.open(partition) { _ in } }
        }
        world.settle()
    }

    /// Until nothing is left to do, also after a while.
    func drain() { world.run(deadline: world.now.advanced(by: .seconds(5))) }

    // MARK: What clients do

    /// Who is asked for the channel, and for which one.
    func target(_ name: String) throws -> (channels: Channels, id: ChannelID?) {
        guard case .at(let id) = try home(name).locate(name) else { return (home(name), nil) }
        return (owner(id.partition), id)
    }

    /// Asks, and once more when the channel has changed meanwhile.
    private func route<Value>(
        _ name: String, settles: Bool, _ ask: (Channels, ChannelID?, Answer<Value>) -> Void
    ) -> Answer<Value> {
        var answer = Answer<Value>()
        for _ in 0..<2 {
            answer = Answer()
            do {
                let (channels, id) = try target(name)
                ask(channels, id, answer)
            } catch { answer.set(.failure(ChannelError(error as! LogError))) }
            guard settles else { return answer }
            world.settle()
            guard answer.error?.isChanged == true || answer.error?.elsewhere != nil else { return answer }
        }
        return answer
    }

    @discardableResult
    func create(_ name: String, type: String = ContentType.json, lifetime: Lifetime? = nil, settles: Bool = true) -> Answer<
        CreateChannel.Created
    > {
        var row = ChannelRow(name: name, contentType: type, isAgent: name.hasPrefix("agents/"), created: world.now)
        row.lifetime = lifetime
        return submit(CreateChannel(row), settles)
    }

    @discardableResult
    func fork(
        _ name: String, from source: String, at offset: UInt64? = nil, sub: UInt64? = nil, type: String? = nil, lifetime: Lifetime? = nil,
        entries: [String] = [], mustBeNew: Bool = false, settles: Bool = true
    ) -> Answer<CreateChannel.Created> {
        var row = ChannelRow(name: name, contentType: type ?? "application/octet-stream", isAgent: false, created: world.now)
        row.lifetime = lifetime
        var creation = CreateChannel(row, entries.map { NewEntry(data: Bytes($0.utf8)) })
        (creation.fork, creation.hasContentType) = (ForkRequest(source: source, offset: offset, subOffset: sub), type != nil)
        creation.mustBeNew = mustBeNew
        return submit(creation, settles)
    }

    private func submit(_ creation: CreateChannel, _ settles: Bool) -> Answer<CreateChannel.Created> {
        route(creation.row.name, settles: settles) { channels, id, answer in
            var creation = creation
            creation.id = id
            channels.submit(creation) { answer.set($0) }
        }
    }

    @discardableResult
    func append(_ text: String, to name: String, settles: Bool = true) -> Answer<Appended> {
        route(name, settles: settles) { channels, id, answer in
            var append = Append(to: name, [NewEntry(data: Bytes(text.utf8))])
            append.id = id
            channels.submit(append) { answer.set($0) }
        }
    }

    @discardableResult
    func delete(_ name: String, settles: Bool = true) -> Answer<Void> {
        route(name, settles: settles) { channels, id, answer in
            channels.submit(DeleteChannel(name, at: id)) { answer.set($0) }
        }
    }

    func channel(_ name: String) throws -> Channel? {
        let (channels, id) = try target(name)
        return if let id { try channels.find(name, at: id) } else { try channels.find(name) }
    }

    /// All bytes of a channel; `nil`: it is not there.
    func whole(_ name: String) throws -> String? {
        let channels = try target(name).channels
        return try channel(name).map { try channels.page($0, after: 0, view: .raw, bytesMax: .max).body.text }
    }

    // MARK: What there is

    /// Every name leads to rows, and rows have a name; nothing is left to send.
    func check(_ comment: Comment) throws {
        var names: [ChannelID: String] = [:]
        try scan(.names) { key, value in
            guard let row = NameRow(value), !row.isTombstone else { return }
            #expect(names.updateValue(Bytes(key[2...]).text, forKey: row.id) == nil, comment)
        }
        var rows: [ChannelID: String] = [:]
        try scan(.channels) { key, value in
            let id = ChannelID(partition: key.readBigEndian(at: 0), number: key.readBigEndian(at: 2))
            guard id.number != 0, let row = ChannelRow(value), !(row.isAgent && row.isSoftDeleted) else { return }
            rows[id] = row.name
        }
        #expect(names == rows, comment)
        #expect(try messages(in: log) == 0, comment)
    }

    /// Nothing is left of any channel but tombstones.
    func checkEmpty(_ comment: Comment) throws {
        try check(comment)
        for family in [Family.log, .index, .producers, .idempotency] { #expect(try rows(family) == 0, "\(family), \(comment)") }
    }

    func rows(_ family: Family) throws -> Int {
        var count = 0
        try scan(family) { _, _ in count += 1 }
        return count
    }

    private func scan(_ family: Family, _ visit: (Bytes, Bytes) -> Void) throws {
        try log.scan(family, from: [0, 0], to: [255, 255], reversed: false) { key, value in
            visit(Bytes(key), Bytes(value))
            return true
        }
    }
}

/// A name whose home is that partition.
func name(_ prefix: String, in partition: UInt16) -> String {
    (0...).lazy.map { "\(prefix)/\($0)" }.first { Placement.partition(of: $0) == partition }!
}
