internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// An open turn that no program runs.
struct Halt {
    var turn: UInt64
    /// The logged state of the agent; `running`: the turn is resumed after a pause, because it has ended the process.
    var status: AgentStatus
    var pause: Pause?

    /// How a turn continues that has ended the process.
    struct Pause {
        let journal: Journal
        let end: ProcessEnd
        var isOver = false
    }
}

/// An agent whose turn is open and whose program does not run: it stalled, was parked, or pauses after a crash.
///
/// Every control is decided here, without the program. Messages, steers and signals wait.
extension AgentMachine {
    // MARK: Resuming after a process

    /// Decides what becomes of a turn that an earlier process, or an earlier activation, left open.
    mutating func takeUp(_ turn: UInt64, _ loaded: LoadedAgent, _ view: any AgentView) throws {
        let journal = try view.journal(of: turn)
        switch loaded.status {
        // A passivated turn comes back as a matter of course.
        case .waiting: try recover(turn, journal, view)
        case .parked: phase = .halted(Halt(turn: turn, status: .parked))
        case .stalled where !loaded.triesStalledAgain: phase = .halted(Halt(turn: turn, status: .stalled))
        case .stalled: try resume(turn, journal, after: .stall, loaded, view)
        case _ where loaded.wasStopped: try resume(turn, journal, after: .failedRead, loaded, view)
        default: try resume(turn, journal, after: loaded.hasDrained ? .drain : journal.crash, loaded, view)
        }
    }

    private mutating func resume(
        _ turn: UInt64, _ journal: Journal, after end: ProcessEnd, _ loaded: LoadedAgent, _ view: any AgentView
    ) throws {
        var journal = journal
        if case .crash = end { journal.workSinceCrash = max(1, journal.workSinceCrash) }
        switch end.remedy(journal) {
        case .resume(after: .zero): try recover(turn, journal, view, [AgentMachine.resumption(turn, journal, end)])
        case .resume(after: let pause):
            phase = .halted(Halt(turn: turn, status: .running, pause: Halt.Pause(journal: journal, end: end)))
            actions.append(.at(view.now.advanced(by: pause), .pauseOver(turn: turn)))
        case .park(let reason): park(turn, journal.restarts, reason, others: loaded.ranToo)
        }
    }

    /// Cancelled meanwhile, there is nothing left to resume.
    mutating func pauseIsOver(_ turn: UInt64) {
        guard var halt, halt.turn == turn else { return }
        halt.pause?.isOver = true
        phase = .halted(halt)
    }

    private static func resumption(_ turn: UInt64, _ journal: Journal, _ end: ProcessEnd) -> NewEntry {
        NewEntry(
            .supervision, Position(turn: turn), ("cause", .string(end.cause)), ("action", "resume"),
            ("restarts", .integer(Int64(journal.restarts + 1))))
    }

    /// - Parameter others: The agents whose turns ran as well when the process ended: any of them may have ended it.
    private mutating func park(_ turn: UInt64, _ restarts: Int, _ reason: ParkReason, others: [String] = []) {
        isWriting = true
        phase = .halted(Halt(turn: turn, status: .parked))
        actions.append(.notice(.parked(reason, others: others)))
        let position = Position(turn: turn)
        let entries = [
            NewEntry(
                .supervision, position, ("cause", reason == .work ? "work" : "crash"), ("action", "park"),
                ("restarts", .integer(Int64(restarts))),
                ("reason", .string(reason.rawValue))),
            NewEntry(
                .agentParked, position, ("reason", .string(reason.rawValue)),
                ("message", .string(reason.message + ParkReason.company(others.count))),
                ("remedy", .string(AgentMachine.wayOut))),
        ]
        // In a new epoch, so that nothing of the program comes behind it.
        write(AgentBatch(entries: entries, epoch: .takes(after: epoch), rows: [.status(.parked, turn: turn)]), for: .turnHalted(turn))
    }

    // MARK: Too much work

    /// Counts the entries of a turn that has crashed before: a process that ends once a minute would pay for them for ever.
    mutating func worked(_ entries: [NewEntry], _ appended: Appended) {
        guard var crash = run?.crash else { return }
        // Pieces of text that were put together share an offset, also those of several appends.
        for (entry, offset) in zip(entries, appended.offsets) where offset > crash.at {
            guard entry.kind == .text || entry.kind == .stepCompleted else { continue }
            crash.at = offset
            crash.count += 1
        }
        run?.crash = crash
    }

    mutating func parkIfOverworked(_ view: any AgentView) {
        guard let run, let crash = run.crash, crash.count > Journal.workMax, !isWriting, run.canCancel else { return }
        // If the journal is unreadable, the log reports that to the next append.
        let restarts = (try? view.journal(of: run.turn))?.restarts ?? 0
        leaveProgram(run, Fenced())
        park(run.turn, restarts, .work)
    }

    /// The remedies for an agent that is parked or stalled.
    static let wayOut = "send 'resume' to try again, 'cancel' to end the turn, or 'close' to end the agent"

