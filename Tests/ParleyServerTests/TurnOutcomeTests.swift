import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyServer

/// What those learn who wait for the turn of an input.
@Suite struct `The outcome of an input` {
    private static let name = "agents/probe/a"

    /// An agent whose turn waits, then asks a model, and says what ended it.
    private static func agent(_ world: SimulatedWorld, _ policy: ConcurrentInput) -> AnyAgent {
        let model = ScriptedModel(ScriptedModel.Options(), world: world)
        return AnyAgent(kind: "probe", policy: policy) { _, turn, _ in
            do { try await turn.sleep(.seconds(10)) } catch is Interrupted { return ("interrupted", [:]) }
            let answer = try await turn.generate("answer", model, .user("hello"))
            return (.integer(Int64(answer.steers.count)), [:])
        }
    }

    @Test(arguments: [(ConcurrentInput.interrupt, JSON.string("interrupted")), (.steer, 1)])
    func `that joins another turn is the end of that turn`(_ policy: ConcurrentInput, _ output: JSON) throws {
        let ends = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [Self.agent(world, policy)])
            node.send("first", to: Self.name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            let (ends, questions) = (RecordedEntries(), RecordedEntries.Questions())
            // Before it is decided, and once it is; what it waits for is yet to come.
            node.send("second", to: Self.name) { result in
                guard let offset = try? result.get().offsets.first.map(Offset.init) else { return }
                questions.add(node.runtime.outcome(of: offset, in: Self.name) { _, json in ends.add(json()) })
            }
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            questions.cancel()
            return ends.entries
        }
        #expect(ends.count == 1)
        #expect(ends.first?["type"] == "turn.completed" && ends.first?["turn"] == "0000000000000001")
        #expect(ends.first?["output"] == output)
    }
}

private final class RecordedEntries: Sendable {
    final class Questions: Sendable {
        private let all = Mutex<[any Scheduled]>([])

        func add(_ question: any Scheduled) { all.withLock { $0.append(question) } }
        func cancel() { for question in all.withLock({ $0 }) { question.cancel() } }
    }

    private let all = Mutex<[JSON]>([])

    var entries: [JSON] { all.withLock { $0 } }
    func add(_ entry: Bytes) { all.withLock { $0.append((try? JSON.parse(entry)) ?? .null) } }
}
