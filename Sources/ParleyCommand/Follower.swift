internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// Follows a channel over SSE, from an offset on, through every break of the connection: no entry is missed, none comes twice.
final class Follower: Sendable {
    private struct State {
        var offset: String
        var isEnded = false
        var isLeft = false
        /// The server has answered.
        var wasReached: Bool
        /// The loss of the connection has been said, and its return has not.
        var isLost = false
        /// A refusal.
        var problem: Client.Answer?
        var failures = 0
        var events = ServerSentEventParser()
        /// Entries whose control event has not come: after a break between the two they would come again.
        var pending: [JSON] = []
    }

    private let client: Client
    private let channel: String
    private let path: String
    private let view: String?
    private let state: Mutex<State>
    private let say: @Sendable (TerminalText) -> Void
    private let take: @Sendable (JSON) -> Bool

    /// - Parameters:
    ///   - offset: Where to begin: an offset, `-1` for the start, `now` for the end offset.
    ///   - isReached: Whether the server has answered before. Without it a server that is not there is an error at once.
    ///   - say: Receives what is to be said of the connection.
    ///   - take: Receives each entry; returns false to stop following.
    init(
        _ client: Client, channel: String, from offset: String, view: String?, isReached: Bool = false,
        say: @escaping @Sendable (TerminalText) -> Void = { Terminal.error($0) }, _ take: @escaping @Sendable (JSON) -> Bool
    ) {
        (self.client, self.channel) = (client, channel)
        path = "/v1/stream/" + PercentEncoding.encode(channel, keeping: "/")
        self.view = view
        (self.say, self.take) = (say, take)
        state = Mutex(State(offset: offset, wasReached: isReached))
    }

    private static let patience = Duration.seconds(60)

    /// Follows until the channel ends or `take` returns false.
    ///
    /// A server that has answered and now asks for patience, because it stops or is overloaded, is asked again for as long as it says so.
    ///
    /// - Throws: when the server refuses (no such channel, say), does not answer at first, or cannot be reached for a minute later.
    func run() throws {
        var waited = Duration.zero
        var pause = Duration.milliseconds(100)
        while true {
            let before = state.withLock { state in
                (state.events, state.pending, state.problem) = (ServerSentEventParser(), [], nil)
                return state.offset
            }
            var failure: (any Error)?
            do { try connect(before) } catch { failure = error }
            let state = state.withLock { $0 }
            if state.isEnded || state.isLeft { return }
            let isBusy = state.wasReached && state.problem.flatMap(Refusal.pause) != nil
            if let problem = state.problem, !isBusy { throw client.refusal(problem, of: channel, isAny: true) }
            if state.offset != before || isBusy { waited = .zero }
            if state.offset != before { pause = .milliseconds(100) }
            if !isBusy {
                guard let failure else { continue }
                guard state.wasReached, waited < Follower.patience else { throw failure }
            }
            if !state.isLost { sayLost(isBusy) }
            Pause.wait(pause)
            waited += pause
            pause = min(pause * 2, .seconds(2))
        }
    }

    private func sayLost(_ isBusy: Bool) {
        state.withLock { $0.isLost = true }
        say(
            isBusy
                ? "parley: the server at \(client.baseURL) is stopping or overloaded; retrying"
                : "parley: the connection to \(client.baseURL) is lost; retrying for a minute")
    }

    private func connect(_ offset: String) throws {
        let query = "?offset=\(offset)&live=sse" + (view.map { "&view=\($0)" } ?? "")
        try client.stream(path + query, headers: [("Accept", "text/event-stream")]) { [self] head, bytes in
            state.withLock { state in
                guard head.status == 200 else {
                    var problem = state.problem ?? head
                    problem.body += bytes
                    state.problem = problem
                    return true
                }
                if state.isLost { say("parley: connected again; nothing was missed") }
                (state.wasReached, state.isLost) = (true, false)
                var goesOn = true
                do {
                    var events: [ServerSentEvent] = []
                    try bytes.withUnsafeBytes { buffer in try state.events.feed(buffer) { events.append($0) } }
                    for event in events where goesOn { goesOn = handle(event, &state) }
                } catch {
                    goesOn = false  // An event longer than any server sends: connect anew.
                }
                return goesOn
            }
        }
    }

    private func handle(_ event: ServerSentEvent, _ state: inout State) -> Bool {
        guard let json = try? JSON.parse(event.data) else { return true }
        switch event.name {
        case "data": state.pending += json.array ?? []
        case "control":
            for entry in state.pending where !state.isLeft { state.isLeft = !take(entry) }
            state.pending = []
            if let offset = json["streamNextOffset"]?.string { state.offset = offset }
            state.isEnded = json["streamClosed"]?.bool == true
        default: break
        }
        return !state.isLeft && !state.isEnded
    }
}

struct FollowError: Error, CustomStringConvertible {
    var description: String
    var exit: ExitStatus
    init(_ description: String, exit: ExitStatus = .failed) { (self.description, self.exit) = (description, exit) }
}
