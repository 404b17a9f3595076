internal import ParleyChannels
internal import ParleySystem

/// What a batch is written for: what follows from it once it is durable.
enum WritePurpose: Sendable {
    /// Nothing follows from it.
    case record
    case text(ModelAttempt)

    case turnStarted(TurnStart)
    case turnTakenUp(TurnStart)
    case turnEnded(TurnEnd)
    /// The turn only waits; the agent was about to leave memory, or the mark is for those who look.
    case turnWaits(TurnCore, isLeaving: Bool)

    case stepStarted(TurnCore, StepRequest, attempt: UInt32)
    case waitStarted(TurnCore, DueTimer?, Follow?)
    case attemptFailed(FailedAttempt)
    case stepEnded(StepEnd)
    case stepsEnded(StepEnds)

    /// Input was decided while nothing else could begin.
    case decided([UInt64])
    /// Input was decided beside what else the agent does.
    case rejected(UInt64)

    /// The turn stalled, or was parked.
    case turnHalted(UInt64)
    case haltedApprovalDecided([DueTimer])
    /// An open turn was ended without its program.
    case haltedTurnEnded(HaltedEnd, decided: UInt64?)
    /// - Parameter before: The inbox as it was.
    case agentClosed(before: Inbox)
}

/// A turn that begins, or runs again.
struct TurnStart: Sendable {
    /// The offset of its input.
    var turn: UInt64
    var input: EntryMembers
    var journal: Journal
    var receive: AnyAgent.Receive
    /// The end of the turn before it, when it is written with the start.
    var end: HaltedEnd?
}

/// The end of a turn whose program has returned or thrown.
struct TurnEnd: Sendable {
    var core: TurnCore
    var result: TurnMachine.Outcome
    /// Which of the batch's entries ends the turn.
    var entry: Int
    /// What is saved with it.
    var state: JSON?
    /// Input that is decided with it.
    var decides: [UInt64]
    var left: OpenSteps
}

/// The end of a step that no entry from outside ended.
struct StepEnd: Sendable {
    var core: TurnCore
    var request: StepRequest
    var entries: [NewEntry]
    var outcome: StepOutcome
    /// Undecided entries of these kinds are decided first.
    var yieldsTo = Activation.stopping
    /// Highest inbox offset that has been decided, or left alone, with this step open. What was seen earlier may have met nothing to stop, so
    /// the first try yields to all of it.
    var considered: UInt64 = 0
    var rows: [AgentRow] = []
    /// It needed no memory while it waited: its end also says that the turn runs again.
    var isResting = false
    /// It has taken the mark that the turn waits.
    var hasTakenMark = false
}

/// The ends of steps that an entry from outside ended.
struct StepEnds: Sendable {
    var core: TurnCore
    var ends: [(request: StepRequest, outcome: StepOutcome)]
    /// Why the turn is cancelled with it; `nil`: it is not.
    var cancellation: JSON?
}

/// An attempt of a step that another one follows.
struct FailedAttempt: Sendable {
    var core: TurnCore
    var request: StepRequest
    var attempt: UInt32
    var failure: StepFailure
    var pause: Duration
    var retryAt: Timestamp
    /// What the next one goes on from.
    var saved: SavedText
}

extension Activation {
    /// Goes on from what has become durable. On the lane.
    func committed(_ purpose: WritePurpose, _ appended: Appended) {
        switch purpose {
        case .record: break
        case .text(let attempt): attempt.committed()
        case .turnStarted(let start): turnStarted(start, appended)
        case .turnTakenUp(let start):
            state.isBusy = false
            perform { try run(start) }
        case .turnEnded(let end): turnEnded(end, appended)
        case .turnWaits(let core, let isLeaving): turnWaits(core, isLeaving: isLeaving)
        case .stepStarted(let core, let request, let attempt): stepStarted(core, request, attempt, at: appended.offsets[0])
        case .waitStarted(let core, let timer, let follow): waitStarted(core, timer, follow)
        case .attemptFailed(let failed): attemptFailed(failed)
        case .stepEnded(let end): stepEnded(end, at: appended.at)
        case .stepsEnded(let ends): stepsEnded(ends, at: appended.at)
        case .decided(let offsets):
            state.isBusy = false
            for offset in offsets { runtime.turnEnded(channel.name, offset) }
            perform {}
        case .rejected(let offset): runtime.turnEnded(channel.name, offset)
        case .turnHalted(let turn):
            state.isBusy = false
            abandonProgram()
            runtime.turnEnded(channel.name, turn)
            perform {}
        case .haltedApprovalDecided(let timers):
            for timer in timers { runtime.timers.settled(timer.key(channel.id)) }
            state.isBusy = false
            perform {}
        case .haltedTurnEnded(let end, let decided):
            haltedTurnEnded(end, at: appended.offsets.last!)
            if let decided { runtime.turnEnded(channel.name, decided) }
            perform {}
        case .agentClosed: leave()
        }
    }

    /// Tries again, the input that came first having been taken in. On the lane.
    func yielded(_ purpose: WritePurpose) {
        switch purpose {
        case .turnEnded(let end): turnEndYielded(end)
        case .stepEnded(let end): stepEndYielded(end)
        case .agentClosed(let before):
            // What came meanwhile must get its receipt too.
            state.isBusy = false
            for offset in before.offsets { state.inbox.insert(before[offset]!) }
        default: preconditionFailure("a batch for \(purpose) yields to nothing")
        }
    }
}
