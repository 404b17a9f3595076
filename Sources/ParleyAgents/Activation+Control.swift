internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// What an entry from outside does to the turn under way. Each is decided once, with its receipt in the batch that carries what it did; where two
/// race for the end of a step, the one that stands first in the log wins.
extension Activation {
    /// Decides what can be decided now; the rest stays in the inbox.
    func react() {
        guard let core, !core.isReplaying, !core.isFenced, !isBeginning else { return }
        var failed = failedConditions()
        while !failed.isEmpty {
            for entry in failed {
                remove(entry.item)
                reject(entry.item, entry.reason, as: entry.outcome)
            }
            failed = failedConditions()
        }
        while isCurrent(core), decideNext(core) {}
        readFollowed(core)
    }

    /// Decides the first entry, in log order, that can be decided.
    private func decideNext(_ core: TurnCore) -> Bool {
        state.hasMoreToScan = false
        // It is asked after everything that happens, and the open steps of a turn may be thousands.
        guard inbox.mayMatter(to: agent.policy, awaits: core.awaits) else { return false }
        let open = core.openSteps
        for offset in candidates(open) {
            guard let entry = inbox[offset], condition(entry) == .holds, mayDecide(core, entry, open) else { continue }
            guard let item = item(offset) else {
                // What cannot be read is decided before what comes behind it, by the next activation.
                if state.isGone { return false }
                continue
            }
            guard decide(core, item) else { continue }
            remove(item)
            return true
        }
        return false
    }

    /// The entries that something may be decided on, in log order.
    private func candidates(_ open: [StepRequest]) -> [UInt64] {
        var offsets = Array(inbox.controls.all)
        switch agent.policy {
        case .queue, .steer: break
        case .interrupt, .reject, .rollback:
            if let message = inbox.messages.all.first(where: { inbox[$0].map { condition($0) == .holds } ?? false }) {
                offsets.append(message)
            }
        }
        var end = UInt64.max
        for step in open {
            guard case .wait(let name, let match, _) = step.work else { continue }
            var scan = state.scans[step.path] ?? SignalScan()
            let found = scan.next(inbox, name) { [self] entry in
                guard condition(entry) == .holds else { return false }
                guard !match.isEmpty else { return true }
                let data = item(entry.offset)?.body["data"] ?? .null
                return match.allSatisfy { data[$0.name] == $0.value }
            }
            state.scans[step.path] = scan
            if let found { offsets.append(found) }
            // What stands behind signals that have not been looked at has to wait for them.
            if let stop = scan.stop { (end, state.hasMoreToScan) = (min(end, stop), true) }
        }
        if state.hasMoreToScan { lane.deliver { self.perform {} } }
        return offsets.filter { $0 <= end }.sorted()
    }

    /// Whether an entry is worth reading: what it asks for can be done now.
    private func mayDecide(_ core: TurnCore, _ entry: Inbox.Entry, _ open: [StepRequest]) -> Bool {
        switch entry.kind {
        case .interrupt: open.contains { !$0.isShielded }
        case .cancel: canCancel(core)
        case .close: false
        case .message: agent.policy == .rollback ? canCancel(core) : agent.policy == .reject || open.contains { !$0.isShielded }
        default: true
        }
    }

    private func canCancel(_ core: TurnCore) -> Bool { !isCancelling && core.cancellation == nil && !core.hasEnd(TurnCore.turnEnd) }

    private func decide(_ core: TurnCore, _ item: InboxItem) -> Bool {
        switch item.kind {
        case .interrupt: interrupt(core, item, text: item.body["text"]?.string)
        case .cancel: cancelTurn(core, item)
        case .approve, .deny: decideApproval(core, item)
        case .signal: deliverSignal(core, item)
        case .message: applyPolicy(core, item)
        case .resume: refuse(item, "not_parked")
        default: false
        }
    }

    private func refuse(_ item: InboxItem, _ reason: String) -> Bool {
        reject(item, reason)
        return true
    }

    /// What to do with a message that comes while a turn runs.
    private func applyPolicy(_ core: TurnCore, _ item: InboxItem) -> Bool {
        switch agent.policy {
        case .queue, .steer: return false
        case .interrupt: return interrupt(core, item, text: item.body.messageText ?? "")
        case .reject: return refuse(item, "busy")
        case .rollback: return cancelTurn(core, nil)
        }
    }

    /// What an entry's own condition comes to now: `if_offset` names the entry right before it, `if_turn` the turn that it is for.
    enum Condition: Equatable {
        case holds
        /// The turn that it is for has not begun.
        case notYet
        /// The agent has moved on; the reason of the receipt.
        case failed(String)
    }

