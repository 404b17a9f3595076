/// Text that is safe to show: nothing in it moves the cursor, starts a line that its author did not own, or reads in another order than it
/// is stored in.
///
/// Terminals, logs and people take some characters for commands: control characters (C0, DEL, C1), controls of direction, separators of
/// lines and characters that have no width. A value written by another party gets into a `TerminalText` only by an interpolation, and each
/// interpolation says how much the value may do:
///
/// | interpolation | for | line breaks and tabs | characters without width |
/// |---|---|---|---|
/// | `\(value)` | names and other short values | shown as `\n`, `\t` | shown as `\u200b` |
/// | `\(line: value)` | prose that must stay on its line | shown as `\n`, `\t` | kept: languages and emoji need some |
/// | `\(quoted: value)` | prose of several lines, each behind `> ` | kept | kept |
/// | `\(text: value)` | prose that has the screen to itself | kept | kept |
/// | `\(json: value)` | JSON, compact | escaped as JSON has it | escaped |
///
/// Text that is not shown as it is, is shown as JSON would escape it. Literal parts are taken as they are.
package struct TerminalText: Sendable, Equatable {
    package private(set) var string: String

    private init(string: String) { self.string = string }

    /// Prose that keeps its line breaks and tabs.
    package init(text: String) { string = TerminalText.shown(text, .text) }

    /// A value as compact JSON that reads back as the same value.
    package init(json: JSON) { string = TerminalText.shown(json.text, .json) }

    /// Lines made of many values: whatever a value holds, each stays one line.
    package init(lines: [String]) { string = lines.map { TerminalText.shown($0, .line) + "\n" }.joined() }

    /// Text of this program's own, such as its help.
    package init(trusted: String) { string = trusted }

    /// A short value on its line.
    package static func name(_ text: String) -> String { shown(text, .name) }

    /// Prose on its line.
    package static func line(_ text: String) -> String { shown(text, .line) }

    package static func + (first: TerminalText, second: TerminalText) -> TerminalText {
        TerminalText(string: first.string + second.string)
    }
}

extension TerminalText: ExpressibleByStringInterpolation {
    package struct StringInterpolation: StringInterpolationProtocol {
        fileprivate var string = ""

        package init(literalCapacity: Int, interpolationCount: Int) {}

        package mutating func appendLiteral(_ literal: String) { string += literal }
        package mutating func appendInterpolation(_ name: String) { string += TerminalText.name(name) }
        package mutating func appendInterpolation(_ number: some BinaryInteger) { string += "\(number)" }
        package mutating func appendInterpolation(_ text: TerminalText) { string += text.string }
        package mutating func appendInterpolation(line: String) { string += TerminalText.line(line) }
        package mutating func appendInterpolation(text: String) { string += shown(text, .text) }
        package mutating func appendInterpolation(quoted text: String) { string += shown(text, .quoted) }
        package mutating func appendInterpolation(json: JSON) { string += shown(json.text, .json) }
    }

    package init(stringLiteral value: String) { string = value }
    package init(stringInterpolation: StringInterpolation) { string = stringInterpolation.string }
}

// MARK: - What is shown

extension TerminalText {
    fileprivate enum Style { case name, line, quoted, text, json }

    fileprivate static func shown(_ text: String, _ style: Style) -> String {
        guard text.unicodeScalars.contains(where: { mayNeedCare($0, style) }) else { return text }
        var shown = String.UnicodeScalarView()
        var (afterBlank, afterReturn) = (false, false)
        for scalar in text.unicodeScalars {
            defer { (afterBlank, afterReturn) = (scalar == " ", scalar == "\r") }
            // A line may end in CRLF; a carriage return by itself would let the line be overwritten.
            if afterReturn, !(scalar == "\n" && keepsBreaks(style)) { shown.append(contentsOf: escape("\r").unicodeScalars) }
            if scalar == "\r" { continue }
            if scalar == "\n", keepsBreaks(style) {
                shown.append(contentsOf: (style == .quoted ? "\n> " : "\n").unicodeScalars)
            } else if scalar == "\t", keepsBreaks(style) {
                shown.append(scalar)
            } else if isUnsafe(scalar, style) || style == .name && scalar == " " && afterBlank {
                shown.append(contentsOf: escape(scalar).unicodeScalars)
            } else {
                shown.append(scalar)
            }
        }
        if afterReturn { shown.append(contentsOf: escape("\r").unicodeScalars) }
        return String(shown)
    }

    private static func keepsBreaks(_ style: Style) -> Bool { style == .text || style == .quoted }

    private static func mayNeedCare(_ scalar: Unicode.Scalar, _ style: Style) -> Bool {
        style == .name && scalar == " " || isUnsafe(scalar, style)
    }

    private static func isUnsafe(_ scalar: Unicode.Scalar, _ style: Style) -> Bool {
        let value = scalar.value
        if value < 0x7F { return value < 0x20 }
        if isControl(value) { return true }
        guard style == .name || style == .json else { return false }
        // Blanks of other widths push what follows out of sight as well as spaces do.
        return isInvisible(scalar) || style == .name && scalar.properties.isWhitespace
    }

    /// Whether a terminal or a reader's eye would obey it: DEL and C1, controls of direction, separators of lines, tags.
    private static func isControl(_ value: UInt32) -> Bool {
        switch value {
        case 0x7F..<0xA0, 0x061C, 0x200E, 0x200F, 0x2028...0x202E, 0x2066...0x206F, 0xFFF9...0xFFFB, 0xE0000...0xE00FF: true
        default: false
        }
    }

    private static func isInvisible(_ scalar: Unicode.Scalar) -> Bool {
        scalar.properties.isDefaultIgnorableCodePoint || scalar.value == 0x2800
    }

    /// As JSON escapes it: `\n`, `\u001b`; beyond the basic plane as two halves.
    private static func escape(_ scalar: Unicode.Scalar) -> String {
        switch scalar {
        case "\n": return "\\n"
        case "\r": return "\\r"
        case "\t": return "\\t"
        default:
            return UTF16.encode(scalar)!.map { unit in
                let digits = String(unit, radix: 16)
                return "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            }.joined()
        }
    }
}

extension TerminalText {
    /// Shows text that comes in pieces, which may be cut anywhere: between the bytes of a character, too, or within a line's end.
    package struct Stream: Sendable {
        /// The beginning of a character, or a carriage return: the next piece decides which.
        private var held = Bytes()

        package init() {}

        package mutating func feed(_ bytes: Bytes) -> TerminalText {
            let all = held + bytes
            let end = all.count - Stream.unfinished(all)
            held = Bytes(all[end...])
            return TerminalText(text: Bytes(all[..<end]).text)
        }

        /// Returns the held text, when nothing follows.
        package mutating func end() -> TerminalText {
            defer { held = [] }
            return TerminalText(text: held.text)
        }

        /// How many bytes at the end cannot be shown yet.
        private static func unfinished(_ bytes: Bytes) -> Int {
            if bytes.last == UInt8(ascii: "\r") { return 1 }
            for count in 1..<4 where count <= bytes.count {
                let byte = bytes[bytes.count - count]
                if byte < 0x80 { return 0 }
                guard byte >= 0xC0 else { continue }
                let length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2
                return length > count ? count : 0
            }
            return 0
        }
    }
}
