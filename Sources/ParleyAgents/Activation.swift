internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// An agent in memory: takes its inbox entry by entry, runs a turn for each message, and leaves when there is nothing to do.
final class Activation: @unchecked Sendable {  // Guard: `state` is touched on the lane only; the rest is immutable.
    let runtime: AgentRuntime
    let channel: Channel
    let agent: AnyAgent
    let lane: Lane
    var state = State()
    /// Every input up to here is in the inbox or decided. Written on the lane, read by whoever ends a step.
    let seen = Atomic<UInt64>(0)
    /// The offsets of the first starts of steps under way. Written where the batches are.
    let startedAt = Mutex<[String: UInt64]>([:])

    struct State {
        var isLoaded = false
        var epoch: UInt64 = 0
        var saved: JSON?
        /// Undecided entries in log order.
        var inbox: [InboxItem] = []
        /// The offset of the entry that ended the last turn.
        var lastEnd: UInt64 = 0
        /// The input of that turn.
        var lastTurn: UInt64?
        var core: TurnCore?
        /// The log says, or is about to, that the turn only waits.
        var isMarkedWaiting = false
        /// A turn or a closing is being written; nothing else may begin.
        var isBusy = false
        var isStalled = false
        /// That the turn is cancelled has been handed to the log.
        var isCancelling = false
        var isGone = false
        var history: [HistoryItem] = []
        var lastActive = Timestamp(milliseconds: 0)
        var isIdleCheckScheduled = false
        /// Timers that were due at a moment when it was not known what they mean.
        var deferredTimers: [DueTimer] = []
        var modelCalls: [String: ModelAttempt] = [:]
        var steered: [String: JSON] = [:]
        /// What earlier attempts of a model step have written, while the next one has nothing.
        var partials: [String: SavedText] = [:]
        var bodies: [String: Task<Void, Never>] = [:]
    }

    struct InboxItem {
        var offset: UInt64
        var kind: EntryKind
        var at: Timestamp
        var body: JSON
    }

    init(runtime: AgentRuntime, channel: Channel, agent: AnyAgent) {
        self.runtime = runtime
        self.channel = channel
        self.agent = agent
        lane = Lane(id: channel.id.number << 6 | UInt64(channel.id.partition), world: runtime.world)
    }

    var channelName: String { channel.name }
    var epoch: UInt64 { state.epoch }

    // MARK: What comes from outside

    /// New input is durable, or there may be some. Any thread.
    func wake(upTo offset: UInt64) {
        lane.deliver { self.perform { try self.takeInput(upTo: offset) } }
    }

    /// A timer is due. Any thread.
    func timerFired(_ timer: DueTimer) {
        lane.deliver {
            // Gone since: whoever is there now must know of it, or nobody would remove its row.
            if self.state.isGone {
                self.runtime.timerDue(self.channel.name, self.channel.id, timer)
            } else {
                self.perform { self.fire(timer) }
            }
        }
    }

    /// The process drains: models are let go of, with what they have written kept. Any thread.
    func drain() {
        lane.deliver {
            for call in self.state.modelCalls.values { call.stop(keepingLast: true) }
            self.state.modelCalls = [:]
        }
    }

    /// The channel was deleted: everything stops here.
    func deleted() {
        lane.deliver { self.leave() }
    }

    /// Runs `body` on the lane with the agent loaded; a log that cannot be read stops this agent, not the process.
    func perform(_ body: () throws -> Void) {
        guard !state.isGone else { return }
        state.lastActive = runtime.world.now
        do {
            if !state.isLoaded { try load() }
            try body()
            fireDeferred()
            react()
            try advance()
        } catch {
            Diagnostics.log(.error, "agent stopped", ["channel": channel.name, "reason": "\(error)"])
            leave()
            return
        }
        scheduleIdleCheck()
    }

    // MARK: Turns

    /// Takes the next entry of the inbox, if the agent is free.
    private func advance() throws {
        guard state.core == nil, !state.isBusy, !state.isStalled, !runtime.isDraining else { return }
        for item in state.inbox {
            guard case .failed(let reason) = condition(item) else { continue }
            remove(item)
            return decide(item, item.kind == .steer && reason == "turn_ended" ? "expired" : "rejected", reason: reason)
        }
        // A signal is kept until somebody waits for it.
        guard let first = state.inbox.first(where: { $0.kind != .signal }) else { return }
        // A close ends the agent after the turn before it: what queued behind that turn is not begun any more.
        if let close = state.inbox.first(where: { $0.kind == .close }), first.offset < state.lastEnd || first.offset == close.offset {
            return self.close(close)
        }
        remove(first)
        switch first.kind {
        case .message: begin(first)
        case .steer: begin(first)
        case .interrupt where first.body["text"] != nil: begin(first)
        case .approve, .deny: decide(first, "rejected", reason: decisionInLog(of: first) ?? "unknown_approval")
        default: decide(first, "rejected", reason: "turn_ended")
        }
    }

