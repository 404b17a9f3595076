import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyChannels

@Suite struct `A subscription` {
    // MARK: Patterns

    @Test(arguments: [
        ("events/*", "events/a", true), ("events/*", "events", false), ("events/*", "events/a/b", false), ("events/*", "other/a", false),
        ("events/**", "events/a/b", true), ("events/**", "events", true), ("**", "a/b/c", true), ("**/c", "c", true),
        ("**/c", "a/b/c", true),
        ("a/**/c", "a/c", true), ("a/**/c", "a/b/b/c", true), ("a/**/c", "a/b", false), ("*/*", "a/b", true), ("*/*", "a", false),
        ("events/user-*", "events/user-7", true), ("events/user-*", "events/admin", false), ("a*b*c/d", "axxbyyc/d", true),
        ("a", "a", true),
        ("a", "ab", false), ("a.b/*", "axb/c", false),
    ])
    func `a star is a segment or a part of one, two are any number of segments`(pattern: String, name: String, isMatch: Bool) throws {
        let pattern = try #require(SubscriptionPattern(pattern))
        #expect(pattern.matches(name) == isMatch)
        if isMatch { #expect(name.hasPrefix(pattern.literalPrefix)) }
    }

    @Test func `patterns are found by what names begin with, as by comparing all of them`() throws {
        let texts = ["events/*", "events/**", "**", "**/c", "a/**/c", "*/b", "events/user-*", "a*b*c/d", "a", "a/b", "ab*", "é/*"]
        let names = [
            "events", "events/a", "events/a/b", "events/user-7", "c", "a/c", "a/b/c", "a/b", "a", "abc/d", "axbyc/d", "ab", "é/x", "x",
        ]
        var (index, kept) = (SubscriptionIndex(), [String: SubscriptionConfiguration]())
        var random = SplitMix64(seed: 1)
        for round in 0..<400 {
            let id = "s\(random.next() % 20)"
            if let old = kept.removeValue(forKey: id) {
                index.remove(id, old)
            } else {
                var configuration = SubscriptionConfiguration.pull(texts.randomElement(using: &random)!)
                configuration.delivery = .pullWake(stream: names.randomElement(using: &random)!)
                kept[id] = configuration
                index.insert(id, configuration)
            }
            for name in names {
                #expect(index.matching(name).texts == kept.filter { $0.value.matches(name) }.keys.sorted(), "\(round): \(name)")
            }
        }
        for (id, configuration) in kept { index.remove(id, configuration) }
        #expect(index.isEmpty)
    }

    @Test func `a new stream costs the same however many subscriptions there are`() throws {
        var index = SubscriptionIndex()
        for number in 0..<8_000 { index.insert("s\(number)", .pull("tenant\(number)/**/events/*")) }
        let clock = ContinuousClock()
        let time = clock.measure { for number in 0..<1_000 { #expect(index.matching("tenant\(number)/a/events/b").count == 1) } }
        // A comparison with each took 20 ms a name.
        #expect(time < .seconds(2), "\(time)")
    }

    @Test(arguments: ["", "/", "a//b", "a/", "/a"])
    func `a pattern has no empty segments`(text: String) { #expect(SubscriptionPattern(text) == nil) }

    @Test func `a pattern of many stars costs what its length costs`() throws {
        let pattern = try #require(SubscriptionPattern(Array(repeating: "**/a*a*a*a*b", count: 40).joined(separator: "/")))
        let name = Array(repeating: String(repeating: "a", count: 20), count: 40).joined(separator: "/")
        #expect(!pattern.matches(name))
    }

    // MARK: In one commit

    @Test func `made and deleted within one commit it is not there, whatever becomes of the streams that it named`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull("others/*"), root: "http://localhost/"), of: "other")
        process.request(.put(.pull(nil, ["events/a"]), root: "http://localhost/"))
        process.request(.delete)
        process.world.settle()
        process.append("events/a")
        process.world.settle()
        #expect(try process.subscriptions.describe("s") == nil)
        _ = process.ask(.put(.pull(nil, ["events/a"]), root: "http://localhost/"))
        process.request(.add(["events/b"]))
        process.request(.delete)
        process.world.settle()
        process.append("events/b")
        process.world.settle()
        #expect(try process.subscriptions.describe("s") == nil)
    }

    // MARK: Retries

    @Test func `retries come after 1 to 60 seconds, a fifth more or less`() {
        for (failures, seconds) in [(1, 1.0), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (1_000, 60)] {
            let shortest = Subscription.pause(failures: UInt32(failures), random: 0)
            let longest = Subscription.pause(failures: UInt32(failures), random: .max)
            #expect(shortest == .seconds(seconds) * 0.8, "\(failures)")
            #expect(longest > .seconds(seconds) * 1.19 && longest <= .seconds(seconds) * 1.2, "\(failures)")
        }
    }

    @Test func `the schedule of retries outlives the process`() throws {
        let attempts = Mutex<[Timestamp]>([])
        let fails: @Sendable (SubscriptionProcess, SubscriptionNotification) -> Void = { process, notification in
            attempts.withLock { $0.append(process.world.now) }
            process.request(.failed(wakeID: notification.wake.id))
        }
        var process = try SubscriptionProcess(notified: fails)
        _ = process.ask(.put(.hook(lease: 600_000), root: "http://localhost/"))
        process.append("events/a")
        for _ in 0..<5 {
            // Each attempt by a process of its own.
            process.world.run(until: { attempts.withLock { $0.count > 0 } && process.writer.queued == 0 })
            process.world.settle()
            let subscription = try #require(try process.subscriptions.describe("s")?.subscription)
            let due = try #require(subscription.nextAttempt)
            #expect(subscription.hasFailed)
            let before = attempts.withLock { $0.count }
            process = try process.reopened(notified: fails)
            process.world.run(until: { attempts.withLock { $0.count } > before })
            #expect(attempts.withLock { $0.last! } >= due && process.world.now.milliseconds < due.milliseconds + 100)
        }
        let times = attempts.withLock { $0.map(\.milliseconds) }
        let pauses = zip(times.dropFirst(), times).map { $0 - $1 }
        for (pause, seconds) in zip(pauses, [1, 2, 4, 8, 16]) {
            #expect((Int64(seconds * 800)...Int64(seconds * 1_200 + 20)).contains(pause), "\(pauses)")
        }
    }

    // MARK: Streams

    @Test func `what is there is linked at its tail, and what comes later from its start`() throws {
        let process = try SubscriptionProcess()
        for _ in 0..<3 { process.append("events/old") }
        process.append("wake")
        process.world.settle()
        _ = process.ask(.put(.pull(), root: ""))
        process.append("events/new")
        process.world.settle()
        let links = Dictionary(uniqueKeysWithValues: try process.streams().map { ($0.path, [$0.link.acked, $0.tail]) })
        #expect(links == ["events/old": [3, 3], "events/new": [0, 1]])
        #expect(process.claim()?.acks.map(\.stream) == ["events/new"])
    }

    @Test func `a stream made in the commit of the subscription is new to it`() throws {
        for isFirst in [true, false] {
            let process = try SubscriptionProcess()
            process.request(.put(.pull(isFirst ? "events/*" : nil, isFirst ? [] : ["events/a"]), root: ""))
            if isFirst { process.search() }
            process.append("events/a")
            process.writer.pump()
            process.world.settle()
            #expect(process.claim()?.acks.map(\.offset) == [1])
        }
    }

    @Test func `a stream that is deleted and recreated begins from its start`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull("events/*", ["named"]), root: ""))
        for name in ["events/a", "named"] { for _ in 0..<3 { process.append(name) } }
        process.world.settle()
        _ = process.acknowledge(try #require(process.claim()))
        for name in ["events/a", "named"] { process.delete(name) }
        process.world.settle()
        for name in ["events/a", "named"] { process.append(name) }
        process.world.settle()
        let claim = try #require(process.claim())
        #expect(claim.streams.map(\.path) == ["events/a", "named"])
        #expect(claim.streams.allSatisfy { $0.link.acked == 0 && $0.tail == 1 })
    }

    @Test(arguments: [SubscriptionConfiguration.pull("events/*"), .pull(nil, ["events/a"])])
    func `an ack is for the stream that was given, not for one that is made under its name meanwhile`(
        configuration: SubscriptionConfiguration
    ) throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(configuration, root: ""))
        process.append("events/a")
        process.world.settle()
        let claim = try #require(process.claim())
        process.delete("events/a")
        process.world.settle()
        for _ in 0..<3 { process.append("events/a") }
        process.world.settle()
        // Its worker says nothing wrong: he has done what he was given.
        _ = try process.acknowledge(claim)?.get()
        let next = try #require(process.claim())
        #expect(next.streams.map(\.link.acked) == [0] && next.streams.map(\.tail) == [3])
        _ = try process.acknowledge(next)?.get()
        #expect(try process.streams().map(\.link.acked) == [3])
    }

    enum Wake: CaseIterable { case unclaimed, held, failing }

    @Test(arguments: Wake.allCases, [false, true])
    func `the link of a stream that goes is removed, whatever becomes of the wake`(wake: Wake, expires: Bool) throws {
        let process = try SubscriptionProcess { $0.request(.failed(wakeID: $1.wake.id)) }
        _ = process.ask(.put(wake == .failing ? .hook(lease: 600_000) : .pull(lease: 600_000), root: ""))
        process.append("events/stays")
        process.world.settle()
        if wake == .held { _ = try #require(process.claim()) }
        for number in 0..<30 {
            var row = ChannelRow(name: "events/\(number)", contentType: ContentType.json, isAgent: false, created: process.world.now)
            if expires { row.lifetime = .ttl(seconds: 10) }
            process.channels.submit(CreateChannel(row, [NewEntry(data: Bytes("1".utf8))]))
            if number % 2 == 0 { process.world.settle() }
            if !expires { process.delete("events/\(number)") }
        }
        process.run(.seconds(20))
        #expect(try linked(process) == ["events/stays"])
    }

    @Test func `the link of a stream that goes stays if it is named, and while another has its name`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull("events/*", ["events/named"]), root: ""))
        for name in ["events/named", "events/a", "events/b"] { process.append(name) }
        process.world.settle()
        _ = process.acknowledge(try #require(process.claim()))
        for name in ["events/named", "events/a", "events/b"] { process.delete(name) }
        // In the same commit, and in the one that takes the message.
        process.append("events/a")
        process.writer.pump()
        process.append("events/b")
        process.world.settle()
        #expect(try linked(process) == ["events/a", "events/b", "events/named"])
        #expect(process.claim()?.acks.map(\.offset) == [1, 1])
        for name in ["events/a", "events/b"] { process.delete(name) }
        process.world.settle()
        #expect(try linked(process) == ["events/named"])
        _ = process.ask(.remove("events/named"))
        #expect(try linked(process) == [])
    }

    @Test(arguments: [false, true])
    func `an ack of a stream that has gone counts for the others`(isReopened: Bool) throws {
        var process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(lease: 600_000), root: ""))
        for name in ["events/a", "events/b"] { process.append(name) }
        process.world.settle()
        let claim = try #require(process.claim())
        process.delete("events/a")
        process.world.settle()
        if isReopened { process = try process.reopened() }
        _ = try process.acknowledge(claim)?.get()
        #expect(try process.streams().map(\.path) == ["events/b"])
        #expect(try process.streams().map(\.link.acked) == [1])
        process.append("events/c")
        process.world.settle()
        let next = try #require(process.claim())
        let unknown = [SubscriptionAck(stream: "events/a", offset: 1)]
        guard case .failure(let error)? = process.ask(.acknowledge(next.proof, unknown, isDone: true, isCallback: false)) else {
            return #expect(Bool(false), "this wake did not name it")
        }
        #expect(error.code == "INVALID_OFFSET")
    }

    @Test func `a link that an earlier version has left goes when the links are compared`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull("events/*", ["events/named"]), root: ""))
        process.append("events/a")
        process.world.settle()
        let rows = ["events/gone", "events/a0"].map { name in
            (SubscriptionRows.key("s", name), SubscriptionLink(isExplicit: false, isGlob: true, acked: 7, channel: nil).bytes)
        }
        var batch = Batch(partition: Placement.partition(of: "s"))
        for (key, value) in rows { batch.put(.index, key, value) }
        try process.log.commit([batch])
        #expect(try linked(process).count == 4)
        let next = try process.reopened()
        next.world.settle()
        #expect(try linked(next) == ["events/a", "events/named"])
    }

    private func linked(_ process: SubscriptionProcess) throws -> [String] { try process.streams().map(\.path) }

    @Test func `a stream that is there for its forks alone has nothing new`() throws {
        let process = try SubscriptionProcess()
        process.append("events/a")
        process.world.settle()
        var fork = CreateChannel(ChannelRow(name: "b", contentType: ContentType.json, isAgent: false, created: process.world.now))
        fork.fork = ForkRequest(source: "events/a", offset: nil, subOffset: nil)
        process.channels.submit(fork)
        _ = process.ask(.put(.pull("**", ["events/a"]), root: ""))
        process.delete("events/a")
        process.world.settle()
        #expect(try process.channels.find("events/a")?.isSoftDeleted == true)
        #expect(try process.streams().allSatisfy { !$0.isPending })
    }

    @Test func `streams made while others are looked for belong to it as well, each once`() throws {
        let process = try SubscriptionProcess()
        process.append("events/before")
        process.world.settle()
        process.request(.put(.pull("events/*"), root: ""))
        process.writer.pump()
        // In any partition, those that have been gone through and those that have not.
        for number in 0..<200 {
            process.append("events/\(number)")
            process.append("other/\(number)")
            process.world.doOne()
        }
        process.world.settle()
        #expect(try process.streams().count == 201)
        #expect(try process.streams().allSatisfy { !$0.isPending || $0.link.acked == 0 })
        for number in 0..<200 { process.append("events/\(number)") }
        process.append("events/before")
        process.world.settle()
        #expect(try process.streams().filter(\.isPending).count == 201)
    }

    @Test func `it is made a page at a time, and holds the writer up by no more`() throws {
        let process = try SubscriptionProcess()
        for number in 0..<3_500 { process.append("events/\(number)") }
        process.world.settle()
        process.reads.forget()
        let answer = process.request(.put(.pull("events/*", ["named"]), root: ""))
        let same = process.request(.put(.pull("events/*", ["named"]), root: ""))
        // Others come, go and change meanwhile.
        for round in 0..<200 {
            process.append("events/new-\(round)")
            process.append("events/\(round)")
            process.delete("events/\(3_000 + round)")
            process.world.doOne()
        }
        process.world.settle()
        guard case .success(.created)? = answer.outcome, case .success(.confirmed)? = same.outcome else {
            return #expect(Bool(false), "\(answer) \(same)")
        }
        #expect(try process.streams().count == 3_500 - 200 + 200 + 1)
        for number in 0..<200 { process.append("events/new-\(number)") }
        process.world.settle()
        let claim = try #require(process.claim())
        #expect(claim.acks.count >= 200 && claim.acks.count <= 400)
        // A link is a read, and each of the streams that are made and deleted in a commit is some.
        #expect(process.reads.max < 3_000, "\(process.reads.max)")
    }

    /// In each of its pages.
    @Test(arguments: 0..<3)
    func `it is there as a whole or not at all, whatever ends while it is made`(commit: Int) throws {
        let process = try SubscriptionProcess()
        for number in 0..<2_500 { process.append("events/\(number)") }
        process.world.settle()
        let first = try process.reopened(outcome: { number, _ in number == commit ? .durableUnacknowledged : .acknowledged })
        let answer = first.request(.put(.pull(), root: ""))
        first.run(.seconds(1))
        #expect(first.log.crashed)
        if case .success? = answer.outcome { Issue.record("it was answered before it was durable") }
        let next = try first.reopened()
        next.world.settle()
        var links = 0
        try SubscriptionRows.links(of: "s", in: next.log) { _, _ in
            links += 1
            return true
        }
        let isThere = try next.subscriptions.describe("s") != nil
        #expect(links == (isThere ? 2_500 : 0))
        _ = try next.ask(.put(.pull(), root: ""))?.get()
        #expect(try next.streams().count == 2_500)
        #expect(next.claim() == nil)
        next.append("events/7")
        next.world.settle()
        #expect(next.claim()?.acks.map(\.stream) == ["events/7"])
    }

    @Test func `a stream made in the commit that deletes its subscription waits for nobody`() throws {
        let process = try SubscriptionProcess()
        for id in ["s", "t"] { _ = process.ask(.put(.pull("events/*"), root: ""), of: id) }
        process.append("events/a")
        for id in ["s", "t"] { process.request(.delete, of: id) }
        process.world.settle()
        #expect(try newStreams(in: process.log) == 0)
    }

    @Test func `names that look the same are two streams`() throws {
        // To Unicode they are the same, and so to a Swift string.
        let (one, two) = ("events/caf\u{E9}", "events/cafe\u{301}")
        #expect(one == two)
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(nil, [one, two]), root: ""))
        process.append(one, "1")
        for text in ["2", "3"] { process.append(two, text) }
        process.world.settle()
        for process in [process, try process.reopened()] {
            let bodies = try [one, two].map { name in
                try process.channels.page(try #require(try process.channels.find(name)), after: 0, view: .raw, bytesMax: .max).body.text
            }
            #expect(bodies == ["[1]", "[2,3]"])
            #expect(try process.streams().map(\.tail).sorted() == [1, 2])
        }
        var claim = try #require(process.claim())
        claim.streams.removeAll { $0.tail == 1 }
        _ = try process.acknowledge(claim)?.get()
        let next = try #require(process.claim())
        #expect(next.acks.map(\.offset) == [1] && next.acks[0].stream.utf8.elementsEqual(one.utf8))
    }

    @Test func `refused, it has linked nothing`() throws {
        let process = try SubscriptionProcess()
        process.append("events/a")
        process.append("wake")
        process.world.settle()
        let many = (0...Subscriptions.explicitMax).map { "s\($0)" }
        for streams in [many, ["wake"]] {
            if case .failure? = process.ask(.put(.pull("events/*", streams), root: "")) {} else { Issue.record("it was made") }
        }
        process.append("events/a")
        process.world.settle()
        _ = process.ask(.put(.pull("events/*"), root: ""))
        #expect(try process.streams().map(\.link.acked) == [2])
        if case .failure? = process.ask(.add(["wake"])) {} else { Issue.record("it may wake itself") }
    }

    @Test func `its own wake stream does not wake it`() throws {
        let process = try SubscriptionProcess()
        process.append("wake")
        _ = process.ask(.put(.pull("**"), root: ""))
        process.append("a")
        process.world.settle()
        #expect(try process.wakes().count == 2)
        _ = process.acknowledge(try #require(process.claim()))
        process.world.settle()
        #expect(try process.wakes().count == 2)
        #expect(process.claim() == nil)
    }

    @Test func `very many streams come in several wakes`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(), root: ""))
        for number in 0..<2_500 { process.append("events/\(number)") }
        process.world.settle()
        var seen: Set<String> = []
        while let claim = process.claim() {
            #expect(claim.streams.count <= Subscriptions.streamsPerWakeMax)
            seen.formUnion(claim.acks.map(\.stream))
            guard case .success? = process.acknowledge(claim) else { break }
        }
        #expect(seen.count == 2_500)
    }

    @Test func `very many streams come in turn, also while one of them is always busy`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(), root: ""))
        for number in 0..<3_000 { process.append("events/\(10_000 + number)") }
        process.world.settle()
        var (seen, counts): (Set<String>, [Int]) = ([], [])
        for _ in 0..<4 {
            let claim = try #require(process.claim())
            seen.formUnion(claim.acks.map(\.stream))
            counts.append(claim.acks.count)
            process.append("events/10000")
            _ = try process.acknowledge(claim)?.get()
        }
        #expect(counts.prefix(3) == [1_000, 1_000, 1_000])
        #expect(seen.count == 3_000)
    }

    @Test(arguments: [false, true])
    func `streams that are never acked keep no others from their turn`(isWebhook: Bool) throws {
        let named = Mutex<[[String]]>([])
        let process = try SubscriptionProcess { process, notification in
            named.withLock { $0.append(notification.streams.filter(\.isPending).map(\.path)) }
            process.request(.failed(wakeID: notification.wake.id))
        }
        _ = process.ask(.put(isWebhook ? .hook(lease: 600_000) : .pull(lease: 600_000), root: ""))
        for number in 0..<2_500 { process.append("events/\(10_000 + number)") }
        if isWebhook { process.run(.seconds(40)) }
        for _ in 0..<5 where !isWebhook {
            process.world.settle()
            let claim = try #require(process.claim())
            named.withLock { $0.append(claim.acks.map(\.stream)) }
            _ = process.ask(.release(claim.proof))
        }
        // The first two may have begun before all streams were there.
        let wakes = named.withLock { $0.dropFirst(2).prefix(3) }
        #expect(wakes.map(\.count) == [1_000, 1_000, 1_000])
        #expect(Set(wakes.joined()).count == 2_500, "each has its turn")
    }

    @Test func `a claim that waits while the links are read is answered, also when the subscription goes meanwhile`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(), root: ""))
        for number in 0..<1_500 { process.append("events/\(number)") }
        process.world.settle()
        let next = try process.reopened()
        let claims = (0..<3).map { next.request(.claim(worker: "w\($0)")) }
        next.writer.pump()
        #expect(claims.allSatisfy { $0.outcome == nil })
        next.request(.delete)
        next.world.settle()
        for claim in claims {
            guard case .failure(let error)? = claim.outcome else { return #expect(Bool(false), "\(String(describing: claim.outcome))") }
            #expect(error.code == "SUBSCRIPTION_NOT_FOUND")
        }
    }

    @Test func `an ack says whether more follows, also where more streams are new than are remembered`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(), root: ""))
        for number in 0..<1_200 { process.append("events/\(10_000 + number)") }
        process.world.settle()
        // Of this wake it remembers what fits; all of that goes, and more is left.
        let claim = try #require(process.claim())
        for number in 1_000..<1_100 { process.delete("events/\(10_000 + number)") }
        process.world.settle()
        guard case .success(.acknowledged(true))? = process.acknowledge(claim) else { return #expect(Bool(false), "more follows") }
        let next = try #require(process.claim())
        #expect(next.acks.count == 100)
        guard case .success(.acknowledged(false))? = process.acknowledge(next) else { return #expect(Bool(false), "nothing follows") }
    }

    @Test func `a start compares all links with their streams, and holds the writer up by none`() throws {
        let process = try SubscriptionProcess()
        for id in ["s", "t"] { _ = process.ask(.put(.pull(), root: ""), of: id) }
        for number in 0..<3_000 { process.append("events/\(number)") }
        process.world.settle()
        for id in ["s", "t"] {
            while let claim = process.claim(of: id) { _ = try process.acknowledge(claim, of: id)?.get() }
        }
        let next = try process.reopened()
        next.world.settle()
        #expect(next.claim() == nil)
        #expect(next.reads.max < 200, "\(next.reads.max)")
    }

    @Test func `a wake event waits for its stream`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(), root: ""))
        process.append("events/a")
        process.run(.seconds(10))
        #expect(try process.wakes().isEmpty)
        process.append("wake", "0")
        process.run(.seconds(73))
        #expect(try process.wakes().compactMap { $0["generation"]?.integer } == [1])
    }

    @Test func `a wake that is claimed before its event is written has one all the same`() throws {
        let process = try SubscriptionProcess()
        process.append("wake", "0")
        _ = process.ask(.put(.pull(), root: ""))
        // In one commit: new work, and a worker that asks for it without having been woken.
        process.append("events/a")
        let answer = process.request(.claim(worker: "w"))
        process.world.settle()
        process.world.settle()
        if case .success(.claimed)? = answer.outcome {} else { _ = try #require(process.claim()) }
        process.world.settle()
        #expect(try generations(process) == [1])
    }

    @Test(arguments: 1...20 as ClosedRange<UInt64>)
    func `every generation has its event, once and in order, however workers and commits fall`(seed: UInt64) throws {
        let process = try SubscriptionProcess(seed: seed)
        var random = SplitMix64(seed: seed)
        process.append("wake", "0")
        _ = process.ask(.put(.pull(), root: ""))
        var claims: [Answer<SubscriptionAnswer>] = []
        var generation: UInt64 = 0
        for round in 0..<60 {
            switch random.next() % 5 {
            case 0, 1: process.append("events/\(random.next() % 3)", "\(round)")
            case 2: claims.append(process.request(.claim(worker: "w\(round)")))
            case 3: process.writer.pump()
            default: process.run(.milliseconds(Int64(random.next() % 700)))
            }
            for case .success(.claimed(let subscription, let wake, let token, let streams))? in claims.map(\.outcome) {
                generation = max(generation, subscription.generation)
                let proof = SubscriptionProof(token: token, wakeID: wake.id, generation: subscription.generation)
                let acks = streams.filter(\.isPending).map { SubscriptionAck(stream: $0.path, offset: $0.tail) }
                // Most of them hold it until it ends by itself.
                if random.next() % 3 == 0 { process.request(.acknowledge(proof, acks, isDone: true, isCallback: false)) }
            }
            claims.removeAll { $0.outcome != nil }
        }
        process.run(.seconds(5))
        let written = try generations(process)
        #expect(written == Array(1...Int64(written.count)), "\(written)")
        #expect(written.count >= generation && generation > 0, "\(written.count) events of \(generation) generations")
    }

    @Test func `an event that the last process could not write is written by the next one`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(lease: 600_000), root: ""))
        process.append("events/a")
        process.world.settle()
        _ = try #require(process.claim())
        let next = try process.reopened()
        next.append("wake", "0")
        next.run(.seconds(70))
        #expect(try generations(next) == [1])
    }

    private func generations(_ process: SubscriptionProcess) throws -> [Int64] {
        try process.wakes().compactMap { $0["generation"]?.integer }
    }

    // MARK: Fencing

    @Test func `a deleted subscription takes nothing, and one of its id is another`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(), root: ""))
        process.append("events/a")
        process.world.settle()
        let claim = try #require(process.claim())
        _ = process.ask(.delete)
        guard case .failure(let error)? = process.acknowledge(claim) else { return #expect(Bool(false), "acked after its end") }
        #expect(error.code == "SUBSCRIPTION_NOT_FOUND")
        var rows = 0
        try SubscriptionRows.links(of: "s", in: process.log) { _, _ in
            rows += 1
            return true
        }
        #expect(rows == 0)
        _ = process.ask(.put(.pull(), root: ""))
        process.append("events/a")
        process.world.settle()
        #expect(process.claim()?.proof.generation == 1)
        guard case .failure(let other)? = process.acknowledge(claim) else { return #expect(Bool(false), "acked by another's token") }
        #expect(other.code == "TOKEN_INVALID")
    }

    @Test func `an ack goes neither back nor beyond the tail, and none of several when one does not go`() throws {
        let process = try SubscriptionProcess()
        _ = process.ask(.put(.pull(), root: ""))
        for name in ["events/a", "events/b"] { for _ in 0..<2 { process.append(name) } }
        process.world.settle()
        let claim = try #require(process.claim())
        func code(_ acks: [(String, UInt64)]) -> String? {
            let acks = acks.map { SubscriptionAck(stream: $0.0, offset: $0.1) }
            guard case .failure(let error)? = process.ask(.acknowledge(claim.proof, acks, isDone: false, isCallback: false)) else {
                return nil
            }
            return error.code
        }
        #expect(code([("events/a", 2), ("events/b", 3)]) == "INVALID_OFFSET")
        #expect(code([("events/a", 2), ("events/c", 0)]) == "INVALID_OFFSET")
        #expect(try process.streams().allSatisfy { $0.link.acked == 0 })
        #expect(code([("events/a", 2)]) == nil)
        #expect(code([("events/a", 1)]) == "INVALID_OFFSET")
        #expect(code([("events/a", 2)]) == nil)
    }

    @Test func `without subscriptions a commit does nothing for them, and with others a stream costs a comparison`() throws {
        let process = try SubscriptionProcess()
        process.append("a")
        process.world.settle()
        #expect(try process.channels.find("a")?.staged.subscribers == nil)
        _ = process.ask(.put(.pull(), root: ""))
        process.append("a")
        process.world.settle()
        #expect(try process.channels.find("a")?.staged.subscribers?.ids == [])
    }
}
