/// A JSON value (RFC 8259). Members keep their order. Among members with the same name the last one counts, for every reader: parsing leaves one of
/// them, at the place of the first, and so do writing, decoding and the canonical form. Names are the same when their bytes are.
public enum JSON: Sendable {
    case null
    case bool(Bool)
    case integer(Int64)
    /// An integer above `Int64.max`, so that no digit of a 64-bit number is lost.
    case unsigned(UInt64)
    case number(Double)
    /// The text of a number that none of the above would write in the same way: `1e2`, `-0`, `1e400`, 30 digits. Parsing keeps it, so that what is
    /// shown and passed on are the bytes that came.
    case literal(String)
    case string(String)
    case array([JSON])
    case object([Member])

    public struct Member: Sendable {
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
        return members.last { $0.name.hasSameBytes(as: name) }?.value
    }

    public var string: String? { if case .string(let text) = self { text } else { nil } }
    public var bool: Bool? { if case .bool(let value) = self { value } else { nil } }
    public var array: [JSON]? { if case .array(let values) = self { values } else { nil } }
    public var members: [Member]? { if case .object(let members) = self { members } else { nil } }
    public var integer: Int64? {
        switch self {
        case .integer(let value): value
        case .number(let value): Int64(exactly: value)
        case .literal(let text): JSONDecimal(text).integer
        default: nil
        }
    }
    /// The nearest double; beyond what a double holds, the largest.
    public var double: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .unsigned(let value): Double(value)
        case .number(let value): value
        case .literal(let text): JSON.nearest(text)
        default: nil
        }
    }

    private static func nearest(_ text: String) -> Double {
        let limit = Double.greatestFiniteMagnitude
        return min(max(Double(text) ?? 0, -limit), limit)
    }

    /// The word a message uses for this value's kind.
    package var kindName: String {
        switch self {
        case .null: "null"
        case .bool: "a boolean"
        case .integer, .unsigned, .number, .literal: "a number"
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
    ExpressibleByDictionaryLiteral, ExpressibleByFloatLiteral
{
    public init(stringLiteral value: String) { self = .string(value) }
    public init(integerLiteral value: Int64) { self = .integer(value) }
    public init(floatLiteral value: Double) { self = .number(value) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    public init(arrayLiteral elements: JSON...) { self = .array(elements) }
    public init(dictionaryLiteral elements: (String, JSON)...) { self = .object(elements.map { Member($0, $1) }) }
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
        case .literal(let text): output.append(text)
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
            for (index, member) in JSON.unique(members).enumerated() {
                if index > 0 { output.append(UInt8(ascii: ",")) }
                JSON.write(string: member.name, to: &output)
                output.append(UInt8(ascii: ":"))
                member.value.write(to: &output)
            }
            output.append(UInt8(ascii: "}"))
        }
    }

    /// Writes `text` as a JSON string with its quotes. Control characters, `"` and `\` are escaped, nothing else, as RFC 8785 has it.
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
            case 0x08: output.append(UInt8(ascii: "b"))
            case 0x0A: output.append(UInt8(ascii: "n"))
            case 0x0C: output.append(UInt8(ascii: "f"))
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
    public static func parse(_ bytes: [UInt8]) throws(JSONError) -> JSON { try parse(bytes, uniqueNames: false) }

    /// - Parameter uniqueNames: Refuses an object that has a name twice, also where only its escapes differ or only Unicode holds it to be the same.
    package static func parse(_ bytes: Bytes, uniqueNames: Bool, depthMax: Int = JSONScanner.depthMax) throws(JSONError) -> JSON {
        var scanner = JSONScanner(bytes, depthMax: depthMax)
        scanner.requiresUniqueNames = uniqueNames
        try scanner.requireUTF8()
        let value = try scanner.value()
        try scanner.end()
        return value
    }

    /// Whether arrays and objects are nested deeper than that. Cost: a look at each value.
    package func isNested(deeperThan depth: Int) -> Bool {
        switch self {
        case .array(let elements): depth == 0 || elements.contains { $0.isNested(deeperThan: depth - 1) }
        case .object(let members): depth == 0 || members.contains { $0.value.isNested(deeperThan: depth - 1) }
        default: false
        }
    }

    /// Parses what this program has written, which may be nested deeper than what it takes from outside.
    package static func parse(stored bytes: Bytes) throws(JSONError) -> JSON {
        try parse(bytes, uniqueNames: false, depthMax: JSONScanner.storedDepthMax)
    }

    public static func parse(_ text: String) throws(JSONError) -> JSON { try parse(Bytes(text.utf8)) }
}

/// Why bytes are not the JSON that was expected, and where.
public struct JSONError: Error, Sendable, Equatable, CustomStringConvertible {
    public var position: Int
    public var problem: String

    package init(position: Int, problem: String) { (self.position, self.problem) = (position, problem) }

    public var description: String { "invalid JSON at byte \(position): \(problem)" }
}
