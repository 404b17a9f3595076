internal import ParleyChannels
internal import ParleySystem

/// The log's proof of one approval: requested, decided and by whom, and then done once or never. Folded from its turn's entries.
///
/// By definition, it guards the first step that does something (anything but a sleep, a wait or another approval) and begins in the approval's scope
/// after the approval. A scope is the path up to its last `/`, and everything below it counts. A compensation is no such step; and a cancelled turn
/// has none any more, unless the approval was shielded.
struct ApprovalRecord: Projection {
    /// The approval's own step.
    let step: Position
    private let requested: Moment
    private let body: JSON
    /// The receipt that names the approval: that of the entry that decided or interrupted it.
    private var entry: JSON?
    private var decided: (moment: Moment, body: JSON)?
    /// How it ended without a decision: `interrupted` or `cancelled`.
    private var ended: (moment: Moment, code: String)?
    private var executed: Execution?
    private(set) var isComplete = false

    private struct Execution {
        var step: String
        var start: StepStart
        var began: Moment
        var attempts = 1
        var end: (moment: Moment, state: String)?
    }

    /// From its `approval.requested`.
    init(_ entry: LogEntry, _ position: Position) {
        (step, requested, body) = (position.ofStep, entry.moment, entry.body)
    }

    /// The offset of the request.
    var offset: UInt64 { requested.offset }

    /// The name of its decider.
    var decidedBy: String? { decided?.body["decided_by"]?.string }

    private var scope: String { step.step.lastIndex(of: "/").map { String(step.step[...$0]) } ?? "" }

    /// The places whose entries may change it: its own step and, once it is approved, its scope; then the step that was executed instead.
    var places: [Position] {
        if isComplete { return [] }
        guard decided != nil else { return [step] }
        return [step, Position(turn: step.turn, step: executed?.step ?? scope)]
    }

    mutating func apply(_ entry: LogEntry) {
        guard !isComplete, let place = entry.position, place.turn == step.turn else { return }
        if entry.kind.endsTurn || entry.cancelsTurn && decided != nil && executed == nil && body["shielded"] == nil {
            return isComplete = true
        }
        if place.step == step.step { return applyOwn(entry) }
        guard decided != nil else { return }
        if place.step == executed?.step { return applyExecution(entry) }
        guard executed == nil, entry.kind == .stepStarted, place.step.hasPrefix(scope) else { return }
        let start = StepStart(entry)
        if !start.isWait, !start.isCompensation { executed = Execution(step: place.step, start: start, began: entry.moment) }
    }

    private mutating func applyOwn(_ entry: LogEntry) {
        if entry.kind == .receipt { self.entry = entry.body["of"] }
        if entry.kind == .approvalDecided {
            decided = (entry.moment, entry.body)
            isComplete = state != "approved"
        } else if decided == nil, entry.kind == .stepFailed, let end = AttemptEnd(entry), end.isFinal {
            ended = (entry.moment, end.code ?? end.state)
            isComplete = true
        }
    }

    private mutating func applyExecution(_ entry: LogEntry) {
        if entry.kind == .stepStarted { executed?.attempts += 1 }
        guard let end = AttemptEnd(entry), end.isFinal else { return }
        executed?.end = (entry.moment, end.state)
        isComplete = true
    }
}

/// Approvals, and which of them an entry concerns: a program may ask for a thousand at once, so an entry is applied only to those.
struct ApprovalRecords: Projection {
    /// In the order in which they were requested.
    private(set) var output: [ApprovalRecord] = []
    /// Which of them an entry at a place may change, as long as one can change.
    private var concerned: [Position: Set<Int>] = [:]
    /// Only those that were requested there; `nil` for all.
    private let wanted: Set<UInt64>?

    init(requestedAt wanted: Set<UInt64>? = nil) { self.wanted = wanted }

    var isComplete: Bool { concerned.isEmpty }

    mutating func apply(_ entry: LogEntry) {
        if entry.kind == .approvalRequested, wanted?.contains(entry.offset) ?? true { add(entry) }
        guard !isComplete, entry.kind != .text, let position = entry.position else { return }
        for index in Set(places(of: entry, position).flatMap { concerned[$0] ?? [] }) {
            let before = output[index].places
            output[index].apply(entry)
            move(index, from: before, to: output[index].places)
        }
    }

    private mutating func add(_ entry: LogEntry) {
        guard let position = entry.position else { return }
        output.append(ApprovalRecord(entry, position))
        move(output.count - 1, from: [], to: output.last!.places)
    }

    private mutating func move(_ index: Int, from before: [Position], to after: [Position]) {
        for place in before where !after.contains(place) {
            concerned[place]?.remove(index)
            if concerned[place]?.isEmpty == true { concerned[place] = nil }
        }
        for place in after { concerned[place, default: []].insert(index) }
    }

    /// The end of a turn and its cancellation concern all approvals of the turn. A start of `a/b/c` is in the scopes ``, `a/` and `a/b/` as well.
    private func places(of entry: LogEntry, _ position: Position) -> [Position] {
        if entry.kind.endsTurn || entry.cancelsTurn { return concerned.keys.filter { $0.turn == position.turn } }
        guard entry.kind == .stepStarted else { return [position.ofStep] }
        let path = position.step
        let scopes = [""] + path.indices.filter { path[$0] == "/" }.map { String(path[...$0]) }
        return [position.ofStep] + scopes.map { Position(turn: position.turn, step: $0) }
    }
}

extension LogEntry {
    /// The turn is cancelled here: steps that are not shielded end.
    var cancelsTurn: Bool { kind == .supervision && body["action"] == "cancel" }

    fileprivate var moment: Moment { (offset, at) }
}

private typealias Moment = (offset: UInt64, at: Timestamp)

// MARK: - JSON

extension ApprovalRecord {
    var state: String { decided?.body["decision"]?.string ?? ended?.code ?? "open" }

    var members: [(String, JSON?)] {
        let token = Offset(step.turn).token
        return [
            ("approval", .string("\(token)/\(step.step)")), ("turn", .string(token)), ("step", .string(step.step)),
            ("action", body["action"]), ("args_sha256", body["args_sha256"]), ("state", .string(state)),
            ("requested", ApprovalRecord.json(requested, ("expires_at", body["expires_at"]))),
            (
                "decided",
                decided.map {
                    ApprovalRecord.json(
                        $0.moment, ("decision", $0.body["decision"]), ("by", $0.body["decided_by"]), ("reason", $0.body["reason"]),
                        ("entry", entry))
                }
            ),
            ("ended", ended.map { ApprovalRecord.json($0.moment, ("reason", .string($0.code)), ("entry", entry)) }),
            ("executed", executed.map { ApprovalRecord.json($0) } ?? .null),
        ]
    }

    private static func json(_ execution: Execution) -> JSON {
        json(
            execution.began, ("step", .string(execution.step)), ("kind", .string(execution.start.kind)),
            ("args_sha256", execution.start.argumentsDigest), ("attempts", .integer(Int64(execution.attempts))),
            ("state", .string(execution.end?.state ?? "open")), ("ended", execution.end.map { json($0.moment) }))
    }

    private static func json(_ moment: Moment, _ more: (String, JSON?)...) -> JSON {
        JSON.compact([("offset", .string(Offset(moment.offset).token)), ("at", .string(moment.at.description))] + more)
    }
}
