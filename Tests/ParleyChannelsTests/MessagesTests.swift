import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyChannels

private let agents = ["agents/probe/a", "agents/probe/b"]
private let streams = ["streams/s", "streams/t", "streams/u"]

/// Channels that drive themselves, of which several may follow each other's streams.
private final class Station: InputObserver, Sendable {
    let log: SimulatedLog
    let world: SimulatedWorld
    let channels: Channels
    private let writer: GroupCommit
    private let toldOf = Mutex<[String]>([])

    init(_ log: SimulatedLog = SimulatedLog(), world: SimulatedWorld? = nil, seed: UInt64 = 1, partitions: PartitionSet = .all) throws {
        let shared = world
        let world = world ?? SimulatedWorld(seed: seed)
        (self.log, self.world) = (log, world)
        let writer = GroupCommit(log: log)
        self.writer = writer
        channels = Channels(log: log, writer: writer, world: world, partitions: partitions)
        channels.observeInput(self)
        if shared == nil { world.drive { writer.pump() } }
        try channels.start()
    }

    func inputCommitted(_ channel: Channel, offsets: ClosedRange<UInt64>) {}
    func channelDeleted(_ channel: Channel) {}
    func followed(_ follower: String) { toldOf.withLock { $0.append(follower) } }

    @discardableResult func pump() -> Bool { writer.pump() }

    /// Who was told, in order.
    var told: [String] { toldOf.withLock { $0 } }

    func create(_ name: String) {
        let isAgent = name.hasPrefix("agents/")
        channels.submit(CreateChannel(ChannelRow(name: name, contentType: ContentType.json, isAgent: isAgent, created: world.now)))
    }

    func append(_ name: String) { channels.submit(Append(to: name, [NewEntry(data: Bytes("1".utf8))])) }

    /// What an agent's owner writes.
    func change(_ follow: FollowChange, of agent: String) {
        var append = Append(to: agent, [])
        append.owner.rows = [.follow(follow)]
        channels.submit(append)
    }

    /// Has a step of the agent follow a stream from its beginning on.
    func follow(_ stream: String, by agent: String, step: String = "1/f", after: UInt64 = 0) throws {
        let followed = try channels.find(stream)?.id.text
        change(.begins(Follow(follower: agent, id: step, followed: stream, after: after, incarnation: followed)), of: agent)
    }

    func unfollow(by agent: String, step: String = "1/f") throws {
        guard let id = try channels.find(agent)?.id else { return }
        change(.ends(FollowKey(channel: id, step: step)), of: agent)
    }

    /// What the next process finds.
    func reopened(outcome: @escaping SimulatedLog.Decision = { _, _ in .acknowledged }) throws -> Station {
        try Station(log.reopen(outcome: outcome), seed: world.random())
    }
}

extension CommitLog {
    fileprivate func follows() throws -> [(id: ChannelID, row: FollowRow)] {
        var found: [(id: ChannelID, row: FollowRow)] = []
        for partition in 0..<Placement.partitionCount { try FollowRow.scan(self, partition) { found.append(($0, $1)) } }
        return found
    }

    fileprivate func watches() throws -> Int {
        var rows = 0
        for partition in 0..<Placement.partitionCount {
            let (lower, upper) = IndexMark.watch.range(partition)
            try scan(.index, from: lower, to: upper, reversed: false) { _, _ in
                rows += 1
                return true
            }
        }
        return rows
    }
}

/// Every follow has been told of what there is, or is watched for; nothing is left of others.
private func check(_ station: Station, _ comment: Comment) throws {
    let follows = try station.log.follows()
    #expect(try messages(in: station.log) == 0, comment)
    #expect(try station.log.watches() == follows.count { $0.row.news == .awaited }, comment)
    for (_, row) in follows where row.news == .awaited {
        let channel = try station.channels.find(row.follow.followed)
        #expect(channel?.id.text == row.follow.incarnation, "\(comment): \(row.follow) waits for a channel that is gone")
        #expect(channel.map { $0.tail.head <= row.follow.after && !$0.tail.isClosed } ?? false, "\(comment): \(row.follow) was not told")
    }
}

