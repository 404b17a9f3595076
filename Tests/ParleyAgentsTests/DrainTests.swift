import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"

/// A process that drains, as `Node.stop()` does it, and the process after it.
private struct Drained {
    let world: SimulatedWorld
    let node: SimulatedNode
    private let program: TurnProgram

    /// Starts the first process, and sends it a message.
    init(seed: UInt64 = 1, _ program: @escaping TurnProgram) throws {
        let world = SimulatedWorld(seed: seed)
        (self.world, self.program) = (world, program)
        node = try SimulatedNode(world, SimulatedLog(), agents: [agent { _, turn in try await program(turn, world) }])
        node.send("x", to: name)
    }

    func run(_ duration: Duration) { world.run(deadline: world.now.advanced(by: duration)) }

    /// Waits for ten seconds until no body runs, gives readers half a second, and closes the log.
    func drain() {
        node.runtime.drain()
        world.run(deadline: world.now.advanced(by: .seconds(10))) { node.runtime.runningBodies == 0 }
        run(.milliseconds(500))
        close()
    }

    func close() {
        node.runtime.markDrained()
        world.settle()
    }

    /// Runs the next process for an hour, and returns the entries.
    func next() throws -> [JSON] {
        let after = SimulatedWorld(seed: 99, now: world.now)
        let second = try SimulatedNode(after, node.log.reopen(), agents: [agent { _, turn in try await program(turn, after) }])
        after.run(deadline: after.now.advanced(by: .seconds(3_600)))
        return try second.entries(name)
    }
}

@Suite struct `A process that drains` {
    @Test(arguments: 0..<(isLong ? 120 : 40))
    func `waits for a short step that runs at most once, from its first moment on`(moment: Int) throws {
        let (entries, ran) = try SimulatedNode.simulate {
            let ran = Counter()
            let stage = try Drained(seed: UInt64(moment)) { turn, world in
                do {
                    return .string(
                        try await turn.step("once", .atMostOnce) { _ in
                            ran.add("ran")
                            await pause(world, .seconds(1))
                            return "done"
                        })
                } catch let failure as StepFailure { return .string(failure.code) }
            }
            for _ in 0..<(moment / 2) { stage.world.doOne() }
            stage.drain()
            return (try stage.next(), ran["ran"])
        }
        #expect(entries.last?["output"] == "done" && ran == 1, "ran \(ran) \(short(entries))")
    }

    /// At every point of a program that waits, calls a model and runs bodies side by side.
    @Test(arguments: 0..<(isLong ? 240 : 60))
    func `loses and repeats nothing`(moment: Int) throws {
        let (entries, ran) = try SimulatedNode.simulate {
            let ran = Counter()
            let stage = try Drained(seed: UInt64(moment)) { turn, world in
                let model = PlayedModel(world, continues: .prefix, [.text("a"), .text("b"), .finished(reason: "stop")])
                try turn.compensate("undo") { _ in ran.add("undo") }
                let all = try await turn.map("m", [0, 1, 2, 3]) { item, turn -> JSON in
                    switch item {
                    case 0:
                        try await turn.sleep(.milliseconds(40))
                        try await turn.step("x") { _ in ran.add("x") }
                        return "x"
                    case 1:
                        do { return try await turn.wait(for: "go", timeout: .milliseconds(60)) } catch let failure as StepFailure {
                            return .string(failure.code)
                        }
                    case 2: return .string(try await turn.generate("say", model, .user("x")).finishReason)
                    default:
                        return .string(
                            try await turn.step("y") { _ in
                                ran.add("y")
                                await pause(world, .milliseconds(20))
                                return "y"
                            })
                    }
                }
                try turn.emit("end", all)
                return .array(all)
            }
            var steps = 0
            stage.world.run(deadline: stage.world.now.advanced(by: .seconds(5))) {
                steps += 1
                return steps > moment * 2
            }
            stage.drain()
            return (try stage.next(), ran)
        }
        #expect(entries.last?["output"] == ["x", "wait_timeout", "stop", "y"], "\(short(entries))")
        #expect(ran["x"] == 1 && ran["y"] == 1 && ran["undo"] == 0)
        #expect(entries.count { $0["type"] == "emit" } == 1)
        #expect(!entries.contains { $0["type"] == "supervision" && $0["cause"] == "crash" })
    }

