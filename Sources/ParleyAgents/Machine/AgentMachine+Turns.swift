internal import ParleyChannels
internal import ParleySystem

/// How turns begin, are taken up again, and end.
extension AgentMachine {
    /// Takes the next entry of the inbox, if the agent is free.
    mutating func advance(_ view: any AgentView) throws {
        guard !isWriting, !view.isDraining else { return }
        switch phase {
        case .idle: break
        case .halted: return try decideHalted(view)
        case .running, .gone: return
        }
        if decideFailed(view) { return }
        // A signal is kept until something waits for it.
        guard !isGone, let first = inbox.first else { return }
        // A close ends the agent after the turn before it: messages queued behind that turn begin none.
        if let close = inbox.closes.first(where: { condition($0) == .holds }),
            first.offset < record!.lastEnd || first.offset == close.offset
        {
            return self.close(close.offset, view)
        }
        guard try hasRoom(for: first, view), let item = item(first.offset, view) else { return }
        remove(item)
        switch item.kind {
        case .message, .steer: try begin(item, view)
        case .interrupt where first.row.hasText: try begin(item, view)
        case .approve, .deny: decide([(item, "rejected", try view.decision(of: item) ?? "unknown_approval")])
        case .resume: decide([(item, "rejected", "not_parked")])
        default: decide([(item, "rejected", "turn_ended")])
        }
    }

    // MARK: Room

    /// Whether there is memory for what an entry begins. If not, the agent continues once there is: ``AgentEvent/hasRoom``.
    private mutating func hasRoom(for entry: Inbox.Entry, _ view: any AgentView) throws -> Bool {
        guard entry.mayBeginTurn, room != .held else { return true }
        guard room == .none else { return false }
        room = .asked
        actions.append(.takeRoom(bytes: Int(entry.row.byteCount) + (try view.conversation().byteCount)))
        return false
    }

    /// Without a turn the room is for others.
    mutating func releaseRoom() {
        guard case .idle = phase, !isWriting, room == .held else { return }
        room = .none
        actions.append(.releaseRoom)
    }

    // MARK: Beginning

    /// Begins a turn with an entry that was taken from the inbox.
    ///
    /// - Parameter end: The end of the turn before it, when the entry ends that as well: one batch, so that its receipt is true of both.
    mutating func begin(_ item: InboxItem, after end: HaltedEnd? = nil, _ view: any AgentView) throws {
        let declared = view.declared()
        agent = declared.traits
        let history = try view.conversation().first ?? end?.turn ?? item.offset
        isWriting = true
        let seed = view.random()
        let entries =
            (end?.entries ?? []) + [
                AgentMachine.receipt(item.offset, item.body, "applied", turn: item.offset),
                NewEntry(
                    .turnStarted, Position(turn: item.offset), ("input", .string(Offset(item.offset).token)),
                    ("seed", .string(hexadecimal(AgentMachine.bytes(seed)))),
                    ("epoch", .integer(Int64(epoch + 1))), ("node", .string(identity.node)), ("build", .string(identity.build)),
                    ("history", .string(Offset(history).token)), ("definition", agent.definition.map { .string($0.sha256) })),
            ]
        let rows = (end?.open.rows(of: identity.id) ?? []) + [.status(.running, turn: item.offset)]
        let content = agent.definition.map { [AgentRow.content($0.content, digest: $0.digest)] } ?? []
        var journal = Journal()
        (journal.start.seed, journal.start.history) = (seed, history)
        write(
            AgentBatch(entries: entries, epoch: .takes(after: epoch), decides: [item.offset], rows: rows + content),
            for: .turnStarted(
                TurnStart(turn: item.offset, input: item.body, journal: journal, program: declared.program, end: end)))
    }

    mutating func turnStarted(_ start: TurnStart, _ appended: Appended, _ view: any AgentView) {
        if let end = start.end { haltedTurnEnded(end, at: appended.offsets[end.entries.count - 1]) }
        isWriting = false
        var start = start
        (start.journal.start.at, start.journal.start.offset) = (appended.at, appended.offsets.last!)
        perform(view) { try $0.run(start, view) }
    }

