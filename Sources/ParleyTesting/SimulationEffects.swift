internal import ParleyChannels
internal import ParleySystem

/// Judges the other effects of turns: what they compensated, what they read of other channels, and what agents remember.
struct SimulationEffects {
    private let life: SimulationHistory.Life
    private let entries: [SimulationHistory.Entry]
    private let history: SimulationHistory
    private var found: [SimulationViolation] = []

    static func violations(
        _ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry], _ history: SimulationHistory
    ) -> [SimulationViolation] {
        var judge = SimulationEffects(life, entries, history)
        judge.checkCompensations()
        judge.checkMemory()
        return judge.found
    }

    private init(_ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry], _ history: SimulationHistory) {
        self.life = life
        self.entries = entries
        self.history = history
    }

    private mutating func violate(_ invariant: String, _ evidence: String) {
        found.append(SimulationViolation(invariant: invariant, evidence: "\(life): \(evidence)"))
    }

    // MARK: Compensations

    private mutating func checkCompensations() {
        let programs = Dictionary(
            history.requests.compactMap { request in request.program.map { (request.id, $0) } }, uniquingKeysWith: { $1 })
        for end in entries where SimulationAgentState.turnEnds.contains(end.type) {
            guard let turn = end.turn, let request = entries[Int(turn) - 1].body["data"]?["request"]?.string,
                let program = programs[request]
            else { continue }
            let own = entries.filter { $0.turn == turn && $0.offset < end.offset }
            // A turn that ended without its program neither compensates nor cleans.
            guard !own.contains(where: { $0.type == "agent.stalled" }) else { continue }
            checkCompensations(end, own, program)
            checkCleaning(end, own, program)
        }
    }

    private mutating func checkCompensations(
        _ end: SimulationHistory.Entry, _ own: [SimulationHistory.Entry], _ program: SimulationProgram
    ) {
        let begun = own.filter { $0.type == "step.started" && $0.attempt == 1 && $0.body["compensation"] == true }.map(\.step)
        let isRolledBack = end.type == "turn.cancelled" || end.type == "turn.failed"
        if !isRolledBack, let first = begun.first { violate("what stands is not taken back", "\(first) ran before \(end.short)") }
        let count = program.operations.count { if case .compensate = $0 { true } else { false } }
        let all = (0..<count).map { $0 == 0 ? "undo" : "undo#\($0 + 1)" }.reversed() as [String]
        let top = begun.filter { $0.hasPrefix("undo") }
        // The program came to its end, and failed there: all of it.
        let isWhole = end.body["error"]?["code"] == "told_to"
        if isWhole ? top != all : isRolledBack && !all.ends(with: top) {
            violate("what failed is taken back, the latest first", "\(top) instead of \(all) before \(end.short)")
        }
    }

    private mutating func checkCleaning(
        _ end: SimulationHistory.Entry, _ own: [SimulationHistory.Entry], _ program: SimulationProgram
    ) {
        let isClean = own.contains { $0.type == "step.completed" && $0.step == "cleanup/clean" }
        if isClean && !program.cleansUp { violate("what is shielded comes to its end", "there is nothing to clean before \(end.short)") }
        guard program.cleansUp, end.type == "turn.interrupted", !isClean else { return }
        violate("what is shielded comes to its end", "nothing was cleaned before \(end.short)")
    }

    // MARK: Memory

    private mutating func checkMemory() {
        guard let kind = SimulationMemory.kinds.first(where: { life.name.hasPrefix("agents/\($0.kind)/") }) else { return }
        var note = kind.initially.map { JSON.string($0) } ?? .null
        for end in entries where end.type == "turn.completed" {
            let saw = end.body["output"]?["saw"] ?? .null
            if saw != note { violate("state is what the last completed turn left", "it was \(note.text), and \(end.short)") }
            note = end.turn.flatMap { entries[Int($0) - 1].body["data"]?["note"] } ?? .null
        }
    }

    // MARK: Following

    /// Why a turn cannot have read that of one stream; `nil` when it can.
    static func problem(_ output: JSON, count: Int, mayTimeOut: Bool, _ streams: [[SimulationHistory.Entry]]) -> String? {
        let read = output["read"]?.array ?? []
        let isRead =
            read.isEmpty
            || streams.contains { entries in
                read.enumerated().allSatisfy { index, entry in
                    index < entries.count && entry["offset"]?.string == Offset(entries[index].offset).token
                        && entry["value"] == entries[index].body
                }
            }
        if !isRead { return "no stream has these entries from its first on" }
        switch output["end"]?.string {
        case "enough": return read.count == count ? nil : "\(read.count) are not \(count)"
        case "wait_timeout": return mayTimeOut ? nil : "it had no time to wait"
        case "ended", "channel_not_found": return nil
        default: return "it ended otherwise"
        }
    }
}

extension [String] {
    fileprivate func ends(with other: [String]) -> Bool { other.count <= count && Array(suffix(other.count)) == other }
}
