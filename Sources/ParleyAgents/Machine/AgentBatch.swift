internal import ParleyChannels
internal import ParleySystem

/// An append of an agent, as data: entries, the input that they decide, and the rows that go with them.
struct AgentBatch: Sendable {
    var entries: [NewEntry]
    var epoch: EpochClaim
    var decides: [UInt64] = []
    /// It closes the channel.
    var closes = false
    /// It yields to undecided entries of these kinds that come after `considered`.
    var yieldsTo: EntryKinds = []
    /// Highest inbox offset that has been decided or left alone with this batch in view; `nil`: all that the agent has seen.
    var considered: UInt64?
    var rows: [AgentRow] = []
}

/// A row that is written together with the entries of a batch, or not at all.
enum AgentRow: Sendable {
    /// The logged state of the agent, and its open turn.
    case status(AgentStatus, turn: UInt64?)
    case timer(DueTimer)
    case noTimer(DueTimer)
    case follow(FollowChange)
    /// The agent's state as of the entry with that number in the batch.
    case state(Bytes, entry: Int)
    /// Content that entries refer to by its digest.
    case content(Bytes, digest: Bytes)
    /// The batch begins with the first start of a model step.
    case modelStarted(path: String)
    /// The text that a model step has streamed is in its result, the batch's last entry, and may be trimmed in its time.
    case textSealed(path: String, turn: UInt64)
}
