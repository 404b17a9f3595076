package import ParleyAgents
package import ParleySystem
internal import Synchronization

/// A model whose answer follows from the prompt, streamed in simulated time; each call's text is recorded.
///
/// One that continues gives the same answer each time, from where it is asked to; one that does not gives another answer with every call.
/// An answer has characters of several bytes, and white space wherever it may be cut.
package final class SimulatedModel: Model {
    package let name: String
    package let continues: Continuation
    private let world: any World
    private let record: SimulationRecord

    package init(continuesPrefix: Bool, world: any World, record: SimulationRecord) {
        name = "simulated:\(continuesPrefix ? "prefix" : "restart")"
        continues = continuesPrefix ? .prefix : .no
        self.world = world
        self.record = record
    }

    package func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        let key = request.idempotencyKey ?? ""
        let prompt = request.messages.last?.text ?? ""
        let call = record.modelCalled(
            SimulationHistory.ModelCall(
                key: key, continuing: request.continuing ?? "",
                messages: request.messages.map { "\($0.role.rawValue): \($0.text)" }, at: world.now))
        var random = SplitMix64(seed: prompt.utf8.reduce(continues == .prefix ? 0 : UInt64(call.ofKey)) { $0 &* 31 &+ UInt64($1) })
        let answer = SimulatedModel.answer(&random)
        let left = Substring(answer.joined().dropFirst(request.continuing?.count ?? 0))
        let failsAfter = call.ofKey == 1 && random.next() % 4 == 0 ? Int(random.next() % 4) : nil
        let stream = SimulatedModelCall(
            pieces: SimulatedModel.pieces(String(left), &random), calls: SimulatedModel.calls(request), failsAfter: failsAfter,
            reasons: continues == .no && random.next() % 3 == 0, index: call.index,
            sink: sink, world: world, record: record)
        stream.next(after: 0)
        return stream
    }

    /// The tools that the answer calls: the same for the same request.
    private static func calls(_ request: ModelRequest) -> [ToolCall] {
        let results = request.messages.count { $0.role == .tool }
        guard !request.tools.isEmpty, results < 5 else { return [] }
        let text = request.messages.last { $0.role == .user }?.text ?? ""
        var random = SplitMix64(seed: text.utf8.reduce(UInt64(results) + 1) { $0 &* 31 &+ UInt64($1) })
        guard random.next() % 5 < 3 else { return [] }
        return (0..<Int(1 + random.next() % 2)).map { number in
            let tool = request.tools[Int(random.next() % UInt64(request.tools.count))].name
            return ToolCall(id: "call\(results + number)", name: tool, arguments: "{\"number\":\(random.next() % 40)}")
        }
    }

    private static func answer(_ random: inout SplitMix64) -> [String] {
        let words = ["river", "Straße", "über", "日本", "a", "🙂", "and", "the", "\n\n", "end."]
        return (0..<Int.random(in: 0...24, using: &random)).map { _ in
            words.randomElement(using: &random)! + (Bool.random(using: &random) ? " " : "  ")
        }
    }

    /// Cuts a text anywhere between characters, as models do.
    private static func pieces(_ text: String, _ random: inout SplitMix64) -> [String] {
        var pieces: [String] = []
        var rest = text[...]
        while !rest.isEmpty {
            let count = Int.random(in: 1...7, using: &random)
            pieces.append(String(rest.prefix(count)))
            rest = rest.dropFirst(count)
        }
        return pieces
    }
}

/// One answer on its way.
private final class SimulatedModelCall: ModelCall, Sendable {
    private let pieces: [String]
    private let calls: [ToolCall]
    private let failsAfter: Int?
    private let reasons: Bool
    private let index: Int
    private let sink: any ModelSink
    private let world: any World
    private let record: SimulationRecord
    private let isCancelled = Atomic<Bool>(false)

    init(
        pieces: [String], calls: [ToolCall], failsAfter: Int?, reasons: Bool, index: Int, sink: any ModelSink, world: any World,
        record: SimulationRecord
    ) {
        self.pieces = pieces
        self.calls = calls
        self.failsAfter = failsAfter
        self.reasons = reasons
        self.index = index
        self.sink = sink
        self.world = world
        self.record = record
    }

    func cancel() { isCancelled.store(true, ordering: .relaxed) }

    func next(after count: Int) {
        // Some pieces come together, as they do from a network.
        let pause = world.random() % 3 == 0 ? 0 : Int(world.random() % 12)
        world.schedule(at: world.now.advanced(by: .milliseconds(pause))) { self.give(count) }
    }

    private func give(_ count: Int) {
        guard !isCancelled.load(ordering: .relaxed) else { return }
        if reasons && count == 0 { sink.received(.reasoning("thinking")) }
        if count == failsAfter {
            sink.received(.failed(StepFailure(code: "model_unavailable", message: "the model went away", retryable: true)))
        } else if count == pieces.count {
            record.modelFinished(index)
            for (number, call) in calls.enumerated() {
                sink.received(.toolCall(index: number, id: call.id, name: call.name, arguments: String(call.arguments.prefix(4))))
                sink.received(.toolCall(index: number, id: nil, name: nil, arguments: String(call.arguments.dropFirst(4))))
            }
            sink.received(.usage(ModelUsage(inputTokens: 1, outputTokens: count)))
            sink.received(.finished(reason: calls.isEmpty ? "stop" : "tool_calls"))
        } else {
            record.modelGenerated(index, pieces[count])
            sink.received(.text(pieces[count]))
            next(after: count + 1)
        }
    }
}
