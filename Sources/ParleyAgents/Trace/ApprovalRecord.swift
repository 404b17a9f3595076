internal import ParleyChannels
internal import ParleySystem

/// What the log proves of one approval: asked, decided by whom, and then done once or never. Filled from its turn's entries in log order.
///
/// What it guards is, by definition, the first step that does something (anything but a sleep, a wait or another approval) and begins in the
/// approval's scope after it was approved. A scope is the path up to its last `/`, and what lies below counts.
struct ApprovalRecord {
    private let position: Position
    private let scope: String
    private let requested: (offset: UInt64, at: Timestamp)
    private let body: JSON
    /// The receipt that names the approval: of the entry that decided or interrupted it.
    private var entry: JSON?
    private var decided: (offset: UInt64, at: Timestamp, body: JSON)?
    /// How it ended without a decision: `interrupted` or `cancelled`.
    private var ended: (offset: UInt64, at: Timestamp, code: String)?
    private var executed: Execution?
    /// Nothing that comes can change it any more.
    private(set) var isSettled = false

    private struct Execution {
        var step: String
        var kind: String
        var offset: UInt64
        var at: Timestamp
        var attempts = 1
        var end: (offset: UInt64, at: Timestamp, state: String)?
    }

    /// From its `approval.requested`.
    init(_ offset: UInt64, _ frame: Frame, _ position: Position) {
        self.position = position
        scope = position.step.lastIndex(of: "/").map { String(position.step[...$0]) } ?? ""
        requested = (offset, frame.at!)
        body = frame.body
    }

    /// Who decided it.
    var decidedBy: String? { decided?.body["decided_by"]?.string }

    /// Takes a later entry of the same turn.
    mutating func take(_ offset: UInt64, _ frame: Frame, _ place: Position) {
        guard place.turn == position.turn, !isSettled else { return }
        if frame.kind.endsTurn { return isSettled = true }
        if place.step == position.step { return takeOwn(offset, frame) }
        guard decided != nil else { return }
        if place.step == executed?.step {
            takeExecution(offset, frame)
        } else if executed == nil, frame.kind == .stepStarted, place.step.hasPrefix(scope) {
            let kind = frame.body["kind"]?.string ?? "step"
            guard !TraceTotals.isWait(kind) else { return }
            executed = Execution(step: place.step, kind: kind, offset: offset, at: frame.at!)
        }
    }

    private mutating func takeOwn(_ offset: UInt64, _ frame: Frame) {
        switch frame.kind {
        case .receipt: entry = frame.body["of"]
        case .approvalDecided:
            decided = (offset, frame.at!, frame.body)
            isSettled = decided?.body["decision"]?.string != "approved"
        case .stepFailed where decided == nil && frame.body["final"]?.bool == true:
            ended = (offset, frame.at!, frame.body["error"]?["code"]?.string ?? "failed")
            isSettled = true
        default: break
        }
    }

    private mutating func takeExecution(_ offset: UInt64, _ frame: Frame) {
        switch frame.kind {
        case .stepStarted: executed?.attempts += 1
        case .stepCompleted: executed?.end = (offset, frame.at!, "completed")
        case .stepFailed:
            let body = frame.body
            guard body["final"]?.bool == true else { return }
            let code = body["error"]?["code"]?.string ?? ""
            executed?.end = (offset, frame.at!, ["interrupted", "cancelled"].contains(code) ? code : "failed")
        default: break
        }
        isSettled = executed?.end != nil
    }
}

// MARK: - JSON

extension ApprovalRecord {
    var state: String { decided?.body["decision"]?.string ?? ended?.code ?? "open" }

    var members: [(String, JSON?)] {
        [
            ("approval", .string("\(Offset(position.turn))/\(position.step)")), ("turn", .string(Offset(position.turn).token)),
            ("step", .string(position.step)), ("action", body["action"]), ("args_sha256", body["args_sha256"]), ("state", .string(state)),
            ("requested", ApprovalRecord.moment(requested.offset, requested.at, ("expires_at", body["expires_at"]))),
            (
                "decided",
                decided.map {
                    ApprovalRecord.moment(
                        $0.offset, $0.at, ("decision", $0.body["decision"]), ("by", $0.body["decided_by"]), ("reason", $0.body["reason"]),
                        ("entry", entry))
                }
            ),
            ("ended", ended.map { ApprovalRecord.moment($0.offset, $0.at, ("reason", .string($0.code)), ("entry", entry)) }),
            ("executed", executed.map { ApprovalRecord.json($0) } ?? .null),
        ]
    }

    private static func json(_ execution: Execution) -> JSON {
        moment(
            execution.offset, execution.at, ("step", .string(execution.step)), ("kind", .string(execution.kind)),
            ("attempts", .integer(Int64(execution.attempts))), ("state", .string(execution.end?.state ?? "open")),
            ("ended", execution.end.map { moment($0.offset, $0.at) }))
    }

    private static func moment(_ offset: UInt64, _ at: Timestamp, _ more: (String, JSON?)...) -> JSON {
        JSON.compact([("offset", .string(Offset(offset).token)), ("at", .string(at.description))] + more)
    }
}
