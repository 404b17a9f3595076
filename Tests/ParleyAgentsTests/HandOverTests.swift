import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"
private let partition = Placement.partition(of: name)

/// Two nodes on one log, as they would be on one that is replicated: each partition has the owner that acquired it last.
private final class TwoNodes: Sendable {
    let world: SimulatedWorld
    private let log = SimulatedLog()
    private let program: TurnProgram
    private let live = Mutex<[SimulatedNode]>([])
    private let owner = Mutex(0)
    /// How the next commit of each node ends, if not well.
    private let fates = Mutex<[SimulatedLog.Outcome?]>([nil, nil])
    /// What has been sent and not been answered.
    let unanswered = Atomic<Int>(0)

    init(seed: UInt64 = 1, _ program: @escaping TurnProgram) throws {
        let world = SimulatedWorld(seed: seed)
        self.world = world
        self.program = program
        let nodes = try [0, 1].map { try start($0) }
        live.withLock { $0 = nodes }
        nodes[0].channels.open(partition) { _ in }
        world.settle()
    }

    var nodes: [SimulatedNode] { live.withLock { $0 } }

    private func start(_ number: Int) throws -> SimulatedNode {
        let (program, world) = (program, world)
        let log = log.shared(outcome: { [self] _, _ in fates.withLock { $0[number].take() } ?? .acknowledged })
        return try SimulatedNode(
            world, log, agents: [agent { _, turn in try await program(turn, world) }], partitions: PartitionSet(),
            name: ["one", "two"][number])
    }

    /// The owner ends in its next commit, in one of the ways that there are, and a new process takes its place; one of the two has the partition then.
    func crash() throws {
        let number = owner.withLock { $0 }
        let outcomes: [SimulatedLog.Outcome] = [.notSubmitted, .lost, .durableUnacknowledged]
        fates.withLock { $0[number] = outcomes[Int(world.random() % 3)] }
        world.run(deadline: world.now.advanced(by: .milliseconds(100))) { fates.withLock { $0[number] == nil } }
        // It may have had nothing to commit.
        nodes[number].log.close()
        fates.withLock { $0[number] = nil }
        let next = try start(number)
        live.withLock { $0[number] = next }
        if world.random() % 2 == 0 { owner.withLock { $0 = 1 - $0 } }
        current.channels.open(partition) { _ in }
    }

    var current: SimulatedNode { nodes[owner.withLock { $0 }] }
    private var other: SimulatedNode { nodes[1 - owner.withLock { $0 }] }

    /// Gives the partition to the other node.
    /// - Parameter asks: Whether the owner is asked to give it up; otherwise it learns of it when it wants to commit.
    func move(asks: Bool) {
        let (from, to) = (current, other)
        owner.withLock { $0 = 1 - $0 }
        let open: @Sendable () -> Void = { to.channels.open(partition) { _ in } }
        if asks { from.runtime.handOver(partition) { _ in open() } } else { open() }
    }

    /// Sends until it is taken, as a client does: with a key, to whoever owns the partition by then.
    func send(_ entry: NewEntry, key: String) {
        unanswered.add(1, ordering: .relaxed)
        attempt(entry, key)
    }

    private func attempt(_ entry: NewEntry, _ key: String) {
        current.send(entry, to: name, key: key) { [self] result in
            if case .success = result {
                unanswered.subtract(1, ordering: .relaxed)
            } else {
                world.schedule(at: world.now.advanced(by: .milliseconds(30))) { self.attempt(entry, key) }
            }
        }
    }

    func run(_ duration: Duration) { world.run(deadline: world.now.advanced(by: duration)) }
}

private func message(_ text: String) -> NewEntry { NewEntry(.message, nil, ("by", "ann"), ("text", .string(text))) }

@Suite struct `A partition that is handed over` {
    @Test func `takes its waiting agents along`() throws {
        let (entries, active) = try SimulatedNode.simulate {
            let stage = try TwoNodes { turn, _ in try await turn.wait(for: "go") }
            stage.send(message("x"), key: "1")
            stage.run(.seconds(1))
            let before = stage.nodes[0].runtime.activeCount
            stage.move(asks: true)
            stage.run(.seconds(1))
            let after = stage.nodes[0].runtime.activeCount
            stage.send(NewEntry(.signal, members: NewEntry.join([("by", "ann"), ("name", "go"), ("data", 7)])), key: "2")
            stage.run(.seconds(1))
            return (try stage.current.entries(name), (before, after))
        }
        #expect(entries.last?["output"] == 7, "\(short(entries))")
        #expect(active == (1, 0))
        #expect(!entries.contains { $0["type"] == "supervision" }, "nothing has crashed")
    }

