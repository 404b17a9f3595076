internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// One turn as its trace shows it, folded from the channel's entries after the turn's start.
struct TurnTrace: Projection {
    let turn: UInt64
    let started: Timestamp
    private(set) var totals = TraceTotals()

    private var end = End()
    private var restarts: [JSON] = []
    /// When and why it was cancelled: from then on it only unwinds.
    private var cancelled: JSON?
    private var controls = Controls()
    private var emits = 0
    private var steps: Steps
    private var approvals = ApprovalRecords()
    private var callsNotRun = CallsNotRun()

    /// The state of the turn.
    private struct End {
        var state = "open"
        var at: Timestamp?
        /// The reason, from the entry that ended it or made it stall.
        var body: JSON?
    }

    /// The listed controls.
    private struct Controls {
        var receipts: [Receipt] = []
        var omitted = 0
        private static let max = 1_000

        mutating func add(_ receipt: Receipt) {
            if receipts.count < Controls.max { receipts.append(receipt) } else { omitted += 1 }
        }
    }

    /// The steps that are listed or have not ended.
    private struct Steps {
        let max: Int
        var byPath: [String: StepTrace] = [:]
        /// The paths of those that are listed, in the order in which they began.
        var order: [String] = []
        var room: Int { max - order.count }

        /// - Returns: whether it is the first attempt.
        mutating func begin(_ path: String, _ entry: LogEntry) -> Bool {
            let isNew = byPath[path] == nil
            if isNew {
                byPath[path] = StepTrace(path, entry, isListed: room > 0)
                if room > 0 { order.append(path) }
            }
            byPath[path]?.begins(entry)
            return isNew
        }
    }

    init(turn: UInt64, at: Timestamp, stepsMax: Int) { (self.turn, started, steps) = (turn, at, Steps(max: stepsMax)) }

    /// How many more steps may be listed.
    var room: Int { steps.room }

    mutating func apply(_ entry: LogEntry) {
        let position = entry.position
        if let position, position.turn != turn { return }
        // A receipt that names no turn belongs to the one at its place.
        if let receipt = Receipt(entry, isWanted: { $0 != turn }) { controls.add(receipt) }
        guard let position else { return }
        approvals.apply(entry)
        callsNotRun.apply(entry)
        switch entry.kind {
        case .agentStalled: end = End(state: "stalled", body: entry.body)
        case .agentParked: end = End(state: "parked", body: entry.body)
        case .agentResumed: end = End()
        case .supervision: takenUp(entry)
        case .emit: emits += 1
        case .stepStarted: begin(position.step, entry)
        case .text: steps.byPath[position.step]?.pieces += entry.frame.textPieces
        case .timerSet: steps.byPath[position.step]?.due = entry.body["due"]
        case .stepCompleted, .stepFailed: close(position.step, entry)
        default:
            guard let state = entry.kind.turnState else { return }
            let isExplained = entry.kind == .turnFailed || entry.kind == .turnCancelled
            end = End(state: state, at: entry.at, body: isExplained ? entry.body : nil)
        }
    }

    private mutating func takenUp(_ entry: LogEntry) {
        let (at, body) = (JSON.string(entry.at.description), entry.body)
        if entry.cancelsTurn { cancelled = JSON.compact(("at", at), ("cause", body["cause"]), ("reason", body["reason"])) }
        guard body["action"] == "resume" else { return }
        totals.restarts += 1
        if end.state == "stalled" { end = End() }
        restarts.append(JSON.compact(("at", at), ("cause", body["cause"]), ("action", body["action"]), ("restarts", body["restarts"])))
    }

    private mutating func begin(_ path: String, _ entry: LogEntry) {
        totals.attempts += 1
        if steps.begin(path, entry) { totals.steps += 1 }
    }

    /// Ends an attempt. Counts a step that has ended with it, and forgets that unless it is listed.
    private mutating func close(_ path: String, _ entry: LogEntry) {
        if entry.kind == .stepFailed { totals.failures += 1 }
        steps.byPath[path]?.ends(entry)
        guard let step = steps.byPath[path], let ended = step.end.at, AttemptEnd(entry)?.isFinal == true else { return }
        totals.add(step, until: ended)
        if !step.isListed { steps.byPath[path] = nil }
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
        var listed: [JSON] = []
        for receipt in controls.receipts {
            let members: [(String, JSON?)] = [
                ("state", receipt.state), ("refused", receipt.reason), ("step", receipt.step),
                ("receipt", .string(Offset(receipt.offset).token)), ("decided", .string(receipt.at.description)),
            ]
            let entry = try channels.input(receipt.of, of: channel)?.members ?? [("offset", .string(Offset(receipt.of).token))]
            listed.append(JSON.compact(entry + members))
        }
        return JSON.compact(
            ("turn", .string(Offset(turn).token)), ("state", .string(end.state)), ("input", begun.map { JSON.compact($0.members) }),
            ("queued_ms", begun.map { .integer(started.milliseconds - $0.at.milliseconds) }),
            ("started", .string(started.description)), ("ended", end.at.map { .string($0.description) }),
            ("duration_ms", end.at.map { .integer($0.milliseconds - started.milliseconds) }),
            ("error", end.body?["error"] ?? (end.state == "stalled" ? end.body : nil)),
            ("reason", end.state == "cancelled" ? end.body?["reason"] : nil),
            ("cancelled", cancelled), ("restarts", .array(restarts)), ("controls", .array(listed)),
            ("controls_omitted", controls.omitted == 0 ? nil : .integer(Int64(controls.omitted))),
            ("steps", .array(tree(shown.map { ($0.path.split(separator: "/"), $0) }, depth: 0))),
            ("steps_omitted", omitted == 0 ? nil : .integer(Int64(omitted))),
            ("emits", emits == 0 ? nil : .integer(Int64(emits))), ("totals", totals.json()))
    }

    /// The steps that are shown, with details known from others. Those in flight are always among them.
    private func shown(_ callsNotRun: [String: JSON]) -> [StepTrace] {
        let inFlight = steps.byPath.values.filter { !$0.isListed }.sorted { ($0.started, $0.path) < ($1.started, $1.path) }
        let approvals = Dictionary(approvals.output.map { ($0.step.step, $0) }) { $1 }
        return (steps.order.compactMap { steps.byPath[$0] } + inFlight).map { step in
            var step = step
            step.approval = approvals[step.path].map { JSON.compact($0.members) }
            step.callsNotRun = callsNotRun[step.path]
            return step
        }
    }

    /// The steps below one place, in the order in which the first of each branch began. A path that only leads to steps is a `scope`.
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
            let place = own?.members(turnEnded: end.at) ?? scope(branch[0].segments.prefix(depth + 1), branch.map(\.step))
            return JSON.compact(place + [("steps", below.isEmpty ? nil : .array(below))])
        }
    }

    private func scope(_ segments: ArraySlice<Substring>, _ steps: [StepTrace]) -> [(String, JSON?)] {
        let started = steps.map(\.started).min()!
        let isOpen = end.at == nil && steps.contains { $0.end.at == nil }
        let last = isOpen ? nil : steps.compactMap { $0.end.at ?? end.at }.max()
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
