import ParleyChannels
import ParleyHTTP
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyServer

/// A server that owns nothing, and reads what another one owns over a link that is slow and can be cut.
private final class MirroringServer: ServerUnderTest {
    let owner: TestServer
    let link: LoopbackLink
    let channels: Channels
    private let writer: GroupCommit
    private let server: Server

    init(_ configure: (inout ServerConfiguration) -> Void = { _ in }) throws {
        owner = try TestServer()
        let link = LoopbackLink(to: owner.channels, world: TestServer.world, patience: .seconds(10)) {
            .milliseconds(Int64(TestServer.world.random() % 4))
        }
        self.link = link
        writer = GroupCommit(log: MemoryLog())
        channels = Channels(log: MemoryLog(), writer: writer, world: TestServer.world, partitions: PartitionSet())
        var configuration = ServerConfiguration()
        configuration.http.port = 0
        configuration.loopCount = 2
        configure(&configuration)
        server = Server(channels: channels, mirrors: ChannelMirrors { _ in link }, configuration: configuration)
        writer.start()
        try server.start()
    }

    deinit {
        link.giveUp()
        server.stop()
        writer.stop()
    }

    var root: String { "/v1/stream/" }
    var port: Int { server.port }

    func connect() throws -> TestClient { try TestClient(port: port) }
}

extension TestServer {
    fileprivate func channel(_ path: String) throws -> Channel? { try channels.find(String(path.dropFirst(root.count))) }
}

/// Appends numbers to a stream at its owner while the link to the other node fails.
private final class Appending: Sendable {
    static let count = 250
    private let thread: SystemThread

    /// - Parameter isClosed: Whether the stream is closed with the last number; else it is deleted.
    init(_ path: String, _ server: MirroringServer, seed: UInt64, isClosed: Bool) {
        let (owner, link) = (server.owner, server.link)
        thread = SystemThread(name: "appends") {
            var random = SplitMix64(seed: seed)
            var next = 0
            while next < Appending.count {
                let batch = next..<min(next + Int(random.next() % 4) + 1, Appending.count)
                let filler = String(repeating: "z", count: random.next() % 20 == 0 ? 40_000 : 10)
                let body = batch.map { "[\($0),\"\(filler)\"]" }.joined(separator: ",")
                _ = try? owner.post(
                    path, "[\(body)]", "application/json", batch.upperBound == Appending.count && isClosed ? closed : [])
                next = batch.upperBound
                switch random.next() % 12 {
                case 0: link.cut()
                case 1...4: link.restore()
                default: break
                }
            }
            link.restore()
            if !isClosed { _ = try? owner.request("DELETE", path) }
        }
    }

    func join() { thread.join() }
}

/// Live readers of a node that does not own what they read.
@Suite struct `Live readers of a channel of another node` {
    private func numbers(_ entries: [JSON]) -> [Int] { entries.compactMap { $0.array?.first?.integer.map(Int.init) } }

    @Test(arguments: [1, 2, 3] as [UInt64])
    func `get every entry once and in order while the link fails, by events, long-polls and on a socket`(_ seed: UInt64) throws {
        let server = try MirroringServer()
        let path = try server.owner.stream("application/json")
        let events = try server.follow(path)
        let socket = try SocketClient(port: server.port)
        try socket.follow(1, String(path.dropFirst(server.root.count)))
        let appending = Appending(path, server, seed: seed, isClosed: true)
        defer { appending.join() }

        let polled = Monitor<[JSON]?>(nil)
        let poller = SystemThread(name: "polls") {
            let entries = try? poll(path, on: server)
            polled.withLock(signalAll: true) { $0 = entries ?? [] }
        }
        defer { poller.join() }
        let all = try events.events()
        #expect(numbers(all.filter { $0.name == "data" }.flatMap { $0.json?.array ?? [] }) == Array(0..<Appending.count))
        #expect(all.last?.json?["streamClosed"] == true)
        let messages = try socket.hear { $0["ended"] == true }
        #expect(numbers(messages.flatMap { $0["entries"]?.array ?? [] }) == Array(0..<Appending.count))
        #expect(messages.last?["reason"] == "closed")
        #expect(numbers(polled.wait(timeout: .seconds(60)) { $0 } ?? []) == Array(0..<Appending.count))
        #expect(server.link.counts.cuts > 3)
    }

    @Test func `learn that it was deleted, as readers at the owner do`() throws {
        let server = try MirroringServer()
        let path = try server.owner.stream("application/json")
        let name = String(path.dropFirst(server.root.count))
        let events = try server.follow(path)
        let socket = try SocketClient(port: server.port)
        try socket.follow(1, name)
        let appending = Appending(path, server, seed: 9, isClosed: false)
        let all = try events.events()
        let messages = try socket.hear { $0["ended"] == true }
        appending.join()
        for entries in [all.filter { $0.name == "data" }.flatMap { $0.json?.array ?? [] }, messages.flatMap { $0["entries"]?.array ?? [] }]
        {
            let numbers = numbers(entries)
            #expect(numbers == Array(0..<numbers.count))
        }
        #expect(all.last?.json?["streamClosed"] == nil)
        #expect(messages.last?["reason"] == "deleted")
        #expect(try server.get(path).code == "channel_not_found")
    }

