import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Sealing a model's text` {
    private static let tokens = ["The", " sea", " is", " wide", "."]

    /// A whole text without its seal looks cut off after a crash, and a model asked to continue from there adds what was never part of the answer.
    @Test func `no crash leaves the whole text in the log without the result that seals it`() throws {
        let endings = try SimulatedNode.simulate {
            try (0..<20).map { commit in
                let log = SimulatedLog(outcome: { number, _ in number == commit ? .durableUnacknowledged : .acknowledged })
                let world = SimulatedWorld(seed: 1)
                // Each submission a commit of its own: entries that were not submitted as one are not saved by having come at the same moment.
                var limits = GroupCommit.Limits()
                limits.commitSubmissions = 1
                let model = SteadyModel(tokens: `Sealing a model's text`.tokens, world: world)
                let writer = agent { text, turn in .string(try await turn.generate("answer", model, .user(text)).text) }
                SimulatedNode.send(to: try SimulatedNode(world, log, agents: [writer], limits: limits))
                world.run(deadline: world.now.advanced(by: .seconds(60)))
                let rest = try SimulatedNode(SimulatedWorld(seed: 2), log.reopen(), agents: [])
                let entries = try rest.entries("agents/probe/a")
                let text = entries.filter { $0["type"] == "text" }.compactMap { $0["delta"]?.string }.joined()
                return (crashed: log.crashed, text: text, isSealed: entries.contains { $0["type"] == "step.completed" })
            }
        }
        let whole = `Sealing a model's text`.tokens.joined()
        #expect(endings.contains { $0.crashed && !$0.text.isEmpty && $0.text != whole }, "no crash came in the middle of the text")
        #expect(endings.contains { $0.crashed && $0.text == whole })
        for ending in endings where ending.text == whole { #expect(ending.isSealed) }
    }
}

extension SimulatedNode {
    fileprivate static func send(to node: SimulatedNode) { node.send("hi", to: "agents/probe/a") }
}

/// Gives its tokens one by one.
private final class SteadyModel: Model {
    let name = "steady:"
    let continues = Continuation.prefix
    private let tokens: [String]
    private let world: any World

    init(tokens: [String], world: any World) { (self.tokens, self.world) = (tokens, world) }

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        let events = tokens.map { ModelEvent.text($0) } + [.finished(reason: "stop")]
        for (index, event) in events.enumerated() {
            world.schedule(at: world.now.advanced(by: .milliseconds(10 * (index + 1)))) { sink.received(event) }
        }
        return Call()
    }

    private final class Call: ModelCall {
        func cancel() {}
    }
}
