internal import Glibc

/// The process's own reports, on standard error: static messages with named values, never payloads or secrets.
package enum Diagnostics {
    package enum Level: String, Sendable { case info, warning, error }

    /// Writes one line: `2026-01-31T09:30:00.125Z warning channel read failed channel=a/b reason="..."`.
    package static func log(_ level: Level, _ message: StaticString, _ values: KeyValuePairs<String, any Sendable> = [:]) {
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        var line = Timestamp(milliseconds: Int64(now.tv_sec) * 1_000 + Int64(now.tv_nsec) / 1_000_000).utf8
        line.append(" \(level.rawValue) \(message)")
        for (name, value) in values {
            line.append(" \(name)=" + shown(String(describing: value)))
        }
        put(line)
    }

    /// Writes a line for the person who started the process.
    package static func say(_ text: String) { put(Bytes(TerminalText(text: text).string.utf8)) }

    /// Beyond it a value is cut: text chosen by an outside party must not fill the log.
    private static let valueCharactersMax = 1_024

    /// A value on one line, in quotes where it has more than one word or anything that a terminal would obey.
    static func shown(_ value: String) -> String {
        let text = value.count > valueCharactersMax ? value.prefix(valueCharactersMax) + "…" : value
        let isPlain = text.utf8.allSatisfy { $0 > 0x20 && $0 != UInt8(ascii: "\"") } && TerminalText.name(text) == text
        return isPlain ? text : TerminalText(json: .string(text)).string
    }

    private static func put(_ line: Bytes) {
        var line = line
        line.append(UInt8(ascii: "\n"))
        // One write, so that lines of several threads do not mix. Nothing can be done about a closed standard error.
        _ = line.withUnsafeBytes { write(2, $0.baseAddress, $0.count) }
    }
}
