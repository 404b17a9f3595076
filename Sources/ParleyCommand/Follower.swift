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
        var events = Follower.events
        /// Entries whose control event has not come: after a break between the two they would be sent again.
        var pending: [Entry] = []
        /// Whether the data of this answer is in Base64.
        var isEncoded = false
        var content: Content
        /// The channel may hold another kind of content than JSON.
        var asksContent = false
    }

    /// The content of a channel.
    private enum Content { case unknown, json, text }

    /// A piece of a channel.
    enum Entry: Sendable {
        case json(JSON)
        /// An append to a channel of text, in pieces that may be cut anywhere.
        case text(Bytes)
    }

    private let client: Client
    private let channel: String
    private let path: String
    private let view: String?
    private let state: Mutex<State>
    private let say: @Sendable (TerminalText) -> Void
    private let take: @Sendable (Entry) -> Bool

    /// - Parameters:
    ///   - offset: Where to begin: an offset, `-1` for the start, `now` for the end offset.
    ///   - isReached: Whether the server has answered before. Without it a server that is not there is an error at once.
    ///   - say: Receives what is to be said of the connection.
    ///   - take: Receives each entry; returns false to stop following.
    init(
        _ client: Client, channel: String, from offset: String, view: String?, isReached: Bool = false,
        say: @escaping @Sendable (TerminalText) -> Void = { Terminal.error($0) }, _ take: @escaping @Sendable (Entry) -> Bool
    ) {
        (self.client, self.channel) = (client, channel)
        path = "/v1/stream/" + PercentEncoding.encode(channel, keeping: "/")
        self.view = view
        (self.say, self.take) = (say, take)
        state = Mutex(State(offset: offset, wasReached: isReached, content: channel.hasPrefix("agents/") ? .json : .unknown))
    }

    private static let patience = Duration.seconds(60)

    /// One append can have 10 MiB, and comes as one event: in Base64, or with its lines apart, that is more.
    private static var events: ServerSentEventParser { ServerSentEventParser(bytesMax: 64 << 20) }

    /// Follows until the channel ends or `take` returns false.
    ///
    /// A server that has answered and now asks for patience, because it stops or is overloaded, is asked again for as long as it says so.
    ///
    /// - Throws: when the server refuses (no such channel, say), does not answer at first, or cannot be reached for a minute later; and when the
    ///   channel holds neither JSON nor text.
    func run() throws {
        var waited = Duration.zero
        var pause = Duration.milliseconds(100)
        while true {
            let before = state.withLock { state in
                (state.events, state.pending, state.problem, state.asksContent) = (Follower.events, [], nil, false)
                return state.offset
            }
            var failure: (any Error)?
            do { try connect(before) } catch { failure = error }
            let state = state.withLock { $0 }
            if state.isEnded || state.isLeft { return }
            if state.asksContent {
                if try !learnContent() { Pause.wait(pause) }
                continue
            }
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

    /// Asks what the channel holds.
    ///
    /// - Returns: Whether that is known now. When it is not, the next connection tells why.
    private func learnContent() throws -> Bool {
        guard let answer = try? client.request("HEAD", path), answer.status == 200, let type = answer.header("Content-Type") else {
            return false
        }
        let base = type.prefix { $0 != ";" && $0 != " " }.lowercased()
        guard base == "application/json" || base.hasPrefix("text/") else {
            throw FollowError(
                "\(Refusal.name(channel)) holds \(type), which is neither JSON nor text. Read it with: curl \(client.curlOptions)'\(client.baseURL)\(path)?offset=-1' -o <file>"
            )
        }
        state.withLock { $0.content = base == "application/json" ? .json : .text }
        return true
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
                state.isEncoded = head.header("Stream-SSE-Data-Encoding") == "base64"
                state.asksContent = state.isEncoded && state.content == .unknown
                var continues = !state.asksContent
                do {
                    var events: [ServerSentEvent] = []
                    try bytes.withUnsafeBytes { buffer in try state.events.feed(buffer) { events.append($0) } }
                    for event in events where continues { continues = handle(event, &state) }
                } catch {
                    continues = false  // An event longer than any server sends: reconnect.
                }
                return continues
            }
        }
    }

    private func handle(_ event: ServerSentEvent, _ state: inout State) -> Bool {
        switch event.name {
        case "data" where state.content == .text:
            state.pending.append(.text(state.isEncoded ? Base64.decode(event.data.text) ?? [] : event.data))
        case "data":
            let entries = (try? JSON.parse(stored: event.data))?.array
            // Objects in an array are hardly text, and need no question. Text that looks like it has a line end behind it.
            let isClear = event.data.last == UInt8(ascii: "]") && entries?.allSatisfy { $0.members != nil } == true
            guard state.content == .json || isClear else {
                state.asksContent = true
                return false
            }
            state.pending += (entries ?? []).map { .json($0) }
        case "control":
            guard let json = try? JSON.parse(stored: event.data) else { return true }
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
    /// The server's, if it is a refusal of the server's.
    var code: String?

    init(_ description: String, exit: ExitStatus = .failed, code: String? = nil) {
        (self.description, self.exit, self.code) = (description, exit, code)
    }
}