    /// Runs an open turn again: `entries` say why, and decide what asked for it.
    mutating func recover(
        _ turn: UInt64, _ journal: Journal, _ view: any AgentView, _ entries: [NewEntry] = [], decides: [UInt64] = []
    ) throws {
        let (input, program) = (try view.body(at: turn) ?? EntryMembers(), try view.program(of: journal))
        isWriting = true
        go(to: .idle)
        write(
            AgentBatch(entries: entries, epoch: .takes(after: epoch), decides: decides, rows: [.status(.running, turn: turn)]),
            for: .turnTakenUp(TurnStart(turn: turn, input: input, journal: journal, program: program)))
    }

    mutating func run(_ start: TurnStart, _ view: any AgentView) throws {
        let history = try view.history(of: start.journal)
        phase = .running(TurnRun(turn: start.turn, epoch: epoch, start.journal, history: history))
        actions.append(.start(start, epoch: epoch, history: history, saved: record!.saved))
        // A turn that runs has its room, however little is left.
        room = .held
        carryOut(run?.machine.releaseSoon(), view)
    }

    private static func bytes(_ value: UInt64) -> Bytes {
        var bytes = Bytes()
        bytes.append(bigEndian: value)
        return bytes
    }

    // MARK: Ending

    /// - Parameter considered: Highest inbox offset whose controls have been decided with the end of the program in view.
    mutating func end(_ result: TurnMachine.Outcome, considered: UInt64 = 0, _ view: any AgentView) {
        guard var run, run.canEnd else { return }
        run.ends()
        self.run = run
        let (turnEnd, cause) = AgentMachine.end(of: run, result)
        // A failure is also reported where it happens.
        if let cause { actions.append(.turnFailed(cause)) }
        // A step that the program, run again, has not come to is over with its turn.
        let left = run.leftOpen
        var entries = left.paths.map { AgentMachine.failed(run.turn, $0, .cancelled) } + [turnEnd]
        let late = lateInterrupts(view)
        guard !isGone else { return }
        entries += late.map { AgentMachine.receipt($0.offset, $0.body, "rejected", reason: "turn_ended") }
        let saved = turnEnd.kind == .turnCompleted ? try? result.get().state : nil
        let end = TurnEnd(
            turn: run.turn, epoch: run.epoch, result: result, entry: left.paths.count, state: saved, decides: late.map(\.offset), left: left
        )
        isWriting = true
        var rows = [AgentRow.status(.idle, turn: nil)] + left.rows(of: identity.id)
        // Only what differs: most agents have no state, and keep no row.
        if let saved, saved != (record!.saved ?? .object([])) { rows.append(.state(saved.bytes, entry: end.entry)) }
        // It yields to earlier entries that would stop the turn.
        write(
            AgentBatch(
                entries: entries, epoch: .holds(run.epoch), decides: end.decides, yieldsTo: AgentMachine.stopping, considered: considered,
                rows: rows), for: .turnEnded(end))
    }

    /// The entry that ends the turn, and why it failed, if that is the program's doing.
    private static func end(of run: TurnRun, _ result: TurnMachine.Outcome) -> (NewEntry, StepFailure?) {
        let position = Position(turn: run.turn)
        let cancellation = run.machine.cancellation
        let failed = run.machine.compensations.failed
        switch result {
        case _ where !failed.isEmpty:
            let failure = StepFailure(
                code: "compensation_failed", message: "not everything could be taken back", retryable: false,
                data: ["steps": .array(failed.map { .string($0) }), "cancelled": .bool(cancellation != nil)])
            return (NewEntry(.turnFailed, position, ("error", failure.journal)), nil)
        case _ where cancellation != nil:
            return (NewEntry(.turnCancelled, position, ("reason", cancellation == .null ? nil : cancellation)), nil)
        case .success(let (output, _)): return (NewEntry(.turnCompleted, position, ("output", output)), nil)
        case .failure(let error as Interrupted):
            return (NewEntry(.turnInterrupted, position, ("output", .string(error.partial))), nil)
        case .failure(let error):
            return (NewEntry(.turnFailed, position, ("error", StepFailure(error).journal)), StepFailure(error))
        }
    }

    /// Interrupts that find nothing left to interrupt; one with a text becomes the next message.
    private mutating func lateInterrupts(_ view: any AgentView) -> [InboxItem] {
        let late = inbox.controls.all.filter { offset in
            guard let entry = inbox[offset] else { return false }
            return entry.kind == .interrupt && condition(entry) == .holds && (!entry.row.hasText || entry.row.turn != nil)
        }
        return late.compactMap { item($0, view) }
    }

