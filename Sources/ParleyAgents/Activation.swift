internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// An agent in memory: takes its inbox entry by entry, runs a turn for each message, and leaves when there is nothing to do.
final class Activation: @unchecked Sendable {  // Guard: `state` and `agent` are touched on the lane only; the rest is immutable.
    let runtime: AgentRuntime
    let channel: Channel
    /// As it was declared when the last turn began, or when it came into memory.
    private(set) var agent: AnyAgent
    let lane: Lane
    let stepExecutor: StepExecutor
    var state = State()
    /// Every input up to here is in the inbox or decided. Written on the lane, read by whoever ends a step.
    let seen = Atomic<UInt64>(0)
    /// Own appends that have been submitted and not yet answered. While there is one, the agent stays in memory: loaded again from the log, it
    /// would decide the same entries a second time.
    let appendsInFlight = Atomic<Int>(0)
    /// The offsets of the first starts of steps under way. Written where the batches are.
    let startedAt = Mutex<[String: UInt64]>([:])

    struct State {
        var isLoaded = false
        var epoch: UInt64 = 0
        var saved: JSON?
        /// Undecided entries in log order.
        var inbox = Inbox()
        /// What the conditions of entries were last held against.
        var conditionsHeld: (turn: UInt64?, version: Int)?
        /// Up to where each open wait has looked at signals of its name.
        var scans: [String: SignalScan] = [:]
        /// There are signals that an open wait has not looked at yet.
        var hasMoreToScan = false
        /// The offset of the entry that ended the last turn.
        var lastEnd: UInt64 = 0
        /// The input of that turn.
        var lastTurn: UInt64?
        var core: TurnCore?
        /// The log says, or is about to, that the turn only waits.
        var isMarkedWaiting = false
        var isMarkScheduled = false
        /// A turn or a closing is being written; nothing else may begin.
        var isBusy = false
        /// Why no program runs although a turn is open.
        var halt: Halt?
        /// How much the turn has done since it first crashed; 0: it never did.
        var workSinceCrash = 0
        /// Where the last of that stands.
        var workAt: UInt64 = 0
        /// That the turn is cancelled has been handed to the log.
        var isCancelling = false
        var isGone = false
        /// The turns before the next one, once one has begun here.
        var conversation: Conversation?
        var lastActive = Timestamp(milliseconds: 0)
        var isIdleCheckScheduled = false
        /// It is about to see whether it can leave at once.
        var isMakingRoom = false
        /// Timers that were due at a moment when it was not known what they mean.
        var deferredTimers: [DueTimer] = []
        var modelCalls: [String: ModelAttempt] = [:]
        var steered: [String: JSON] = [:]
        /// What earlier attempts of a model step have written, while the next one has nothing.
        var partials: [String: SavedText] = [:]
        var bodies: [String: Task<Void, Never>] = [:]
        /// The incarnations of the channels that open steps follow.
        var followed: [String: String] = [:]
        /// What the turn holds of the memory for turns.
        var share: TurnMemory.Share?
        /// The next turn waits for room there.
        var waitsForMemory = false
        /// What answers of the turn hold that have ended.
        var answers: [AnswerTexts.Share] = []
    }

    /// An entry on its way to be decided.
    struct InboxItem {
        var offset: UInt64
        var kind: EntryKind
        var at: Timestamp
        var body: EntryMembers
    }

    init(runtime: AgentRuntime, channel: Channel, agent: AnyAgent) {
        self.runtime = runtime
        self.channel = channel
        self.agent = agent
        let number = channel.id.number << 6 | UInt64(channel.id.partition)
        lane = Lane(id: number, world: runtime.world)
        stepExecutor = StepExecutor(world: runtime.world, owner: number)
    }

    var channelName: String { channel.name }
    var epoch: UInt64 { state.epoch }

    // MARK: What comes from outside

    /// Does what it is called for, on the lane. Any thread.
    func take(_ call: AgentDirectory.Call) {
        switch call {
        case .takeInput(let offset, _): wake(upTo: offset)
        case .wake: wake(upTo: 0)
        case .fire(let timer, _): timerFired(timer)
        }
    }

