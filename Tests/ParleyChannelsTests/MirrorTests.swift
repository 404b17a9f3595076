import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@Suite struct `A channel of another node` {
    @Test func `has the owner's properties, and is not found when the owner has none of that name`() throws {
        let bench = MirrorBench()
        bench.owner.create("a", type: "text/plain")
        bench.owner.create("agents/k/i", isAgent: true)
        bench.owner.append("x", to: "a") { $0.closes = true }
        let (text, agent) = (try bench.mirror("a"), try bench.mirror("agents/k/i"))
        #expect(text.name == "a" && text.contentType == "text/plain" && text.isText && !text.isAgent && !text.isJSON)
        #expect(text.tail == (1, true, false))
        #expect(text.id == (try bench.owner.channel("a")).id)
        #expect(agent.isAgent && agent.isJSON)
        #expect(try bench.mirrors.find("b") == nil)
        bench.link.cut()
        #expect(throws: ChannelError.self) { try bench.mirrors.find("a") }
    }

    @Test func `is followed from memory, commit by commit, up to its end`() throws {
        let bench = MirrorBench(delay: .milliseconds(3))
        bench.owner.create()
        bench.owner.append("1")
        let (mirror, watcher) = (try bench.mirror(), Watcher())
        #expect(mirror.attach(watcher))
        #expect(bench.mirrors.resident("a") === mirror)
        bench.world.run()
        let told = watcher.told
        bench.owner.append("2", "3")
        bench.owner.append("4")
        #expect(watcher.told == told && mirror.tail.head == 1, "it is on its way")
        bench.world.run()
        #expect(bench.recent(mirror, after: 1) == ["[2,3]", "[4]"])
        #expect(bench.recent(mirror, after: 3) == ["[4]"])
        guard case .behind(4) = mirror.tail(after: 0), case .behind(4) = mirror.tail(after: 2) else {
            return #expect(Bool(false), "memory")
        }
        #expect(try mirror.page(after: 0, view: .raw, bytesMax: .max, in: bench.channels).body.text == "[1,2,3,4]")
        bench.owner.append("5") { $0.closes = true }
        bench.world.run()
        guard case .chunks(_, isEnded: true) = mirror.tail(after: 4) else {
            return #expect(Bool(false), "the end comes with the last entry")
        }
        bench.owner.delete()
        bench.world.run()
        #expect(mirror.tail.isDeleted)
        #expect(bench.mirrors.resident("a") == nil, "the next lookup asks the owner")
    }

    @Test func `a page may be ahead of the follow, and nothing comes twice`() throws {
        let bench = MirrorBench(delay: .milliseconds(3))
        bench.owner.create()
        bench.owner.append("1")
        let mirror = try bench.mirror()
        #expect(mirror.attach(Watcher()))
        bench.world.run()
        bench.owner.append("2")
        let page = try mirror.page(after: 0, view: .raw, bytesMax: .max, in: bench.channels)
        #expect(page.next == 2 && mirror.tail.head == 2, "what a reader was given is not beyond the tail")
        guard case .upToDate(isEnded: false) = mirror.tail(after: 2) else { return #expect(Bool(false), "nothing after it is known") }
        bench.owner.append("3")
        bench.world.run()
        #expect(bench.recent(mirror, after: 2) == ["[3]"])
    }

    @Test func `an offset from a node that is ahead is not beyond the tail here`() throws {
        let bench = MirrorBench(delay: .milliseconds(3))
        bench.owner.create()
        let mirror = try bench.mirror()
        #expect(mirror.attach(Watcher()))
        bench.world.run()
        bench.owner.append("1", "2")
        #expect(bench.mirrors.resident("a", reaching: 2) == nil)
        #expect(try bench.mirrors.find("a", reaching: 2) === mirror)
        #expect(mirror.tail.head == 2)
        guard case .upToDate(isEnded: false) = mirror.tail(after: 2) else { return #expect(Bool(false), "nothing after it is known") }
        bench.world.run()
        #expect(bench.recent(mirror, after: 0) == ["[1,2]"])
    }

    @Test func `appends lost with a connection come on the next one, as commits while the owner has them in memory, else as pages`() throws
    {
        let bench = MirrorBench()
        bench.owner.create()
        bench.owner.append("0")
        let (mirror, watcher) = (try bench.mirror(), Watcher())
        #expect(mirror.attach(watcher))
        bench.world.run()
        let local = Watcher()
        #expect(try bench.owner.channel().attach(local))
        for isWatchedThere in [true, false] {
            let head = mirror.tail.head
            bench.link.cut()
            bench.world.run()
            if !isWatchedThere { try bench.owner.channel().detach(local) }
            #expect(try bench.owner.channel().isWatched == isWatchedThere, "a follow that broke leaves nothing behind")
            bench.owner.append("1")
            bench.owner.append("2")
            let told = watcher.told
            bench.world.run()
            #expect(watcher.told == told && mirror.tail.head == head)
            bench.link.restore()
            bench.world.run()
            #expect(watcher.told > told && mirror.tail.head == head + 2)
            #expect(bench.recent(mirror, after: head) == (isWatchedThere ? ["[1]", "[2]"] : nil))
            #expect(try mirror.page(after: head, view: .raw, bytesMax: .max, in: bench.channels).body.text == "[1,2]")
        }
    }

    @Test func `a channel recreated while the link was cut is another channel`() throws {
        let bench = MirrorBench()
        bench.owner.create()
        bench.owner.append("1", "2")
        let (mirror, watcher) = (try bench.mirror(), Watcher())
        #expect(mirror.attach(watcher))
        bench.world.run()
        bench.link.cut()
        bench.owner.delete()
        bench.owner.create()
        bench.owner.append("3", "4", "5")
        bench.link.restore()
        let told = watcher.told
        // Until the news is here.
        let other = try bench.mirrors.find("a")
        #expect(other === mirror)
        bench.world.run()
        #expect(watcher.told == told + 1 && !watcher.hasLeft)
        guard case .upToDate(isEnded: true) = mirror.tail(after: 0) else { return #expect(Bool(false), "it was deleted") }
        let successor = try bench.mirror()
        #expect(successor !== mirror && successor.tail.head == 3)
        #expect(successor.attach(watcher))
        mirror.detach(watcher)
        #expect(bench.mirrors.resident("a") === successor)
    }

    @Test func `a page of a deleted channel publishes the deletion at once`() throws {
        let bench = MirrorBench(delay: .milliseconds(3))
        bench.owner.create()
        bench.owner.append("1")
        let (mirror, watcher) = (try bench.mirror(), Watcher())
        #expect(mirror.attach(watcher))
        bench.world.run()
        let told = watcher.told
        bench.owner.delete()
        let page = try mirror.page(after: 0, view: .raw, bytesMax: .max, in: bench.channels)
        #expect(page.isEmpty && page.next == 0 && page.body.text == "[]")
        #expect(mirror.tail.isDeleted && watcher.told == told + 1)
        bench.world.run()
        #expect(watcher.told == told + 1, "once")
    }

    @Test func `a read at another node renews a sliding TTL`() throws {
        let bench = MirrorBench()
        bench.owner.create(lifetime: .ttl(seconds: 60))
        let mirror = try bench.mirror()
        #expect(mirror.end == bench.world.now.advanced(by: .seconds(60)))
        #expect(mirror.attach(Watcher()))
        bench.world.settle()
        bench.world.step(clock: .seconds(40))
        mirror.touched(in: bench.channels)
        bench.world.settle()
        #expect(try bench.owner.channel().end == bench.world.now.advanced(by: .seconds(60)))
    }
}

@Suite struct `Watchers of a channel of another node` {
    @Test func `a watcher that attaches twice is told once, and one detach removes it`() throws {
        let bench = MirrorBench()
        bench.owner.create()
        let (mirror, watcher) = (try bench.mirror(), Watcher())
        #expect(mirror.attach(watcher) && mirror.attach(watcher))
        bench.world.run()
        #expect(bench.link.counts.follows == 1)
        let told = watcher.told
        bench.owner.append("1")
        bench.world.run()
        #expect(watcher.told == told + 1)
        mirror.detach(watcher)
        mirror.detach(watcher)
        bench.owner.append("2")
        bench.world.run()
        #expect(watcher.told == told + 1 && !watcher.hasLeft)
        #expect(try !bench.owner.channel().isWatched, "the follow has ended there")
    }

    @Test func `a watcher that detaches while news is on its way is not told, and the others are`() throws {
        let bench = MirrorBench(delay: .milliseconds(5))
        bench.owner.create()
        let (mirror, leaving, staying) = (try bench.mirror(), Watcher(), Watcher())
        #expect(mirror.attach(leaving) && mirror.attach(staying))
        bench.world.run()
        let told = (leaving.told, staying.told)
        bench.owner.append("1")
        mirror.detach(leaving)
        bench.world.run()
        #expect((leaving.told, staying.told) == (told.0, told.1 + 1))
        bench.owner.append("2")
        mirror.detach(staying)
        bench.world.run()
        #expect(staying.told == told.1 + 1)
        #expect(mirror.tail.head == 1 && mirror.recentBytes == 0)
        #expect(try !bench.owner.channel().isWatched)
    }

    @Test func `a mirror without watchers is not followed any more, and the next lookup finds another`() throws {
        let bench = MirrorBench()
        bench.owner.create()
        let (mirror, watcher) = (try bench.mirror(), Watcher())
        mirror.detach(watcher)  // Without effect: it has not been attached.
        #expect(mirror.attach(watcher))
        mirror.detach(watcher)
        #expect(!mirror.attach(watcher))
        #expect(bench.mirrors.resident("a") == nil)
        bench.world.run()
        bench.owner.append("1")
        let next = try bench.mirror()
        #expect(next !== mirror && next.tail.head == 1 && next.attach(watcher))
    }

    @Test func `of two mirrors that were found at once one is followed`() throws {
        let bench = MirrorBench()
        bench.owner.create()
        let (one, other) = (try bench.mirror(), try bench.mirror())
        #expect(one !== other)
        #expect(one.attach(Watcher()))
        #expect(!other.attach(Watcher()))
        #expect(try bench.mirror() === one)
    }

    @Test func `a watcher that attaches while the link is cut is told when it is restored, one that detaches is not`() throws {
        let bench = MirrorBench(delay: .milliseconds(2))
        bench.owner.create()
        let (mirror, early, late) = (try bench.mirror(), Watcher(), Watcher())
        #expect(mirror.attach(early))
        bench.world.run()
        let told = early.told
        bench.link.cut()
        bench.owner.append("1")
        #expect(mirror.attach(late))
        mirror.detach(early)
        bench.link.restore()
        bench.world.run()
        #expect((early.told, late.told) == (told, 1))
        #expect(mirror.tail.head == 1)
        bench.link.cut()
        mirror.detach(late)
        bench.link.restore()
        bench.owner.append("2")
        bench.world.run()
        #expect(late.told == 1)
        #expect(try !bench.owner.channel().isWatched, "no follow is left over")
    }

    @Test(arguments: [true, false])
    func `every watcher is told once that the channel has left: the partition was closed, or the node given up`(_ isClosed: Bool) throws {
        let bench = MirrorBench(delay: .milliseconds(2))
        bench.owner.create()
        let (mirror, watchers) = (try bench.mirror(), [Watcher(), Watcher()])
        for watcher in watchers { #expect(mirror.attach(watcher)) }
        bench.world.run()
        let told = watchers.map(\.told)
        if isClosed {
            bench.owner.channels.close(Placement.partition(of: "a")) { _ in }
            bench.owner.writer.pump()
        } else {
            bench.link.giveUp()
        }
        bench.world.run()
        #expect(watchers.allSatisfy(\.hasLeft) && watchers.map(\.told) == told)
        #expect(!mirror.attach(Watcher()), "a mirror that hears of nothing any more")
        #expect(bench.mirrors.resident("a") == nil)
        #expect(throws: ChannelError.self) { try bench.mirrors.find("a") }
    }
}

@Suite struct `Memory of a channel of another node` {
    private let filler = "\"" + String(repeating: "x", count: 50_000) + "\""

    @Test func `is bounded while a reader stands still, which then gets everything as pages`() throws {
        let bench = MirrorBench(delay: .milliseconds(1))
        bench.owner.create()
        let mirror = try bench.mirror()
        #expect(mirror.attach(Watcher()))
        bench.world.run()
        for number in 1...100 {
            bench.owner.append(filler)
            bench.world.run()
            #expect(mirror.tail.head == number)
            #expect(mirror.recentBytes <= 256 << 10)
        }
        guard case .behind(100) = mirror.tail(after: 0), case .chunks = mirror.tail(after: 97) else { return #expect(Bool(false)) }
        var (offset, count) = (UInt64(0), 0)
        while case .behind = mirror.tail(after: offset) {
            let page = try mirror.page(after: offset, view: .raw, bytesMax: 200_000, in: bench.channels)
            count += try JSON.parse(page.body).array?.count ?? 0
            #expect(page.next == count)
            offset = page.next
        }
        #expect(count >= 95)
    }

    @Test func `a slow link queues nothing at the owner`() throws {
        let bench = MirrorBench(delay: .seconds(1))
        bench.owner.create()
        let (mirror, watcher) = (try bench.mirror(), Watcher())
        #expect(mirror.attach(watcher))
        bench.world.run()
        let told = watcher.told
        for _ in 0..<100 {
            bench.owner.append(filler)
            bench.world.settle()
        }
        bench.world.run()
        #expect(bench.link.counts.inFlightMost <= 4)
        #expect(mirror.tail.head == 100)
        #expect(watcher.told < told + 10, "what is new by the time there is room is one event")
        #expect(mirror.recentBytes <= 256 << 10)
    }

    @Test func `a commit larger than the limit of recent commits is read as a page`() throws {
        let bench = MirrorBench()
        bench.owner.create()
        let mirror = try bench.mirror()
        #expect(mirror.attach(Watcher()))
        bench.world.run()
        bench.owner.append("1")
        bench.world.run()
        bench.owner.append("\"" + String(repeating: "x", count: 1_000_000) + "\"")
        bench.world.run()
        let commits = bench.link.counts.commits
        guard case .behind(2) = mirror.tail(after: 1) else { return #expect(Bool(false), "kept") }
        #expect(mirror.recentBytes == 0)
        bench.owner.append("3")
        bench.world.run()
        #expect(bench.link.counts.commits == commits + 1)
        #expect(bench.recent(mirror, after: 2) == ["[3]"])
    }
}
