import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

extension Bench {
    @discardableResult
    func fork(
        _ name: String, from source: String, at offset: UInt64? = nil, sub: UInt64? = nil, type: String? = nil, lifetime: Lifetime? = nil,
        commits: Bool = true
    ) -> Answer<CreateChannel.Created> {
        let answer = Answer<CreateChannel.Created>()
        var row = ChannelRow(name: name, contentType: type ?? "application/octet-stream", isAgent: false, created: world.now)
        row.lifetime = lifetime
        var creation = CreateChannel(row)
        (creation.fork, creation.hasContentType) = (ForkRequest(source: source, offset: offset, subOffset: sub), type != nil)
        channels.submit(creation) { answer.set($0) }
        if commits { writer.pump() }
        return answer
    }

    /// The bytes of a channel that is no JSON.
    func text(_ name: String = "a") throws -> String {
        try channels.page(try channel(name), after: 0, view: .raw, bytesMax: .max).body.text
    }
}

@Suite struct `Forks` {
    @Test(arguments: ["append", "create", "fork", "delete"])
    func `keep the name of a source whose time has come, whichever request finds that out`(first: String) throws {
        let bench = bench()
        bench.create("short", lifetime: .ttl(seconds: 10))
        bench.fork("b", from: "short", lifetime: .ttl(seconds: 1_000))
        bench.world.step(clock: .seconds(100))
        // The first request and all that follow it, in its commit and after it, get the same answer.
        for name in [first, "append", "create", "fork", "delete"] {
            switch name {
            case "append": #expect(bench.append("1", to: "short").error?.code == "channel_gone")
            case "create": #expect(bench.create("short").error?.code == "channel_exists")
            case "fork": #expect(bench.fork("c", from: "short").error?.code == "fork_source_gone")
            default: #expect(bench.delete("short").error?.code == "channel_gone")
            }
        }
        #expect(bench.delete("b").error == nil)
        #expect(bench.create("short").value?.isNew == true)
    }

    private func bench(_ type: String = ContentType.json) -> Bench {
        let bench = Bench()
        bench.create("a", type: type)
        if type == ContentType.json { bench.append("1", "2", "3") } else { bench.append("abc", "def") }
        return bench
    }

    @Test func `share what was there, and continue by themselves`() throws {
        let bench = bench()
        #expect(bench.fork("b", from: "a", at: 2).value?.tail == 2)
        bench.append("4", to: "a")
        bench.append("30", "40", to: "b")
        #expect(try bench.whole("a") == [1, 2, 3, 4] && bench.whole("b") == [1, 2, 30, 40])
        #expect(try bench.reopened().whole("b") == [1, 2, 30, 40])
        #expect(bench.fork("c", from: "b", at: 3).value?.tail == 3)
        #expect(bench.fork("d", from: "c", at: 1).value?.tail == 1)
        bench.append("9", to: "d")
        #expect(try bench.whole("c") == [1, 2, 30] && bench.whole("d") == [1, 9])
        #expect(try bench.reopened().whole("d") == [1, 9])
        #expect(try bench.channels.page(try bench.channel("c"), after: 1, view: .raw, bytesMax: .max).body.text == "[2,30]")
    }

    @Test func `walk back over everything that they share`() throws {
        let bench = bench()
        bench.fork("b", from: "a", at: 2)
        bench.append("30", to: "b")
        bench.fork("c", from: "b")
        bench.append("40", to: "c")
        var offsets: [UInt64] = []
        try bench.channels.walkBack(try bench.channel("c"), from: 4) { offset, _ in
            offsets.append(offset)
            return true
        }
        #expect(offsets == [4, 3, 2, 1])
    }

    @Test(arguments: [
        (0, 0, ""), (0, 1, "a"), (0, 3, "abc"), (0, 5, "abcde"), (0, 6, "abcdef"), (1, 0, "abc"), (1, 2, "abcde"), (1, 3, "abcdef"),
        (2, 0, "abcdef"),
    ])
    func `begin in the middle of an entry, by bytes`(offset: UInt64, sub: UInt64, text: String) throws {
        let bench = bench("text/plain")
        #expect(bench.fork("b", from: "a", at: offset, sub: sub).error == nil)
        bench.append("!", to: "b")
        #expect(try bench.text("b") == text + "!" && bench.text("a") == "abcdef")
        #expect(try bench.reopened().text("b") == text + "!")
        // And so does a fork of that.
        bench.fork("c", from: "b", at: 0, sub: UInt64(text.utf8.count))
        #expect(try bench.text("c") == text)
    }

