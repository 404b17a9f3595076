internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// The header fields of a PUT that give a channel's TTL and origin, checked.
struct CreateRequest {
    let lifetime: Lifetime?
    let fork: ForkRequest?
    /// `If-None-Match: *`
    let mustBeNew: Bool

    /// Some 30 years, and far from any overflow.
    private static let ttlMax: Int64 = 1_000_000_000

    /// - Throws: 400 `invalid_ttl`, `invalid_expires_at`, `conflicting_headers`, `invalid_fork_offset` or `invalid_name`.
    init(_ request: HTTPRequest) throws(Problem) {
        lifetime = try CreateRequest.lifetime(of: request)
        fork = try CreateRequest.fork(of: request)
        guard request.header("If-Match") == nil else {
            throw .bad("not_supported", "If-Match is for POST and DELETE. A PUT takes If-None-Match: *, and then creates or is refused.")
        }
        let ifNoneMatch = request.headers("If-None-Match")
        guard ifNoneMatch.allSatisfy({ $0 == "*" }) else {
            throw .bad("not_supported", "If-None-Match is '\(ifNoneMatch[0].prefix(64))'; expected * with PUT.")
        }
        mustBeNew = !ifNoneMatch.isEmpty
    }

    private static func lifetime(of request: HTTPRequest) throws(Problem) -> Lifetime? {
        let (ttl, expiresAt) = (request.header(StreamHeader.ttl), request.header(StreamHeader.expiresAt))
        guard ttl == nil || expiresAt == nil else {
            throw .bad("conflicting_headers", "Stream-TTL and Stream-Expires-At are both given. Send one.")
        }
        if let ttl { return .ttl(seconds: try integer(ttl, StreamHeader.ttl, "invalid_ttl", max: ttlMax)) }
        guard let expiresAt else { return nil }
        guard let lifetime = Lifetime(until: expiresAt) else {
            throw .bad(
                "invalid_expires_at",
                "Stream-Expires-At is '\(expiresAt.prefix(64))'; expected RFC 3339 with Z or an offset, e.g. 2030-01-31T12:00:00Z.")
        }
        return lifetime
    }

    private static func fork(of request: HTTPRequest) throws(Problem) -> ForkRequest? {
        let (offset, subOffset) = (request.header(StreamHeader.forkOffset), request.header(StreamHeader.forkSubOffset))
        let sub = try subOffset.map { text throws(Problem) in
            try integer(text, StreamHeader.forkSubOffset, "invalid_fork_offset", max: .max)
        }
        guard let source = request.header(StreamHeader.forkedFrom) else {
            if offset != nil || sub != nil {
                throw .bad("invalid_fork_offset", "a fork's offset is given without Stream-Forked-From. Name the source.")
            }
            return nil
        }
        guard offset != nil || (sub ?? 0) == 0 else {
            throw .bad("invalid_fork_offset", "Stream-Fork-Sub-Offset is \(sub!) without Stream-Fork-Offset. Say where it counts from.")
        }
        return ForkRequest(
            source: try name(of: source, request),
            offset: try offset.map { text throws(Problem) in try place(text) },
            subOffset: sub.map { UInt64($0) })
    }

    /// The source is named by its path on this server, as it is or behind the prefix of streams, or by a URL that leads to it.
    private static func name(of source: String, _ request: HTTPRequest) throws(Problem) -> String {
        var path = Substring(source)
        if source.prefix(8).lowercased().contains("://") {
            guard let (origin, rest) = URLOrigin.split(source), isHere(origin, request) else {
                let behind =
                    source.utf8.split(separator: UInt8(ascii: "/"), maxSplits: 2).dropFirst().first.map { String(Substring($0)) } ?? ""
                throw .bad(
                    "invalid_fork_source",
                    "Stream-Forked-From names the server '\(behind.prefix(64))', this one is '\(request.head.authority ?? "")'; a channel is forked where it is."
                )
            }
            path = Substring(rest.utf8.prefix { $0 != UInt8(ascii: "?") && $0 != UInt8(ascii: "#") })
        }
        if path.hasPrefix(StreamName.prefix) { path = path.dropFirst(StreamName.prefix.count) }
        if path.hasPrefix("/") { path = path.dropFirst() }
        do throws(Problem) { return try StreamName(path: ArraySlice(path.utf8)).text } catch {
            throw Problem(status: error.status, code: error.code, detail: "Stream-Forked-From is '\(source.prefix(64))': \(error.detail)")
        }
    }

    /// Whether that is this server, by the name the request came to or by its proxy's.
    private static func isHere(_ origin: URLOrigin, _ request: HTTPRequest) -> Bool {
        [request.head.authority, ClientURL(request).authority].contains { name in
            name.flatMap { Authority($0) }?.isSame(as: origin.authority, in: origin.scheme) ?? false
        }
    }

    private static func place(_ text: String) throws(Problem) -> UInt64 {
        // The start, also as the protocol's reference server writes it: its clients have that in their code.
        if text == "-1" || text == "0000000000000000_0000000000000000" { return 0 }
        guard let offset = Offset(token: text) else {
            throw .bad(
                "invalid_fork_offset",
                "Stream-Fork-Offset is '\(text.prefix(64))', not an offset of this server; expected a Stream-Next-Offset that it gave out.")
        }
        return offset.value
    }

    private static func integer(_ text: String, _ name: String, _ code: String, max: Int64) throws(Problem) -> Int64 {
        let isPlain = !text.isEmpty && text.utf8.allSatisfy { (48...57).contains($0) } && (text == "0" || !text.hasPrefix("0"))
        guard isPlain, let value = Int64(text), value <= max else {
            throw .bad(code, "\(name) is '\(text.prefix(64))'; expected an integer from 0 to \(max), in plain digits.")
        }
        return value
    }
}
