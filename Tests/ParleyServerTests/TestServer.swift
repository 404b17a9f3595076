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
final class TestServer: Sendable {
    let log = MemoryLog()
    let writer: GroupCommit
    let channels: Channels
    let server: Server
    let agents: TestAgents
    let subscriptions: SubscriptionDelivery

    static let world = SystemWorld(threads: 1)
    /// What calls receivers of subscriptions.
    private static let calls = {
        let loop = EventLoop(name: "calls")
        loop.start()
        return loop
    }()
    private static let names = Atomic(0)

    init(channelsMax: Int? = nil, _ configure: (inout ServerConfiguration) -> Void = { _ in }) throws {
        var configuration = ServerConfiguration()
        configuration.http.port = 0
        configuration.loopCount = 2
        configure(&configuration)
        writer = GroupCommit(log: log)
        channels = Channels(log: log, writer: writer, world: TestServer.world)
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

    func connect() throws -> TestClient { try TestClient(port: server.port) }

    /// A path that no other test has.
    func path(_ hint: String = "s") -> String { "/v1/stream/\(hint)-\(TestServer.names.add(1, ordering: .relaxed).newValue)" }

    /// One request on a connection of its own.
    func request(
        _ method: String, _ path: String, _ headers: [(String, String)] = [], _ body: Bytes = []
    ) throws -> TestClient.Answer {
        try connect().request(method, path, headers, body)
    }

    func request(_ method: String, _ path: String, _ headers: [(String, String)] = [], _ body: String) throws -> TestClient.Answer {
        try request(method, path, headers, Bytes(body.utf8))
    }

    /// Makes a stream, with data if there is some, and returns its path.
    func stream(_ type: String = "text/plain", _ body: String = "", closed: Bool = false) throws -> String {
        let path = path()
        let answer = try request("PUT", path, [("Content-Type", type)] + (closed ? [("Stream-Closed", "true")] : []), body)
        guard answer.status == 201 else { throw TestFailure("PUT \(path) answers \(answer.status): \(answer.text)") }
        return path
    }

    @discardableResult
    func post(_ path: String, _ body: String, _ type: String = "text/plain", _ headers: [(String, String)] = []) throws -> TestClient.Answer
    {
        try request("POST", path, [("Content-Type", type)] + headers, body)
    }

    func get(_ path: String, _ headers: [(String, String)] = []) throws -> TestClient.Answer { try request("GET", path, headers) }

    func tail(_ path: String) throws -> String { try request("HEAD", path).headers["stream-next-offset"] ?? "" }
}

/// Agents that do what a test tells them to.
final class TestAgents: AgentHost {
    let kinds = ["assistant", "echo"]
    let activeCount = 0
    let waiting = Mutex<[String: @Sendable (JSON) -> Void]>([:])
    let withdrawn = Atomic(0)
    private let channels: Channels
    private let arrivals = Monitor(0)

    init(_ channels: Channels) { self.channels = channels }

    func status(of channelName: String, _ answer: @escaping @Sendable (JSON?) -> Void) {
        let channel = try? channels.find(channelName)
        answer(channel.map { ["name": .string($0.name), "state": "idle", "tail": .string(Offset($0.tail.head).token)] })
    }

    func list(
        kind: String?, state: String?, limit: Int, after: String?, where isShown: @escaping @Sendable (String) -> Bool,
        answer: @escaping @Sendable (JSON) -> Void
    ) {
        var found: [JSON] = []
        try? AgentIndex.scan(channels.log, AgentStatus.allCases) { name, status in
            if kind.map({ name.hasPrefix("agents/\($0)/") }) ?? true, state.map({ $0 == status.name }) ?? true, isShown(name) {
                found.append(["agent": .string(name), "state": .string(status.name)])
            }
            return found.count < limit
        }
        answer(["agents": .array(found)])
    }

    func remove(_ channelName: String, _ done: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        DeleteChannel(channels, channelName, completion: done).submit()
    }

    func outcome(of turn: Offset, in channelName: String, _ answer: @escaping @Sendable (JSON) -> Void) -> any Scheduled {
        waiting.withLock { $0[channelName] = answer }
        arrivals.withLock(signalAll: true) { $0 += 1 }
        return Withdrawal { [self] in
            waiting.withLock { $0[channelName] = nil }
            withdrawn.add(1, ordering: .relaxed)
        }
    }

    /// Waits until somebody waits for a turn, and ends it with `entry`.
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
