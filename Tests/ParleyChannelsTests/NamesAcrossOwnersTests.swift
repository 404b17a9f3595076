import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyChannels

/// A plain source in partition 0, a fork of it whose name is in partition 1: node 0 owns the even ones, node 1 the odd ones.
private let source = name("source", in: 0)
private let fork = name("fork", in: 1)

private func twoOwners() throws -> OwnersBench {
    let bench = try OwnersBench()
    bench.create(source)
    bench.append("1", to: source)
    bench.append("2", to: source)
    return bench
}

@Suite struct `A name whose channel has another owner` {
    private let bench: OwnersBench
    private var rows: Channels { bench.nodes[0].channels }
    private var home: Channels { bench.nodes[1].channels }
    private let id: ChannelID

    init() throws {
        bench = try twoOwners()
        #expect(bench.fork(fork, from: source).value?.isNew == true)
        guard case .at(let id) = try bench.nodes[1].channels.locate(fork) else { throw ChannelError.notFound(fork) }
        self.id = id
    }

    @Test func `is resolved by the owner of its home, and by nobody else`() throws {
        #expect(id.partition == 0)
        #expect(throws: LogError.self) { try rows.locate(fork) }
        guard case .here(let channel) = try rows.locate(source) else { throw ChannelError.notFound(source) }
        #expect(channel.name == source)
        guard case .nowhere = try rows.locate(name("none", in: 0)) else { throw ChannelError("found", "what is not there") }
        #expect(throws: LogError.self, "its rows are elsewhere") { try home.find(fork) }
        #expect(home.resident(fork) == nil)
    }

    @Test func `is appended to where its rows are, by name and id`() throws {
        #expect(bench.append("3", to: fork).value?.offsets == [3])
        #expect(try bench.whole(fork) == "[1,2,3]")
        #expect(try bench.whole(source) == "[1,2]")
        let answer = Answer<Appended>()
        home.submit(Append(to: fork, [NewEntry(data: [0x34])])) { answer.set($0) }
        bench.world.settle()
        #expect(answer.error?.elsewhere == id, "who has not resolved the name is told where to go")
        try bench.check("appended")
    }

    @Test func `takes nothing for an id that is another's, or nobody's`() throws {
        for wrong in [ChannelID(partition: 0, number: 1), ChannelID(partition: 0, number: 99)] {
            let (append, delete, create) = (Answer<Appended>(), Answer<Void>(), Answer<CreateChannel.Created>())
            var entry = Append(to: fork, [NewEntry(data: [0x34])])
            entry.id = wrong
            rows.submit(entry) { append.set($0) }
            rows.submit(DeleteChannel(fork, at: wrong)) { delete.set($0) }
            var creation = CreateChannel(ChannelRow(name: fork, contentType: ContentType.json, isAgent: false, created: bench.world.now))
            creation.id = wrong
            rows.submit(creation) { create.set($0) }
            bench.drain()
            #expect(append.error?.isChanged == true && delete.error?.isChanged == true && create.error?.isChanged == true)
            #expect(try rows.find(fork, at: wrong) == nil)
            #expect(throws: ChannelError.self) { try rows.readable(fork, at: wrong) }
        }
        #expect(try bench.whole(fork) == "[1,2]")
        try bench.check("nothing has changed")
    }

    @Test func `is read where its rows are`() throws {
        let tail = try #require(try bench.channel(fork))
        let watcher = Watcher()
        #expect(tail.attach(watcher))
        bench.append("3", to: fork)
        #expect(watcher.told == 1)
        guard case .chunks(let chunks, isEnded: false) = tail.tail(after: 2) else { throw ChannelError.notFound(fork) }
        #expect(chunks.map(\.last) == [3])
        #expect(try tail.page(after: 1, view: .raw, bytesMax: .max, in: rows).body.text == "[2,3]")
    }

