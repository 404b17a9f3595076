internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// An agent in memory: tells its machine what happens, on the agent's lane, and does what that says.
final class AgentDriver: @unchecked Sendable {  // Guard: `machine` and `state` are touched on the lane only; the rest is immutable, atomic or locked.
    let runtime: AgentRuntime
    let channel: Channel
    let lane: Lane
    private let stepExecutor: StepExecutor
    private var machine: AgentMachine
    var state: State
    /// Text that has been submitted and not yet answered.
    let textsInFlight = Atomic<Int>(0)

    typealias Wake = @Sendable (AgentRuntime, Channel) -> Void

    struct State {
        /// As it was declared when the last turn began, or when it came into memory.
        var agent: AnyAgent
        /// The program that runs.
        var task: TurnTask?
        var calls: [String: ModelAttempt] = [:]
        var bodies: [String: Task<Void, Never>] = [:]
        /// The offsets of the first starts of open steps.
        var startedAt: [String: UInt64] = [:]
        /// What the turn has of the memory for turns.
        var share: TurnMemory.Share?
        /// What answers of the turn hold that have ended.
        var answers: [AnswerTexts.Share] = []
        /// The turns before the next one, once one has begun here.
        var conversation: Conversation?
        /// What a turn would have of it, when the channel's head was there and turns used so many bytes.
        var extent: (head: UInt64, bytesMax: Int, extent: ConversationExtent)?
        /// It was passivated, but for what it wrote that is not answered yet: a read of the log would not see that.
        var isLeaving = false
        /// What came meanwhile: for the activation after it.
        var missed: [Wake] = []
    }

    init(runtime: AgentRuntime, channel: Channel, agent: AnyAgent) {
        self.runtime = runtime
        self.channel = channel
        let number = channel.id.number << 6 | UInt64(channel.id.partition)
        lane = Lane(id: number, world: runtime.world)
        stepExecutor = StepExecutor(world: runtime.world, owner: number)
        let identity = AgentIdentity(name: channel.name, id: channel.id, node: runtime.process.node, build: runtime.process.build)
        machine = AgentMachine(identity, agent.traits)
        state = State(agent: agent)
    }

    // MARK: What comes from outside

    /// Does what it is called for, on the lane. Any thread.
    func take(_ call: AgentDirectory.Call) {
        switch call {
        case .takeInput(let offset, _): deliver(.input(upTo: offset)) { $0.wakeAgain($1) }
        case .wake: deliver(.input(upTo: 0)) { $0.wakeAgain($1) }
        // Gone since: the next activation must know of it, or nothing would remove its row.
        case .fire(let timer, _): deliver(.timerDue(timer)) { $0.timerDue($1.name, $1.id, timer) }
        }
    }

    /// Tells the agent; if it was passivated since, another activation is needed.
    private func deliver(_ event: AgentEvent, otherwise wake: @escaping Wake) {
        lane.deliver { [self] in
            if !machine.isGone { return handle(event) }
            if state.isLeaving { state.missed.append(wake) } else { wake(runtime, channel) }
        }
    }

    /// Others wait for room: leaves now if it can. Any thread.
    func makeRoom() { later(.makeRoom) }

    /// The process drains: models are let go of, with what they have written kept. Any thread.
    func drain() {
        lane.deliver { [self] in
            // They stay known: an interrupt ends a step with what its model has written.
            for call in state.calls.values { call.stop(keepingLast: true) }
        }
    }

    /// The channel was deleted: everything stops here.
    func deleted() { later(.deleted) }

    private func later(_ event: AgentEvent) { lane.deliver { self.handle(event) } }

    // MARK: Telling and doing

    /// Has the machine decide, and does what it says. On the lane.
    func handle(_ event: AgentEvent) {
        for action in machine.handle(event, View(self)) { carryOut(action) }
    }

    /// Something of the turn that runs in that epoch.
    func handle(_ epoch: UInt64, _ event: TurnEvent) { handle(.turn(epoch: epoch, event)) }

