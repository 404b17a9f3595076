internal import ParleyChannels
internal import ParleySystem

/// Judges races by the order of the log: the earlier entry is decided first, and shielded work is exempt.
struct SimulationOrder {
    private let life: SimulationHistory.Life
    private let entries: [SimulationHistory.Entry]
    /// The offset of the receipt of each input, and whether it was applied.
    private var receipts: [UInt64: (offset: UInt64, isApplied: Bool, turn: UInt64?)] = [:]
    private var found: [SimulationViolation] = []

    static func violations(_ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry]) -> [SimulationViolation] {
        var judge = SimulationOrder(life, entries)
        judge.checkEnds()
        judge.checkApprovals()
        return judge.found
    }

    private init(_ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry]) {
        self.life = life
        self.entries = entries
        for entry in entries where entry.type == "receipt" {
            if let of = entry.decides { receipts[of] = (entry.offset, entry.body["state"] == "applied", entry.turn) }
        }
    }

    private mutating func violate(_ invariant: String, _ evidence: String) {
        found.append(SimulationViolation(invariant: invariant, evidence: "\(life): \(evidence)"))
    }

    // MARK: Ends of a step or a turn

    private mutating func checkEnds() {
        var state = SimulationAgentState()
        for (index, entry) in entries.enumerated() {
            if isEnd(entry), let stop = stop(state, before: entry, at: index) {
                violate("what stands first is decided first", "\(stop.short) was undecided at \(entry.short)")
            }
            // A turn that no program runs ends with all that is open in it.
            if let open = state.open[entry.step], open.isShielded, isStopped(entry), !state.isStalled {
                violate("neither a cancel nor an interrupt reaches what is shielded", entry.short)
            }
            state.take(entry)
        }
    }

    private func isEnd(_ entry: SimulationHistory.Entry) -> Bool {
        entry.type == "step.completed" || entry.type == "step.failed" && entry.body["final"] == true
            || SimulationAgentState.turnEnds.contains(entry.type)
    }

    private func isStopped(_ entry: SimulationHistory.Entry) -> Bool {
        let code = entry.body["error"]?["code"]
        // The loser of a race is cancelled by the program.
        if entry.step.split(separator: "/").contains(where: { $0.hasPrefix("sleeping") || $0.hasPrefix("waiting") }) { return false }
        return entry.body["finish_reason"] == "interrupted"
            || entry.type == "step.failed" && (code == "interrupted" || code == "cancelled") && entry.body["final"] == true
    }

    /// An interrupt or cancel for this turn that comes before `end`, which ends otherwise than by it.
    private func stop(
        _ state: SimulationAgentState, before end: SimulationHistory.Entry, at index: Int
    ) -> SimulationHistory.Entry? {
        guard state.turn == end.turn, !state.isCancelled else { return nil }
        // The program no longer wants the step.
        if end.body["error"]?["code"] == "cancelled" { return nil }
        let isTurn = SimulationAgentState.turnEnds.contains(end.type)
        guard isTurn || state.open[end.step]?.isShielded == false else { return nil }
        let stop = state.undecided.first { isStop($0) && !state.isMessage($0) && state.condition($0) == .holds }
        guard let stop else { return nil }
        if isTurn, stop.type != "cancel", isDecidedWith(end, at: index, stop) { return nil }
        if state.isStalled, isRedirected(end, at: index, to: stop) { return nil }
        if let control = control(behind: end, at: index), control < stop.offset { return nil }
        return stop
    }

    private func isStop(_ input: SimulationHistory.Entry) -> Bool { input.type == "interrupt" || input.type == "cancel" }

    /// Whether there was nothing to stop but the turn, whose end decides it: in its batch, or as the next message.
    private func isDecidedWith(_ end: SimulationHistory.Entry, at index: Int, _ stop: SimulationHistory.Entry) -> Bool {
        if stop.body["text"] != nil { return true }
        guard let receipt = receipts[stop.offset] else { return false }
        return entries[(index + 1)...].prefix { $0.type == "receipt" }.contains { $0.offset == receipt.offset }
    }

    /// Whether `end` is of the batch that ends a stalled turn for another.
    private func isRedirected(_ end: SimulationHistory.Entry, at index: Int, to input: SimulationHistory.Entry) -> Bool {
        entries[index...].prefix { $0.at == end.at }.contains { $0.type == "turn.started" && $0.turn == input.offset }
    }

    /// The offset of the input whose receipt is in the batch of `end`.
    private func control(behind end: SimulationHistory.Entry, at index: Int) -> UInt64? {
        entries[..<index].reversed().prefix { $0.at == end.at }.first { $0.type == "receipt" && $0.turn == end.turn }?.decides
    }

    // MARK: Approvals

    private mutating func checkApprovals() {
        for (index, request) in entries.enumerated() where request.type == "approval.requested" { checkApproval(request, at: index) }
    }

    private mutating func checkApproval(_ request: SimulationHistory.Entry, at index: Int) {
        let rest = entries[(index + 1)...]
        let expires = request.body["expires_at"]?.string.flatMap { Timestamp($0) }
        let answers = rest.filter { ["approve", "deny"].contains($0.type) && $0.body["approval"] == request.body["approval"] }
        guard answers.allSatisfy(\.isUnconditional) else { return }
        checkLate(answers, expires, rest)
        let winner = answers.first { answer in expires.map { answer.at ?? $0 < $0 } ?? true }
        guard let end = rest.first(where: { $0.turn == request.turn && $0.step == request.step && isEnd($0) }) else { return }
        let decided = rest.first { $0.type == "approval.decided" && $0.body["approval"] == request.body["approval"] }
        guard let winner, winner.offset < end.offset else {
            if let decided, decided.body["decision"] != "expired" {
                violate("an approval is decided by the first answer", "nobody had answered \(request.short), and it is \(decided.short)")
            }
            return
        }
        for answer in answers where receipts[answer.offset]?.isApplied == true && answer.offset != winner.offset {
            violate("an approval is decided by the first answer", "\(winner.short) came first, and applied was \(answer.short)")
        }
        let expected = winner.type == "approve" ? "approved" : "denied"
        guard decided?.body["decision"]?.string != expected, !isStopped(request, before: winner) else { return }
        violate("an approval is decided by the first answer", "\(winner.short) came first, and it is \((decided ?? end).short)")
    }

    /// An answer that comes after an approval has expired is told so.
    private mutating func checkLate(
        _ answers: [SimulationHistory.Entry], _ expires: Timestamp?, _ rest: ArraySlice<SimulationHistory.Entry>
    ) {
        guard let expires else { return }
        for answer in answers {
            guard let at = answer.at, at >= expires,
                rest.contains(where: {
                    $0.type == "approval.decided" && $0.body["approval"] == answer.body["approval"] && $0.body["decision"] == "expired"
                }), let receipt = rest.first(where: { $0.type == "receipt" && $0.decides == answer.offset }),
                receipt.body["reason"] == "already_decided"
            else { continue }
            violate("an approval that expired says so", "\(receipt.short) of \(answer.short)")
        }
    }

    /// Whether something stopped the turn before that answer came. A turn that stalls is ended by a close, too.
    private func isStopped(_ request: SimulationHistory.Entry, before answer: SimulationHistory.Entry) -> Bool {
        let hasStalled = entries.contains { $0.type == "agent.stalled" && $0.turn == request.turn }
        return entries.contains { input in
            input.offset < answer.offset
                && (isStop(input) || hasStalled && input.type == "close"
                    || ["interrupt", "rollback"].contains(life.policy) && input.type == "message")
                && input.offset != request.turn
        }
    }
}
