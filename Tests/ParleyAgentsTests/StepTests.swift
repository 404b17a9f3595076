import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private let name = "agents/probe/a"

@Suite struct `Steps` {
    /// Runs one message to the end and gives the entries.
    private func entries(
        seconds: Int = 3_600, _ body: @escaping @Sendable (SimulatedWorld, Turn) async throws -> JSON
    ) throws -> [JSON] {
        try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [agent { _, turn in try await body(world, turn) }])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(seconds)))
            return try node.entries(name)
        }
    }

    private func time(_ entry: JSON) -> Timestamp? { entry["at"]?.string.flatMap { Timestamp($0) } }

    @Test(arguments: ["", "a/b", "a#2", String(repeating: "x", count: 129)]) func `of such a name are refused`(stepName: String) throws {
        let found = try entries { _, turn in
            do { return .integer(Int64(try await turn.step(stepName) { _ in 1 })) } catch let error as TurnError {
                return .string(error.code)
            }
        }
        #expect(found.last?["output"] == "invalid_step_name")
        #expect(!found.contains { $0["type"] == "step.started" })
    }

    @Test func `of one name are numbered, each scope for itself`() throws {
        let found = try entries { _, turn in
            for _ in 0..<2 { _ = try await turn.step("s") { _ in 1 } }
            _ = try await turn.map("m", [1, 2]) { _, turn in
                for _ in 0..<2 { _ = try await turn.step("s") { _ in 1 } }
                return 1
            }
            _ = try await turn.map("m", [1]) { _, turn in try await turn.step("s") { _ in 1 } }
            return .null
        }
        let paths = found.filter { $0["type"] == "step.started" }.compactMap { $0["step"]?.string }
        #expect(Set(paths) == ["s", "s#2", "m/0/s", "m/0/s#2", "m/1/s", "m/1/s#2", "m#2/0/s"])
        #expect(paths.count == 7)
    }

    /// An interrupted turn takes nothing back, so a step must not be able to say that it was.
    @Test(arguments: ["interrupted", "cancelled", "approval_denied", "approval_expired", "prefix_refused"], [true, false])
    func `that fail with one of the runtime's own codes have failed`(code: String, isModel: Bool) throws {
        let found = try entries { world, turn in
            try turn.compensate("undo") { _ in }
            let failure = StepFailure(code: code, message: "says another system", retryable: code == "prefix_refused")
            if isModel {
                let model = PlayedModel(world, [.text("a"), .failed(failure)])
                return .string(try await turn.generate("call", model, .user("x"), retry: RetryPolicy(maximumAttempts: 2)).text)
            }
            try await turn.step("call", retry: RetryPolicy(maximumAttempts: 2)) { _ in throw failure }
            return "done"
        }
        #expect(found.last?["type"] == "turn.failed" && found.last?["error"]?["code"] == "step_failed", "\(short(found))")
        #expect(found.last?["error"]?["message"]?.string == "\(code): says another system")
        #expect(found.contains { $0["type"] == "step.completed" && $0["step"] == "undo" })
    }

    @Test func `that fail are tried again after pauses that grow, up to the bound`() throws {
        let policy = RetryPolicy(initialInterval: .seconds(1), backoffCoefficient: 3, maximumInterval: .seconds(10), maximumAttempts: 5)
        let found = try entries { _, turn in
            do {
                return .integer(
                    Int64(
                        try await turn.step("s", retry: policy) { _ -> Int in throw StepFailure(code: "no", message: "", retryable: true) })
                )
            } catch let failure as StepFailure { return .string(failure.code) }
        }
        #expect(found.last?["output"] == "no")
        let starts = found.filter { $0["type"] == "step.started" }.compactMap(time)
        #expect(zip(starts, starts.dropFirst()).map { $0.duration(to: $1) } == [.seconds(1), .seconds(3), .seconds(9), .seconds(10)])
        let failures = found.filter { $0["type"] == "step.failed" }
        #expect(failures.map { $0["final"]?.bool } == [false, false, false, false, true])
        #expect(failures.map { $0["attempt"]?.integer } == [1, 2, 3, 4, 5])
        #expect(failures.map { $0["retry_at"] == nil } == [false, false, false, false, true])
    }

    @Test func `wait as long as the other side asks, also beyond the longest pause`() throws {
        let found = try entries { _, turn in
            .integer(
                Int64(
                    try await turn.step("s") { context -> Int in
                        if context.attempt == 1 { throw StepFailure(code: "busy", message: "", retryable: true, retryAfter: .seconds(100)) }
                        return context.attempt
                    }))
        }
        #expect(found.last?["output"] == 2)
        let starts = found.filter { $0["type"] == "step.started" }.compactMap(time)
        #expect(starts[0].duration(to: starts[1]) == .seconds(100))
    }

    @Test func `keep the instant of the next attempt over a crash`() throws {
        let (starts, output) = try SimulatedNode.simulate {
            @Sendable func body(_ context: StepContext) throws -> Int {
                if context.attempt == 1 { throw StepFailure(code: "busy", message: "", retryable: true, retryAfter: .seconds(100)) }
                return context.attempt
            }
            let agents = [agent { _, turn in .integer(Int64(try await turn.step("s") { try body($0) })) }]
            let world = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            SimulatedNode.send(try SimulatedNode(world, log, agents: agents))
            world.run(deadline: world.now.advanced(by: .seconds(40)))
            let after = SimulatedWorld(seed: 2, now: world.now)
            let second = try SimulatedNode(after, log.reopen(), agents: agents)
            after.run(deadline: after.now.advanced(by: .seconds(1_000)))
            let found = try second.entries(name)
            return (
                found.filter { $0["type"] == "step.started" }.compactMap { $0["at"]?.string.flatMap { Timestamp($0) } },
                found.last?["output"]
            )
        }
        #expect(output == 2)
        #expect(starts.count == 2)
        #expect(starts[0].duration(to: starts[1]) == .seconds(100))
    }

    @Test func `that run at most once throw outcome_unknown when the process died meanwhile`() throws {
        let ran = Counter()
        let (output, types) = try SimulatedNode.simulate {
            let agents: (SimulatedWorld) -> [AnyAgent] = { world in
                [
                    agent { _, turn in
                        do {
                            return .string(
                                try await turn.step("pay", .atMostOnce) { _ in
                                    ran.add("pay")
                                    await pause(world, .seconds(10))
                                    return "paid"
                                })
                        } catch let failure as StepFailure { return .string("\(failure.code) \(failure.retryable)") }
                    }
                ]
            }
            let world = SimulatedWorld(seed: 1)
            let log = SimulatedLog()
            SimulatedNode.send(try SimulatedNode(world, log, agents: agents(world)))
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            let after = SimulatedWorld(seed: 2, now: world.now)
            let second = try SimulatedNode(after, log.reopen(), agents: agents(after))
            after.run(deadline: after.now.advanced(by: .seconds(1_000)))
            let found = try second.entries(name)
            return (found.last?["output"], found.compactMap { $0["type"]?.string })
        }
        #expect(output == "outcome_unknown false")
        #expect(ran["pay"] == 1)
        #expect(types.filter { $0 == "step.started" }.count == 1)
        #expect(types.contains("step.failed"))
    }

    @Test func `that run at most once begin only when their start is durable, and fail for good`() throws {
        let ran = Counter()
        let types = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            // Commits: message, start of the turn, start of the step.
            let log = SimulatedLog(outcome: { commit, _ in commit == 2 ? .durableUnacknowledged : .acknowledged })
            let agents = [
                agent { _, turn in
                    .integer(
                        Int64(
                            try await turn.step("pay", .atMostOnce) { _ -> Int in
                                ran.add("pay")
                                throw StepFailure(code: "declined", message: "", retryable: true)
                            }))
                }
            ]
            SimulatedNode.send(try SimulatedNode(world, log, agents: agents))
            world.settle()
            #expect(log.crashed && ran["pay"] == 0)
            let world2 = SimulatedWorld(seed: 2, now: world.now)
            let healthy = SimulatedLog()
            SimulatedNode.send(try SimulatedNode(world2, healthy, agents: agents))
            world2.run(deadline: world2.now.advanced(by: .seconds(100)))
            return try SimulatedNode(SimulatedWorld(seed: 3), healthy.reopen(), agents: []).entries(name).compactMap { $0["type"]?.string }
        }
        #expect(ran["pay"] == 1, "a failure is final too")
        #expect(types.suffix(2) == ["step.failed", "turn.failed"])
    }

    /// As a group of the body's own does that its timeout has cancelled.
    @Test func `that throw CancellationError have failed, and those beside them continue`() throws {
        let (entries, paid) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let paid = Counter()
            let calls: [ModelEvent] = ["slow", "pay"].enumerated().map { .toolCall(index: $0, id: $1, name: $1, arguments: "{}") }
            let model = PlayedModel(world, calls + [.finished(reason: "tool_calls")], [.text("ok"), .finished(reason: "stop")])
            let slow = Tool("slow", "Slow.", parameters: ["type": "object"]) { (_: JSON, _) -> String in
                await pause(world, .milliseconds(50))
                throw CancellationError()
            }
            let pay = Tool("pay", "Pays.", parameters: ["type": "object"], contract: .atMostOnce) { (_: JSON, _) -> String in
                await pause(world, .milliseconds(500))
                paid.add("paid")
                return "paid"
            }
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [agent { text, turn in .string(try await turn.respond("answer", model, [.user(text)], tools: [slow, pay]).text) }])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            return (try node.entries(name), paid["paid"])
        }
        #expect(entries.last?["output"] == "ok" && paid == 1, "\(short(entries))")
    }

    @Test func `hand their bodies a key that stays and a fence that rises`() throws {
        let seen = Mutex<[(key: String, fence: UInt64)]>([])
        _ = try SimulatedNode.simulate {
            let log = SimulatedLog(outcome: { commit, _ in commit == 2 ? .lost : .acknowledged })
            let agents = [
                agent { _, turn in
                    let one = try await turn.step("s") { context in
                        seen.withLock { $0.append((context.idempotencyKey, context.fence)) }
                        return 1
                    }
                    return .integer(Int64(one))
                }
            ]
            let world = SimulatedWorld(seed: 1)
            SimulatedNode.send(try SimulatedNode(world, log, agents: agents))
            world.settle()
            let after = SimulatedWorld(seed: 2, now: world.now)
            _ = try SimulatedNode(after, log.reopen(), agents: agents)
            after.run(deadline: after.now.advanced(by: .seconds(100)))
            return 0
        }
        let all = seen.withLock { $0 }
        try #require(all.count == 2)
        #expect(all.map(\.key) == Array(repeating: "agents/probe/a/0000000000000001/s", count: 2))
        #expect(all[0].fence < all[1].fence)
    }
}

extension SimulatedNode {
    fileprivate static func send(_ node: SimulatedNode) { node.send("x", to: name) }
}
