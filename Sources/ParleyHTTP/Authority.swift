internal import ParleySystem

/// A host and its port, as `Host`, `Origin` and URLs name them, in one form: two that lead to the same place are written in one way.
///
/// The host is in lower case and without the last dot of a name that is complete; an address of IPv6 is in its shortest notation. A port that
/// is not given is the scheme's.
package struct Authority: Sendable, Hashable {
    package let host: String
    package let port: UInt16?

    /// - Returns: `nil` for a text that is no authority, or has user information.
    package init?(_ text: some StringProtocol) {
        var host = Bytes(text.utf8)[...]
        if let colon = host.lastIndex(of: UInt8(ascii: ":")), !host[colon...].contains(UInt8(ascii: "]")) {
            let digits = host[host.index(after: colon)...]
            guard digits.count <= 5, digits.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
            guard let number = UInt16(digits.isEmpty ? "0" : digits.text) else { return nil }
            port = digits.isEmpty ? nil : number
            host = host[..<colon]
        } else {
            port = nil
        }
        if host.first == UInt8(ascii: "[") {
            guard host.last == UInt8(ascii: "]"), let address = IPAddress(host.dropFirst().dropLast().text), case .v6 = address else {
                return nil
            }
            self.host = "[\(address)]"
        } else {
            if host.last == UInt8(ascii: ".") { host.removeLast() }
            guard !host.isEmpty, host.allSatisfy({ HTTPGrammar.isHost($0) && !":[]".utf8.contains($0) }) else { return nil }
            self.host = Bytes(host.map { HTTPGrammar.lowercased($0) }).text
        }
    }

    /// The port, which is the scheme's unless another was given.
    package func port(of scheme: String) -> UInt16 { port ?? (scheme == "https" ? 443 : 80) }

    /// Whether a URL of that scheme leads to the same place with either.
    package func isSame(as other: Authority, in scheme: String) -> Bool {
        host == other.host && port(of: scheme) == other.port(of: scheme)
    }

    /// Whether it is this machine by its name or number: `localhost` and what ends so, 127.0.0.0/8, `::1`.
    package var isLoopback: Bool {
        // The usual ones first: every request asks.
        if host == "localhost" || host == "127.0.0.1" || host.hasSuffix(".localhost") { return true }
        let number = host.hasPrefix("[") ? host.dropFirst().dropLast() : host[...]
        return IPAddress(number)?.isLoopback ?? false
    }
}

/// The scheme and the authority of an absolute URL; an `Origin` has nothing else.
package struct URLOrigin: Sendable, Hashable {
    /// `http` or `https`.
    package let scheme: String
    package let authority: Authority

    package init(scheme: String, authority: Authority) { (self.scheme, self.authority) = (scheme, authority) }

    /// Takes an absolute URL apart.
    /// - Returns: The origin, and the part behind the authority; `nil` for a text that is no URL of HTTP.
    package static func split(_ url: some StringProtocol) -> (origin: URLOrigin, rest: String)? {
        let text = String(url)
        for scheme in ["http", "https"] {
            let prefix = scheme + "://"
            guard text.utf8.count >= prefix.utf8.count,
                text.utf8.prefix(prefix.utf8.count).elementsEqual(prefix.utf8, by: { HTTPGrammar.lowercased($0) == $1 })
            else { continue }
            let behind = Substring(text.utf8.dropFirst(prefix.utf8.count))
            let authority = Substring(behind.utf8.prefix { !"/?#".utf8.contains($0) })
            guard let parsed = Authority(authority) else { return nil }
            return (URLOrigin(scheme: scheme, authority: parsed), String(behind.utf8.dropFirst(authority.utf8.count)) ?? "")
        }
        return nil
    }

    /// An origin is a URL without a path.
    package init?(_ text: some StringProtocol) {
        guard let (origin, rest) = URLOrigin.split(text), rest.isEmpty else { return nil }
        self = origin
    }

    /// The port is compared, also where it is the scheme's.
    package static func == (a: URLOrigin, b: URLOrigin) -> Bool {
        a.scheme == b.scheme && a.authority.isSame(as: b.authority, in: a.scheme)
    }

    package func hash(into hasher: inout Hasher) {
        hasher.combine(scheme)
        hasher.combine(authority.host)
        hasher.combine(authority.port(of: scheme))
    }
}
