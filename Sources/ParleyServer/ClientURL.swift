internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// This server's address as the client sees it: the beginning of the URLs in answers.
///
/// Behind a proxy that names them, by the proxy's scheme and host. Each of several proxies adds its own to the list, so the first is the client's.
/// Values that cannot begin a URL are ignored.
struct ClientURL {
    let scheme: String
    /// As it was given.
    let authority: String

    init(_ request: HTTPRequest) {
        let forwarded = ForwardedField(request.headers("Forwarded"))
        let schemes = [ClientURL.first(request, "X-Forwarded-Proto"), forwarded.proto].compactMap { $0?.lowercased() }
        let said = schemes.first { $0 == "http" || $0 == "https" }
        scheme = request.isSecure ? "https" : said ?? "http"
        let authorities = [ClientURL.first(request, "X-Forwarded-Host"), forwarded.host, request.head.authority].compactMap { $0 }
        authority = authorities.first { Authority($0) != nil } ?? "localhost"
    }

    var text: String { "\(scheme)://\(authority)" }

    /// The first element of a field that is a list, over however many lines.
    private static func first(_ request: HTTPRequest, _ name: String) -> String? {
        request.headers(name).first.map { String(Substring($0.utf8.prefix { $0 != UInt8(ascii: ",") })).trimmingSpaces }
    }
}

/// The first element of `Forwarded` (RFC 7239): that of the proxy nearest to the client.
struct ForwardedField {
    private(set) var proto: String?
    private(set) var host: String?

    init(_ lines: [String]) {
        guard let line = lines.first else { return }
        for pair in ForwardedField.pairs(of: line) {
            guard let equals = pair.firstIndex(of: UInt8(ascii: "=")) else { continue }
            let value = ForwardedField.text(of: pair[pair.index(after: equals)...])
            switch Bytes(pair[..<equals]).text.trimmingSpaces.lowercased() {
            case "proto": proto = value
            case "host": host = value
            default: break
            }
        }
    }

    /// The pairs of the first element; commas and semicolons within quotes do not separate.
    private static func pairs(of line: String) -> [ArraySlice<UInt8>] {
        let bytes = Bytes(line.utf8)
        var (pairs, start, isQuoted, isEscaped) = ([ArraySlice<UInt8>](), 0, false, false)
        for (index, byte) in bytes.enumerated() {
            if isEscaped {
                isEscaped = false
            } else if isQuoted, byte == UInt8(ascii: "\\") {
                isEscaped = true
            } else if byte == UInt8(ascii: "\"") {
                isQuoted.toggle()
            } else if !isQuoted, byte == UInt8(ascii: ",") {
                return pairs + [bytes[start..<index]]
            } else if !isQuoted, byte == UInt8(ascii: ";") {
                pairs.append(bytes[start..<index])
                start = index + 1
            }
        }
        return pairs + [bytes[start...]]
    }

    private static func text(of value: ArraySlice<UInt8>) -> String {
        let text = Bytes(value).text.trimmingSpaces
        guard text.utf8.count >= 2, text.hasPrefix("\""), text.hasSuffix("\"") else { return text }
        var (unquoted, isEscaped) = (Bytes(), false)
        for byte in text.utf8.dropFirst().dropLast() {
            if byte == UInt8(ascii: "\\"), !isEscaped {
                isEscaped = true
            } else {
                unquoted.append(byte)
                isEscaped = false
            }
        }
        return unquoted.text
    }
}
