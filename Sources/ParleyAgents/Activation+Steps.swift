internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

extension Activation: TurnOwner {
    func idempotencyKey(_ turn: UInt64, _ path: String) -> String { "\(channel.name)/\(Offset(turn))/\(path)" }

    func tail(of channel: String) throws -> JSON {
        guard let found = try runtime.channels.find(channel) else {
            throw StepFailure(code: "channel_not_found", message: "there is no channel '\(channel)'", retryable: false)
        }
        return ["offset": .string(Offset(found.tail.head).token), "incarnation": .string(found.id.incarnation)]
    }

    func append(_ core: TurnCore, _ entries: [NewEntry]) { write(AgentBatch(entries: entries, epoch: .holds(core.epoch))) }

    func begin(_ core: TurnCore, _ request: StepRequest, attempt: UInt32) { attemptStep(core, request, attempt, SavedText()) }

    func reopen(_ core: TurnCore, _ request: StepRequest, _ open: Journal.OpenStep) {
        switch request.work {
        case .follow:
            state.followed[request.path] = open.followed
            // It was registered when the process started, unless the crash came before its row.
            if let follow = follow(core, request) { runtime.follows.begin(follow) }
            wasDue(core, request, open)
        case .wait, .approval: wasDue(core, request, open)
        case .sleep: if let due = open.due, due <= runtime.world.now { cameDue(core, request, due) }
        case .body(.atMostOnce, _, _) where open.retryAt == nil:
            let failure = StepFailure(
                code: "outcome_unknown", message: "the process ended while the step ran; whether its effect happened is not known",
                retryable: false)
            fail(core, request, attempt: open.attempt, failure, pause: nil, SavedText())
        case .body, .model:
            startedAt.withLock { $0[request.path] = open.startedAt }
            do { try rejoin(core, request.path, open.steered) } catch { return stopped(error) }
            keeps(request.path, open.text.text.isEmpty ? open.earlier : open.text)
            var request = request
            request.failures = open.failures
            guard let retryAt = open.retryAt else { return attemptStep(core, request, open.attempt + 1, open.text) }
            retry(core, request, open.attempt + 1, at: retryAt, open.text)
        }
    }

    func cancel(_ core: TurnCore, _ request: StepRequest) {
        stop(request.path)
        fail(core, request, attempt: 0, .cancelled, pause: nil, SavedText())
    }

    func stalled(_ core: TurnCore, _ error: TurnError, at source: String?) {
        Diagnostics.log(.error, "agent stalled", ["channel": channel.name, "reason": error.message, "source": source ?? "-"])
        halt(Halt(turn: core.turn, status: .stalled))
        let compensations = core.registeredCompensations
        let entry = NewEntry(
            .agentStalled, Position(turn: core.turn), ("reason", .string(error.code)), ("message", .string(error.message)),
            ("source", source.map { .string($0) }),
            ("compensations", compensations.isEmpty ? nil : .array(compensations.map { .string($0) })),
            (
                "remedy",
                "start the program that began the turn, then send 'resume'; or end the turn with 'cancel', which runs no program"
            ))
        // Of a new epoch, so that nothing of the program comes behind it.
        write(
            AgentBatch(entries: [entry], epoch: .takes(after: state.epoch), rows: [.status(.stalled, turn: core.turn)]),
            for: .turnHalted(core.turn))
    }

    func caughtUp(_ core: TurnCore) {
        perform {}
        // Taken up again only to wait, it is soon out of the reach of further crashes.
        if core.restingSteps != nil { scheduleWaitingMark() }
    }

    func whenStrayed(_ turn: UInt64) -> @Sendable () -> Void { { [runtime, name = channel.name] in runtime.strayed(name, turn: turn) } }

    var whenParked: @Sendable () -> Void { { [runtime, kind = agent.kind] in runtime.parked(kind) } }

    // MARK: Attempts

