internal import ParleySystem

/// Which entries of a stretch of an agent's channel the settled view leaves out.
///
/// Filled in one walk over the stretch, and on while text of it is still open; then asked in a second walk.
struct SettledFilter {
    private struct StepName: Hashable {
        var turn: UInt64
        var step: String
    }

    private struct StepText {
        var isSealed = false
        /// Where each attempt took over: text of an earlier one from there on is superseded.
        var takeovers: [(attempt: UInt32, from: UInt64)] = []
    }

    private var steps: [StepName: StepText] = [:]
    /// Turns with text in the stretch whose end has not been seen: what comes later may still seal or supersede it.
    private(set) var openTurns: Set<UInt64> = []
    /// The receipts folded into the entries of the stretch, as members without braces.
    private(set) var receipts: [UInt64: Bytes] = [:]
    private var foldedReceipts: Set<UInt64> = []
    private var inputs: Set<UInt64> = []

    mutating func note(_ offset: UInt64, _ frame: Frame, inPage: Bool) {
        if frame.kind.isInput {
            if inPage { inputs.insert(offset) }
            return
        }
        if frame.kind == .receipt {
            if inPage { fold(offset, frame) }
            return
        }
        guard let position = frame.position else { return }
        let name = StepName(turn: position.turn, step: position.step)
        switch frame.kind {
        case .text:
            guard inPage else { return }
            openTurns.insert(position.turn)
        case .stepStarted where position.attempt > 1:
            let from = frame.body["continues_at"]?.integer.map { UInt64($0) } ?? 0
            steps[name, default: StepText()].takeovers.append((position.attempt, from))
        case .stepCompleted:
            steps[name, default: StepText()].isSealed = true
        case .turnCompleted, .turnFailed, .turnInterrupted, .turnCancelled:
            openTurns.remove(position.turn)
        default: break
        }
    }

    private mutating func fold(_ offset: UInt64, _ frame: Frame) {
        guard let of = frame.body["of"]?.string.flatMap({ Offset(token: $0) }), inputs.contains(of.value) else { return }
        foldedReceipts.insert(offset)
        let body = frame.body
        receipts[of.value] = NewEntry.join([
            ("offset", .string(Offset(offset).token)), ("state", body["state"]), ("reason", body["reason"]),
            ("turn", frame.position.map { .string(Offset($0.turn).token) }),
            ("step", frame.position.flatMap { $0.step.isEmpty ? nil : .string($0.step) }),
        ])
    }

    func keeps(_ offset: UInt64, _ frame: Frame) -> Bool {
        switch frame.kind {
        case .hole: return false
        case .receipt: return !foldedReceipts.contains(offset)
        case .text:
            guard let position = frame.position, let text = frame.text,
                let step = steps[StepName(turn: position.turn, step: position.step)]
            else { return true }
            if step.isSealed { return false }
            return !step.takeovers.contains { $0.attempt > position.attempt && $0.from <= text.index }
        default: return true
        }
    }
}