    @Test func `that do not read get everything in the end, as pages over the link`() throws {
        let server = try MirroringServer { configuration in
            configuration.unsentBytesMax = 64 << 10
            configuration.pageBytes = 32 << 10
            configuration.http.sendBufferBytes = 16 << 10
        }
        let path = try server.owner.stream("application/json")
        let (slow, quick) = (try server.follow(path), try server.follow(path))
        _ = try quick.event()
        let filler = String(repeating: "z", count: 10_000)
        for number in 0..<150 {
            try server.owner.post(path, "[[\(number),\"\(filler)\"]]", "application/json")
            if number % 25 == 0 { _ = try quick.events { $0["streamNextOffset"]?.string == (try? server.owner.tail(path)) } }
        }
        try server.owner.post(path, "", "application/json", closed)
        for reader in [slow, quick] {
            let numbers = numbers(try reader.events().filter { $0.name == "data" }.flatMap { $0.json?.array ?? [] })
            #expect(numbers == Array(numbers.first!...149))
        }
        #expect(server.link.counts.pages > 5)
    }

    @Test func `are told where to resume when its node is given up`() throws {
        let server = try MirroringServer()
        let path = try server.owner.stream("text/plain", "x")
        let reader = try server.follow(path)
        _ = try reader.events { $0["upToDate"] == true }
        let socket = try SocketClient(port: server.port)
        let json = try server.owner.stream("application/json", "[1]")
        try socket.follow(1, String(json.dropFirst(server.root.count)))
        _ = try socket.entries(1, 1)
        server.link.giveUp()
        let last = try #require(try reader.events().last)
        #expect(last.json?["streamNextOffset"] == "0000000000000001" && last.json?["streamClosed"] == nil)
        #expect(try socket.next()["error"]?["code"] == "partition_unavailable")
        #expect(try server.get(path).code == "partition_unavailable")
    }

    @Test func `get the owner's pages, ETags, text and settled view`() throws {
        let server = try MirroringServer()
        let path = try server.owner.stream("text/plain; charset=utf-8", "grün")
        for query in ["", "?offset=-1", "?offset=now", "?offset=0000000000000001", "?offset=0000000000000009"] {
            let (here, there) = (try server.get(path + query), try server.owner.get(path + query))
            #expect(here.status == there.status && here.body == there.body && here.headers["etag"] == there.headers["etag"], "\(query)")
            #expect(here.headers["content-type"] == there.headers["content-type"] && here.next == there.next, "\(query)")
        }
        let reader = try server.follow(path)
        #expect(try reader.event()?.data == "grün")
        // In the middle of a character.
        try server.owner.channel(path).map { channel in
            server.owner.channels.submit(Append(to: channel.name, [NewEntry(data: [0xc3])]))
            server.owner.channels.submit(Append(to: channel.name, [NewEntry(data: [0xbc])]))
        }
        #expect(try reader.events { $0["streamNextOffset"] == "0000000000000003" }.first { $0.name == "data" }?.data == "ü")

        let agent = "/v1/stream/agents/echo/mirrored"
        #expect(try server.owner.request("PUT", agent).status == 201)
        let position = Position(turn: 1, step: "s", attempt: 1)
        server.owner.channels.submit(
            Append(
                to: "agents/echo/mirrored",
                [
                    NewEntry(.stepStarted, position, ("kind", "model")),
                    NewEntry(text: TextDelta(part: .text, index: 0, continuesAt: nil, delta: Bytes("abc".utf8)), at: position),
                    NewEntry(.stepCompleted, position, ("text", "abc")),
                ]))
        try server.eventually("three entries") { try server.owner.tail(agent) == "0000000000000003" }
        for view in ["raw", "settled"] {
            let (here, there) = (try server.get(agent + "?view=\(view)"), try server.owner.get(agent + "?view=\(view)"))
            #expect(here.status == 200 && here.body == there.body && here.headers["etag"] == there.headers["etag"])
            #expect(here.json?.array?.count == (view == "raw" ? 3 : 2))
        }
    }
}

/// Long-polls to the end of a stream.
private func poll(_ path: String, on server: MirroringServer) throws -> [JSON] {
    var (entries, next) = ([JSON](), "-1")
    let client = try server.connect()
    while true {
        let answer = try client.request("GET", path + "?offset=\(next)&live=long-poll")
        guard answer.status == 200 || answer.status == 204 else { throw TestFailure("\(answer.status): \(answer.text)") }
        entries += answer.json?.array ?? []
        next = answer.next
        if answer.headers["stream-closed"] == "true" { return entries }
    }
}