    @Test func `is mirrored with one hop, and once more when it was recreated`() throws {
        let links = bench.nodes.map { LoopbackLink(to: $0.channels, world: bench.world) }
        let mirrors = ChannelMirrors { links[Int($0 % 2)] }
        let mirror = try #require(try mirrors.find(fork))
        #expect(mirror.id == id)
        let watcher = Watcher()
        #expect(mirror.attach(watcher))
        bench.append("3", to: fork)
        bench.drain()
        #expect(mirror.tail.head == 3)
        #expect(try mirror.page(after: 0, view: .raw, bytesMax: .max, in: home).body.text == "[1,2,3]")
        bench.delete(fork)
        bench.drain()
        #expect(mirror.tail.isDeleted)
        bench.fork(fork, from: source, at: 1)
        let second = try #require(try mirrors.find(fork))
        #expect(second.id != id)
        #expect(try second.page(after: 0, view: .raw, bytesMax: .max, in: home).body.text == "[1]")
        // Who owns the home itself asks for what it has found.
        #expect(throws: ChannelError.self) { try mirrors.find(fork, at: id) }
        #expect(try mirrors.find(fork, at: second.id)?.id == second.id)
    }

    @Test func `is free again when the channel was deleted, and leads to the next one`() throws {
        #expect(bench.delete(fork).error == nil)
        bench.drain()
        guard case .nowhere = try home.locate(fork) else { throw ChannelError("found", "what was deleted") }
        try bench.check("deleted")
        #expect(bench.append("3", to: fork).error?.code == "channel_not_found")
        #expect(bench.create(fork).value?.isNew == true)
        bench.append("9", to: fork)
        #expect(try bench.whole(fork) == "[9]")
        #expect(try rows.find(fork, at: id) == nil)
        bench.delete(fork)
        #expect(bench.fork(fork, from: source, at: 1).value?.isNew == true)
        #expect(try bench.whole(fork) == "[1]")
        try bench.check("recreated")
    }

    @Test func `is free again when the channel's time has come`() throws {
        let short = name("short", in: 3)
        #expect(bench.fork(short, from: source, lifetime: .ttl(seconds: 100)).value?.isNew == true)
        bench.world.run(deadline: bench.world.now.advanced(by: .seconds(1_000)))
        #expect(try bench.channel(short) == nil)
        #expect(bench.create(short).value?.isNew == true)
        try bench.check("over")
    }

