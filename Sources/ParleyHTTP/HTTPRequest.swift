package import ParleySystem

/// A complete request: head and body.
package final class HTTPRequest: Sendable {
    package let head: HTTPRequestHead
    package let body: Bytes
    /// The loop of the connection that the request came on; its responder belongs to the same one.
    package let loop: EventLoop
    package let method: String
    /// Whether it came over TLS.
    package let isSecure: Bool
    /// The handler's value from accepting the body; `nil` without a body.
    package let admission: (any Sendable)?
    /// Empty where a target in absolute form has no path.
    private let pathRange: Range<Int>
    private let queryRange: Range<Int>?

    init(head: HTTPRequestHead, body: Bytes, loop: EventLoop, isSecure: Bool = false, admission: (any Sendable)? = nil) {
        self.admission = admission
        self.head = head
        self.body = body
        self.loop = loop
        self.isSecure = isSecure
        method = head.method
        (pathRange, queryRange) = HTTPRequest.split(head)
    }

    package var target: String { head.target }

    /// The path as it came, percent-encoded, without the query; for an absolute target, the part behind the authority.
    package var path: String { pathUTF8.text }

    /// The same without a copy, for routers.
    package var pathUTF8: ArraySlice<UInt8> { pathRange.isEmpty ? HTTPRequest.root : head.bytes[pathRange] }

    /// The meaning of an empty path (RFC 9110, section 4.2.3).
    private static let root = Bytes("/".utf8)[...]

    /// Whether there is such a method (RFC 9110, section 9.3; RFC 5789): only one that a server knows is refused with 405, others with 501.
    package var hasKnownMethod: Bool { HTTPRequest.methods.contains(method) }

    private static let methods: Set = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]

    /// The part behind the first `?`, percent-encoded; `nil` without one.
    package var query: String? { queryRange.map { head.bytes[$0].text } }

    /// The names and values of the query, percent-decoded, `+` as a space. Wrongly encoded parts stay as they came.
    package var queryItems: [(name: String, value: String)] {
        guard let query else { return [] }
        return query.split(separator: "&").map { item in
            let parts = item.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            func decoded(_ part: Substring) -> String { PercentEncoding.decode(part, plusIsSpace: true) ?? String(part) }
            return (decoded(parts[0]), parts.count > 1 ? decoded(parts[1]) : "")
        }
    }

    /// The value of the first query item with this name.
    package func queryValue(_ name: String) -> String? {
        queryRange == nil ? nil : queryItems.first { $0.name == name }?.value
    }

    /// The value of the first field with this name, whose case does not matter.
    package func header(_ name: String) -> String? { head.header(name) }

    /// The values of all fields with this name, in their order.
    package func headers(_ name: String) -> [String] { head.headers(name) }

    private static func split(_ head: HTTPRequestHead) -> (path: Range<Int>, query: Range<Int>?) {
        let start = head.targetAuthority?.upperBound ?? head.methodEnd + 1
        let end = head.targetEnd
        guard let mark = head.bytes[start..<end].firstIndex(of: UInt8(ascii: "?")) else { return (start..<end, nil) }
        return (start..<mark, mark + 1..<end)
    }
}

extension ArraySlice<UInt8> {
    var text: String { String(decoding: self, as: UTF8.self) }
}
