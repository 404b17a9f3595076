internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// An agent as a value: its undecided input, the turn that is open, and what is on its way to the log.
///
/// ``handle(_:_:)`` is its only way to decide: it takes an event and returns the actions. It has no clock, lock, thread or connection;
/// ``AgentDriver`` carries its actions out, in their order. It reads only through an ``AgentView``: entries of its own log, which do not change, and
/// the current state of the node.
struct AgentMachine {
    let identity: AgentIdentity
    /// As it was declared when the last turn began, or when it came into memory.
    var agent: AgentTraits
    /// `nil` until it has been read from the log.
    var record: AgentRecord?
    var phase = Phase.idle
    /// A decision is on its way to the log that nothing else may overtake: a turn begins, ends or halts, the agent closes, input is decided.
    var isWriting = false
    /// The room of the open turn, or the next one.
    var room = Room.none
    /// Undecided entries in log order.
    var inbox = Inbox()
    /// Every input up to here is in the inbox or decided.
    var seen: UInt64 = 0
    /// The turn and inbox version that conditions were last checked against.
    var conditionsHeld: (turn: UInt64?, version: Int)?
    /// Timers that were due at a moment when it was not known what they mean.
    var deferredTimers: [DueTimer] = []
    var rest = AgentRest()
    var actions: [AgentAction] = []

    enum Phase {
        /// No turn is open.
        case idle
        case running(TurnRun)
        /// A turn is open that no program runs.
        indirect case halted(Halt)
        /// It was passivated.
        case gone
    }

    /// Memory for a turn, of what all turns have together.
    enum Room {
        case none
        /// There is none yet.
        case asked
        case held
    }

    init(_ identity: AgentIdentity, _ agent: AgentTraits) { (self.identity, self.agent) = (identity, agent) }
}

/// The identity of an agent, and where it runs.
struct AgentIdentity: Sendable {
    /// Its channel's.
    var name: String
    var id: ChannelID
    /// What `turn.started` names as the process.
    var node: String
    var build: String
}

/// The traits of an agent's declaration that decisions depend on.
struct AgentTraits: Sendable {
    var policy: ConcurrentInput
    var definition: AgentDefinition?
}

/// The log's record of an agent between its turns.
struct AgentRecord: Sendable {
    var epoch: UInt64 = 0
    var saved: JSON?
    /// The offset of the entry that ended the last turn.
    var lastEnd: UInt64 = 0
    /// The input of that turn.
    var lastTurn: UInt64?

    mutating func ended(_ turn: UInt64, at offset: UInt64) { (lastTurn, lastEnd) = (turn, offset) }
}

/// An entry on its way to be decided.
struct InboxItem: Sendable {
    var offset: UInt64
    var kind: EntryKind
    var at: Timestamp
    var body: EntryMembers

    /// The message in the record of a step whose request it has joined.
    var steer: JSON { InboxItem.steer(offset, body) }

    static func steer(_ offset: UInt64, _ body: EntryMembers) -> JSON {
        ["offset": .string(Offset(offset).token), "text": .string(body.messageText ?? "")]
    }
}

// MARK: - What happens

extension AgentMachine {
    /// Decides what follows from an event.
    mutating func handle(_ event: AgentEvent, _ view: any AgentView) -> [AgentAction] {
        switch event {
        case .look: perform(view) { _ in }
        case .input(let offset): perform(view) { try $0.takeInput(upTo: offset, view) }
        case .timerDue(let timer): perform(view) { $0.fire(timer, view) }
        case .committed(let batch, let purpose, let appended):
            rest.inFlight -= 1
            committed(batch, appended, view) { $0.committed(purpose, appended, view) }
        case .textCommitted(let batch, let appended): committed(batch, appended, view) { _ in }
        case .yielded(let purpose):
            rest.inFlight -= 1
            perform(view) {
                try $0.takeInput(upTo: view.head, view)
                $0.yielded(purpose, view)
            }
        case .refused(let claim, let error):
            rest.inFlight -= 1
            refused(claim, error, view)
        case .textRefused(let claim, let error): refused(claim, error, view)
        case .turn(let epoch, let event): if run?.epoch == epoch { turn(event, view) }
        case .pauseOver(let turn): perform(view) { $0.pauseIsOver(turn) }
        case .alarm(let alarm): rang(alarm, view)
        case .makeRoom: restIfIdle(view)
        case .hasRoom: perform(view) { $0.room = .held }
        case .rested: rested()
        case .stayed: scheduleIdleCheck(view)
        case .deleted: leave()
        }
        defer { actions = [] }
        return actions
    }

    /// Runs `body` with the agent loaded, and then does all that can be done; an unreadable log stops this agent, not the process.
    mutating func perform(_ view: any AgentView, _ body: (inout AgentMachine) throws -> Void) {
        guard !isGone else { return }
        rest.lastActive = view.now
        do {
            if record == nil { try load(view) }
            try body(&self)
            fireDeferred(view)
            react(view)
            try advance(view)
            releaseRoom()
        } catch {
            return unreadable(error)
        }
        scheduleIdleCheck(view)
    }

