import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

/// Waits for something that does not come, in one of the ways in which a turn waits.
private enum Wait: String, CaseIterable {
    case sleep, signal, approval, follow

    /// - Returns: the end of the wait.
    func end(_ turn: Turn, after duration: Duration) async throws -> String {
        do {
            switch self {
            case .sleep: try await turn.sleep(duration)
            case .signal: _ = try await turn.wait(for: "never", timeout: duration)
            case .approval: try await turn.approval("pay", of: ["n": 1], expires: duration)
            case .follow:
                var feed = try await turn.follow("streams/f", from: .end)
                _ = try await feed.next(timeout: duration)
            }
            return "slept"
        } catch let failure as StepFailure { return failure.code } catch is ApprovalExpired { return "approval_expired" }
    }

    var expected: String {
        switch self {
        case .sleep: "slept"
        case .approval: "approval_expired"
        case .signal, .follow: "wait_timeout"
        }
    }
}

/// Waits once, and gives what ended the wait, and behind how many seconds.
private func waiting(_ wait: Wait, _ seconds: Int) -> TurnProgram {
    { turn, _ in
        let began = turn.now
        let end = try await wait.end(turn, after: .seconds(seconds))
        return [.string(end), .integer(began.duration(to: turn.now).components.seconds)]
    }
}

@Suite struct `A wait whose duration was changed under it` {
    @Test(arguments: Wait.allCases, [20, 1_001, 5_000])
    private func `ends when it was to end`(wait: Wait, changed: Int) throws {
        let entries = try twoProcesses(
            waiting(wait, 1_000), for: .milliseconds(100), waiting(wait, changed), prepare: { $0.publish(1, to: "streams/f") })
        #expect(entries.last?["output"] == [.string(wait.expected), 1_000], "\(short(entries))")
    }

    /// It was passivated, and comes due while no process runs.
    @Test(arguments: Wait.allCases, [20, 1_001, 50_000])
    private func `has ended when the node starts after its end`(wait: Wait, changed: Int) throws {
        let entries = try twoProcesses(
            waiting(wait, 1_000), for: .seconds(100), waiting(wait, changed), clock: .seconds(5_000),
            prepare: { $0.publish(1, to: "streams/f") })
        #expect(entries.last?["output"] == [.string(wait.expected), 5_100], "\(short(entries))")
    }

    /// The end in `approval.requested` decides.
    @Test(arguments: [(1_000, 20, "applied"), (20, 1_000, "rejected approval_expired")])
    func `takes a decision until it was to end`(before: Int, after: Int, expected: String) throws {
        let entries = try twoProcesses(
            waiting(.approval, before), for: .milliseconds(100), waiting(.approval, after),
            then: { node in
                node.world.run(deadline: node.world.now.advanced(by: .seconds(25)))
                node.send(.approve, ("approval", .string("\(Offset(1).token)/pay")))
            })
        #expect(receipt(entries, of: "approve") == expected, "\(short(entries))")
    }
}

@Suite struct `A wait behind something outside the turn` {
    /// The replay comes to the wait again only after a while.
    @Test(arguments: Wait.allCases)
    private func `ends after a crash`(wait: Wait) throws {
        let entries = try twoProcesses(
            { turn, world in
                .array(
                    try await turn.map("m", [0, 1]) { item, turn -> JSON in
                        if item == 1 {
                            try await turn.step("b") { _ in await pause(world, .seconds(3)) }
                            return "b"
                        }
                        _ = try await turn.step("a") { _ in 1 }
                        await pause(world, .seconds(1))
                        return .string(try await wait.end(turn, after: .seconds(15)))
                    })
            }, for: .milliseconds(3_050), prepare: { $0.publish(1, to: "streams/f") })
        #expect(entries.last?["output"] == [.string(wait.expected), "b"], "\(short(entries))")
    }
}

@Suite struct `A clock that was set back` {
    @Test func `does not keep a sleep that came due while its turn was stalled`() throws {
        let entries = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 1)
            let right = agent { _, turn in
                try await turn.sleep(.seconds(100))
                return "slept"
            }
            let node = try SimulatedNode(first, SimulatedLog(), agents: [right])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let next = try SimulatedNode(
                world, node.log.reopen(), agents: [agent { _, turn in .integer(Int64(try await turn.step("new") { _ in 1 })) }])
            world.run(deadline: world.now.advanced(by: .seconds(200)))
            world.step(clock: .seconds(-180))
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            try next.runtime.declare([right])
            next.send(.resume)
            world.run(deadline: world.now.advanced(by: .seconds(36_000)))
            return try next.entries(name)
        }
        #expect(entries.contains { $0["type"] == "agent.stalled" })
        #expect(entries.last?["output"] == "slept", "\(short(entries))")
    }

    @Test func `does not keep an attempt for longer than the longest pause`() throws {
        let entries = try twoProcesses(
            { turn, _ in
                let attempt = try await turn.step("flaky") { context -> Int in
                    if context.attempt == 1 { throw StepFailure(code: "no", message: "no", retryable: true) }
                    return context.attempt
                }
                return .integer(Int64(attempt))
            }, for: .milliseconds(500), clock: .seconds(-30 * 86_400))
        #expect(entries.last?["output"] == 2, "\(short(entries))")
    }
}

@Suite struct `A wait of any length` {
    @Test(arguments: [Int64.max, Int64.max / 1_000, 0, -5, Int64.min / 1_000])
    func `can be interrupted, or has ended`(seconds: Int64) throws {
        let entries = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        try await turn.sleep(.seconds(seconds))
                        return .string(try await Wait.signal.end(turn, after: .seconds(seconds)))
                    }
                ])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            node.send(.interrupt)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            return try node.entries(name)
        }
        let end = entries.last { $0["type"]?.string?.hasPrefix("turn.") == true }
        #expect(end?["type"] == (seconds > 0 ? "turn.interrupted" : "turn.completed"), "\(short(entries))")
        #expect(seconds > 0 || end?["output"] == "wait_timeout")
    }
}
