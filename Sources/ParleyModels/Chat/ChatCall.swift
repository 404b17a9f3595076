internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// One call: waits for its place, passes what the transport brings through ``ChatStream`` and on to the sink.
///
/// A request that the endpoint refuses for a field that not every endpoint takes is sent once more without it: nothing has been bought then.
final class ChatCall: ModelCall {
    /// The endpoint of calls, and what they share.
    struct Endpoint: Sendable {
        var transport: any OutgoingTransport
        var world: any World
        var slots: CallSlots
        /// How long it may take until the answer begins, however many signs of life there are.
        var patience: Duration
        /// How long an answer that has begun may continue with nothing but signs of life.
        var silence: Duration
        /// How long is waited for what may follow the end of an answer.
        var grace: Duration
        /// The request as the endpoint takes it, by what is known of that now.
        var request: @Sendable () -> OutgoingRequest
        var stream: @Sendable () -> ChatStream
        /// Notes what a refusal says that the endpoint does not take: whether the request is worth sending again.
        var adapts: @Sendable (UpstreamError, StepFailure) -> Bool
        /// A failure as the step hears it.
        var failure: @Sendable (StepFailure, UpstreamError?) -> StepFailure
        /// Hears that the request was answered.
        var succeeded: @Sendable () -> Void
        var busy: StepFailure
    }

    private struct State {
        var stream: ChatStream
        var ticket: CallSlots.Ticket?
        var outgoing: (any OutgoingCall)?
        /// Ends the answer when what it waits for does not come.
        var alarm: (any Scheduled)?
        /// The answer is whole, and what may follow its end is waited for.
        var hasGrace = false
        /// Nothing is taken from the upstream, and nothing is expected of it.
        var isPaused = false
        var progress = 0
        var progressAt: Timestamp
        /// The sink has heard the end, or has cancelled.
        var isOver = false
        /// The transport has: there is nothing left to be closed.
        var hasEnded = false
        /// The events to be delivered, by whichever thread has begun to: the end may come from the alarm while a text comes from the transport.
        var events: ArraySlice<ModelEvent> = []
        var isTelling = false
        /// The answer ended by the alarm, so its connection would not end by itself.
        var endsByAlarm = false
        /// Counts the requests: once a request was sent again, further reports of the transport on the former one are ignored.
        var exchange = 0
    }

    /// The transport's side of one request.
    private final class Exchange: OutgoingCallDelegate {
        private let call: ChatCall
        private let number: Int

        init(_ call: ChatCall, _ number: Int) { (self.call, self.number) = (call, number) }

        func received(status: Int, headers: [(name: String, value: String)]) { call.received(number, status: status, headers: headers) }
        func received(body: UnsafeRawBufferPointer) { call.received(number, body: body) }
        func ended(_ error: OutgoingError?) { call.ended(number, error) }
    }

    private let state: Mutex<State>
    private let sink: any ModelSink
    private let endpoint: Endpoint

    init(_ endpoint: Endpoint, _ sink: any ModelSink) {
        (self.endpoint, self.sink) = (endpoint, sink)
        state = Mutex(State(stream: endpoint.stream(), progressAt: endpoint.world.now))
    }

    func begin() {
        guard let ticket = endpoint.slots.take({ [self] in send() }) else { return sink.received(.failed(endpoint.busy)) }
        let isOver = state.withLock {
            $0.ticket = ticket
            return $0.isOver
        }
        if isOver { ticket.leave() }
    }

    func cancel() { close() }

    func pause() {
        state.withLock { $0.isPaused = true }
        state.withLock { $0.outgoing }?.pause()
    }

    func resume() {
        let now = endpoint.world.now
        let outgoing = state.withLock { state in
            (state.isPaused, state.progressAt) = (false, now)
            return state.outgoing
        }
        outgoing?.resume()
    }

    // MARK: Sending

    private func send() {
        let exchange: Int? = state.withLock { state in
            guard !state.isOver else { return nil }
            state.exchange += 1
            (state.stream, state.hasEnded, state.progress) = (endpoint.stream(), false, 0)
            return state.exchange
        }
        guard let exchange else { return }
        let outgoing = endpoint.transport.start(endpoint.request(), Exchange(self, exchange))
        // The transport may be on another thread and have the end before this line.
        let isUseless = state.withLock { state in
            guard state.exchange == exchange else { return true }
            guard !state.hasEnded else { return false }
            if !state.isOver { state.outgoing = outgoing }
            return state.isOver
        }
        if isUseless { return outgoing.cancel() }
        if state.withLock({ $0.isPaused }) { outgoing.pause() }
    }

    // MARK: Events of the transport

    private func received(_ exchange: Int, status: Int, headers: [(name: String, value: String)]) {
        state.withLock { if $0.exchange == exchange { $0.stream.head(status: status, headers: headers) } }
        setAlarm(after: endpoint.patience)
    }