@Suite struct `Messages between partitions` {
    @Test func `tell a follower of the next entry, once`() throws {
        let station = try Station()
        for name in [agents[0], streams[0]] { station.create(name) }
        station.world.settle()
        try station.follow(streams[0], by: agents[0])
        station.world.settle()
        #expect(station.told == [])
        for _ in 0..<3 { station.append(streams[0]) }
        station.world.settle()
        station.append(streams[0])
        station.world.settle()
        #expect(station.told == [agents[0]])
        try check(station, "told")
        #expect(try station.log.follows().map(\.row.news) == [.told])
    }

    @Test func `tell it at once of what is there already, of an end and of a removal`() throws {
        let station = try Station()
        for name in agents + streams { station.create(name) }
        station.append(streams[0])
        station.world.settle()
        try station.follow(streams[0], by: agents[0], step: "1/there")
        station.world.settle()
        #expect(station.told.count == 1)
        try station.follow(streams[1], by: agents[0], step: "1/closed")
        try station.follow(streams[2], by: agents[0], step: "1/deleted")
        station.world.settle()
        var close = Append(to: streams[1], [])
        close.closes = true
        station.channels.submit(close)
        station.channels.submit(DeleteChannel(streams[2]))
        station.world.settle()
        #expect(station.told.count == 3)
        station.create(streams[2])
        station.world.settle()
        try station.follow(streams[1], by: agents[1], step: "1/late")
        station.world.settle()
        #expect(station.told.count == 4)
        try check(station, "all told")
    }

    @Test func `have nobody watch for what has ended, or for an agent that was deleted`() throws {
        let station = try Station()
        for name in agents + streams { station.create(name) }
        station.world.settle()
        for stream in streams { try station.follow(stream, by: agents[0], step: "1/\(stream)") }
        try station.follow(streams[0], by: agents[1])
        station.world.settle()
        #expect(try station.log.watches() == 4)
        try station.unfollow(by: agents[1])
        station.channels.submit(DeleteChannel(agents[0]))
        station.world.settle()
        #expect(try station.log.watches() == 0)
        for stream in streams { station.append(stream) }
        station.world.settle()
        #expect(station.told == [])
        try check(station, "nobody follows")
    }

