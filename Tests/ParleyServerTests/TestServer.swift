import ParleyAgents
import ParleyChannels
import ParleyHTTP
import ParleyLog
import ParleySystem
import ParleyTesting
import ParleyWebhooks
import Synchronization

@testable import ParleyServer

/// A server on a log in memory, and what talks to it.
final class TestServer: ServerUnderTest {
    let log: GatedLog
    let writer: GroupCommit
    let channels: Channels
    let server: Server
    let agents: TestAgents
    let subscriptions: SubscriptionDelivery

    static let world = SystemWorld(threads: 1)
    /// The loop for calls to receivers of subscriptions.
    private static let calls = {
        let loop = EventLoop(name: "calls")
        loop.start()
        return loop
    }()

    init(
        on log: GatedLog = GatedLog(), channelsMax: Int? = nil, partitions: PartitionSet = .all,
        _ configure: (inout ServerConfiguration) -> Void = { _ in }
    ) throws {
        self.log = log
        var configuration = ServerConfiguration()
        configuration.http.port = 0
        configuration.loopCount = 2
        configure(&configuration)
        writer = GroupCommit(log: log)
        channels = Channels(log: log, writer: writer, world: TestServer.world, partitions: partitions)
        if let channelsMax { try channels.limitCount(to: channelsMax) }
        agents = TestAgents(channels)
        let keys = SigningKeys()
        subscriptions = SubscriptionDelivery(
            Subscriptions(channels, tokenKey: keys.tokenKey), keys: keys, allowsLoopback: true, world: TestServer.world,
            transport: CurlTransport(TestServer.calls))
        server = Server(channels: channels, agents: agents, subscriptions: subscriptions, configuration: configuration)
        try subscriptions.subscriptions.prepare()
        writer.start()
        try server.start()
        subscriptions.subscriptions.start()
    }

    deinit {
        subscriptions.stop()
        server.stop()
        writer.stop()
    }

    var root: String { "/v1/stream/" }
    var port: Int { server.port }

    func connect() throws -> TestClient { try TestClient(port: port) }
}

/// A log in memory whose reads can be held.
final class GatedLog: CommitLog {
    private struct State {
        var isHeld = false
        var waiting = 0
    }

    private let log = MemoryLog()
    private let state = Monitor(State())

    func hold() { state.withLock { $0.isHeld = true } }

    func release() { state.withLock(signalAll: true) { $0.isHeld = false } }

    /// Until a read waits.
    func waitForRead() throws {
        guard state.wait(timeout: .seconds(10), { $0.waiting > 0 ? true : nil }) != nil else { throw TestFailure("nobody reads the log") }
    }

    private func pass() {
        let isHeld = state.withLock(signalAll: true) { state in
            if state.isHeld { state.waiting += 1 }
            return state.isHeld
        }
        guard isHeld else { return }
        _ = state.wait(timeout: .seconds(10)) { $0.isHeld ? nil : true }
        state.withLock { $0.waiting -= 1 }
    }

    func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] { try log.commit(batches) }

    func acquire(_ partition: UInt16) throws(LogError) -> UInt64 { try log.acquire(partition) }

    func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? {
        pass()
        return try log.get(family, key)
    }

    func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(LogError) {
        pass()
        try log.scan(family, from: lower, to: upper, reversed: reversed, visit)
    }

    /// Data that one server wrote is there for the next.
    func close() {}
}

/// Agents that do what a test tells them to.
final class TestAgents: AgentHost {
    let kinds = ["assistant", "echo"]
    let activeCount = 0
    let waitingCount = 0
    let waiting = Mutex<[String: @Sendable (JSON) -> Void]>([:])
    let withdrawn = Atomic(0)
    private let channels: Channels
    private let arrivals = Monitor(0)

    init(_ channels: Channels) { self.channels = channels }

    func status(of channelName: String, _ answer: @escaping @Sendable (JSON?) -> Void) {
        let channel = try? channels.find(channelName)
        answer(channel.map { ["name": .string($0.name), "state": "idle", "tail": .string(Offset($0.tail.head).token)] })
    }

    func list(_ query: AgentListQuery, answer: @escaping @Sendable (JSON) -> Void) {
        var found: [JSON] = []
        try? AgentIndex.scan(channels.log, AgentStatus.allCases) { name, status in
            if query.kind.map({ name.hasPrefix("agents/\($0)/") }) ?? true, query.state.map({ $0 == status.name }) ?? true,
                query.isShown(name)
            {
                found.append(["agent": .string(name), "state": .string(status.name)])
            }
            return found.count < query.limit
        }
        answer(["agents": .array(found)])
    }

    func definition(of channel: Channel) -> JSON { ["agent": .string(channel.name), "known": true] }

    func remove(_ channelName: String, ifTail: UInt64?, _ done: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        channels.submit(DeleteChannel(channelName, ifTail: ifTail), done)
    }

    func outcome(
        of turn: Offset, in channelName: String, gone: @escaping @Sendable (ChannelError) -> Void,
        _ tell: @escaping @Sendable (_ byteCount: Int, _ json: () -> Bytes) -> Void
    ) -> any Scheduled {
        waiting.withLock { $0[channelName] = { entry in tell(entry.bytes.count) { entry.bytes } } }
        arrivals.withLock(signalAll: true) { $0 += 1 }
        return Withdrawal { [self] in
            waiting.withLock { $0[channelName] = nil }
            withdrawn.add(1, ordering: .relaxed)
        }
    }

    /// Waits until a client waits for a turn, and ends the turn with `entry`.
    func end(_ channelName: String, _ entry: JSON) throws {
        guard arrivals.wait(timeout: .seconds(10), { $0 > 0 ? true : nil }) != nil, let answer = waiting.withLock({ $0[channelName] })
        else {
            throw TestFailure("nobody waits for a turn of \(channelName)")
        }
        answer(entry)
    }

    private struct Withdrawal: Scheduled {
        let withdraw: @Sendable () -> Void
        func cancel() { withdraw() }
    }
}

extension TestServer {
    /// The value of a metric in `/metrics`.
    func metric(_ name: String) throws -> Double? {
        let lines = try get("/metrics").text.split(separator: "\n")
        return lines.first { $0.hasPrefix(name + " ") }.flatMap { Double($0.split(separator: " ")[1]) }
    }
}

/// Waits until the server has `count` live readers.
func waitForReaders(_ count: Int, on server: TestServer) throws {
    try server.eventually("\(count) live readers") { try server.metric("parley_readers") == Double(count) }
}