    private func received(_ exchange: Int, body: UnsafeRawBufferPointer) {
        deliver(exchange) { $0.body(body) }
        // Once more where something has followed the first end, such as a call.
        let grantsGrace = state.withLock { state in
            let hadGrace = state.hasGrace
            state.hasGrace = state.stream.isFinishing
            return !state.isOver && state.hasGrace && !hadGrace
        }
        if grantsGrace { setAlarm(after: endpoint.grace) }
    }

    private func ended(_ exchange: Int, _ error: OutgoingError?) {
        state.withLock { if $0.exchange == exchange { ($0.hasEnded, $0.outgoing) = (true, nil) } }
        let now = endpoint.world.now
        deliver(exchange) { $0.end(error, now: now) }
        state.withLock { $0.exchange == exchange ? $0.alarm.take() : nil }?.cancel()
    }

    private func deliver(_ exchange: Int? = nil, _ read: (inout ChatStream) -> [ModelEvent]) {
        let now = endpoint.world.now
        let tells = state.withLock { state in
            guard !state.isOver, exchange == nil || state.exchange == exchange else { return false }
            state.events += read(&state.stream)
            if state.stream.progress != state.progress { (state.progress, state.progressAt) = (state.stream.progress, now) }
            defer { state.isTelling = true }
            return !state.isTelling
        }
        guard tells else { return }
        while let event = nextEvent() { tell(event) }
    }

    /// Looked at before each event, because the sink may cancel on hearing the one before.
    private func nextEvent() -> ModelEvent? {
        state.withLock { state in
            if state.isOver { state.events = [] }
            state.isTelling = !state.events.isEmpty
            return state.events.popFirst()
        }
    }

    private func tell(_ event: ModelEvent) {
        switch event {
        case .failed(let failure):
            let refusal = state.withLock { $0.stream.refusal }
            if let refusal, endpoint.adapts(refusal, failure) { return sendAgain() }
            // A failure found in the stream leaves an upstream that would continue generating.
            close()
            sink.received(.failed(endpoint.failure(failure, refusal)))
        case .finished:
            finish()
            endpoint.succeeded()
            sink.received(event)
        default: sink.received(event)
        }
    }

    private func sendAgain() {
        let outgoing = state.withLock { state in
            state.exchange += 1
            return state.outgoing.take()
        }
        outgoing?.cancel()
        send()
    }

    // MARK: Time

    /// Looks after `wait` whether the answer has ended, or come any further.
    private func setAlarm(after wait: Duration) {
        let alarm = endpoint.world.schedule(at: endpoint.world.now.advanced(by: wait)) { [weak self] in self?.look() }
        let old = state.withLock { state -> (any Scheduled)? in
            // Over already: neither is wanted, unless a connection is left that ought to end by itself.
            if state.isOver && state.outgoing == nil { return alarm }
            defer { state.alarm = alarm }
            return state.alarm
        }
        old?.cancel()
    }

    private func look() {
        let now = endpoint.world.now
        let (isOver, isFinishing, progress, left) = state.withLock { state in
            let patience = state.stream.isFinishing ? endpoint.grace : state.progress > 0 ? endpoint.silence : endpoint.patience
            return (state.isOver, state.stream.isFinishing, state.progress, patience - state.progressAt.duration(to: now))
        }
        if isOver { return close() }
        if state.withLock({ $0.isPaused }) { return setAlarm(after: endpoint.silence) }
        // A clock that was set back makes it wait no longer than the whole time.
        guard left <= .zero else { return setAlarm(after: min(left, max(endpoint.patience, endpoint.silence))) }
        state.withLock { $0.endsByAlarm = true }
        // Text that has come since then is heard, and waited behind once more.
        deliver { $0.progress != progress ? [] : isFinishing ? $0.endGrace() : $0.stall() }
        guard state.withLock({ !$0.isOver && !$0.stream.isDone }) else { return }
        state.withLock { $0.endsByAlarm = false }
        setAlarm(after: isFinishing ? endpoint.grace : endpoint.silence)
    }

    // MARK: Over

    /// The answer has ended; its connection may do so by itself for a moment, so that it can be used again.
    private func finish() {
        if state.withLock({ $0.endsByAlarm }) { return close() }
        let (ticket, hasConnection) = state.withLock { state in
            state.isOver = true
            return (state.ticket.take(), state.outgoing != nil && !state.hasEnded)
        }
        ticket?.leave()
        if hasConnection { setAlarm(after: endpoint.grace) }
    }

    /// Lets no further event through, closes the connection and gives the place back.
    private func close() {
        let (outgoing, ticket, alarm) = state.withLock { state in
            state.isOver = true
            return (state.outgoing.take(), state.ticket.take(), state.alarm.take())
        }
        outgoing?.cancel()
        alarm?.cancel()
        ticket?.leave()
    }
}
