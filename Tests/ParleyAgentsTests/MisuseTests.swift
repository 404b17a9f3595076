import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private let name = "agents/probe/a"

/// Runs one turn to its end, with what is sent to it some time after its message.
private func turn(
    _ sent: [NewEntry] = [], after pause: Duration = .seconds(60),
    _ program: @escaping @Sendable (Turn, SimulatedWorld) async throws -> JSON
) throws -> (end: JSON?, entries: [JSON]) {
    let entries = try SimulatedNode.simulate {
        let world = SimulatedWorld(seed: 1)
        let node = try SimulatedNode(
            world, SimulatedLog(),
            agents: [
                agent { _, turn in try await program(turn, world) }, agent("other") { _, turn in try await turn.step("s") { _ in 1 } },
            ])
        node.send("x", to: name)
        world.run(deadline: world.now.advanced(by: pause))
        for entry in sent { node.send(entry, to: name) }
        node.send("x", to: "agents/other/b")
        world.run(deadline: world.now.advanced(by: .seconds(100_000)))
        #expect(try node.entries("agents/other/b").last?["type"] == "turn.completed", "others go on")
        return try node.entries(name)
    }
    return (entries.last { $0["type"]?.string?.hasPrefix("turn.") == true && $0["type"] != "turn.started" }, entries)
}

@Suite struct `A program that continues whatever it is told` {
    @Test func `is cancelled all the same`() throws {
        let (end, entries) = try turn([NewEntry(.cancel, nil, ("by", "ann"))]) { turn, _ in
            try turn.compensate("undo") { _ in }
            while true { if let data = try? await turn.wait(for: "go") { return data } }
        }
        #expect(end?["type"] == "turn.cancelled", "\(entries.last?.text ?? "")")
        #expect(entries.contains { $0["type"] == "step.completed" && $0["step"] == "undo" }, "what it did is taken back")
    }

    @Test func `waits for what is shielded in a cancelled turn`() throws {
        let (end, entries) = try turn([NewEntry(.cancel, nil, ("by", "ann"))]) { turn, world in
            let (spinning, shielding) = (try turn.scope("spin"), try turn.scope("shield"))
            async let spun: JSON = { while true { if let data = try? await spinning.wait(for: "go") { return data } } }()
            try await shielding.shielded { turn in
                for number in 0..<3 {
                    _ = try await turn.step("s") { _ in
                        await pause(world, .seconds(50))
                        return number
                    }
                }
            }
            return await spun
        }
        #expect(end?["type"] == "turn.cancelled")
        let completed = entries.filter { $0["type"] == "step.completed" }
        #expect(completed.count == 3)
    }

    @Test func `has left memory when its agent has, and is answered when the agent comes back`() throws {
        let runs = Mutex(0)
        let (end, _) = try turn([NewEntry(.signal, nil, ("by", "ann"), ("name", "go"), ("data", 7))], after: .seconds(1_000)) { turn, _ in
            runs.withLock { $0 += 1 }
            while true { if let data = try? await turn.wait(for: "go") { return data } }
        }
        #expect(end?["output"] == 7)
        #expect(runs.withLock { $0 } == 2, "it left memory while it waited")
    }

    @Test func `fails with what it is told when nothing else can happen`() throws {
        let (end, _) = try turn { turn, _ in
            while true { if let data = try? await turn.wait(for: "a/b") { return data } }
        }
        #expect(end?["type"] == "turn.failed")
        #expect(end?["error"]?["code"] == "invalid_step_name")
    }
}

@Suite struct `A turn that is used wrongly` {
    @Test func `from outside its tasks throws, and continues`() throws {
        let (end, _) = try turn { turn, _ in
            let codes = try await turn.step("body") { _ in
                var codes: [String] = []
                func call(_ body: () async throws -> Void) async {
                    do { try await body() } catch { codes.append((error as? TurnError)?.code ?? "\(error)") }
                }
                await call { _ = try await turn.step("s") { _ in 1 } }
                await call { try await turn.sleep(.seconds(1)) }
                await call { _ = try await turn.wait(for: "s", timeout: .seconds(1)) }
                await call { try turn.emit("e", 1) }
                await call { _ = try turn.scope("s") }
                await call { try turn.compensate("c") { _ in } }
                return codes
            }
            let value = try await turn.step("s") { _ in "goes on" }
            return .string("\(Set(codes).sorted()) \(codes.count) \(value)")
        }
        #expect(end?["output"] == #"["outside_turn"] 6 goes on"#, "\(end?.text ?? "")")
    }

    @Test func `on a scope of a task that has ended is refused each time, whatever memory its task had`() throws {
        let (end, _) = try turn { turn, _ in
            var refused = 0
            for number in 0..<200 {
                let scope = try turn.scope("scope\(number)")
                await withTaskGroup(of: Void.self) { group in group.addTask { _ = try? await scope.step("first") { _ in 1 } } }
                refused += await withTaskGroup(of: Int.self) { group in
                    group.addTask {
                        do {
                            _ = try await scope.step("second") { _ in 1 }
                            return 0
                        } catch { return (error as? TurnError)?.code == "concurrent_scope" ? 1 : 0 }
                    }
                    return await group.next()!
                }
            }
            return .integer(Int64(refused))
        }
        #expect(end?["output"] == 200)
    }

