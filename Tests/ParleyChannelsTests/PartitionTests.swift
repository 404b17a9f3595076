import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@Suite struct `A partition is owned` {
    private let a = Bench(partitions: PartitionSet())
    private let b: Bench
    /// Two names of different partitions.
    private let here = "n/0"
    private let there = "n/1"
    private var partition: UInt16 { Placement.partition(of: here) }
    private var other: UInt16 { Placement.partition(of: there) }

    init() { b = Bench(a.log.shared(), partitions: PartitionSet()) }

    @discardableResult
    private func open(_ partition: UInt16, on bench: Bench) -> Answer<Void> {
        let answer = Answer<Void>()
        bench.channels.open(partition) { answer.set($0) }
        bench.writer.pump()
        return answer
    }

    @discardableResult
    private func close(_ partition: UInt16, on bench: Bench, commits: Bool = true) -> Answer<Void> {
        let answer = Answer<Void>()
        bench.channels.close(partition) { answer.set($0) }
        if commits { bench.writer.pump() }
        return answer
    }

    @Test func `the names lie in two partitions`() { #expect(partition != other) }

    @Test func `what is in a partition that is not open is neither found nor written`() throws {
        open(other, on: a)
        #expect(a.create(here).error?.code == "partition_unavailable")
        #expect(a.append("x", to: here).error?.code == "partition_unavailable")
        #expect(a.delete(here).error?.code == "partition_unavailable")
        #expect(throws: LogError.self) { try a.channels.find(here) }
        #expect(throws: LogError.self) { try a.channels.isDeleted(here) }
        #expect(throws: LogError.self, "not complete") { try a.channels.list(prefix: "", after: nil, limit: 10) }
        #expect(a.create(there).value?.isNew == true)
        #expect(try a.channels.find(there) != nil)
    }

    @Test func `it is handed over with everything that is in it`() throws {
        open(partition, on: a)
        a.create(here)
        a.append("\"x\"", to: here)
        close(partition, on: a)
        open(partition, on: b)
        #expect(b.append("\"y\"", to: here).value?.offsets == [2])
        #expect(try b.whole(here) == ["x", "y"])
        #expect(a.append("\"z\"", to: here).error?.code == "partition_unavailable")
        close(partition, on: b)
        open(partition, on: a)
        #expect(try a.whole(here) == ["x", "y"])
    }

    @Test func `what comes before the close is committed, what comes after is refused, in the same commit`() throws {
        open(partition, on: a)
        a.create(here)
        let before = a.append("\"x\"", to: here, commits: false)
        let closing = close(partition, on: a, commits: false)
        let after = a.append("\"y\"", to: here, commits: false)
        a.writer.pump()
        #expect(before.value?.offsets == [1])
        #expect(closing.value != nil)
        #expect(after.error?.code == "partition_unavailable")
        open(partition, on: b)
        #expect(try b.whole(here) == ["x"])
    }

    @Test func `an owner that does not know of its successor commits nothing more, and loses only what is in the partition`() throws {
        open(partition, on: a)
        open(other, on: a)
        a.create(here)
        a.create(there)
        let watcher = Watcher()
        #expect(try a.channel(here).attach(watcher))
        // Nobody tells the first owner.
        open(partition, on: b)
        let (lost, kept) = (a.append("\"x\"", to: here, commits: false), a.append("\"y\"", to: there, commits: false))
        a.writer.pump()
        #expect(lost.error?.code == "partition_unavailable")
        #expect(kept.value?.offsets == [1])
        #expect(watcher.hasLeft)
        #expect(watcher.told == 0)
        #expect(a.channels.openPartitions.numbers == [other])
        #expect(try b.whole(here).isEmpty)
        #expect(b.append("\"z\"", to: here).value?.offsets == [1])
    }

    @Test func `an owner that has it again forgets what it knew of it before`() throws {
        open(partition, on: a)
        a.create(here)
        a.append("\"x\"", to: here)
        open(partition, on: b)
        b.append("\"y\"", to: here)
        // It has not learned that it had lost it.
        a.channels.open(partition) { _ in }
        a.writer.pump()
        a.world.settle()
        a.writer.pump()
        #expect(try a.whole(here) == ["x", "y"])
        #expect(a.append("\"z\"", to: here).value?.offsets == [3])
    }

    @Test func `an answer that rests on what was lost is not given`() throws {
        open(partition, on: a)
        a.create(here)
        open(partition, on: b)
        let key = IdempotencyKey(key: "k", body: [])
        let first = a.append("\"x\"", to: here, commits: false) { $0.idempotency = key }
        // Writes nothing: it is the first one's repetition.
        let second = a.append("\"x\"", to: here, commits: false) { $0.idempotency = key }
        a.writer.pump()
        #expect(first.error?.code == "partition_unavailable")
        #expect(second.error?.code == "partition_unavailable")
    }

    @Test func `a reader that watches learns that the channel has left`() throws {
        open(partition, on: a)
        a.create(here)
        let (watcher, channel) = (Watcher(), try a.channel(here))
        #expect(channel.attach(watcher))
        close(partition, on: a)
        #expect(watcher.hasLeft)
        #expect(!channel.attach(Watcher()), "an object that nothing will be heard of")
        open(partition, on: a)
        #expect(try a.channel(here) !== channel)
    }

    @Test func `numbers continue where the previous owner left off`() throws {
        open(partition, on: a)
        a.create(here)
        close(partition, on: a)
        open(partition, on: b)
        let name = (1...).lazy.map { "m/\($0)" }.first { Placement.partition(of: $0) == partition }!
        b.create(name)
        close(partition, on: b)
        open(partition, on: a)
        let third = (1...).lazy.map { "l/\($0)" }.first { Placement.partition(of: $0) == partition }!
        a.create(third)
        #expect(Set([try a.channel(here).id.number, try a.channel(name).id.number, try a.channel(third).id.number]).count == 3)
    }

    @Test func `a lifetime that ended while the partition had no owner ends when it has one`() throws {
        open(partition, on: a)
        a.create(here, lifetime: .ttl(seconds: 1))
        close(partition, on: a)
        b.world.step(clock: .seconds(60))
        open(partition, on: b)
        b.world.drive { b.writer.pump() }
        b.world.run()
        #expect(try b.rows(.channels) == 1, "the counter alone")
    }

    @Test func `the limit counts what is in the partitions that are open`() throws {
        open(partition, on: a)
        a.create(here)
        try b.channels.limitCount(to: 1)
        close(partition, on: a)
        open(other, on: b)
        #expect(b.create(there).value?.isNew == true)
        open(partition, on: b)
        let name = (1...).lazy.map { "m/\($0)" }.first { Placement.partition(of: $0) == partition }!
        #expect(b.create(name).error?.code == "too_many_channels")
        close(other, on: b)
        b.delete(here)
        #expect(b.create(name).value?.isNew == true)
    }
}

@Suite struct `A channel that is read from the log` {
    /// What another thread does between the two reads: the channel is closed, and leaves memory again.
    @Test func `is read again when it was in memory and left meanwhile, and nobody waits for the disk`() throws {
        let meanwhile = Meanwhile()
        let log = meanwhile.log
        let first = Bench(log)
        first.create("a")
        first.append("1", to: "a")
        let writer = GroupCommit(log: log)
        // Nothing stays that nobody watches.
        let channels = Channels(log: log, writer: writer, world: first.world, residentMax: 0)
        meanwhile.once {
            var close = Append(to: "a", [NewEntry(data: Bytes("2".utf8))])
            close.closes = true
            channels.submit(close)
            writer.pump()
        }
        let tail = try #require(try channels.find("a")).tail
        #expect(tail.head == 2)
        #expect(tail.isClosed)
    }
}