    private func carryOut(_ action: AgentAction) {
        switch action {
        case .write(let batch, let purpose): write(batch, purpose)

        case .start(let start, let epoch, let history, let saved): self.start(start, epoch, history, saved)
        case .give(let path, let outcome, let now): state.task?.give(path, outcome, now: now)
        case .cancelProgram(let now): state.task?.cancel(now: now)
        case .compensate: state.task?.compensate()
        case .fence(let error, let left):
            state.task?.fence(error, left: left)
            (state.task, state.share, state.answers) = (nil, nil, [])

        case .runBody(let path, let attempt): runBody(path, attempt)
        case .callModel(let run): callModel(run)
        case .probe(let path, let attempt, let saved): probe(path, attempt, saved)
        case .stop(let path): stop(path)
        case .reopened(let path, let offset): state.startedAt[path] = offset
        case .forget(let path): forget(path)
        case .stopAll: stopAll()

        case .next(let events): lane.deliver(parts: events.map { event in { @Sendable in self.handle(event) } })
        case .later(let event): later(event)
        case .at(let instant, let event): runtime.world.schedule(at: instant) { self.later(event) }

        case .timerSet(let due): runtime.timers.set(due)
        case .timerSettled(let timer): runtime.timers.settled(timer.key(channel.id))
        case .removeTimer(let timer): runtime.timers.remove(timer.key(channel.id), runtime.channels)
        case .timerAgain(let timer): runtime.timerDue(channel.name, channel.id, timer)
        case .followAgain(let follow, let followed, let offset):
            runtime.channels.submit(FollowAgain(follow, of: followed, after: offset))
        case .turnEnded(let turn): runtime.turnEnded(channel.name, turn)
        case .turnFailed(let failure): runtime.observers.turnFailed(channel.name, failure)
        case .notice(let notice): notice.log(of: channel.name)

        case .rest: handle(runtime.forget(self, unlessNeeded: true) ? .rested : .stayed)
        case .takeRoom(let bytes): takeRoom(bytes)
        case .releaseRoom: state.share = nil
        case .leave:
            state.isLeaving = true
            state.share = nil
            finishLeaving()
        case .noteTakenUp: runtime.takeUp.noteTakenUp(channel.name)
        case .noteStopped: runtime.takeUp.noteStopped(channel.name)
        case .tryAgainLater(let error, let timers): tryAgainLater(error, timers)
        }
    }

    private func takeRoom(_ bytes: Int) {
        let share = runtime.memory.turns.take(bytes) { [self] share in
            lane.deliver { self.hasRoom(share) }
        }
        if let share { hasRoom(share) }
    }

    private func hasRoom(_ share: TurnMemory.Share) {
        guard !machine.isGone else { return }
        state.share = share
        handle(.hasRoom)
    }

    private func finishLeaving() {
        guard state.isLeaving, machine.rest.inFlight == 0, textsInFlight.load(ordering: .relaxed) == 0 else { return }
        state.isLeaving = false
        runtime.forget(self)
        let missed = state.missed
        state.missed = []
        for wake in missed { wake(runtime, channel) }
    }

    private func tryAgainLater(_ error: any Error, _ timers: [DueTimer]) {
        // A log that is closed says so once, and the process ends with it.
        if (error as? LogError)?.code == .closed { return }
        Diagnostics.log(.error, "agent stopped", ["channel": channel.name, "reason": "\(error)"])
        runtime.wakeLater(channel, timers)
    }
}

// MARK: - Writing

extension AgentDriver {
    /// Appends as the agent's owner.
    private func write(_ batch: AgentBatch, _ purpose: WritePurpose) {
        purpose.passFailpoint()
        // What begins once that is durable is as good as begun: a process that drains waits for it.
        if purpose.beginsBody { runtime.programs.bodyBegan() }
        append(batch, isLazy: purpose.isLazy) { [self] result in
            switch result {
            case .success(let appended): handle(.committed(batch, purpose, appended))
            case .failure(let error) where error.code == ChannelError.undecided: handle(.yielded(purpose))
            case .failure(let error): handle(.refused(batch.epoch, error))
            }
            if purpose.beginsBody { runtime.programs.bodyEnded() }
            finishLeaving()
        }
    }

    /// Appends what a model writes. Any thread.
    private func write(_ entries: [NewEntry], _ epoch: UInt64, of attempt: ModelAttempt) {
        textsInFlight.add(1, ordering: .relaxed)
        let batch = AgentBatch(entries: entries, epoch: .holds(epoch))
        append(batch) { [self] result in
            textsInFlight.subtract(1, ordering: .relaxed)
            switch result {
            case .success(let appended):
                handle(.textCommitted(batch, appended))
                attempt.committed()
            case .failure(let error): handle(.textRefused(batch.epoch, error))
            }
            finishLeaving()
        }
    }