    @Test func `leaves its channel in memory when its home goes, and takes it along with its rows`() throws {
        let (watcher, channel) = (Watcher(), try #require(try rows.find(fork, at: id)))
        #expect(channel.attach(watcher))
        bench.hand(1, to: 0)
        bench.world.settle()
        #expect(try rows.find(fork) === channel, "one object, by either way")
        #expect(rows.resident(fork) === channel && rows.resident(fork, at: id) === channel)
        bench.hand(1, to: 1)
        bench.world.settle()
        #expect(rows.resident(fork) == nil)
        #expect(try rows.find(fork, at: id) === channel)
        #expect(!watcher.hasLeft)
        bench.hand(0, to: 1)
        bench.world.settle()
        #expect(watcher.hasLeft && rows.residentCount == 0)
        #expect(throws: LogError.self) { try rows.find(fork, at: id) }
        let moved = try #require(try home.find(fork))
        #expect(try moved === home.find(fork, at: id))
        #expect(bench.append("3", to: fork).value?.offsets == [3])
        #expect(home.resident(fork) === moved)
    }

    /// What another thread does while the rows are read.
    @Test func `is not remembered by a node that gives its home up while it is looked up`() throws {
        let meanwhile = Meanwhile()
        let log = meanwhile.log
        let first = Bench(log)
        first.create(source)
        first.fork(fork, from: source)
        let second = Bench(log)
        meanwhile.once {
            second.channels.close(1) { _ in }
            second.writer.pump()
        }
        #expect(try second.channels.find(fork) != nil)
        #expect(second.channels.resident(fork) == nil)
        #expect(throws: LogError.self) { try second.channels.find(fork) }
        #expect(second.channels.residentCount == 1)
    }

    @Test func `is no longer found in memory once the channel has gone from there`() throws {
        bench.hand(1, to: 0)
        bench.world.settle()
        #expect(try rows.find(fork) != nil)
        bench.delete(fork)
        #expect(rows.resident(fork) == nil && rows.resident(fork, at: id) == nil)
        #expect(try rows.find(fork) == nil)
        try bench.check("deleted")
    }
}

@Suite struct `A fork across owners` {
    /// The home of the name, that of the source's name, and the partition of the source's rows, each with one of three nodes.
    @Test(arguments: 0..<27)
    func `is made with any owners of its name, the source's name and the source's rows`(combination: Int) throws {
        let owners: [UInt16: Int] = [1: combination % 3, 2: combination / 3 % 3, 3: combination / 9]
        let bench = try OwnersBench(nodes: 3, owner: { owners[$0] ?? 0 })
        let (root, middle, leaf) = (name("root", in: 3), name("middle", in: 2), name("leaf", in: 1))
        bench.create(root, lifetime: .ttl(seconds: 1_000))
        for text in ["1", "2", "3"] { bench.append(text, to: root) }
        #expect(bench.fork(middle, from: root, at: 2).value?.tail == 2)
        bench.append("30", to: middle)
        let answer = bench.fork(leaf, from: middle, at: 3, type: ContentType.json, entries: ["40", "50"])
        #expect(answer.value?.isNew == true && answer.value?.tail == 5)
        bench.append("4", to: root)
        #expect(try bench.whole(leaf) == "[1,2,30,40,50]")
        #expect(try bench.channel(leaf)?.lifetime == .ttl(seconds: 1_000))
        #expect(try bench.channel(leaf)?.id.partition == 3)
        #expect(bench.fork(leaf, from: middle, at: 3).value?.isNew == false)
        #expect(bench.fork(leaf, from: middle, at: 3, lifetime: .ttl(seconds: 9)).error?.code == "channel_exists")
        #expect(bench.fork(leaf, from: root).error?.code == "channel_exists")
        #expect(bench.fork(leaf, from: middle, mustBeNew: true).error?.code == "precondition_failed")
        bench.drain()
        try bench.check("made, \(owners)")
        for name in [root, middle, leaf] { #expect(bench.delete(name).error == nil) }
        bench.drain()
        try bench.checkEmpty("removed, \(owners)")
        #expect(try bench.rows(.names) == 0)
        for name in [leaf, middle, root] { #expect(bench.create(name).value?.isNew == true) }
    }

    @Test func `is one commit where one node owns all`() throws {
        let bench = try OwnersBench(nodes: 1, owner: { _ in 0 })
        bench.create(source)
        let before = bench.nodes[0].log.commits
        bench.fork(fork, from: source)
        bench.delete(fork)
        bench.drain()
        #expect(bench.nodes[0].log.commits == before + 2)
        #expect(try bench.rows(.outbox) == 0)
    }

    @Test func `begins in the middle of an entry, with bytes of any kind`() throws {
        let bench = try OwnersBench()
        bench.create(source, type: "text/plain")
        bench.append("abc", to: source)
        bench.append("def", to: source)
        #expect(bench.fork(fork, from: source, at: 1, sub: 2, type: "text/plain", entries: ["é\u{0}\"", ""]).error == nil)
        #expect(try bench.whole(fork) == "abcdeé\u{0}\"")
        #expect(try bench.channel(fork)?.contentType == "text/plain")
    }

    @Test func `is refused as by one owner, with nothing changed`() throws {
        let bench = try twoOwners()
        let (gone, agent, kept) = (name("gone", in: 0), name("agents/a", in: 0), name("kept", in: 2))
        for name in [gone, agent] { bench.create(name) }
        bench.fork(kept, from: gone)
        for name in [gone, agent] { bench.delete(name) }
        for (answer, code) in [
            (bench.fork(fork, from: name("none", in: 0)), "fork_source_not_found"), (bench.fork(fork, from: gone), "fork_source_gone"),
            (bench.fork(fork, from: agent), "fork_source_gone"), (bench.fork(fork, from: source, at: 3), "invalid_fork_offset"),
            (bench.fork(fork, from: source, at: 1, sub: 2), "invalid_fork_offset"),
            (bench.fork(fork, from: source, at: 1, sub: .max), "invalid_fork_offset"),
            (bench.fork(fork, from: source, type: "text/plain"), "content_type_mismatch"),
        ] { #expect(answer.error?.code == code) }
        bench.drain()
        try bench.check("refused")
        #expect(bench.create(fork).value?.isNew == true)
        #expect(bench.fork(fork, from: source).error?.code == "channel_exists")
        for name in [fork, kept, source] { bench.delete(name) }
        bench.drain()
        try bench.checkEmpty("no reference has leaked")
    }

    @Test func `asked for twice at a time is made once`() throws {
        let bench = try twoOwners()
        let answers = (0..<3).map { _ in bench.fork(fork, from: source, at: 1, settles: false) }
        bench.drain()
        #expect(answers.count { $0.value?.isNew == true } == 1)
        #expect(answers.count { $0.error?.elsewhere != nil } == 2, "where a repeat is answered")
        #expect(bench.fork(fork, from: source, at: 1).value?.isNew == false)
        #expect(try bench.whole(fork) == "[1]")
        try bench.check("once")
        bench.delete(fork)
        bench.delete(source)
        bench.drain()
        try bench.checkEmpty("nothing of the others")
    }

    /// From two sources of one owner, or of two; or no fork at all.
    @Test(arguments: ["fork", "fork elsewhere", "plain"], 0..<12)
    func `yields to another channel that has taken its name meanwhile`(other: String, head: Int) throws {
        let bench = try twoOwners()
        let second = name("second", in: other == "fork" ? 2 : 3)
        bench.create(second)
        bench.append("9", to: second)
        let first = bench.fork(fork, from: source, settles: false)
        for _ in 0..<head { bench.world.doOne() }
        let late = other == "plain" ? bench.create(fork, settles: false) : bench.fork(fork, from: second, settles: false)
        bench.drain()
        let whole = try bench.whole(fork)
        let hasWon = whole == "[1,2]"
        #expect(hasWon || whole == (other == "plain" ? "[]" : "[9]"))
        #expect((first.value?.isNew == true) == hasWon)
        #expect((late.value?.isNew == true) == !hasWon)
        let loser = try #require(hasWon ? late.error : first.error)
        #expect(loser.code == "channel_exists" || loser.elsewhere != nil)
        let repeated = hasWon ? (other == "plain" ? bench.create(fork) : bench.fork(fork, from: second)) : bench.fork(fork, from: source)
        #expect(repeated.error?.code == "channel_exists")
        try bench.check("\(other), \(head)")
        for name in [fork, source, second] { bench.delete(name) }
        bench.drain()
        try bench.checkEmpty("\(other), \(head)")
    }

    @Test func `frees the name of its source when it was the last`() throws {
        let bench = try OwnersBench(nodes: 3, owner: { Int($0 % 3) })
        let (root, middle, leaf, other) = (name("root", in: 0), name("middle", in: 1), name("leaf", in: 2), name("other", in: 4))
        bench.create(root)
        bench.append("1", to: root)
        bench.fork(middle, from: root)
        bench.fork(leaf, from: middle)
        bench.fork(other, from: middle)
        for name in [root, middle] { #expect(bench.delete(name).error == nil) }
        bench.drain()
        for name in [root, middle] {
            #expect(bench.append("2", to: name).error?.code == "channel_gone")
            #expect(bench.create(name).error?.code == "channel_exists")
        }
        bench.delete(other)
        bench.drain()
        #expect(try bench.whole(leaf) == "[1]")
        try bench.check("kept for one")
        bench.delete(leaf)
        bench.drain()
        try bench.checkEmpty("freed")
        #expect(try bench.rows(.names) == 0)
        for name in [root, middle] { #expect(bench.create(name).value?.isNew == true) }
    }

    /// The owner of the rows owns the home as well, where the name is not yet.
    @Test func `is not taken for one without a name while the name is on its way`() throws {
        for head in 0..<24 {
            let bench = try OwnersBench()
            let (root, middle, leaf) = (name("root", in: 0), name("middle", in: 1), name("leaf", in: 2))
            bench.create(root)
            bench.append("1", to: root)
            bench.fork(middle, from: root)
            bench.drain()
            let (channels, id) = try bench.target(middle)
            let answer = bench.fork(leaf, from: middle, settles: false)
            for _ in 0..<head { bench.world.doOne() }
            channels.submit(DeleteChannel(middle, at: id))
            bench.drain()
            #expect((answer.value?.isNew == true) == (try bench.whole(leaf) == "[1]"), "\(head)")
            #expect(answer.value != nil || answer.error?.code.hasPrefix("fork_source_") == true, "\(head)")
            try bench.check("\(head)")
        }
    }

    /// Of the one commit by which an owner of both partitions makes the fork, a crash leaves the part of one. Then the two have two owners.
    private func halved(keeping partition: UInt16) throws -> OwnersBench {
        let bench = try OwnersBench(nodes: 2, owner: { _ in 0 }) { node in
            { commit, batches in
                guard node == 0, commit == 1 else { return .acknowledged }
                return .durable(batches: Set(batches.indices.filter { batches[$0].partition == partition }))
            }
        }
        bench.create(source)
        bench.fork(fork, from: source)
        bench.restart()
        bench.hand(1, to: 1)
        bench.world.settle()
        return bench
    }

    @Test func `whose rows have no name does not keep its source`() throws {
        let bench = try halved(keeping: 0)
        #expect(try bench.channel(fork) == nil)
        #expect(bench.delete(source).error == nil)
        bench.drain()
        try bench.checkEmpty("both are gone")
        #expect(bench.create(source).value?.isNew == true)
    }

    @Test func `whose name has no rows is found to be none`() throws {
        let bench = try halved(keeping: 1)
        bench.append("1", to: fork)
        bench.drain()
        try bench.check("found out")
        #expect(bench.create(fork).value?.isNew == true)
    }

    @Test func `that nobody can decide is not waited for without end`() throws {
        let bench = try twoOwners()
        bench.nodes[0].channels.close(0) { _ in }
        bench.world.settle()
        let answer = bench.fork(fork, from: source)
        #expect(answer.outcome == nil)
        bench.world.run(deadline: bench.world.now.advanced(by: .seconds(40)))
        #expect(answer.error?.code == "partition_unavailable")
        bench.nodes[0].channels.open(0) { _ in }
        bench.drain()
        #expect(bench.fork(fork, from: source).value?.isNew == false, "made meanwhile")
        try bench.check("in the end")
    }

    @Test func `is not waited for by a node that has given the name up`() throws {
        let bench = try twoOwners()
        let answer = bench.fork(fork, from: source, settles: false)
        bench.nodes[1].writer.pump()
        bench.hand(1, to: 0)
        bench.drain()
        #expect(answer.error?.code == "partition_unavailable" || answer.value?.isNew == true)
        #expect(bench.fork(fork, from: source).value != nil)
        try bench.check("found by the next owner")
    }

    /// At each point of the creation and of the removal one of the three partitions has another owner.
    @Test(arguments: 0..<3, [true, false])
    func `survives that partitions are handed over in the middle`(moved: Int, isAsked: Bool) throws {
        for head in 0..<24 {
            let bench = try OwnersBench(nodes: 3, seed: UInt64(head), owner: { Int($0 % 3) })
            let (root, middle, leaf) = (name("root", in: 0), name("middle", in: 1), name("leaf", in: 2))
            bench.create(root)
            bench.append("1", to: root)
            bench.fork(middle, from: root)
            func handOver(to node: Int) {
                for _ in 0..<head { bench.world.doOne() }
                bench.hand(UInt16(moved), to: (moved + node) % 3, isAsked: isAsked)
                bench.drain()
            }
            bench.fork(leaf, from: middle, settles: false)
            handOver(to: 1)
            #expect(bench.fork(leaf, from: middle).value != nil, "\(head)")
            bench.drain()
            #expect(try bench.whole(leaf) == "[1]", "\(head)")
            try bench.check("made, \(head)")
            bench.delete(middle)
            bench.delete(leaf, settles: false)
            handOver(to: 2)
            for name in [leaf, root] { bench.delete(name) }
            bench.drain()
            bench.delete(middle)
            bench.drain()
            try bench.checkEmpty("removed, \(head)")
        }
    }

    /// A node crashes at each of its commits, with each outcome that it can have; then another one does.
    @Test(arguments: [SimulatedLog.Outcome.notSubmitted, .durable(batches: [0]), .durable(batches: [1]), .durableUnacknowledged], 0..<3)
    func `is made and removed once, whatever ends in between`(outcome: SimulatedLog.Outcome, victim: Int) throws {
        for crash in 0..<14 {
            let bench = try OwnersBench(nodes: 3, seed: UInt64(crash), owner: { Int($0 % 3) }) { node in
                { commit, _ in node == victim && commit == crash ? outcome : .acknowledged }
            }
            let (root, middle, leaf) = (name("root", in: 0), name("middle", in: 1), name("leaf", in: 2))
            func again() {
                bench.drain()
                bench.restart()
                bench.drain()
            }
            bench.create(root)
            bench.append("1", to: root)
            again()
            bench.create(root)
            if try bench.whole(root) == "[]" { bench.append("1", to: root) }
            bench.fork(middle, from: root)
            again()
            #expect(bench.fork(middle, from: root).value != nil, "\(crash)")
            bench.fork(leaf, from: middle)
            again()
            #expect(bench.fork(leaf, from: middle).value != nil, "\(crash)")
            again()
            #expect(bench.fork(leaf, from: middle).value != nil, "\(crash)")
            #expect(try bench.whole(leaf) == "[1]", "\(crash)")
            try bench.check("made, \(crash)")
            for name in [middle, leaf, root, leaf, middle, root] {
                bench.delete(name)
                again()
            }
            try bench.checkEmpty("removed, \(crash)")
            #expect(try bench.rows(.names) == 0, "\(crash)")
        }
    }

    @Test(arguments: 0..<60 as Range<UInt64>)
    func `leaves no name without rows, and no rows without a name`(seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        // Every other run, a crash may let through some batches of a commit and not others.
        let isTorn = seed % 2 == 1
        let bench = try OwnersBench(nodes: 3, seed: seed, owner: { Int($0 % 3) })
        let names = (0..<7).map { name($0 == 6 ? "agents/n" : "n\($0)", in: UInt16($0 * 5 % 9)) }
        for _ in 0..<8 {
            for _ in 0..<12 {
                let (one, other) = (names[Int(random.next() % 7)], names[Int(random.next() % 6)])
                switch random.next() % 10 {
                case 0, 1: bench.create(one, settles: false)
                case 2, 3, 4: bench.fork(other, from: one, settles: false)
                case 5, 6: bench.append("1", to: one, settles: false)
                case 7, 8: bench.delete(one, settles: false)
                default:
                    let partition = UInt16(random.next() % 9)
                    bench.hand(partition, to: Int(random.next() % 3), isAsked: random.next() % 2 == 0)
                }
                for _ in 0..<random.next() % 16 { bench.world.doOne() }
            }
            let outcomes = [SimulatedLog.Outcome.notSubmitted, .durableUnacknowledged, isTorn ? .durable(batches: [0, 2, 4]) : .lost]
            bench.crash(Int(random.next() % 3), outcomes[Int(random.next() % 3)])
            bench.restart()
        }
        bench.drain()
        bench.restart()
        bench.drain()
        try bench.check("seed \(seed)")
        for _ in 0..<4 {
            for name in names {
                bench.delete(name)
                bench.drain()
            }
        }
        try bench.checkEmpty("seed \(seed)")
    }
}
