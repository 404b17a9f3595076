internal import ParleyChannels
internal import ParleySystem

/// The effects of entries from outside on the running turn. Each is decided once, with its receipt in the batch that carries its effect; where two
/// race for the end of a step, the one that comes first in the log wins.
extension AgentMachine {
    /// The kinds that may stop a step or a turn.
    static var stopping: EntryKinds { [.interrupt, .cancel] }

    /// Decides what can be decided now; the rest stays in the inbox.
    mutating func react(_ view: any AgentView) {
        guard let epoch = run?.epoch, run!.machine.isLive, !isWriting else { return }
        var failed = failedConditions(view)
        while !failed.isEmpty {
            for entry in failed {
                remove(entry.item)
                reject(entry.item, entry.reason, as: entry.outcome)
            }
            failed = failedConditions(view)
        }
        while isCurrent(epoch), decideNext(view) {}
        readFollowed(view)
    }

    /// Decides the first entry, in log order, that can be decided.
    private mutating func decideNext(_ view: any AgentView) -> Bool {
        if run?.hasMoreToScan == true { run?.hasMoreToScan = false }
        // It is asked after everything that happens, and the open steps of a turn may be thousands.
        guard let run, inbox.mayMatter(to: agent.policy, awaits: { run.machine.awaits($0) }) else { return false }
        let open = run.openSteps
        for offset in candidates(open, view) {
            guard let entry = inbox[offset], condition(entry) == .holds, mayDecide(entry, open) else { continue }
            guard let item = item(offset, view) else {
                // An unreadable entry is decided before the ones behind it, by the next activation.
                if isGone { return false }
                continue
            }
            guard decide(item, view) else { continue }
            remove(item)
            return true
        }
        return false
    }

