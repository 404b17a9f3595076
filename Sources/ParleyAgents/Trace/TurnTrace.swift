internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// One turn as its trace shows it, filled from its entries in log order.
struct TurnTrace {
    let turn: UInt64
    /// Where `turn.started` stands.
    let offset: UInt64
    let started: Timestamp
    /// How many more steps may be listed.
    private(set) var room: Int
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
    private var stepsOmitted = 0
    private var approvals = ApprovalRecords()
    private var callsNotRun = CallsNotRun()

    struct Receipt {
        var offset: UInt64
        var at: Timestamp
        var of: UInt64
        var step: String?
        var body: JSON
    }

    private static let receiptsMax = 1_000

    init(turn: UInt64, offset: UInt64, at: Timestamp, stepsMax: Int) {
        (self.turn, self.offset, started, room) = (turn, offset, at, stepsMax)
    }

    /// Takes the next entry of the channel after the turn's start.
    mutating func add(_ offset: UInt64, _ frame: Frame) {
        guard frame.kind != .receipt else { return addReceipt(offset, frame) }
        guard let position = frame.position, position.turn == turn, let at = frame.at else { return }
        if frame.kind != .text { approvals.take(offset, frame, position) }
        switch frame.kind {
        case .turnCompleted: ends("completed", at, nil)
        case .turnFailed: ends("failed", at, frame.body)
        case .turnInterrupted: ends("interrupted", at, nil)
        case .turnCancelled: ends("cancelled", at, frame.body)
        case .agentStalled: (state, end) = ("stalled", frame.body)
        case .agentParked: (state, end) = ("parked", frame.body)
        case .agentResumed: (state, end) = ("open", nil)
        case .supervision: takenUp(at, frame.body)
        case .emit: emits += 1
        case .stepStarted:
            let body = frame.body
            begin(offset, position, at, body)
            callsNotRun.take(offset, position, body)
        case .text: steps[position.step]?.pieces += frame.textPieces
        case .timerSet: steps[position.step]?.due = frame.body["due"]
        case .approvalRequested: steps[position.step]?.approval = approvals.add(offset, frame, position)
        case .stepFailed:
            let body = frame.body
            totals.failures += 1
            steps[position.step]?.fails(position.attempt, at, body)
            if body["final"]?.bool == true { close(position.step) }
        case .stepCompleted:
            let body = frame.body
            steps[position.step]?.completes(at, body)
            callsNotRun.take(offset, position, body)
            close(position.step)
        default: break
        }
    }

    private mutating func ends(_ state: String, _ at: Timestamp, _ body: JSON?) { (self.state, ended, end) = (state, at, body) }

    private mutating func takenUp(_ at: Timestamp, _ body: JSON) {
        guard body["action"] != "cancel" else {
            return cancelled = JSON.compact(("at", .string(at.description)), ("cause", body["cause"]), ("reason", body["reason"]))
        }
        guard body["action"] == "resume" else { return }
        totals.restarts += 1
        if state == "stalled" { (state, end) = ("open", nil) }
        restarts.append(
            JSON.compact(
                ("at", .string(at.description)), ("cause", body["cause"]), ("action", body["action"]), ("restarts", body["restarts"])))
    }

    private mutating func begin(_ offset: UInt64, _ position: Position, _ at: Timestamp, _ body: JSON) {
        totals.attempts += 1
        if steps[position.step] == nil {
            totals.steps += 1
            let isListed = room > 0
            if isListed { room -= 1 }
            steps[position.step] = StepTrace(position.step, at, body, isListed: isListed)
            if isListed { order.append(position.step) }
        }
        steps[position.step]?.begins(position.attempt, offset, at, body)
    }

    /// Counts a step that has ended, and forgets it unless it is listed.
    private mutating func close(_ path: String) {
        guard let step = steps[path], let ended = step.ended else { return }
        totals.add(step.kind, ended.milliseconds - step.started.milliseconds)
        totals.inputTokens += step.inputTokens ?? 0
        totals.outputTokens += step.outputTokens ?? 0
        totals.recoveredTokens += step.recoveredTokens ?? 0
        guard !step.isListed else { return }
        steps[path] = nil
        stepsOmitted += 1
    }

