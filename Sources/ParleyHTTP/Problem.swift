package import ParleySystem

/// An error as an `application/problem+json` answer (RFC 9457).
package struct Problem: Error, Sendable {
    package var status: Int
    /// A stable word for programs; it also names the problem's type.
    package var code: String
    /// A summary that is the same for every problem with this code.
    package var title: String
    /// This occurrence: the field, the value, what is accepted and the remedy.
    package var detail: String
    /// Fields beyond the standard ones.
    package var extra: [JSON.Member]
    /// Header fields that belong to the answer, such as `Retry-After` or `Allow`.
    package var headers: [(name: String, value: String)]

    /// - Parameter title: The status' reason phrase unless given.
    package init(
        status: Int, code: String, title: String? = nil, detail: String, extra: [JSON.Member] = [],
        headers: [(name: String, value: String)] = []
    ) {
        self.status = status
        self.code = code
        self.title = title ?? HTTPStatus.reason(status)
        self.detail = detail
        self.extra = extra
        self.headers = headers
    }

    package static let contentType = "application/problem+json"

    /// The answer's body.
    package var body: Bytes {
        let members: [JSON.Member] = [
            .init("type", .string("urn:parley:problem:" + code)), .init("title", .string(title)),
            .init("status", .integer(Int64(status))), .init("code", .string(code)), .init("detail", .string(detail)),
        ]
        return JSON.object(members + extra).bytes
    }
}

extension HTTPResponder {
    /// The fields of every answer for browsers: it is of its declared type, and no other origin's page may embed it.
    package static let securityHeaders: [(name: String, value: String)] = [
        ("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "same-origin"),
    ]

    /// Answers with a problem. It is not to be kept: the next try may be answered otherwise.
    package func respond(_ problem: Problem, headers: [(name: String, value: String)] = []) {
        let own = [(name: "Content-Type", value: Problem.contentType), ("Cache-Control", "no-store")]
        respond(status: problem.status, headers: own + HTTPResponder.securityHeaders + problem.headers + headers, body: problem.body)
    }
}
