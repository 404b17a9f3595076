internal import ParleyChannels
internal import ParleySystem

/// The purpose of a batch: it decides what follows once the batch is durable.
enum WritePurpose: Sendable {
    /// Nothing follows from it.
    case record

    indirect case turnStarted(TurnStart)
    indirect case turnTakenUp(TurnStart)
    indirect case turnEnded(TurnEnd)
    /// The turn only waits; the agent was about to be passivated, or the mark is for readers of its status.
    case turnWaits(epoch: UInt64, isLeaving: Bool)

    case stepStarted(epoch: UInt64, StepRequest, attempt: UInt32)
    case waitStarted(epoch: UInt64, DueTimer?, isFollow: Bool)
    indirect case attemptFailed(FailedAttempt)
    case stepEnded(StepEnd)
    case stepsEnded(StepEnds)

    /// Input was decided while nothing else could begin.
    case decided
    /// Input was decided apart from the agent's other work.
    case rejected

    /// The turn stalled, or was parked.
    case turnHalted(UInt64)
    case haltedApprovalDecided([DueTimer])
    /// An open turn was ended without its program.
    indirect case haltedTurnEnded(HaltedEnd)
    /// - Parameter before: The inbox as it was.
    indirect case agentClosed(before: Inbox)
}

/// A turn that begins, or runs again.
struct TurnStart: Sendable {
    /// The offset of its input.
    var turn: UInt64
    var input: EntryMembers
    var journal: Journal
    var program: Program
    /// The end of the turn before it, when it is written with the start.
    var end: HaltedEnd?
}

/// The end of a turn whose program has returned or thrown.
struct TurnEnd: Sendable {
    var turn: UInt64
    var epoch: UInt64
    var result: TurnMachine.Outcome
    /// The index of the batch's entry that ends the turn.
    var entry: Int
    /// The state that is saved with it.
    var state: JSON?
    /// Input that is decided with it.
    var decides: [UInt64]
    var left: OpenSteps
}

/// The end of a step that no entry from outside ended.
struct StepEnd: Sendable {
    var turn: UInt64
    var epoch: UInt64
    var request: StepRequest
    var entries: [NewEntry]
    var outcome: StepOutcome
    /// Undecided entries of these kinds are decided first.
    var yieldsTo = AgentMachine.stopping
    /// Highest inbox offset that has been decided, or left alone, with this step open. Earlier input may have found nothing to stop, so the first try
    /// yields to all of it.
    var considered: UInt64 = 0
    var rows: [AgentRow] = []
    var wait = Wait.working

    /// The needs of the step while it waited.
    enum Wait {
        /// Memory: something ran for it.
        case working
        /// None; its end also says that the turn runs again.
        case resting
        /// None, and the log had said that the turn only waits.
        case marked
    }
}

/// The ends of steps that an entry from outside ended.
struct StepEnds: Sendable {
    var turn: UInt64
    var epoch: UInt64
    var ends: [(request: StepRequest, outcome: StepOutcome)]
    /// Why the turn is cancelled with it; `nil`: it is not.
    var cancellation: JSON?
}

/// An attempt of a step that another one follows.
struct FailedAttempt: Sendable {
    var epoch: UInt64
    var request: StepRequest
    var attempt: UInt32
    var failure: StepFailure
    var pause: Duration
    var retryAt: Timestamp
    /// The text that the next one continues.
    var saved: SavedText
}
