internal import ParleyHTTP
internal import ParleySystem

/// Answers `/parley.js`, the client for browsers and node, and `/parley.d.ts`, its types.
struct ClientRoute: Sendable {
    private struct Document: Sendable {
        let body: Bytes
        let contentType: String
        let tag: String

        init(_ body: Bytes, _ contentType: String) {
            self.body = body
            self.contentType = contentType
            tag = "\"\(SHA256.hex(body).prefix(16))\""
        }
    }

    static let scriptPath = "/parley.js"
    static let typesPath = "/parley.d.ts"

    private let script = Document(PackageResources.parley_js, "text/javascript; charset=utf-8")
    private let types = Document(PackageResources.parley_d_ts, "text/plain; charset=utf-8")

    func answer(_ exchange: Exchange) {
        let document = exchange.request.path == ClientRoute.scriptPath ? script : types
        // Revalidated each time, so that no page runs the client of a server that was replaced; unchanged, that costs no bytes.
        let headers: [HeaderField] = [
            ("Content-Type", document.contentType), ("ETag", document.tag), ("Cache-Control", "public, no-cache"),
        ]
        if exchange.request.hasTag(document.tag) { return exchange.respond(304, headers) }
        exchange.respond(200, headers, document.body)
    }
}