    @Test func `with more steps at once than it may have is told the bound`() throws {
        let (end, _) = try turn { turn, _ in
            _ = try await turn.map("m", Array(0..<4_097)) { item, turn in try await turn.step("s") { _ in item } }
            return 1
        }
        #expect(end?["error"]?["code"] == "too_many_steps")
        #expect(end?["error"]?["message"]?.string?.contains("4096") == true)
    }

    @Test func `to publish without end is told the bound, and one that waits in between is not`() throws {
        let (end, entries) = try turn { turn, _ in
            for number in 0..<30_000 { try turn.emit("e", number) }
            return 1
        }
        #expect(end?["error"]?["code"] == "too_many_emits")
        #expect(entries.count { $0["type"] == "emit" } == 10_000)
        let (other, _) = try turn { turn, _ in
            for _ in 0..<3 {
                for number in 0..<9_000 { try turn.emit("e", number) }
                _ = try await turn.step("s") { _ in 1 }
            }
            return "all"
        }
        #expect(other?["output"] == "all")
    }
}

@Suite struct `Times that no calendar has` {
    @Test func `are due at once, or never`() throws {
        let (end, entries) = try turn([
            NewEntry(.signal, nil, ("by", "ann"), ("name", "go")), NewEntry(.signal, nil, ("by", "ann"), ("name", "stop")),
        ]) { turn, world in
            try await turn.sleep(until: Timestamp(milliseconds: -5))
            try await turn.sleep(until: Timestamp(milliseconds: .min))
            try await turn.sleep(.seconds(Int64.min))
            try await turn.sleep(.seconds(-1))
            do { _ = try await turn.approval("past", of: [1], expires: .seconds(Int64.min / 2)) } catch is ApprovalExpired {}
            let scope = try turn.scope("s")
            async let _: Void = scope.sleep(until: Timestamp(milliseconds: .max))
            _ = try await turn.wait(for: "go", timeout: .seconds(Int64.max))
            let other = try turn.scope("o")
            async let _ = other.approval("future", of: [1], expires: .seconds(Int64.max / 2))
            _ = try await turn.wait(for: "stop", timeout: .seconds(Int64.max / 2))
            throw StepFailure(code: "over", message: "over", retryable: false)
        }
        #expect(end?["error"]?["code"] == "over", "\(entries.map(\.text))")
        let due = Set(entries.compactMap { $0["due"]?.string })
        #expect(due.isSuperset(of: ["9999-12-31T23:59:59.999Z", "1970-01-01T00:00:00.000Z"]))
    }

    @Test func `of retries are the longest pause that is allowed`() throws {
        let (end, entries) = try turn(after: .seconds(1)) { turn, _ in
            let retry = RetryPolicy(
                initialInterval: .seconds(1), backoffCoefficient: 1e300, maximumInterval: .seconds(Int64.max), maximumAttempts: 3)
            return .integer(
                Int64(
                    try await turn.step("s", retry: retry) { step in
                        if step.attempt == 1 { throw StepFailure(code: "no", message: "no", retryable: true) }
                        throw StepFailure(code: "no", message: "no", retryable: step.attempt < 2)
                    } as Int))
        }
        #expect(end?["type"] == "turn.failed", "\(entries.map(\.text))")
    }
}

@Suite struct `Timers that came due while nobody was there` {
    @Test func `are fired some at a time, and what comes due meanwhile does not wait for all of them`() throws {
        let (instants, woken, fresh) = try SimulatedNode.simulate {
            let agents = [
                agent { text, turn in
                    try await turn.sleep(.seconds(Int(text)!))
                    return "woken"
                }
            ]
            let log = SimulatedLog()
            let world = SimulatedWorld(seed: 1)
            let first = try SimulatedNode(world, log, agents: agents)
            for number in 0..<2_000 { first.send("86400", to: "agents/probe/a\(number)") }
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            let after = SimulatedWorld(seed: 2, now: world.now.advanced(by: .seconds(100_000)))
            let node = try SimulatedNode(after, log.reopen(), agents: agents)
            node.send("0", to: "agents/probe/fresh")
            after.run(deadline: after.now.advanced(by: .seconds(100)))
            var instants: [String: Int] = [:]
            for number in 0..<2_000 {
                let fired = try node.entries("agents/probe/a\(number)").first { $0["type"] == "timer.fired" }
                instants[fired?["at"]?.string ?? "", default: 0] += 1
            }
            let entries = try node.entries("agents/probe/fresh")
            let times = entries.compactMap { $0["at"]?.string.flatMap { Timestamp($0) } }
            return (instants, try node.entries("agents/probe/a7").last?["output"], times.first!.duration(to: times.last!))
        }
        #expect(instants[""] == nil, "all were fired")
        #expect(woken == "woken")
        #expect(instants.values.max()! <= 32, "\(instants)")
        #expect(fresh < .milliseconds(200))
    }
}