    private func attemptStep(_ core: TurnCore, _ request: StepRequest, _ attempt: UInt32, _ saved: SavedText) {
        guard !runtime.isDraining, !core.hasEnd(request.path) else { return }
        switch request.work {
        case .sleep, .wait, .approval, .follow: beginWaiting(core, request)
        case .body(let contract, let policy, let body):
            started(core, request, attempt)
            // At most once: what has begun must be in the log before it does, see `stepStarted`.
            if contract == .atLeastOnce { runBody(core, request, attempt, contract, policy, body) }
        case .model(let model, let modelRequest, let policy): runModel(core, request, attempt, saved, model, modelRequest, policy)
        }
    }

    private func started(
        _ core: TurnCore, _ request: StepRequest, _ attempt: UInt32, journal: JSON? = nil, continuesAt: Int? = nil,
        content: [(digest: Bytes, content: Bytes)] = [], joined: [InboxItem] = []
    ) {
        let entry = NewEntry(
            .stepStarted, Position(turn: core.turn, step: request.path, attempt: attempt), ("kind", .string(request.kind.rawValue)),
            ("name", .string(request.name)), ("idempotency_key", .string(idempotencyKey(core.turn, request.path))),
            ("request", journal ?? request.asked),
            ("continues_at", continuesAt.map { .integer(Int64($0)) }),
            ("compensation", request.isCompensation ? true : nil), ("shielded", request.isShielded ? true : nil),
            ("steered", joined.isEmpty ? nil : .array(joined.map { .string(Offset($0.offset).token) })))
        let receipts = joined.map { Activation.receipt($0.offset, $0.body, "applied", turn: core.turn, step: request.path) }
        var rows = takeWaitingMark(core)
        if attempt == 1, case .model = request.work { rows.append(.modelStarted(path: request.path)) }
        rows += content.map { .content($0.content, digest: $0.digest) }
        write(
            AgentBatch(entries: [entry] + receipts, epoch: .holds(core.epoch), decides: joined.map(\.offset), rows: rows),
            for: .stepStarted(core, request, attempt: attempt))
    }

    func stepStarted(_ core: TurnCore, _ request: StepRequest, _ attempt: UInt32, at offset: UInt64) {
        switch request.work {
        case .model(_, let asked, _) where attempt == 1: core.requests.note(request.path, asked, at: offset)
        // What was stopped while its start was written does not run at all.
        case .body(.atMostOnce, let policy, let body) where isCurrent(core) && !core.hasEnd(request.path):
            runBody(core, request, attempt, .atMostOnce, policy, body)
        default: break
        }
        // An interrupt that came before there was anything to interrupt meets this step.
        perform {}
    }

    // MARK: Steering

    /// What was said since the last call joins this one, in the order in which it was said.
    private func takeSteers(_ core: TurnCore) -> [InboxItem] {
        var offsets = Array(inbox.steers.all)
        if agent.policy == .steer { offsets = (offsets + inbox.messages.all).sorted() }
        var (items, bytes): ([InboxItem], Int) = ([], 0)
        for offset in offsets {
            guard let entry = inbox[offset], condition(entry) == .holds else { continue }
            bytes += Int(entry.row.byteCount)
            // The rest joins the call after this one.
            guard items.count < Activation.steersMax, items.isEmpty || bytes <= Activation.steerBytesMax else { break }
            guard let item = item(offset) else { return [] }
            items.append(item)
        }
        for item in items { remove(item) }
        return items
    }

    /// How much joins one request at most.
    private static let steersMax = 256
    private static let steerBytesMax = 256 << 10

    /// What had joined the request before the crash is part of it again.
    private func rejoin(_ core: TurnCore, _ path: String, _ offsets: [UInt64]) throws(LogError) {
        var texts: [JSON] = []
        for offset in offsets {
            guard let body = try runtime.channels.entry(channel, at: offset, { EntryMembers($0.members) }) else { continue }
            texts.append(["offset": .string(Offset(offset).token), "text": .string(body.messageText ?? "")])
        }
        isSteered(path, by: texts.isEmpty ? nil : .array(texts))
    }