    /// New input is durable, or there may be some. Any thread.
    private func wake(upTo offset: UInt64) {
        lane.deliver {
            // Passivated since: the input needs another activation.
            if self.state.isGone {
                self.runtime.wakeAgain(self.channel)
            } else {
                self.perform { try self.takeInput(upTo: offset) }
            }
        }
    }

    /// A timer is due. Any thread.
    private func timerFired(_ timer: DueTimer) {
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
            if state.core == nil, !state.isBusy, state.halt == nil { state.share = nil }
        } catch {
            return stopped(error)
        }
        scheduleIdleCheck()
    }

    /// The log cannot be read: this agent stops, and is tried again later, because what is in its inbox has been acknowledged.
    func stopped(_ error: any Error) {
        runtime.noteStopped(channel.name)
        leave()
        // A log that is closed says so once, and the process ends with it.
        if (error as? LogError)?.code == .closed { return }
        Diagnostics.log(.error, "agent stopped", ["channel": channel.name, "reason": "\(error)"])
        runtime.wakeLater(channel)
    }

    // MARK: Turns

    /// Takes the next entry of the inbox, if the agent is free.
    private func advance() throws {
        guard state.core == nil, !state.isBusy, !runtime.isDraining else { return }
        guard state.halt == nil else { return try decideHalted() }
        if decideFailed() { return }
        // A signal is kept until something waits for it.
        guard !state.isGone, let first = state.inbox.first else { return }
        // A close ends the agent after the turn before it: what queued behind that turn does not begin any more.
        if let close = state.inbox.firstClose, first.offset < state.lastEnd || first.offset == close.offset {
            return self.close(close.offset)
        }
        guard try hasMemory(for: first), let item = item(first.offset) else { return }
        remove(item)
        switch item.kind {
        case .message, .steer: try begin(item)
        case .interrupt where first.row.hasText: try begin(item)
        case .approve, .deny: decide([(item, "rejected", try decisionInLog(of: item) ?? "unknown_approval")])
        case .resume: decide([(item, "rejected", "not_parked")])
        default: decide([(item, "rejected", "turn_ended")])
        }
    }

    /// Whether there is memory for what an entry begins. If not, the agent goes on once there is.
    private func hasMemory(for entry: Inbox.Entry) throws -> Bool {
        let beginsTurn = entry.kind == .message || entry.kind == .steer || entry.kind == .interrupt && entry.row.hasText
        guard beginsTurn, state.share == nil else { return true }
        guard !state.waitsForMemory else { return false }
        let conversation = try conversation(before: channel.tail.head + 1)
        state.share = runtime.turnMemory.take(Int(entry.row.byteCount) + conversation.byteCount) { [self] share in
            lane.deliver { [self] in
                (state.share, state.waitsForMemory) = (state.isGone ? nil : share, false)
                perform {}
            }
        }
        state.waitsForMemory = state.share == nil
        return !state.waitsForMemory
    }

    var inbox: Inbox { state.inbox }

    var lastTurn: UInt64? { state.lastTurn }

    var isBusy: Bool {
        get { state.isBusy }
        set { state.isBusy = newValue }
    }

    func remove(_ item: InboxItem) { state.inbox.remove(item.offset) }

    /// Begins a turn with an entry that was taken from the inbox.
    ///
    /// - Parameter end: The end of the turn before it, when the entry ends that as well: one batch, so that its receipt is true of both.
    func begin(_ item: InboxItem, after end: HaltedEnd? = nil) throws {
        agent = runtime.agent(ofKind: agent.kind) ?? agent
        let history = try conversation(before: channel.tail.head + 1).first ?? end?.turn ?? item.offset
        state.isBusy = true
        let seed = runtime.world.random()
        let epoch = state.epoch
        let entries =
            (end?.entries ?? []) + [
                Activation.receipt(item.offset, item.body, "applied", turn: item.offset),
                NewEntry(
                    .turnStarted, Position(turn: item.offset), ("input", .string(Offset(item.offset).token)),
                    ("seed", .string(hexadecimal(Activation.bytes(seed)))),
                    ("epoch", .integer(Int64(epoch + 1))), ("node", .string(runtime.node)), ("build", .string(runtime.build)),
                    ("history", .string(Offset(history).token)), ("definition", agent.definition.map { .string($0.sha256) })),
            ]
        let rows = (end?.open.rows(of: channel.id) ?? []) + [.status(.running, turn: item.offset)]
        let content = agent.definition.map { [AgentRow.content($0.content, digest: $0.digest)] } ?? []
        var journal = Journal()
        (journal.seed, journal.history) = (seed, history)
        write(
            AgentBatch(entries: entries, epoch: .takes(after: epoch), decides: [item.offset], rows: rows + content),
            for: .turnStarted(TurnStart(turn: item.offset, input: item.body, journal: journal, receive: agent.receive, end: end)))
    }

    func turnStarted(_ start: TurnStart, _ appended: Appended) {
        if let end = start.end { haltedTurnEnded(end, at: appended.offsets[end.entries.count - 1]) }
        state.isBusy = false
        var start = start
        (start.journal.startedAt, start.journal.started) = (appended.at, appended.offsets.last!)
        perform { try run(start) }
    }

    /// The completed turns before the entry at `offset`, as many as the agent's conversations use.
    private func conversation(before offset: UInt64) throws -> Conversation {
        var conversation =
            try state.conversation
            ?? Conversation.reading(runtime.channels, channel, before: offset, bytes: agent.historyBytes)
        try conversation.extend(runtime.channels, channel, upTo: offset - 1)
        conversation.trim(to: agent.historyBytes)
        state.conversation = runtime.conversations.keep(conversation)
        return conversation
    }

    /// The conversation that the turn began with.
    private func history(_ journal: Journal) throws -> [HistoryItem] {
        guard journal.started > 0 else { return [] }
        guard let first = journal.history else { return try conversation(before: journal.started).items }
        var conversation = state.conversation ?? Conversation(after: first - 1)
        try conversation.extend(runtime.channels, channel, upTo: journal.started - 1)
        state.conversation = runtime.conversations.keep(conversation)
        return conversation.from(first)
    }

    /// Runs an open turn again: `entries` say why, and decide what asked for it.
    func recover(_ turn: UInt64, _ journal: Journal, _ entries: [NewEntry] = [], decides: [UInt64] = []) throws {
        let input = try runtime.channels.entry(channel, at: turn) { EntryMembers($0.members) } ?? EntryMembers()
        let receive = try self.receive(of: journal)
        state.isBusy = true
        state.halt = nil
        write(
            AgentBatch(entries: entries, epoch: .takes(after: state.epoch), decides: decides, rows: [.status(.running, turn: turn)]),
            for: .turnTakenUp(TurnStart(turn: turn, input: input, journal: journal, receive: receive)))
    }

    func run(_ start: TurnStart) throws {
        let (turn, journal) = (start.turn, start.journal)
        let history = try history(journal)
        state.share = state.share ?? runtime.turnMemory.owe(history.reduce(start.input.byteCount) { $0 + $1.byteCount })
        let core = TurnCore(owner: self, lane: lane, turn: turn, epoch: state.epoch, journal: journal, history: history)
        state.core = core
        state.workSinceCrash = journal.workSinceCrash
        let (receive, input, saved) = (start.receive, TurnInput(start.input), state.saved)
        core.start({ turn in try await receive(input, turn, saved) }, end: { [self] result in end(core, result) })
    }

    /// - Parameter considered: Highest inbox offset whose controls have been decided with the end of the program in view.
    private func end(
        _ core: TurnCore, _ result: Result<(output: JSON, state: JSON), any Error>, considered: UInt64 = 0
    ) {
        // Being cancelled, the turn comes here again once that is durable.
        guard isCurrent(core), !isCancelling || core.cancellation != nil, core.claimEnd(TurnCore.turnEnd) else { return }
        let position = Position(turn: core.turn)
        let completed = try? result.get()
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
            entries = [NewEntry(.turnInterrupted, position, ("output", .string(error.partial)))]
        case .failure(let error):
            runtime.observers.turnFailed(channel.name, StepFailure(error))
            entries = [NewEntry(.turnFailed, position, ("error", StepFailure(error).journal))]
        }
        // A step that the program, run again, has not come to is over with its turn.
        let left = core.leftOpen
        entries = left.paths.map { Activation.stepCancelled(core.turn, $0) } + entries
        // An interrupt finds nothing left to interrupt; with a text it becomes the next message.
        let late = inbox.controls.all.compactMap { inbox[$0] }.filter {
            $0.kind == .interrupt && condition($0) == .holds && (!$0.row.hasText || $0.row.turn != nil)
        }.compactMap { item($0.offset) }
        entries += late.map { Activation.receipt($0.offset, $0.body, "rejected", reason: "turn_ended") }
        Failpoint.pass("turn.end")
        let isCompleted = entries.contains { $0.kind == .turnCompleted }
        let end = TurnEnd(
            core: core, result: result, entry: entries.firstIndex { $0.kind.endsTurn }!,
            state: isCompleted ? completed?.state : nil, decides: late.map(\.offset), left: left)
        writeTurnEnd(end, entries, considered: considered)
    }

    /// Commits the end of a turn. It gives way to what wants to stop the turn and stands before it.
    private func writeTurnEnd(_ end: TurnEnd, _ entries: [NewEntry], considered: UInt64) {
        state.isBusy = true
        var rows = [AgentRow.status(.idle, turn: nil)] + end.left.rows(of: channel.id)
        // Only what differs: most agents have no state, and keep no row.
        if let new = end.state, new != (state.saved ?? .object([])) { rows.append(.state(new.bytes, entry: end.entry)) }
        write(
            AgentBatch(
                entries: entries, epoch: .holds(end.core.epoch), decides: end.decides, yieldsTo: Activation.stopping,
                considered: considered,
                rows: rows), for: .turnEnded(end))
    }

    func turnEndYielded(_ end: TurnEnd) {
        state.isBusy = false
        end.core.withdrawEnd(TurnCore.turnEnd)
        react()
        if !state.isBusy { self.end(end.core, end.result, considered: upToSeen) }
    }

    func turnEnded(_ end: TurnEnd, _ appended: Appended) {
        state.isBusy = false
        end.core.fence(Fenced())
        stopSteps()
        forgetTurn()
        (state.lastEnd, state.lastTurn) = (appended.offsets[end.entry], end.core.turn)
        if let new = end.state { state.saved = new }
        for offset in end.decides { state.inbox.remove(offset) }
        for timer in end.left.timers { runtime.timers.settled(timer.key(channel.id)) }
        if !end.left.paths.isEmpty { runtime.follows.endAll(of: channel.name) }
        runtime.turnEnded(channel.name, end.core.turn)
        for offset in end.decides { runtime.turnEnded(channel.name, offset) }
        perform {}
    }

    /// How many entries one batch decides at most.
    private static let decidedAtOnce = 1_000

    private func close(_ offset: UInt64) {
        let rest = inbox.offsets.filter { $0 != offset }.prefix(Activation.decidedAtOnce + 1).compactMap { item($0) }
        guard !state.isGone, let close = item(offset) else { return }
        guard rest.count <= Activation.decidedAtOnce else { return decide(rest.map { ($0, "rejected", "closing") }) }
        state.isBusy = true
        let before = inbox
        state.inbox = Inbox()
        var entries = [Activation.receipt(offset, close.body, "applied")]
        entries += rest.map { Activation.receipt($0.offset, $0.body, "rejected", reason: "closing") }
        entries.append(NewEntry(.agentClosed, nil, ("reason", "closed")))
        write(
            AgentBatch(
                entries: entries, epoch: .holds(state.epoch), decides: [offset] + rest.map(\.offset), closes: true,
                yieldsTo: Set(EntryKind.allCases.filter(\.isInput)), rows: [.status(.closed, turn: nil)]),
            for: .agentClosed(before: before))
    }

    /// Decides entries whose condition can no longer hold.
    /// - Returns: whether there are some.
    func decideFailed() -> Bool {
        let failed = failedConditions()
        guard !failed.isEmpty else { return false }
        decide(failed)
        return true
    }

    /// Decides entries in one batch, while nothing else begins.
    func decide(_ decisions: [(item: InboxItem, outcome: String, reason: String)]) {
        state.isBusy = true
        for decision in decisions { remove(decision.item) }
        let (receipts, offsets) = (
            decisions.map { Activation.receipt($0.item.offset, $0.item.body, $0.outcome, reason: $0.reason) }, decisions.map(\.item.offset)
        )
        write(AgentBatch(entries: receipts, epoch: .holds(state.epoch), decides: offsets), for: .decided(offsets))
    }

    /// Entries whose condition can no longer hold, as they are to be decided, some at a time. Cost: none while nothing has changed.
    func failedConditions() -> [(item: InboxItem, outcome: String, reason: String)] {
        let now = (turn: openTurn, version: inbox.version)
        if let held = state.conditionsHeld, held == now { return [] }
        var failed: [(item: InboxItem, outcome: String, reason: String)] = []
        for offset in [AnySequence(inbox.misplaced.all), AnySequence(inbox.wantingOthers(than: openTurn))].joined() {
            guard let entry = inbox[offset], case .failed(let reason) = condition(entry) else { continue }
            guard failed.count < Activation.decidedAtOnce else { return failed }
            guard let item = item(offset) else { return [] }
            failed.append((item, entry.kind == .steer && reason == "turn_ended" ? "expired" : "rejected", reason))
        }
        if failed.isEmpty { state.conditionsHeld = now }
        return failed
    }

    /// The entry with its body. What cannot be read is tried again later, by another activation.
    func item(_ offset: UInt64) -> InboxItem? {
        do throws(LogError) {
            return try runtime.channels.entry(channel, at: offset) {
                InboxItem(offset: offset, kind: $0.kind, at: $0.at ?? Timestamp(milliseconds: 0), body: EntryMembers($0.members))
            }
        } catch {
            stopped(error)
            return nil
        }
    }

    static func stepCancelled(_ turn: UInt64, _ path: String) -> NewEntry {
        NewEntry(.stepFailed, Position(turn: turn, step: path), ("error", StepFailure.cancelled.journal), ("final", true))
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

    private static func bytes(_ value: UInt64) -> Bytes {
        var bytes = Bytes()
        bytes.append(bigEndian: value)
        return bytes
    }

    /// Every input up to here is in the inbox or decided. Any thread.
    var upToSeen: UInt64 { seen.load(ordering: .relaxed) }

    // MARK: Steps under way

    /// The turn under way, if it is `core` still.
    func isCurrent(_ core: TurnCore) -> Bool { state.core === core && !core.isFenced && !state.isGone }

    var core: TurnCore? { state.core }

    var isCancelling: Bool {
        get { state.isCancelling }
        set { state.isCancelling = newValue }
    }

    /// Whether the turn's start or its taking up again is being written.
    var isBeginning: Bool { state.isBusy || state.halt != nil }

    func isUnderWay(_ path: String, _ call: ModelAttempt) { state.modelCalls[path] = call }
    func isUnderWay(_ path: String, _ body: Task<Void, Never>) { state.bodies[path] = body }

    func isOver(_ path: String) {
        if let call = state.modelCalls.removeValue(forKey: path) { noteAnswer(call.share) }
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

    func halt(_ halt: Halt?) { state.halt = halt }

    /// The program runs no more, and what it had begun is of no use.
    func abandonProgram() {
        stopSteps()
        forgetTurn()
    }

    /// An answer has ended: what it holds counts until its turn ends.
    func noteAnswer(_ share: AnswerTexts.Share) {
        share.end()
        if share.isCounted { state.answers.append(share) }
    }

    /// Nothing of one turn is for the next.
    private func forgetTurn() {
        (state.share, state.answers) = (nil, [])
        (state.core, state.isCancelling, state.isMarkedWaiting, state.workSinceCrash) = (nil, false, false, 0)
        (state.scans, state.hasMoreToScan) = ([:], false)
        (state.steered, state.partials, state.followed) = ([:], [:], [:])
        startedAt.withLock { $0 = [:] }
    }

    /// The turn has ended without its program.
    func haltedTurnEnded(_ end: HaltedEnd, at offset: UInt64) {
        forgetTurn()
        (state.isBusy, state.halt) = (false, nil)
        (state.lastEnd, state.lastTurn) = (offset, end.turn)
        for timer in end.open.timers { runtime.timers.settled(timer.key(channel.id)) }
        runtime.follows.endAll(of: channel.name)
        runtime.turnEnded(channel.name, end.turn)
    }
}

extension JSON {
    /// A string as it is, anything else as JSON.
    var plainText: String { string ?? text }
}
