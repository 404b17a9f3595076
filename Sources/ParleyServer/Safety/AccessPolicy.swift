internal import ParleyHTTP
internal import ParleySystem

/// Decides which hosts a request may name and which pages may send it.
///
/// A server on loopback without keys is reachable by every page the user's browser shows: directly, which the Origin tells, or by a name
/// that the attacker points to loopback (DNS rebinding), which the Host tells, or the request target where that is a URL.
struct AccessPolicy: Sendable {
    private let hosts: [Authority]
    private let allowsAnyHost: Bool
    private let origins: Set<URLOrigin>
    private let allowsAnyOrigin: Bool

    init(_ configuration: ServerConfiguration) {
        hosts = configuration.allowedHosts.compactMap { Authority($0) }
        // With keys, a page that reaches the server by another name has none: any name will do.
        allowsAnyHost = !configuration.keys.isEmpty || configuration.allowedHosts.contains("*")
        origins = Set(configuration.allowedOrigins.compactMap { URLOrigin($0) })
        allowsAnyOrigin = configuration.allowedOrigins.contains("*")
    }

    static let wrongHost = "host_not_allowed"

    /// Checks a request.
    /// - Returns: The header fields that let a page of another origin read the answer.
    /// - Throws: 403 `host_not_allowed` or `origin_not_allowed`.
    func check(_ request: HTTPRequestHead) throws(Problem) -> [HeaderField] {
        // A client without one speaks HTTP/1.0: a load balancer that checks whether the server lives. A browser always names the host.
        let host = request.authority
        let authority = host.flatMap { Authority($0) }
        guard host == nil || allows(authority) else {
            throw Problem(
                status: 403, code: AccessPolicy.wrongHost,
                detail:
                    "the request is addressed to the host '\(host ?? "")'; expected localhost or a loopback address. To be reached by another name, start the server with keys: --keys <file> or PARLEY_KEYS."
            )
        }
        // Whether an answer may be read depends on the requesting origin, even for a request without one: a shared cache must know.
        let varies: [HeaderField] = origins.isEmpty && !allowsAnyOrigin ? [] : [("Vary", "Origin")]
        guard let origin = request.header("Origin") else { return varies }
        let from = URLOrigin(origin)
        if let from, let authority, from.authority.isSame(as: authority, in: from.scheme) { return varies }
        guard allowsAnyOrigin || from.map({ origins.contains($0) }) == true else {
            throw Problem(
                status: 403, code: "origin_not_allowed",
                detail: "Origin is '\(origin)'; expected this server's own, or one that the server's option --cors-origin allows.")
        }
        return [
            ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", StreamHeader.exposed.joined(separator: ", ")),
        ] + varies
    }

    /// Answers a browser that asks whether its page may send a request, or returns `nil` for any other request.
    func preflight(_ request: HTTPRequest) -> [HeaderField]? {
        guard request.method == "OPTIONS", request.header("Access-Control-Request-Method") != nil else { return nil }
        var headers: [HeaderField] = [
            ("Access-Control-Allow-Methods", "GET, HEAD, PUT, POST, DELETE"), ("Access-Control-Max-Age", "600"),
        ]
        if let asked = request.header("Access-Control-Request-Headers") { headers.append(("Access-Control-Allow-Headers", asked)) }
        return headers
    }

    private func allows(_ authority: Authority?) -> Bool {
        if allowsAnyHost { return true }
        guard let authority else { return false }
        return authority.isLoopback
            || hosts.contains { allowed in
                // A port that is not written is the scheme's, of which nothing is known here.
                allowed.host == authority.host
                    && (allowed.port == nil || allowed.port == authority.port || authority.port == nil && [80, 443].contains(allowed.port))
            }
    }
}