    private static func messages(_ steered: JSON?) -> [ModelMessage] {
        (steered?.array ?? []).map { steer in
            var message = ModelMessage.user(steer["text"]?.string ?? "")
            message.source = steer["offset"]?.string
            return message
        }
    }

    private func retry(_ core: TurnCore, _ request: StepRequest, _ attempt: UInt32, at instant: Timestamp, _ saved: SavedText) {
        keeps(request.path, saved)
        runtime.world.schedule(at: instant) { [self] in
            lane.deliver {
                guard self.isCurrent(core), core.waiting(at: request.path) != nil else { return }
                self.attemptStep(core, request, attempt, saved)
            }
        }
    }

    /// Journals the end of a step, and resumes the program once that is durable. Any thread.
    private func complete(
        _ core: TurnCore, _ request: StepRequest, attempt: UInt32, _ members: [(String, JSON?)], last: NewEntry? = nil
    ) {
        let bytes = NewEntry.join(members)
        let entry = NewEntry(.stepCompleted, Position(turn: core.turn, step: request.path, attempt: attempt), members: bytes)
        Failpoint.pass("step.completed")
        let isModel = if case .model = request.work { true } else { false }
        // As a replay has it. What a model wrote is text, which no round trip changes, and may be long.
        let body =
            isModel
            ? JSON.object(members.compactMap { name, value in value.map { JSON.Member(name, $0) } })
            : bytes.withUnsafeBytes { EntryMembers($0).json }
        var end = StepEnd(core: core, request: request, entries: (last.map { [$0] } ?? []) + [entry], outcome: .completed(body))
        if isModel { end.rows = [.textSealed(path: request.path, turn: core.turn)] }
        writeEnd(end)
    }

    /// Journals a failed attempt: with a pause, another one follows; without, the program gets the failure. Any thread.
    private func fail(
        _ core: TurnCore, _ request: StepRequest, attempt: UInt32, _ failure: StepFailure, pause: Duration?, _ saved: SavedText
    ) {
        let retryAt = pause.map { runtime.world.now.advanced(by: $0) }
        let failure = failure.asReplayed
        let entry = NewEntry(
            .stepFailed, Position(turn: core.turn, step: request.path, attempt: attempt), ("error", failure.journal),
            ("final", .bool(retryAt == nil)), ("given_up", attempt == 0 ? true : nil),
            ("retry_at", retryAt.map { .string($0.description) }))
        guard let retryAt, let pause else { return failForGood(core, request, entry, failure, isAsked: attempt == 0) }
        guard !core.hasEnd(request.path), core.mayWrite else { return }
        let failed = FailedAttempt(
            core: core, request: request, attempt: attempt, failure: failure, pause: pause, retryAt: retryAt, saved: saved)
        write(AgentBatch(entries: [entry], epoch: .holds(core.epoch)), for: .attemptFailed(failed))
    }

    func attemptFailed(_ failed: FailedAttempt) {
        var request = failed.request
        let (earlier, steers) = (state.partials[request.path], steered(request.path))
        isOver(request.path)
        guard isCurrent(failed.core) else { return }
        keeps(request.path, earlier ?? SavedText())
        // What joined the attempt that failed is part of the next one, too.
        isSteered(request.path, by: steers)
        if failed.failure.code != StepFailure.prefixRefusedCode { request.failures += 1 }
        // The clock may have been set back while the entry was written.
        let retryAt = min(failed.retryAt, runtime.world.now.advanced(by: failed.pause))
        retry(failed.core, request, failed.attempt + 1, at: retryAt, failed.saved)
    }