    var inbox: [InboxItem] { state.inbox }

    var lastTurn: UInt64? { state.lastTurn }

    func remove(_ item: InboxItem) { state.inbox.removeAll { $0.offset == item.offset } }

    private func begin(_ item: InboxItem) {
        state.isBusy = true
        let seed = runtime.world.random()
        let position = Position(turn: item.offset)
        let epoch = state.epoch
        let entries = [
            Activation.receipt(item.offset, item.body, "applied", turn: item.offset),
            NewEntry(
                .turnStarted, position, ("input", .string(Offset(item.offset).token)),
                ("seed", .string(hexadecimal(Activation.bytes(seed)))),
                ("epoch", .integer(Int64(epoch + 1))), ("node", .string(runtime.node)), ("build", .string(runtime.build))),
        ]
        append(entries, epoch: .takes(after: epoch), decides: [item.offset]) { stage, channel, _ in
            channel.move(to: .running, turn: item.offset, in: &stage)
        } then: { [self] appended in
            state.isBusy = false
            state.epoch = epoch + 1
            var journal = Journal()
            (journal.seed, journal.startedAt) = (seed, appended.at)
            run(item.offset, input: item.body, journal)
        }
    }

    func recover(_ turn: UInt64, _ status: AgentStatus) throws {
        let journal = try Journal(runtime.channels, channel, turn: turn)
        let input = try runtime.channels.entry(channel, at: turn) { $0.body } ?? .null
        state.isBusy = true
        let epoch = state.epoch
        // A turn that left memory to wait comes back as a matter of course; any other was cut off.
        let entries =
            status == .waiting
            ? []
            : [
                NewEntry(
                    .supervision, Position(turn: turn), ("cause", "process_ended"), ("action", "resume"),
                    ("restarts", .integer(Int64(journal.restarts + 1))))
            ]
        append(entries, epoch: .takes(after: epoch)) { stage, channel, _ in
            channel.move(to: .running, turn: turn, in: &stage)
        } then: { [self] _ in
            state.isBusy = false
            state.epoch = epoch + 1
            run(turn, input: input, journal)
        }
    }

    private func run(_ turn: UInt64, input: JSON, _ journal: Journal) {
        let core = TurnCore(owner: self, lane: lane, turn: turn, epoch: state.epoch, journal: journal, history: state.history)
        state.core = core
        let (agent, saved) = (agent, state.saved)
        core.start({ turn in try await agent.receive(input, turn, saved) }, end: { [self] result in end(core, input, result) })
    }

    private func end(_ core: TurnCore, _ input: JSON, _ result: Result<(output: JSON, state: JSON), any Error>) {
        // Being cancelled, the turn comes here again once that is durable.
        guard isCurrent(core), !isCancelling || core.cancellation != nil, core.claimEnd(TurnCore.turnEnd) else { return }
        let position = Position(turn: core.turn)
        let completed = try? result.get()
        var said = completed?.output.plainText
        var entries: [NewEntry]
        switch result {
        case _ where !core.failedCompensations.isEmpty:
            let paths = core.failedCompensations.map { JSON.string($0) }
            let failure = StepFailure(
                code: "compensation_failed", message: "not everything could be taken back", retryable: false,
                data: ["steps": .array(paths), "cancelled": .bool(core.cancellation != nil)])
            entries = [NewEntry(.turnFailed, position, ("error", failure.journal))]
        case _ where core.cancellation != nil:
            entries = [NewEntry(.turnCancelled, position, ("reason", core.cancellation == .null ? nil : core.cancellation))]
        case .success(let (output, _)): entries = [NewEntry(.turnCompleted, position, ("output", output))]
        case .failure(let error as Interrupted):
            said = error.partial
            entries = [NewEntry(.turnInterrupted, position, ("output", .string(error.partial)))]
        case .failure(let error): entries = [NewEntry(.turnFailed, position, ("error", StepFailure(error).journal))]
        }
        // Whoever wanted to interrupt finds nothing left to interrupt; with a text it becomes the next message.
        let late = state.inbox.filter {
            $0.kind == .interrupt && condition($0) == .holds && ($0.body["text"] == nil || $0.body["if_turn"] != nil)
        }
        entries += late.map { Activation.receipt($0.offset, $0.body, "rejected", reason: "turn_ended") }
        Failpoint.pass("turn.end")
        let isCompleted = entries[0].kind == .turnCompleted
        if core.cancellation != nil { said = nil }
        endTurn(
            core, entries, decides: late.map(\.offset), state: isCompleted ? completed?.state : nil,
            said: said.map { (input.messageText, $0) }
        ) { [self] in
            end(core, input, result)
        }
    }

