package import ParleyAgents
package import ParleyChannels
package import ParleyLog
package import ParleySystem
internal import Synchronization

/// A node in a simulated world: log, writer, channels and agents, as the server composes them, without threads and without a network.
package final class SimulatedNode: Sendable {
    package let world: SimulatedWorld
    package let log: SimulatedLog
    package let writer: GroupCommit
    package let channels: Channels
    package let runtime: AgentRuntime

    /// Starts a node on `log`. Agents take up what was left, in the partitions that it owns from the start.
    package init(
        _ world: SimulatedWorld, _ log: SimulatedLog, agents: [AnyAgent], limits: GroupCommit.Limits = GroupCommit.Limits(),
        activeMax: Int = AgentRuntime.activeMax, waitingMax: Int = AgentRuntime.waitingMax,
        conversations: ConversationBudget = ConversationBudget(), turnBytesMax: Int = TurnMemory.bytesUsual,
        partitions: PartitionSet = .all, name: String = "simulated"
    ) throws(LogError) {
        self.world = world
        self.log = log
        writer = GroupCommit(log: log, limits: limits)
        channels = Channels(log: log, writer: writer, world: world, partitions: partitions)
        runtime = AgentRuntime(
            channels: channels, world: world, agents: agents, node: name, activeMax: activeMax, waitingMax: waitingMax,
            conversations: conversations, turnBytesMax: turnBytesMax)
        let writer = writer
        world.drive { writer.pump() }
        try channels.start()
        try runtime.start()
    }

    /// Runs `body` on a thread of its own and waits for it: simulated code runs nested in it, which must not happen on a thread of Swift's pool.
    package static func simulate<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
        let box = ResultBox<Value>()
        let thread = SystemThread(name: "simulation") { box.store(Result(catching: body)) }
        thread.join()
        return try box.take().get()
    }

    /// Sends a message to an agent, as a client would; `answer` gets its offset once it is durable.
    package func send(
        _ text: String, to channel: String, key: String? = nil,
        _ answer: @escaping @Sendable (Result<Appended, ChannelError>) -> Void = { _ in }
    ) {
        send(NewEntry(.message, nil, ("by", "tester"), ("text", .string(text))), to: channel, key: key, answer)
    }

    package func send(
        _ entry: NewEntry, to channel: String, key: String? = nil,
        _ answer: @escaping @Sendable (Result<Appended, ChannelError>) -> Void = { _ in }
    ) {
        var append = Append(to: channel, [entry])
        append.creates = ChannelRow(name: channel, contentType: ContentType.json, isAgent: true, created: world.now)
        append.isInput = true
        append.idempotency = key.map { IdempotencyKey(key: $0, body: []) }
        channels.submit(append, answer)
    }

    /// How many rows a family has.
    package func rows(_ family: Family) throws -> Int {
        var count = 0
        try log.scan(family, from: [0, 0], to: [255, 255], reversed: false) { _, _ in
            count += 1
            return true
        }
        return count
    }

    /// The entries of a channel as readers see them.
    package func entries(_ channel: String, view: View = .raw) throws -> [JSON] {
        guard let found = try channels.find(channel) else { return [] }
        return try JSON.parse(try channels.page(found, after: 0, view: view, bytesMax: .max).body).array ?? []
    }
}

private final class ResultBox<Value: Sendable>: Sendable {
    private let result = Mutex<Result<Value, any Error>?>(nil)

    func store(_ value: Result<Value, any Error>) { result.withLock { $0 = value } }
    func take() -> Result<Value, any Error> { result.withLock { $0! } }  // Stored before the thread ended.
}
