internal import Glibc
internal import ParleyChannels
internal import ParleySystem

/// Writes the two events of the protocol: `data`, and the `control` that follows each.
enum EventFraming {
    /// Where a reader stands after the event.
    enum State: String {
        case behind = ""
        case upToDate = "u"
        case closed = "c"
    }

    /// Whether the data of a channel is text that can stand in an event as it is.
    static func isText(_ channel: Channel) -> Bool { channel.isJSON || ContentType.isText(channel.contentType) }

    /// Writes the page as a `data` event, unless it is empty, and the `control` event behind it.
    static func write(_ page: Page, of channel: Channel, cursor: UInt64, _ state: State, to output: inout Bytes) {
        if !page.isEmpty {
            if isText(channel) {
                page.body.withUnsafeBytes { writeData($0, to: &output) }
            } else {
                output.append("event: data\ndata:")
                Base64.encode(page.body, to: &output)
                output.append("\n\n")
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

    /// Each line of the payload becomes a line of the event, whether it ends in LF, CR or CRLF: none of them can end the event.
    private static func writeData(_ data: UnsafeRawBufferPointer, to output: inout Bytes) {
        output.append("event: data\n")
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
        output.append(0x0a)
    }
}

extension UnsafeRawBufferPointer {
    /// Where `byte` is next, or the end.
    fileprivate func place(of byte: UInt8, from start: Int) -> Int {
        guard start < count, let found = memchr(baseAddress! + start, Int32(byte), count - start) else { return count }
        return UnsafeRawPointer(found) - baseAddress!
    }
}
