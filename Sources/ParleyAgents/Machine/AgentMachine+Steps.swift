internal import ParleyChannels
internal import ParleySystem

/// Events of the running turn, and the work of its steps.
extension AgentMachine {
    mutating func turn(_ event: TurnEvent, _ view: any AgentView) {
        switch event {
        case .asked(let request, let isKnown): carryOut(run?.ask(request, isKnown: isKnown), view)
        case .gaveUp(let path): carryOut(run?.machine.cancel(path), view)
        case .emitted(let entry): write(AgentBatch(entries: [entry], epoch: .holds(epoch)))
        case .scopeEnded(let scope, let names): carryOut(run?.machine.scopeEnded(scope, isNamed: names.contains), view)
        case .differs(let error, let source, let request): stall(request.map { explained(error, $0, view) } ?? error, at: source)
        case .ended(let result): carryOut(run?.machine.ended(result), view)
        case .compensated: carryOut(run?.machine.compensated(), view)
        case .give(let completion): carryOut(run?.machine.give(completion), view)
        case .release: carryOut(run?.machine.release(), view)
        case .report: carryOut(run?.machine.report(), view)
        case .checkOutside: carryOut(run?.machine.checkOutside(), view)
        case .resume(let path, let outcome, let at): carryOut(run?.machine.resume(path, outcome, at: at), view)
        case .cancelled(let reason, let at): carryOut(run?.machine.cancelled(reason, at: at), view)
        case .bodyEnded(let path, let attempt, let result): bodyEnded(path, attempt, result, view)
        case .modelEnded(let path, let attempt, let end): modelEnded(path, attempt, end, view)
        case .probed(let path, let attempt, let saved, let continues):
            // Ended meanwhile, or the process drains: nothing is bought any more.
            guard !view.isDraining, let request = step(path) else { return }
            callModel(request, attempt, continues ? saved : SavedText(), view)
        case .retry(let path, let attempt, let saved):
            if let request = step(path) { attemptStep(request, attempt, saved, view) }
        case .tryEnd(let end): afterReaction(end, view)
        }
    }

    /// Carries out the actions of the turn's machine, unless the turn has lost its right to run.
    mutating func carryOut(_ actions: [TurnMachine.Action]?, _ view: any AgentView) {
        guard let actions, let epoch = run?.epoch else { return }
        for action in actions where isCurrent(epoch) { carryOut(action, epoch, view) }
    }

    private mutating func carryOut(_ action: TurnMachine.Action, _ epoch: UInt64, _ view: any AgentView) {
        switch action {
        case .begin(let request): attemptStep(request, 1, SavedText(), view)
        case .reopen(let request, let open): reopen(request, open, view)
        case .cancel(let request): giveUp(request, view)
        case .give(let path, let outcome): actions.append(.give(path: path, outcome, now: run!.machine.now))
        case .giveNext(let completion): actions.append(.next([.turn(epoch: epoch, .give(completion))]))
        case .release: actions.append(.next([.turn(epoch: epoch, .release)]))
        case .caughtUp: caughtUp(view)
        case .checkOutsideLater:
            actions.append(.at(view.now.advanced(by: AgentMachine.outsideCheckInterval), .turn(epoch: epoch, .checkOutside)))
        case .warnOfOutside(let next): actions.append(.notice(.waitsOutside(turn: run!.turn, next: next)))
        case .cancelProgram: actions.append(.cancelProgram(now: run!.machine.now))
        case .compensate: actions.append(.compensate)
        case .report: actions.append(.later(.turn(epoch: epoch, .report)))
        case .end(let result): end(result, view)
        case .stall(let error): stall(error, at: nil)
        }
    }

    private static let outsideCheckInterval = Duration.seconds(10)

    /// A step that the program waits for and whose end is not on its way.
    private func step(_ path: String) -> StepRequest? {
        guard let run, !run.hasEnd(path) else { return nil }
        return run.machine.waiting(at: path)
    }

    private mutating func caughtUp(_ view: any AgentView) {
        perform(view) { _ in }
        // Taken up again only to wait, it is soon out of the reach of further crashes.
        if run?.restingSteps != nil { scheduleWaitingMark(view) }
    }