    mutating func turnEndYielded(_ end: TurnEnd, _ view: any AgentView) {
        isWriting = false
        guard isCurrent(end.epoch) else { return }
        run?.withdrawsEnd()
        react(view)
        if !isWriting { self.end(end.result, considered: seen, view) }
    }

    mutating func turnEnded(_ end: TurnEnd, _ appended: Appended, _ view: any AgentView) {
        isWriting = false
        if let run, run.epoch == end.epoch { leaveProgram(run, Fenced()) }
        go(to: .idle)
        record?.ended(end.turn, at: appended.offsets[end.entry])
        if let saved = end.state { record?.saved = saved }
        for offset in end.decides { inbox.remove(offset) }
        actions += end.left.timers.map { .timerSettled($0) }
        actions.append(.turnEnded(end.turn))
        perform(view) { _ in }
    }

    /// The program has lost its right to run, and the results of its steps are no longer wanted.
    mutating func leaveProgram(_ run: TurnRun, _ error: any Error) {
        actions += [.fence(error, left: run.machine), .stopAll]
        room = .none
        if case .running = phase { phase = .idle }
    }

    // MARK: Closing

    /// How many entries one batch decides at most.
    private static let decidedAtOnce = 1_000

    private mutating func close(_ offset: UInt64, _ view: any AgentView) {
        let waiting = inbox.offsets.filter { $0 != offset }.prefix(AgentMachine.decidedAtOnce + 1)
        let rest = waiting.compactMap { item($0, view) }
        guard !isGone, let close = item(offset, view) else { return }
        guard rest.count <= AgentMachine.decidedAtOnce else { return decide(rest.map { ($0, "rejected", "closing") }) }
        isWriting = true
        let before = inbox
        inbox.removeAll()
        var entries = [AgentMachine.receipt(offset, close.body, "applied")]
        entries += rest.map { AgentMachine.receipt($0.offset, $0.body, "rejected", reason: "closing") }
        entries.append(NewEntry(.agentClosed, nil, ("reason", "closed")))
        write(
            AgentBatch(
                entries: entries, epoch: .holds(epoch), decides: [offset] + rest.map(\.offset), closes: true,
                yieldsTo: EntryKinds(EntryKind.allCases.filter(\.isInput)), rows: [.status(.closed, turn: nil)]),
            for: .agentClosed(before: before))
    }

    // MARK: Deciding between turns

    /// Decides entries whose condition can no longer hold.
    /// - Returns: whether there are some.
    mutating func decideFailed(_ view: any AgentView) -> Bool {
        let failed = failedConditions(view)
        guard !failed.isEmpty else { return false }
        decide(failed)
        return true
    }

    /// Decides entries in one batch, while nothing else begins.
    mutating func decide(_ decisions: [(item: InboxItem, outcome: String, reason: String)]) {
        isWriting = true
        for decision in decisions { remove(decision.item) }
        let (receipts, offsets) = (
            decisions.map { AgentMachine.receipt($0.item.offset, $0.item.body, $0.outcome, reason: $0.reason) },
            decisions.map(\.item.offset)
        )
        write(AgentBatch(entries: receipts, epoch: .holds(epoch), decides: offsets), for: .decided)
    }

    /// Entries whose condition can no longer hold, as they are to be decided, some at a time. Cost: none while nothing has changed.
    mutating func failedConditions(_ view: any AgentView) -> [(item: InboxItem, outcome: String, reason: String)] {
        let now = (turn: openTurn, version: inbox.version)
        if let held = conditionsHeld, held == now { return [] }
        var failed: [(item: InboxItem, outcome: String, reason: String)] = []
        for offset in [AnySequence(inbox.misplaced.all), AnySequence(inbox.wantingOthers(than: openTurn))].joined() {
            guard let entry = inbox[offset], case .failed(let reason) = condition(entry) else { continue }
            guard failed.count < AgentMachine.decidedAtOnce else { return failed }
            guard let item = item(offset, view) else { return [] }
            failed.append((item, entry.kind == .steer && reason == "turn_ended" ? "expired" : "rejected", reason))
        }
        if failed.isEmpty { conditionsHeld = now }
        return failed
    }
}