    private func append(_ batch: AgentBatch, isLazy: Bool = false, _ answer: @escaping @Sendable (Result<Appended, ChannelError>) -> Void) {
        var append = Append(to: channel.name, batch.entries)
        append.closes = batch.closes
        append.id = channel.id
        append.owner = OwnerPart(
            epoch: batch.epoch, decides: batch.decides, yieldsTo: batch.yieldsTo, yieldsAfter: batch.considered ?? 0,
            rows: batch.rows.compactMap { row($0) }, isLazy: isLazy)
        runtime.channels.submit(append) { [self] result in
            lane.deliver { [self] in
                if case .success(let appended) = result { note(batch.rows, appended) }
                answer(result)
                if case .success = result { runtime.decided(batch.decides, in: channel.name) }
            }
        }
    }

    /// A row as channels know it; `nil` for what is noted once it is written.
    private func row(_ row: AgentRow) -> AppendRow? {
        switch row {
        case .status(let status, let turn): .status(status, turn: turn)
        case .timer(let timer): .put(.timers, key: timer.key(channel.id), value: Bytes(channel.name.utf8))
        case .noTimer(let timer): .delete(.timers, key: timer.key(channel.id))
        case .follow(let change): .follow(change)
        case .state(let state, let entry): .state(state, entry: entry)
        case .content(let content, let digest): .put(.big, key: channel.id.key(digest), value: content)
        case .modelStarted: nil
        case .textSealed(let path, let turn):
            // While its start is on its way to the log, all of the turn is looked through.
            runtime.trims.row(SealedText(channelName: channel.name, turn: turn, step: path, from: state.startedAt[path] ?? turn))
        }
    }

    private func note(_ rows: [AgentRow], _ appended: Appended) {
        for row in rows {
            switch row {
            case .modelStarted(let path): state.startedAt[path] = appended.offsets[0]
            case .textSealed(let path, _):
                state.startedAt[path] = nil
                runtime.trims.sealed()
            default: break
            }
        }
    }
}

// MARK: - The program

extension AgentDriver: TurnOwner {
    private func start(_ start: TurnStart, _ epoch: UInt64, _ history: [HistoryItem], _ saved: JSON?) {
        state.startedAt = [:]
        state.share = state.share ?? runtime.memory.turns.owe(history.reduce(start.input.byteCount) { $0 + $1.byteCount })
        let task = TurnTask(
            owner: self, lane: lane, channelName: channel.name, turn: start.turn, epoch: epoch, journal: start.journal,
            history: history)
        state.task = task
        let (program, input) = (start.program, TurnInput(start.input))
        task.start { turn in try await program.receive(input, turn, saved) }
    }

    func run<Value>(_ epoch: UInt64, _ body: (inout TurnRun) throws -> Value) rethrows -> Value? {
        guard machine.isCurrent(epoch) else { return nil }
        return try body(&machine.run!)
    }

    func tail(of channel: String) throws -> JSON {
        guard let found = try runtime.channels.find(channel) else {
            throw StepFailure(code: "channel_not_found", message: "there is no channel '\(channel)'", retryable: false)
        }
        return ["offset": .string(Offset(found.tail.head).token), "incarnation": .string(found.id.text)]
    }

    func reports(_ turn: UInt64) -> TurnReports {
        TurnReports(
            strayed: { [runtime, name = channel.name] in runtime.strayed(name, turn: turn) },
            parked: { [runtime, kind = state.agent.kind] in runtime.programs.parked(kind) })
    }
}

// MARK: - Steps

extension AgentDriver {
    private func runBody(_ path: String, _ attempt: UInt32) {
        guard let running = state.task, case .body(let body) = running.code(path) else { return }
        let epoch = running.epoch
        let context = StepContext(idempotencyKey: running.idempotencyKey(path), fence: epoch, attempt: Int(attempt))
        runtime.programs.bodyBegan()
        state.bodies[path] = Task(executorPreference: stepExecutor) { [self] in
            let result: Result<JSON, StepFailure>
            if Task.isCancelled {
                result = .failure(.cancelled)
            } else {
                do { result = .success(try await body(context)) } catch { result = .failure(StepFailure(ofBody: error)) }
            }
            lane.deliver { [self] in
                handle(epoch, .bodyEnded(path: path, attempt: attempt, result))
                // A process that drains waits for this: what the body did has been handed to the log.
                runtime.programs.bodyEnded()
            }
        }
    }

