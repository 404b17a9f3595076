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