    private mutating func committed(
        _ batch: AgentBatch, _ appended: Appended, _ view: any AgentView, _ next: (inout AgentMachine) -> Void
    ) {
        if case .takes(let epoch) = batch.epoch { record?.epoch = epoch + 1 }
        worked(batch.entries, appended)
        next(&self)
        parkIfOverworked(view)
    }

    private mutating func refused(_ claim: EpochClaim, _ error: ChannelError, _ view: any AgentView) {
        guard !isGone else { return }
        // The rest of a turn that was halted meanwhile is of no use, and no sign that the agent has another owner.
        if case .holds(let epoch) = claim, epoch != self.epoch { return }
        // An unreadable entry may be readable soon.
        if AgentMachine.readErrors.contains(error.code) { return unreadable(error) }
        // The log going down is said once, by the server; and a deletion that ends what runs is what was asked for.
        if error.code != LogError.Code.closed.text, !view.isDeleted { actions.append(.notice(.fenced(code: error.code))) }
        leave()
    }

    private static let readErrors = [LogError.Code.damaged.text, LogError.Code.inaccessible.text]

    /// The log cannot be read: this agent stops, and is tried again later, because what is in its inbox has been acknowledged.
    mutating func unreadable(_ error: any Error) {
        guard !isGone else { return }
        actions.append(.noteStopped)
        // At once they would bring it back to the entries it could not read.
        let timers = deferredTimers
        deferredTimers = []
        leave()
        actions.append(.tryAgainLater(error, timers))
    }
}

// MARK: - What it is

extension AgentMachine {
    var isGone: Bool { if case .gone = phase { true } else { false } }

    var epoch: UInt64 { record?.epoch ?? 0 }

    /// The turn that runs.
    var run: TurnRun? {
        get { if case .running(let run) = phase { run } else { nil } }
        _modify {
            var taken: TurnRun?
            if case .running(let run) = phase {
                taken = run
                phase = .idle  // So that it is held once, and changed in place.
            }
            defer { if let taken { phase = .running(taken) } }
            yield &taken
        }
    }

    var halt: Halt? { if case .halted(let halt) = phase { halt } else { nil } }

    /// The turn that has begun and not ended, whether or not its program runs.
    var openTurn: UInt64? { run?.turn ?? halt?.turn }

    /// Goes over to another phase, unless it was passivated.
    mutating func go(to phase: Phase) { if !isGone { self.phase = phase } }

    /// Whether the turn of that epoch runs.
    func isCurrent(_ epoch: UInt64) -> Bool { run?.epoch == epoch }

    mutating func remove(_ item: InboxItem) { inbox.remove(item.offset) }

    /// Returns the entry with its body. An unreadable one is tried again later, by another activation.
    mutating func item(_ offset: UInt64, _ view: any AgentView) -> InboxItem? {
        do { return try view.item(at: offset) } catch {
            unreadable(error)
            return nil
        }
    }

    // MARK: Actions

    /// Appends a batch. It gives way to what has not been seen with it in view.
    mutating func write(_ batch: AgentBatch, for purpose: WritePurpose = .record) {
        var batch = batch
        if batch.considered == nil { batch.considered = seen }
        rest.inFlight += 1
        actions.append(.write(batch, purpose))
    }

    /// The end of a step that no attempt brought about.
    static func failed(_ turn: UInt64, _ path: String, _ failure: StepFailure) -> NewEntry {
        NewEntry(.stepFailed, Position(turn: turn, step: path), ("error", failure.journal), ("final", true))
    }

    static func receipt(
        _ offset: UInt64, _ body: EntryMembers, _ outcome: String, turn: UInt64? = nil, step: String = "", reason: String? = nil
    ) -> NewEntry {
        let token = Offset(offset).token
        let members = NewEntry.join([
            ("of", .string(token)), ("id", body["id"] ?? .string(token)), ("state", .string(outcome)),
            ("reason", reason.map { .string($0) }),
        ])
        return NewEntry(.receipt, turn.map { Position(turn: $0, step: step) }, members: members, hasID: true)
    }
}

// MARK: - Coming into memory

extension AgentMachine {
    private mutating func load(_ view: any AgentView) throws {
        let loaded = try view.load()
        seen = loaded.head
        for entry in loaded.inbox { inbox.insert(entry) }
        record = loaded.record
        if let turn = loaded.turn { try takeUp(turn, loaded, view) }
    }

    mutating func takeInput(upTo offset: UInt64, _ view: any AgentView) throws {
        guard offset > seen else { return }
        for entry in try view.inbox(after: seen, upTo: offset) { inbox.insert(entry) }
        seen = offset
    }
}
