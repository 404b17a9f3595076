import ParleyChannels
import ParleySystem

@testable import ParleyHTTP
@testable import ParleyServer

// Input from a connection, in pieces of any size.

private let limits = {
    var limits = HTTPParserLimits()
    // Small enough for an input to reach them.
    (limits.headBytes, limits.fieldCount, limits.targetBytes, limits.methodBytes) = (512, 8, 256, 16)
    (limits.chunkLineBytes, limits.bodyBytes) = (64, 1_024)
    return limits
}()

private struct ReadRequests: Equatable {
    var requests: [String] = []
    var error: HTTPParseError?
    var isIdle = true
}

/// Requests, one behind another on a connection.
func fuzzRequest(_ input: UnsafeRawBufferPointer) {
    let read = readInPieces(input) { pieces in
        var read = ReadRequests()
        var parser = HTTPRequestParser(limits: limits)
        do throws(HTTPParseError) {
            for piece in pieces {
                var rest = piece
                while true {
                    let (used, event) = try parser.parse(rest)
                    require(used <= rest.count, "more used than there was")
                    rest = UnsafeRawBufferPointer(rebasing: rest[used...])
                    if event == .needsMore { break }
                    guard event == .request else { continue }
                    let (head, body) = parser.takeRequest()
                    read.requests.append(checked(head, body))
                }
                require(rest.isEmpty, "the parser wants more, and leaves something")
            }
        } catch {
            read.error = error
        }
        read.isIdle = parser.phase == .idle
        return read
    }
    require(read.error.map { (400...505).contains($0.status) } ?? true)
}

/// Checks what was accepted: it is within the limits, and written again as plainly as can be it is the same request.
private func checked(_ head: HTTPRequestHead, _ body: Bytes) -> String {
    require(head.method.utf8.count <= limits.methodBytes && head.target.utf8.count <= limits.targetBytes)
    require(head.headers.count <= limits.fieldCount && body.count <= limits.bodyBytes)
    require(head.header("content-length") == nil || head.header("transfer-encoding") == nil)
    require(head.headers("host").count <= 1 && head.headers("content-length").count <= 1)
    var text = "\(head.method) \(head.target) HTTP/1.\(head.minorVersion)\r\n"
    for (name, value) in head.headers {
        require(!value.utf8.contains { $0 == 0 || $0 == 10 || $0 == 13 }, "a line's end in a value")
        if !["content-length", "transfer-encoding"].contains(name.lowercased()) { text += "\(name): \(value)\r\n" }
    }
    let framing = head.minorVersion == 1 && !body.isEmpty ? "Content-Length: \(body.count)\r\n" : ""
    let request = HTTPRequest(head: head, body: body, loop: loop)
    var shown = "\(text)\r\n\(request.path) \(request.query ?? "-") \(head.keepsAlive) \(head.expectsContinue) \(body)"
    _ = request.queryItems.map { shown += "\($0.name)=\($0.value)" }

    var plain = HTTPRequestParser()
    let bytes = Bytes("\(text)\(framing)\r\n".utf8) + (framing.isEmpty ? [] : body)
    do {
        let used = try bytes.withUnsafeBytes { bytes throws in try plain.parse(bytes).used }
        let (rest, event) = try bytes[used...].withUnsafeBytes { bytes throws in try plain.parse(bytes) }
        require(event == .request && used + rest == bytes.count)
    } catch {
        contradiction("what was accepted is refused when it is written again: \(error) \(text.debugDescription)")
    }
    let again = plain.takeRequest()
    same(again.head.method + again.head.target, head.method + head.target, "method and target")
    same(again.body, framing.isEmpty ? [] : body, "body")
    same(again.head.keepsAlive, head.keepsAlive, "whether the connection stays")
    return shown
}

private let loop = EventLoop(name: "unused")

private enum SocketOutcome: Equatable {
    case event(WebSocketReader.Event)
    case error(WebSocketError)
}