    func condition(_ entry: Inbox.Entry) -> Condition {
        if entry.isMisplaced { return .failed("stale_offset") }
        guard let wanted = entry.row.turn else { return .holds }
        if wanted == openTurn { return .holds }
        // Its message is there, and waits for its turn.
        if !entry.isForNoTurn, inbox.mayBegin(wanted) { return .notYet }
        // A message is also for a reader that has just seen the end of that turn.
        if entry.kind == .message, openTurn == nil, wanted == lastTurn { return .holds }
        return .failed(entry.kind == .steer || openTurn == nil && entry.kind != .message ? "turn_ended" : "stale_turn")
    }

    /// The turn that has begun and not ended, whether or not its program runs.
    var openTurn: UInt64? { core?.turn ?? state.halt?.turn }

    func reject(_ item: InboxItem, _ reason: String, as state: String = "rejected") {
        let receipt = Activation.receipt(item.offset, item.body, state, reason: reason)
        write(AgentBatch(entries: [receipt], epoch: .holds(epoch), decides: [item.offset]), for: .rejected(item.offset))
    }

    // MARK: Interrupt

    /// Ends what the turn's steps do, and only that: the program goes on with what there is.
    private func interrupt(_ core: TurnCore, _ item: InboxItem, text: String?) -> Bool {
        // Nothing is under way at this instant: it meets the next step, or the one whose end is on its way and gives way to it.
        let steps = core.openSteps.filter { !$0.isShielded && core.claimEnd($0.path) }
        guard !steps.isEmpty else { return false }
        var ends: [(request: StepRequest, outcome: StepOutcome)] = []
        var entries = [Activation.receipt(item.offset, item.body, "applied", turn: core.turn, step: steps[0].path)]
        for step in steps {
            let (end, outcome) = interruptedEnd(core, step, by: item, text)
            entries += end
            ends.append((step, outcome))
        }
        writeEnds(StepEnds(core: core, ends: ends), entries, decides: [item.offset])
        return true
    }

    private func interruptedEnd(_ core: TurnCore, _ step: StepRequest, by item: InboxItem, _ text: String?) -> ([NewEntry], StepOutcome) {
        let position = Position(turn: core.turn, step: step.path)
        guard case .model = step.work else {
            stop(step.path)
            let failure = StepFailure.interrupted(text)
            return ([NewEntry(.stepFailed, position, ("error", failure.journal), ("final", true))], .failed(failure))
        }
        // Before an attempt has said anything, what readers were shown of the one before is what there is. The piece that was held is shown
        // to them as well: it may be all that there is in place of what another attempt had written.
        var (partial, last) = modelCall(step.path)?.interrupt() ?? ([], nil)
        if partial.isEmpty || partial[0].1 == "" {
            last = nil
            partial = [("text", .string(self.partial(step.path))), ("finish_reason", "interrupted"), ("recovered_tokens", 0)]
        }
        let members =
            partial
            + [
                ("steered", steered(step.path)), ("interrupted_by", .string(Offset(item.offset).token)),
                ("redirection", text.map { .string($0) }),
            ]
        isOver(step.path)
        return (
            (last.map { [$0] } ?? []) + [NewEntry(.stepCompleted, position, members: NewEntry.join(members))],
            .completed(
                .object(
                    members.compactMap { name, value in
                        value.map { JSON.Member(name, $0) }
                    }))
        )
    }

    /// Commits the ends of steps and what else happened with them, and has the program go on from all of them, in the order of the log.
    private func writeEnds(_ ends: StepEnds, _ entries: [NewEntry], decides: [UInt64]) {
        let models = ends.ends.filter { end in
            guard case .model = end.request.work, case .completed = end.outcome else { return false }
            return true
        }
        let rows =
            removal(ends.core, ends.ends.map(\.request)) + takeWaitingMark(ends.core)
            + models.map { .textSealed(path: $0.request.path, turn: ends.core.turn) }
        write(AgentBatch(entries: entries, epoch: .holds(ends.core.epoch), decides: decides, rows: rows), for: .stepsEnded(ends))
    }

    func stepsEnded(_ ended: StepEnds, at: Timestamp) {
        let core = ended.core
        over(core, ended.ends.map(\.request))
        // One at a time, the lane drained in between, as on a replay, and before what later commits give.
        let resumptions = ended.ends.map { end in
            { @Sendable [self] in if isCurrent(core) { core.resume(end.request.path, end.outcome, at: at) } }
        }
        let cancel = { @Sendable [self] in
            if let reason = ended.cancellation, isCurrent(core) { core.cancelled(reason, at: at) }
        }
        // What asked for the same end waits for this.
        lane.deliver(parts: [cancel] + resumptions + [{ @Sendable [self] in perform {} }])
    }

    // MARK: Cancel

