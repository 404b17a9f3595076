package import ParleySystem

/// What a turn of a simulated run does, all of which follows from a seed: so agent and checker need to exchange nothing but that.
package struct SimulationProgram: Sendable {
    package indirect enum Operation: Sendable {
        /// A step that takes its time and fails so many attempts.
        case step(value: Int, failures: Int, takes: Int)
        /// A step that runs at most once.
        case once(takes: Int)
        /// A step that fails for good; the program catches it.
        case doomed
        case sleep(milliseconds: Int)
        case generate(prompt: String, goesOn: Bool)
        case emit(Int)
        /// For the signal `go`, and no longer than so.
        case wait(milliseconds: Int)
        case approval(milliseconds: Int)
        /// Compares random number, UUID and time with what they were on the first run.
        case chance
        case map([[Operation]])
        case scopes([[Operation]])
        /// A step whose name a broken program changes.
        case steady
    }

    package let seed: UInt64
    /// Whether it waits for hours and days where others wait for seconds.
    package let isSlow: Bool
    package let operations: [Operation]
    /// Whether the turn fails at its end.
    package let fails: Bool

    package init(seed: UInt64, isSlow: Bool = false) {
        self.seed = seed
        self.isSlow = isSlow
        var random = SplitMix64(seed: seed)
        var operations = (0..<Int.random(in: 1...4, using: &random)).map { _ in
            SimulationProgram.operation(depth: 0, isSlow ? SimulationProgram.slow : SimulationProgram.quick, &random)
        }
        // A step first, so that a broken program has something to break.
        if Int.random(in: 0..<3, using: &random) == 0 { operations.insert(.steady, at: 0) }
        self.operations = operations
        fails = Int.random(in: 0..<6, using: &random) == 0
    }

    /// Whether its turn writes entries of that kind.
    package func writes(_ kind: String) -> Bool {
        switch kind {
        case "turn.failed": fails
        case "turn.completed": !fails
        case "step.failed": has { if case .doomed = $0 { true } else { false } }
        case "text": has { if case .generate = $0 { true } else { false } }
        case "emit": has { if case .emit = $0 { true } else { false } }
        case "timer.set", "timer.fired": has { if case .sleep = $0 { true } else { false } }
        case "signal": has { if case .wait = $0 { true } else { false } }
        case "approve", "deny", "approval.requested", "approval.decided": has { if case .approval = $0 { true } else { false } }
        case "agent.stalled": has { if case .steady = $0 { true } else { false } }
        default: true
        }
    }

    private func has(_ matches: (Operation) -> Bool) -> Bool { operations.contains(where: matches) }

    /// How long programs sleep, and wait for others, in milliseconds.
    private typealias Pace = (sleeps: [Int], waits: [Int])
    private static let quick: Pace = ([0, 1, 20, 1_990, 2_000, 2_010, 5_000, 60_000], [1, 50, 400, 5_000])
    private static let slow: Pace = (
        [0, 2_000, 60_000, 3_600_000, 9 * 3_600_000, 86_400_000, 2 * 86_400_000], [50, 60_000, 3_600_000, 86_400_000]
    )

    private static func operation(depth: Int, _ pace: Pace, _ random: inout SplitMix64) -> Operation {
        func several(_ random: inout SplitMix64) -> [[Operation]] {
            (0..<Int.random(in: 1...3, using: &random)).map { _ in
                (0..<Int.random(in: 1...2, using: &random)).map { _ in operation(depth: depth + 1, pace, &random) }
            }
        }
        switch Int.random(in: 0..<(depth < 2 ? 16 : 13), using: &random) {
        case 0, 1:
            return .step(value: Int.random(in: 0..<1_000, using: &random), failures: 0, takes: Int.random(in: 0...40, using: &random))
        case 2:
            let failures = Int.random(in: 1...2, using: &random)
            return .step(value: Int.random(in: 0..<1_000, using: &random), failures: failures, takes: Int.random(in: 0...5, using: &random))
        case 3: return .once(takes: Int.random(in: 0...30, using: &random))
        case 4: return .doomed
        case 5: return .sleep(milliseconds: pace.sleeps.randomElement(using: &random)!)
        case 6, 7: return .generate(prompt: "\(random.next() % 1_000)", goesOn: Int.random(in: 0..<3, using: &random) > 0)
        case 8: return .emit(Int.random(in: 0..<1_000, using: &random))
        case 9, 10: return .chance
        case 11: return .wait(milliseconds: pace.waits.randomElement(using: &random)!)
        case 12: return .approval(milliseconds: pace.waits.randomElement(using: &random)!)
        case 13, 14: return .map(several(&random))
        default: return .scopes(several(&random))
        }
    }
}

extension SimulationProgram {
    /// As a message names it.
    var text: String { isSlow ? "\(seed) slow" : "\(seed)" }

    init?(_ text: String) {
        let parts = text.split(separator: " ")
        guard let seed = parts.first.flatMap({ UInt64($0) }) else { return nil }
        self.init(seed: seed, isSlow: parts.count == 2)
    }

    /// What one operation must have given, in the order of the program.
    package enum Expectation: Sendable, Equatable {
        case exactly(JSON)
        case anyOf([JSON])
        /// The text that the model step at this path recorded.
        case text(path: String)
    }

    package var expectations: [Expectation] { SimulationProgram.expectations(operations, prefix: "") }

    private static func expectations(_ operations: [Operation], prefix: String) -> [Expectation] {
        operations.enumerated().flatMap { index, operation -> [Expectation] in
            switch operation {
            case .step(let value, _, _): return [.exactly(.integer(Int64(value)))]
            case .once: return [.anyOf(["done", "outcome_unknown"])]
            case .doomed: return [.exactly("doomed")]
            case .sleep: return [.exactly("slept")]
            case .wait: return [.anyOf(["signalled", "wait_timeout"])]
            case .approval: return [.anyOf(["approved", "denied", "expired"])]
            case .generate: return [.text(path: "\(prefix)generate\(index)")]
            case .emit: return []
            case .chance: return [.exactly("same")]
            case .steady: return [.exactly("steady")]
            case .map(let items): return items.enumerated().flatMap { expectations($1, prefix: "\(prefix)map\(index)/\($0)/") }
            case .scopes(let tasks): return tasks.enumerated().flatMap { expectations($1, prefix: "\(prefix)scope\(index)x\($0)/") }
            }
        }
    }

    /// The data of the program's `emit` entries that stand in no task of their own: their order is fixed.
    package var emits: [JSON] { SimulationProgram.emits(operations).sorted { $0.text < $1.text } }

    private static func emits(_ operations: [Operation]) -> [JSON] {
        operations.flatMap { operation -> [JSON] in
            switch operation {
            case .emit(let value): [.integer(Int64(value))]
            case .map(let items), .scopes(let items): items.flatMap { emits($0) }
            default: []
            }
        }
    }
}
