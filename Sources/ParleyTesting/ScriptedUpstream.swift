internal import ParleyHTTP
package import ParleySystem

/// A model server over real HTTP in the test's own process, for tests that kill the real executable and want to know what it bought.
///
///     let upstream = try ScriptedUpstream()
///     upstream.behaviour.rate = 50
///     // run the executable with OPENAI_BASE_URL=upstream.baseURL and PARLEY_MODEL=openai:any
///     try upstream.wait("an answer in flight") { $0.last.map { $0.tokensSent > 10 } ?? false }
///
/// It speaks streaming Chat Completions, counts the tokens it generated, keeps the requests and stops generating when its client goes away.
package final class ScriptedUpstream: Sendable {
    /// One request and what became of it.
    package struct Record: Sendable {
        package enum Outcome: Sendable, Equatable {
            case running
            case finished
            /// The client closed the connection before the end.
            case abandoned
            /// Ended the way its ``Behaviour/Fault`` says.
            case broken
        }

        package var body: JSON
        package var idempotencyKey: String?
        package var authorization: String?
        /// Tokens that were generated, and so are paid for.
        package var tokensSent = 0
        package var outcome = Outcome.running
        /// The trailing assistant message, if there is one.
        package var prefix: String?
        /// The prefix is not the beginning of the upstream's own text: a client that mixes answers up.
        package var hasForeignPrefix = false
        package var startedAt: ContinuousClock.Instant
        package var endedAt: ContinuousClock.Instant?
    }

    private let core: ScriptedUpstreamCore
    private let group = EventLoopGroup(count: 1, name: "upstream")
    private let server: HTTPServer

    /// Starts to listen on a free port of the loopback interface.
    package init(_ behaviour: Behaviour = Behaviour()) throws {
        core = ScriptedUpstreamCore(behaviour)
        server = HTTPServer(on: group, handler: core)
        try server.start()
    }

    deinit { stop() }

    /// Closes everything; clients see their connections break.
    package func stop() {
        server.stop()
        group.stop()
    }

    /// For `OPENAI_BASE_URL`.
    package var baseURL: String { "http://127.0.0.1:\(server.port)/v1" }

    /// How requests are answered from now on.
    package var behaviour: Behaviour {
        get { core.state.withLock { $0.behaviour } }
        set { core.state.withLock { $0.behaviour = newValue } }
    }

    /// Answers the next requests so, one each, before ``behaviour`` counts again.
    package func next(_ behaviours: Behaviour...) { core.state.withLock { $0.next += behaviours } }

    /// The requests in the order in which they came.
    package var records: [Record] { core.state.withLock { $0.records } }

    /// All tokens generated so far.
    package var tokensGenerated: Int { records.reduce(0) { $0 + $1.tokensSent } }

    /// Waits until `isReached` holds for the records.
    ///
    /// - Throws: ``Missed``, which names `phase`.
    @discardableResult
    package func wait(_ phase: String, timeout: Duration = .seconds(20), _ isReached: ([Record]) -> Bool) throws -> [Record] {
        guard let records = core.state.wait(timeout: timeout, { isReached($0.records) ? $0.records : nil }) else {
            throw Missed(phase: phase, timeout: timeout)
        }
        return records
    }

    package struct Missed: Error, CustomStringConvertible {
        package var phase: String
        package var timeout: Duration
        package var description: String { "waited \(timeout) for: \(phase)" }
    }
}

/// The state of the upstream's loop. The upstream itself waits for that loop when it goes, so the loop must never be the last to hold it.
private final class ScriptedUpstreamCore: HTTPHandler {
    struct State {
        var behaviour: ScriptedUpstream.Behaviour
        var next: [ScriptedUpstream.Behaviour] = []
        var records: [ScriptedUpstream.Record] = []
    }

    let state: Monitor<State>

    init(_ behaviour: ScriptedUpstream.Behaviour) { state = Monitor(State(behaviour: behaviour)) }