    /// Says in what a model's request is another one than that of the journal.
    private func explained(_ error: TurnError, _ request: StepRequest, _ view: any AgentView) -> TurnError {
        guard case .model(let model, let asked, _) = request.work, let start = run?.machine.recorded(request.path), start.kind == .model,
            let recorded = try? view.body(at: start.offset)?["request"]
        else { return error }
        var error = error
        error.message += " The request differs in: \(asked.differences(from: recorded, model.name))."
        return error
    }

    /// The program is not the one that the journal is of.
    private mutating func stall(_ error: TurnError, at source: String?) {
        // Its end comes before this.
        guard let run, !isWriting else { return }
        actions.append(.notice(.stalled(error, source: source)))
        let compensations = run.machine.compensations.registered.map { JSON.string($0.path) }
        let entry = NewEntry(
            .agentStalled, Position(turn: run.turn), ("reason", .string(error.code)), ("message", .string(error.message)),
            ("source", source.map { .string($0) }), ("compensations", compensations.isEmpty ? nil : .array(compensations)),
            (
                "remedy",
                "start the program that began the turn, then send 'resume'; or end the turn with 'cancel', which runs no program"
            ))
        leaveProgram(run, error)
        isWriting = true
        phase = .halted(Halt(turn: run.turn, status: .stalled))
        // In a new epoch, so that nothing of the program comes behind it.
        write(
            AgentBatch(entries: [entry], epoch: .takes(after: epoch), rows: [.status(.stalled, turn: run.turn)]), for: .turnHalted(run.turn)
        )
    }

    // MARK: Beginning

    private mutating func attemptStep(_ request: StepRequest, _ attempt: UInt32, _ saved: SavedText, _ view: any AgentView) {
        guard run?.hasEnd(request.path) == false else { return }
        if view.isDraining {
            if attempt == 1 { run?.keepsFromBeginning(request.path) }
            return
        }
        switch request.work {
        case .sleep, .wait, .approval, .follow: beginWaiting(request, view)
        case .body(let contract, _):
            started(request, attempt)
            // At most once: the start must be in the log before the work begins, see `stepStarted`.
            if contract == .atLeastOnce { actions.append(.runBody(path: request.path, attempt: attempt)) }
        case .model: runModel(request, attempt, saved, view)
        }
    }

    /// Continues a step that was begun before a crash.
    private mutating func reopen(_ request: StepRequest, _ open: Journal.OpenStep, _ view: any AgentView) {
        switch request.work {
        case .follow:
            actions.append(.later(.look))
            wasDue(open, request, view)
        case .wait, .approval: wasDue(open, request, view)
        case .sleep:
            guard let due = open.due, let turn = run?.turn else { return }
            let timer = DueTimer(turn: turn, path: request.path, due: due)
            if due <= view.now { cameDue(request, due, view) } else { ringAgain(timer) }
        case .body(.atMostOnce, _) where open.retryAt == nil:
            let failure = StepFailure(
                code: "outcome_unknown", message: "the process ended while the step ran; whether its effect happened is not known",
                retryable: false)
            fail(request, open.attempt, failure, pause: nil, SavedText(), view)
        case .body, .model:
            do { try rejoin(request.path, open, view) } catch { return unreadable(error) }
            guard let retryAt = open.retryAt else { return attemptStep(request, open.attempt + 1, open.text, view) }
            // The clock may have been set back since.
            retry(request.path, open.attempt + 1, at: min(retryAt, view.now.advanced(by: RetryPolicy.longestPause)), open.text)
        }
    }

    /// Adds to the request again what had joined it before the crash.
    private mutating func rejoin(_ path: String, _ open: Journal.OpenStep, _ view: any AgentView) throws {
        let texts: [JSON] = try open.steered.compactMap { offset in
            try view.body(at: offset).map { InboxItem.steer(offset, $0) }
        }
        var state = StepState()
        state.failures = open.failures
        state.steered = texts.isEmpty ? nil : .array(texts)
        state.keep(open.text.text.isEmpty ? open.earlier : open.text)
        run?.steps[path] = state
        actions.append(.reopened(path: path, startedAt: open.startedAt))
    }

