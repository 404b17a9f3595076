import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private let name = "agents/probe/a"

/// Runs one message through processes that die at certain commits, until it is answered.
/// - Returns: the entries of the channel.
func run(
    seed: UInt64, crashes: [(commit: Int, outcome: SimulatedLog.Outcome)], _ agents: @escaping @Sendable (SimulatedWorld) -> [AnyAgent]
) throws -> [JSON] {
    try SimulatedNode.simulate {
        var log: SimulatedLog?
        var now = Timestamp(milliseconds: 1_000_000)
        for life in 0...crashes.count {
            let world = SimulatedWorld(seed: seed + UInt64(life), now: now)
            let decision: SimulatedLog.Decision = { commit, _ in
                life < crashes.count && commit == crashes[life].commit ? crashes[life].outcome : .acknowledged
            }
            let current = log?.reopen(outcome: decision) ?? SimulatedLog(outcome: decision)
            let node = try SimulatedNode(world, current, agents: agents(world))
            node.send("x", to: name, key: "k")
            world.run(deadline: world.now.advanced(by: .seconds(3_600))) { current.crashed }
            if !current.crashed { return try node.entries(name) }
            now = world.now.advanced(by: .seconds(1))
            world.run(deadline: now)
            log = current
        }
        return []
    }
}

/// The places where processes die in the run of a seed.
func crashes(_ seed: UInt64) -> [(commit: Int, outcome: SimulatedLog.Outcome)] {
    var random = SplitMix64(seed: seed)
    return (0..<3).map { _ in
        (Int.random(in: 0..<12, using: &random), [.notSubmitted, .lost, .durableUnacknowledged].randomElement(using: &random)!)
    }
}

/// The values that the program saw, run by run.
private final class Paths: Sendable {
    private let runs = Mutex<[[String]]>([])

    func begin() -> Int {
        runs.withLock { runs in
            runs.append([])
            return runs.count - 1
        }
    }

    func note(_ what: String, in run: Int) { runs.withLock { $0[run].append(what) } }
    var last: [String]? { runs.withLock { $0.last } }
}

@Suite struct `Replay` {
    @Test(arguments: 0..<200 as Range<UInt64>)
    func `of nested groups and maps takes the path of the first run, wherever processes die`(seed: UInt64) throws {
        let paths = Paths()
        let entries = try run(seed: seed, crashes: crashes(seed)) { world in
            [
                agent { _, turn in
                    let run = paths.begin()
                    let sums = try await turn.map("outer", [1, 2, 3]) { item, turn in
                        let inner = try await turn.map("inner", [10, 20]) { other, turn in
                            let value = try await turn.step("s") { _ in
                                await pause(world, .milliseconds(Int(world.random() % 20)))
                                return item * other
                            }
                            paths.note("\(item) \(other)", in: run)
                            return value
                        }
                        paths.note("\(item)", in: run)
                        return inner.reduce(0, +)
                    }
                    // The first task to finish decides what the program does next.
                    let first = try await withThrowingTaskGroup(of: String.self) { group in
                        for letter in ["a", "b", "c"] {
                            let scope = try turn.scope(letter)
                            group.addTask {
                                _ = try await scope.step("race") { _ in
                                    await pause(world, .milliseconds(Int(world.random() % 20)))
                                    return 1
                                }
                                paths.note(letter, in: run)
                                return letter
                            }
                        }
                        var order = ""
                        for try await letter in group {
                            order += letter
                            _ = try await turn.step("after " + order) { _ in 1 }
                        }
                        return order
                    }
                    return .string("\(sums) \(first)")
                }
            ]
        }
        let last = try #require(entries.last)
        #expect(last["type"] == "turn.completed", "seed \(seed): \(last.text)")
        let whole = try #require(paths.last)
        #expect(last["output"]?.string == "[30, 60, 90] \(whole.suffix(3).joined())", "seed \(seed)")
        let recorded = entries.filter { $0["type"] == "step.completed" }.compactMap { $0["step"]?.string }
        #expect(Set(recorded).count == recorded.count, "seed \(seed)")
        // The order in which the program continued is that of the log.
        let races = recorded.filter { $0.hasSuffix("/race") }.map { String($0.first!) }
        #expect(races == Array(whole.suffix(3)), "seed \(seed)")
    }

