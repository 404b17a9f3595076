internal import ParleyHTTP
internal import ParleySystem

/// Answers `/` with the page, which may load and run nothing but itself.
struct PageRoute: Sendable {
    private let document: Bytes
    private let headers: [HeaderField]

    init() {
        let script = PageRoute.script
        document = Bytes(
            PackageResources.page_html.text.replacing("/*page.css*/", with: PackageResources.page_css.text)
                .replacing("/*scripts*/", with: script).utf8)
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

    /// The parts of the page's one script, in their order: code that a part runs at once needs those before it.
    private static var script: String {
        [
            PackageResources.values_js, PackageResources.markdown_js, PackageResources.rows_js, PackageResources.activity_js,
            PackageResources.conversation_js, PackageResources.steps_js, PackageResources.log_js, PackageResources.records_js,
            PackageResources.follower_js, PackageResources.saying_js, PackageResources.agents_js, PackageResources.home_js,
            PackageResources.page_js,
        ].map(\.text).joined(separator: "\n")
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
