/// A strict scanner over JSON in UTF-8: it builds values, or only finds where they begin and end.
///
/// Skipping is what the append path uses: a message is checked and cut, never built.
package struct JSONScanner {
    private let bytes: Bytes
    package private(set) var position = 0
    /// The range of the visited member's name, with its quotes.
    package private(set) var nameRange = 0..<0
    /// Whether an object that has a name twice is refused: also where only escapes differ, or only Unicode holds the names to be the same, because
    /// what decodes into Swift types compares them so.
    package var requiresUniqueNames = false
    /// Whether it matters that an object which is built has a name twice with different values, by the names that lead there; where it does, the first
    /// such name is ``ambiguousName``.
    package var watchesAmbiguity: (([String]) -> Bool)?
    package private(set) var ambiguousName: String?
    /// The names that lead to the value being built, where ambiguity is watched.
    private var path: [String] = []
    private var depth = 0
    private let depthMax: Int

    /// How deep a value may be nested that comes from outside, or that a program makes.
    package static let depthMax = 256
    /// The same for what this program has written: entries wrap values from outside, and entries of followed channels wrap other entries.
    package static let storedDepthMax = 1_024

    package init(_ bytes: Bytes, depthMax: Int = depthMax) { (self.bytes, self.depthMax) = (bytes, depthMax) }

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
            var names = JSON.MemberNames()
            try members { (name, scanner) throws(JSONError) in
                let value = try scanner.value(of: name)
                if let place = names.place(of: name, in: found) {
                    scanner.compare(found[place].value, value, of: name)
                    found[place].value = value
                } else {
                    found.append(JSON.Member(name, value))
                }
            }
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
            if text == "-0" { return .literal(text) }
            if let integer = Int64(text) { return .integer(integer) }
            if let integer = UInt64(text) { return .unsigned(integer) }
            if let number = Double(text), "\(number)" == text { return .number(number) }
            return .literal(text)
        }
    }

    /// The value of the member `name`.
    package mutating func value(of name: String) throws(JSONError) -> JSON {
        guard watchesAmbiguity != nil else { return try value() }
        path.append(name)
        defer { path.removeLast() }
        return try value()
    }

    /// Notes that the member `name` of the object being built has two values.
    package mutating func compare(_ first: JSON, _ second: JSON, of name: String) {
        guard ambiguousName == nil, let watchesAmbiguity, first != second, watchesAmbiguity(path + [name]) else { return }
        ambiguousName = name
    }

    /// Passes over one value and returns its range.
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

    /// Writes the next value as `JSON` would write it once it was parsed, without building it. Members with the same name are all written: see
    /// ``requiresUniqueNames``.
    package mutating func copy(to output: inout Bytes) throws(JSONError) {
        skipSpace()
        guard position < bytes.count else { throw fail("expected a value, found the end") }
        switch bytes[position] {
        case UInt8(ascii: "{"):
            output.append(UInt8(ascii: "{"))
            var isFirst = true
            try members { (name, scanner) throws(JSONError) in
                if !isFirst { output.append(UInt8(ascii: ",")) }
                isFirst = false
                JSON.write(string: name, to: &output)
                output.append(UInt8(ascii: ":"))
                try scanner.copy(to: &output)
            }
            output.append(UInt8(ascii: "}"))
        case UInt8(ascii: "["):
            output.append(UInt8(ascii: "["))
            var isFirst = true
            try elements { (scanner) throws(JSONError) in
                if !isFirst { output.append(UInt8(ascii: ",")) }
                isFirst = false
                try scanner.copy(to: &output)
            }
            output.append(UInt8(ascii: "]"))
        case UInt8(ascii: "\""): JSON.write(string: try string(), to: &output)
        default: output.append(contentsOf: bytes[try skip()])
        }
    }

    /// The next value if it is neither array nor object; otherwise only its kind, so that nothing is built of a value that cannot be a name.
    package mutating func scalar() throws(JSONError) -> JSON {
        if next(is: "[") {
            try skip()
            return .array([])
        }
        if next(is: "{") {
            try skip()
            return .object([])
        }
        return try value()
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
        var names: Set<String> = []
        while true {
            guard next(is: "\"") else { throw fail("expected a member name in double quotes") }
            var name = ""
            let nameStart = position
            if named || requiresUniqueNames { name = try string() } else { try skipString() }
            let nameEnd = position
            if requiresUniqueNames, !names.insert(name).inserted {
                throw fail("the member '\(name.prefix(64))' is given twice", at: nameStart)
            }
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
        guard depth < depthMax else { throw fail("nested deeper than \(depthMax)") }
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
            guard position + index < bytes.count, bytes[position + index] == word.utf8Start[index] else { throw fail("expected a value") }
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
            if byte == UInt8(ascii: "\\") {
                _ = try escape()
            } else if byte < 0x20 {
                throw fail("a control character in a string", at: position - 1)
            }
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
