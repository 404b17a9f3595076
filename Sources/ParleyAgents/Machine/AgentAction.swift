internal import ParleyChannels
internal import ParleySystem

/// The actions that follow from an event, in their order. What is large and rare is behind a reference, so that the rest is passed on for less.
enum AgentAction: Sendable {
    /// Append, and tell the agent: ``AgentEvent/committed(_:_:_:)``, ``AgentEvent/yielded(_:)`` or ``AgentEvent/refused(_:_:)``.
    case write(AgentBatch, WritePurpose)

    // The program.
    /// Start it from its top.
    indirect case start(TurnStart, epoch: UInt64, history: [HistoryItem], saved: JSON?)
    /// Resume it where it waits for the step; `now` is the turn's time from here on.
    case give(path: String, StepOutcome, now: Timestamp)
    case cancelProgram(now: Timestamp)
    /// Run the compensations, one after another.
    case compensate
    /// It has lost its right to run: all of its waits throw.
    indirect case fence(any Error, left: TurnMachine)

    // Steps.
    case runBody(path: String, attempt: UInt32)
    indirect case callModel(ModelRun)
    /// Find out whether the model can continue from a text.
    case probe(path: String, attempt: UInt32, SavedText)
    /// Stop what the step runs; text that was held back is appended.
    case stop(path: String)
    /// It was begun before a crash, by the entry of that offset.
    case reopened(path: String, startedAt: UInt64)
    /// The step's work is over.
    case forget(path: String)
    /// The results of the steps' work are no longer wanted.
    case stopAll

    // Coming back.
    /// Tell it these, one by one with everything that can run in between, before anything else is delivered.
    case next([AgentEvent])
    /// Tell it behind what has been delivered.
    case later(AgentEvent)
    case at(Timestamp, AgentEvent)

    // The node.
    case timerSet(Timestamp)
    /// The row of a timer is gone.
    case timerSettled(DueTimer)
    /// Remove a row that nothing waits for.
    case removeTimer(DueTimer)
    /// It is for the next activation.
    case timerAgain(DueTimer)
    /// Notify it of entries behind that offset of the channel that it follows: up to there it has nothing to read.
    case followAgain(FollowKey, of: ChannelID, after: UInt64)
    /// The turn of that input has ended, or was halted.
    case turnEnded(UInt64)
    case turnFailed(StepFailure)
    case notice(AgentNotice)

    // Memory.
    /// Take room for a turn, at once or when there is some: ``AgentEvent/hasRoom``.
    case takeRoom(bytes: Int)
    case releaseRoom
    /// Leave it, unless something has been delivered: ``AgentEvent/rested`` or ``AgentEvent/stayed``.
    case rest
    case leave
    /// The turn that an earlier process, or activation, left open runs again.
    case noteTakenUp
    /// Have the next activation know that it was a log which could not be read.
    case noteStopped
    /// Bring the agent back after a pause, and with it the timers that fired for it.
    case tryAgainLater(any Error, [DueTimer])
}

/// A notice for the process's own log.
enum AgentNotice: Sendable {
    case fenced(code: String)
    case parked(ParkReason, others: [String])
    case stalled(TurnError, source: String?)
    case waitsOutside(turn: UInt64, next: String)
}

/// One call of a model.
struct ModelRun: Sendable {
    var path: String
    var attempt: UInt32
    var request: ModelRequest
    /// The text that it continues.
    var saved: SavedText
    /// All that the call may still write was written before the process ended.
    var isExhausted: Bool { !saved.text.isEmpty && request.options.maxTokens == 0 }
}