    /// Commits the end of a turn; the first entry that ends one counts. An entry that wants to stop the turn and stands before this one is
    /// decided first, and then it is tried `again`.
    private func endTurn(
        _ core: TurnCore, _ entries: [NewEntry], decides: [UInt64], state newState: JSON?, said: (input: String, output: String)?,
        again: @escaping @Sendable () -> Void
    ) {
        state.isBusy = true
        let end = entries.firstIndex { $0.kind.endsTurn }!
        append(entries, epoch: .holds(core.epoch), decides: decides, yieldsTo: [.interrupt, .cancel]) {
            stage, channel, offsets in
            if let newState, newState != .object([]) { stage.put(.states, channel.id.key(offsets[end]), newState.bytes) }
            channel.move(to: .idle, turn: nil, in: &stage)
        } yield: { [self] in
            state.isBusy = false
            core.withdrawEnd(TurnCore.turnEnd)
            react()
            if !state.isBusy { again() }
        } then: { [self] appended in
            (state.isBusy, state.isCancelling) = (false, false)
            core.fence(Fenced())
            stopSteps()
            state.core = nil
            (state.lastEnd, state.lastTurn) = (appended.offsets[end], core.turn)
            if let newState { state.saved = newState }
            if let said { remember(HistoryItem(input: said.input, output: said.output, offsets: core.turn...appended.offsets[end])) }
            for item in state.inbox where decides.contains(item.offset) { remove(item) }
            runtime.turnEnded(channel.name, core.turn)
            for offset in decides { runtime.turnEnded(channel.name, offset) }
            perform {}
        }
    }

    private func close(_ item: InboxItem) {
        state.isBusy = true
        let rest = state.inbox.filter { $0.offset != item.offset }
        state.inbox = []
        var entries = [Activation.receipt(item.offset, item.body, "applied")]
        entries += rest.map { Activation.receipt($0.offset, $0.body, "rejected", reason: "closing") }
        entries.append(NewEntry(.agentClosed, nil, ("reason", "closed")))
        append(
            entries, epoch: .holds(state.epoch), decides: [item.offset] + rest.map(\.offset), closes: true,
            yieldsTo: Set(EntryKind.allCases.filter(\.isInput))
        ) {
            stage, channel, _ in
            channel.move(to: .closed, turn: nil, in: &stage)
        } yield: { [self] in
            // What came meanwhile must get its receipt too.
            state.isBusy = false
            state.inbox = ([item] + rest + state.inbox).sorted { $0.offset < $1.offset }
        } then: { [self] _ in
            leave()
        }
    }

    private func decide(_ item: InboxItem, _ outcome: String, reason: String) {
        state.isBusy = true
        let receipt = Activation.receipt(item.offset, item.body, outcome, reason: reason)
        append(
            [receipt], epoch: .holds(state.epoch), decides: [item.offset],
            then: { [self] _ in
                state.isBusy = false
                runtime.turnEnded(channel.name, item.offset)
                perform {}
            })
    }

    static func receipt(
        _ offset: UInt64, _ body: JSON, _ outcome: String, turn: UInt64? = nil, step: String = "", reason: String? = nil
    ) -> NewEntry {
        let token = Offset(offset).token
        let members = NewEntry.join([
            ("of", .string(token)), ("id", body["id"] ?? .string(token)), ("state", .string(outcome)),
            ("reason", reason.map { .string($0) }),
        ])
        return NewEntry(.receipt, turn.map { Position(turn: $0, step: step) }, members: members, hasID: true)
    }

    private static func bytes(_ value: UInt64) -> Bytes {
        var bytes = Bytes()
        bytes.append(bigEndian: value)
        return bytes
    }

    // MARK: Writing

