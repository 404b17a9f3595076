internal import ParleyHTTP
internal import ParleySystem

/// Answers `/` with the page, which may load and run nothing but itself.
struct PageRoute: Sendable {
    private let document: Bytes
    private let headers: [HeaderField]

    init() {
        document = PackageResources.page_html
        let policy = [
            "default-src 'none'", "style-src 'unsafe-inline'", "script-src 'sha256-\(PageRoute.scriptDigest(document))'",
            "connect-src 'self'",
            "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        ]
        headers = [
            ("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-cache"),
            ("Content-Security-Policy", policy.joined(separator: "; ")), ("Referrer-Policy", "no-referrer"),
        ]
    }

    func answer(_ exchange: Exchange) { exchange.respond(200, headers, document) }

    /// The digest of the page's one script, by which a browser knows it from an injected one.
    private static func scriptDigest(_ document: Bytes) -> String {
        let text = document.text
        guard let start = text.firstRange(of: "<script>")?.upperBound, let end = text.firstRange(of: "</script>")?.lowerBound else {
            preconditionFailure("the page has no script")
        }
        var digest = Bytes()
        Base64.encode(SHA256.digest(Bytes(text[start..<end].utf8)), to: &digest)
        return digest.text
    }
}
