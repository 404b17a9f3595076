import ParleySystem
import Testing

@Suite struct `JSON text` {
    @Test(arguments: [
        "null", "true", "false", "0", "-1", "12", "9223372036854775807", "18446744073709551615", "0.5", "-2.5", "1e+20", "\"\"", "\"a\"",
        "[]", "{}",
        "[1,[2,{\"a\":[]}],\"x\"]", "{\"a\":1,\"b\":{\"c\":null},\"d\":[true]}", "\"é\u{1F600}\"", "\"\\\"\\\\\\n\\r\\t\\u0001\"",
    ])
    func `comes back as it was written`(text: String) throws {
        #expect(try JSON.parse(text).text == text)
    }

    @Test(arguments: [
        ("\"\\u00e9\"", "é"), ("\"\\ud83d\\ude00\"", "\u{1F600}"), ("\"\\ud83d\"", "\u{FFFD}"), ("\"\\ud83dx\"", "\u{FFFD}x"),
        ("\"\\/\\b\\f\"", "/\u{8}\u{C}"),
        ("\"\\ud83d\\u0041\"", "\u{FFFD}A"),
    ])
    func `understands every escape`(text: String, expected: String) throws {
        #expect(try JSON.parse(text) == .string(expected))
    }

    @Test(arguments: [
        "", " ", "nul", "tru", "01", "-", "1.", ".5", "1e", "1e+", "+1", "\"", "\"\\x\"", "\"\\u12\"", "\"a\nb\"", "[", "[1", "[1,", "[1,]",
        "[,1]", "{", "{\"a\"",
        "{\"a\":", "{\"a\":1", "{\"a\":1,}", "{a:1}", "1 2", "[1]]", "'a'", "NaN", "\u{0}",
    ])
    func `is refused when it is none, with the place`(text: String) {
        let error = #expect(throws: JSONError.self) { try JSON.parse(text) }
        #expect((error?.position ?? -1) >= 0 && (error?.position ?? .max) <= text.utf8.count)
    }

    @Test func `is refused when it is not UTF-8`() {
        #expect(throws: JSONError.self) { try JSON.parse([UInt8(ascii: "\""), 0xFF, UInt8(ascii: "\"")]) }
    }

    @Test func `is refused when it is nested too deeply, and accepted at the bound`() throws {
        func nested(_ depth: Int) -> String { String(repeating: "[", count: depth) + String(repeating: "]", count: depth) }
        _ = try JSON.parse(nested(256))
        #expect(throws: JSONError.self) { try JSON.parse(nested(257)) }
        #expect(throws: JSONError.self) { try JSON.parse(nested(100_000)) }
        #expect(try JSON.parse(nested(256)).isNested(deeperThan: 255))
        #expect(try !JSON.parse(nested(256)).isNested(deeperThan: 256))
        _ = try JSON.parse(stored: Bytes(nested(1_024).utf8))
        #expect(throws: JSONError.self) { try JSON.parse(stored: Bytes(nested(1_025).utf8)) }
    }

    /// RFC 8785; names and texts that Unicode takes for equal, or joins into one character, stay what they are.
    @Test(arguments: [
        (
            #"{"b":1,"a":[2.0,1e21,-0],"a":{"d":null,"c":"\u000a\u0008\u000C\u001f\\u0008"}}"#,
            #"{"a":{"c":"\n\b\f\u001f\\u0008","d":null},"b":1}"#
        ),
        ("{\"e\u{301}\":1,\"\u{e9}\":2}", "{\"e\u{301}\":1,\"\u{e9}\":2}"), ("{\"\u{212A}\":1,\"K\":2}", "{\"K\":2,\"\u{212A}\":1}"),
        ("\"\\u0008\u{301}\\u000c\u{301}\"", "\"\\b\u{301}\\f\u{301}\""),
    ])
    func `has one canonical form, which loses nothing`(text: String, canonical: String) throws {
        #expect(try Bytes(JSON.parse(text).canonical) == Bytes(canonical.utf8))
    }