    // MARK: Deciding without the program

    /// Decides the next entry that can be decided; the others wait.
    mutating func decideHalted(_ view: any AgentView) throws {
        guard let halt, !isWriting else { return }
        if let pause = halt.pause, pause.isOver {
            return try recover(halt.turn, pause.journal, view, [AgentMachine.resumption(halt.turn, pause.journal, pause.end)])
        }
        if decideFailed(view) { return }
        for offset in inbox.controls.all {
            guard let entry = inbox[offset], condition(entry) == .holds, !isMessage(offset) else { continue }
            // A turn that pauses after a crash is about to run again, so its program takes part in every decision except a cancel; and in that too
            // when something is shielded from the cancel, has to be compensated, or came before it.
            if let pause = halt.pause, entry.kind != .cancel || pause.journal.needsProgram || isPreceded(offset) { return }
            guard let item = item(offset, view) else { return }
            switch item.kind {
            case .resume: return try resume(halt, item, view)
            case .cancel, .interrupt, .close: return try end(halt, item, view)
            case .approve, .deny: return try decideApproval(halt, item, view)
            default: continue
            }
        }
    }

    /// Whether an entry that the program may be given, or stopped by, comes before this one.
    private func isPreceded(_ offset: UInt64) -> Bool {
        let message = [.queue, .steer].contains(agent.policy) ? nil : inbox.messages.first
        return [message, inbox.firstSignal].contains { $0.map { $0 < offset } ?? false }
    }

    private mutating func resume(_ halt: Halt, _ item: InboxItem, _ view: any AgentView) throws {
        remove(item)
        var journal = try view.journal(of: halt.turn)
        let entries = [
            AgentMachine.receipt(item.offset, item.body, "applied", turn: halt.turn),
            NewEntry(
                .agentResumed, Position(turn: halt.turn), ("of", journal.haltedAt.map { .string(Offset($0).token) }),
                ("entry", .string(Offset(item.offset).token))),
        ]
        journal.resumed()
        try recover(halt.turn, journal, view, entries, decides: [item.offset])
    }

    private mutating func decideApproval(_ halt: Halt, _ item: InboxItem, _ view: any AgentView) throws {
        remove(item)
        let journal = try view.journal(of: halt.turn)
        let path = AgentMachine.approvalPath(halt.turn, item)
        guard let open = journal.open[path], let start = journal.starts.first(where: { $0.path == path }), start.kind == .approval else {
            return decide([(item, "rejected", try view.decision(of: item) ?? "unknown_approval")])
        }
        if let reason = AgentMachine.approvalRefusal(item, until: open.due, digest: start.digest) {
            return decide([(item, "rejected", reason)])
        }
        let (entries, _) = AgentMachine.approvalEnd(halt.turn, path, digest: start.digest, item)
        isWriting = true
        let timers = OpenSteps(halt.turn, journal.open, [path]).timers
        write(
            AgentBatch(entries: entries, epoch: .holds(epoch), decides: [item.offset], rows: timers.map { .noTimer($0) }),
            for: .haltedApprovalDecided(timers))
    }

    /// Ends the turn and everything that is open in it, as `item` asks for.
    private mutating func end(_ halt: Halt, _ item: InboxItem, _ view: any AgentView) throws {
        let journal = try view.journal(of: halt.turn)
        var end = HaltedEnd(halt.turn, journal, item)
        // A close stays in the inbox: the agent ends with the turn, and what waits is answered then.
        let isDecided = item.kind != .close
        if isDecided { remove(item) }
        // With a text it begins the next turn.
        if item.kind == .interrupt, item.body["text"] != nil { return try begin(item, after: end, view) }
        if isDecided { end.entries.insert(AgentMachine.receipt(item.offset, item.body, "applied", turn: halt.turn), at: 0) }
        isWriting = true
        write(
            AgentBatch(
                entries: end.entries, epoch: .holds(epoch), decides: isDecided ? [item.offset] : [],
                rows: end.open.rows(of: identity.id) + [.status(.idle, turn: nil)]),
            for: .haltedTurnEnded(end))
    }

    /// The turn has ended without its program.
    mutating func haltedTurnEnded(_ end: HaltedEnd, at offset: UInt64) {
        isWriting = false
        go(to: .idle)
        record?.ended(end.turn, at: offset)
        actions += end.open.timers.map { .timerSettled($0) } + [.turnEnded(end.turn)]
    }
}

/// Steps of a turn that have begun and not ended, and that no program waits for: their rows outside the turn go with it.
struct OpenSteps: Sendable {
    private let turn: UInt64
    private let open: [String: Journal.OpenStep]
    /// In the order of their starts.
    let paths: [String]

    init(_ turn: UInt64, _ open: [String: Journal.OpenStep], _ paths: [String]) { (self.turn, self.open, self.paths) = (turn, open, paths) }

