internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// One turn as its trace shows it, folded from the channel's entries after the turn's start.
struct TurnTrace: Projection {
    let turn: UInt64
    let started: Timestamp
    private let stepsMax: Int
    private(set) var totals = TraceTotals()

    private var state = "open"
    private var ended: Timestamp?
    /// What the entry that ended it, or had it stall, says of why.
    private var end: JSON?
    private var restarts: [JSON] = []
    /// When and why it was cancelled: from then on it only unwinds.
    private var cancelled: JSON?
    private var receipts: [Receipt] = []
    private var receiptsOmitted = 0
    private var emits = 0
    private var steps: [String: StepTrace] = [:]
    /// The paths of the steps that are listed, in the order in which they began.
    private var order: [String] = []
    private var approvals = ApprovalRecords()
    private var callsNotRun = CallsNotRun()

    private static let receiptsMax = 1_000

    init(turn: UInt64, at: Timestamp, stepsMax: Int) { (self.turn, started, self.stepsMax) = (turn, at, stepsMax) }

    /// How many more steps may be listed.
    var room: Int { stepsMax - order.count }

    mutating func apply(_ entry: LogEntry) {
        let position = entry.position
        if let position, position.turn != turn { return }
        // A receipt that names no turn belongs to the one at whose place it stands.
        if let receipt = Receipt(entry, isWanted: { $0 != turn }) { add(receipt) }
        guard let position else { return }
        approvals.apply(entry)
        callsNotRun.apply(entry)
        switch entry.kind {
        case .agentStalled: (state, end) = ("stalled", entry.body)
        case .agentParked: (state, end) = ("parked", entry.body)
        case .agentResumed: (state, end) = ("open", nil)
        case .supervision: takenUp(entry)
        case .emit: emits += 1
        case .stepStarted: begin(position.step, entry)
        case .text: steps[position.step]?.pieces += entry.frame.textPieces
        case .timerSet: steps[position.step]?.due = entry.body["due"]
        case .stepCompleted, .stepFailed: close(position.step, entry)
        default:
            guard let state = entry.kind.turnState else { return }
            let isExplained = entry.kind == .turnFailed || entry.kind == .turnCancelled
            (self.state, ended, end) = (state, entry.at, isExplained ? entry.body : nil)
        }
    }

    private mutating func add(_ receipt: Receipt) {
        if receipts.count < TurnTrace.receiptsMax { receipts.append(receipt) } else { receiptsOmitted += 1 }
    }

    private mutating func takenUp(_ entry: LogEntry) {
        let (at, body) = (JSON.string(entry.at.description), entry.body)
        if entry.cancelsTurn { cancelled = JSON.compact(("at", at), ("cause", body["cause"]), ("reason", body["reason"])) }
        guard body["action"] == "resume" else { return }
        totals.restarts += 1
        if state == "stalled" { (state, end) = ("open", nil) }
        restarts.append(JSON.compact(("at", at), ("cause", body["cause"]), ("action", body["action"]), ("restarts", body["restarts"])))
    }

    private mutating func begin(_ path: String, _ entry: LogEntry) {
        totals.attempts += 1
        if steps[path] == nil {
            totals.steps += 1
            steps[path] = StepTrace(path, entry, isListed: room > 0)
            if room > 0 { order.append(path) }
        }
        steps[path]?.begins(entry)
    }

    /// Ends an attempt. Counts a step that has ended with it, and forgets that unless it is listed.
    private mutating func close(_ path: String, _ entry: LogEntry) {
        if entry.kind == .stepFailed { totals.failures += 1 }
        steps[path]?.ends(entry)
        guard let step = steps[path], let ended = step.ended, AttemptEnd(entry)?.isFinal == true else { return }
        totals.add(step, until: ended)
        if !step.isListed { steps[path] = nil }
    }
}

extension EntryKind {
    /// How a turn ended that this entry ends.
    var turnState: String? { endsTurn ? String(name.dropFirst("turn.".count)) : nil }
}

// MARK: - JSON