    /// A receipt belongs to the turn it names; one that names none to the turn at whose place it stands.
    private mutating func addReceipt(_ offset: UInt64, _ frame: Frame) {
        let position = frame.position
        if let position, position.turn != turn { return }
        if let position { approvals.take(offset, frame, position) }
        let body = frame.body
        guard let of = body["of"]?.string.flatMap({ Offset(token: $0) }), of.value != turn else { return }
        guard receipts.count < TurnTrace.receiptsMax else { return receiptsOmitted += 1 }
        let step = position.flatMap { $0.step.isEmpty ? nil : $0.step }
        receipts.append(Receipt(offset: offset, at: frame.at!, of: of.value, step: step, body: body))
    }
}

// MARK: - JSON

extension TurnTrace {
    /// - Parameters:
    ///   - input: Finds an input, by its offset.
    ///   - content: Finds what a part of a model's request says, by its digest.
    func json(
        _ input: (UInt64) throws(LogError) -> InputRecord?, _ content: (String) throws(LogError) -> Bytes?
    ) throws(LogError) -> JSON {
        let begun = try input(turn)
        let notRun = try callsNotRun.members(content)
        var controls: [JSON] = []
        for receipt in receipts {
            let members: [(String, JSON?)] = [
                ("state", receipt.body["state"]), ("refused", receipt.body["reason"]), ("step", receipt.step.map { .string($0) }),
                ("receipt", .string(Offset(receipt.offset).token)), ("decided", .string(receipt.at.description)),
            ]
            let entry = try input(receipt.of)?.members ?? [("offset", .string(Offset(receipt.of).token))]
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
            ("steps", .array(tree(listed.map { ($0.path.split(separator: "/"), $0) }, notRun, depth: 0))),
            ("steps_omitted", stepsOmitted == 0 ? nil : .integer(Int64(stepsOmitted))),
            ("emits", emits == 0 ? nil : .integer(Int64(emits))), ("totals", totals.json()))
    }

    /// What is in flight is shown in any case.
    private var listed: [StepTrace] {
        order.compactMap { steps[$0] } + steps.values.filter { !$0.isListed }.sorted { ($0.started, $0.path) < ($1.started, $1.path) }
    }

