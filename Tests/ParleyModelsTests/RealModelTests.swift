import Foundation
import ParleyAgents
import ParleyHTTP
import ParleySystem
import Testing

@testable import ParleyModels

/// Runs the plumbing with a model that is not scripted. Start one with `Scripts/local-model.py` and set `PARLEY_TEST_MODEL_URL` to the address that
/// it prints.
@Suite(.serialized) final class `A real model` {
    let group = EventLoopGroup(count: 1, name: "client")
    let world = SystemWorld(threads: 1)

    deinit { group.stop() }

    func model() throws -> ChatCompletionsModel {
        let url = try #require(
            BaseURL(ProcessInfo.processInfo.environment["PARLEY_TEST_MODEL_URL"] ?? ""),
            "PARLEY_TEST_MODEL_URL is not set: run ./test, which starts the local model and sets it")
        let configuration = ChatCompletionsModel.Configuration(baseURL: url, model: "smollm2")
        return ChatCompletionsModel(configuration, transport: CurlTransport(group.next()), world: world, probes: ContinuationProbes())
    }

    func ask(_ text: String, tokens: Int, continuing: String? = nil) throws -> (text: String, usage: ModelUsage?, end: ModelEvent?) {
        let events = Monitor<[ModelEvent]>([])
        final class Sink: ModelSink {
            let events: Monitor<[ModelEvent]>
            init(_ events: Monitor<[ModelEvent]>) { self.events = events }
            func received(_ event: ModelEvent) { events.withLock(signalAll: true) { $0.append(event) } }
        }
        let options = ModelOptions(maxTokens: tokens, temperature: 0, seed: 7)
        let call = try model().start(ModelRequest(messages: [.user(text)], options: options, continuing: continuing), Sink(events))
        defer { withExtendedLifetime(call) {} }
        let heard = try #require(
            events.wait(timeout: .seconds(600)) { heard in
                if case .finished = heard.last { heard } else if case .failed = heard.last { heard } else { nil }
            })
        let words = heard.reduce("") { if case .text(let text) = $1 { $0 + text } else { $0 } }
        return (words, heard.compactMap { if case .usage(let usage) = $0 { usage } else { nil } }.last, heard.last)
    }

    @Test func `streams an answer with its usage`() throws {
        let (text, usage, end) = try ask("Say hello.", tokens: 12)
        #expect(text.contains("Hello"))
        #expect(usage?.outputTokens == 12 && (usage?.inputTokens ?? 0) > 0)
        #expect(end == .finished(reason: "length"))
    }

    @Test func `is found to continue, and does`() throws {
        let answer = Monitor<Bool?>(nil)
        try model().probeContinuation { found in answer.withLock(signalAll: true) { $0 = found } }
        #expect(answer.wait(timeout: .seconds(600)) { $0 } == true)

        let prefix = "one, two, three,"
        let rest = try ask("Count from one to ten in words.", tokens: 8, continuing: prefix)
        #expect(rest.text.hasPrefix(" four, five"))
        #expect(rest.usage?.outputTokens == 8, "only new tokens are counted")
    }

    @Test func `says why it refuses`() throws {
        let (_, _, end) = try ask(String(repeating: "word ", count: 5_000), tokens: 8)
        guard case .failed(let failure) = end else { return #expect(Bool(false), "\(String(describing: end))") }
        #expect(failure.code == "context_exceeded" && !failure.retryable)
        #expect(failure.message.contains("exceeds the available context size"))
    }
}
