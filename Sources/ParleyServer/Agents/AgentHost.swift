package import ParleyAgents
package import ParleyChannels
package import ParleyLog
package import ParleySystem

/// The runtime of the agents, as the routes see it.
package protocol AgentHost: AnyObject, Sendable {
    /// The kinds of agents there are, sorted.
    var kinds: [String] { get }

    /// How many agents are in memory.
    var activeCount: Int { get }

    /// How many agents have something to do and wait for room in memory.
    var waitingCount: Int { get }

    /// Gives the state of an agent, for `GET /v1/agents/<kind>/<id>`; `nil`: no such agent. `answer` is called once, on any thread.
    func status(of channelName: String, _ answer: @escaping @Sendable (JSON?) -> Void)

    /// A page of agents. `answer` is called once, on any thread.
    func list(_ query: AgentListQuery, answer: @escaping @Sendable (JSON) -> Void)

    /// Returns the data that determines the agent's turns, if it is declared by data. Reads the log: any thread but a loop's.
    func definition(of channel: Channel) throws(LogError) -> JSON

    /// Cancels what runs and removes the agent with its channel. `done` is called once, when that is durable.
    ///
    /// - Parameter ifTail: Refuses when the channel's tail is elsewhere.
    func remove(_ channelName: String, ifTail: UInt64?, _ done: @escaping @Sendable (Result<Void, ChannelError>) -> Void)

    /// Gives the entry that ends the turn which the input at `turn` begins or joins, once it is durable; cancelling withdraws the question.
    ///
    /// - Parameters:
    ///   - gone: Called instead when this node will not know: the channel was deleted, or is another node's. Any thread.
    ///   - tell: Is told about how many bytes the entry has, and gets its JSON if there is room for that. Any thread.
    func outcome(
        of turn: Offset, in channelName: String, gone: @escaping @Sendable (ChannelError) -> Void,
        _ tell: @escaping @Sendable (_ byteCount: Int, _ json: () -> Bytes) -> Void
    ) -> any Scheduled
}
