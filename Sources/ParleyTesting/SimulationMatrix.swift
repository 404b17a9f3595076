package import ParleyChannels
package import ParleyLog
internal import ParleySystem
internal import Synchronization

/// How often each kind of entry was in the very commit in which a process died, by how that commit ended.
package struct SimulationMatrix: Sendable {
    /// How a commit in which a process dies can end, for one entry of it.
    package enum Ending: String, CaseIterable, Sendable {
        case notSubmitted = "not submitted"
        case lost
        case durablePart = "in the durable part"
        case lostPart = "in the lost part"
        case unacknowledged = "durable, not acknowledged"
        case acknowledged
        /// The disk fails the write, and the process ends by itself.
        case failed
    }

    /// The kinds of content in a commit: every kind of entry the runtime writes, and the changes of channels.
    package static let kinds = [
        "create", "delete", "data", "data of a producer", "close of a stream", "message", "close", "receipt", "turn.started",
        "turn.completed",
        "turn.failed", "step.started", "text", "step.completed", "step.failed", "timer.set", "timer.fired", "supervision", "emit",
        "agent.stalled",
        "agent.closed", "steer", "interrupt", "cancel", "approve", "deny", "signal", "approval.requested", "approval.decided",
        "turn.interrupted", "turn.cancelled",
    ]

    /// The same for a simulated week.
    package static let kindsOfWeeks = [
        "create", "delete", "data", "data of a producer", "close of a stream", "message", "turn.started", "turn.completed", "step.started",
        "text", "step.completed", "timer.set", "timer.fired", "approval.requested", "approval.decided", "fork", "lifetime",
        "look at a lifetime", "sealed text", "trim", "subscription", "subscription's end", "end of a link", "message sent", "message taken",
        "message let go",
    ]

    package private(set) var counts: [String: [Ending: Int]] = [:]

    package init() {}

    package subscript(kind: String, ending: Ending) -> Int {
        get { counts[kind]?[ending] ?? 0 }
        set { counts[kind, default: [:]][ending] = newValue }
    }

    package mutating func add(_ other: SimulationMatrix) {
        for (kind, row) in other.counts { for (ending, count) in row { self[kind, ending] += count } }
    }

    package var missing: [String] { missing(of: SimulationMatrix.kinds) }
    package var table: String { table(of: SimulationMatrix.kinds) }

    /// The cells that no run has reached.
    package func missing(of kinds: [String]) -> [String] {
        kinds.flatMap { kind in Ending.allCases.filter { self[kind, $0] == 0 }.map { "\(kind) x \($0.rawValue)" } }
    }

    package func table(of kinds: [String]) -> String {
        let width = kinds.map(\.count).max()! + 2
        func cell(_ text: String, _ width: Int) -> String { text + String(repeating: " ", count: max(1, width - text.count)) }
        var lines = [cell("", width) + Ending.allCases.map { cell($0.rawValue, $0.rawValue.count + 2) }.joined()]
        for kind in kinds {
            lines.append(cell(kind, width) + Ending.allCases.map { cell("\(self[kind, $0])", $0.rawValue.count + 2) }.joined())
        }
        return lines.joined(separator: "\n")
    }
}

extension SimulationMatrix {
    /// The kinds of content in a batch.
    package static func kinds(of batch: Batch, _ visit: (_ channel: ChannelID, _ offset: UInt64, _ frame: Frame) -> Void = { _, _, _ in })
        -> Set<String>
    {
        var kinds: Set<String> = []
        var producing: Set<ChannelID> = []
        var receiving: Set<ChannelID> = []
        batch.forEach { operation, family, key, value in
            switch (operation, family) {
            case (.put, .names) where NameRow(Bytes(value))?.isTombstone == false: kinds.insert("create")
            case (.deleteRange, .log): kinds.insert("delete")
            case (.put, .channels):
                if let row = ChannelRow(Bytes(value)), !row.isAgent, row.isClosed { kinds.insert("close of a stream") }
            case (_, .index): if let kind = indexKind(operation, key) { kinds.insert(kind) }
            case (.put, .outbox), (.delete, .outbox):
                if let change = PartitionMessageChange(isPut: operation == .put, key) { kinds.insert("message \(change.rawValue)") }
            case (.put, .producers): producing.insert(channel(key))
            case (.put, .log):
                let channel = channel(key)
                Frame.walk(value, first: key.readBigEndian(at: 10)) { offset, frame in
                    if frame.kind == .data { receiving.insert(channel) }
                    kinds.insert(frame.kind.name)
                    visit(channel, offset, frame)
                    return true
                }
            default: break
            }
        }
        if !producing.isDisjoint(with: receiving) { kinds.insert("data of a producer") }
        return kinds
    }

    private static func indexKind(_ operation: Batch.Operation, _ key: UnsafeRawBufferPointer) -> String? {
        switch (operation, IndexMark(rawValue: key[2])) {
        case (.put, .fork): "fork"
        case (.put, .lifetime): "lifetime"
        case (.delete, .lifetime): "look at a lifetime"
        case (.put, .sealedText): "sealed text"
        case (.delete, .sealedText): "trim"
        case (.put, .subscription): "subscription"
        case (.deleteRange, .subscription): "subscription's end"
        case (.delete, .subscription): "end of a link"
        default: nil
        }
    }