    /// Appends as the agent's owner. `then` runs on the lane once it is durable; refused, the agent leaves memory: somebody else owns it.
    ///
    /// It gives way to undecided entries of the kinds in `yieldsTo` behind `yieldsAfter`, by default to those that the agent has not seen yet:
    /// they are taken in, and `yield` is called.
    func append(
        _ entries: [NewEntry], epoch: EpochClaim, decides: [UInt64] = [], closes: Bool = false, yieldsTo: Set<EntryKind> = [],
        yieldsAfter: UInt64? = nil, rows: (@Sendable (inout Stage, Channel, [UInt64]) -> Void)? = nil, yield: (@Sendable () -> Void)? = nil,
        then: @escaping @Sendable (Appended) -> Void = { _ in }
    ) {
        let append = Append(runtime.channels, to: channel.name, entries) { [self] result in
            lane.deliver {
                switch result {
                case .success(let appended): then(appended)
                case .failure(let error) where error.code == ChannelError.undecided: self.yields(yield)
                case .failure(let error): self.refused(error)
                }
            }
        }
        append.epoch = epoch
        append.id = channel.id
        append.decides = decides
        append.closes = closes
        append.yieldsTo = yieldsTo
        append.yieldsAfter = yieldsAfter ?? upToSeen
        append.rows = rows
        append.submit()
    }

    /// Every input up to here is in the inbox or decided. Any thread.
    var upToSeen: UInt64 { seen.load(ordering: .relaxed) }

    /// An entry that came first must be decided first; then whoever gave way tries again.
    private func yields(_ again: (@Sendable () -> Void)?) {
        perform {
            try takeInput(upTo: channel.tail.head)
            again?()
        }
    }

    private func refused(_ error: ChannelError) {
        guard !state.isGone else { return }
        // The log going down is said once, by the server.
        if error.code != LogError.Code.closed.text {
            Diagnostics.log(.warning, "agent fenced", ["channel": channel.name, "code": error.code])
        }
        leave()
    }

    // MARK: Steps under way

    /// The turn under way, if it is `core` still.
    func isCurrent(_ core: TurnCore) -> Bool { state.core === core && !core.isFenced && !state.isGone }

    var core: TurnCore? { state.core }

    var isCancelling: Bool {
        get { state.isCancelling }
        set { state.isCancelling = newValue }
    }

    /// Whether the turn's start or its taking up again is being written.
    var isBeginning: Bool { state.isBusy || state.isStalled }

    func isUnderWay(_ path: String, _ call: ModelAttempt) { state.modelCalls[path] = call }
    func isUnderWay(_ path: String, _ body: Task<Void, Never>) { state.bodies[path] = body }

    func isOver(_ path: String) {
        state.modelCalls[path] = nil
        state.bodies[path] = nil
        state.steered[path] = nil
        state.partials[path] = nil
    }

    func keeps(_ path: String, _ partial: SavedText) { if !partial.text.isEmpty { state.partials[path] = partial } }

    func partial(_ path: String) -> String { state.partials[path]?.text.text ?? "" }

    func modelCall(_ path: String) -> ModelAttempt? { state.modelCalls[path] }

    /// What joined the request of a model step under way, as its end has it.
    func steered(_ path: String) -> JSON? { state.steered[path] }

    func isSteered(_ path: String, by steers: JSON?) { state.steered[path] = steers }

    /// Stops what a step runs; text that was held back is appended.
    func stop(_ path: String) {
        state.modelCalls[path]?.stop(keepingLast: true)
        state.bodies[path]?.cancel()
        isOver(path)
    }

    /// The turn has lost its right to run: whatever its steps still do is of no use.
    func stopSteps() {
        // Sorted, so that a simulated run follows from its seed.
        for (_, call) in state.modelCalls.sorted(by: { $0.key < $1.key }) { call.stop(keepingLast: false) }
        for (_, body) in state.bodies.sorted(by: { $0.key < $1.key }) { body.cancel() }
        state.modelCalls = [:]
        state.bodies = [:]
    }

    func markStalled() { state.isStalled = true }
}

extension JSON {
    /// The text of a message, or its data as JSON.
    var messageText: String { self["text"]?.string ?? self["data"].map(\.text) ?? "" }

    /// A string as it is, anything else as JSON.
    var plainText: String { string ?? text }
}

extension HistoryItem {
    var byteCount: Int { input.utf8.count + output.utf8.count + 64 }
}