    /// Ends everything under way that is not shielded, and has the program come to its end. `nil`: rolled back because a newer message takes
    /// its place.
    private func cancelTurn(_ core: TurnCore, _ item: InboxItem?) -> Bool {
        // The turn's end is on its way to the log; it gives way if this stands before it.
        guard canCancel(core) else { return false }
        isCancelling = true
        let steps = core.openSteps.filter { !$0.isShielded && core.claimEnd($0.path) }
        let reason: JSON = item == nil ? "rollback" : item?.body["reason"] ?? .null
        var entries = item.map { [Activation.receipt($0.offset, $0.body, "applied", turn: core.turn)] } ?? []
        entries.append(
            NewEntry(
                .supervision, Position(turn: core.turn), ("cause", item == nil ? "rollback" : "cancel"), ("action", "cancel"),
                ("reason", reason == .null ? nil : reason)))
        for step in steps {
            stop(step.path)
            entries.append(Activation.stepCancelled(core.turn, step.path))
        }
        let ends = StepEnds(core: core, ends: steps.map { ($0, .failed(.cancelled)) }, cancellation: reason)
        writeEnds(ends, entries, decides: item.map { [$0.offset] } ?? [])
        return item != nil
    }

    // MARK: Approvals and signals

    private func decideApproval(_ core: TurnCore, _ item: InboxItem) -> Bool {
        let path = Activation.approvalPath(core.turn, item)
        guard let step = core.openSteps.first(where: { $0.path == path && $0.kind == .approval }) else {
            // What ends it is on its way to the log, and may still yield: the log will say what this one is answered.
            if core.waiting(at: path)?.kind == .approval { return false }
            // The program has not come to it again: it waits for something outside the turn.
            if core.expects(path) { return false }
            do { return refuse(item, try decisionInLog(of: item) ?? "unknown_approval") } catch {
                stopped(error)
                return false
            }
        }
        if let reason = Activation.approvalRefusal(item, until: step.due, digest: step.digest) { return refuse(item, reason) }
        guard core.claimEnd(path) else { return false }
        decideApproval(core, step, item, isApproved: item.kind == .approve)
        return true
    }

    private func decideApproval(_ core: TurnCore, _ step: StepRequest, _ item: InboxItem, isApproved: Bool) {
        let (entries, outcome) = Activation.approvalEnd(core.turn, step.path, digest: step.digest, item)
        writeEnds(StepEnds(core: core, ends: [(step, outcome)]), entries, decides: [item.offset])
    }

    /// The step whose approval the entry decides; empty when it is none of this turn's.
    static func approvalPath(_ turn: UInt64, _ item: InboxItem) -> String {
        let name = item.body["approval"]?.string ?? ""
        let prefix = Offset(turn).token + "/"
        return name.hasPrefix(prefix) ? String(name.dropFirst(prefix.count)) : ""
    }

    /// Why a decision does not count for an approval that is open; `nil` when it does.
    static func approvalRefusal(_ item: InboxItem, until: Timestamp?, digest: String?) -> String? {
        if let until, item.at >= until { return "approval_expired" }
        if let wanted = item.body["args_sha256"]?.string, wanted != digest { return "arguments_changed" }
        return nil
    }

    /// What a decision that counts writes, and what the program gets of it.
    static func approvalEnd(_ turn: UInt64, _ path: String, digest: String?, _ item: InboxItem) -> ([NewEntry], StepOutcome) {
        let isApproved = item.kind == .approve
        let position = Position(turn: turn, step: path)
        let by = item.body["by"]?.string ?? ""
        let decided = approvalDecided(turn, path, digest, isApproved ? "approved" : "denied", by: by, reason: item.body["reason"])
        let failure = StepFailure(
            code: "approval_denied", message: "denied by \(by)", retryable: false,
            data: JSON.compact(("decided_by", .string(by)), ("reason", item.body["reason"])))
        let result: JSON = ["decision": "approved", "decided_by": .string(by)]
        let end =
            isApproved
            ? NewEntry(.stepCompleted, position, ("result", result))
            : NewEntry(.stepFailed, position, ("error", failure.journal), ("final", true))
        let receipt = receipt(item.offset, item.body, "applied", turn: turn, step: path)
        return ([receipt, decided, end], isApproved ? .completed(["result": result]) : .failed(failure))
    }

    /// Why an `approve` or `deny` comes too late, by what the log says; `nil` when it says nothing of a decision.
    func decisionInLog(of item: InboxItem) throws(LogError) -> String? {
        guard let name = item.body["approval"]?.string, let turn = Offset(token: String(name.prefix { $0 != "/" })) else { return nil }
        var reason: String?
        try runtime.channels.walk(channel, after: turn.value, upTo: channel.tail.head) { _, frame in
            if frame.kind == .approvalDecided, frame.body["approval"]?.string == name {
                reason = frame.body["decision"] == "expired" ? "approval_expired" : "already_decided"
            }
            return reason == nil && !(frame.kind.endsTurn && frame.position?.turn == turn.value)
        }
        return reason
    }

