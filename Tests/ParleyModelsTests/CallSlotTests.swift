import ParleyAgents
import ParleyHTTP
import ParleySystem
import Synchronization
import Testing

@testable import ParleyModels

@Suite struct `Calls of models at a time` {
    private func start(_ model: ChatCompletionsModel) -> (call: any ModelCall, sink: RecordingSink) {
        let sink = RecordingSink()
        return (model.start(ModelRequest(messages: [.user("Hello")]), sink), sink)
    }

    private func finish(_ call: FakeTransport.Call) {
        call.head()
        call.send(delta("Hi") + finishing() + done)
        call.end()
    }

    @Test func `are bounded, and the others wait in their order`() {
        let transport = FakeTransport()
        let model = ChatCompletionsModel.test(transport, slots: CallSlots(callsMax: 2))
        let calls = (0..<5).map { _ in start(model) }
        #expect(transport.calls.count == 2)
        finish(transport.calls[1])
        #expect(transport.calls.count == 3 && calls[1].sink.finish == "stop")
        // One that waits leaves the queue; one that runs gives its place to the next.
        calls[3].call.cancel()
        calls[0].call.cancel()
        #expect(transport.calls.count == 4)
        for call in transport.calls[2...] { finish(call) }
        #expect(calls.map { $0.sink.finish } == [nil, "stop", "stop", nil, "stop"])
        #expect(start(model).sink.events.isEmpty && transport.calls.count == 5)
    }

    @Test func `give their place back however they end`() {
        let slots = CallSlots(callsMax: 1)
        let ends: [@Sendable (FakeTransport.Call) -> Void] = [
            { $0.end(.init(code: "upstream_unreachable", message: "")) },
            {
                $0.head(500, [])
                $0.end()
            },
            {
                $0.head()
                $0.send("data: nonsense\n\n")
            },
            {
                $0.head()
                $0.send(delta("Hi") + finishing() + done)
            },
        ]
        for end in ends {
            let sink = start(ChatCompletionsModel.test(FakeTransport(end), slots: slots)).sink
            #expect(sink.finish != nil || sink.failure != nil)
        }
    }

    @Test func `that end at once do not go ever deeper`() {
        let transport = FakeTransport { self.finish($0) }
        let slots = CallSlots(callsMax: 1)
        let gate = FakeTransport()
        let first = start(ChatCompletionsModel.test(gate, slots: slots))
        let model = ChatCompletionsModel.test(transport, slots: slots)
        let waiting = (0..<5_000).map { _ in start(model) }
        #expect(transport.calls.isEmpty)
        first.call.cancel()
        #expect(transport.calls.count == 5_000 && waiting.allSatisfy { $0.sink.finish == "stop" })
    }

    @Test func `are refused aloud when too many wait`() {
        let transport = FakeTransport()
        let model = ChatCompletionsModel.test(transport, slots: CallSlots(callsMax: 1, waitingMax: 2))
        let calls = (0..<4).map { _ in start(model) }
        #expect(calls[3].sink.failure?.code == "model_busy" && calls[3].sink.failure?.retryable == true)
        #expect(calls[3].sink.failure?.message.contains("PARLEY_MODEL_CALLS") == true)
    }
}

@Suite struct `The time of a call` {
    @Test func `is over when nothing but signs of life comes`() {
        let (transport, world, sink) = (FakeTransport(), ManualWorld(), RecordingSink())
        _ = ChatCompletionsModel.test(transport, world: world).start(ModelRequest(messages: [.user("Hello")]), sink)
        let call = transport.calls[0]
        call.head()
        call.send(delta("Hal"))
        let began = world.now
        for minute in 1...30 where !call.isCancelled {
            world.schedule(at: began.advanced(by: .seconds(minute * 60))) { call.send(": ping\n\n") }
        }
        world.run()
        #expect(call.isCancelled)
        #expect(sink.failure?.code == "model_timeout" && sink.failure?.retryable == true && sink.text == "Hal")
    }

    @Test func `until its answer begins is not the time that a slow model's next piece has`() {
        let (transport, world, sink) = (FakeTransport(), ManualWorld(), RecordingSink())
        let model = ChatCompletionsModel.test(transport, world: world) { $0.firstByteTimeout = .seconds(3) }
        _ = model.start(ModelRequest(messages: [.user("Hello")]), sink)
        let call = transport.calls[0]
        call.head()
        let began = world.now
        for (second, text) in [(2, "slow "), (62, "and "), (122, "steady")] {
            world.schedule(at: began.advanced(by: .seconds(second))) { call.send(delta(text)) }
        }
        world.schedule(at: began.advanced(by: .seconds(180))) { call.send(finishing() + done) }
        world.run()
        #expect(sink.text == "slow and steady" && sink.finish == "stop")
    }

    @Test func `until its answer begins is counted without signs of life`() {
        let (transport, world, sink) = (FakeTransport(), ManualWorld(), RecordingSink())
        let model = ChatCompletionsModel.test(transport, world: world) { $0.firstByteTimeout = .seconds(3) }
        _ = model.start(ModelRequest(messages: [.user("Hello")]), sink)
        let call = transport.calls[0]
        call.head()
        let began = world.now
        for second in 1...60 { world.schedule(at: began.advanced(by: .seconds(second))) { call.send(": ping\n\n") } }
        world.schedule(at: began.advanced(by: .seconds(4))) { #expect(call.isCancelled) }
        world.run()
        #expect(sink.failure?.code == "model_timeout")
    }

    @Test func `continues as long as the answer does, behind a reason to finish as well`() {
        let (transport, world, sink) = (FakeTransport(), ManualWorld(), RecordingSink())
        _ = ChatCompletionsModel.test(transport, world: world).start(ModelRequest(messages: [.user("Hello")]), sink)
        let call = transport.calls[0]
        call.head()
        let began = world.now
        for minute in 0..<60 { world.schedule(at: began.advanced(by: .seconds(minute * 60))) { call.send(delta("x")) } }
        world.schedule(at: began.advanced(by: .seconds(3_600))) { call.send(finishing()) }
        for second in 1...9 { world.schedule(at: began.advanced(by: .seconds(3_600 + second))) { call.send(": ping\n\n") } }
        world.run()
        #expect(sink.text.count == 60 && sink.finish == "stop" && call.isCancelled)
    }

    @Test func `leaves no timer behind`() {
        let world = ManualWorld()
        let transport = FakeTransport {
            $0.head()
            $0.send(delta("Hi") + finishing() + done)
            $0.end()
        }
        let sink = RecordingSink()
        _ = ChatCompletionsModel.test(transport, world: world).start(ModelRequest(messages: [.user("Hello")]), sink)
        #expect(sink.finish == "stop" && world.timerCount == 0)
    }
}
