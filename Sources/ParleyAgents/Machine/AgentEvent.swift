internal import ParleyChannels
internal import ParleySystem

/// The input of an agent's machine.
enum AgentEvent: Sendable {
    /// Something may have changed that lets it continue.
    case look
    /// Input up to that offset is durable.
    case input(upTo: UInt64)
    case timerDue(DueTimer)
    /// The agent's append is durable.
    case committed(AgentBatch, WritePurpose, Appended)
    /// The same for text, which is written as it comes.
    case textCommitted(AgentBatch, Appended)
    /// The agent's append yielded to earlier input, and is not in the log.
    case yielded(WritePurpose)
    /// The agent's append is not in the log, and never will be.
    case refused(EpochClaim, ChannelError)
    case textRefused(EpochClaim, ChannelError)
    /// An event of the turn that runs in that epoch; one of an earlier epoch has no meaning any more.
    case turn(epoch: UInt64, TurnEvent)
    /// The turn has waited long enough after a crash.
    case pauseOver(turn: UInt64)
    case alarm(AgentAlarm)
    /// Others wait for room in memory.
    case makeRoom
    /// There is the room that it asked for.
    case hasRoom
    /// Memory has been left, as it asked for.
    case rested
    /// It could not leave: something was delivered to it meanwhile.
    case stayed
    /// Its channel was deleted.
    case deleted
}

/// An event of the running turn.
enum TurnEvent: Sendable {
    // The program.
    /// It asks for a step.
    /// - Parameter isKnown: The journal has it.
    case asked(StepRequest, isKnown: Bool)
    /// It has cancelled the task that waits for the step.
    case gaveUp(path: String)
    case emitted(NewEntry)
    /// No task can use the scope any more, which gave out these names.
    case scopeEnded(String, Scope.Names)
    /// It is not the one that the journal is of.
    case differs(TurnError, source: String, request: StepRequest? = nil)
    case ended(TurnMachine.Outcome)
    /// All that was to be compensated has been tried.
    case compensated

    // The events that its own actions ask for.
    case give(Journal.Completion)
    case release
    case report
    case checkOutside
    case resume(path: String, StepOutcome, at: Timestamp)
    case cancelled(JSON, at: Timestamp)

    // Its steps.
    case bodyEnded(path: String, attempt: UInt32, Result<JSON, StepFailure>)
    case modelEnded(path: String, attempt: UInt32, ModelAttempt.End)
    /// Whether the model can continue from a text has been found out.
    case probed(path: String, attempt: UInt32, SavedText, continues: Bool)
    /// The pause before an attempt is over.
    case retry(path: String, attempt: UInt32, SavedText)
    /// The end of a step that gave way is tried again.
    case tryEnd(StepEnd)
}

/// An alarm that an agent has asked for, once for each kind.
enum AgentAlarm: Sendable {
    case idle
    /// Right behind the current delivery: every delivery keeps the agent in memory.
    case room
    case waitingMark
}

/// The state that decides when an agent is passivated.
struct AgentRest: Sendable {
    var lastActive = Timestamp(milliseconds: 0)
    /// The alarms that have been set.
    var alarms: Set<AgentAlarm> = []
    /// Own appends that have been submitted and not yet answered. While there is one, the agent stays in memory: loaded again from the log, it
    /// would decide the same entries a second time.
    var inFlight = 0
}
