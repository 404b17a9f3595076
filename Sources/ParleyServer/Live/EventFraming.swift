internal import Glibc
internal import ParleyChannels
internal import ParleySystem

/// Writes the two events of the protocol: `data`, and the `control` that follows each (HTML standard, section 9.2).
enum EventFraming {
    /// Where a reader stands after the event.
    enum State: String {
        case behind = ""
        case upToDate = "u"
        case closed = "c"
    }

    /// How the data of a channel stands in events.
    enum Form: String {
        case json = "j"
        case text = "t"
        /// In Base64: what is no UTF-8.
        case binary = "b"
    }

    /// The form for a channel. What is text by its type may turn out to be none.
    static func form(of channel: any Tail) -> Form {
        channel.isJSON ? .json : channel.isText ? .text : .binary
    }

    /// A comment: keeps proxies and clients from giving up on a quiet connection.
    ///
    /// No empty line follows: clients that cut at empty lines would take what is left between two of them for an event without data.
    static let heartbeat = Bytes(": \n".utf8)

    /// Writes the page as a `data` event, unless it is empty, and the `control` event behind it.
    static func write(_ page: Page, as form: Form, cursor: UInt64, _ state: State, to output: inout Bytes) {
        if !page.isEmpty {
            if form == .binary {
                output.append("event: data\ndata:")
                Base64.encode(page.body, to: &output)
                output.append("\n\n")
            } else {
                writeText(page.body, to: &output)
            }
        }
        writeControl(next: page.next, cursor: cursor, state, to: &output)
    }

    /// - Parameter view: The view from here on, when it is another than before.
    static func writeControl(next: UInt64, cursor: UInt64, _ state: State, view: View? = nil, to output: inout Bytes) {
        let token = Offset(next).token
        output.append("event: control\ndata:{\"streamNextOffset\":\"\(token)\"")
        if state != .closed { output.append(",\"streamCursor\":\"\(cursor)\"") }
        if state != .behind { output.append(",\"upToDate\":true") }
        if state == .closed { output.append(",\"streamClosed\":true") }
        if let view { output.append(",\"view\":\"\(view.rawValue)\"") }
        output.append("}\nid: \(token)\n\n")
    }

    /// Writes a `data` event, unless there is nothing to say.
    ///
    /// Each line of the text becomes a line of the event, whether it ends in LF, CR or CRLF: none of them can end the event.
    static func writeText(_ text: Bytes, to output: inout Bytes) {
        guard !text.isEmpty else { return }
        output.append("event: data\n")
        text.withUnsafeBytes { writeLines($0, to: &output) }
        output.append(0x0a)
    }

    private static func writeLines(_ data: UnsafeRawBufferPointer, to output: inout Bytes) {
        var start = 0
        // Each kind is looked for by itself, once: nearly all data has neither, and a search for one byte goes over 16 at a time.
        var (feed, carriage) = (data.place(of: 0x0a, from: 0), data.place(of: 0x0d, from: 0))
        while true {
            if feed < start { feed = data.place(of: 0x0a, from: start) }
            if carriage < start { carriage = data.place(of: 0x0d, from: start) }
            let end = min(feed, carriage)
            output.append("data:")
            // A reader takes off one space: what begins with one needs another.
            if end > start, data[start] == 0x20 { output.append(0x20) }
            output.append(contentsOf: UnsafeRawBufferPointer(rebasing: data[start..<end]))
            output.append(0x0a)
            guard end < data.count else { break }
            start = end + (data[end] == 0x0d && end + 1 < data.count && data[end + 1] == 0x0a ? 2 : 1)
        }
    }
}

extension UnsafeRawBufferPointer {
    /// Where `byte` is next, or the end.
    fileprivate func place(of byte: UInt8, from start: Int) -> Int {
        guard start < count, let found = memchr(baseAddress! + start, Int32(byte), count - start) else { return count }
        return UnsafeRawPointer(found) - baseAddress!
    }
}
