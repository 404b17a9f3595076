internal import ParleyChannels
internal import ParleySystem

/// What the log proves of one approval: asked, decided by whom, and then done once or never. Filled from its turn's entries in log order.
///
/// What it guards is, by definition, the first step that does something (anything but a sleep, a wait or another approval) and begins in the
/// approval's scope after it was approved. A scope is the path up to its last `/`, and what lies below counts. What takes back what the turn did
/// is no such step, and in a turn that was cancelled there is none any more, unless the approval was shielded.
struct ApprovalRecord {
    private let position: Position
    let scope: String
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
        /// Of what a tool was called with.
        var argumentsDigest: JSON?
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

    var step: Position { Position(turn: position.turn, step: position.step) }

    /// The step that was executed.
    var executedStep: Position? { executed.map { Position(turn: position.turn, step: $0.step) } }

    /// Approved, and nothing that it guards has begun.
    var awaitsExecution: Bool { decided != nil && executed == nil && !isSettled }

    /// Who decided it.
    var decidedBy: String? { decided?.body["decided_by"]?.string }

    /// Takes a later entry of the same turn.
    mutating func take(_ offset: UInt64, _ frame: Frame, _ place: Position) {
        guard place.turn == position.turn, !isSettled else { return }
        if frame.kind.endsTurn || frame.endsByCancel && awaitsExecution && body["shielded"] == nil { return isSettled = true }
        if place.step == position.step { return takeOwn(offset, frame) }
        guard decided != nil else { return }
        if place.step == executed?.step {
            takeExecution(offset, frame)
        } else if executed == nil, frame.kind == .stepStarted, place.step.hasPrefix(scope) {
            let start = frame.body
            let kind = start["kind"]?.string ?? "step"
            guard !TraceTotals.isWait(kind), start["compensation"] == nil else { return }
            executed = Execution(step: place.step, kind: kind, offset: offset, at: frame.at!)
            if kind == StepKind.tool.rawValue { executed?.argumentsDigest = start["request"]?["sha256"] }
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

/// Approvals, and whom of them an entry concerns: a program may ask for a thousand at once, so nobody looks through all for every entry.
struct ApprovalRecords {
    private(set) var all: [ApprovalRecord] = []
    /// By their own step and by the step that was executed, as long as something is to come.
    private var open: [Position: [Int]] = [:]
    /// Those that are approved and of which nothing has begun, by their scope.
    private var awaiting: [Position: [Int]] = [:]

    /// Whether something is still to come.
    var isOpen: Bool { !open.isEmpty }

    /// Adds an approval from its `approval.requested`.
    /// - Returns: its place.
    mutating func add(_ offset: UInt64, _ frame: Frame, _ position: Position) -> Int {
        let record = ApprovalRecord(offset, frame, position)
        open[record.step, default: []].append(all.count)
        all.append(record)
        return all.count - 1
    }

    /// Takes the next entry of a turn.
    mutating func take(_ offset: UInt64, _ frame: Frame, _ position: Position) {
        if frame.kind.endsTurn || frame.endsByCancel {
            for index in open.filter({ $0.key.turn == position.turn }).values.joined() { take(index, offset, frame, position) }
            return
        }
        let concerned = open[Position(turn: position.turn, step: position.step)] ?? []
        for index in concerned { take(index, offset, frame, position) }
        guard frame.kind == .stepStarted else { return }
        for scope in ApprovalRecords.scopes(of: position.step) {
            for index in awaiting[Position(turn: position.turn, step: scope)] ?? [] { take(index, offset, frame, position) }
        }
    }

    /// `a/b/c` lies in the scopes ``, `a/` and `a/b/`.
    private static func scopes(of path: String) -> [String] {
        [""] + path.indices.filter { path[$0] == "/" }.map { String(path[...$0]) }
    }

    private mutating func take(_ index: Int, _ offset: UInt64, _ frame: Frame, _ position: Position) {
        let wasExecuted = all[index].executedStep
        let didAwait = all[index].awaitsExecution
        all[index].take(offset, frame, position)
        let record = all[index]
        if didAwait != record.awaitsExecution {
            let scope = Position(turn: position.turn, step: record.scope)
            if didAwait { awaiting[scope]?.removeAll { $0 == index } } else { awaiting[scope, default: []].append(index) }
            if awaiting[scope]?.isEmpty == true { awaiting[scope] = nil }
        }
        if wasExecuted == nil, let step = record.executedStep { open[step, default: []].append(index) }
        guard record.isSettled else { return }
        for step in [record.step, record.executedStep].compactMap({ $0 }) {
            open[step]?.removeAll { $0 == index }
            if open[step]?.isEmpty == true { open[step] = nil }
        }
    }
}

extension Frame {
    /// The turn is cancelled here: what is not shielded ends.
    var endsByCancel: Bool { kind == .supervision && body["action"] == "cancel" }
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
            ("args_sha256", execution.argumentsDigest), ("attempts", .integer(Int64(execution.attempts))),
            ("state", .string(execution.end?.state ?? "open")),
            ("ended", execution.end.map { moment($0.offset, $0.at) }))
    }

    private static func moment(_ offset: UInt64, _ at: Timestamp, _ more: (String, JSON?)...) -> JSON {
        JSON.compact([("offset", .string(Offset(offset).token)), ("at", .string(at.description))] + more)
    }
}