extension TurnTrace {
    /// The turn, with what its entries refer to: looked up in the channel.
    func json(_ channels: Channels, _ channel: Channel) throws(LogError) -> JSON {
        let begun = try channels.input(turn, of: channel)
        let shown = shown(try callsNotRun.members(channels, channel))
        let omitted = totals.steps - shown.count
        var controls: [JSON] = []
        for receipt in receipts {
            let members: [(String, JSON?)] = [
                ("state", receipt.state), ("refused", receipt.reason), ("step", receipt.step),
                ("receipt", .string(Offset(receipt.offset).token)), ("decided", .string(receipt.at.description)),
            ]
            let entry = try channels.input(receipt.of, of: channel)?.members ?? [("offset", .string(Offset(receipt.of).token))]
            controls.append(JSON.compact(entry + members))
        }
        return JSON.compact(
            ("turn", .string(Offset(turn).token)), ("state", .string(state)), ("input", begun.map { JSON.compact($0.members) }),
            ("queued_ms", begun.map { .integer(started.milliseconds - $0.at.milliseconds) }),
            ("started", .string(started.description)), ("ended", ended.map { .string($0.description) }),
            ("duration_ms", ended.map { .integer($0.milliseconds - started.milliseconds) }),
            ("error", end?["error"] ?? (state == "stalled" ? end : nil)), ("reason", state == "cancelled" ? end?["reason"] : nil),
            ("cancelled", cancelled), ("restarts", .array(restarts)), ("controls", .array(controls)),
            ("controls_omitted", receiptsOmitted == 0 ? nil : .integer(Int64(receiptsOmitted))),
            ("steps", .array(tree(shown.map { ($0.path.split(separator: "/"), $0) }, depth: 0))),
            ("steps_omitted", omitted == 0 ? nil : .integer(Int64(omitted))),
            ("emits", emits == 0 ? nil : .integer(Int64(emits))), ("totals", totals.json()))
    }

    /// The steps that are shown, with what is known of them from others. What is in flight is among them in any case.
    private func shown(_ callsNotRun: [String: JSON]) -> [StepTrace] {
        let inFlight = steps.values.filter { !$0.isListed }.sorted { ($0.started, $0.path) < ($1.started, $1.path) }
        let approvals = Dictionary(approvals.output.map { ($0.step.step, $0) }) { $1 }
        return (order.compactMap { steps[$0] } + inFlight).map { step in
            var step = step
            step.approval = approvals[step.path].map { JSON.compact($0.members) }
            step.callsNotRun = callsNotRun[step.path]
            return step
        }
    }

    /// The steps below one place, in the order in which the first of each branch began. What only leads to steps is a `scope`.
    private func tree(_ steps: [(segments: [Substring], step: StepTrace)], depth: Int) -> [JSON] {
        var names: [Substring] = []
        var branches: [Substring: [(segments: [Substring], step: StepTrace)]] = [:]
        for step in steps {
            if branches[step.segments[depth]] == nil { names.append(step.segments[depth]) }
            branches[step.segments[depth], default: []].append(step)
        }
        return names.map { name in
            let branch = branches[name]!
            let below = tree(branch.filter { $0.segments.count > depth + 1 }, depth: depth + 1)
            let own = branch.first { $0.segments.count == depth + 1 }?.step
            let place = own?.members(turnEnded: ended) ?? scope(branch[0].segments.prefix(depth + 1), branch.map(\.step))
            return JSON.compact(place + [("steps", below.isEmpty ? nil : .array(below))])
        }
    }

    private func scope(_ segments: ArraySlice<Substring>, _ steps: [StepTrace]) -> [(String, JSON?)] {
        let started = steps.map(\.started).min()!
        let isOpen = ended == nil && steps.contains { $0.ended == nil }
        let last = isOpen ? nil : steps.compactMap { $0.ended ?? ended }.max()
        return [
            ("step", .string(segments.joined(separator: "/"))), ("kind", "scope"), ("name", .string(String(segments.last!))),
            ("state", isOpen ? "open" : "completed"), ("started", .string(started.description)),
            ("ended", last.map { .string($0.description) }),
            ("duration_ms", last.map { .integer($0.milliseconds - started.milliseconds) }),
        ]
    }
}

extension JSON {
    /// An object of the members that have a value.
    static func compact(_ members: [(String, JSON?)]) -> JSON {
        .object(members.compactMap { name, value in value.map { Member(name, $0) } })
    }
}
