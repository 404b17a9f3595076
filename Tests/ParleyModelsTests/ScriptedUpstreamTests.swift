import ParleyAgents
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

@testable import ParleyModels

/// The Chat Completions client over libcurl against a model server over real HTTP.
@Suite final class `A model server over HTTP` {
    let group = EventLoopGroup(count: 1, name: "client")
    let world = SystemWorld(threads: 1)

    deinit { group.stop() }

    func model(_ upstream: ScriptedUpstream, continues: Continuation = .prefix, idle: Duration = .seconds(20)) -> ChatCompletionsModel {
        var configuration = ChatCompletionsModel.Configuration(
            baseURL: BaseURL(upstream.baseURL)!, apiKey: "key", model: "any", continues: continues)
        (configuration.idleTimeout, configuration.firstByteTimeout) = (idle, idle)
        return ChatCompletionsModel(
            configuration, transport: CurlTransport(group.next()), world: world, probes: ContinuationProbes(), habits: EndpointHabits())
    }

    func ask(_ model: ChatCompletionsModel, continuing: String? = nil, maxTokens: Int? = nil) throws -> [ModelEvent] {
        let sink = WaitingSink()
        let request = ModelRequest(
            messages: [.user("Go")], options: ModelOptions(maxTokens: maxTokens), continuing: continuing, idempotencyKey: "k")
        let call = model.start(request, sink)
        defer { withExtendedLifetime(call) {} }
        return try sink.end()
    }

    func text(_ events: [ModelEvent]) -> String { events.reduce("") { if case .text(let text) = $1 { $0 + text } else { $0 } } }

    func failure(_ events: [ModelEvent]) throws -> StepFailure {
        let failure: StepFailure? = if case .failed(let failure) = events.last { failure } else { nil }
        return try #require(failure)
    }

    func behaviour(_ change: (inout ScriptedUpstream.Behaviour) -> Void) -> ScriptedUpstream.Behaviour {
        var behaviour = ScriptedUpstream.Behaviour()
        (behaviour.tokens, behaviour.rate) = (30, 0)
        change(&behaviour)
        return behaviour
    }

    @Test(arguments: [(0, "\n", false), (2000, "\n", false), (0, "\r\n", false), (1000, "\n", true), (1000, "\r\n", true)])
    func `is heard to its end`(rate: Int, lineEnd: String, splits: Bool) throws {
        let upstream = try ScriptedUpstream(behaviour { ($0.rate, $0.lineEnd, $0.splitsWrites) = (rate, lineEnd, splits) })
        let events = try ask(model(upstream))
        #expect(text(events) == ScriptedUpstream.text(tokens: 30))
        #expect(events.last == .finished(reason: "stop"))
        let record = try #require(try upstream.wait("the end of the record") { $0.last?.outcome == .finished }.first)
        #expect(record.tokensSent == 30 && upstream.tokensGenerated == 30)
        #expect(record.idempotencyKey == "k" && record.authorization == "Bearer key" && record.body["model"] == "any")
    }

    @Test func `may leave out [DONE] and the usage`() throws {
        let upstream = try ScriptedUpstream(behaviour { ($0.sendsDone, $0.sendsUsage) = (false, false) })
        let events = try ask(model(upstream))
        #expect(events.count == 31 && events.last == .finished(reason: "stop"))
    }

    @Test func `continues from a prefix`() throws {
        let upstream = try ScriptedUpstream(behaviour { _ in })
        let whole = ScriptedUpstream.text(tokens: 30)
        for count in [1, 2, 9, 10, 11, 30] {
            let prefix = String(ScriptedUpstream.text(tokens: count).reversed().drop(while: \.isWhitespace).reversed())
            #expect(prefix + text(try ask(model(upstream), continuing: prefix)) == whole)
        }
        #expect(upstream.records.allSatisfy { !$0.hasForeignPrefix })
        #expect(text(try ask(model(upstream), continuing: "é0 é1 é")) == String(whole.dropFirst(7)))
        #expect(text(try ask(model(upstream), continuing: "é1")) == "")
        #expect(upstream.records.last?.hasForeignPrefix == true)
        #expect(
            try ask(model(upstream), continuing: "é0", maxTokens: 2).filter { if case .usage = $0 { false } else { true } } == [
                .text(" é1"), .text(" é2"), .finished(reason: "length"),
            ])
    }

    @Test(arguments: [true, false]) func `is probed`(continues: Bool) throws {
        let upstream = try ScriptedUpstream(behaviour { $0.continues = continues })
        let answer = Monitor<Bool?>(nil)
        model(upstream, continues: .auto).probeContinuation { found in answer.withLock(signalAll: true) { $0 = found } }
        #expect(answer.wait(timeout: .seconds(20)) { $0 } == continues)
    }

    @Test(
        arguments: [
            (.status(429, retryAfter: 3), 0, "model_rate_limited"), (.status(500), 0, "model_unavailable"),
            (.closes(afterTokens: 7), 7, "upstream_closed"),
            (.garbage(afterTokens: 7), 7, "model_invalid_response"), (.errorEvent(afterTokens: 7), 7, "model_unavailable"),
            (.stalls(afterTokens: 7), 7, "model_timeout"),
            (.neverAnswers, 0, "model_timeout"), (.closes(afterTokens: 30), 30, "upstream_closed"),
        ] as [(ScriptedUpstream.Behaviour.Fault, Int, String)])
    func `can be broken in every way`(fault: ScriptedUpstream.Behaviour.Fault, tokens: Int, code: String) throws {
        let upstream = try ScriptedUpstream(behaviour { _ in })
        upstream.next(behaviour { ($0.fault, $0.rate) = (fault, 500) })
        let events = try ask(model(upstream, idle: .milliseconds(400)))
        #expect(text(events) == ScriptedUpstream.text(tokens: tokens))
        let failure = try failure(events)
        #expect(failure.code == code)
        #expect(failure.retryAfter == (code == "model_rate_limited" ? .seconds(3) : nil))
        #expect(text(try ask(model(upstream))) == ScriptedUpstream.text(tokens: 30), "only the next request is broken")
    }

    @Test func `that is not there is unreachable`() throws {
        let upstream = try ScriptedUpstream()
        let model = model(upstream)
        upstream.stop()
        let failure = try failure(try ask(model))
        #expect(failure.code == "model_unreachable" && failure.message.contains(upstream.baseURL))
    }

    @Test func `stops generating when the call is cancelled`() throws {
        let upstream = try ScriptedUpstream(behaviour { ($0.tokens, $0.rate) = (10_000, 200) })
        let sink = WaitingSink()
        let call = model(upstream).start(ModelRequest(messages: [.user("Go")]), sink)
        try sink.wait("five tokens") { $0.count >= 5 }
        let cancelled = ContinuousClock.now
        call.cancel()
        let record = try #require(try upstream.wait("the client's leaving") { $0.last?.outcome == .abandoned }.first)
        #expect(try #require(record.endedAt) - cancelled < .seconds(1))
        #expect(record.tokensSent < 300)
        #expect(upstream.tokensGenerated == record.tokensSent)
    }
}
