/// A JSON value (RFC 8259). Members keep their order; of equal names the last one counts.
public enum JSON: Sendable, Equatable {
    case null
    case bool(Bool)
    case integer(Int64)
    /// An integer above `Int64.max`, so that no digit of a 64-bit number is lost.
    case unsigned(UInt64)
    case number(Double)
    case string(String)
    case array([JSON])
    case object([Member])

    public struct Member: Sendable, Equatable {
        public var name: String
        public var value: JSON

        public init(_ name: String, _ value: JSON) {
            self.name = name
            self.value = value
        }
    }
}

extension JSON {
    /// The member `name` of an object; `nil` when it is missing or this is no object. Cost: linear in the number of members.
    public subscript(name: String) -> JSON? {
        guard case .object(let members) = self else { return nil }
        return members.last { $0.name == name }?.value
    }

    public var string: String? { if case .string(let text) = self { text } else { nil } }
    public var bool: Bool? { if case .bool(let value) = self { value } else { nil } }
    public var array: [JSON]? { if case .array(let values) = self { values } else { nil } }
    public var members: [Member]? { if case .object(let members) = self { members } else { nil } }
    public var integer: Int64? {
        switch self {
        case .integer(let value): value
        case .number(let value): Int64(exactly: value)
        default: nil
        }
    }
    public var double: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .unsigned(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }

    /// The word a message uses for this value's kind.
    package var kindName: String {
        switch self {
        case .null: "null"
        case .bool: "a boolean"
        case .integer, .unsigned, .number: "a number"
        case .string: "a string"
        case .array: "an array"
        case .object: "an object"
        }
    }

    /// An object of the members that have a value.
    package static func compact(_ members: (String, JSON?)...) -> JSON {
        .object(members.compactMap { name, value in value.map { Member(name, $0) } })
    }
}

extension JSON: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral, ExpressibleByArrayLiteral,
    ExpressibleByDictionaryLiteral, ExpressibleByNilLiteral, ExpressibleByFloatLiteral
{
    public init(stringLiteral value: String) { self = .string(value) }
    public init(integerLiteral value: Int64) { self = .integer(value) }
    public init(floatLiteral value: Double) { self = .number(value) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    public init(arrayLiteral elements: JSON...) { self = .array(elements) }
    public init(dictionaryLiteral elements: (String, JSON)...) { self = .object(elements.map { Member($0, $1) }) }
    public init(nilLiteral: ()) { self = .null }
}

// MARK: - Writing

extension JSON {
    /// The value as compact JSON text.
    public var text: String { bytes.text }

    /// The value as compact JSON in UTF-8.
    public var bytes: [UInt8] {
        var output = Bytes()
        write(to: &output)
        return output
    }

    package func write(to output: inout Bytes) {
        switch self {
        case .null: output.append("null")
        case .bool(let value): output.append(value ? "true" : "false")
        case .integer(let value): output.append(String(value))
        case .unsigned(let value): output.append(String(value))
        case .number(let value): output.append(value.isFinite ? "\(value)" : "null")
        case .string(let text): JSON.write(string: text, to: &output)
        case .array(let values):
            output.append(UInt8(ascii: "["))
            for (index, value) in values.enumerated() {
                if index > 0 { output.append(UInt8(ascii: ",")) }
                value.write(to: &output)
            }
            output.append(UInt8(ascii: "]"))
        case .object(let members):
            output.append(UInt8(ascii: "{"))
            for (index, member) in members.enumerated() {
                if index > 0 { output.append(UInt8(ascii: ",")) }
                JSON.write(string: member.name, to: &output)
                output.append(UInt8(ascii: ":"))
                member.value.write(to: &output)
            }
            output.append(UInt8(ascii: "}"))
        }
    }

    /// Writes `text` as a JSON string with its quotes. Control characters, `"` and `\` are escaped, nothing else.
    package static func write(string text: String, to output: inout Bytes) {
        var text = text
        text.withUTF8 { write(string: UnsafeRawBufferPointer($0), to: &output) }
    }

    /// Writes well-formed UTF-8 as a JSON string with its quotes.
    package static func write(string utf8: UnsafeRawBufferPointer, to output: inout Bytes) {
        output.append(UInt8(ascii: "\""))
        var start = 0
        for index in 0..<utf8.count {
            let byte = utf8[index]
            guard byte < 0x20 || byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") else { continue }
            output.append(contentsOf: utf8[start..<index])
            start = index + 1
            output.append(UInt8(ascii: "\\"))
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"): output.append(byte)
            case 0x0A: output.append(UInt8(ascii: "n"))
            case 0x0D: output.append(UInt8(ascii: "r"))
            case 0x09: output.append(UInt8(ascii: "t"))
            default: output.append("u00" + (byte < 16 ? "0" : "") + String(byte, radix: 16))
            }
        }
        output.append(contentsOf: utf8[start..<utf8.count])
        output.append(UInt8(ascii: "\""))
    }
}

// MARK: - Reading

