internal import ParleyHTTP
internal import ParleySystem

/// The charset that an answer is labelled with.
///
/// JSON is UTF-8, and often labelled ISO 8859-1 by a server that puts that label on everything. So only what is not well-formed UTF-8 is read by its label.
enum Charset: Sendable {
    case utf8
    /// ISO 8859-1, which the Web reads as Windows 1252.
    case latin1

    init(contentType: String?) {
        let label = (contentType ?? "").split(separator: ";").dropFirst().lazy.map { $0.filter { !" \"'".contains($0) } }
            .first { $0.hasPrefix("charset=") }?.dropFirst(8)
        self = ["iso-8859-1", "latin1", "windows-1252", "iso8859-1", "us-ascii"].contains(label ?? "") ? .latin1 : .utf8
    }

    /// `bytes` in UTF-8.
    func decode(_ bytes: Bytes) -> Bytes {
        guard self == .latin1, !Charset.isUTF8(bytes) else { return bytes }
        var output = Bytes()
        for byte in bytes { output.append(contentsOf: UTF8.encode(Charset.scalar(byte))!) }
        return output
    }

    static func isUTF8(_ bytes: Bytes) -> Bool { (try? UTF8Span(validating: bytes.span)) != nil }

    private static func scalar(_ byte: UInt8) -> Unicode.Scalar {
        (0x80...0x9F).contains(byte) ? windows[Int(byte) - 0x80] : Unicode.Scalar(byte)
    }

    /// The characters of 1252 where ISO 8859-1 has control characters.
    private static let windows = Array(
        "\u{20AC}\u{81}\u{201A}\u{192}\u{201E}\u{2026}\u{2020}\u{2021}\u{2C6}\u{2030}\u{160}\u{2039}\u{152}\u{8D}\u{17D}\u{8F}\u{90}\u{2018}\u{2019}\u{201C}\u{201D}\u{2022}\u{2013}\u{2014}\u{2DC}\u{2122}\u{161}\u{203A}\u{153}\u{9D}\u{17E}\u{178}"
            .unicodeScalars)

    /// The text of an error's body: it may begin with a byte order mark, and be UTF-16 then.
    static func text(of body: Bytes) -> Bytes {
        if body.starts(with: [0xEF, 0xBB, 0xBF]) { return Bytes(body.dropFirst(3)) }
        let isLittle = body.starts(with: [0xFF, 0xFE])
        guard isLittle || body.starts(with: [0xFE, 0xFF]) else { return body }
        var units: [UInt16] = []
        for index in stride(from: 2, to: body.count - 1, by: 2) {
            let (low, high) = isLittle ? (body[index], body[index + 1]) : (body[index + 1], body[index])
            units.append(UInt16(high) << 8 | UInt16(low))
        }
        return Bytes(String(decoding: units, as: UTF16.self).utf8)
    }
}
