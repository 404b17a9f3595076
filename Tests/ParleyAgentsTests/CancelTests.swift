import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private let name = "agents/probe/a"

/// The effects outside, in order.
private final class Deeds: Sendable {
    private let all = Mutex<[String]>([])
    func add(_ deed: String) { all.withLock { $0.append(deed) } }
    var list: [String] { all.withLock { $0 } }
}

/// Books two things, each with its way back, and then waits.
private func booking(
    _ world: SimulatedWorld, _ deeds: Deeds, failing: Bool = false, stuck: Bool = false, after: Duration = .seconds(1_000)
) -> AnyAgent {
    agent { text, turn in
        guard text == "book" else { return .string(text) }
        for thing in ["room", "car"] {
            try turn.compensate("cancel \(thing)", retry: .never) { _ in
                deeds.add("cancel \(thing)")
                if stuck, thing == "car" { throw StepFailure(code: "no", message: "no way back", retryable: false) }
            }
            try await turn.step("book \(thing)") { _ in deeds.add("book \(thing)") }
        }
        if failing { throw StepFailure(code: "full", message: "no seat left", retryable: false) }
        try await turn.sleep(after)
        return "booked"
    }
}

private func cancel() -> NewEntry { NewEntry(.cancel, nil, ("by", "ann"), ("reason", "no need")) }

@Suite struct `Cancelled turns` {
    private func types(_ entries: [JSON]) -> [String] { entries.compactMap { $0["type"]?.string } }

