internal import ParleyChannels
internal import ParleySystem

/// The agent's view for its decisions: its own log, whose entries do not change, and the current state of the node.
protocol AgentView {
    var now: Timestamp { get }
    func random() -> UInt64

    // MARK: The node

    /// No turn and no step begins any more.
    var isDraining: Bool { get }
    /// Others wait for room in memory.
    var isCrowded: Bool { get }
    /// How long an agent stays in memory with nothing to do.
    var idleAfter: Duration { get }
    /// Text has been submitted and is not durable yet.
    var isWritingText: Bool { get }
    /// Whether the turn also waits for something outside: it must not be passivated.
    func hasStrayed(turn: UInt64) -> Bool
    /// Waiting turns of that kind stay in memory: each passivation of one would leak its memory.
    var keepsWaiting: Bool { get }
    /// The agent as it is declared now.
    func declared() -> (traits: AgentTraits, program: Program)
    /// Stops a model and returns what it has written by now: the members of `step.completed`, and the piece that was held back. `nil` if none is
    /// called.
    func interrupt(path: String) -> (members: [(String, JSON?)], last: NewEntry?)?

    // MARK: The log

    /// The offset of the last entry.
    var head: UInt64 { get }
    var isDeleted: Bool { get }
    func load() throws -> LoadedAgent
    func inbox(after: UInt64, upTo: UInt64) throws -> [Inbox.Entry]
    /// An entry with its body; `nil` when there is none.
    func item(at offset: UInt64) throws -> InboxItem?
    /// The members of an entry; `nil` when there is none.
    func body(at offset: UInt64) throws -> EntryMembers?
    func journal(of turn: UInt64) throws -> Journal
    /// The program of a turn that was begun before, see ``AgentDefinition``.
    func program(of journal: Journal) throws -> Program
    /// The conversation that a turn would have which began now.
    func conversation() throws -> ConversationExtent
    /// The conversation that the turn began with.
    func history(of journal: Journal) throws -> [HistoryItem]
    /// Why an `approve` or `deny` comes too late, by what the log says; `nil` when it says nothing of a decision.
    func decision(of item: InboxItem) throws -> String?

    // MARK: Other channels

    /// The incarnation of the channel that has the name now.
    func incarnation(of channel: String) throws -> String?
    func read(_ follow: Follow) throws -> FollowReading
}

/// An agent's rows and last entries, as it comes into memory.
struct LoadedAgent {
    var record: AgentRecord
    var head: UInt64
    var inbox: [Inbox.Entry]
    /// The open turn.
    var turn: UInt64?
    var status: AgentStatus
    /// An activation of this process left the turn open, because it could not read the log.
    var wasStopped: Bool
    /// It stalled in the process before: each process tries once.
    var triesStalledAgain: Bool
    /// The process before ended in an orderly way.
    var hasDrained: Bool
    /// The other agents whose turns ran when it ended.
    var ranToo: [String] = []
}

/// The start of a conversation, and its size.
struct ConversationExtent {
    /// The offset of its first input; `nil` while there is none.
    var first: UInt64?
    var byteCount: Int
}

/// The code of a turn: nothing is known of it but that it can be run.
struct Program: Sendable {
    let receive: AnyAgent.Receive
}