    @Test func `leaves nothing to try at the former owner, also when something arrives for an agent of it`() throws {
        let waited = try SimulatedNode.simulate {
            let stage = try TwoNodes { turn, _ in try await turn.wait(for: "go") }
            stage.send(message("x"), key: "1")
            stage.run(.seconds(1))
            let (former, channel) = (stage.nodes[0], try #require(try stage.nodes[0].channels.find(name)))
            stage.move(asks: true)
            stage.run(.seconds(600))
            let before = stage.world.now
            former.runtime.inputCommitted(channel, offsets: 1...1)
            // Without a deadline, time passes only as long as there is something to do.
            stage.world.run { before.duration(to: stage.world.now) > .seconds(600) }
            return before.duration(to: stage.world.now)
        }
        #expect(waited == .zero)
    }

    @Test func `has its timers fire at the new owner, and only there`() throws {
        let entries = try SimulatedNode.simulate {
            let stage = try TwoNodes { turn, _ in
                try await turn.sleep(.seconds(60))
                return "awake"
            }
            stage.send(message("x"), key: "1")
            stage.run(.seconds(1))
            stage.move(asks: true)
            stage.run(.seconds(100))
            return try stage.current.entries(name)
        }
        #expect(entries.last?["output"] == "awake", "\(short(entries))")
        #expect(entries.last?["at"]?.string?.contains("00:01:0") == true, "\(short(entries))")
    }

    @Test func `ends what the former owner runs, which learns of it at its next commit`() throws {
        let (entries, ran) = try SimulatedNode.simulate {
            let ran = Counter()
            let stage = try TwoNodes { turn, world in
                let first = try await turn.step("first") { _ in
                    ran.add("first")
                    await pause(world, .seconds(5))
                    return ran["first"]
                }
                return .integer(Int64(first))
            }
            stage.send(message("x"), key: "1")
            stage.run(.seconds(1))
            stage.move(asks: false)
            stage.run(.seconds(60))
            return (try stage.current.entries(name), ran["first"])
        }
        #expect(ran == 2, "the new owner cannot know how far it was")
        #expect(entries.last?["output"] == 2, "\(short(entries))")
        #expect(entries.count { $0["type"] == "step.completed" } == 1, "\(short(entries))")
    }

    @Test func `that is lost and comes back is no crash of its turns`() throws {
        let entries = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        try await turn.step("long") { _ in await pause(world, .seconds(600)) }
                        return "done"
                    }
                ])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            for _ in 0..<5 {
                node.channels.open(partition) { _ in }
                world.run(deadline: world.now.advanced(by: .seconds(30)))
            }
            world.run(deadline: world.now.advanced(by: .seconds(2_000)))
            return try node.entries(name)
        }
        #expect(entries.last?["output"] == "done", "\(short(entries))")
    }

    /// The partition changes hands again and again, asked for or not, at every moment of turns that sleep, wait, run bodies and call models.
    @Test(arguments: 0..<(isLong ? 400 : 60))
    func `loses and repeats nothing`(seed: Int) throws {
        try outcome(seed) { stage, _ in
            if stage.world.random() % 3 > 0 { stage.move(asks: stage.world.random() % 2 == 0) }
        }.check()
    }

    /// The same, and twice the owner ends in a commit, whatever comes of that.
    @Test(arguments: 0..<(isLong ? 400 : 60))
    func `loses and repeats nothing when its owner dies`(seed: Int) throws {
        try outcome(seed) { stage, number in
            if number % 3 == 1 { return try stage.crash() }
            if stage.world.random() % 3 == 0 { stage.move(asks: stage.world.random() % 2 == 0) }
        }.check()
    }

    private func outcome(_ seed: Int, _ change: @escaping @Sendable (TwoNodes, _ number: Int) throws -> Void) throws -> Outcome {
        try SimulatedNode.simulate {
            let ran = Counter()
            let stage = try TwoNodes(seed: UInt64(seed)) { turn, world in
                let model = PlayedModel(world, continues: .prefix, [.text("a"), .text("b"), .finished(reason: "stop")])
                let once: String
                do {
                    once = try await turn.step("once", .atMostOnce) { context in
                        ran.add("once " + context.idempotencyKey)
                        await pause(world, .milliseconds(10))
                        return "once"
                    }
                } catch let failure as StepFailure { once = failure.code }
                let parts = try await turn.map("m", [0, 1, 2]) { item, turn -> JSON in
                    switch item {
                    case 0:
                        try await turn.sleep(.milliseconds(200))
                        return "slept"
                    case 1: return .string(try await turn.generate("say", model, .user("x")).finishReason)
                    default:
                        return .string(
                            try await turn.step("y") { _ in
                                await pause(world, .milliseconds(50))
                                return "y"
                            })
                    }
                }
                return ["once": .string(once), "parts": .array(parts)]
            }
            for number in 0..<6 {
                stage.send(message("m\(number)"), key: "k\(number)")
                stage.run(.milliseconds(Int(stage.world.random() % 150)))
                try change(stage, number)
            }
            stage.run(.seconds(4_000))
            return Outcome(
                entries: try stage.current.entries(name), unanswered: stage.unanswered.load(ordering: .relaxed),
                active: stage.nodes.map(\.runtime.activeCount), paid: ran.counts)
        }
    }

    private struct Outcome: Sendable {
        let entries: [JSON]
        let unanswered: Int
        let active: [Int]
        let paid: [String: Int]

        func check() {
            let summary = "\(short(entries))"
            #expect(unanswered == 0)
            #expect(active == [0, 0], "agents that have nothing to do are in no memory")
            let messages = entries.filter { $0["type"] == "message" }.compactMap { $0["text"]?.string }
            #expect(messages.sorted() == (0..<6).map { "m\($0)" }, "\(summary)")
            let completed = entries.filter { $0["type"] == "turn.completed" }
            #expect(completed.count == 6, "\(summary)")
            for turn in completed {
                #expect(turn["output"]?["parts"] == ["slept", "stop", "y"], "\(summary)")
                #expect(["once", "outcome_unknown"].contains(turn["output"]?["once"]?.string), "\(summary)")
            }
            let ends = entries.filter { $0["type"] == "step.completed" }.map { "\($0["turn"]?.string ?? "") \($0["step"]?.string ?? "")" }
            #expect(Set(ends).count == ends.count, "no step ends twice: \(summary)")
            #expect(paid.values.allSatisfy { $0 == 1 }, "\(paid)")
        }
    }
}