    /// - Parameter isAsked: The program no longer wants the step; nothing that came before it can change that.
    private func failForGood(_ core: TurnCore, _ request: StepRequest, _ entry: NewEntry, _ failure: StepFailure, isAsked: Bool) {
        var end = StepEnd(core: core, request: request, entries: [entry], outcome: .failed(failure))
        end.rows = removal(core, [request])
        // Only what the program gives up can end beside a mark: this is called on the lane then.
        if isAsked { (end.yieldsTo, end.rows) = ([], end.rows + takeWaitingMark(core)) }
        writeEnd(end)
    }

    // MARK: Steps with a body

    private func runBody(
        _ core: TurnCore, _ request: StepRequest, _ attempt: UInt32, _ contract: StepContract, _ policy: RetryPolicy,
        _ body: @escaping @Sendable (StepContext) async throws -> JSON
    ) {
        let context = StepContext(
            idempotencyKey: idempotencyKey(core.turn, request.path), fence: core.epoch, attempt: Int(attempt))
        let task = Task(executorPreference: stepExecutor) { [self] in
            if Task.isCancelled { return }
            runtime.bodyBegan()
            defer { runtime.bodyEnded() }
            do {
                let result = try await body(context)
                complete(core, request, attempt: attempt, [("result", result)])
            } catch {
                // What fails while the process drains may fail because it drains: nothing is written, and it runs again.
                if runtime.isDraining { return }
                let failure = StepFailure(error)
                // At most once means that a failure is final too: nobody knows how far it got.
                let pause = contract == .atMostOnce ? nil : policy.pause(after: request.failures + 1, failure)
                fail(core, request, attempt: attempt, failure, pause: pause, SavedText())
            }
        }
        isUnderWay(request.path, task)
    }

    // MARK: Model steps

    private func runModel(
        _ core: TurnCore, _ request: StepRequest, _ attempt: UInt32, _ saved: SavedText, _ model: any Model, _ modelRequest: ModelRequest,
        _ policy: RetryPolicy
    ) {
        keeps(request.path, saved)
        // An answer can be gone on with when it is plain text and the model takes up a prefix; else it starts again.
        guard !saved.text.isEmpty, !saved.hasReasoning, !saved.isTextOver else {
            return callModel(core, request, attempt, SavedText(), model, modelRequest, policy)
        }
        switch model.continues {
        case .prefix: callModel(core, request, attempt, saved, model, modelRequest, policy)
        case .no, .resume: callModel(core, request, attempt, SavedText(), model, modelRequest, policy)
        case .auto:
            model.probeContinuation { [self] continues in
                lane.deliver {
                    // Ended meanwhile, or the process drains: nothing is bought any more.
                    guard self.isCurrent(core), !self.runtime.isDraining, !core.hasEnd(request.path) else { return }
                    self.callModel(core, request, attempt, continues ? saved : SavedText(), model, modelRequest, policy)
                }
            }
        }
    }

