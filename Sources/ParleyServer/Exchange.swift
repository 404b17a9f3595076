internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

typealias HeaderField = (name: String, value: String)

/// One request and its answer, with what every answer carries.
struct Exchange: Sendable {
    let request: HTTPRequest
    let responder: HTTPResponder
    /// Who may read the answer from another origin.
    var corsHeaders: [HeaderField]
    /// Where a refusal is counted.
    var refusals: RefusalCounter?
    /// Who sent it, and what he may do.
    var access = Access.none

    var loop: EventLoop { request.loop }

    /// Runs `work` on the connection's loop, where answers are given. Thread-safe.
    func onLoop(_ work: @escaping @Sendable () -> Void) { responder.loop.execute(work) }

    func respond(_ status: Int, _ headers: [HeaderField] = [], _ body: Bytes = []) {
        responder.respond(status: status, headers: headers + common, body: body)
    }

    func respond(_ status: Int, _ headers: [HeaderField] = [], json: JSON) {
        respond(status, [("Content-Type", typeOfText(ContentTypeText.json)), ("Cache-Control", "no-store")] + headers, json.bytes)
    }

    /// `type` as a `Content-Type` for UTF-8, with the charset for those who need to be told.
    ///
    /// Both JSON and event streams are UTF-8 by definition, and what fetches as browsers do reads them so. Several libraries for other
    /// programs, all of which say who they are, take text for ISO 8859-1 unless the charset is there.
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