/// The frames that a client sends over a WebSocket.
func fuzzSocket(_ input: UnsafeRawBufferPointer) {
    let outcomes = readInPieces(input) { pieces in
        let reader = WebSocketReader(messageBytesMax: 256)
        var outcomes: [SocketOutcome] = []
        do throws(WebSocketError) {
            for piece in pieces {
                try reader.feed(piece) { event in
                    outcomes.append(.event(event))
                    return true
                }
            }
        } catch {
            outcomes.append(.error(error))
        }
        return outcomes
    }
    for outcome in outcomes {
        switch outcome {
        case .event(.text(let message)):
            require(message.count <= 256 && String(validating: message, as: UTF8.self) != nil)
        case .event(.ping(let data)): require(data.count <= 125)
        case .event(.close(let code)): require(code.map { (1_000...4_999).contains($0) } ?? true)
        case .event(.pong): break
        case .error(let error): require([1_002, 1_003, 1_007, 1_009].contains(error.code))
        }
    }
}

private struct ReadEvents: Equatable {
    var events: [ServerSentEvent] = []
    var last: ServerSentEvent?
    var isTooLong = false
}

/// The event stream of an upstream; and what is read is written as this server does and read again.
func fuzzEvents(_ input: UnsafeRawBufferPointer) {
    let read = readInPieces(input) { pieces in
        var read = ReadEvents()
        var parser = ServerSentEventParser(bytesMax: 128)
        do throws(ServerSentEventError) {
            for piece in pieces { try parser.feed(piece) { read.events.append($0) } }
            read.last = try parser.end()
        } catch {
            read.isTooLong = true
        }
        return read
    }
    var written = Bytes()
    for event in read.events { EventFraming.writeText(event.data, to: &written) }
    // Nothing is written for nothing.
    same(dataOfEvents(written), read.events.map(\.data).filter { !$0.isEmpty }, "events written and read again")
    fuzzPieces(Bytes(input))
}

/// The data that a client gets from the events.
private func dataOfEvents(_ written: Bytes) -> [Bytes] {
    var data: [Bytes] = []
    var parser = ServerSentEventParser()
    do {
        try written.withUnsafeBytes { bytes throws in try parser.feed(bytes) { if $0.name == "data" { data.append($0.data) } } }
        require(try parser.end() == nil, "an event is not ended")
    } catch {
        contradiction("what was written is refused: \(error)")
    }
    return data
}

/// Text that is appended in pieces, with a reader that is there for each: all of it arrives as text, or is refused as none.
///
/// The first byte says how long the pieces are.
private func fuzzPieces(_ input: Bytes) {
    guard let first = input.first else { return }
    let (text, length) = (Bytes(input.dropFirst()), Int(first % 7) + 1)
    let pieces = stride(from: 0, to: text.count, by: length).map { start in
        TextEvents.Piece(text: Bytes(text[start..<min(start + length, text.count)]), last: UInt64(min(start + length, text.count)))
    }
    var (pending, told, isUnfit) = ([TextEvents.Piece](), Bytes(), false)
    for (index, piece) in pieces.enumerated() where !isUnfit {
        pending.append(piece)
        var continues = true
        while continues, !pending.isEmpty {
            switch TextEvents(cursor: 1, isEnded: index == pieces.count - 1).outcome(of: pending) {
            case .events(let events, let next, _, _):
                let data = dataOfEvents(events)
                for part in data { require(String(validating: part, as: UTF8.self) != nil, "an event is no text") }
                told += data.flatMap { $0 }
                require(pending.contains { $0.last == next }, "an offset that none of them leads to")
                pending.removeAll { $0.last <= next }
                same(told, withLineFeeds(text.prefix(Int(next))), "what was told, and what is stored up to there")
            case .waits:
                require(TextSeam.isUTF8(pending.flatMap(\.text)[...]), "no text is waited for")
                continues = false
            case .unfit: (isUnfit, continues) = (true, false)
            }
        }
    }
    let isText = String(validating: text, as: UTF8.self) != nil
    require(isUnfit != isText || text.isEmpty, "text is refused, or what is none is not")
    if isText { same(told, withLineFeeds(text[...]), "all that was told, and all that is stored") }
}

private func withLineFeeds(_ text: ArraySlice<UInt8>) -> Bytes {
    var (output, isAfterReturn) = (Bytes(), false)
    for byte in text {
        if byte != 0x0a || !isAfterReturn { output.append(byte == 0x0d ? 0x0a : byte) }
        isAfterReturn = byte == 0x0d
    }
    return output
}