    @Test func `are refused with nothing changed`() throws {
        let bench = bench()
        for (answer, code) in [
            (bench.fork("b", from: "x"), "fork_source_not_found"), (bench.fork("b", from: "a", at: 4), "invalid_fork_offset"),
            (bench.fork("b", from: "a", at: 2, sub: 2), "invalid_fork_offset"),
            (bench.fork("b", from: "a", at: 2, sub: .max), "invalid_fork_offset"),
            (bench.fork("b", from: "a", type: "text/plain"), "content_type_mismatch"), (bench.fork("a", from: "a"), "channel_exists"),
        ] { #expect(answer.error?.code == code) }
        #expect(try bench.channels.find("b") == nil)
        #expect(bench.delete("a").error == nil)
        #expect(try bench.rows(.log) == 0, "no reference has leaked")
    }

    @Test(arguments: [false, true]) func `keep a name that was made, forked and deleted within one commit`(isFork: Bool) throws {
        let bench = bench()
        if isFork { bench.fork("c", from: "a", commits: false) } else { bench.create("c", commits: false) }
        bench.append("7", to: "c", commits: false)
        bench.fork("d", from: "c", commits: false)
        bench.delete("c", commits: false)
        let late = bench.append("8", to: "c", commits: false)
        let again = bench.create("c", commits: false)
        bench.writer.pump()
        #expect(late.error?.code == "channel_gone" && again.error?.code == "channel_exists")
        for bench in [bench, bench.reopened()] {
            #expect(bench.append("8", to: "c").error?.code == "channel_gone")
            #expect(try bench.whole("d") == (isFork ? [1, 2, 3, 7] : [7]))
        }
        #expect(bench.delete("d").error == nil)
        #expect(bench.create("c").value?.isNew == true)
    }

    @Test func `of forks keep only those that they share something of, and not too many`() throws {
        let bench = bench()
        _ = bench.fork("f0", from: "a")
        for number in 1..<300 { #expect(bench.fork("f\(number)", from: "f\(number - 1)").value?.tail == 3) }
        #expect(try bench.channel("f299").fork?.segments.count == 2)
        var names = ["f299"]
        while names.count < 300 {
            bench.append("1", to: names.last!)
            let name = "g\(names.count)"
            guard bench.fork(name, from: names.last!).error == nil else { break }
            names.append(name)
        }
        #expect(names.count == 128)
        #expect(bench.fork("last", from: names.last!).error?.code == "fork_too_deep")
        #expect(try bench.whole(names.last!).count == 3 + names.count)
    }

    @Test func `are created once`() throws {
        let bench = bench()
        #expect(bench.fork("b", from: "a", at: 2).value?.isNew == true)
        #expect(bench.fork("b", from: "a", at: 2).value?.isNew == false)
        #expect(bench.fork("b", from: "a").value?.isNew == false, "the tail is where it was")
        #expect(bench.fork("b", from: "a", at: 1).error?.code == "channel_exists")
        #expect(bench.create("b").error?.code == "channel_exists")
    }

    @Test func `keep what they share when their source is deleted, and its name until the last of them goes`() throws {
        let bench = bench()
        bench.fork("b", from: "a", at: 2)
        bench.fork("c", from: "b")
        #expect(bench.delete("a").error == nil)
        #expect(try bench.channels.find("a")?.isSoftDeleted == true)
        #expect(bench.append("5", to: "a").error?.code == "channel_gone")
        #expect(bench.create("a").error?.code == "channel_exists")
        #expect(bench.fork("d", from: "a").error?.code == "fork_source_gone")
        #expect(bench.delete("a").error?.code == "channel_gone")
        #expect(bench.delete("b").error == nil)
        #expect(try bench.whole("c") == [1, 2] && bench.reopened().whole("c") == [1, 2])
        #expect(bench.delete("c").error == nil)
        for bench in [bench, bench.reopened()] {
            #expect(try bench.channels.find("a") == nil && bench.channels.find("b") == nil && bench.channels.find("c") == nil)
            #expect(try bench.rows(.log) == 0 && bench.rows(.names) == 0 && bench.rows(.index) == 0)
        }
        #expect(bench.create("a").value?.isNew == true)
        #expect(try bench.whole("a") == [])
    }

    @Test func `are deleted and made in one commit`() throws {
        let bench = bench()
        bench.fork("b", from: "a", commits: false)
        bench.delete("a", commits: false)
        let late = bench.append("4", to: "a", commits: false)
        let again = bench.create("a", commits: false)
        bench.writer.pump()
        #expect(late.error?.code == "channel_gone" && again.error?.code == "channel_exists")
        #expect(try bench.whole("b") == [1, 2, 3])
        bench.delete("b", commits: false)
        let recreated = bench.create("a", commits: false)
        bench.append("7", to: "a", commits: false)
        bench.writer.pump()
        #expect(recreated.value?.isNew == true)
        #expect(try bench.whole("a") == [7] && bench.reopened().whole("a") == [7])
    }

    @Test func `of an agent's channel are plain, and show who wrote what`() throws {
        let bench = Bench()
        bench.create("agents/a/b", isAgent: true)
        bench.append([NewEntry(.emit, nil, ("name", "x"))], to: "agents/a/b")
        #expect(bench.fork("copy", from: "agents/a/b").error == nil)
        #expect(try bench.channel("copy").isAgent == false)
        #expect(try bench.whole("copy").first?["by"] == "agents/a/b")
        #expect(bench.delete("agents/a/b").error == nil)
        #expect(try bench.whole("copy").count == 1 && bench.channels.isDeleted("agents/a/b"))
        bench.delete("copy")
        #expect(try bench.rows(.log) == 0 && bench.channels.isDeleted("agents/a/b"))
    }

    /// A fork's name and its rows are in two partitions, and a crash may let one of the two through: then there is none, nothing is damaged,
    /// its name is free, and the source goes when it is deleted.
    @Test(arguments: [Set<Int>(), [0], [1], [0, 1]], 0..<12)
    func `are there or not after a crash, and leak nothing`(durable: Set<Int>, number: Int) throws {
        // Enough names that source and fork are in different partitions most of the time.
        let (source, name) = ("s\(number)", "f\(number)")
        let bench = Bench(SimulatedLog(outcome: { commit, _ in commit == 2 ? .durable(batches: durable) : .acknowledged }))
        bench.create(source)
        bench.append("1", to: source)
        bench.fork(name, from: source)
        let next = bench.reopened()
        let isThere = try next.channels.find(name) != nil
        if isThere { #expect(try next.whole(name) == [1]) }
        #expect(next.fork(name, from: source).error == nil)
        #expect(try next.whole(name) == [1])
        next.delete(source)
        #expect(try next.whole(name) == [1])
        next.delete(name)
        #expect(try next.rows(.log) == 0 && next.rows(.index) == 0)
        #expect(next.create(source).value?.isNew == true)
    }

    /// The same for the end of one.
    @Test(arguments: [Set<Int>(), [0], [1], [0, 1]], 0..<12)
    func `are gone or not after a crash, and leak nothing`(durable: Set<Int>, number: Int) throws {
        let (source, name) = ("s\(number)", "f\(number)")
        let bench = Bench(SimulatedLog(outcome: { commit, _ in commit == 3 ? .durable(batches: durable) : .acknowledged }))
        bench.create(source)
        bench.append("1", to: source)
        bench.fork(name, from: source)
        bench.delete(name)
        let next = bench.reopened()
        if try next.channels.find(name) != nil {
            #expect(try next.whole(name) == [1])
            next.delete(name)
        }
        #expect(next.create(name).value?.isNew == true)
        next.delete(name)
        next.delete(source)
        #expect(try next.rows(.log) == 0 && next.rows(.index) == 0)
    }

    /// The number of a fork is lost with its rows, and given to the next that is made.
    @Test(arguments: 0..<12)
    func `whose name alone outlived a crash is not taken for another`(number: Int) throws {
        let (source, name) = ("s\(number)", "f\(number)")
        let bench = Bench(
            SimulatedLog(outcome: { commit, batches in
                guard commit == 1 else { return .acknowledged }
                return .durable(batches: Set(batches.indices.filter { batches[$0].partition == Placement.partition(of: name) }))
            }))
        bench.create(source)
        bench.fork(name, from: source)
        guard Placement.partition(of: source) != Placement.partition(of: name) else { return }
        let next = bench.reopened()
        next.fork("other", from: source)
        next.append("1", to: "other")
        #expect(try next.channels.find(name) == nil)
        #expect(try next.channels.list(prefix: "", after: nil, limit: 10).channels.map(\.name) == ["other", source])
        #expect(next.append("2", to: name).error?.code == "channel_not_found")
        next.delete("other")
        next.delete(source)
        #expect(try next.rows(.names) == 0)
    }

    /// However much of a removal a crash let through: what is deleted after it is gone with all it had, and every name is free.
    @Test(arguments: 0..<8, ["fork", "fork of a fork"])
    func `leave nothing when their removal was cut short`(durable: Int, last: String) throws {
        // All in the source's partition, each with a name in another.
        let bench = Bench(
            SimulatedLog(outcome: { commit, batches in
                guard commit == 7 else { return .acknowledged }
                return .durable(batches: Set(batches.indices.filter { durable >> $0 & 1 == 1 }))
            }))
        let names = ["source", "fork", "fork of a fork"]
        bench.create("source")
        bench.fork("fork", from: "source", lifetime: .ttl(seconds: 100))
        bench.fork("fork of a fork", from: "fork", lifetime: .ttl(seconds: 100))
        for name in names[1...] {
            bench.append("1", to: name) { $0.idempotency = IdempotencyKey(key: "k", body: []) }
        }
        bench.append("2", to: last) { $0.producer = ProducerClaim(id: "p", epoch: 0, sequence: 0) }
        if last == "fork" { bench.delete("fork of a fork") } else { bench.delete("fork") }
        bench.delete(last)
        #expect(bench.log.commits == 8 && bench.log.crashed)
        let next = bench.reopened()
        for name in names { next.delete(name) }
        for name in names {
            #expect(next.create(name).value?.isNew == true, "\(name)")
            next.delete(name)
        }
        for family in [Family.names, .log, .index, .producers, .idempotency] { #expect(try next.rows(family) == 0, "\(family)") }
    }

    @Test func `keep what they share when all before them are made and deleted in one commit`() throws {
        let bench = bench()
        bench.fork("b", from: "a", commits: false)
        bench.fork("c", from: "b", commits: false)
        bench.delete("b", commits: false)
        bench.delete("a", commits: false)
        bench.writer.pump()
        for bench in [bench, bench.reopened()] { #expect(try bench.whole("c") == [1, 2, 3]) }
    }
}
