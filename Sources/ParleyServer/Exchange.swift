internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

typealias HeaderField = (name: String, value: String)

/// One request and its answer, with what every answer carries.
struct Exchange: Sendable {
    let request: HTTPRequest
    let responder: HTTPResponder
    /// The fields that let pages of other origins read the answer.
    var corsHeaders: [HeaderField]
    /// The counter of refusals.
    var refusals: RefusalCounter?
    /// The memory that its answer counts against.
    var answers: AnswerMemory?
    /// The sender and its rights.
    var access = Access.none

    var loop: EventLoop { request.loop }

    /// Runs `work` on the connection's loop, where answers are given. Thread-safe.
    func onLoop(_ work: @escaping @Sendable () -> Void) { responder.loop.execute(work) }

    /// Whose share of a limit the request counts against.
    var account: String { access.isShown ? access.account : RateLimiter.account(ofPeer: responder.peerAddress) }

    /// - Parameter room: The body's share of the memory for answers.
    func respond(_ status: Int, _ headers: [HeaderField] = [], _ body: Bytes = [], in room: MemoryReservation? = nil) {
        responder.respond(status: status, headers: headers + common, body: body, room: room)
    }

    /// An answer that only reads becomes a 503 where there is no room; a sender that has changed something must be told so.
    func respond(_ status: Int, _ headers: [HeaderField] = [], json: JSON) { respond(status, headers, jsonText: json.bytes) }

    /// The same for JSON that is written already, perhaps in room that was found for it.
    func respond(_ status: Int, _ headers: [HeaderField] = [], jsonText body: Bytes, in found: MemoryReservation? = nil) {
        do throws(Problem) {
            var room = found
            if room == nil { room = isSafe ? try answers?.room(for: body.count, of: account) : answers?.owe(body.count, of: account) }
            let type: HeaderField = ("Content-Type", typeOfText(ContentTypeText.json))
            respond(status, [type, ("Cache-Control", "no-store")] + headers, body, in: room)
        } catch {
            respond(error)
        }
    }

    /// Counts the entries made from the body, as long as they wait for the log.
    ///
    /// - Parameter bytes: The bytes that an entry takes besides its own, all the way to the log.
    /// - Throws: 503 `overloaded` when there is no room for them.
    func hold(_ count: Int, entriesOf bytes: Int) throws(Problem) {
        guard count == 1 || responder.hold(2 * request.body.count + count * bytes) else {
            throw .overloaded("the \(count) entries have no room beside those that are being appended; fewer at once need less")
        }
    }

    /// The entries are in the log.
    func release() { _ = responder.hold(request.body.count) }

    private var isSafe: Bool { request.method == "GET" || request.method == "HEAD" }

    /// `type` as a `Content-Type` for UTF-8, with the charset for clients that need it.
    ///
    /// Both JSON and event streams are UTF-8 by definition, and a browser's fetch reads them so. Several libraries for other programs, all of which
    /// send a `User-Agent`, take text for ISO 8859-1 unless the charset is there.
    func typeOfText(_ type: String) -> String {
        request.header("User-Agent") != nil && request.header("Sec-Fetch-Mode") == nil ? type + "; charset=utf-8" : type
    }

    func respond(_ problem: Problem) {
        refusals?.count(problem.code)
        responder.respond(problem, headers: corsHeaders)
    }

    func stream(_ status: Int, _ headers: [HeaderField]) -> HTTPStream {
        responder.stream(status: status, headers: headers + common)
    }

    private var common: [HeaderField] { HTTPResponder.securityHeaders + corsHeaders }
}

enum ContentTypeText {
    static let json = "application/json"
    static let eventStream = "text/event-stream"
    static let bytes = "application/octet-stream"
}

extension HTTPRequest {
    /// Whether the client has what carries this `ETag`.
    func hasTag(_ tag: String) -> Bool {
        headers("If-None-Match").joined(separator: ",").split(separator: ",").contains { candidate in
            let text = String(candidate).trimmingSpaces
            return text == "*" || text == tag || text == "W/" + tag
        }
    }

    /// Refuses query parameters that the route does not have: ignored, a misspelt filter would select everything.
    ///
    /// Not for `/v1/stream`, where the protocol lets clients add parameters of their own. A ticket may come with any request.
    /// - Throws: 400 `unknown_parameter`.
    func requireParameters(among known: [String]) throws(Problem) {
        guard let unknown = queryItems.first(where: { $0.name != "ticket" && !known.contains($0.name) })?.name else { return }
        let meant = Suggestion.closest(to: unknown, in: known).map { " Did you mean '\($0)'?" } ?? ""
        let accepted = known.isEmpty ? "none" : known.joined(separator: ", ")
        throw .bad("unknown_parameter", "the query has the parameter '\(unknown.prefix(64))'; this route accepts \(accepted).\(meant)")
    }

    /// How many of a list are asked for: the query's `limit`.
    /// - Throws: 400 `invalid_limit` for what is not 1 to `max`.
    func limit(_ standard: Int, max: Int) throws(Problem) -> Int {
        guard let text = queryValue("limit") else { return standard }
        guard let limit = Int(text), (1...max).contains(limit) else {
            throw .bad("invalid_limit", "limit is '\(text.prefix(32))'; expected 1 to \(max).")
        }
        return limit
    }
}
