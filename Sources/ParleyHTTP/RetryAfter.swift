package import ParleySystem

/// How long an upstream asks to wait: `Retry-After` (RFC 9110, section 10.2.3) and the millisecond form that some model servers add.
package enum RetryAfter {
    /// The wait that `headers` ask for, never negative and at most ``longest``; `nil` when they ask for none or it cannot be read.
    package static func parse(_ headers: [(name: String, value: String)], now: Timestamp) -> Duration? {
        func value(_ name: String) -> String? { headers.last { $0.name.lowercased() == name }.map { trimmed($0.value) } }
        if let text = value("retry-after-ms"), let milliseconds = digits(text) { return min(.milliseconds(milliseconds), longest) }
        guard let text = value("retry-after") else { return nil }
        if let seconds = digits(text) { return min(.seconds(seconds), longest) }
        guard let date = parseDate(text) else { return nil }
        return min(max(.zero, now.duration(to: date)), longest)
    }

    /// The wait of so many seconds, as bodies have it, at most ``longest``; `nil` for a value that is no length of time.
    package static func seconds(_ seconds: Double) -> Duration? {
        seconds >= 0 ? .milliseconds(Int64(min(seconds, longest / .seconds(1)) * 1_000)) : nil
    }

    /// Some thirty years. A server that asks for more wants no call for long, and callers have bounds of their own.
    package static let longest = Duration.seconds(1_000_000_000)

    /// Parses an HTTP date in any of the three forms that RFC 9110, section 5.6.7 has a recipient accept.
    package static func parseDate(_ text: String) -> Timestamp? {
        let words = text.split { $0 == " " || $0 == "-" || $0 == "," }.map(String.init)
        guard let weekday = words.first, weekday.count >= 3, weekday.allSatisfy(\.isLetter) else { return nil }
        switch words.count {
        // Sun, 06 Nov 1994 08:49:37 GMT, and the old Sunday, 06-Nov-94 08:49:37 GMT
        case 6 where words[5] == "GMT": return timestamp(year: words[3], month: words[2], day: words[1], time: words[4])
        // Sun Nov  6 08:49:37 1994
        case 5: return timestamp(year: words[4], month: words[1], day: words[2], time: words[3])
        default: return nil
        }
    }

    private static let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]

    private static func timestamp(year: String, month: String, day: String, time: String) -> Timestamp? {
        guard let number = months.firstIndex(of: month), var century = Int(year), (1...2).contains(day.count) else { return nil }
        // A year of two digits: 70 and later lie in the last century.
        if year.count == 2 { century += century < 70 ? 2000 : 1900 }
        func padded(_ text: String) -> String { text.count == 1 ? "0" + text : text }
        return Timestamp("\(century)-\(padded(String(number + 1)))-\(padded(day))T\(time)Z")
    }

    /// The number that `text` spells with digits alone; `nil` also for one that fits into no integer.
    private static func digits(_ text: String) -> Int64? {
        guard !text.isEmpty, text.utf8.allSatisfy({ (48...57).contains($0) }) else { return nil }
        return Int64(text)
    }

    private static func trimmed(_ text: String) -> String {
        String(text.drop { $0 == " " || $0 == "\t" }.reversed().drop { $0 == " " || $0 == "\t" }.reversed())
    }
}
