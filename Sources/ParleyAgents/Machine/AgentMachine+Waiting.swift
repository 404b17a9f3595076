internal import ParleyChannels
internal import ParleySystem

/// Steps that need no memory while they wait: for a time, a signal, a person, another channel.
extension AgentMachine {
    /// Begins a wait: writes its entries, the row of its timer if it has one, and the row by which it is found if it follows a channel.
    mutating func beginWaiting(_ asked: StepRequest, _ view: any AgentView) {
        guard let run else { return }
        let request: StepRequest
        do { request = try bound(asked, view) } catch { return unreadable(error) }
        let position = Position(turn: run.turn, step: request.path, attempt: 1)
        var entries = [
            NewEntry(
                .stepStarted, position, ("kind", .string(request.kind.rawValue)), ("name", .string(request.name)),
                ("idempotency_key", .string(request.idempotencyKey(identity.name, run.turn))), ("request", request.asked),
                ("shielded", request.isShielded ? true : nil))
        ]
        if case .approval(let action, let arguments, let until) = request.work {
            entries.append(
                NewEntry(
                    .approvalRequested, position, ("approval", .string("\(Offset(run.turn))/\(request.path)")),
                    ("action", .string(action)),
                    ("args", arguments), ("args_sha256", request.digest.map { .string($0) }),
                    ("expires_at", until.map { .string($0.description) }), ("shielded", request.isShielded ? true : nil)))
        }
        let timer = request.timer(run.turn)
        if let timer {
            entries.append(NewEntry(.timerSet, position, ("timer", .string(timer.id)), ("due", .string(timer.due.description))))
        }
        let follow = follow(run.turn, request)
        let rows = (timer.map { [AgentRow.timer($0)] } ?? []) + (follow.map { [.follow(.begins($0))] } ?? [])
        write(
            AgentBatch(entries: entries, epoch: .holds(run.epoch), rows: rows),
            for: .waitStarted(epoch: run.epoch, timer, isFollow: follow != nil))
    }

    /// Binds the step to the channel that it follows from here on: the one that has the name now, unless the program has read of one before.
    private mutating func bound(_ request: StepRequest, _ view: any AgentView) throws -> StepRequest {
        guard case .follow(let followed, _, let known, _) = request.work else { return request }
        let incarnation = if let known { known } else { try view.incarnation(of: followed) }
        run?.steps[request.path, default: StepState()].followed = incarnation
        guard let incarnation else { return request }
        return request.with(details: request.details + [JSON.Member("incarnation", .string(incarnation))])
    }

    mutating func waitStarted(_ epoch: UInt64, _ timer: DueTimer?, isFollow: Bool, _ view: any AgentView) {
        if let timer { actions.append(.timerSet(timer.due)) }
        // An entry that is there already need not wait for its notice.
        if isFollow, isCurrent(epoch) { actions.append(.later(.look)) }
        perform(view) { _ in }
        if isCurrent(epoch) { scheduleWaitingMark(view) }
    }

    // MARK: Timers

    /// The timer service says that a timer is due.
    mutating func fire(_ timer: DueTimer, _ view: any AgentView) {
        // The one before it has met a log that cannot be read: the next activation finds what is due.
        guard !isGone else { return }
        // Whether its turn still waits for it is known only once the write in flight and the replay are over.
        let isExpected = run?.turn == timer.turn && run?.machine.expects(timer.path) == true
        guard knowsItsTurn, !isExpected else { return deferredTimers.append(timer) }
        if let run, run.turn == timer.turn, let request = run.machine.waiting(at: timer.path), request.due == timer.due {
            cameDue(request, timer.due, view)
        } else if halt == nil {
            // No step waits for it, so the row has lost its meaning. A stalled turn may wait for it again, once its program is mended.
            actions.append(.removeTimer(timer))
        }
    }

    /// Not while a turn is being begun or taken up again, nor while it replays.
    private var knowsItsTurn: Bool { run.map { $0.machine.isLive } ?? !isWriting }

    mutating func fireDeferred(_ view: any AgentView) {
        guard !deferredTimers.isEmpty, knowsItsTurn else { return }
        let timers = deferredTimers
        deferredTimers = []
        for timer in timers { fire(timer, view) }
    }