    private mutating func started(
        _ request: StepRequest, _ attempt: UInt32, journal: JSON? = nil, continuesAt: Int? = nil,
        content: [(digest: Bytes, content: Bytes)] = [], joined: [InboxItem] = [], steered: [JSON] = []
    ) {
        // Named before the turn is read: what is held is not changed in place.
        guard let compensations = run?.machine.nameCompensations(), let run else { return }
        let entry = NewEntry(
            .stepStarted, Position(turn: run.turn, step: request.path, attempt: attempt), ("kind", .string(request.kind.rawValue)),
            ("name", .string(request.name)), ("idempotency_key", .string(request.idempotencyKey(identity.name, run.turn))),
            ("request", journal ?? request.asked),
            ("continues_at", continuesAt.map { .integer(Int64($0)) }),
            ("compensation", request.isCompensation ? true : nil), ("shielded", request.isShielded ? true : nil),
            ("compensations", compensations.isEmpty ? nil : .array(compensations.map { .string($0) })),
            ("steered", joined.isEmpty ? nil : .array(steered.compactMap { $0["offset"] })))
        let receipts = joined.map { AgentMachine.receipt($0.offset, $0.body, "applied", turn: run.turn, step: request.path) }
        var rows = takeWaitingMark()
        if attempt == 1, request.isModel { rows.append(.modelStarted(path: request.path)) }
        rows += content.map { .content($0.content, digest: $0.digest) }
        write(
            AgentBatch(entries: [entry] + receipts, epoch: .holds(run.epoch), decides: joined.map(\.offset), rows: rows),
            for: .stepStarted(epoch: run.epoch, request, attempt: attempt))
    }

    mutating func stepStarted(_ epoch: UInt64, _ request: StepRequest, _ attempt: UInt32, at offset: UInt64, _ view: any AgentView) {
        guard isCurrent(epoch) else { return }
        switch request.work {
        case .model(_, let asked, _) where attempt == 1: run?.requests.note(request.path, asked, at: offset)
        // A step that was stopped while its start was written does not run at all.
        case .body(.atMostOnce, _) where run?.hasEnd(request.path) == false:
            actions.append(.runBody(path: request.path, attempt: attempt))
        default: break
        }
        // An interrupt that came before there was anything to interrupt meets this step.
        perform(view) { _ in }
    }

    // MARK: Attempts

    private mutating func bodyEnded(
        _ path: String, _ attempt: UInt32, _ result: Result<JSON, StepFailure>, _ view: any AgentView
    ) {
        guard let request = step(path), case .body(let contract, let policy) = request.work else { return }
        switch result {
        case .success(let result): complete(request, attempt, [("result", result)])
        case .failure(let failure):
            // A failure while the process drains may come from the drain: nothing is written, and the step runs again.
            if view.isDraining { return }
            // At most once means that a failure is final too: it is not known how far the step got.
            let pause = contract == .atMostOnce ? nil : policy.pause(after: failures(path) + 1, failure)
            fail(request, attempt, failure, pause: pause, SavedText(), view)
        }
    }

    private func failures(_ path: String) -> Int { run?.steps[path]?.failures ?? 0 }

    private mutating func modelEnded(_ path: String, _ attempt: UInt32, _ end: ModelAttempt.End, _ view: any AgentView) {
        guard let request = step(path), case .model(_, _, let policy) = request.work else { return }
        switch end {
        case .finished(let members, let last):
            complete(request, attempt, members + [("steered", run?.steps[path]?.steered)], last: last)
        case .failed(let failure, let saved):
            // Refused for the text that it was to continue, it starts over: at once, and not as one of the attempts that the policy allows.
            let isPrefixRefused = failure.code == StepFailure.prefixRefusedCode
            let pause = isPrefixRefused ? .zero : policy.pause(after: failures(path) + 1, failure)
            fail(request, attempt, failure, pause: pause, isPrefixRefused ? SavedText() : saved, view)
        }
    }