    @Test(arguments: 0..<200)
    func `random bytes never trap, and what is accepted is written and read alike`(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        let alphabet = Array("{}[]\",:\\u0123456789aetrufalsn.-+ \n\u{e9}".utf8)
        for _ in 0..<200 {
            let bytes = (0..<Int.random(in: 0...24, using: &random)).map { _ in alphabet.randomElement(using: &random)! }
            guard let value = try? JSON.parse(bytes) else { continue }
            #expect(try JSON.parse(value.bytes) == value)
            // Skipping and building agree on where a value ends.
            var scanner = JSONScanner(bytes)
            try scanner.skip()
            try scanner.end()
        }
    }
}

@Suite struct `One reading of JSON` {
    @Test(arguments: [
        "1.0", "1", "1e2", "1E+2", "-0", "-0.0", "0.10", "1e400", "12345678901234567890", "123456789012345678901234567890",
        "0.1000000000000000055511151231257827", "9007199254740993",
    ])
    func `a number is shown as the bytes that came`(text: String) throws {
        #expect(try JSON.parse(text).text == text)
        #expect(try JSON.parse("{\"n\":[\(text)]}").text == "{\"n\":[\(text)]}")
    }

    @Test(arguments: [
        ("1", "1.0", true), ("100", "1e2", true), ("-0", "0", true), ("1e400", "1e401", false), ("1e400", "10E399", true),
        ("9007199254740993", "9007199254740992.0", false), ("18446744073709551616", "18446744073709551615", false),
        ("0.10", "0.1", true), ("-1", "1", false), ("1e99999999999999999999", "1e-99999999999999999999", false),
    ])
    func `numbers are equal when they come to the same`(a: String, b: String, isEqual: Bool) throws {
        #expect(try (JSON.parse(a) == JSON.parse(b)) == isEqual)
        #expect(try (JSON.parse(b) == JSON.parse(a)) == isEqual)
    }

    @Test(arguments: [
        ("1e2", 100 as Int64?), ("-0", 0), ("9007199254740993.0", 9_007_199_254_740_993), ("92233720368547758070e-1", .max), ("1e400", nil),
        ("1.5e0", nil), ("-1E1", -10),
    ])
    func `an integer is one in any notation`(text: String, value: Int64?) throws {
        #expect(try JSON.parse(text).integer == value)
    }

    @Test(arguments: [
        ("1.0", true), ("1e2", true), ("-0", true), ("0.1", true), ("9007199254740992", true), ("9007199254740993", false),
        ("1e400", false),
        ("12345678901234567890", false), ("3.14159265358979323846", false), ("1e-400", false), ("1.50", true),
    ])
    func `it is known which numbers a reader with doubles takes for others`(text: String, isExact: Bool) throws {
        #expect(try JSON.parse(text).isExactAsDouble == isExact)
    }

    @Test(arguments: [
        #"{"path":"evil","path":"safe"}"#, #"{"p\u0061th":"evil","path":"safe"}"#, #"{"path":"evil","p\u0061th":"safe"}"#,
    ])
    func `of members with one name the last counts, in every form`(text: String) throws {
        let value = try JSON.parse(text)
        #expect(value["path"] == "safe")
        #expect(value.text == #"{"path":"safe"}"#)
        #expect(value.canonical.text == #"{"path":"safe"}"#)
        #expect(value.members?.count == 1)
        let made = JSON.object([JSON.Member("path", "evil"), JSON.Member("path", "safe")])
        #expect(made["path"] == "safe" && made.text == value.text && made.canonical == value.canonical)
        #expect(throws: JSONError.self) { try JSON.parse(Bytes(text.utf8), uniqueNames: true) }
    }

    @Test func `names that only Unicode takes for one are two, and refused where names must be unique`() throws {
        let text = "{\"\u{e9}\":1,\"e\u{301}\":2}"
        let value = try JSON.parse(text)
        #expect(value["\u{e9}"] == 1 && value["e\u{301}"] == 2 && value.text.utf8.elementsEqual(text.utf8))
        let error = #expect(throws: JSONError.self) { try JSON.parse(Bytes(text.utf8), uniqueNames: true) }
        #expect(error?.problem.contains("given twice") == true)
    }