    /// Still ahead: its timer wakes the agent. Past: it was due while the agent was not in memory; earlier input is decided first, once all steps are
    /// open again.
    mutating func wasDue(_ open: Journal.OpenStep, _ request: StepRequest, _ view: any AgentView) {
        guard let due = open.due, let turn = run?.turn else { return }
        let timer = DueTimer(turn: turn, path: request.path, due: due)
        if due <= view.now { deferredTimers.append(timer) } else { ringAgain(timer) }
    }

    /// It may have rung while no program ran, and the clock been set back since.
    mutating func ringAgain(_ timer: DueTimer) { actions += [.timerSettled(timer), .timerSet(timer.due)] }

    mutating func cameDue(_ request: StepRequest, _ due: Timestamp, _ view: any AgentView) {
        if request.kind == .sleep { return finishSleep(request, due) }
        // An entry that reached the followed channel in time counts, even if the agent was not in memory to read it.
        if !hasRead(request, considered: 0, isOver: true, view) { expire(request, due) }
    }

    private mutating func finishSleep(_ request: StepRequest, _ due: Timestamp) {
        guard let run else { return }
        let timer = DueTimer(turn: run.turn, path: request.path, due: due)
        let position = Position(turn: run.turn, step: request.path, attempt: 1)
        let entries = [
            NewEntry(.timerFired, position, ("timer", .string(timer.id)), ("due", .string(due.description))),
            NewEntry(.stepCompleted, position, ("result", .null)),
        ]
        writeRestingEnd(
            run.end(of: request.with(work: .sleep(until: due)), entries, outcome: .completed(["result": .null])))
    }

    /// Ends a wait or an approval whose time has come. Earlier input is decided first.
    private mutating func expire(_ request: StepRequest, _ due: Timestamp) {
        guard let run else { return }
        let position = Position(turn: run.turn, step: request.path)
        let timer = DueTimer(turn: run.turn, path: request.path, due: due)
        let isApproval = request.kind == .approval
        let failure =
            isApproval
            ? StepFailure(code: "approval_expired", message: "nobody decided until \(due)", retryable: false)
            : StepFailure(code: "wait_timeout", message: "no signal came until \(due)", retryable: false)
        var entries = [NewEntry(.timerFired, position, ("timer", .string(timer.id)), ("due", .string(due.description)))]
        if isApproval { entries.append(AgentMachine.approvalDecided(run.turn, request.path, request.digest, "expired", by: nil)) }
        entries.append(AgentMachine.failed(run.turn, request.path, failure))
        writeRestingEnd(
            run.end(
                of: request, entries, outcome: .failed(failure),
                yieldsTo: AgentMachine.stopping.union(isApproval ? [.approve, .deny] : [.signal])))
    }

    // MARK: The mark of a turn that only waits

    /// Shows soon that the turn only waits; not for a pause of a moment, which would cost two more commits.
    mutating func scheduleWaitingMark(_ view: any AgentView) {
        guard run?.isMarkedWaiting == false else { return }
        call(.waitingMark, at: view.now.advanced(by: AgentMachine.waitingMarkDelay))
    }

    /// Something of the turn has ended: the rest may be waits that began before. Beside the program's own tasks there may be something else, which a
    /// process that starts must come to.
    mutating func mayOnlyWait(_ view: any AgentView) {
        guard let run, run.machine.waitCount > 0, !rest.alarms.contains(.waitingMark), !run.hasOwnTasks else { return }
        scheduleWaitingMark(view)
    }

    private static let waitingMarkDelay = Duration.milliseconds(200)

    /// The log says from here on that the turn only waits: a process that starts leaves it alone until something comes for it.
    mutating func markWaiting(isLeaving: Bool) {
        guard let run else { return }
        let rows = run.isMarkedWaiting ? [] : [AgentRow.status(.waiting, turn: run.turn)]
        self.run?.isMarkedWaiting = true
        write(
            AgentBatch(entries: [], epoch: .holds(run.epoch), rows: rows), for: .turnWaits(epoch: run.epoch, isLeaving: isLeaving))
    }

    /// Returns the row to write with any batch that makes the turn run again: a turn that is marked as waiting is taken up after a crash only when
    /// something comes for it.
    mutating func takeWaitingMark() -> [AgentRow] {
        guard let run, run.isMarkedWaiting else { return [] }
        self.run?.isMarkedWaiting = false
        return [.status(.running, turn: run.turn)]
    }
}