    @Test func `watch again for a step that found nothing to read`() throws {
        let station = try Station()
        for name in [agents[0], streams[0]] { station.create(name) }
        station.world.settle()
        try station.follow(streams[0], by: agents[0])
        station.append(streams[0])
        station.world.settle()
        let follow = FollowKey(channel: try #require(try station.channels.find(agents[0])).id, step: "1/f")
        station.channels.submit(FollowAgain(follow, of: try #require(try station.channels.find(streams[0])).id, after: 1))
        station.world.settle()
        #expect(station.told.count == 1)
        #expect(try station.log.watches() == 1)
        station.append(streams[0])
        station.world.settle()
        #expect(station.told.count == 2)
        try check(station, "told twice")
    }

    @Test func `are told in their order, and those that come while some are on their way go with the next`() throws {
        let station = try Station()
        for name in [agents[0], streams[0]] { station.create(name) }
        station.world.settle()
        for round in 0..<600 {
            try station.follow(streams[0], by: agents[0], step: "1/\(round)")
            if round % 2 == 0 { try station.unfollow(by: agents[0], step: "1/\(round)") }
        }
        station.world.settle()
        #expect(try station.log.watches() == 300)
        try check(station, "half of them")
    }

    @Test func `that come a second time do nothing`() throws {
        let station = try Station()
        for name in [agents[0], streams[0]] { station.create(name) }
        station.world.settle()
        try station.follow(streams[0], by: agents[0])
        station.world.settle()
        let id = try #require(try station.channels.find(agents[0])).id
        let news = PartitionMessage.news(FollowKey(channel: id, step: "1/f"))
        let route = Route(source: Placement.partition(of: streams[0]), destination: id.partition)
        for sequence in [7, 7, 6, 8] as [UInt64] {
            station.channels.carry(Delivery(route: route, messages: [(sequence, news.bytes)])) { _ in }
        }
        station.world.settle()
        #expect(station.told.count == 2)
    }

    /// A crash at each commit, with each outcome that it can have, and at another one of the process that comes after.
    @Test(arguments: [SimulatedLog.Outcome.notSubmitted, .durable(batches: [0]), .durable(batches: [1]), .durableUnacknowledged])
    func `are taken once, whatever ends in between`(outcome: SimulatedLog.Outcome) throws {
        for first in 0..<14 {
            for second in 0..<5 {
                let log = SimulatedLog(outcome: { commit, _ in commit == first ? outcome : .acknowledged })
                var station = try Station(log, seed: UInt64(first))
                for name in [agents[0], streams[0]] { station.create(name) }
                station.world.settle()
                if try station.channels.find(streams[0]) != nil { try station.follow(streams[0], by: agents[0]) }
                station.world.settle()
                station.append(streams[0])
                station.world.settle()
                if !log.crashed { try station.unfollow(by: agents[0]) }
                station.world.settle()
                station = try station.reopened { commit, _ in commit == second ? outcome : .acknowledged }
                station.world.settle()
                station = try station.reopened()
                station.world.settle()
                try check(station, "crashes at \(first) and \(second)")
            }
        }
    }

    @Test(arguments: 0..<60 as Range<UInt64>)
    func `leave every follow told or watched, after any number of crashes`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        var station = try Station(seed: seed)
        var steps = 0
        for _ in 0..<12 {
            for _ in 0..<10 {
                let (agent, stream) = (agents[Int(random.next() % 2)], streams[Int(random.next() % 3)])
                switch random.next() % 8 {
                case 0, 1: station.create(random.next() % 2 == 0 ? agent : stream)
                case 2, 3:
                    guard let tail = try station.channels.find(stream)?.tail.head else { break }
                    steps += 1
                    try station.follow(stream, by: agent, step: "1/\(steps)", after: tail)
                case 4: try station.unfollow(by: agent, step: "1/\(steps - Int(random.next() % 4))")
                case 5, 6: station.append(stream)
                default: station.channels.submit(DeleteChannel(random.next() % 3 == 0 ? agent : stream))
                }
                for _ in 0..<random.next() % 6 { station.world.doOne() }
                if station.log.crashed { break }
            }
            let (crash, kind) = (Int(random.next() % 40), random.next() % 3)
            station = try station.reopened { commit, batches in
                guard commit == crash else { return .acknowledged }
                switch kind {
                case 0: return .lost
                case 1: return .durableUnacknowledged
                default: return .durable(batches: Set(batches.indices.filter { $0 % 2 == 0 }))
                }
            }
        }
        station.world.settle()
        station = try station.reopened()
        station.world.settle()
        try check(station, "seed \(seed)")
    }
}

/// Two owners of partitions on one log, as on one that is replicated, which send to each other.
private final class Post: MessageCarrier, Sendable {
    let stations: Mutex<[Station]> = Mutex([])
    let owners: Mutex<[UInt16: Int]> = Mutex([:])

    func carry(_ delivery: Delivery, taken: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        let owner = owners.withLock { $0[delivery.destination] ?? 0 }
        stations.withLock { $0[owner] }.channels.carry(delivery, taken: taken)
    }
}

/// A node whose log is closed when the first delivery comes, and open again when the next one does.
private final class Restarting: MessageCarrier, Sendable {
    let station: Station
    private let isClosed = Mutex(true)

    init(_ station: Station) { self.station = station }

    func carry(_ delivery: Delivery, taken: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        let wasClosed = isClosed.withLock { isClosed in
            defer { isClosed = false }
            return isClosed
        }
        if wasClosed { return taken(.failure(ChannelError(LogError(.closed, "the log is closing")))) }
        station.channels.carry(delivery, taken: taken)
    }
}

@Suite struct `Messages between partitions of two owners` {
    @Test func `that meet damage are sent less and less often, and are taken once that is mended`() throws {
        let isDamaged = Atomic(false)
        let reads = Atomic(0)
        let log = SimulatedLog(readError: { family, key in
            guard isDamaged.load(ordering: .relaxed), family == .outbox, key.count == 13, key[10] == 4 else { return nil }
            reads.add(1, ordering: .relaxed)
            return LogError(.damaged, "a row is damaged")
        })
        let station = try Station(log)
        for name in [agents[0], streams[0]] { station.create(name) }
        station.world.settle()
        try station.follow(streams[0], by: agents[0])
        station.world.settle()
        isDamaged.store(true, ordering: .relaxed)
        station.append(streams[0])
        station.world.run(deadline: station.world.now.advanced(by: .seconds(600)))
        #expect(station.told.isEmpty)
        #expect((5...60).contains(reads.load(ordering: .relaxed)), "\(reads.load(ordering: .relaxed)) reads in ten minutes")
        isDamaged.store(false, ordering: .relaxed)
        station.world.run(deadline: station.world.now.advanced(by: .seconds(60)))
        #expect(station.told == [agents[0]])
    }

    @Test func `are sent again when the other node was about to end`() throws {
        let station = try Station()
        for name in [agents[0], streams[0]] { station.create(name) }
        station.world.settle()
        let carrier = Restarting(station)
        station.channels.messages.carry(by: carrier)
        try station.follow(streams[0], by: agents[0])
        station.append(streams[0])
        station.world.run(deadline: station.world.now.advanced(by: .seconds(10)))
        #expect(station.told == [agents[0]])
        try check(station, "sent again")
    }

    @Test(arguments: 0..<20 as Range<UInt64>)
    func `reach the owner that the other partition has by then`(seed: UInt64) throws {
        let log = SimulatedLog()
        let world = SimulatedWorld(seed: seed)
        let post = Post()
        let both = try (0..<2).map { number in
            try Station(log.shared(), world: world, partitions: number == 0 ? .all : PartitionSet())
        }
        world.drive { both.map { $0.pump() }.contains(true) }
        for station in both { station.channels.messages.carry(by: post) }
        post.stations.withLock { $0 = both }
        for name in agents + streams { both[0].create(name) }
        world.settle()
        var random = SplitMix64(seed: seed)
        let moving = Set((agents + streams).map { Placement.partition(of: $0) }).sorted()
        func owner(_ name: String) -> Station {
            both[post.owners.withLock { $0[Placement.partition(of: name)] ?? 0 }]
        }
        for round in 0..<40 {
            let (agent, stream) = (agents[Int(random.next() % 2)], streams[Int(random.next() % 3)])
            switch random.next() % 4 {
            case 0:
                guard let channel = try? owner(stream).channels.find(stream) else { break }
                let follow = Follow(
                    follower: agent, id: "1/\(round)", followed: stream, after: channel.tail.head, incarnation: channel.id.text)
                owner(agent).change(.begins(follow), of: agent)
            case 1: owner(stream).append(stream)
            default:
                let partition = moving[Int(random.next() % UInt64(moving.count))]
                let (from, to) = post.owners.withLock { owners in
                    let from = owners[partition] ?? 0
                    owners[partition] = 1 - from
                    return (from, 1 - from)
                }
                // Asked to give it up, or learning of it with its next commit.
                if random.next() % 2 == 0 { both[from].channels.close(partition) { _ in } }
                both[to].channels.open(partition) { _ in }
            }
            for _ in 0..<random.next() % 12 { world.doOne() }
        }
        world.run(deadline: world.now.advanced(by: .seconds(10)))
        let end = try Station(log.reopen(), seed: seed)
        end.world.settle()
        try check(end, "seed \(seed)")
        #expect(try !end.log.follows().isEmpty, "seed \(seed)")
    }
}