    @Test func `take back what they did, the latest first, and then end`() throws {
        let (deeds, entries) = try SimulatedNode.simulate {
            let (world, deeds) = (SimulatedWorld(seed: 1), Deeds())
            let node = try SimulatedNode(world, SimulatedLog(), agents: [booking(world, deeds)])
            node.send("book", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            node.send(cancel(), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            return (deeds.list, try node.entries(name))
        }
        #expect(deeds == ["book room", "book car", "cancel car", "cancel room"])
        #expect(
            types(entries).suffix(8) == [
                "receipt", "supervision", "step.failed", "step.started", "step.completed", "step.started", "step.completed",
                "turn.cancelled",
            ])
        #expect(entries.last?["reason"] == "no need")
        #expect(entries.first { $0["type"] == "supervision" }?["action"] == "cancel")
    }

    @Test func `so do turns that fail, and those that end well take nothing back`() throws {
        for (failing, last, count) in [(true, "turn.failed", 4), (false, "turn.completed", 2)] {
            let (deeds, entries) = try SimulatedNode.simulate {
                let (world, deeds) = (SimulatedWorld(seed: 1), Deeds())
                let node = try SimulatedNode(world, SimulatedLog(), agents: [booking(world, deeds, failing: failing)])
                node.send("book", to: name)
                world.run(deadline: world.now.advanced(by: .seconds(10_000)))
                return (deeds.list, try node.entries(name))
            }
            #expect(deeds.count == count)
            #expect(entries.last?["type"]?.string == last)
        }
    }

    @Test func `say which way back failed, and go the others all the same`() throws {
        let (deeds, end) = try SimulatedNode.simulate {
            let (world, deeds) = (SimulatedWorld(seed: 1), Deeds())
            let node = try SimulatedNode(world, SimulatedLog(), agents: [booking(world, deeds, stuck: true)])
            node.send("book", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            node.send(cancel(), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            return (deeds.list, try node.entries(name).last)
        }
        #expect(deeds.suffix(2) == ["cancel car", "cancel room"])
        #expect(end?["type"] == "turn.failed" && end?["error"]?["code"] == "compensation_failed")
        #expect(end?["error"]?["data"] == ["steps": ["cancel car"], "cancelled": true])
    }

    @Test func `finish what is shielded, and begin nothing else`() throws {
        let (output, types) = try SimulatedNode.simulate {
            let (world, output) = (SimulatedWorld(seed: 1), Deeds())
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        do {
                            try await turn.shielded { turn in
                                try await turn.sleep(.seconds(100))
                                output.add(try await turn.step("inside") { _ in "inside" })
                            }
                            try await turn.step("outside") { _ in output.add("outside") }
                        } catch let failure as StepFailure {
                            output.add(failure.code)
                            try await turn.shielded("clean up") { turn in
                                try await turn.step("clean") { _ in output.add("clean") }
                            }
                        }
                        return "over"
                    }
                ])
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            node.send(cancel(), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            return (output.list, self.types(try node.entries(name)))
        }
        #expect(output == ["inside", "cancelled", "clean"])
        #expect(types.last == "turn.cancelled")
        #expect(!types.contains("turn.completed"))
    }

    /// Dies at every commit, whether that became durable or not: the turn ends as cancelled, and what was done is compensated, each by one
    /// step. (How often the body ran is another matter: a step is at least once.)
    @Test(arguments: 0..<40, [SimulatedLog.Outcome.lost, .durableUnacknowledged])
    func `are taken to their end by the next process`(crashAt: Int, outcome: SimulatedLog.Outcome) throws {
        let (ends, done, receipts) = try SimulatedNode.simulate {
            let deeds = Deeds()
            let log = SimulatedLog(outcome: { commit, _ in commit == crashAt ? outcome : .acknowledged })
            var world = SimulatedWorld(seed: UInt64(crashAt))
            var node = try SimulatedNode(world, log, agents: [booking(world, deeds)])
            node.send("book", to: name, key: "book")
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            node.send(cancel(), to: name, key: "cancel")
            world.run(deadline: world.now.advanced(by: .seconds(20)))
            if log.crashed {
                world = SimulatedWorld(seed: UInt64(crashAt) + 1_000, now: world.now)
                node = try SimulatedNode(world, log.reopen(), agents: [booking(world, deeds)])
                // A client that got no answer asks again.
                node.send("book", to: name, key: "book")
                world.run(deadline: world.now.advanced(by: .seconds(5)))
                node.send(cancel(), to: name, key: "cancel")
                world.run(deadline: world.now.advanced(by: .seconds(20)))
            }
            let entries = try node.entries(name)
            let done = entries.filter { $0["type"] == "step.completed" }.compactMap { $0["step"]?.string }
            return (entries.filter { ($0["type"]?.string ?? "").hasPrefix("turn.c") }, done, entries.filter { $0["type"] == "receipt" })
        }
        #expect(ends.compactMap { $0["type"]?.string } == ["turn.cancelled"])
        #expect(done == ["book room", "book car", "cancel car", "cancel room"])
        #expect(receipts.compactMap { $0["state"]?.string } == ["applied", "applied"])
    }

    @Test(arguments: 0..<300)
    func `or completed ones: a cancel that races the end gives one of the two, and its receipt is true`(seed: Int) throws {
        let (types, receipts, deeds) = try SimulatedNode.simulate {
            let (world, deeds) = (SimulatedWorld(seed: UInt64(seed)), Deeds())
            let node = try SimulatedNode(world, SimulatedLog(), agents: [booking(world, deeds, after: .milliseconds(3))])
            node.send("book", to: name)
            var random = SplitMix64(seed: UInt64(seed))
            let moments = Int(random.next() % 60)
            var steps = 0
            world.run(deadline: world.now.advanced(by: .milliseconds(3))) {
                steps += 1
                return steps > moments
            }
            node.send(cancel(), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            let entries = try node.entries(name)
            let receipts = entries.filter { $0["type"] == "receipt" }
            return (self.types(entries), receipts.map { "\($0["state"]!.string!) \($0["reason"]?.string ?? "")" }, deeds.list)
        }
        let isCancelled = types.contains("turn.cancelled")
        #expect(isCancelled != types.contains("turn.completed"))
        #expect(types.count { $0.hasPrefix("turn.c") } == 1)
        #expect(receipts.sorted() == (isCancelled ? ["applied ", "applied "] : ["applied ", "rejected turn_ended"]))
        let booked = deeds.filter { $0.hasPrefix("book") }.count
        if !isCancelled { #expect(deeds == ["book room", "book car"]) } else { #expect(deeds.count >= booked + booked) }
    }

    @Test func `are what a rolled back turn is, and the newer message runs after`() throws {
        let (types, outputs, deeds) = try SimulatedNode.simulate {
            let (world, deeds) = (SimulatedWorld(seed: 1), Deeds())
            let base = booking(world, deeds)
            let node = try SimulatedNode(
                world, SimulatedLog(), agents: [AnyAgent(kind: base.kind, policy: .rollback, receive: base.receive)])
            node.send("book", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            node.send("other", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            let entries = try node.entries(name)
            return (self.types(entries), entries.last?["output"]?.string, deeds.list)
        }
        #expect(types.filter { $0.hasPrefix("turn.") } == ["turn.started", "turn.cancelled", "turn.started", "turn.completed"])
        #expect(outputs == "other")
        #expect(deeds == ["book room", "book car", "cancel car", "cancel room"])
    }
}

@Suite struct `Compensations of a turn with many tasks` {
    private func undone(_ entries: [JSON]) -> [String] {
        entries.filter { $0["type"] == "step.completed" }.compactMap { $0["step"]?.string }.filter {
            $0.split(separator: "/").last!.hasPrefix("undo")
        }
    }

    @Test(arguments: 0..<24, [SimulatedLog.Outcome.lost, .durableUnacknowledged])
    func `run once, the latest first, when a task throws beside one that cleans up`(commit: Int, outcome: SimulatedLog.Outcome) throws {
        let entries = try run(seed: 4, crashes: [(commit, outcome)]) { world in
            [
                agent { _, turn in
                    for number in 0..<3 {
                        try turn.compensate("undo") { _ in await pause(world, .milliseconds(number)) }
                        _ = try await turn.step("do") { _ in number }
                    }
                    let (left, right) = (try turn.scope("left"), try turn.scope("right"))
                    try await withThrowingTaskGroup(of: Void.self) { group in
                        group.addTask {
                            do { _ = try await left.wait(for: "never") } catch {
                                // Runs when the task is cancelled.
                                try await left.shielded { turn in try await turn.step("cleanup") { _ in } }
                                throw error
                            }
                        }
                        group.addTask {
                            try await right.sleep(.milliseconds(50))
                            throw StepFailure(code: "nested", message: "thrown", retryable: false)
                        }
                        while try await group.next() != nil {}
                    }
                    return "unreachable"
                }
            ]
        }
        #expect(entries.last?["error"]?["code"] == "nested", "\(short(entries))")
        #expect(undone(entries) == ["undo#3", "undo#2", "undo"], "\(short(entries))")
        #expect(entries.count { $0["type"] == "step.completed" && $0["step"] == "left/shielded/cleanup" } == 1)
    }

    @Test(arguments: 0..<12)
    func `keep their order over crashes when the error comes from three levels down`(commit: Int) throws {
        let entries = try run(seed: 8, crashes: [(commit, .durableUnacknowledged), (4, .durableUnacknowledged)]) { world in
            [
                agent { _, turn in
                    for number in 0..<2 {
                        try turn.compensate("undo") { _ in await pause(world, .milliseconds(5 * number)) }
                        _ = try await turn.step("do") { _ in number }
                    }
                    _ = try await turn.map("m", [0, 1]) { item, turn in
                        _ = try await turn.map("n", [0, 1]) { inner, turn in
                            try turn.compensate("undo inner") { _ in }
                            if item == 1, inner == 1 {
                                try await turn.sleep(.milliseconds(10))
                                throw StepFailure(code: "deep", message: "deep", retryable: false)
                            }
                            _ = try await turn.wait(for: "never")
                        }
                    }
                    return .null
                }
            ]
        }
        #expect(entries.last?["error"]?["code"] == "deep", "\(short(entries))")
        let inner = [(1, 1), (1, 0), (0, 1), (0, 0)].map { "m/\($0)/n/\($1)/undo inner" }
        #expect(undone(entries) == inner + ["undo#2", "undo"], "\(undone(entries))")
    }
}
