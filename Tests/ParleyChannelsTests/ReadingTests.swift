import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@Suite struct `Reading` {
    /// A channel of a hundred entries of many sizes, some to a commit.
    private func filled() throws -> Bench {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        var random = SplitMix64(seed: 5)
        var count = 0
        while count < 100 {
            let entries = (0..<Int.random(in: 1...4, using: &random)).map { _ in
                NewEntry(.emit, nil, ("x", .string(String(repeating: "é", count: Int.random(in: 0...40, using: &random)))))
            }
            count += entries.count
            bench.append(entries, to: "agents/k/i")
        }
        return bench
    }

    @Test(arguments: [1, 7, 64, 100, 333, 1_000, 5_000, Int.max])
    func `page by page from any offset gives the rest of the whole`(bytesMax: Int) throws {
        let bench = try filled()
        let whole = try bench.whole("agents/k/i")
        for bench in [bench, bench.reopened()] {
            let channel = try bench.channel("agents/k/i")
            for start in stride(from: 0, through: whole.count, by: 3) {
                var found: [JSON] = []
                var page = try bench.channels.page(channel, after: UInt64(start), view: .raw, bytesMax: bytesMax)
                found += try JSON.parse(page.body).array ?? []
                while !page.isUpToDate {
                    let next = try bench.channels.page(channel, after: page.next, view: .raw, bytesMax: bytesMax)
                    #expect(next.next > page.next)
                    page = next
                    found += try JSON.parse(page.body).array ?? []
                }
                #expect(found == Array(whole[start...]))
                #expect(page.next == UInt64(whole.count))
            }
        }
    }

    @Test func `a page holds at least one entry, and ends behind the one that passes its limit`() throws {
        let bench = Bench()
        bench.create()
        bench.append("\"aaaaaaaaaa\"", "\"b\"", "\"c\"")
        func page(_ offset: UInt64, _ bytesMax: Int) throws -> (String, UInt64, Bool) {
            let page = try bench.channels.page(try bench.channel(), after: offset, view: .raw, bytesMax: bytesMax)
            return (page.body.text, page.next, page.isUpToDate)
        }
        #expect(try page(0, 1) == ("[\"aaaaaaaaaa\"]", 1, false))
        #expect(try page(0, 20) == ("[\"aaaaaaaaaa\",\"b\"]", 2, false))
        #expect(try page(2, 1) == ("[\"c\"]", 3, true))
        #expect(try page(3, 1) == ("[]", 3, true))
    }

    @Test func `a page that a removal overtakes is none, whether that is published or not`() throws {
        let code = Mutex<[String?]>([])
        @Sendable func read(_ bench: Bench, _ channel: Channel) {
            let error: ChannelError?
            do throws(ChannelError) {
                let page = try channel.page(after: 0, view: .raw, bytesMax: 4, in: bench.channels)
                error = page.next == 1 ? nil : ChannelError("wrong", "\(page.body.text) up to \(page.next)")
            } catch let found { error = found }
            code.withLock { $0.append(error?.code) }
        }
        let bench = Bench()
        bench.create()
        bench.append("1", "22222222")
        let channel = try bench.channel()
        bench.log.meanwhile { read(bench, channel) }
        bench.delete()
        read(bench, channel)
        #expect(code.withLock { $0 } == [nil, "channel_not_found", "channel_not_found"])
    }

    @Test func `a page that a removal overtakes between two reads of the log is none`() throws {
        let meanwhile = Meanwhile()
        let bench = Bench(meanwhile.log)
        bench.create()
        bench.append("1", "2")
        let channel = try bench.channel()
        meanwhile.once { bench.delete() }
        #expect(
            performing: { _ = try channel.page(after: 0, view: .raw, bytesMax: .max, in: bench.channels) },
            throws: { ($0 as? ChannelError)?.code == "channel_not_found" })
    }

    @Test func `a byte stream gives the bytes themselves`() throws {
        let bench = Bench()
        bench.create(type: "text/plain")
        bench.append("ab", "c")
        bench.append("d")
        #expect(try bench.channels.page(try bench.channel(), after: 1, view: .raw, bytesMax: .max).body.text == "cd")
    }

    @Test func `the end of a closed channel is said with the last page`() throws {
        let bench = Bench()
        bench.create()
        bench.append("1", "2") { $0.closes = true }
        let channel = try bench.channel()
        #expect(try !bench.channels.page(channel, after: 0, view: .raw, bytesMax: 1).isEnd)
        #expect(try bench.channels.page(channel, after: 1, view: .raw, bytesMax: 1).isEnd)
    }

    @Test func `backwards gives the same entries`() throws {
        let bench = try filled()
        let channel = try bench.channel("agents/k/i")
        var (forth, back): ([UInt64], [UInt64]) = ([], [])
        try bench.channels.walk(channel, after: 0, upTo: channel.tail.head) { offset, _ in
            forth.append(offset); return true
        }
        try bench.channels.walkBack(channel, from: channel.tail.head) { offset, _ in
            back.append(offset); return true
        }
        #expect(forth == back.reversed())
        #expect(try bench.channels.entry(channel, at: 57) { $0.kind } == .emit)
        #expect(try bench.channels.entry(channel, at: channel.tail.head + 1) { $0.kind } == nil)
    }

    @Test func `frames that are damaged are an error that names the channel and the place`() throws {
        let bench = Bench()
        bench.create()
        bench.append("1")
        let id = try bench.channel().id
        var batch = Batch(partition: id.partition)
        batch.put(.log, id.key(1), [0, 0, 0, 99, 0])
        try bench.log.commit([batch])
        let error = #expect(throws: LogError.self) {
            try bench.channels.page(try bench.channel(), after: 0, view: .raw, bytesMax: .max)
        }
        #expect(error?.code == .damaged)
        #expect(error?.message.contains("'a'") == true)
    }

    @Test func `what is appended is not to be seen before it is durable`() throws {
        let bench = Bench(SimulatedLog(outcome: { commit, _ in commit < 1 ? .acknowledged : .durableUnacknowledged }))
        bench.create()
        let channel = try bench.channel()
        let answer = bench.append("1")
        #expect(answer.error?.code == "log_closed")
        #expect(channel.tail.head == 0)
        #expect(try bench.reopened().channel().tail.head == 1)
    }
}

