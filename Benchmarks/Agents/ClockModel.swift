import Glibc
import Parley
import ParleySystem
import Synchronization

/// A model whose tokens are the time: `@T` and sixteen hexadecimal digits of the monotonic clock, in nanoseconds.
struct ClockModel: Model {
    let speech: Speech

    var name: String { "clock:" }
    var continues: Continuation { .no }

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall { Pacer.shared.add(speech, sink) }
}

/// One thread that says the tokens of all calls, each at its time: a source of tokens that costs next to nothing.
final class Pacer: Sendable {
    static let shared = Pacer()

    private struct State {
        var calls: [ClockCall] = []
        var hasNew = false
    }

    private let state = Monitor(State())

    private init() {
        var thread = pthread_t()
        pthread_create(&thread, nil, { _ in Pacer.shared.run() }, nil)
    }

    func add(_ speech: Speech, _ sink: any ModelSink) -> ClockCall {
        let call = ClockCall(speech, sink)
        state.withLock(signal: true) { state in
            state.calls.append(call)
            state.hasNew = true
        }
        return call
    }

    private func run() -> Never {
        while true {
            let calls = state.withLock { state in
                state.hasNew = false
                return state.calls
            }
            let now = Clock.now
            var next = now + 1_000_000_000
            let ended = calls.filter { call in
                guard let due = call.sayDue(now) else { return true }
                next = min(next, due)
                return false
            }
            if !ended.isEmpty { state.withLock { $0.calls.removeAll { call in ended.contains { $0 === call } } } }
            let wait = next - min(next, Clock.now)
            _ = state.wait(timeout: .nanoseconds(Int64(wait))) { $0.hasNew ? true : nil }
        }
    }
}

/// An answer being said: token by token, each at its time from the start.
final class ClockCall: ModelCall {
    private let speech: Speech
    private let sink: any ModelSink
    private let started = Clock.now
    private let said = Atomic(0)
    private let isCancelled = Atomic(false)

    init(_ speech: Speech, _ sink: any ModelSink) { (self.speech, self.sink) = (speech, sink) }

    func cancel() { isCancelled.store(true, ordering: .relaxed) }

    /// Says what is due.
    /// - Returns: When the next token is due; `nil` when there is none.
    func sayDue(_ now: UInt64) -> UInt64? {
        while !isCancelled.load(ordering: .relaxed) {
            let count = said.load(ordering: .relaxed)
            guard count < speech.tokens else {
                sink.received(.finished(reason: "stop"))
                return nil
            }
            let due = started + UInt64(count + 1) * 1_000_000_000 / UInt64(speech.rate)
            if due > now { return due }
            said.store(count + 1, ordering: .relaxed)
            sink.received(.text(Clock.mark))
        }
        return nil
    }
}

private enum Clock {
    static var now: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    static var mark: String {
        let digits = String(now, radix: 16)
        return "@T" + String(repeating: "0", count: 16 - digits.count) + digits
    }
}