    /// Journals the end of a step, and resumes the program once that is durable.
    private mutating func complete(_ request: StepRequest, _ attempt: UInt32, _ members: [(String, JSON?)], last: NewEntry? = nil) {
        guard let turn = run?.turn else { return }
        let bytes = NewEntry.join(members)
        let entry = NewEntry(.stepCompleted, Position(turn: turn, step: request.path, attempt: attempt), members: bytes)
        // As a replay has it. A model's answer is text, which no round trip changes, and may be long.
        let body =
            request.isModel
            ? JSON.object(members.compactMap { name, value in value.map { JSON.Member(name, $0) } })
            : bytes.withUnsafeBytes { EntryMembers($0).json }
        var end = run!.end(of: request, (last.map { [$0] } ?? []) + [entry], outcome: .completed(body))
        if request.isModel { end.rows = [.textSealed(path: request.path, turn: turn)] }
        writeEnd(end)
    }

    /// Journals a failed attempt: with a pause, another one follows; without, the program gets the failure.
    private mutating func fail(
        _ request: StepRequest, _ attempt: UInt32, _ failure: StepFailure, pause: Duration?, _ saved: SavedText, _ view: any AgentView
    ) {
        guard let run, !run.hasEnd(request.path) else { return }
        let retryAt = pause.map { view.now.advanced(by: $0) }
        let failure = failure.asReplayed
        let entry = AgentMachine.failed(run.turn, request, attempt, failure, retryAt)
        guard let retryAt, let pause else {
            var end = run.end(of: request, [entry], outcome: .failed(failure))
            end.rows = removal(run.turn, [request])
            return writeEnd(end)
        }
        let failed = FailedAttempt(
            epoch: run.epoch, request: request, attempt: attempt, failure: failure, pause: pause, retryAt: retryAt, saved: saved)
        write(AgentBatch(entries: [entry], epoch: .holds(run.epoch)), for: .attemptFailed(failed))
    }

    private static func failed(
        _ turn: UInt64, _ request: StepRequest, _ attempt: UInt32, _ failure: StepFailure, _ retryAt: Timestamp?
    ) -> NewEntry {
        NewEntry(
            .stepFailed, Position(turn: turn, step: request.path, attempt: attempt), ("error", failure.journal),
            ("final", .bool(retryAt == nil)), ("given_up", attempt == 0 ? true : nil),
            ("retry_at", retryAt.map { .string($0.description) }))
    }

    /// Ends a step because the program no longer wants it; nothing that came before it can change that.
    private mutating func giveUp(_ request: StepRequest, _ view: any AgentView) {
        // In a drain the step may be one that was kept from beginning; the next process comes to it again.
        guard let run, !run.hasEnd(request.path), !view.isDraining else { return }
        stop(request.path)
        let failure = StepFailure.cancelled.asReplayed
        var end = run.end(of: request, [AgentMachine.failed(run.turn, request, 0, failure, nil)], outcome: .failed(failure))
        (end.yieldsTo, end.rows) = ([], removal(run.turn, [request]) + takeWaitingMark())
        writeEnd(end)
    }

    mutating func attemptFailed(_ failed: FailedAttempt, _ view: any AgentView) {
        let path = failed.request.path
        actions.append(.forget(path: path))
        guard isCurrent(failed.epoch) else { return }
        // Messages that joined the failed attempt are part of the next one, too.
        if failed.failure.code != StepFailure.prefixRefusedCode { run?.steps[path, default: StepState()].failures += 1 }
        // The clock may have been set back while the entry was written.
        let retryAt = min(failed.retryAt, view.now.advanced(by: failed.pause))
        retry(path, failed.attempt + 1, at: retryAt, failed.saved)
    }

    private mutating func retry(_ path: String, _ attempt: UInt32, at instant: Timestamp, _ saved: SavedText) {
        run?.steps[path, default: StepState()].keep(saved)
        actions.append(.at(instant, .turn(epoch: epoch, .retry(path: path, attempt: attempt, saved))))
    }

    /// Stops what a step runs; text that was held back is appended.
    mutating func stop(_ path: String) {
        dropCall(path)
        actions.append(.stop(path: path))
        run?.steps[path]?.isOver()
    }

    /// Drops a call that was to start at the same moment.
    mutating func dropCall(_ path: String) {
        actions.removeAll { action in
            switch action {
            case .callModel(let run): run.path == path
            case .probe(let probed, _, _): probed == path
            default: false
            }
        }
    }

