internal import ParleyHTTP
internal import ParleySystem

/// The forms in which endpoints send events beside the standard's.
extension ServerSentEvent {
    /// The event that says the stream is over.
    var isDone: Bool { data.count < 16 && data.filter { ![0x20, 0x09, 0x0D].contains($0) }.elementsEqual("[DONE]".utf8) }

    /// The event without the field name that gateways write twice.
    var unframed: ServerSentEvent {
        var rest = data[...]
        while rest.starts(with: ServerSentEvent.frame) { rest = rest.dropFirst(ServerSentEvent.frame.count).drop { $0 == 0x20 } }
        return rest.count == data.count ? self : ServerSentEvent(name: name, data: Bytes(rest))
    }

    /// It only says that the connection lives.
    var isSignOfLife: Bool {
        if ServerSentEvent.isSignOfLife(name) { return true }
        guard data.count < 24 else { return false }
        let word = data.text.trimmed.lowercased()
        return word.isEmpty || word == "null" || ServerSentEvent.isSignOfLife(word.filter { $0 != "\"" })
    }

    /// The JSON values in `data`, one behind the other: in lines of their own, or with a field name between them.
    var parts: [Bytes]? {
        let lines = data.split(separator: UInt8(ascii: "\n")).map { Bytes($0) }
        if lines.count > 1 { return lines }
        var (parts, rest) = ([Bytes](), data[...])
        while !rest.isEmpty, parts.count < 64 {
            var scanner = JSONScanner(Bytes(rest))
            guard let range = try? scanner.skip() else { return nil }
            parts.append(Bytes(rest.dropFirst(range.lowerBound).prefix(range.count)))
            rest = rest.dropFirst(range.upperBound).drop { $0 == 0x20 }
            if rest.starts(with: ServerSentEvent.frame) { rest = rest.dropFirst(ServerSentEvent.frame.count) }
        }
        return rest.isEmpty && parts.count > 1 ? parts : nil
    }

    private static let frame = Bytes("data:".utf8)

    private static func isSignOfLife(_ word: String) -> Bool {
        ["ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive"].contains(word.lowercased())
    }
}

extension String {
    /// The text without white space around it.
    var trimmed: String {
        String(drop(while: \.isWhitespace).reversed().drop(while: \.isWhitespace).reversed())
    }
}
