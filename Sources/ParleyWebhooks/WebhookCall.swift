package import ParleyHTTP
package import ParleySystem
internal import Synchronization

/// One attempt to deliver: a POST, and what its answer means.
package final class WebhookCall: OutgoingCallDelegate {
    package enum Outcome: Sendable, Equatable {
        /// Answered with 2xx, to the answer's end.
        case delivered
        /// Answered with 410: the receiver wants no more of it.
        case gone
        /// Anything else, with a reason that may be logged.
        case failed(reason: String, retryAfter: Duration?)
    }

    /// How long an attempt may take until the answer's end.
    package static let timeout = Duration.seconds(15)
    package static let connectTimeout = Duration.seconds(5)
    /// How much of an answer is read: to reuse the connection, or because the caller wants the answer.
    package static let answerBytesMax = 64 << 10

    private struct State {
        var status = 0
        var retryAfter: Duration?
        var received = 0
        var answer = Bytes()
        var call: (any OutgoingCall)?
        var deadline: (any Scheduled)?
        var done: (@Sendable (Outcome) -> Void)?

        var outcome: Outcome {
            switch status {
            case 200..<300: .delivered
            case 410: .gone
            default: .failed(reason: "status \(status)", retryAfter: retryAfter)
            }
        }
    }

    private let world: any World
    private let answer: (@Sendable (Bytes) -> Void)?
    private let state: Mutex<State>

    /// Starts a call of `url` by POST. The receiver is not followed anywhere else, and no proxy comes in between.
    ///
    /// - Parameters:
    ///   - addresses: The addresses that the receiver may have.
    ///   - answer: Called before `done` with the body of an answer with 2xx, unless that is longer than ``answerBytesMax``.
    ///   - done: Called once, on any thread, unless the call is cancelled.
    package init(
        _ transport: any OutgoingTransport, _ world: any World, url: String, headers: [(name: String, value: String)], body: Bytes,
        addresses: AddressPolicy, answer: (@Sendable (Bytes) -> Void)? = nil, done: @escaping @Sendable (Outcome) -> Void
    ) {
        self.world = world
        self.answer = answer
        state = Mutex(State(done: done))
        var request = OutgoingRequest(
            method: "POST", url: url,
            headers: [("Content-Type", "application/json"), ("User-Agent", Release.userAgent)] + headers, body: body)
        request.connectTimeout = WebhookCall.connectTimeout
        request.idleTimeout = WebhookCall.timeout
        request.addresses = addresses
        request.usesProxy = false
        let deadline = world.schedule(at: world.now.advanced(by: WebhookCall.timeout)) { [weak self] in
            self?.end(.failed(reason: "no whole answer within \(WebhookCall.timeout)", retryAfter: nil))
        }
        let call = transport.start(request, self)
        let isOver = state.withLock { state in
            guard state.done != nil else { return true }
            (state.call, state.deadline) = (call, deadline)
            return false
        }
        // It may have ended on the loop before it was stored here.
        if isOver {
            deadline.cancel()
            call.cancel()
        }
    }

    /// Breaks the call off; `done` is not called.
    package func cancel() { finish { _ in } }

    package func received(status: Int, headers: [(name: String, value: String)]) {
        let now = world.now
        state.withLock { ($0.status, $0.retryAfter) = (status, RetryAfter.parse(headers, now: now)) }
    }

    package func received(body: UnsafeRawBufferPointer) {
        let outcome = state.withLock { state -> Outcome? in
            state.received += body.count
            if answer != nil { state.answer += body }
            guard state.received > WebhookCall.answerBytesMax else { return nil }
            // An answer's end may contradict its beginning.
            state.answer = []
            return state.outcome
        }
        if let outcome { end(outcome) }
    }

    package func ended(_ error: OutgoingError?) {
        // A proxy may answer 2xx for a receiver that then fails, and half an answer asks for nothing. Any other status is sufficient by itself.
        let outcome = state.withLock { state in
            guard let error, state.status == 0 || state.outcome == .delivered else { return state.outcome }
            return .failed(reason: error.reason.isEmpty ? error.code : "\(error.code): \(error.reason)", retryAfter: nil)
        }
        end(outcome)
    }

    private func end(_ outcome: Outcome) {
        if let answer, outcome == .delivered { answer(state.withLock { $0.answer }) }
        finish { $0(outcome) }
    }

    private func finish(_ tell: (@Sendable (Outcome) -> Void) -> Void) {
        let (done, call, deadline) = state.withLock { state in
            defer { (state.done, state.call, state.deadline) = (nil, nil, nil) }
            return (state.done, state.call, state.deadline)
        }
        guard let done else { return }
        deadline?.cancel()
        call?.cancel()  // Without effect on one that has ended.
        tell(done)
    }
}
