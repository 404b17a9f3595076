internal import ParleySystem

/// Which entries of a stretch of an agent's channel the settled view leaves out.
///
/// Filled in one walk over the stretch, and on while text of it is still open; then asked in a second walk.
struct SettledFilter: Projection {
    private struct StepText {
        var isSealed = false
        /// Where each attempt took over: text of an earlier one from there on is superseded.
        var takeovers: [(attempt: UInt32, from: UInt64)] = []
    }

    /// The stretch ends after the entry that exceeds this size.
    private let bytesMax: Int
    private var bytesRead = 0
    private var steps: [Position: StepText] = [:]
    /// Turns with text in the stretch whose end has not been seen: what comes later may still seal or supersede it.
    private var openTurns: Set<UInt64> = []
    /// The receipts folded into the entries of the stretch, as members without braces.
    private(set) var receipts: [UInt64: Bytes] = [:]
    private var foldedReceipts: Set<UInt64> = []
    private var inputs: Set<UInt64> = []

    init(bytesMax: Int = .max) { self.bytesMax = bytesMax }

    /// Beyond the stretch only what seals or supersedes its text counts, and only while some of it is open.
    var isComplete: Bool { bytesRead >= bytesMax && openTurns.isEmpty }

    mutating func apply(_ entry: LogEntry) {
        let isWithin = bytesRead < bytesMax
        bytesRead += entry.frame.payload.count + Frame.headerBytes
        if isWithin, entry.kind.isInput { inputs.insert(entry.offset) }
        if isWithin, entry.kind == .receipt { fold(entry) }
        guard let position = entry.position else { return }
        switch entry.kind {
        case .text where isWithin: openTurns.insert(position.turn)
        case .stepStarted where position.attempt > 1:
            let from = entry.body["continues_at"]?.integer.map { UInt64($0) } ?? 0
            steps[position.ofStep, default: StepText()].takeovers.append((position.attempt, from))
        case .stepCompleted: steps[position.ofStep, default: StepText()].isSealed = true
        case let kind where kind.endsTurn: openTurns.remove(position.turn)
        default: break
        }
    }

    private mutating func fold(_ entry: LogEntry) {
        guard let receipt = Receipt(entry, isWanted: { inputs.contains($0) }) else { return }
        foldedReceipts.insert(receipt.offset)
        receipts[receipt.of] = NewEntry.join(receipt.members())
    }

    func keeps(_ offset: UInt64, _ frame: Frame) -> Bool {
        switch frame.kind {
        case .hole: return false
        case .receipt: return !foldedReceipts.contains(offset)
        case .text:
            guard let position = frame.position, let text = frame.text, let step = steps[position.ofStep] else { return true }
            if step.isSealed { return false }
            return !step.takeovers.contains { $0.attempt > position.attempt && $0.from <= text.index }
        default: return true
        }
    }
}