    static func approvalDecided(
        _ turn: UInt64, _ path: String, _ digest: String?, _ decision: JSON, by: String?, reason: JSON? = nil
    ) -> NewEntry {
        NewEntry(
            .approvalDecided, Position(turn: turn, step: path), ("approval", .string("\(Offset(turn))/\(path)")),
            ("decision", decision), ("decided_by", by.map { .string($0) }), ("args_sha256", digest.map { .string($0) }),
            ("reason", reason))
    }

    private func deliverSignal(_ core: TurnCore, _ item: InboxItem) -> Bool {
        let data = item.body["data"] ?? .null
        let step = core.openSteps.first { step in
            guard case .wait(let signal, let match, _) = step.work else { return false }
            return signal == item.body["name"]?.string && match.allSatisfy { data[$0.name] == $0.value }
        }
        guard let step, core.claimEnd(step.path) else { return false }
        let entries = [
            Activation.receipt(item.offset, item.body, "applied", turn: core.turn, step: step.path),
            NewEntry(.stepCompleted, Position(turn: core.turn, step: step.path), ("result", data)),
        ]
        writeEnds(StepEnds(core: core, ends: [(step, .completed(["result": data]))]), entries, decides: [item.offset])
        return true
    }

    // MARK: Waiting

    /// Begins a wait or an approval: its entries and, if it ends by itself, its timer.
    func beginWaiting(_ core: TurnCore, _ request: StepRequest) {
        var request = request
        do { try bindFollow(&request) } catch { return stopped(error) }
        let position = Position(turn: core.turn, step: request.path, attempt: 1)
        var entries = [
            NewEntry(
                .stepStarted, position, ("kind", .string(request.kind.rawValue)), ("name", .string(request.name)),
                ("idempotency_key", .string(idempotencyKey(core.turn, request.path))), ("request", request.asked),
                ("shielded", request.isShielded ? true : nil))
        ]
        if case .approval(let action, let arguments, let until) = request.work {
            entries.append(
                NewEntry(
                    .approvalRequested, position, ("approval", .string("\(Offset(core.turn))/\(request.path)")),
                    ("action", .string(action)),
                    ("args", arguments), ("args_sha256", request.digest.map { .string($0) }),
                    ("expires_at", until.map { .string($0.description) }), ("shielded", request.isShielded ? true : nil)))
        }
        let timer = request.due.map { DueTimer(turn: core.turn, path: request.path, due: $0) }
        if let timer {
            entries.append(NewEntry(.timerSet, position, ("timer", .string(timer.id)), ("due", .string(timer.due.description))))
        }
        let follow = follow(core, request)
        let rows = (timer.map { [AgentRow.timer($0)] } ?? []) + (follow.map { [.follow($0)] } ?? [])
        write(AgentBatch(entries: entries, epoch: .holds(core.epoch), rows: rows), for: .waitStarted(core, timer, follow))
    }

    func waitStarted(_ core: TurnCore, _ timer: DueTimer?, _ follow: Follow?) {
        if let timer { runtime.timers.set(timer.due) }
        // Deleted meanwhile, nobody would end it.
        if let follow, isCurrent(core), !channel.tail.isDeleted { runtime.follows.begin(follow) }
        perform {}
        scheduleWaitingMark()
    }

    /// A wait or an approval has come to its end by itself. What was sent before is decided first.
    func expire(_ core: TurnCore, _ request: StepRequest, due: Timestamp) {
        let position = Position(turn: core.turn, step: request.path)
        let timer = DueTimer(turn: core.turn, path: request.path, due: due)
        let isApproval = request.kind == .approval
        let failure =
            isApproval
            ? StepFailure(code: "approval_expired", message: "nobody decided until \(due)", retryable: false)
            : StepFailure(code: "wait_timeout", message: "no signal came until \(due)", retryable: false)
        var entries = [NewEntry(.timerFired, position, ("timer", .string(timer.id)), ("due", .string(due.description)))]
        if isApproval { entries.append(Activation.approvalDecided(core.turn, request.path, request.digest, "expired", by: nil)) }
        entries.append(NewEntry(.stepFailed, position, ("error", failure.journal), ("final", true)))
        writeRestingEnd(
            StepEnd(
                core: core, request: request, entries: entries, outcome: .failed(failure),
                yieldsTo: Activation.stopping.union(isApproval ? [.approve, .deny] : [.signal])))
    }
}
