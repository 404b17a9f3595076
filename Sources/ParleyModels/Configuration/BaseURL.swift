/// The address of a model server, up to and without the path of a call: `https://api.openai.com/v1`.
package struct BaseURL: Sendable, Hashable, CustomStringConvertible {
    /// As it is used: with credentials, if it has any, and without a slash at the end.
    let text: String
    /// In lower case, without a port.
    let host: String
    /// Without credentials: for messages and logs.
    package let description: String

    /// The address of OpenAI's own service.
    package static let openAI = BaseURL(text: "https://api.openai.com/v1", host: "api.openai.com", description: "https://api.openai.com/v1")

    private init(text: String, host: String, description: String) {
        (self.text, self.host, self.description) = (text, host, description)
    }

    /// `nil` unless `text` is an absolute http or https URL with a host, and without query, fragment, white space or control characters.
    package init?(_ text: String) {
        let schemes = ["http://", "https://"]
        guard let scheme = schemes.first(where: { text.lowercased().hasPrefix($0) }),
            text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }), !text.contains("?"), !text.contains("#")
        else { return nil }
        let rest = text.dropFirst(scheme.count)
        let slash = rest.firstIndex(of: "/") ?? rest.endIndex
        var path = rest[slash...]
        while path.last == "/" { path.removeLast() }

        let authority = rest[..<slash]
        let at = authority.lastIndex(of: "@")
        let server = at.map { authority[authority.index(after: $0)...] } ?? authority
        guard let host = BaseURL.host(of: server) else { return nil }
        self.init(text: scheme + authority + path, host: host.lowercased(), description: scheme + server + path)
    }

    /// The host of `host[:port]`, where the host may be an IPv6 address in brackets.
    private static func host(of server: Substring) -> Substring? {
        let end = server.first == "[" ? server.firstIndex(of: "]").map(server.index(after:)) : server.firstIndex(of: ":") ?? server.endIndex
        guard let end, end > server.startIndex else { return nil }
        if end < server.endIndex {
            guard server[end] == ":", let port = UInt16(server[server.index(after: end)...]), port > 0 else { return nil }
        }
        return server[..<end]
    }
}
