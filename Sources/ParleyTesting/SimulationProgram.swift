internal import ParleySystem

/// The program of a turn in a simulated run, all of which follows from a seed: so agent and checker need to exchange nothing but that.
package struct SimulationProgram: Sendable {
    package indirect enum Operation: Sendable {
        /// A step that takes its time and fails so many attempts.
        case step(value: Int, failures: Int, takes: Int)
        /// A step that runs at most once.
        case once(takes: Int)
        /// A step that fails for good; the program catches it.
        case doomed
        case sleep(milliseconds: Int)
        case generate(prompt: String, continuesPrefix: Bool)
        case emit(Int)
        /// Waits for the signal `go`, for at most this long.
        case wait(milliseconds: Int)
        case approval(milliseconds: Int)
        /// Compares random number, UUID and time with what they were on the first run.
        case chance
        case map([[Operation]])
        case scopes([[Operation]])
        /// A step whose name a broken program changes.
        case steady
        /// Waits for a signal, however long that takes.
        case listen(signal: String)
        /// Asks for approval, however long that takes.
        case ask
        /// Waits for the signal `go` or so long, whichever is first; the other is cancelled.
        case race(milliseconds: Int)
        /// A model that may call tools, asked with everything that was said before.
        case respond(prompt: String)
        /// Looks at the turns before.
        case recall
        /// Follows a stream, for so many entries at most; without a time for as long as it takes.
        case follow(stream: Int, count: Int, milliseconds: Int?)
        /// Registers a compensation, should the turn fail or be cancelled.
        case compensate
        /// Operations that neither a cancel nor an interrupt reaches.
        case shielded([Operation])
    }

    /// The operations that a program may have.
    package enum Palette: String, Sendable {
        /// Operations that end by themselves within seconds.
        case quick
        /// The same, within hours and days.
        case slow
        /// All there are.
        case all
    }

    package let seed: UInt64
    package let palette: Palette
    package let operations: [Operation]
    /// Whether the turn fails at its end.
    package let fails: Bool
    /// Whether the turn runs something shielded when it ends otherwise than by itself.
    package let cleansUp: Bool

    package init(seed: UInt64, palette: Palette = .quick) {
        self.seed = seed
        self.palette = palette
        var random = SplitMix64(seed: seed)
        var operations = (0..<Int.random(in: 1...4, using: &random)).map { _ in
            SimulationProgram.operation(depth: 0, palette, &random)
        }
        // A step first, so that a broken program has something to break.
        if Int.random(in: 0..<3, using: &random) == 0 { operations.insert(.steady, at: 0) }
        self.operations = operations
        fails = Int.random(in: 0..<6, using: &random) == 0
        cleansUp = palette == .all && Int.random(in: 0..<4, using: &random) == 0
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
        case "signal":
            has {
                switch $0 {
                case .wait, .listen, .race: true
                default: false
                }
            }
        case "approve", "deny", "approval.requested", "approval.decided":
            has {
                switch $0 {
                case .approval, .ask: true
                default: false
                }
            }
        case "agent.stalled": has { if case .steady = $0 { true } else { false } }
        default: true
        }
    }

    private func has(_ matches: (Operation) -> Bool) -> Bool { operations.contains(where: matches) }

    /// How long programs sleep, and wait for others, in milliseconds.
    private typealias Pace = (sleeps: [Int], waits: [Int])

    private static func pace(_ palette: Palette) -> Pace {
        switch palette {
        case .quick: ([0, 1, 20, 1_990, 2_000, 2_010, 5_000, 60_000], [1, 50, 400, 5_000])
        case .slow: ([0, 2_000, 60_000, 3_600_000, 9 * 3_600_000, 86_400_000, 2 * 86_400_000], [50, 60_000, 3_600_000, 86_400_000])
        case .all: ([0, 20, 200, 1_990, 2_000, 2_010, 5_000], [1, 200, 2_000, 5_000])
        }
    }

    private static func operation(depth: Int, _ palette: Palette, _ random: inout SplitMix64) -> Operation {
        palette == .all && Bool.random(using: &random)
            ? further(depth: depth, &random) : basic(depth: depth, palette, pace(palette), &random)
    }

    private static func several(depth: Int, _ palette: Palette, _ random: inout SplitMix64) -> [[Operation]] {
        (0..<Int.random(in: 1...3, using: &random)).map { _ in
            (0..<Int.random(in: 1...2, using: &random)).map { _ in operation(depth: depth + 1, palette, &random) }
        }
    }

    /// The operations that the other palettes do not have.
    private static func further(depth: Int, _ random: inout SplitMix64) -> Operation {
        let times = [1, 200, 2_000, 5_000, 20_000]
        switch Int.random(in: 0..<(depth < 2 ? 12 : 10), using: &random) {
        case 0, 1: return .listen(signal: ["go", "come"].randomElement(using: &random)!)
        case 2, 3: return .ask
        case 4: return .race(milliseconds: times.randomElement(using: &random)!)
        case 5, 6: return .respond(prompt: "\(random.next() % 1_000)")
        case 7: return .recall
        case 8, 9:
            let milliseconds = Bool.random(using: &random) ? times.randomElement(using: &random)! : nil
            return .follow(
                stream: Int.random(in: 0..<2, using: &random), count: Int.random(in: 1...4, using: &random), milliseconds: milliseconds)
        case 10: return .compensate
        default: return .shielded(several(depth: depth, .all, &random)[0])
        }
    }

    private static func basic(depth: Int, _ palette: Palette, _ pace: Pace, _ random: inout SplitMix64) -> Operation {
        switch Int.random(in: 0..<(depth < 2 ? 16 : 13), using: &random) {
        case 0, 1:
            return .step(value: Int.random(in: 0..<1_000, using: &random), failures: 0, takes: Int.random(in: 0...40, using: &random))
        case 2:
            let failures = Int.random(in: 1...2, using: &random)
            return .step(value: Int.random(in: 0..<1_000, using: &random), failures: failures, takes: Int.random(in: 0...5, using: &random))
        case 3: return .once(takes: Int.random(in: 0...30, using: &random))
        case 4: return .doomed
        case 5: return .sleep(milliseconds: pace.sleeps.randomElement(using: &random)!)
        case 6, 7: return .generate(prompt: "\(random.next() % 1_000)", continuesPrefix: Int.random(in: 0..<3, using: &random) > 0)
        case 8: return .emit(Int.random(in: 0..<1_000, using: &random))
        case 9, 10: return .chance
        case 11: return .wait(milliseconds: pace.waits.randomElement(using: &random)!)
        case 12: return .approval(milliseconds: pace.waits.randomElement(using: &random)!)
        case 13, 14: return .map(several(depth: depth, palette, &random))
        default: return .scopes(several(depth: depth, palette, &random))
        }
    }
}