    private func callModel(_ run: ModelRun) {
        guard let running = state.task, case .model(let model) = running.code(run.path) else { return }
        let (epoch, turn) = (running.epoch, running.turn)
        let position = Position(turn: turn, step: run.path, attempt: run.attempt)
        let attempt = ModelAttempt(position: position, saved: run.saved, world: runtime.world, share: runtime.memory.answers.share()) {
            [self] attempt, entries in
            write(entries, epoch, of: attempt)
        } end: { [self] end in
            lane.deliver { self.handle(epoch, .modelEnded(path: run.path, attempt: run.attempt, end)) }
        }
        if run.isExhausted { return attempt.received(.finished(reason: "length")) }
        state.calls[run.path] = attempt
        attempt.start(model, run.request)
    }

    private func probe(_ path: String, _ attempt: UInt32, _ saved: SavedText) {
        guard let running = state.task, case .model(let model) = running.code(path) else { return }
        let epoch = running.epoch
        model.probeContinuation { [self] continues in
            lane.deliver { self.handle(epoch, .probed(path: path, attempt: attempt, saved, continues: continues)) }
        }
    }

    /// Text that was held back is appended.
    private func stop(_ path: String) {
        state.calls[path]?.stop(keepingLast: true)
        state.bodies[path]?.cancel()
        forget(path)
    }

    /// What an answer holds that has ended counts until its turn ends.
    private func forget(_ path: String) {
        state.bodies[path] = nil
        guard let share = state.calls.removeValue(forKey: path)?.share else { return }
        share.end()
        if share.isCounted { state.answers.append(share) }
    }

    private func stopAll() {
        // Sorted, so that a simulated run follows from its seed.
        for (_, call) in state.calls.sorted(by: { $0.key < $1.key }) { call.stop(keepingLast: false) }
        for (_, body) in state.bodies.sorted(by: { $0.key < $1.key }) { body.cancel() }
        (state.calls, state.bodies) = ([:], [:])
    }
}

extension AnyAgent {
    var traits: AgentTraits { AgentTraits(policy: policy, definition: definition) }
}

extension WritePurpose {
    /// Whether a body runs once it is durable.
    fileprivate var beginsBody: Bool {
        guard case .stepStarted(_, let request, _) = self, case .body(.atMostOnce, _) = request.work else { return false }
        return true
    }

    /// Whether nothing waits for it: the body runs beside it, and runs again when the process ends before it is durable.
    fileprivate var isLazy: Bool {
        guard case .stepStarted(_, let request, _) = self, case .body(.atLeastOnce, _) = request.work else { return false }
        return true
    }

    /// Where a test may end the process: before what stands for something that has happened is handed to the log.
    fileprivate func passFailpoint() {
        switch self {
        case .stepEnded(let end):
            guard case .completed = end.outcome else { return }
            if end.request.isModel { Failpoint.pass("model.finish") }
            Failpoint.pass("step.completed")
        case .turnEnded: Failpoint.pass("turn.end")
        default: break
        }
    }
}

extension AgentNotice {
    fileprivate func log(of channel: String) {
        switch self {
        case .fenced(let code): Diagnostics.log(.warning, "agent fenced", ["channel": channel, "code": code])
        case .parked(let reason, let others):
            let ranToo = others.isEmpty ? "-" : others.prefix(16).joined(separator: " ")
            Diagnostics.log(.error, "agent parked", ["channel": channel, "reason": reason.rawValue, "ran_too": ranToo])
        case .stalled(let error, let source):
            Diagnostics.log(.error, "agent stalled", ["channel": channel, "reason": error.message, "source": source ?? "-"])
        case .waitsOutside(let turn, let next):
            Diagnostics.log(
                .warning, "the replay of a turn waits for its program, which waits for something outside the turn",
                ["channel": channel, "turn": Offset(turn).token, "next": next])
        }
    }
}