    @Test(arguments: 0..<40 as Range<UInt64>) func `gives the same random numbers, UUIDs and times`(seed: UInt64) throws {
        let entries = try run(seed: seed, crashes: crashes(seed)) { world in
            [
                agent { _, turn in
                    var same = true
                    for _ in 0..<4 {
                        let drawn = "\(turn.random()) \(turn.uuid()) \(turn.now)"
                        let recorded = try await turn.step("drawn") { _ in
                            await pause(world, .milliseconds(7))
                            return drawn
                        }
                        same = same && recorded == drawn
                    }
                    return .bool(same)
                }
            ]
        }
        #expect(entries.last?["output"] == true, "seed \(seed)")
        let drawn = entries.filter { $0["type"] == "step.completed" }.compactMap { $0["result"]?.string }
        #expect(Set(drawn).count == 4, "they differ from draw to draw")
    }

    @Test func `sees a failure as the first run saw it`() throws {
        let seen = Mutex<[StepFailure]>([])
        let thrown = StepFailure(
            code: "odd", message: "\"quoted\"\n", retryable: false, retryAfter: .microseconds(1_500),
            data: ["a": [1, 2.5, .null], "b": .number(3)])
        let entries = try run(seed: 3, crashes: [(5, .notSubmitted)]) { _ in
            [
                agent { _, turn in
                    do { _ = try await turn.step("fails") { _ -> Int in throw thrown } } catch let failure as StepFailure {
                        seen.withLock { $0.append(failure) }
                    }
                    for name in ["a", "b", "c"] { _ = try await turn.step(name) { _ in 1 } }
                    return "went on"
                }
            ]
        }
        #expect(entries.last?["output"] == "went on")
        let failures = seen.withLock { $0 }
        #expect(failures.count == 2, "first run and replay")
        #expect(failures.first == failures.last)
        #expect(failures.first?.code == "odd" && failures.first?.message == "\"quoted\"\n")
    }

    @Test func `gives results as they came back on the first run`() throws {
        struct Value: Codable, Sendable, Equatable {
            var text = "é\u{0}"
            var number = 0.1
            var large = Int64.max
            var missing: Int?
            var list: [String: [Bool]] = ["a": [true], "b": []]
        }
        let seen = Mutex<[Value]>([])
        let entries = try run(seed: 3, crashes: [(5, .notSubmitted)]) { _ in
            [
                agent { _, turn in
                    let value = try await turn.step("value") { _ in Value() }
                    seen.withLock { $0.append(value) }
                    for name in ["a", "b", "c"] { _ = try await turn.step(name) { _ in 1 } }
                    return "done"
                }
            ]
        }
        #expect(entries.last?["output"] == "done")
        #expect(seen.withLock { $0 } == [Value(), Value()])
    }

    @Test func `of a turn with ten thousand steps does not take long`() throws {
        let clock = ContinuousClock()
        let (took, replayed, output) = try SimulatedNode.simulate {
            let agents: (@escaping @Sendable (Int) -> Void) -> [AnyAgent] = { ran in
                [
                    agent { _, turn in
                        var sum = 0
                        for index in 0..<10_000 {
                            sum += try await turn.step("s\(index)") { _ in
                                ran(index); return 1
                            }
                        }
                        try await turn.sleep(.seconds(86_400))
                        return .integer(Int64(sum))
                    }
                ]
            }
            let world = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            let start = clock.now
            let node = try SimulatedNode(world, log, agents: agents { _ in })
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            let middle = clock.now
            let after = SimulatedWorld(seed: 2, now: world.now.advanced(by: .seconds(86_400)))
            let second = try SimulatedNode(after, log.reopen(), agents: agents { index in Issue.record("step \(index) ran again") })
            after.run(deadline: after.now.advanced(by: .seconds(3_600)))
            return (start.duration(to: middle), middle.duration(to: clock.now), try second.entries(name).last?["output"])
        }
        print("10,000 steps: \(took) on the first run, \(replayed) to replay")
        #expect(output == 10_000)
        #expect(replayed < took * 2, "a replay takes more than its share")
    }
}