    var timers: [DueTimer] { paths.compactMap { path in open[path]?.due.map { DueTimer(turn: turn, path: path, due: $0) } } }

    /// Deletes the rows by which they are found.
    func rows(of channel: ChannelID) -> [AgentRow] {
        timers.map { .noTimer($0) } + paths.map { .follow(.ends(FollowKey(channel: channel, step: "\(Offset(turn))/\($0)"))) }
    }
}

/// The end of a turn that no program runs.
struct HaltedEnd: Sendable {
    var turn: UInt64
    /// The last one ends the turn.
    var entries: [NewEntry] = []
    let open: OpenSteps

    init(_ turn: UInt64, _ journal: Journal, _ item: InboxItem) {
        self.turn = turn
        open = OpenSteps(turn, journal.open, journal.starts.lazy.map(\.path).filter { journal.open[$0] != nil })
        let position = Position(turn: turn)
        // A turn that was cancelled before it stopped stays cancelled, whatever ends it.
        let earlier = journal.cancellation
        let isInterrupt = item.kind == .interrupt && earlier == nil
        let reason: JSON? = earlier ?? (item.kind == .close ? "closing" : item.body["reason"])
        if !isInterrupt, earlier == nil {
            entries.append(NewEntry(.supervision, position, ("cause", "cancel"), ("action", "cancel"), ("reason", reason)))
        }
        let failure = isInterrupt ? StepFailure.interrupted() : StepFailure.cancelled
        entries += open.paths.map { AgentMachine.failed(turn, $0, failure) }
        let skipped = journal.compensations.map { JSON.string($0) }
        entries.append(
            isInterrupt
                ? NewEntry(.turnInterrupted, position, ("output", .string(journal.partial)))
                : NewEntry(
                    .turnCancelled, position, ("reason", reason == .null ? nil : reason),
                    ("compensations_skipped", skipped.isEmpty ? nil : .array(skipped))))
    }
}

/// The reason why an open turn was not running, as far as the turn is concerned.
enum ProcessEnd {
    /// The process was told to stop: that is not counted.
    case drain
    /// The turn stalled, and the process is another: its program may have been mended.
    case stall
    /// The log could not be read for a while.
    case failedRead
    /// - Parameter inVain: How often in a row, this time included, the turn had committed nothing since it was last started or resumed.
    case crash(inVain: Int)

    enum Remedy: Equatable {
        case resume(after: Duration)
        case park(ParkReason)
    }

    var cause: String {
        switch self {
        case .drain: "drain"
        case .stall: "stall"
        case .failedRead: "failed_read"
        case .crash: "crash"
        }
    }

    /// Whether an entry with this cause reports a crash: earlier versions had their own word for it.
    static func isCrash(_ cause: String?) -> Bool { ![ProcessEnd.drain, .stall, .failedRead].contains { $0.cause == cause } }

    /// A turn that ends its process every time must not do so for ever.
    func remedy(_ journal: Journal) -> Remedy {
        guard case .crash(let inVain) = self else { return .resume(after: .zero) }
        if journal.workSinceCrash > Journal.workMax { return .park(.work) }
        switch inVain {
        case 0: return .resume(after: .zero)
        case 1: return .resume(after: .seconds(1))
        case 2: return .resume(after: .seconds(5))
        default: return .park(journal.hasEndedStep ? .crash : .poison)
        }
    }
}

/// Why an agent is parked.
enum ParkReason: String {
    case crash, poison, work

    /// Says that other turns ran in the process that ended. It does not name them: not every reader may know of every agent.
    static func company(_ count: Int) -> String {
        guard count > 0 else { return "" }
        let who = count == 1 ? "the turn of another agent" : "turns of \(count) other agents"
        return "; \(who) ran in the process as well when it ended last, and may have ended it: the server's log has the names"
    }

    var message: String {
        switch self {
        case .crash: "the process ended three times in a row while this turn ran, each time without anything new in the turn's journal"
        case .poison:
            "the process ended three times in a row while this turn ran, each time without anything new in the turn's journal, and none of its steps had ended"
        case .work: "the turn has written more than \(Journal.workMax) texts and results since it first crashed"
        }
    }
}

extension Journal {
    /// How much a turn may do after its first crash before the next one parks it.
    static let workMax = 1_000

    /// The crash that has just happened.
    var crash: ProcessEnd { .crash(inVain: hasProgress ? 0 : crashesInVain + 1) }

    /// Why the turn was cancelled; `nil` unless it was.
    var cancellation: JSON? { completions.lazy.compactMap(\.cancellation).first }

    /// Whether a cancel leaves something to do: a shielded step, a compensation, or the rest of an earlier cancel.
    var needsProgram: Bool {
        cancellation != nil || !compensations.isEmpty || starts.contains { $0.isShielded && open[$0.path] != nil }
    }

    /// The unfinished text of a model.
    var partial: String { starts.last { open[$0.path]?.text.text.isEmpty == false }.flatMap { open[$0.path]?.text.text.text } ?? "" }
}
