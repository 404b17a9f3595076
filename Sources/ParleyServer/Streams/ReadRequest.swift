internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// The query of a GET, checked.
struct ReadRequest: Sendable {
    enum Start: Sendable, Equatable {
        case after(Offset)
        /// The tail as it is when the request is answered.
        case now

        /// The offset that must exist for it.
        var offset: UInt64 { if case .after(let offset) = self { offset.value } else { 0 } }
    }

    enum Mode: String, Sendable {
        case catchUp = ""
        case longPoll = "long-poll"
        case sse
    }

    let start: Start
    let mode: Mode
    let view: View
    let whenBehind: WhenBehind
    let cursor: UInt64?
    /// An entry that the reader has written, or been told of, must be there: the answer waits for it, for a while.
    let minOffset: Offset?
    /// For 304 answers.
    let ifNoneMatch: [String]

    /// - Throws: 400 `invalid_offset`, `missing_offset`, `invalid_live`, `invalid_view` or `invalid_behind`.
    init(_ request: HTTPRequest, isAgent: Bool) throws(Problem) {
        let items = request.query == nil ? [] : request.queryItems
        let live = items.first { $0.name == "live" }?.value
        guard let mode = live.map({ Mode(rawValue: $0) }) ?? .catchUp, live != "" else {
            throw .bad("invalid_live", "live is '\(live ?? "")'; expected long-poll or sse.")
        }
        self.mode = mode
        let lastEvent = mode == .sse ? ReadRequest.lastEvent(of: request, items) : nil
        let offsets = items.filter { $0.name == "offset" }.map(\.value)
        guard offsets.count <= 1 else { throw .bad("invalid_offset", "offset is given \(offsets.count) times; expected once.") }
        if let lastEvent {
            start = .after(lastEvent)
        } else if let offset = offsets.first {
            start = try ReadRequest.start(offset)
        } else {
            guard mode == .catchUp else {
                throw .bad(
                    "missing_offset",
                    "offset is missing, and live=\(mode.rawValue) needs one. Send offset=-1 to read from the start, offset=now for what comes from here on, or the Stream-Next-Offset of an earlier answer: \(request.path)?offset=-1&live=\(mode.rawValue)"
                )
            }
            start = .after(.start)
        }
        view = isAgent ? try ReadRequest.view(items.first { $0.name == "view" }?.value) : .raw
        whenBehind = isAgent ? try ReadRequest.whenBehind(items.first { $0.name == "behind" }?.value) : .park
        minOffset = try items.first { $0.name == "min_offset" }.map { item throws(Problem) in
            guard let offset = Offset(token: item.value) else {
                throw .bad(
                    "invalid_min_offset",
                    "min_offset is '\(item.value.prefix(64))', not an offset of this server; expected a Stream-Next-Offset that it gave out."
                )
            }
            return offset
        }
        cursor = items.first { $0.name == "cursor" }.flatMap { UInt64($0.value) }
        ifNoneMatch = request.headers("If-None-Match")
    }

    /// The id of the last event that an `EventSource` has seen, which counts more than the `offset` of its URL: it repeats that one as it was
    /// when it reconnects.
    ///
    /// A browser has a header field for it. Its replacements, where there is no EventSource or other origins may not be sent that field, add it to
    /// the query.
    private static func lastEvent(of request: HTTPRequest, _ items: [(name: String, value: String)]) -> Offset? {
        let inQuery = items.reversed().filter { isLastEventName($0.name) }.map(\.value)
        return (request.headers("Last-Event-ID") + inQuery).lazy.compactMap { Offset(token: $0.trimmingSpaces) }.first
    }

    /// `lastEventId` in any of its spellings: `last-event-id`, `Last_Event_ID`, and with the prefix of one polyfill's parameters.
    private static func isLastEventName(_ name: String) -> Bool {
        let plain = name.lowercased().filter { $0 != "-" && $0 != "_" }
        return plain == "lasteventid" || plain == "evslasteventid"
    }

    static func start(_ text: String) throws(Problem) -> Start {
        switch text {
        case "-1": return .after(.start)
        case "now": return .now
        default:
            guard let offset = Offset(token: text) else {
                throw .bad(
                    "invalid_offset",
                    "offset is '\(text.prefix(64))', not an offset of this server; expected -1, now or a Stream-Next-Offset that it gave out."
                )
            }
            return .after(offset)
        }
    }

    private static func whenBehind(_ text: String?) throws(Problem) -> WhenBehind {
        guard let text else { return .park }
        guard let choice = WhenBehind(rawValue: text) else {
            throw .bad("invalid_behind", "behind is '\(text)'; expected park or settled.")
        }
        return choice
    }

    private static func view(_ text: String?) throws(Problem) -> View {
        guard let text else { return .raw }
        guard let view = View(rawValue: text) else { throw .bad("invalid_view", "view is '\(text)'; expected raw or settled.") }
        return view
    }
}

/// What a reader of events gets when it falls behind.
enum WhenBehind: String, Sendable {
    /// All of it, when the client takes it.
    case park
    /// The settled view, from the reader's offset on.
    case settled
}
