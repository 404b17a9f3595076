import ParleyAgents
import ParleyHTTP
import ParleySystem
import Synchronization
import Testing

@testable import ParleyModels

/// An upstream in memory: it keeps the requests and plays what a test tells it to, on the test's own thread.
final class FakeTransport: OutgoingTransport {
    final class Call: OutgoingCall {
        let request: OutgoingRequest
        private let delegate: any OutgoingCallDelegate
        private let cancelled = Mutex(false)

        init(_ request: OutgoingRequest, _ delegate: any OutgoingCallDelegate) { (self.request, self.delegate) = (request, delegate) }

        func cancel() { cancelled.withLock { $0 = true } }
        var isCancelled: Bool { cancelled.withLock { $0 } }
        var body: JSON { (try? JSON.parse(request.body)) ?? .null }
        func header(_ name: String) -> String? { request.headers.first { $0.name == name }?.value }

        func head(_ status: Int = 200, _ headers: [(name: String, value: String)] = [("content-type", "text/event-stream")]) {
            delegate.received(status: status, headers: headers)
        }

        func send(_ text: String) { send(Bytes(text.utf8)) }
        /// Sends as the real transport does: it is silent after a cancel.
        func send(_ bytes: Bytes) { if !isCancelled { bytes.withUnsafeBytes { delegate.received(body: $0) } } }
        func end(_ error: OutgoingError? = nil) { if !isCancelled { delegate.ended(error) } }
    }

    private let made = Mutex<[Call]>([])
    private let script: (@Sendable (Call) -> Void)?

    /// - Parameter script: The upstream's answer to each call, inside `start`; without it the test plays by hand.
    init(_ script: (@Sendable (Call) -> Void)? = nil) { self.script = script }

    var calls: [Call] { made.withLock { $0 } }

    func start(_ request: OutgoingRequest, _ delegate: any OutgoingCallDelegate) -> any OutgoingCall {
        let call = Call(request, delegate)
        made.withLock { $0.append(call) }
        script?(call)
        return call
    }
}

/// Keeps what a model said.
final class RecordingSink: ModelSink {
    private let heard = Mutex<[ModelEvent]>([])
    private let onEvent: @Sendable (ModelEvent) -> Void

    init(_ onEvent: @escaping @Sendable (ModelEvent) -> Void = { _ in }) { self.onEvent = onEvent }

    func received(_ event: ModelEvent) {
        heard.withLock { $0.append(event) }
        onEvent(event)
    }

    var events: [ModelEvent] { heard.withLock { $0 } }
    var text: String { events.reduce("") { if case .text(let text) = $1 { $0 + text } else { $0 } } }
    var failure: StepFailure? { if case .failed(let failure) = events.last { failure } else { nil } }
    var finish: String? { if case .finished(let reason) = events.last { reason } else { nil } }
}

/// A sink to wait at.
final class WaitingSink: ModelSink {
    private let heard = Monitor<[ModelEvent]>([])

    func received(_ event: ModelEvent) { heard.withLock(signalAll: true) { $0.append(event) } }

    @discardableResult
    func wait(_ phase: String, _ isReached: ([ModelEvent]) -> Bool) throws -> [ModelEvent] {
        try #require(heard.wait(timeout: .seconds(20)) { isReached($0) ? $0 : nil }, "\(phase)")
    }

    func end() throws -> [ModelEvent] {
        try wait("end of the call") { if case .finished = $0.last { true } else if case .failed = $0.last { true } else { false } }
    }
}

/// A world whose clock stands still until a test moves it.
final class ManualWorld: World {
    private struct Timer {
        var due: Timestamp
        var work: @Sendable () -> Void
    }
    private struct State {
        var now: Timestamp
        var randomState: UInt64 = 1
        var nextTimer = 0
        var timers: [Int: Timer] = [:]
        var ready: [@Sendable () -> Void] = []
    }
    private struct Handle: Scheduled {
        let world: ManualWorld
        let number: Int
        func cancel() { world.state.withLock { _ = $0.timers.removeValue(forKey: number) } }
    }

    private let state: Mutex<State>

    init(now: Timestamp = Timestamp("2026-01-31T09:30:00Z")!) { state = Mutex(State(now: now)) }

    var now: Timestamp { state.withLock { $0.now } }
    var timerCount: Int { state.withLock { $0.timers.count } }

    func random() -> UInt64 {
        state.withLock {
            $0.randomState += 1
            return $0.randomState
        }
    }

    @discardableResult
    func schedule(at instant: Timestamp, _ work: @escaping @Sendable () -> Void) -> any Scheduled {
        state.withLock {
            $0.nextTimer += 1
            $0.timers[$0.nextTimer] = Timer(due: instant, work: work)
            return Handle(world: self, number: $0.nextTimer)
        }
    }

    func perform(lane: UInt64, _ work: @escaping @Sendable () -> Void) { state.withLock { $0.ready.append(work) } }

    func perform(blocking use: BlockingUse, for owner: UInt64, _ work: @escaping @Sendable () -> Void) { perform(lane: 0, work) }

    /// Runs one piece of work: a ready one, or the next timer with the clock moved to it. `false` when nothing is left.
    @discardableResult
    func step() -> Bool {
        let work: (@Sendable () -> Void)? = state.withLock { state in
            if !state.ready.isEmpty { return state.ready.removeFirst() }
            guard let next = state.timers.min(by: { ($0.value.due, $0.key) < ($1.value.due, $1.key) }) else { return nil }
            state.timers[next.key] = nil
            state.now = max(state.now, next.value.due)
            return next.value.work
        }
        work?()
        return work != nil
    }

    func run() { while step() {} }
}

extension ChatCompletionsModel {
    static let testKey = "sk-test-0123456789abcdef"

    static func test(
        _ transport: FakeTransport, world: ManualWorld = ManualWorld(), continues: Continuation = .prefix,
        probes: ContinuationProbes = ContinuationProbes(), habits: EndpointHabits = EndpointHabits(), slots: CallSlots = CallSlots(),
        _ change: (inout Configuration) -> Void = { _ in }
    ) -> ChatCompletionsModel {
        var configuration = Configuration(
            baseURL: BaseURL("http://user:secret@model.test:8080/v1/")!, apiKey: testKey, model: "m1", continues: continues)
        change(&configuration)
        return ChatCompletionsModel(configuration, transport: transport, world: world, probes: probes, habits: habits, slots: slots)
    }
}

/// One `data:` event with a text delta.
func delta(_ text: String) -> String {
    let chunk: JSON = ["choices": [["index": 0, "delta": ["content": .string(text)], "finish_reason": .null]]]
    return "data: \(chunk.text)\n\n"
}

func finishing(_ reason: String = "stop") -> String {
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"\(reason)\"}]}\n\n"
}
let done = "data: [DONE]\n\n"
