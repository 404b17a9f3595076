internal import ParleySystem

/// The request line and the fields of a request, as they came: one buffer, and where things lie in it.
package struct HTTPRequestHead: Sendable {
    /// A field's name and its value without the white space around it, as ranges of `bytes`.
    struct Field: Sendable {
        var name: Range<Int32>
        var value: Range<Int32>
    }

    var bytes: [UInt8] = []
    var fields: [Field] = []
    var methodEnd = 0
    var targetEnd = 0
    /// The digit behind `HTTP/1.`.
    package internal(set) var minorVersion = 1
    package internal(set) var keepsAlive = true
    package internal(set) var expectsContinue = false
    /// The body's length if it was announced; `nil` without a body and for a chunked one.
    package internal(set) var contentLength: Int?
    package internal(set) var isChunked = false

    package var method: String { text(0..<Int32(methodEnd)) }
    /// The request target as it came: usually a path with a query.
    package var target: String { text(Int32(methodEnd + 1)..<Int32(targetEnd)) }
    /// The host and port that the request is addressed to: those in its target, where that is a URL, and then `Host` is ignored (RFC 9112, section
    /// 3.2.2); else those in `Host`, which HTTP/1.0 may leave out.
    package var authority: String? { targetAuthority.map { bytes[$0].text } ?? header("Host") }
    package var hasBody: Bool { isChunked || (contentLength ?? 0) > 0 }

    /// The value of the first field with this name, whose case does not matter.
    package func header(_ name: String) -> String? {
        var name = name
        return name.withUTF8 { name in
            for field in fields where matches(field.name, name) { return text(field.value) }
            return nil
        }
    }

    /// The values of all fields with this name, in their order.
    package func headers(_ name: String) -> [String] {
        var name = name
        return name.withUTF8 { name in fields.filter { matches($0.name, name) }.map { text($0.value) } }
    }

    /// The problem with a field that may occur once: it is repeated, or its value is no UTF-8, so that two values would read the same.
    package enum Misfit: Sendable {
        case repeated(StaticString)
        case notUTF8(StaticString)
    }

    /// The first of the fields with these names, at most 64, that is there a second time, or is no UTF-8.
    package func misfit(among names: [StaticString]) -> Misfit? {
        var seen: UInt64 = 0
        for field in fields {
            guard let index = names.firstIndex(where: { matches(field.name, $0) }) else { continue }
            let mark = UInt64(1) << index
            if seen & mark != 0 { return .repeated(names[index]) }
            seen |= mark
            let value = bytes[Int(field.value.lowerBound)..<Int(field.value.upperBound)]
            if value.contains(where: { $0 >= 0x80 }), String(validating: value, as: UTF8.self) == nil { return .notUTF8(names[index]) }
        }
        return nil
    }

    /// All fields in their order, names as they came.
    package var headers: [(name: String, value: String)] { fields.map { (text($0.name), text($0.value)) } }

    /// The range of the authority of a target in absolute form (`http://host/path`); `nil` for one in another form.
    var targetAuthority: Range<Int>? {
        let target = bytes[methodEnd + 1..<targetEnd]
        guard target.first != UInt8(ascii: "/") else { return nil }
        for scheme in ["http://", "https://"] {
            let start = target.startIndex + scheme.utf8.count
            guard start <= targetEnd, target[..<start].elementsEqual(scheme.utf8, by: { HTTPGrammar.lowercased($0) == $1 })
            else { continue }
            return start..<(target[start...].firstIndex { $0 == UInt8(ascii: "/") || $0 == UInt8(ascii: "?") } ?? targetEnd)
        }
        return nil
    }

    func text(_ range: Range<Int32>) -> String {
        String(decoding: bytes[Int(range.lowerBound)..<Int(range.upperBound)], as: UTF8.self)
    }

    /// Whether the bytes in `range` are `name` but for the case of ASCII letters.
    func matches(_ range: Range<Int32>, _ name: UnsafeBufferPointer<UInt8>) -> Bool {
        guard range.count == name.count else { return false }
        var index = Int(range.lowerBound)
        for byte in name {
            guard HTTPGrammar.lowercased(bytes[index]) == HTTPGrammar.lowercased(byte) else { return false }
            index += 1
        }
        return true
    }

    func matches(_ range: Range<Int32>, _ name: StaticString) -> Bool {
        name.withUTF8Buffer { matches(range, $0) }
    }
}

/// The character classes of RFC 9110, section 5.6.
enum HTTPGrammar {
    /// Digits, letters and ! # $ % & ' * + - . ^ _ ` | ~
    @inline(__always)
    static func isToken(_ byte: UInt8) -> Bool { isMember(byte, 0x03ff_6cfa_0000_0000, 0x57ff_ffff_c7ff_fffe) }

    /// The characters that RFC 3986 allows in an authority without user information: digits, letters and - . _ ~ % ! $ & ' ( ) * + , ; = : [ ]
    @inline(__always)
    static func isHost(_ byte: UInt8) -> Bool { isMember(byte, 0x2fff_7ff2_0000_0000, 0x47ff_fffe_afff_fffe) }

    /// Whether the bit for `byte` is set: in `low` for the first 64 characters, in `high` for the others of ASCII.
    @inline(__always)
    private static func isMember(_ byte: UInt8, _ low: UInt64, _ high: UInt64) -> Bool {
        byte < 64 ? low >> UInt64(byte) & 1 == 1 : byte < 128 && high >> UInt64(byte - 64) & 1 == 1
    }

    /// The characters of a field value: visible characters, blanks and the bytes above ASCII.
    @inline(__always)
    static func isFieldText(_ byte: UInt8) -> Bool { byte >= 0x20 ? byte != 0x7f : byte == 0x09 }

    @inline(__always)
    static func isBlank(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x09 }

    @inline(__always)
    static func lowercased(_ byte: UInt8) -> UInt8 { byte &- 0x41 < 26 ? byte | 0x20 : byte }

    static func hexadecimalValue(_ byte: UInt8) -> UInt8? {
        switch byte {
        case 0x30...0x39: byte - 0x30
        case 0x41...0x46: byte - 0x37
        case 0x61...0x66: byte - 0x57
        default: nil
        }
    }
}