    private func callModel(
        _ core: TurnCore, _ request: StepRequest, _ number: UInt32, _ saved: SavedText, _ model: any Model, _ modelRequest: ModelRequest,
        _ policy: RetryPolicy
    ) {
        let position = Position(turn: core.turn, step: request.path, attempt: number)
        let joined = number == 1 ? takeSteers(core) : []
        guard !state.isGone else { return }
        if !joined.isEmpty {
            isSteered(
                request.path,
                by: .array(joined.map { ["offset": .string(Offset($0.offset).token), "text": .string($0.body.messageText ?? "")] }))
        }
        let steered = steered(request.path)
        var call = modelRequest
        call.messages += Activation.messages(steered)
        if !saved.text.isEmpty {
            call.continuing = Bytes(saved.text.prefix(ModelAttempt.prefixCount(of: saved.text))).text
            call.options.maxTokens = call.options.maxTokens.map { max(0, $0 - saved.pieces) }
        }
        let base = core.requests.base(of: modelRequest, at: request.path)
        let listing = RequestListing(call.messages.dropFirst(base?.keep ?? 0), history: core.history)
        started(
            core, request, number, journal: call.journal(model.name, digest: request.digest, base: base, listing),
            continuesAt: saved.text.isEmpty ? nil : saved.text.count,
            content: number == 1 ? modelRequest.content(beyond: base, listing) : [], joined: joined)
        let attempt = ModelAttempt(position: position, saved: saved, world: runtime.world, share: runtime.answerTexts.share()) {
            [self] attempt, entries in
            write(AgentBatch(entries: entries, epoch: .holds(core.epoch)), for: .text(attempt))
        } end: { [self] end in
            switch end {
            case .finished(let members, let last):
                Failpoint.pass("model.finish")
                complete(core, request, attempt: number, members + [("steered", steered)], last: last)
            case .failed(let failure, let saved):
                // Refused for the text that it was to go on from, it starts over: at once, and not as one of the attempts that the policy allows.
                let isPrefixRefused = failure.code == StepFailure.prefixRefusedCode
                let pause = isPrefixRefused ? .zero : policy.pause(after: request.failures + 1, failure)
                fail(core, request, attempt: number, failure, pause: pause, isPrefixRefused ? SavedText() : saved)
            }
        }
        // What it may still write was written before the process ended.
        if !saved.text.isEmpty, call.options.maxTokens == 0 { return attempt.received(.finished(reason: "length")) }
        isUnderWay(request.path, attempt)
        attempt.start(model, call)
    }

    // MARK: Sleeping

    /// The timer service says that a timer is due. On the lane, the agent loaded.
    func fire(_ timer: DueTimer) {
        // Which turn it belongs to, and whether that waits for it still, is known once what is being written is, and the replay is over.
        let isExpected = core?.turn == timer.turn && core?.expects(timer.path) == true
        guard knowsItsTurn, !isExpected else { return state.deferredTimers.append(timer) }
        if let core, core.turn == timer.turn, let request = core.waiting(at: timer.path), request.due == timer.due {
            cameDue(core, request, timer.due)
        } else if state.halt == nil {
            // Nobody waits for it: the row has no meaning any more. A turn that stalled may wait for it again, when its program is mended.
            runtime.timers.remove(timer.key(channel.id), runtime.channels.writer)
        }
    }

    /// Not while a turn is being begun or taken up again, nor while it replays.
    private var knowsItsTurn: Bool { core.map { !$0.isReplaying } ?? !state.isBusy }

    func fireDeferred() {
        guard !state.deferredTimers.isEmpty, knowsItsTurn else { return }
        let timers = state.deferredTimers
        state.deferredTimers = []
        for timer in timers { fire(timer) }
    }

    /// Still ahead: its row wakes the agent. Past: it was due while nobody was here; what was sent to it before is decided first, once all
    /// steps are open again.
    private func wasDue(_ core: TurnCore, _ request: StepRequest, _ open: Journal.OpenStep) {
        guard let due = open.due, due <= runtime.world.now else { return }
        state.deferredTimers.append(DueTimer(turn: core.turn, path: request.path, due: due))
    }

    private func cameDue(_ core: TurnCore, _ request: StepRequest, _ due: Timestamp) {
        if request.kind == .sleep { finishSleep(core, request, due: due) } else { expire(core, request, due: due) }
    }

    private func finishSleep(_ core: TurnCore, _ request: StepRequest, due: Timestamp) {
        let timer = DueTimer(turn: core.turn, path: request.path, due: due)
        let position = Position(turn: core.turn, step: request.path, attempt: 1)
        let entries = [
            NewEntry(.timerFired, position, ("timer", .string(timer.id)), ("due", .string(due.description))),
            NewEntry(.stepCompleted, position, ("result", .null)),
        ]
        var request = request
        request.work = .sleep(until: due)
        writeRestingEnd(StepEnd(core: core, request: request, entries: entries, outcome: .completed(["result": .null])))
    }
}

extension StepRequest {
    /// The last segment of its path, without its number.
    var name: String { String(path.split(separator: "/").last?.prefix { $0 != "#" } ?? "") }
}
