import ParleyAgents
import ParleyHTTP
import ParleySystem
import Synchronization
import Testing

@testable import ParleyModels

/// When an answer is over whose endpoint does not say `[DONE]`: a question of time, and of how the connection ends.
@Suite struct `The end of an answer` {
    /// A call whose upstream is played by hand, in a world that moves from timer to timer.
    final class Play: Sendable {
        let world = ManualWorld()
        let sink: RecordingSink
        private let transport = FakeTransport()
        private let endedAt: EndTime
        private let call: any ModelCall
        private let start: Timestamp

        final class EndTime: Sendable {
            let time = Mutex<Timestamp?>(nil)
        }

        init(headers: [(name: String, value: String)] = [("content-type", "text/event-stream")]) {
            let (world, endedAt) = (world, EndTime())
            (self.endedAt, start) = (endedAt, world.now)
            sink = RecordingSink { event in
                switch event {
                case .finished, .failed: endedAt.time.withLock { $0 = world.now }
                default: break
                }
            }
            call = ChatCompletionsModel.test(transport, world: world).start(ModelRequest(messages: [.user("Hello")]), sink)
            upstream.head(200, headers)
        }

        var upstream: FakeTransport.Call { transport.calls[0] }
        var seconds: Double? { endedAt.time.withLock { $0 }.map { start.duration(to: $0) / .seconds(1) } }

        /// Makes the upstream do something so many seconds from now.
        func after(_ seconds: Double, _ work: @escaping @Sendable (FakeTransport.Call) -> Void) {
            world.schedule(at: world.now.advanced(by: .milliseconds(Int64(seconds * 1_000)))) { [self] in work(upstream) }
        }

        func run() { world.run() }
    }

    func reasoned(_ text: String, _ reason: String = "stop") -> String {
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\(text)\"},\"finish_reason\":\"\(reason)\"}]}\n\n"
    }

    @Test func `is not put off by a reason that is repeated for ever`() {
        let play = Play()
        play.upstream.send(delta("Whole") + finishing())
        for second in 1...60 { play.after(Double(second)) { $0.send(finishing(second % 2 == 0 ? "stop" : "length")) } }
        play.run()
        #expect(play.sink.text == "Whole" && play.sink.finish != nil)
        #expect(play.seconds == 3)
        #expect(play.upstream.isCancelled)
    }

    @Test func `comes behind 64 KiB of reasons`() {
        let play = Play()
        play.upstream.send(delta("Whole"))
        for _ in 0..<2_000 { play.upstream.send(finishing()) }
        #expect(play.sink.finish == "stop", "without any time")
    }

    @Test(arguments: [
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\" \"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n", ": ping\n\n",
    ])
    func `is not put off by what changes nothing of it`(event: String) {
        let play = Play()
        play.upstream.send(delta("Whole") + finishing())
        for second in 1...60 { play.after(Double(second)) { $0.send(event) } }
        play.run()
        #expect(play.sink.text == "Whole" && play.sink.finish == "stop")
        #expect(play.seconds == 3)
    }

    @Test func `waits for pieces that come slowly, each with a reason`() {
        let play = Play()
        play.upstream.send(reasoned("Transfer "))
        play.after(4) { [self] in $0.send(reasoned("exactly ten")) }
        play.after(60) { [self] in $0.send(reasoned(" and no more.") + done) }
        play.run()
        #expect(play.sink.text == "Transfer exactly ten and no more." && play.sink.finish == "stop")
        #expect(play.seconds == 60)
    }

    @Test func `waits for the text behind a role that came with a reason`() {
        let play = Play()
        play.upstream.send("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":\"stop\"}]}\n\n")
        play.after(30) { [self] in $0.send(reasoned("Hi") + done) }
        play.run()
        #expect(play.sink.text == "Hi" && play.sink.finish == "stop")
    }

    @Test func `is taken for granted behind a single piece with a reason once nothing more has come for long`() {
        let play = Play()
        play.upstream.send(reasoned("Hi"))
        for second in 1...2_000 { play.after(Double(second)) { $0.send(": ping\n\n") } }
        play.run()
        #expect(play.sink.events == [.text("Hi"), .finished(reason: "stop")])
        #expect(play.seconds == 600)
        #expect(play.upstream.isCancelled)
    }

    @Test(arguments: [true, false]) func `is not taken for granted where reasons have been wrong, or inside an event`(isInside: Bool) {
        for timesOut in [true, false] {
            let play = Play()
            play.upstream.send(reasoned("Transfer ") + (isInside ? "data: {" : reasoned("ten")))
            if timesOut { play.upstream.end(OutgoingError(code: "upstream_timeout", message: "silent")) } else { play.run() }
            #expect(play.sink.failure?.code == "model_timeout" && play.sink.failure?.retryable == true)
        }
    }

    @Test func `is taken for granted where the transport is the one that waits`() {
        let play = Play()
        play.upstream.send(reasoned("Hi"))
        play.upstream.end(OutgoingError(code: "upstream_timeout", message: "silent"))
        #expect(play.sink.events == [.text("Hi"), .finished(reason: "stop")])
    }

    @Test func `comes three seconds behind a reason also where there was one before`() {
        let play = Play()
        play.upstream.send(delta("Let me look.") + finishing())
        let call =
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"look\",\"arguments\":\"{}\"}}]}}]}\n\n"
        play.after(1) { $0.send(call) }
        play.after(9) { $0.send(finishing("tool_calls")) }
        play.run()
        #expect(play.sink.finish == "tool_calls" && play.seconds == 12)
    }

    @Test(
        arguments: [
            ("upstream_encoding", nil), ("upstream_trailing_bytes", "stop"), ("upstream_closed", "stop"), (nil, "stop"),
        ] as [(String?, String?)])
    func `of something compressed is known when all of it has come out right`(code: String?, finish: String?) {
        let play = Play(headers: [("content-type", "text/event-stream"), ("content-encoding", "gzip")])
        play.upstream.send(delta("Hi") + finishing() + done)
        #expect(play.sink.finish == nil && play.sink.failure == nil)
        play.upstream.end(code.map { OutgoingError(code: $0, message: "") })
        #expect(play.sink.finish == finish)
        #expect(play.sink.failure?.code == (finish == nil ? "model_invalid_response" : nil))
    }

    @Test func `of something compressed is waited for no longer than usual`() {
        let play = Play(headers: [("content-type", "text/event-stream"), ("content-encoding", "gzip")])
        play.upstream.send(delta("Hi") + finishing() + done + delta("more"))
        play.run()
        #expect(play.sink.events == [.text("Hi"), .finished(reason: "stop")] && play.seconds == 3)
    }

    /// libcurl does not say that a compressed stream lacks its end.
    @Test(arguments: [[], [("transfer-encoding", "chunked")], [("content-length", "100")]] as [[(name: String, value: String)]])
    func `of something compressed needs more than the end of the connection where each piece has a reason`(
        framing: [(name: String, value: String)]
    ) {
        let play = Play(headers: [("content-type", "text/event-stream"), ("content-encoding", "gzip")] + framing)
        play.upstream.send(reasoned("Transfer ") + reasoned("ten"))
        play.upstream.end()
        #expect(play.sink.finish == (framing.isEmpty ? nil : "stop"))
    }
}