    /// The entries that something may be decided on, in log order.
    private mutating func candidates(_ open: [StepRequest], _ view: any AgentView) -> [UInt64] {
        var offsets = inbox.controls.all.filter { !isMessage($0) }
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
            var scan = run?.steps[step.path]?.scan ?? SignalScan()
            let found: UInt64?
            do { found = try scan.next(inbox, name) { try isMeant($0, match, view) } } catch {
                unreadable(error)
                return []
            }
            run?.steps[step.path, default: StepState()].scan = scan
            if let found { offsets.append(found) }
            // Entries behind signals that have not been looked at wait for them.
            if let stop = scan.stop {
                end = min(end, stop)
                run?.hasMoreToScan = true
            }
        }
        if run?.hasMoreToScan == true { actions.append(.later(.look)) }
        return offsets.filter { $0 <= end }.sorted()
    }

    /// Whether a signal counts for the turn, and has what is waited for.
    private func isMeant(_ entry: Inbox.Entry, _ match: [JSON.Member], _ view: any AgentView) throws -> Bool {
        guard condition(entry) == .holds else { return false }
        guard !match.isEmpty else { return true }
        let data = try view.item(at: entry.offset)?.body["data"] ?? .null
        return match.allSatisfy { data[$0.name] == $0.value }
    }

    /// Whether an entry is worth reading: whether it can take effect now.
    private func mayDecide(_ entry: Inbox.Entry, _ open: [StepRequest]) -> Bool {
        switch entry.kind {
        case .interrupt: open.contains { !$0.isShielded }
        case .cancel: run?.canCancel ?? false
        case .close: false
        case .message:
            agent.policy == .rollback ? run?.canCancel ?? false : agent.policy == .reject || open.contains { !$0.isShielded }
        default: true
        }
    }

    private mutating func decide(_ item: InboxItem, _ view: any AgentView) -> Bool {
        switch item.kind {
        case .interrupt: interrupt(item, text: item.body["text"]?.string, view)
        case .cancel: cancelTurn(item)
        case .approve, .deny: decideApproval(item, view)
        case .signal: deliverSignal(item)
        case .message: applyPolicy(item, view)
        case .resume: refuse(item, "not_parked")
        default: false
        }
    }

    private mutating func refuse(_ item: InboxItem, _ reason: String) -> Bool {
        reject(item, reason)
        return true
    }

    /// Handles a message that comes while a turn runs.
    private mutating func applyPolicy(_ item: InboxItem, _ view: any AgentView) -> Bool {
        switch agent.policy {
        case .queue, .steer: return false
        case .interrupt: return interrupt(item, text: item.body.messageText ?? "", view)
        case .reject: return refuse(item, "busy")
        case .rollback: return cancelTurn(nil)
        }
    }

    mutating func reject(_ item: InboxItem, _ reason: String, as state: String = "rejected") {
        let receipt = AgentMachine.receipt(item.offset, item.body, state, reason: reason)
        write(AgentBatch(entries: [receipt], epoch: .holds(epoch), decides: [item.offset]), for: .rejected)
    }

    // MARK: Conditions

    /// The state of an entry's own condition: `if_offset` names the entry right before it, `if_turn` the turn that it is for.
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
        // A message is also for a reader that has just seen the end of that turn; and a close is decided only then.
        if [.message, .close].contains(entry.kind), openTurn == nil, wanted == record?.lastTurn { return .holds }
        return .failed(entry.kind == .steer || openTurn == nil && entry.kind != .message ? "turn_ended" : "stale_turn")
    }

    // MARK: Interrupt

    /// Whether an entry is an interrupt that was too late for its turn, and begins another one in its turn.
    func isMessage(_ offset: UInt64) -> Bool {
        guard let entry = inbox[offset], entry.kind == .interrupt else { return false }
        return entry.row.hasText && entry.row.turn == nil && offset < record?.lastEnd ?? 0
    }

    /// Ends what the turn's steps do, and only that: the program continues with what there is.
    private mutating func interrupt(_ item: InboxItem, text: String?, _ view: any AgentView) -> Bool {
        // Nothing runs at this instant: it meets the next step, or the one whose end is on its way and gives way to it.
        let steps = claimEnds()
        guard let run, !steps.isEmpty else { return false }
        var ends: [(request: StepRequest, outcome: StepOutcome)] = []
        var entries = [AgentMachine.receipt(item.offset, item.body, "applied", turn: run.turn, step: steps[0].path)]
        for step in steps {
            let (end, outcome) = interruptedEnd(run.turn, step, by: item, text, view)
            entries += end
            ends.append((step, outcome))
        }
        writeEnds(StepEnds(turn: run.turn, epoch: run.epoch, ends: ends), entries, decides: [item.offset])
        return true
    }

    /// Claims the ends of all open steps that are not shielded.
    private mutating func claimEnds() -> [StepRequest] {
        let steps = (run?.openSteps ?? []).filter { !$0.isShielded }
        for step in steps { _ = run?.claimEnd(step.path) }
        return steps
    }

    private mutating func interruptedEnd(
        _ turn: UInt64, _ step: StepRequest, by item: InboxItem, _ text: String?, _ view: any AgentView
    ) -> ([NewEntry], StepOutcome) {
        guard step.isModel else {
            stop(step.path)
            let failure = StepFailure.interrupted(text, by: Offset(item.offset).token)
            return ([AgentMachine.failed(turn, step.path, failure)], .failed(failure))
        }
        // Before an attempt has said anything, what readers were shown of the one before is what there is. The piece that was held is shown
        // to them as well: it may be all that there is in place of what another attempt had written.
        dropCall(step.path)
        var (partial, last) = view.interrupt(path: step.path) ?? ([], nil)
        let state = run?.steps[step.path] ?? StepState()
        if partial.isEmpty || partial[0].1 == "" {
            last = nil
            partial = [("text", .string(state.partial.text.text)), ("finish_reason", "interrupted"), ("recovered_tokens", 0)]
        }
        let members =
            partial
            + [
                ("steered", state.steered), ("interrupted_by", .string(Offset(item.offset).token)),
                ("redirection", text.map { .string($0) }),
            ]
        forget(step.path)
        return (
            (last.map { [$0] } ?? [])
                + [NewEntry(.stepCompleted, Position(turn: turn, step: step.path), members: NewEntry.join(members))],
            .completed(
                .object(
                    members.compactMap { name, value in
                        value.map { JSON.Member(name, $0) }
                    }))
        )
    }

    // MARK: Cancel

    /// Ends everything that runs and is not shielded, and has the program come to its end. `nil`: rolled back because a newer message takes
    /// its place.
    private mutating func cancelTurn(_ item: InboxItem?) -> Bool {
        // The turn's end is being written; it yields if this entry comes before it.
        guard let turn = run?.turn, run!.canCancel else { return false }
        run?.cancels()
        let steps = claimEnds()
        let reason: JSON = item == nil ? "rollback" : item?.body["reason"] ?? .null
        var entries = item.map { [AgentMachine.receipt($0.offset, $0.body, "applied", turn: turn)] } ?? []
        entries.append(
            NewEntry(
                .supervision, Position(turn: turn), ("cause", item == nil ? "rollback" : "cancel"), ("action", "cancel"),
                ("reason", reason == .null ? nil : reason)))
        for step in steps {
            stop(step.path)
            entries.append(AgentMachine.failed(turn, step.path, .cancelled))
        }
        let ends = StepEnds(turn: turn, epoch: epoch, ends: steps.map { ($0, .failed(.cancelled)) }, cancellation: reason)
        writeEnds(ends, entries, decides: item.map { [$0.offset] } ?? [])
        return item != nil
    }

    // MARK: Approvals and signals

    private mutating func decideApproval(_ item: InboxItem, _ view: any AgentView) -> Bool {
        guard let run else { return false }
        let path = AgentMachine.approvalPath(run.turn, item)
        guard let step = run.openSteps.first(where: { $0.path == path && $0.kind == .approval }) else {
            // Its end is being written, and may still yield: the log will decide the answer to this one.
            if run.machine.waiting(at: path)?.kind == .approval { return false }
            // The program has not come to it again: it waits for something outside the turn.
            if run.machine.expects(path) { return false }
            do { return refuse(item, try view.decision(of: item) ?? "unknown_approval") } catch {
                unreadable(error)
                return false
            }
        }
        if let reason = AgentMachine.approvalRefusal(item, until: step.due, digest: step.digest) { return refuse(item, reason) }
        guard self.run!.claimEnd(path) else { return false }
        let (entries, outcome) = AgentMachine.approvalEnd(run.turn, path, digest: step.digest, item)
        writeEnds(StepEnds(turn: run.turn, epoch: run.epoch, ends: [(step, outcome)]), entries, decides: [item.offset])
        return true
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

    /// Returns the entries that an effective decision writes, and the program's result.
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
            : failed(turn, path, failure)
        let receipt = receipt(item.offset, item.body, "applied", turn: turn, step: path)
        return ([receipt, decided, end], isApproved ? .completed(["result": result]) : .failed(failure))
    }

    static func approvalDecided(
        _ turn: UInt64, _ path: String, _ digest: String?, _ decision: JSON, by: String?, reason: JSON? = nil
    ) -> NewEntry {
        NewEntry(
            .approvalDecided, Position(turn: turn, step: path), ("approval", .string("\(Offset(turn))/\(path)")),
            ("decision", decision), ("decided_by", by.map { .string($0) }), ("args_sha256", digest.map { .string($0) }),
            ("reason", reason))
    }

    private mutating func deliverSignal(_ item: InboxItem) -> Bool {
        guard let run else { return false }
        let data = item.body["data"] ?? .null
        // Compared by its bytes: Swift takes canonically equivalent strings for equal.
        let name = inbox[item.offset]?.row.name
        let step = run.openSteps.first { step in
            guard case .wait(_, let match, _) = step.work else { return false }
            return step.signal == name && match.allSatisfy { data[$0.name] == $0.value }
        }
        guard let step, self.run!.claimEnd(step.path) else { return false }
        let entries = [
            AgentMachine.receipt(item.offset, item.body, "applied", turn: run.turn, step: step.path),
            NewEntry(.stepCompleted, Position(turn: run.turn, step: step.path), ("result", data)),
        ]
        let ends = StepEnds(turn: run.turn, epoch: run.epoch, ends: [(step, .completed(["result": data]))])
        writeEnds(ends, entries, decides: [item.offset])
        return true
    }
}