@Suite struct `Following the tail` {
    @Test func `a watcher is told of every commit, and finds it in memory`() throws {
        let bench = Bench()
        bench.create()
        let (channel, watcher) = (try bench.channel(), Watcher())
        #expect(channel.attach(watcher))
        bench.append("1")
        bench.append("2", "3")
        #expect(watcher.told == 2)
        guard case .chunks(let chunks, false) = channel.tail(after: 0) else { return #expect(Bool(false), "no chunks") }
        #expect(chunks.map { $0.first...$0.last } == [1...1, 2...3])
        #expect(chunks.map { $0.page(of: channel, view: .raw).body.text } == ["[1]", "[2,3]"])
        guard case .chunks(let rest, false) = channel.tail(after: 1) else { return #expect(Bool(false), "no chunks") }
        #expect(rest.count == 1)
        guard case .upToDate(false) = channel.tail(after: 3) else { return #expect(Bool(false), "not up to date") }
        guard case .behind(3) = channel.tail(after: 2) else {
            return #expect(Bool(false), "in the middle of a commit the log has to be read")
        }
    }

    @Test func `without a watcher nothing is kept in memory`() throws {
        let bench = Bench()
        bench.create()
        let (channel, watcher) = (try bench.channel(), Watcher())
        bench.append("1")
        guard case .behind(1) = channel.tail(after: 0) else { return #expect(Bool(false), "kept") }
        #expect(channel.attach(watcher))
        bench.append("2")
        guard case .chunks = channel.tail(after: 1) else { return #expect(Bool(false), "not kept") }
        channel.detach(watcher)
        #expect(!channel.isWatched)
        bench.append("3")
        guard case .behind(3) = channel.tail(after: 1) else { return #expect(Bool(false), "kept") }
        #expect(watcher.told == 1)
    }

    @Test func `a reader who is further behind than memory reaches reads the log`() throws {
        let bench = Bench()
        bench.create()
        let (channel, watcher) = (try bench.channel(), Watcher())
        #expect(channel.attach(watcher))
        let text = "\"" + String(repeating: "x", count: 50_000) + "\""
        for _ in 0..<10 { bench.append(text) }
        guard case .behind(10) = channel.tail(after: 0) else { return #expect(Bool(false), "ten times 50 KB are all kept") }
        guard case .chunks(let chunks, _) = channel.tail(after: 9) else { return #expect(Bool(false), "the last commit is not kept") }
        #expect(chunks.count == 1)
        bench.append("\"" + String(repeating: "x", count: 1_000_000) + "\"")
        guard case .chunks = channel.tail(after: 10) else {
            return #expect(Bool(false), "a large commit must be kept while it is the last")
        }
    }

    @Test func `the end is told: of a closed channel behind its last entry, of a removed one at once`() throws {
        let bench = Bench()
        bench.create("a")
        bench.create("b")
        let (a, b) = (try bench.channel("a"), try bench.channel("b"))
        bench.append("1", to: "a") { $0.closes = true }
        bench.append("1", to: "b")
        bench.delete("b")
        guard case .upToDate(true) = a.tail(after: 1), case .behind = a.tail(after: 0) else { return #expect(Bool(false), "closed") }
        guard case .upToDate(true) = b.tail(after: 0) else { return #expect(Bool(false), "removed") }
    }

    @Test func `after a restart the tail is found where it was`() throws {
        let bench = Bench()
        for name in ["a", "b", "c"] { bench.create(name) }
        bench.append("1", "2", "3", to: "b")
        bench.append("4", to: "b")
        let after = bench.reopened()
        #expect(try after.channel("b").tail == (4, false, false))
        #expect(try after.channel("a").tail == (0, false, false))
        #expect(after.append("5", to: "b").value?.offsets == [5])
        #expect(after.append("1", to: "a").value?.offsets == [1])
        #expect(try after.whole("b") == [1, 2, 3, 4, 5])
    }

    @Test func `reading channels one after the other leaves no more of them in memory than the limit, without a write`() throws {
        let bench = Bench()
        for number in 0..<200 {
            bench.create("c\(number)")
            bench.append("\(number)", to: "c\(number)")
        }
        let log = bench.log.reopen()
        let writer = GroupCommit(log: log)
        let channels = Channels(log: log, writer: writer, world: bench.world, residentMax: 32)
        let watched = try #require(try channels.find("c0"))
        #expect(watched.pin())
        for number in 0..<200 {
            #expect(try channels.find("c\(number)")?.tail.head == 1)
            writer.pump()
            #expect(channels.residentCount <= 33 + 16)
        }
        #expect(try channels.find("c0") === watched)
    }
}
