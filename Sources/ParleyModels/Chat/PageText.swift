internal import ParleySystem

/// The text of a page: the words of proxies and gateways that answer in HTML.
enum PageText {
    static func isPage(_ text: Bytes) -> Bool { text.first { ![0x20, 0x09, 0x0A, 0x0D].contains($0) } == UInt8(ascii: "<") }

    /// The text of `page` without its tags, scripts and styles, in one line.
    static func words(_ page: Bytes) -> String {
        var rest = page.text[...]
        var output = ""
        while let tag = rest.firstIndex(of: "<") {
            output += rest[..<tag] + " "
            rest = rest[tag...]
            let name = rest.dropFirst().prefix(6).lowercased()
            let end = hidden.first(where: { name.hasPrefix($0.tag) })?.end ?? ">"
            guard let range = rest.range(of: end) else { break }
            rest = rest[range.upperBound...]
            if rest.isEmpty { return line(output) }
        }
        return line(rest.first == "<" ? output : output + rest)
    }

    private static let hidden: [(tag: String, end: String)] = [("script", "</script>"), ("style", "</style>"), ("!--", "-->")]
    private static let entities = [("&nbsp;", " "), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]

    private static func line(_ text: String) -> String {
        entities.reduce(text) { $0.replacing($1.0, with: $1.1) }.split(whereSeparator: \.isWhitespace).joined(separator: " ")
    }
}

extension Substring {
    /// The range of `end`, whatever its case.
    fileprivate func range(of end: String) -> Range<Index>? {
        if end == ">" { return firstIndex(of: ">").map { $0..<index(after: $0) } }
        return firstRange(of: end) ?? firstRange(of: end.uppercased())
    }
}
