internal import Glibc
internal import ParleyChannels
internal import ParleySystem

/// Writes the two events of the protocol: `data`, and the `control` that follows each (HTML standard, section 9.2).
enum EventFraming {
    /// The state of a reader after the event.
    enum State: String {
        case behind = ""
        case upToDate = "u"
        case closed = "c"
    }

    /// The form of a channel's data in events.
    enum Form: String {
        case json = "j"
        case text = "t"
        /// In Base64: data that is not UTF-8.
        case binary = "b"
    }

    /// The form for a channel. Text by type may turn out to be none.
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
        var lines = EventLines()
        output.append(contentsOf: dataHead)
        _ = text.withUnsafeBytes { lines.write($0, upTo: .max, to: &output) }
        output.append(contentsOf: dataEnd)
    }

    /// The bytes before the data of an event, and behind it.
    static let (dataHead, dataEnd) = (Bytes("event: data\ndata:".utf8), Bytes("\n\n".utf8))

    /// The most that a `data` event with these bytes can take. Cost: a look at each byte, without a copy.
    static func byteCountMax(of data: some Collection<UInt8>, as form: Form) -> Int {
        let framed = dataHead.count + dataEnd.count
        if form == .binary { return framed + (data.count + 2) / 3 * 4 }
        let ends = data.withContiguousStorageIfAvailable { bytes in
            bytes.reduce(into: 0) { $0 &+= $1 == 0x0a || $1 == 0x0d ? 1 : 0 }
        }
        return framed + data.count + (ends ?? data.count) * EventLines.endBytesMax + 1
    }
}

/// Writes text as lines of an event, wherever the text is cut in pieces: bytes whose form depends on the next byte are written with that.
struct EventLines: Sendable {
    /// Whether nothing of the line has been written, so that a space would be taken off.
    private var isAtStart = true
    /// Whether a line feed that comes now belongs to a line's end that has been written.
    private var isAfterReturn = false

    private static let end = Bytes("\ndata:".utf8)
    /// The bytes that the end of a line takes beyond its own: the name of the next line's field, and one more space there.
    static let endBytesMax = 6

    /// Writes from the beginning of `data` until about `bytesMax` have been written.
    /// - Returns: How much of it has been written.
    mutating func write(_ data: UnsafeRawBufferPointer, upTo bytesMax: Int, to output: inout Bytes) -> Int {
        guard !data.isEmpty else { return 0 }
        let limit = bytesMax < .max - output.count ? output.count + bytesMax : .max
        var start = 0
        // Each kind is searched for separately, once: nearly all data has neither, and a search for one byte covers 16 at a time.
        var (feed, carriage) = (-1, -1)
        repeat {
            if isAfterReturn {
                isAfterReturn = false
                if data[start] == 0x0a {
                    start += 1
                    continue
                }
            }
            let last = limit - output.count < data.count - start ? start + limit - output.count : data.count
            if feed < start { feed = data.place(of: 0x0a, from: start) }
            if carriage < start { carriage = data.place(of: 0x0d, from: start) }
            let end = min(feed, carriage, last)
            if end > start {
                // A reader takes off one space: data that begins with one needs another.
                if isAtStart, data[start] == 0x20 { output.append(0x20) }
                isAtStart = false
                output.append(contentsOf: UnsafeRawBufferPointer(rebasing: data[start..<end]))
            }
            start = end
            guard end < last else { break }
            output.append(contentsOf: EventLines.end)
            (isAtStart, isAfterReturn, start) = (true, data[end] == 0x0d, end + 1)
        } while start < data.count && output.count < limit
        return start
    }
}

extension UnsafeRawBufferPointer {
    /// The place of the next `byte`, or the end.
    fileprivate func place(of byte: UInt8, from start: Int) -> Int {
        guard start < count, let found = memchr(baseAddress! + start, Int32(byte), count - start) else { return count }
        return UnsafeRawPointer(found) - baseAddress!
    }
}
