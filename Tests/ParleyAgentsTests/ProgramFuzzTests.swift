import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

/// The operations of a random program, one after another: steps and waits, groups that throw or whose first child wins, catches and shielded
/// cleanups. Nothing of it is outside the turn.
private indirect enum Operation: Sendable {
    case step(Int, takes: Int)
    /// A step that fails for good; the program continues.
    case fails
    case sleep(Int)
    case wait(Int)
    case emit(Int)
    /// Children side by side.
    case group([[Operation]], firstWins: Bool, firstThrows: Bool)
    case shielded([Operation])
    /// Does something more when it is cancelled or fails.
    case cleaning([Operation])
    case compensate

    static func list(_ depth: Int, _ random: inout SplitMix64) -> [Operation] {
        (0..<Int.random(in: 1...3, using: &random)).map { _ in one(depth, &random) }
    }

    private static func one(_ depth: Int, _ random: inout SplitMix64) -> Operation {
        switch Int.random(in: 0..<(depth > 2 ? 6 : 12), using: &random) {
        case 0, 1: .step(Int.random(in: 0..<100, using: &random), takes: [0, 1, 5, 20, 100].randomElement(using: &random)!)
        case 2: .fails
        case 3: .sleep([0, 5, 50, 40_000].randomElement(using: &random)!)
        case 4: .wait([1, 20, 200, 35_000].randomElement(using: &random)!)
        case 5: .emit(Int(random.next() >> 20))
        case 6, 7, 8:
            .group(
                (0..<Int.random(in: 2...3, using: &random)).map { _ in list(depth + 1, &random) },
                firstWins: Bool.random(using: &random), firstThrows: Bool.random(using: &random))
        case 9: .shielded(list(depth + 1, &random))
        case 10: .cleaning(list(depth + 1, &random))
        default: .compensate
        }
    }
}

// MARK: - Running it

extension Operation {
    private static let thrown = StepFailure(code: "thrown", message: "thrown", retryable: false)

    static func run(_ operations: [Operation], _ turn: Turn, _ world: SimulatedWorld) async throws -> [JSON] {
        var results: [JSON] = []
        for (index, operation) in operations.enumerated() { results += try await operation.run(index, turn, world) }
        return results
    }

    private func run(_ index: Int, _ turn: Turn, _ world: SimulatedWorld) async throws -> [JSON] {
        switch self {
        case .step(let value, let takes):
            let value = try await turn.step("t") { _ -> Int in
                if takes > 0 { await pause(world, .milliseconds(takes)) }
                return value
            }
            return [.integer(Int64(value))]
        case .fails:
            return try await Self.caught("fails") {
                try await turn.step("f", retry: .never) { _ in throw StepFailure(code: "fails", message: "fails", retryable: true) }
                return []
            }
        case .sleep(let milliseconds):
            try await turn.sleep(.milliseconds(milliseconds), name: "z")
            return []
        case .wait(let milliseconds):
            return try await Self.caught("wait_timeout") { [try await turn.wait(for: "go", timeout: .milliseconds(milliseconds))] }
        case .emit(let value):
            try turn.emit("e\(value)", value)
            return []
        case .group(let children, let firstWins, let firstThrows):
            return try await Self.caught("thrown") {
                try await Self.group(index, children, turn, world, firstWins: firstWins, firstThrows: firstThrows)
            }
        case .shielded(let operations):
            return try await turn.shielded("sh\(index)") { turn in try await Self.run(operations, turn, world) }
        case .cleaning(let operations): return try await Self.cleaning(index, operations, turn, world)
        case .compensate:
            try turn.compensate("u") { _ in }
            return []
        }
    }

    /// Continues when it fails in this one way.
    private static func caught(_ code: String, _ body: () async throws -> [JSON]) async throws -> [JSON] {
        do { return try await body() } catch let failure as StepFailure where failure.code == code { return [.string(code)] }
    }

    private static func group(
        _ index: Int, _ children: [[Operation]], _ turn: Turn, _ world: SimulatedWorld, firstWins: Bool, firstThrows: Bool
    ) async throws -> [JSON] {
        let scopes = try children.indices.map { try turn.scope("g\(index)x\($0)") }
        let results = try await withThrowingTaskGroup(of: (Int, [JSON]).self) { group in
            for (number, operations) in children.enumerated() {
                group.addTask {
                    let result = try await run(operations, scopes[number], world)
                    if firstThrows, number == 0 { throw thrown }
                    return (number, result)
                }
            }
            if firstWins {
                defer { group.cancelAll() }
                return [try await group.next()!]
            }
            var all: [(Int, [JSON])] = []
            for try await one in group { all.append(one) }
            return all
        }
        return results.sorted { $0.0 < $1.0 }.map { .array($0.1) }
    }