    @Test(arguments: 0..<300)
    func `random values with repeated names, escapes and large numbers are read in one way`(seed: Int) throws {
        var random = SplitMix64(seed: UInt64(seed))
        let (text, repeats) = RandomJSON.object(&random, depth: 3)
        let value = try JSON.parse(text)
        // Written, read again and put into canonical form, it is the same value.
        #expect(try JSON.parse(value.bytes) == value)
        #expect(try JSON.parse(value.bytes).canonical == value.canonical)
        #expect(try JSON.parse(value.canonical).canonical == value.canonical)
        for member in value.members ?? [] { #expect(value[member.name] == member.value) }
        #expect(JSON.unique(value.members!) == value.members!)
        #expect((try? JSON.parse(Bytes(text.utf8), uniqueNames: true)) == (repeats ? nil : value))
        var scanner = JSONScanner(Bytes(text.utf8))
        scanner.requiresUniqueNames = true
        #expect((try? scanner.skip()) == nil || !repeats)
    }
}

/// JSON as a hostile writer has it.
enum RandomJSON {
    private static let numbers = [
        "0", "-0", "1", "1.0", "1e2", "0.1", "1e400", "-1E-7", "12345678901234567890", "123456789012345678901", "3.50",
    ]
    private static let names = ["path", "text", "a", "ab", "é"]

    /// An object's text, and whether some object in it has a name twice.
    static func object(_ random: inout SplitMix64, depth: Int) -> (text: String, repeats: Bool) {
        var (members, seen, repeats): ([String], Set<String>, Bool) = ([], [], false)
        // Sometimes more than the few that are compared one by one.
        for index in 0..<Int.random(in: 0...(Bool.random(using: &random) ? 4 : 24), using: &random) {
            let isNew = Int.random(in: 0..<3, using: &random) > 0
            let name = isNew ? "n\(index)" : names.randomElement(using: &random)!
            if !seen.insert(name).inserted { repeats = true }
            let (value, inner) = value(&random, depth: depth - 1)
            if inner { repeats = true }
            members.append("\(escaped(name, &random)):\(value)")
        }
        return ("{" + members.joined(separator: ",") + "}", repeats)
    }

    private static func value(_ random: inout SplitMix64, depth: Int) -> (String, Bool) {
        switch Int.random(in: 0..<(depth > 0 ? 5 : 3), using: &random) {
        case 0: return (numbers.randomElement(using: &random)!, false)
        case 1: return (["true", "false", "null"].randomElement(using: &random)!, false)
        case 2: return (escaped(names.randomElement(using: &random)!, &random), false)
        case 3: return object(&random, depth: depth)
        default:
            let (inner, repeats) = object(&random, depth: depth)
            return ("[\(numbers.randomElement(using: &random)!),\(inner)]", repeats)
        }
    }

    /// A string, some of its characters as escapes.
    private static func escaped(_ text: String, _ random: inout SplitMix64) -> String {
        "\""
            + text.utf16.map { unit in
                let hex = String(unit, radix: 16)
                let escape = "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
                return Bool.random(using: &random) ? escape : String(UnicodeScalar(unit)!)
            }.joined() + "\""
    }
}

@Suite struct `Timestamps` {
    @Test(arguments: [
        (0, "1970-01-01T00:00:00.000Z"), (1_767_225_600_125, "2026-01-01T00:00:00.125Z"), (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"), (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ])
    func `are written and read as RFC 3339`(milliseconds: Int64, text: String) {
        #expect(Timestamp(milliseconds: milliseconds).description == text)
        #expect(Timestamp(text) == Timestamp(milliseconds: milliseconds))
    }

    @Test(arguments: [
        ("2026-01-01T01:00:00+01:00", 1_767_225_600_000 as Int64?), ("2026-01-01T00:00:00Z", 1_767_225_600_000),
        ("2025-12-31T19:00:00-05:00", 1_767_225_600_000),
        ("2026-02-30T00:00:00Z", nil), ("2026-01-01", nil), ("2026-01-01T00:00:00", nil), ("2026-13-01T00:00:00Z", nil),
        ("2026-01-01T00:00:00.Z", nil), ("", nil),
    ])
    func `with offsets are understood, and nonsense is not`(text: String, milliseconds: Int64?) {
        #expect(Timestamp(text)?.milliseconds == milliseconds)
    }

    @Test func `move by whole milliseconds, never too early`() {
        #expect(Timestamp(milliseconds: 5).advanced(by: .microseconds(1)).milliseconds == 6)
        #expect(Timestamp(milliseconds: 5).advanced(by: .seconds(-1)).milliseconds == -995)
    }
}