    @Test func `does not say of a step that never began that it failed`() throws {
        let entries = try SimulatedNode.simulate {
            let stage = try Drained { turn, world in
                do {
                    _ = try await turn.map("m", [0, 1]) { item, turn in
                        if item == 0 {
                            try await turn.step("a", .atMostOnce) { _ in await pause(world, .milliseconds(300)) }
                            throw StepFailure(code: "no", message: "no", retryable: false)
                        }
                        try await turn.step("b") { _ in await pause(world, .milliseconds(200)) }
                        try await turn.step("c") { _ in }
                    }
                } catch let failure as StepFailure { return .string(failure.code) }
                return .null
            }
            stage.run(.milliseconds(100))
            stage.node.runtime.drain()
            stage.run(.seconds(1))
            stage.close()
            return try stage.next()
        }
        let started = Set(entries.filter { $0["type"] == "step.started" }.compactMap { $0["step"]?.string })
        let failed = Set(entries.filter { $0["type"] == "step.failed" }.compactMap { $0["step"]?.string })
        #expect(failed.isSubset(of: started), "\(short(entries))")
        #expect(entries.last?["output"] == "no", "\(short(entries))")
    }

    @Test func `keeps what the model has written until an interrupt`() throws {
        let entries = try SimulatedNode.simulate {
            let stage = try Drained { turn, world in
                let model = PlayedModel(world, [.text("a"), .text("b"), .text("c")])
                return .string(try await turn.generate("answer", model, .user("x")).text)
            }
            stage.run(.milliseconds(400))
            stage.node.runtime.drain()
            stage.run(.milliseconds(10))
            stage.node.send(.interrupt)
            stage.run(.milliseconds(400))
            stage.close()
            return try stage.next()
        }
        #expect(receipt(entries, of: "interrupt") == "applied", "\(short(entries))")
        #expect(entries.last { $0["type"] == "step.completed" }?["text"] == "abc", "\(short(entries))")
        #expect(entries.last { $0["type"] == "turn.interrupted" }?["output"] == "abc", "\(short(entries))")
    }

    @Test func `an interrupt keeps what a model has written also when a body's end gives way to it`() throws {
        let entries = try SimulatedNode.simulate {
            let stage = try Drained { turn, world in
                let model = PlayedModel(world, [.text("a"), .text("b"), .text("c")])
                let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                    if item == 0 {
                        do { return .string(try await turn.generate("answer", model, .user("x")).text) } catch let error as Interrupted {
                            return .string(error.partial)
                        }
                    }
                    do { try await turn.step("body") { _ in await pause(world, .milliseconds(600)) } } catch {}
                    return "b"
                }
                return .array(all)
            }
            stage.run(.milliseconds(400))
            stage.node.runtime.drain()
            stage.run(.milliseconds(10))
            stage.node.send(.interrupt)
            stage.run(.milliseconds(600))
            stage.close()
            return try stage.next()
        }
        #expect(receipt(entries, of: "interrupt") == "applied", "\(short(entries))")
        #expect(entries.first { $0["type"] == "step.completed" && $0["step"] == "m/0/answer" }?["text"] == "abc", "\(short(entries))")
    }

    @Test(arguments: [EntryKind.interrupt, .cancel])
    func `nothing ends that has not begun`(kind: EntryKind) throws {
        let entries = try SimulatedNode.simulate {
            let stage = try Drained { turn, world in
                let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                    do {
                        if item == 0 {
                            try await turn.step("a") { _ in await pause(world, .milliseconds(200)) }
                            try await turn.step("c") { _ in }
                        } else {
                            try await turn.step("b") { _ in await pause(world, .milliseconds(400)) }
                        }
                    } catch { return .string("\(type(of: error))") }
                    return "ok"
                }
                return .array(all)
            }
            stage.run(.milliseconds(100))
            stage.node.runtime.drain()
            stage.run(.milliseconds(200))
            stage.node.send(kind)
            stage.run(.milliseconds(600))
            stage.close()
            return try stage.next()
        }
        let started = Set(entries.filter { $0["type"] == "step.started" }.compactMap { $0["step"]?.string })
        let failed = Set(entries.filter { $0["type"] == "step.failed" }.compactMap { $0["step"]?.string })
        #expect(failed.isSubset(of: started), "\(entries.map { ($0["type"]?.string ?? "") + " " + ($0["step"]?.string ?? "") })")
    }
}
