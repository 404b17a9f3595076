internal import ParleyHTTP
internal import ParleySystem

/// Which hosts a request may name and which pages may send it.
///
/// A server on loopback without keys is reachable by every page the user's browser shows: directly, which the Origin tells, or by a name
/// that the attacker points to loopback (DNS rebinding), which the Host tells.
struct AccessPolicy: Sendable {
    let hosts: Set<String>
    let origins: Set<String>
    /// With keys, a page that reaches the server by another name has none to show: any name will do.
    let hasKeys: Bool

    init(_ configuration: ServerConfiguration) {
        hosts = Set(configuration.allowedHosts.map { $0.lowercased() })
        hasKeys = !configuration.keys.isEmpty
        origins = Set(configuration.allowedOrigins.map { $0.lowercased() })
    }

    /// Checks a request.
    /// - Returns: The header fields that let a page of another origin read the answer.
    /// - Throws: 403 `host_not_allowed` or `origin_not_allowed`.
    func check(_ request: HTTPRequestHead) throws(Problem) -> [HeaderField] {
        let host = (request.header("Host") ?? "").lowercased()
        guard allows(host: host) else {
            throw Problem(
                status: 403, code: "host_not_allowed",
                detail: "Host is '\(host)'; expected localhost, a loopback address or a configured host. Add the name to the allowed hosts."
            )
        }
        // Who may read it depends on who asks, also when nobody of another origin did: a shared cache must know.
        let varies: [HeaderField] = origins.isEmpty ? [] : [("Vary", "Origin")]
        guard let origin = request.header("Origin") else { return varies }
        let text = origin.lowercased()
        if text == "http://" + host || text == "https://" + host { return varies }
        guard origins.contains(text) || origins.contains("*") else {
            throw Problem(
                status: 403, code: "origin_not_allowed",
                detail: "Origin is '\(origin)'; expected this server's own or a configured one. Add it to the allowed origins.")
        }
        return [
            ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", StreamHeader.exposed.joined(separator: ", ")),
        ] + varies
    }

    /// Answers a browser that asks whether its page may send a request, or returns `nil` when this is no such question.
    func preflight(_ request: HTTPRequest) -> [HeaderField]? {
        guard request.method == "OPTIONS", request.header("Access-Control-Request-Method") != nil else { return nil }
        var headers: [HeaderField] = [
            ("Access-Control-Allow-Methods", "GET, HEAD, PUT, POST, DELETE"), ("Access-Control-Max-Age", "600"),
        ]
        if let asked = request.header("Access-Control-Request-Headers") { headers.append(("Access-Control-Allow-Headers", asked)) }
        return headers
    }

    private func allows(host: String) -> Bool {
        if hasKeys || hosts.contains("*") { return true }
        let name = AccessPolicy.name(of: host)
        return AccessPolicy.isLoopback(name) || hosts.contains(name) || hosts.contains(host)
    }

    /// The host without its port.
    private static func name(of host: String) -> String {
        if host.hasPrefix("["), let end = host.firstIndex(of: "]") { return String(host[...end]) }
        return String(Substring(host.utf8.prefix { $0 != UInt8(ascii: ":") }))
    }

    private static func isLoopback(_ name: String) -> Bool {
        if name == "127.0.0.1" || name == "localhost" || name.hasSuffix(".localhost") || name == "[::1]" { return true }
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4 && parts[0] == "127" && parts.allSatisfy { UInt8($0) != nil }
    }
}