    /// The steps below one place, in the order in which the first of each branch began. What only leads to steps is a `scope`.
    private func tree(_ steps: [(segments: [Substring], step: StepTrace)], _ notRun: [String: JSON], depth: Int) -> [JSON] {
        var names: [Substring] = []
        var branches: [Substring: [(segments: [Substring], step: StepTrace)]] = [:]
        for step in steps {
            if branches[step.segments[depth]] == nil { names.append(step.segments[depth]) }
            branches[step.segments[depth], default: []].append(step)
        }
        return names.map { name in
            let branch = branches[name]!
            let below = tree(branch.filter { $0.segments.count > depth + 1 }, notRun, depth: depth + 1)
            let own = branch.first { $0.segments.count == depth + 1 }?.step
            let place =
                own.map { members(of: $0) + [("calls_not_run", notRun[$0.path])] }
                ?? scope(branch[0].segments.prefix(depth + 1), branch.map(\.step))
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

    private func members(of step: StepTrace) -> [(String, JSON?)] {
        // What had no end when its turn ended has none to come.
        let ended = step.ended ?? ended
        let state = step.ended == nil && ended != nil ? "cancelled" : step.state
        return [
            ("step", .string(step.path)), ("kind", .string(step.kind)), ("name", .string(step.name)), ("state", .string(state)),
            ("compensation", step.isCompensation ? true : nil), ("started", .string(step.started.description)),
            ("ended", ended.map { .string($0.description) }),
            ("duration_ms", ended.map { .integer($0.milliseconds - step.started.milliseconds) }),
            ("attempts", .array(step.attempts.map(\.json))),
            ("due", step.due), ("channel", step.followed), ("args_sha256", step.argumentsDigest), ("model", step.model),
            ("input_tokens", step.inputTokens.map { .integer($0) }),
            ("output_tokens", step.outputTokens.map { .integer($0) }), ("recovered_tokens", step.recoveredTokens.map { .integer($0) }),
            ("pieces", step.outputTokens == nil && step.pieces > 0 ? .integer(Int64(step.pieces)) : nil),
            ("finish_reason", step.finishReason), ("steered", step.steered), ("error", step.error),
            ("approval", step.approval.map { JSON.compact(approvals.all[$0].members) }),
        ]
    }
}

/// One step of a turn.
struct StepTrace {
    let path: String
    let kind: String
    let name: String
    let started: Timestamp
    let isListed: Bool
    let isCompensation: Bool
    let model: JSON?
    /// Of the arguments of a tool.
    let argumentsDigest: JSON?
    /// The channel that is followed.
    let followed: JSON?
    var attempts: [Attempt] = []
    var state = "open"
    var ended: Timestamp?
    var error: JSON?
    var due: JSON?
    var steered: JSON?
    var inputTokens: Int64?
    var outputTokens: Int64?
    var recoveredTokens: Int64?
    var finishReason: JSON?
    /// How many pieces of text came so far: about as many tokens.
    var pieces = 0
    /// Which of the turn's approvals it is.
    var approval: Int?

    struct Attempt {
        var number: UInt32
        var offset: UInt64
        var started: Timestamp
        var continuesAt: JSON?
        var ended: Timestamp?
        var state = "open"
        var error: JSON?
        var retryAt: JSON?
    }

    init(_ path: String, _ at: Timestamp, _ body: JSON, isListed: Bool) {
        (self.path, started, self.isListed) = (path, at, isListed)
        kind = body["kind"]?.string ?? "step"
        name = body["name"]?.string ?? path
        isCompensation = body["compensation"] == true
        model = body["request"]?["model"]
        argumentsDigest = kind == StepKind.tool.rawValue ? body["request"]?["sha256"] : nil
        followed = body["request"]?["channel"]
        steered = body["steered"]
    }

    mutating func begins(_ attempt: UInt32, _ offset: UInt64, _ at: Timestamp, _ body: JSON) {
        // Of an attempt that has neither failed nor completed when the next one begins, the process ended.
        if let last = attempts.indices.last, attempts[last].state == "open" { attempts[last].state = "lost" }
        attempts.append(Attempt(number: attempt, offset: offset, started: at, continuesAt: body["continues_at"]))
        if body["continues_at"] == nil { pieces = 0 }
    }

    mutating func fails(_ attempt: UInt32, _ at: Timestamp, _ body: JSON) {
        let error = body["error"]
        let reason =
            switch error?["code"]?.string {
            case "interrupted": "interrupted"
            case "cancelled": "cancelled"
            default: "failed"
            }
        if let last = attempts.indices.last {
            (attempts[last].ended, attempts[last].state, attempts[last].error) = (at, reason, error)
            attempts[last].retryAt = body["retry_at"]
        }
        guard body["final"]?.bool == true else { return }
        (state, ended, self.error) = (reason, at, error)
    }

    mutating func completes(_ at: Timestamp, _ body: JSON) {
        finishReason = body["finish_reason"]
        state = finishReason?.string == "interrupted" ? "interrupted" : "completed"
        ended = at
        inputTokens = body["usage"]?["input_tokens"]?.integer
        outputTokens = body["usage"]?["output_tokens"]?.integer
        recoveredTokens = body["recovered_tokens"]?.integer
        if let last = attempts.indices.last { (attempts[last].ended, attempts[last].state) = (at, state) }
    }
}

extension StepTrace.Attempt {
    var json: JSON {
        JSON.compact(
            ("attempt", .integer(Int64(number))), ("offset", .string(Offset(offset).token)), ("state", .string(state)),
            ("started", .string(started.description)), ("ended", ended.map { .string($0.description) }),
            ("duration_ms", ended.map { .integer($0.milliseconds - started.milliseconds) }), ("continues_at", continuesAt),
            ("error", error), ("retry_at", retryAt))
    }
}

extension JSON {
    /// An object of the members that have a value.
    static func compact(_ members: [(String, JSON?)]) -> JSON {
        .object(members.compactMap { name, value in value.map { Member(name, $0) } })
    }
}
