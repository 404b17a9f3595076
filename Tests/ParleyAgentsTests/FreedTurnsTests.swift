import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private let name = "agents/probe/a"

/// Counts what programs hold that has not been freed.
private final class Count: Sendable {
    private let number = Atomic<Int>(0)
    var value: Int { number.load(ordering: .relaxed) }

    func hold() -> Held { Held(self) }

    /// Something that a program and its closures hold as long as they live.
    final class Held: Sendable {
        private let count: Count
        init(_ count: Count) {
            self.count = count
            count.number.add(1, ordering: .relaxed)
        }
        deinit { count.number.subtract(1, ordering: .relaxed) }
    }
}

/// An agent all of whose closures hold the turn.
private func holding(_ count: Count) -> AnyAgent {
    agent { text, turn in
        let held = count.hold()
        try turn.compensate("undo") { _ in
            _ = (held, turn.channel)
            if text == "stuck" { throw StepFailure(code: "no", message: "no way back", retryable: false) }
        }
        try await turn.step("do") { _ in _ = (held, turn.channel) }
        switch text {
        case "fail", "stuck": throw StepFailure(code: "full", message: "no seat left", retryable: false)
        case "wait": _ = try await turn.wait(for: "go")
        case "sleep": try await turn.sleep(.seconds(100))
        default: break
        }
        return .string(text)
    }
}

@Suite struct `What a turn holds` {
    /// Runs one turn to its end, or out of memory.
    private func left(_ text: String, then control: NewEntry? = nil, for seconds: Int64 = 90) throws -> Int {
        try SimulatedNode.simulate {
            let (world, count) = (SimulatedWorld(seed: 1), Count())
            let node = try SimulatedNode(world, SimulatedLog(), agents: [holding(count)])
            node.send(text, to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            if let control { node.send(control, to: name) }
            world.run(deadline: world.now.advanced(by: .seconds(seconds)))
            #expect(node.runtime.activeCount == 0)
            return count.value
        }
    }

    @Test(arguments: ["complete", "fail", "stuck", "wait", "sleep"])
    func `is freed when it ends or is passivated`(_ text: String) throws {
        #expect(try left(text) == 0)
    }

    @Test(arguments: [EntryKind.cancel, .interrupt])
    func `is freed when it is stopped`(_ kind: EntryKind) throws {
        #expect(try left("wait", then: NewEntry(kind, nil, ("by", "ann"))) == 0)
    }
}