    /// Ends a step's work.
    mutating func forget(_ path: String) {
        actions.append(.forget(path: path))
        run?.steps[path]?.isOver()
    }

    // MARK: Models

    private mutating func runModel(_ request: StepRequest, _ attempt: UInt32, _ saved: SavedText, _ view: any AgentView) {
        guard case .model(let model, _, _) = request.work else { return }
        run?.steps[request.path, default: StepState()].keep(saved)
        // An answer can be continued when it is plain text and the model takes up a prefix; else it starts again.
        guard !saved.text.isEmpty, !saved.hasReasoning, !saved.isTextOver else { return callModel(request, attempt, SavedText(), view) }
        switch model.continues {
        case .prefix: callModel(request, attempt, saved, view)
        case .no, .resume: callModel(request, attempt, SavedText(), view)
        case .auto: actions.append(.probe(path: request.path, attempt: attempt, saved))
        }
    }

    private mutating func callModel(_ request: StepRequest, _ attempt: UInt32, _ saved: SavedText, _ view: any AgentView) {
        guard case .model(let model, let asked, _) = request.work else { return }
        let path = request.path
        // A continued answer answers what was asked.
        let joined = saved.text.isEmpty ? takeSteers(view, isShielded: request.isShielded) : []
        guard let run else { return }
        let steered = (run.steps[path]?.steered?.array ?? []) + joined.map(\.steer)
        if !joined.isEmpty { self.run?.steps[path, default: StepState()].steered = .array(steered) }
        let said = steered.map { ModelMessage.user(steer: $0) }
        var call = asked
        call.messages.join(said)
        if !saved.text.isEmpty {
            call.continuing = Bytes(saved.text.prefix(ModelAttempt.prefixCount(of: saved.text))).text
            call.options.maxTokens = call.options.maxTokens.map { max(0, $0 - saved.pieces) }
        }
        var base = run.requests.base(of: asked, at: path)
        // From the first message that joined it on, the request is no longer the same as another.
        if let first = said.first, let keep = base?.keep { base?.keep = min(keep, asked.messages.place(of: first)) }
        let listing = RequestListing(call.messages.dropFirst(base?.keep ?? 0), history: run.history)
        started(
            request, attempt, journal: call.journal(model.name, digest: request.digest, base: base, listing),
            continuesAt: saved.text.isEmpty ? nil : saved.text.count,
            content: attempt == 1 ? asked.content(beyond: base, listing) : [], joined: joined, steered: steered)
        actions.append(.callModel(ModelRun(path: path, attempt: attempt, request: call, saved: saved)))
    }

    /// Takes the messages since the last call, which join this one in their order.
    private mutating func takeSteers(_ view: any AgentView, isShielded: Bool) -> [InboxItem] {
        var offsets = Array(inbox.steers.all)
        if agent.policy == .steer { offsets = (offsets + inbox.messages.all).sorted() }
        // A message behind an interrupt which is about to end this call joins the one after it.
        let end = isShielded ? .max : firstInterrupt
        var (items, bytes): ([InboxItem], Int) = ([], 0)
        for offset in offsets where offset < end {
            guard let entry = inbox[offset], condition(entry) == .holds else { continue }
            bytes += Int(entry.row.byteCount)
            // The rest joins the call after this one.
            guard items.count < AgentMachine.steersMax, items.isEmpty || bytes <= AgentMachine.steerBytesMax else { break }
            guard let item = item(offset, view) else { return [] }
            items.append(item)
        }
        for item in items { remove(item) }
        return items
    }

    /// The first entry that ends what the steps do; `.max` without one.
    private var firstInterrupt: UInt64 {
        let entries =
            inbox.controls.all.filter { inbox[$0]?.kind == .interrupt && !isMessage($0) }
            + (agent.policy == .interrupt ? Array(inbox.messages.all) : [])
        return entries.filter { inbox[$0].map { condition($0) == .holds } ?? false }.min() ?? .max
    }

    /// How much joins one request at most.
    private static let steersMax = 256
    private static let steerBytesMax = 256 << 10
}
