internal import ParleyChannels
internal import ParleySystem

/// Judges whether input is decided soon after it can be, and in its order: nothing that is durable may lie there.
struct SimulationPromptness {
    /// Longer than everything that a busy machine and a slow disk put between an input and its receipt.
    static let bound = Duration.seconds(30)

    /// Without room for all agents at a time, each waits for the turns of the others.
    static func bound(in history: SimulationHistory) -> Duration {
        let agents = Set(history.entries.keys.lazy.map(\.name).filter { $0.hasPrefix("agents/") }).count
        return history.places < agents ? bound * agents : bound
    }

    private let bound: Duration
    private let life: SimulationHistory.Life
    private let starts: [Timestamp]
    private var found: [SimulationViolation] = []
    private var state = SimulationAgentState()
    /// Since when each undecided input could have been decided.
    private var decidable: [UInt64: Timestamp] = [:]
    /// When an interrupt last ended a stalled turn: in the batch that begins the one with its text.
    private var redirected: Timestamp?

    static func violations(
        _ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry], _ history: SimulationHistory
    ) -> [SimulationViolation] {
        var judge = SimulationPromptness(life, history.starts, bound(in: history))
        for entry in entries { judge.take(entry) }
        return judge.found
    }

    /// The input that must not be left when nothing is scheduled any more.
    static func leftLying(
        _ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry], _ history: SimulationHistory
    ) -> [SimulationViolation] {
        var state = SimulationAgentState()
        for entry in entries { state.take(entry) }
        if !history.mayStall, state.isStalled, let stall = entries.last(where: { $0.type == "agent.stalled" }) {
            return [SimulationViolation(invariant: "no turn stalls without a cause", evidence: "\(life): \(stall.short)")]
        }
        var found = state.lying(life.policy).map {
            SimulationViolation(invariant: "no input is left lying", evidence: "\(life): all is quiet, and undecided is \($0.short)")
        }
        guard let turn = state.turn, !state.isStalled else { return found }
        let waiting = state.open.values.filter { ["wait", "approval"].contains($0.kind) }
        if waiting.isEmpty {
            found.append(
                SimulationViolation(
                    invariant: "no turn stalls without a cause",
                    evidence: "\(life): all is quiet, turn \(turn) has not ended, and open are \(state.open.keys.sorted())"))
        }
        for entry in entries where entry.turn == turn && entry.type == "step.started" && state.open[entry.step]?.kind == "wait" {
            guard let stream = entry.body["request"]?["channel"]?.string, let after = entry.body["request"]?["after"]?.string else {
                continue
            }
            let others = history.entries.first { $0.key.name == stream }?.value ?? []
            if let next = others.first(where: { Offset($0.offset).token > after }) {
                found.append(
                    SimulationViolation(
                        invariant: "no input is left lying", evidence: "\(life): \(entry.short) follows, and unread is \(next.short)"))
            }
        }
        return found
    }

    private init(_ life: SimulationHistory.Life, _ starts: [Timestamp], _ bound: Duration) {
        self.life = life
        self.bound = bound
        self.starts = starts
    }

    private mutating func take(_ entry: SimulationHistory.Entry) {
        let at = entry.at ?? Timestamp(milliseconds: 0)
        if entry.type == "receipt", let of = entry.decides {
            if let since = decidable.removeValue(forKey: of) { judge(entry, since: since) }
        }
        if entry.type == "turn.started" { checkTurn(entry) }
        // One that had been cancelled before it stalled ends as that.
        if ["turn.interrupted", "turn.cancelled"].contains(entry.type), state.isStalled { redirected = at }
        state.take(entry)
        let lying = Set(state.lying(life.policy).map(\.offset))
        for offset in lying where decidable[offset] == nil { decidable[offset] = at }
        decidable = decidable.filter { lying.contains($0.key) }
    }

    private mutating func judge(_ receipt: SimulationHistory.Entry, since: Timestamp) {
        guard let at = receipt.at else { return }
        // Without a process nothing is decided.
        let from = max(since, starts.last { $0 <= at } ?? since)
        let waited = from.duration(to: at)
        guard waited > bound else { return }
        violate("input is decided within a bound", "could have been for \(waited) when its receipt came: \(receipt.short)")
    }

    /// Messages are taken in the order of the log; work in place of a turn that no program runs has that turn's place.
    private mutating func checkTurn(_ start: SimulationHistory.Entry) {
        if let redirected, redirected == start.at { return }
        let earlier = state.undecided.first {
            $0.offset < start.turn ?? 0 && ["message", "steer"].contains($0.type) && state.condition($0) == .holds
        }
        if let earlier { violate("messages are taken in their order", "\(earlier.short) waits, and \(start.short)") }
    }

    private mutating func violate(_ invariant: String, _ evidence: String) {
        found.append(SimulationViolation(invariant: invariant, evidence: "\(life): \(evidence)"))
    }
}
