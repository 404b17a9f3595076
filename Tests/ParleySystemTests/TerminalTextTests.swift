@testable import ParleySystem
import Testing

@Suite struct `Text for terminals` {
    /// Characters that a terminal obeys, or that hide or turn round their neighbours.
    static let dangerous: [Unicode.Scalar] =
        (0..<0x20).filter { $0 != 0x09 && $0 != 0x0A }.map { Unicode.Scalar($0) }
        + (UInt32(0x7F)..<0xA0).compactMap { Unicode.Scalar($0) }
        + ([0x061C, 0x200E, 0x200F, 0x2028, 0x2029] + Array(0x202A...0x202E) + Array(0x2066...0x2069) + [0xFFF9, 0xE0041] as [UInt32])
        .compactMap { Unicode.Scalar($0) }

    @Test func `no interpolation lets a control character through`() {
        for scalar in `Text for terminals`.dangerous {
            let value = "a\(scalar)b"
            let shown: [TerminalText] = [
                "\(value)", "\(line: value)", "\(text: value)", "\(quoted: value)", "\(json: .string(value))", TerminalText(text: value),
                TerminalText(lines: [value]), TerminalText(json: .string(value)),
            ]
            for text in shown { #expect(!text.string.unicodeScalars.contains(scalar), "U+\(String(scalar.value, radix: 16))") }
        }
    }

    @Test(arguments: [
        ("\u{1b}[2J", "\\u001b[2J"), ("a\u{9b}1mb", "a\\u009b1mb"), ("a\rb", "a\\rb"), ("a\r\nb", "a\\r\\nb"), ("a\nb\tc", "a\\nb\\tc"),
        ("pay\u{200b}roll\u{202e}txt", "pay\\u200broll\\u202etxt"), ("a  b", "a \\u0020b"), ("a\u{3000}b", "a\\u3000b"),
        ("\u{e0041}", "\\udb40\\udc41"), ("ümläut 日本 👍", "ümläut 日本 👍"), ("", ""),
    ])
    func `a name stays on its line, and shows what it hides`(_ name: String, _ shown: String) {
        let text: TerminalText = "> \(name)"
        #expect(text.string == "> " + shown)
    }

    @Test func `prose keeps what languages and emoji need`() {
        let family = "👨\u{200d}👩\u{200d}👧 ❤\u{fe0f} می\u{200c}خواهم"
        let text: TerminalText = "\(line: family) \(text: family)"
        #expect(text.string == "\(family) \(family)")
    }

    @Test func `prose keeps its lines, and quoted it owns each of them`() {
        let value = "one\n  asks for approval: x\r\ntwo\tthree"
        #expect(TerminalText(text: value).string == "one\n  asks for approval: x\ntwo\tthree")
        let quoted: TerminalText = "> \(quoted: value)"
        #expect(quoted.string == "> one\n>   asks for approval: x\n> two\tthree")
        #expect(TerminalText(lines: [value, "b"]).string == "one\\n  asks for approval: x\\r\\ntwo\\tthree\nb\n")
    }

    @Test func `JSON reads back as the same value, with all that is invisible escaped`() throws {
        let value: JSON = ["na\u{202e}me": .string("\u{1b}[2J\u{7f}\u{85}\u{200b}\u{e0041}\\u\n\"")]
        let text = TerminalText(json: value).string
        #expect(text.unicodeScalars.allSatisfy { (0x20..<0x7F).contains($0.value) })
        #expect(text.contains("\\u001b[2J\\u007f\\u0085\\u200b\\udb40\\udc41"))
        #expect(try JSON.parse(text) == value)
    }

    @Test func `what is shown is shown again as it is`() {
        for value in ["a\u{1b}b", "a\nb", "a\u{200b}"] {
            #expect(TerminalText.line(TerminalText.name(value)) == TerminalText.name(value))
        }
    }

    @Test func `pieces cut anywhere show what the whole shows`() {
        let whole = "a\u{1b}[2J\u{9b}b\r\nc\rd é日👍\u{202e}e\r"
        let bytes = Bytes(whole.utf8)
        for first in 0...bytes.count {
            for second in first...bytes.count {
                var stream = TerminalText.Stream()
                let pieces = [bytes[..<first], bytes[first..<second], bytes[second...]].map { stream.feed(Bytes($0)).string }
                #expect(pieces.joined() + stream.end().string == TerminalText(text: whole).string)
            }
        }
    }

    @Test func `bytes that are no text show as what cannot be read`() {
        var stream = TerminalText.Stream()
        let shown = stream.feed([0x61, 0x9B, 0x32, 0x4A, 0xC2]).string + stream.feed([0x41]).string + stream.end().string
        #expect(shown == "a\u{fffd}2J\u{fffd}A")
    }
}

@Suite struct `Values in the log of the process` {
    @Test(arguments: [
        ("a/b", "a/b"), ("two words", #""two words""#), ("a\"b", #""a\"b""#), ("a\u{1b}[2J", #""a\u001b[2J""#), ("a\nb=c", #""a\nb=c""#),
        ("a\u{202e}b", #""a\u202eb""#), ("日本", "日本"), ("", ""),
    ])
    func `stand on one line, and show what they hide`(_ value: String, _ shown: String) { #expect(Diagnostics.shown(value) == shown) }

    @Test func `are cut where they are long`() {
        let shown = Diagnostics.shown(String(repeating: "x", count: 5_000))
        #expect(shown.count < 1_100 && shown.hasSuffix("…"))
    }
}
