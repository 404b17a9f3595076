internal import ParleySystem

/// Writes the status line and the fields of an answer.
enum HTTPResponseHead {
    /// How the answer's body ends.
    enum Body: Equatable {
        /// This many bytes follow the head.
        case whole(Int)
        /// No bytes follow, but this many would for another method; `nil`: an unknown number.
        case withheld(Int?)
        /// The answer's own `Content-Length` says how many.
        case announced
        case chunked
        case untilClose
        /// Another protocol follows.
        case upgraded
    }

    enum Connection { case implied, keepAlive, close }

    static func mayHaveBody(_ status: Int) -> Bool { status >= 200 && status != 204 && status != 304 }

    /// - Parameter date: The complete field line.
    static func write(
        _ status: Int, _ headers: [(name: String, value: String)], _ body: Body, _ connection: Connection, _ date: Bytes,
        to output: inout Bytes
    ) {
        // One allocation for nearly every head.
        if output.isEmpty { output.reserveCapacity(320) }
        output.append(contentsOf: "HTTP/1.1 ".utf8)
        output.append(decimal: status)
        output.append(UInt8(ascii: " "))
        output.append(contentsOf: HTTPStatus.reason(status).utf8)
        output.append(contentsOf: "\r\n".utf8)
        output.append(contentsOf: date)
        var hasLength = false
        for (name, value) in headers {
            if isContentLength(name) {
                // Two lengths, or one that is wrong, would let two readers see two messages.
                if case .whole = body { continue }
                hasLength = true
            }
            appendLine(name, value, to: &output)
        }
        switch body {
        case .whole(let count) where mayHaveBody(status), .withheld(let count?) where mayHaveBody(status) && !hasLength:
            output.append(contentsOf: "Content-Length: ".utf8)
            output.append(decimal: count)
            output.append(contentsOf: "\r\n".utf8)
        case .chunked where mayHaveBody(status): output.append(contentsOf: "Transfer-Encoding: chunked\r\n".utf8)
        default: break
        }
        switch connection {
        case .implied: break
        case .keepAlive: output.append(contentsOf: "Connection: keep-alive\r\n".utf8)
        case .close: output.append(contentsOf: "Connection: close\r\n".utf8)
        }
        output.append(contentsOf: "\r\n".utf8)
    }

    static func isContentLength(_ name: String) -> Bool { name.utf8.count == 14 && name.lowercased() == "content-length" }

    /// Line ends in a value would let it forge fields or a whole answer; they become spaces.
    private static func appendLine(_ name: String, _ value: String, to output: inout Bytes) {
        output.append(contentsOf: name.utf8)
        output.append(contentsOf: ": ".utf8)
        let start = output.count
        output.append(contentsOf: value.utf8)
        for index in start..<output.count where !HTTPGrammar.isFieldText(output[index]) { output[index] = 0x20 }
        output.append(contentsOf: "\r\n".utf8)
    }

    /// The `Date` field's line for a Unix time: `Date: Sun, 06 Nov 1994 08:49:37 GMT`.
    static func dateField(seconds: Int) -> Bytes {
        // The digits come from RFC 3339, which has the same ones in another order.
        let iso = Timestamp(milliseconds: Int64(seconds) * 1_000).utf8
        let days = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        let month = Int(iso[5] - 0x30) * 10 + Int(iso[6] - 0x30)
        let day = days[seconds / 86_400 % 7]
        return Bytes("Date: \(day), \(iso[8..<10].text) \(months[month - 1]) \(iso[0..<4].text) \(iso[11..<19].text) GMT\r\n".utf8)
    }
}

extension [UInt8] {
    mutating func append(decimal value: Int) {
        if value >= 10 { append(decimal: value / 10) }
        append(UInt8(0x30 + value % 10))
    }

    mutating func append(hexadecimal value: Int) {
        if value >= 16 { append(hexadecimal: value / 16) }
        let digit = UInt8(value % 16)
        append(digit < 10 ? 0x30 + digit : 0x57 + digit)
    }
}