    private static func cleaning(_ index: Int, _ operations: [Operation], _ turn: Turn, _ world: SimulatedWorld) async throws -> [JSON] {
        let scope = try turn.scope("c\(index)")
        do { return try await run(operations, scope, world) } catch {
            try await turn.shielded("clean\(index)") { turn in try await turn.step("t") { _ in } }
            throw error
        }
    }
}

// MARK: - A run

/// A random program, where its processes die, and what is sent to it in each of them.
private struct FuzzedTurn {
    private let seed: UInt64
    private let operations: [Operation]
    private let deaths: [(commit: Int, outcome: SimulatedLog.Outcome)]
    private let sends: @Sendable (SimulatedNode) -> Void
    private let moment: Int

    init(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        self.seed = seed
        operations = Operation.list(0, &random)
        deaths = (0..<Int.random(in: 0...3, using: &random)).map { _ in
            (Int.random(in: 2..<24, using: &random), [.lost, .notSubmitted, .durableUnacknowledged].randomElement(using: &random)!)
        }
        sends =
            switch Int.random(in: 0..<4, using: &random) {
            case 1: { $0.send(.cancel) }
            case 2: { $0.send(.interrupt) }
            case 3: { node in for _ in 0..<3 { node.send(.signal, ("name", "go"), ("data", 9)) } }
            default: { _ in }
            }
        moment = Int.random(in: 0..<400, using: &random)
    }

    /// Runs process after process until one does not die.
    /// - Returns: the entries of the channel, and the agent's state.
    func play() throws -> (entries: [JSON], state: String?) {
        var (log, now): (SimulatedLog?, Timestamp) = (nil, Timestamp(milliseconds: 1_000_000))
        for life in 0...deaths.count {
            let world = SimulatedWorld(seed: seed + UInt64(life), now: now)
            let death = life < deaths.count ? deaths[life] : nil
            let decision: SimulatedLog.Decision = { commit, _ in commit == death?.commit ? death!.outcome : .acknowledged }
            let current = log?.reopen(outcome: decision) ?? SimulatedLog(outcome: decision)
            let node = try start(world, current)
            world.run(deadline: world.now.advanced(by: .seconds(36_000))) { current.crashed }
            if !current.crashed { return (try node.entries(name), try node.runtime.status(of: name)?["state"]?.string) }
            now = world.now.advanced(by: .milliseconds(Int(seed % 1_500)))
            log = current
        }
        return ([], nil)
    }

    private func start(_ world: SimulatedWorld, _ log: SimulatedLog) throws -> SimulatedNode {
        let operations = operations
        let node = try SimulatedNode(
            world, log, agents: [agent { _, turn in .array(try await Operation.run(operations, turn, world)) }])
        node.send("x", to: name, key: "k")
        let sends = sends
        world.schedule(at: world.now.advanced(by: .milliseconds(moment))) { sends(node) }
        return node
    }
}

@Suite struct `Random programs` {
    @Test(arguments: 0..<(isLong ? 5_000 : 400) as Range<UInt64>)
    func `end once, and do nothing twice, whatever is sent and wherever processes die`(seed: UInt64) throws {
        let (entries, state) = try SimulatedNode.simulate { try FuzzedTurn(seed: seed).play() }
        let turn = entries.first { $0["type"] == "message" }?["offset"]
        let ends = entries.filter { $0["type"]?.string?.hasPrefix("turn.") == true && $0["type"] != "turn.started" && $0["turn"] == turn }
        #expect(ends.count == 1 && state == "idle", "\(state ?? "-") \(short(entries))")
        #expect(!entries.contains { ["agent.stalled", "agent.parked"].contains($0["type"]?.string) }, "\(short(entries))")
        #expect(repeated(entries).isEmpty)
        #expect(undecided(entries).isEmpty)
    }

    /// Steps with two results, and what was published twice.
    private func repeated(_ entries: [JSON]) -> [String] {
        var counts: [String: Int] = [:]
        for entry in entries {
            switch entry["type"]?.string {
            case "step.completed": counts[entry["step"]!.string!, default: 0] += 1
            case "step.failed" where entry["final"] == true: counts[entry["step"]!.string!, default: 0] += 1
            case "emit": counts["emit \(entry["name"]!.string!)", default: 0] += 1
            default: break
            }
        }
        return counts.filter { $0.value > 1 }.map(\.key)
    }

    /// Inputs that have no receipt, or two.
    private func undecided(_ entries: [JSON]) -> [JSON] {
        entries.filter { ["message", "cancel", "interrupt"].contains($0["type"]?.string) }.filter { input in
            entries.count { $0["type"] == "receipt" && $0["of"] == input["offset"] } != 1
        }
    }
}
