internal import ParleyChannels
internal import ParleySystem

/// The state of one agent by its log up to one entry: the turn that is open, the steps that are, and the input that has no receipt.
///
/// It knows the contract only, nothing of how the runtime keeps the same things.
struct SimulationAgentState {
    struct OpenStep {
        var kind: String
        /// The name of the signal that a wait is for. A step that follows a channel waits for none.
        var name: String
        var isFollow: Bool
        /// Neither a cancel nor an interrupt reaches it.
        var isShielded: Bool
        var startedAt: UInt64
    }

    private(set) var turn: UInt64?
    private(set) var lastTurn: UInt64?
    private(set) var open: [String: OpenStep] = [:]
    /// In log order.
    private(set) var undecided: [SimulationHistory.Entry] = []
    private(set) var isStalled = false
    private(set) var isCancelled = false
    /// The offset of the entry that ended the last turn.
    private var lastEnd: UInt64 = 0

    static let inputs: Set = ["message", "steer", "interrupt", "cancel", "approve", "deny", "signal", "close", "resume"]
    static let turnEnds: Set = ["turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled"]

    mutating func take(_ entry: SimulationHistory.Entry) {
        switch entry.type {
        case let type where SimulationAgentState.inputs.contains(type): undecided.append(entry)
        case "receipt": undecided.removeAll { $0.offset == entry.decides }
        case "turn.started": (turn, open, isCancelled) = (entry.turn, [:], false)
        case let type where SimulationAgentState.turnEnds.contains(type):
            (turn, lastTurn, open, isStalled, lastEnd) = (nil, entry.turn, [:], false, entry.offset)
        case "step.started" where entry.attempt == 1:
            open[entry.step] = OpenStep(
                kind: entry.body["kind"]?.string ?? "", name: entry.body["name"]?.string ?? "",
                isFollow: entry.body["request"]?["channel"] != nil, isShielded: entry.isShielded, startedAt: entry.offset)
        case let type where type == "step.completed" || type == "step.failed" && entry.body["final"] == true: open[entry.step] = nil
        case "agent.stalled": isStalled = true
        case "agent.resumed": isStalled = false
        case "supervision":
            // The end of a stalled turn follows in the same batch.
            if entry.body["action"] == "cancel" { isCancelled = true } else { isStalled = false }
        default: break
        }
    }

    /// The input that is left although it could be decided: there must be none once everything is quiet.
    func lying(_ policy: String) -> [SimulationHistory.Entry] { undecided.filter { isDecidable($0, policy) } }

    private func isDecidable(_ input: SimulationHistory.Entry, _ policy: String) -> Bool {
        switch condition(input) {
        case .failed: return true
        case .notYet: return false
        case .holds: break
        }
        guard turn != nil else { return input.type != "signal" }
        if isMessage(input) { return false }
        // Every control is decided without its program; the rest waits.
        if isStalled { return ["interrupt", "cancel", "approve", "deny", "resume", "close"].contains(input.type) }
        switch input.type {
        case "message" where policy == "interrupt", "interrupt": return open.values.contains { !$0.isShielded }
        case "message" where policy == "rollback": return !isCancelled
        case "message": return policy == "reject"
        case "cancel": return !isCancelled
        case "approve", "deny", "resume": return true
        case "signal": return open.values.contains { $0.kind == "wait" && !$0.isFollow && $0.name == input.body["name"]?.string }
        default: return false
        }
    }

    /// Whether it is an interrupt that was too late for its turn, and begins another one in its turn.
    func isMessage(_ input: SimulationHistory.Entry) -> Bool {
        input.type == "interrupt" && input.body["text"] != nil && input.body["if_turn"] == nil && input.offset < lastEnd
    }

    enum Condition { case holds, notYet, failed }

    /// The state of the entry's own precondition.
    func condition(_ input: SimulationHistory.Entry) -> Condition {
        if input.body["if_offset"] != nil, input.offset(of: "if_offset") != input.offset - 1 { return .failed }
        guard input.body["if_turn"] != nil, let wanted = input.offset(of: "if_turn") else { return .holds }
        if wanted == turn { return .holds }
        if undecided.contains(where: { $0.offset == wanted }) { return .notYet }
        return input.type == "message" && turn == nil && wanted == lastTurn ? .holds : .failed
    }
}

extension SimulationHistory.Entry {
    /// The offset of the input that a receipt is for.
    var decides: UInt64? { offset(of: "of") }

    func offset(of member: String) -> UInt64? { body[member]?.string.flatMap { Offset(token: $0)?.value } }

    /// Whether it is of a step that neither a cancel nor an interrupt reaches.
    var isShielded: Bool {
        body["compensation"] == true || step.split(separator: "/").contains { $0.hasPrefix("shielded") || $0.hasPrefix("cleanup") }
    }

    /// Whether it counts, whatever has happened meanwhile.
    var isUnconditional: Bool { ["if_turn", "if_offset", "args_sha256"].allSatisfy { body[$0] == nil } }

    /// When it was committed; `nil` for what has no stamp.
    var at: Timestamp? { body["at"]?.string.flatMap { Timestamp($0) } }
}

extension SimulationHistory.Life {
    /// How an agent of its kind takes messages while a turn runs.
    var policy: String {
        let kind = name.split(separator: "/").dropFirst().first ?? ""
        return ["steer", "interrupt", "reject", "rollback"].first { kind == "sim-\($0)" } ?? "queue"
    }
}
