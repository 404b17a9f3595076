package import ParleySystem

/// One event of a `text/event-stream`.
package struct ServerSentEvent: Sendable, Equatable {
    /// The `event` field; empty when the stream gave none.
    package var name: String
    /// The `data` lines, joined by line feeds.
    package var data: Bytes

    package init(name: String = "", data: Bytes) {
        self.name = name
        self.data = data
    }
}

/// An incremental parser of `text/event-stream` (WHATWG HTML, section 9.2.6).
///
/// It works on bytes, so a read may end anywhere: between CR and LF, inside a field name or inside a UTF-8 scalar. Comments and the
/// fields `id` and `retry` are read over, because no upstream of ours is resumed by them.
///
/// Beyond the standard it accepts what model servers send besides: a field `error` (an event of that name), lines of bare JSON or of a page (data),
/// field names in another case or with something invisible before them, and a line with `"choices"` in it that is no field (data that cannot be
/// read): the answer would lack it. Lines that are no fields at all, such as the words of a proxy, are kept for finding out why a stream ended.
package struct ServerSentEventParser: Sendable {
    /// The limit of one line, and of the data of one event. An upstream that sends more is broken or hostile.
    package let bytesMax: Int

    private var line = Bytes()
    private var name = ""
    private var data: Bytes?
    private var skipsLineFeed = false
    /// The event's data is bare, without field names.
    private var isBare = false

    /// The first lines that are no fields.
    package private(set) var strayText = Bytes()
    private static let strayBytesMax = 4_096

    package init(bytesMax: Int = 1 << 20) { self.bytesMax = bytesMax }

    /// Whether the last input was a line without its end.
    package var isInsideLine: Bool { !line.isEmpty }

    /// An event has begun, and no empty line has ended it.
    package var isInsideEvent: Bool { data != nil || !name.isEmpty }

    /// Takes the next bytes and calls `visit` for each event that they complete.
    ///
    /// - Throws: ``ServerSentEventError/tooLong``. The parser is of no use after that.
    package mutating func feed(
        _ bytes: UnsafeRawBufferPointer, _ visit: (ServerSentEvent) -> Void
    ) throws(ServerSentEventError) {
        var start = 0
        for index in 0..<bytes.count {
            let byte = bytes[index]
            if skipsLineFeed {
                skipsLineFeed = false
                if byte == UInt8(ascii: "\n") {
                    start = index + 1
                    continue
                }
            }
            guard byte == UInt8(ascii: "\n") || byte == UInt8(ascii: "\r") else { continue }
            try take(UnsafeRawBufferPointer(rebasing: bytes[start..<index]))
            start = index + 1
            skipsLineFeed = byte == UInt8(ascii: "\r")
            try endLine(visit)
        }
        try take(UnsafeRawBufferPointer(rebasing: bytes[start...]))
    }

    /// Takes the end of the stream and returns the event that was begun, if it has data.
    ///
    /// The standard throws it away; model servers that leave out the last empty line are common enough to hear them out.
    package mutating func end() throws(ServerSentEventError) -> ServerSentEvent? {
        var last: ServerSentEvent?
        if !line.isEmpty { try endLine { last = $0 } }
        dispatch { last = $0 }
        return last
    }

    private mutating func take(_ bytes: UnsafeRawBufferPointer) throws(ServerSentEventError) {
        guard line.count + bytes.count <= bytesMax else { throw .tooLong }
        line.append(contentsOf: bytes)
    }

    private mutating func endLine(_ visit: (ServerSentEvent) -> Void) throws(ServerSentEventError) {
        defer { line.removeAll(keepingCapacity: true) }
        // The byte order mark is allowed at the beginning only; servers that write each event with a writer of its own have one before each.
        if line.starts(with: [0xEF, 0xBB, 0xBF]) { line.removeFirst(3) }
        guard !line.isEmpty else { return dispatch(visit) }
        guard line[0] != UInt8(ascii: ":") else { return }
        // No field has such a name. A bare line may continue over several.
        if isBare || line[0] == UInt8(ascii: "{") || line[0] == UInt8(ascii: "<") {
            isBare = true
            return try append(line[...])
        }

        let colon = line.firstIndex(of: UInt8(ascii: ":")) ?? line.count
        var value = line[min(colon + 1, line.count)...]
        if value.first == UInt8(ascii: " ") { value.removeFirst() }
        let field = line[..<colon].drop { $0 <= 0x20 }
        if ServerSentEventParser.isField(field, "data") {
            try append(value)
        } else if ServerSentEventParser.isField(field, "error") {
            name = "error"
            try append(value)
        } else if ServerSentEventParser.isField(field, "event") {
            name = String(decoding: value, as: UTF8.self)
        } else if line.contains(ServerSentEventParser.choices) {
            try append(line[...])
        } else if line[..<colon].contains(UInt8(ascii: " ")) || colon == line.count {
            strayText += (strayText.isEmpty ? [] : [0x20]) + line.prefix(max(0, ServerSentEventParser.strayBytesMax - strayText.count))
        }
    }

    private static let choices = Bytes("\"choices\"".utf8)

    /// Whether `text` is the name of that field, whatever its case, with or without blanks behind it.
    private static func isField(_ text: ArraySlice<UInt8>, _ name: String) -> Bool {
        text.prefix(name.utf8.count).elementsEqual(name.utf8) { HTTPGrammar.lowercased($0) == $1 }
            && text.dropFirst(name.utf8.count).allSatisfy(HTTPGrammar.isBlank)
    }

    private mutating func append(_ value: ArraySlice<UInt8>) throws(ServerSentEventError) {
        guard (data.map { $0.count + 1 } ?? 0) + value.count <= bytesMax else { throw .tooLong }
        if data == nil { data = [] } else { data!.append(UInt8(ascii: "\n")) }
        data!.append(contentsOf: value)
    }

    private mutating func dispatch(_ visit: (ServerSentEvent) -> Void) {
        defer { (name, data, isBare) = ("", nil, false) }
        guard let data else { return }
        visit(ServerSentEvent(name: name, data: data))
    }
}

package enum ServerSentEventError: Error, Sendable, Equatable {
    /// A line, or the data of one event, is longer than the parser takes.
    case tooLong
}