extension JSON {
    /// Parses one JSON text.
    ///
    /// - Throws: ``JSONError`` naming the byte position: not JSON, trailing bytes, ill-formed UTF-8, or nested deeper than 256.
    public static func parse(_ bytes: [UInt8]) throws(JSONError) -> JSON {
        var scanner = JSONScanner(bytes)
        try scanner.requireUTF8()
        let value = try scanner.value()
        try scanner.end()
        return value
    }

    public static func parse(_ text: String) throws(JSONError) -> JSON { try parse(Bytes(text.utf8)) }
}

/// Why bytes are not the JSON that was expected, and where.
public struct JSONError: Error, Sendable, Equatable, CustomStringConvertible {
    public var position: Int
    public var problem: String
    public var description: String { "invalid JSON at byte \(position): \(problem)" }
}

/// A strict scanner over JSON in UTF-8: it builds values, or only finds where they begin and end.
///
/// Skipping is what the append path uses: a message is checked and cut, never built.
package struct JSONScanner {
    private let bytes: Bytes
    package private(set) var position = 0
    /// Where the name of the member being visited stands, with its quotes.
    package private(set) var nameRange = 0..<0
    private var depth = 0
    private static let depthMax = 256

    package init(_ bytes: Bytes) { self.bytes = bytes }

    package func requireUTF8() throws(JSONError) {
        do { _ = try UTF8Span(validating: bytes.span) } catch {
            throw JSONError(position: error.byteOffsets.lowerBound, problem: "not well-formed UTF-8")
        }
    }

    /// Whether the next value, after white space, begins with `byte`.
    package mutating func next(is byte: Unicode.Scalar) -> Bool {
        skipSpace()
        return position < bytes.count && bytes[position] == UInt8(ascii: byte)
    }

    package mutating func end() throws(JSONError) {
        skipSpace()
        guard position == bytes.count else { throw fail("expected the end of the text") }
    }

    package mutating func value() throws(JSONError) -> JSON {
        skipSpace()
        guard position < bytes.count else { throw fail("expected a value, found the end") }
        switch bytes[position] {
        case UInt8(ascii: "{"):
            var found: [JSON.Member] = []
            try members { (name, scanner) throws(JSONError) in found.append(JSON.Member(name, try scanner.value())) }
            return .object(found)
        case UInt8(ascii: "["):
            var found: [JSON] = []
            try elements { (scanner) throws(JSONError) in found.append(try scanner.value()) }
            return .array(found)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"):
            try literal("true")
            return .bool(true)
        case UInt8(ascii: "f"):
            try literal("false")
            return .bool(false)
        case UInt8(ascii: "n"):
            try literal("null")
            return .null
        default:
            let range = try number()
            let text = bytes[range].withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
            if let integer = Int64(text) { return .integer(integer) }
            if let integer = UInt64(text) { return .unsigned(integer) }
            // What no double holds becomes the nearest one, so that a value can always be written again.
            let limit = Double.greatestFiniteMagnitude
            return .number(min(max(Double(text) ?? 0, -limit), limit))
        }
    }

    /// Passes over one value and returns where it stands.
    @discardableResult
    package mutating func skip() throws(JSONError) -> Range<Int> {
        skipSpace()
        let start = position
        guard position < bytes.count else { throw fail("expected a value, found the end") }
        switch bytes[position] {
        case UInt8(ascii: "{"): try members(named: false) { (_, scanner) throws(JSONError) in _ = try scanner.skip() }
        case UInt8(ascii: "["): try elements { (scanner) throws(JSONError) in _ = try scanner.skip() }
        case UInt8(ascii: "\""): try skipString()
        case UInt8(ascii: "t"): try literal("true")
        case UInt8(ascii: "f"): try literal("false")
        case UInt8(ascii: "n"): try literal("null")
        default: _ = try number()
        }
        return start..<position
    }

    /// Calls `visit` at each element of an array; it must consume one value.
    package mutating func elements(_ visit: (inout JSONScanner) throws(JSONError) -> Void) throws(JSONError) {
        try enter("[")
        defer { depth -= 1 }
        if next(is: "]") {
            position += 1
            return
        }
        while true {
            try visit(&self)
            skipSpace()
            guard position < bytes.count else { throw fail("the array does not end") }
            position += 1
            if bytes[position - 1] == UInt8(ascii: "]") { return }
            guard bytes[position - 1] == UInt8(ascii: ",") else { throw fail("expected ',' or ']'", at: position - 1) }
        }
    }

    /// Calls `visit` at each member's value of an object, with its name (empty when not `named`); it must consume one value.
    package mutating func members(
        named: Bool = true, _ visit: (String, inout JSONScanner) throws(JSONError) -> Void
    ) throws(JSONError) {
        try enter("{")
        defer { depth -= 1 }
        if next(is: "}") {
            position += 1
            return
        }
        while true {
            guard next(is: "\"") else { throw fail("expected a member name in double quotes") }
            var name = ""
            let nameStart = position
            if named { name = try string() } else { try skipString() }
            let nameEnd = position
            guard next(is: ":") else { throw fail("expected ':'") }
            position += 1
            nameRange = nameStart..<nameEnd
            try visit(name, &self)
            skipSpace()
            guard position < bytes.count else { throw fail("the object does not end") }
            position += 1
            if bytes[position - 1] == UInt8(ascii: "}") { return }
            guard bytes[position - 1] == UInt8(ascii: ",") else { throw fail("expected ',' or '}'", at: position - 1) }
        }
    }

    // MARK: Pieces

    private mutating func enter(_ open: Unicode.Scalar) throws(JSONError) {
        guard next(is: open) else { throw fail("expected '\(open)'") }
        guard depth < JSONScanner.depthMax else { throw fail("nested deeper than \(JSONScanner.depthMax)") }
        depth += 1
        position += 1
    }

    private mutating func skipSpace() {
        while position < bytes.count {
            switch bytes[position] {
            case 0x20, 0x0A, 0x0D, 0x09: position += 1
            default: return
            }
        }
    }

    private mutating func literal(_ word: StaticString) throws(JSONError) {
        for index in 0..<word.utf8CodeUnitCount {
            guard position + index < bytes.count, bytes[position + index] == word.utf8Start[index] else { throw fail("expected \(word)") }
        }
        position += word.utf8CodeUnitCount
    }

    private mutating func number() throws(JSONError) -> Range<Int> {
        let start = position
        func digit(_ index: Int) -> Bool { index < bytes.count && bytes[index] >= 48 && bytes[index] <= 57 }
        if position < bytes.count, bytes[position] == UInt8(ascii: "-") { position += 1 }
        guard digit(position) else { throw fail("expected a value") }
        if bytes[position] == 48 { position += 1 } else { while digit(position) { position += 1 } }
        if position < bytes.count, bytes[position] == UInt8(ascii: ".") {
            guard digit(position + 1) else { throw fail("expected a digit after '.'") }
            position += 1
            while digit(position) { position += 1 }
        }
        if position < bytes.count, bytes[position] | 0x20 == UInt8(ascii: "e") {
            position += 1
            if position < bytes.count, bytes[position] == UInt8(ascii: "+") || bytes[position] == UInt8(ascii: "-") { position += 1 }
            guard digit(position) else { throw fail("expected a digit in the exponent") }
            while digit(position) { position += 1 }
        }
        return start..<position
    }

    private mutating func skipString() throws(JSONError) {
        position += 1
        while position < bytes.count {
            let byte = bytes[position]
            position += 1
            if byte == UInt8(ascii: "\"") { return }
            if byte == UInt8(ascii: "\\") { _ = try escape() } else if byte < 0x20 { throw fail("a control character in a string", at: position - 1) }
        }
        throw fail("the string does not end")
    }

    private mutating func string() throws(JSONError) -> String {
        position += 1
        var start = position
        var output = Bytes()
        while position < bytes.count {
            let byte = bytes[position]
            position += 1
            if byte == UInt8(ascii: "\"") {
                if output.isEmpty { return bytes[start..<position - 1].withUnsafeBytes { String(decoding: $0, as: UTF8.self) } }
                output.append(contentsOf: bytes[start..<position - 1])
                return output.text
            }
            if byte == UInt8(ascii: "\\") {
                output.append(contentsOf: bytes[start..<position - 1])
                output.append(contentsOf: UTF8.encode(try escape())!)
                start = position
            } else if byte < 0x20 {
                throw fail("a control character in a string", at: position - 1)
            }
        }
        throw fail("the string does not end")
    }

    /// The scalar of an escape whose backslash has been read. A lone surrogate becomes U+FFFD.
    private mutating func escape() throws(JSONError) -> Unicode.Scalar {
        guard position < bytes.count else { throw fail("the string does not end") }
        position += 1
        switch bytes[position - 1] {
        case UInt8(ascii: "\""): return "\""
        case UInt8(ascii: "\\"): return "\\"
        case UInt8(ascii: "/"): return "/"
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{C}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"):
            let first = try hexadecimalUnit()
            if UTF16.isLeadSurrogate(UInt16(first)), position + 1 < bytes.count, bytes[position] == UInt8(ascii: "\\"),
                bytes[position + 1] == UInt8(ascii: "u")
            {
                let resume = position
                position += 2
                let second = try hexadecimalUnit()
                if UTF16.isTrailSurrogate(UInt16(second)) {
                    return Unicode.Scalar(0x10000 + (first - 0xD800) << 10 + (second - 0xDC00))!
                }
                position = resume
            }
            return Unicode.Scalar(first) ?? "\u{FFFD}"
        default: throw fail("an unknown escape", at: position - 1)
        }
    }

    private mutating func hexadecimalUnit() throws(JSONError) -> UInt32 {
        var value: UInt32 = 0
        for _ in 0..<4 {
            guard position < bytes.count, let digit = Character(Unicode.Scalar(bytes[position])).hexDigitValue else {
                throw fail("expected four hexadecimal digits after \\u")
            }
            value = value << 4 | UInt32(digit)
            position += 1
        }
        return value
    }

    private func fail(_ problem: String, at place: Int? = nil) -> JSONError { JSONError(position: place ?? position, problem: problem) }
}