    func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
        guard request.method == "POST", request.path == "/v1/chat/completions" else {
            return responder.respond(status: 404, body: Bytes(#"{"error":{"message":"no such path"}}"#.utf8))
        }
        guard let body = try? JSON.parse(request.body), body["stream"]?.bool == true else {
            return responder.respond(status: 400, body: Bytes(#"{"error":{"message":"expected JSON with stream: true"}}"#.utf8))
        }
        let (number, behaviour) = state.withLock(signalAll: true) { state in
            let behaviour = state.next.isEmpty ? state.behaviour : state.next.removeFirst()
            var record = ScriptedUpstream.Record(body: body, startedAt: .now)
            record.idempotencyKey = request.header("idempotency-key")
            record.authorization = request.header("authorization")
            state.records.append(record)
            return (state.records.count - 1, behaviour)
        }
        switch behaviour.fault {
        case .status(let status, let seconds):
            let headers =
                [(name: "Content-Type", value: "application/json")] + (seconds.map { [(name: "Retry-After", value: "\($0)")] } ?? [])
            responder.respond(status: status, headers: headers, body: Bytes(#"{"error":{"message":"broken on purpose"}}"#.utf8))
            update(number) { $0.outcome = .broken }
        case .plays(let played): play(played, number, responder)
        case .neverAnswers:
            responder.onClose = { self.update(number) { $0.outcome = .abandoned } }
        default: stream(ScriptedUpstream.Answer(to: body, behaviour), number, request.body.count, behaviour, responder)
        }
    }

    private func stream(
        _ answer: ScriptedUpstream.Answer, _ number: Int, _ inputBytes: Int, _ behaviour: ScriptedUpstream.Behaviour,
        _ responder: HTTPResponder
    ) {
        update(number) { ($0.prefix, $0.hasForeignPrefix) = (answer.prefix, answer.hasForeignPrefix) }
        let generation = Generation(
            answer, inputBytes: inputBytes, behaviour, responder.stream(headers: [("Content-Type", "text/event-stream")]))
        generation.run { tokens, outcome in
            self.update(number) { ($0.tokensSent, $0.outcome) = (tokens, outcome) }
        }
    }

    private func play(_ played: ScriptedUpstream.Behaviour.Played, _ number: Int, _ responder: HTTPResponder) {
        let headers = played.headers.map { (name: $0[0], value: $0[1]) }
        guard played.staysOpen || played.breaksOff else {
            responder.respond(status: played.status, headers: headers, body: played.body)
            return update(number) { $0.outcome = .finished }
        }
        let stream = responder.stream(status: played.status, headers: headers)
        stream.write(played.body)
        if played.breaksOff {
            // The body leaves before the connection is closed.
            stream.loop.schedule(after: .milliseconds(20)) { stream.abort() }
            return update(number) { $0.outcome = .broken }
        }
        let timer = stream.loop.schedule(after: .milliseconds(20), every: .milliseconds(20)) { stream.write(Bytes(": ping\n\n".utf8)) }
        stream.onClose = {
            timer.cancel()
            self.update(number) { $0.outcome = .abandoned }
        }
    }

    private func update(_ number: Int, _ change: (inout ScriptedUpstream.Record) -> Void) {
        state.withLock(signalAll: true) { state in
            change(&state.records[number])
            if state.records[number].outcome != .running, state.records[number].endedAt == nil { state.records[number].endedAt = .now }
        }
    }
}

/// One answer on its way out. Belongs to the connection's loop.
private final class Generation {
    private let answer: ScriptedUpstream.Answer
    private let behaviour: ScriptedUpstream.Behaviour
    private let inputBytes: Int
    private let stream: HTTPStream
    private var report: ((Int, ScriptedUpstream.Record.Outcome) -> Void)?
    private var sent = 0
    /// The second half of what was cut, for the next tick.
    private var held = Bytes()
    private var timer: LoopTimer?
    private var started = Duration.zero

    init(_ answer: ScriptedUpstream.Answer, inputBytes: Int, _ behaviour: ScriptedUpstream.Behaviour, _ stream: HTTPStream) {
        (self.answer, self.inputBytes, self.behaviour, self.stream) = (answer, inputBytes, behaviour, stream)
    }

    func run(_ report: @escaping (Int, ScriptedUpstream.Record.Outcome) -> Void) {
        self.report = report
        started = stream.loop.now
        stream.onClose = { self.end(.abandoned) }  // Held until the end, which lets go of it.
        let interval: Duration = behaviour.rate == 0 ? .milliseconds(1) : max(.milliseconds(1), .seconds(1) / behaviour.rate)
        timer = stream.loop.schedule(after: interval, every: interval) { self.tick() }
    }

    /// Writes the tokens that are due: counted from the start, so that late timers do not add up.
    private func tick() {
        let passed = (stream.loop.now - started) / .seconds(1)
        let due = behaviour.rate == 0 ? answer.tokens.count : min(answer.tokens.count, Int(passed * Double(behaviour.rate)))
        while sent < due {
            if isFaulty { return fail() }
            write(ScriptedUpstream.chunk(text: answer.tokens[sent], behaviour))
            sent += 1
            // One event a tick, because what is written in one tick is one send.
            if behaviour.splitsWrites { break }
        }
        report?(sent, .running)
        guard sent == answer.tokens.count else { return }
        if isFaulty { return fail() }
        stream.write(held + ScriptedUpstream.ending(answer, inputBytes: inputBytes, behaviour))
        stream.finish()
        end(.finished)
    }

    private var isFaulty: Bool {
        switch behaviour.fault {
        case .closes(let tokens), .stalls(let tokens), .garbage(let tokens), .errorEvent(let tokens): sent >= tokens
        case .none, .status, .neverAnswers, .plays: false
        }
    }

    private func fail() {
        switch behaviour.fault {
        case .stalls:
            // The connection stays, and its end is still heard.
            timer?.cancel()
            report?(sent, .running)
            return
        case .garbage: stream.write(held + ScriptedUpstream.event("<html>502 Bad Gateway</html>", behaviour))
        case .errorEvent: stream.write(held + ScriptedUpstream.event(#"{"error":{"message":"broken on purpose","code":503}}"#, behaviour))
        default:
            // The bytes written in this tick leave before the connection is closed.
            timer?.cancel()
            stream.write(held)
            stream.loop.schedule(after: .milliseconds(1)) {
                self.stream.abort()
                self.end(.broken)
            }
            return
        }
        stream.finish()
        end(.broken)
    }

    private func write(_ bytes: Bytes) {
        guard behaviour.splitsWrites else { return stream.write(bytes) }
        // Behind the first byte of a scalar of several, else in the middle.
        let cut = bytes.firstIndex { $0 >= 0xC0 }.map { $0 + 1 } ?? bytes.count / 2
        stream.write(held + bytes[..<cut])
        held = Bytes(bytes[cut...])
    }

    private func end(_ outcome: ScriptedUpstream.Record.Outcome) {
        timer?.cancel()
        timer = nil
        report?(sent, outcome)
        report = nil
    }
}
