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
    private var state = State()

    private struct State {
        var isLoaded = false
        var epoch: UInt64 = 0
        var saved: JSON?
        /// Undecided entries in log order.
        var inbox: [InboxItem] = []
        /// Every input up to here is in `inbox` or decided.
        var seen: UInt64 = 0
        var core: TurnCore?
        /// The log says, or is about to, that the turn only waits.
        var isMarkedWaiting = false
        /// A turn or a closing is being written; nothing else may begin.
        var isBusy = false
        var isStalled = false
        var isGone = false
        var history: [HistoryItem] = []
        var lastActive = Timestamp(milliseconds: 0)
        var isIdleCheckScheduled = false
        var modelCalls: [String: ModelAttempt] = [:]
        var bodies: [String: Task<Void, Never>] = [:]
    }

    private struct InboxItem {
        var offset: UInt64
        var kind: EntryKind
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
        lane.deliver { self.perform { self.fire(timer) } }
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
    private func perform(_ body: () throws -> Void) {
        guard !state.isGone else { return }
        state.lastActive = runtime.world.now
        do {
            if !state.isLoaded { try load() }
            try body()
            try advance()
        } catch {
            Diagnostics.log(.error, "agent stopped", ["channel": channel.name, "reason": "\(error)"])
            leave()
            return
        }
        scheduleIdleCheck()
    }

    // MARK: Loading

    private func load() throws {
        // First the head, then the inbox: what comes later is noticed later, see `takeInput`.
        let head = channel.tail.head
        guard let row = try runtime.channels.row(channel) else { throw ChannelError.notFound(channel.name) }
        state.epoch = row.epoch
        state.isStalled = row.status == .stalled && !runtime.retriesStalled(channel.name)
        state.seen = head
        state.inbox = try readInbox(upTo: head)
        let last = try runtime.channels.log.first(.states, from: channel.id.key, to: channel.id.keyEnd, reversed: true)
        state.saved = try last.map { try JSON.parse($0.value) }
        state.history = try readHistory(upTo: head, before: row.turn)
        state.isLoaded = true
        if let turn = row.turn, !state.isStalled { try recover(turn, row.status) }
    }

    private func readInbox(upTo head: UInt64, after: UInt64 = 0) throws -> [InboxItem] {
        var offsets: [UInt64] = []
        try runtime.channels.log.scan(.inbox, from: channel.id.key(after + 1), to: channel.id.key(head + 1), reversed: false) { key, _ in
            offsets.append(key.readBigEndian(at: 10))
            return true
        }
        return try offsets.compactMap { offset in
            try runtime.channels.entry(channel, at: offset) { InboxItem(offset: offset, kind: $0.kind, body: $0.body) }
        }
    }

    private func takeInput(upTo offset: UInt64) throws {
        guard offset > state.seen else { return }
        state.inbox += try readInbox(upTo: offset, after: state.seen)
        state.seen = offset
    }

    /// The completed turns before the unfinished one, from the end of the log back, as much as a conversation can use.
    private func readHistory(upTo head: UInt64, before turn: UInt64?) throws -> [HistoryItem] {
        var items: [HistoryItem] = []
        var outputs: [UInt64: (end: UInt64, text: String)] = [:]
        var bytes = 0
        try runtime.channels.walkBack(channel, from: head) { offset, frame in
            switch frame.kind {
            case .turnCompleted:
                if let position = frame.position, position.turn != turn { outputs[position.turn] = (offset, frame.body["output"]?.plainText ?? "") }
            case .message, .steer:
                guard let output = outputs.removeValue(forKey: offset) else { break }
                let item = HistoryItem(input: frame.body.messageText, output: output.text, offsets: offset...output.end)
                bytes += item.byteCount
                items.append(item)
            default: break
            }
            return bytes < Activation.historyBytesMax
        }
        return items.reversed()
    }

    /// How much of the conversation an agent keeps in memory; a model's context holds less.
    private static let historyBytesMax = 256 << 10

    private func remember(_ item: HistoryItem) {
        state.history.append(item)
        var bytes = state.history.reduce(0) { $0 + $1.byteCount }
        while bytes > Activation.historyBytesMax, state.history.count > 1 { bytes -= state.history.removeFirst().byteCount }
    }

    // MARK: Turns

    /// Takes the next entry of the inbox, if the agent is free.
    private func advance() throws {
        guard state.core == nil, !state.isBusy, !state.isStalled, !runtime.isDraining else { return }
        // A signal is kept until somebody waits for it.
        guard let index = state.inbox.firstIndex(where: { $0.kind != .signal }) else { return }
        let item = state.inbox.remove(at: index)
        switch item.kind {
        case .message, .steer: begin(item)
        case .close: close(item)
        case .approve, .deny: decide(item, rejected: "unknown_approval")
        default: decide(item, rejected: "turn_ended")
        }
    }

    private func begin(_ item: InboxItem) {
        state.isBusy = true
        let seed = runtime.world.random()
        let position = Position(turn: item.offset)
        let epoch = state.epoch
        let entries = [
            Activation.receipt(item.offset, item.body, "applied", turn: item.offset),
            NewEntry(
                .turnStarted, position, ("input", .string(Offset(item.offset).token)), ("seed", .string(hexadecimal(Activation.bytes(seed)))),
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

    private func recover(_ turn: UInt64, _ status: AgentStatus) throws {
        let journal = try Journal(runtime.channels, channel, turn: turn)
        let input = try runtime.channels.entry(channel, at: turn) { $0.body } ?? .null
        state.isBusy = true
        let epoch = state.epoch
        // A turn that left memory to wait comes back as a matter of course; any other was cut off.
        let entries = status == .waiting
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
        let position = Position(turn: core.turn)
        let completed = try? result.get()
        let entry: NewEntry
        switch result {
        case .success(let (output, _)): entry = NewEntry(.turnCompleted, position, ("output", output))
        case .failure(let error): entry = NewEntry(.turnFailed, position, ("error", StepFailure(error).journal))
        }
        Failpoint.pass("turn.end")
        append([entry], epoch: .holds(core.epoch)) { stage, channel, offsets in
            if let newState = completed?.state, newState != .object([]) { stage.put(.states, channel.id.key(offsets[0]), newState.bytes) }
            channel.move(to: .idle, turn: nil, in: &stage)
        } then: { [self] appended in
            core.fence(Fenced())
            stopSteps()
            state.core = nil
            if let completed {
                state.saved = completed.state
                remember(HistoryItem(input: input.messageText, output: completed.output.plainText, offsets: core.turn...appended.offsets[0]))
            }
            runtime.turnEnded(channel.name, core.turn)
            perform {}
        }
    }

    private func close(_ item: InboxItem) {
        state.isBusy = true
        let rest = state.inbox
        state.inbox = []
        var entries = [Activation.receipt(item.offset, item.body, "applied")]
        entries += rest.map { Activation.receipt($0.offset, $0.body, "rejected", reason: "closing") }
        entries.append(NewEntry(.agentClosed, nil, ("reason", "closed")))
        append(entries, epoch: .holds(state.epoch), decides: [item.offset] + rest.map(\.offset), closes: true) { stage, channel, _ in
            channel.move(to: .closed, turn: nil, in: &stage)
        } inputArrived: { [self] in
            // What came meanwhile must get its receipt too.
            state.isBusy = false
            state.inbox = [item] + rest + state.inbox
            perform { try takeInput(upTo: channel.tail.head) }
        } then: { [self] _ in leave() }
    }

    private func decide(_ item: InboxItem, rejected reason: String) {
        state.isBusy = true
        let receipt = Activation.receipt(item.offset, item.body, "rejected", reason: reason)
        append([receipt], epoch: .holds(state.epoch), decides: [item.offset], then: { [self] _ in
            state.isBusy = false
            runtime.turnEnded(channel.name, item.offset)
            perform {}
        })
    }

    private static func receipt(_ offset: UInt64, _ body: JSON, _ outcome: String, turn: UInt64? = nil, reason: String? = nil) -> NewEntry {
        let token = Offset(offset).token
        let members = NewEntry.join([
            ("of", .string(token)), ("id", body["id"] ?? .string(token)), ("state", .string(outcome)), ("reason", reason.map { .string($0) }),
        ])
        return NewEntry(.receipt, turn.map { Position(turn: $0) }, members: members, hasID: true)
    }

    private static func bytes(_ value: UInt64) -> Bytes {
        var bytes = Bytes()
        bytes.append(bigEndian: value)
        return bytes
    }

    // MARK: Writing

    /// Appends as the agent's owner. `then` runs on the lane once it is durable; refused, the agent leaves memory: somebody else owns it.
    ///
    /// With `inputArrived` it is refused when input stands in the log that the agent has not seen, and that is called instead.
    func append(
        _ entries: [NewEntry], epoch: EpochClaim, decides: [UInt64] = [], closes: Bool = false,
        rows: (@Sendable (inout Stage, Channel, [UInt64]) -> Void)? = nil, inputArrived: (@Sendable () -> Void)? = nil,
        then: @escaping @Sendable (Appended) -> Void = { _ in }
    ) {
        let append = Append(runtime.channels, to: channel.name, entries) { [self] result in
            lane.deliver {
                switch result {
                case .success(let appended): then(appended)
                case .failure(let error):
                    if error.code == "input_arrived", let inputArrived { inputArrived() } else { self.refused(error) }
                }
            }
        }
        append.epoch = epoch
        append.id = channel.id
        append.lastInputSeen = inputArrived == nil ? nil : state.seen
        append.decides = decides
        append.closes = closes
        append.rows = rows
        append.submit()
    }

    private func refused(_ error: ChannelError) {
        guard !state.isGone else { return }
        // The log going down is said once, by the server.
        if error.code != LogError.Code.closed.text { Diagnostics.log(.warning, "agent fenced", ["channel": channel.name, "code": error.code]) }
        leave()
    }

    // MARK: Leaving memory

    func leave() {
        state.isGone = true
        state.core?.fence(Fenced())
        stopSteps()
        runtime.forget(self)
    }

    private func scheduleIdleCheck() {
        guard !state.isIdleCheckScheduled, !state.isGone else { return }
        state.isIdleCheckScheduled = true
        runtime.world.schedule(at: runtime.world.now.advanced(by: runtime.idleAfter)) { [self] in
            lane.deliver { self.checkIdle() }
        }
    }

    /// Leaves memory when nothing has happened for a while and nothing needs it: no turn, or one that only waits.
    private func checkIdle() {
        state.isIdleCheckScheduled = false
        guard !state.isGone else { return }
        let quietFor = state.lastActive.duration(to: runtime.world.now)
        let resting = state.core?.restingSteps
        guard !state.isBusy, state.isLoaded, quietFor >= runtime.idleAfter, state.core == nil || resting != nil else {
            return scheduleIdleCheck()
        }
        guard let core = state.core else {
            if runtime.forget(self, unlessNeeded: true) { state.isGone = true } else { scheduleIdleCheck() }
            return
        }
        state.isBusy = true
        state.isMarkedWaiting = true
        append([], epoch: .holds(core.epoch)) { stage, channel, _ in
            channel.move(to: .waiting, turn: core.turn, in: &stage)
        } then: { [self] _ in
            state.isBusy = false
            guard core.restingSteps != nil, runtime.forget(self, unlessNeeded: true) else { return scheduleIdleCheck() }
            state.isGone = true
            core.fence(Passivated())
        }
    }

    /// What to write with the end of a sleep: a turn that was marked as waiting, and whose timer is gone, is one to recover.
    func takeWaitingMark(_ core: TurnCore) -> @Sendable (inout Stage, Channel) -> Void {
        guard state.isMarkedWaiting else { return { _, _ in } }
        state.isMarkedWaiting = false
        return { stage, channel in channel.move(to: .running, turn: core.turn, in: &stage) }
    }

    // MARK: Steps under way

    /// The turn under way, if it is `core` still.
    func isCurrent(_ core: TurnCore) -> Bool { state.core === core && !core.isFenced && !state.isGone }

    var core: TurnCore? { state.core }

    /// Whether the turn's start or its taking up again is being written.
    var isBeginning: Bool { state.isBusy || state.isStalled }

    func isUnderWay(_ path: String, _ call: ModelAttempt) { state.modelCalls[path] = call }
    func isUnderWay(_ path: String, _ body: Task<Void, Never>) { state.bodies[path] = body }

    func isOver(_ path: String) {
        state.modelCalls[path] = nil
        state.bodies[path] = nil
    }

    /// Stops what a step runs; text that was held back is appended.
    func stop(_ path: String) {
        state.modelCalls[path]?.stop(keepingLast: true)
        state.bodies[path]?.cancel()
        isOver(path)
    }

    /// The turn has lost its right to run: whatever its steps still do is of no use.
    private func stopSteps() {
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