    private static func channel(_ key: UnsafeRawBufferPointer) -> ChannelID {
        ChannelID(partition: key.readBigEndian(at: 0), number: key.readBigEndian(at: 2))
    }
}

/// Decides how each commit of one process ends: one that has a certain kind of entry in it is the last.
package final class SimulationCrash: Sendable {
    package struct Plan: Sendable {
        package var kind: String
        package var ending: SimulationMatrix.Ending
        /// How many commits with that kind go by before.
        package var skips: Int
        /// The number of the commit that is the last in any case.
        package var latest: Int

        package init(kind: String, ending: SimulationMatrix.Ending, skips: Int = 0, latest: Int = .max) {
            self.kind = kind
            self.ending = ending
            self.skips = skips
            self.latest = latest
        }
    }

    private struct State {
        var plan: Plan?
        var random: SplitMix64
        var matrix = SimulationMatrix()
        var isOver = false
        /// How often a commit of one batch was passed over because its parts were to have different fates.
        var patience: Int
    }

    /// The kinds that a process meets often enough to wait for a commit of several batches.
    private static let frequent: Set = [
        "data", "data of a producer", "message", "receipt", "turn.started", "turn.completed", "step.started", "text", "step.completed",
        "step.failed", "timer.set", "timer.fired", "emit",
    ]

    /// The planned crash.
    let plan: Plan?
    private let state: Mutex<State>
    private let record: SimulationRecord
    private let observer = Mutex<(@Sendable (_ batches: [Batch], SimulatedLog.Outcome) -> Void)?>(nil)

    /// Tells `observer` of each commit, before it is settled.
    package func observe(_ observer: @escaping @Sendable (_ batches: [Batch], SimulatedLog.Outcome) -> Void) {
        self.observer.withLock { $0 = observer }
    }

    /// - Parameter plan: `nil`: every commit is acknowledged.
    package init(_ plan: Plan?, seed: UInt64, record: SimulationRecord) {
        let patience = plan.map { SimulationCrash.frequent.contains($0.kind) } == true ? 6 : 0
        self.plan = plan
        state = Mutex(State(plan: plan, random: SplitMix64(seed: seed), patience: patience))
        self.record = record
    }

    /// Ends the process between two commits.
    func die() { state.withLock { $0.isOver = true } }

    /// Lets the process live.
    func spare() { state.withLock { $0.plan = nil } }

    /// Whether the process is dead: nothing it would do now happens.
    package var isOver: Bool { state.withLock { $0.isOver } }
    package var matrix: SimulationMatrix { state.withLock { $0.matrix } }

    package func outcome(of batches: [Batch]) -> SimulatedLog.Outcome {
        let kinds = batches.map { SimulationMatrix.kinds(of: $0) }
        let outcome = state.withLock { decide(kinds, &$0) }
        for (index, batch) in batches.enumerated() where outcome.isDurable(index) {
            _ = SimulationMatrix.kinds(of: batch) { channel, offset, frame in record.durable(channel, offset, frame) }
        }
        observer.withLock { $0 }?(batches, outcome)
        return outcome
    }

    private func decide(_ kinds: [Set<String>], _ state: inout State) -> SimulatedLog.Outcome {
        guard let plan = state.plan, let hit = batch(of: kinds, &state) else { return .acknowledged }
        let isInParts = plan.ending == .durablePart || plan.ending == .lostPart
        state.plan = nil
        state.isOver = true
        var durable = Set(kinds.indices.filter { _ in Bool.random(using: &state.random) })
        if plan.ending == .durablePart { durable.insert(hit) } else { durable.remove(hit) }
        for (index, kinds) in kinds.enumerated() {
            let ending = isInParts ? (durable.contains(index) ? .durablePart : .lostPart) : plan.ending
            for kind in kinds { state.matrix[kind, ending] += 1 }
        }
        return switch plan.ending {
        case .notSubmitted: .notSubmitted
        case .lost: .lost
        case .durablePart, .lostPart: .durable(batches: durable)
        case .unacknowledged: .durableUnacknowledged
        case .acknowledged: .acknowledged
        case .failed: .failed(LogError(.writeFailed, "the simulated disk is broken"))
        }
    }
}

extension SimulationCrash {
    /// The batch because of which this commit is the last, if it is.
    private func batch(of kinds: [Set<String>], _ state: inout State) -> Int? {
        state.plan!.latest -= 1
        guard state.plan!.latest > 0 else { return 0 }
        guard let plan = state.plan, let hit = kinds.firstIndex(where: { $0.contains(plan.kind) }) else { return nil }
        if plan.ending == .durablePart || plan.ending == .lostPart, kinds.count < 2, state.patience > 0 {
            state.patience -= 1
            return nil
        }
        guard plan.skips == 0 else {
            state.plan!.skips -= 1
            return nil
        }
        return hit
    }
}

extension SimulatedLog.Outcome {
    func isDurable(_ batch: Int) -> Bool {
        switch self {
        case .acknowledged, .durableUnacknowledged: true
        case .notSubmitted, .lost, .failed: false
        case .durable(let batches): batches.contains(batch)
        }
    }
}
