internal import ParleySystem

/// Drops the text that was sent to be continued, where the endpoint repeats it at the beginning of the continuation, as Mistral does.
///
/// Only the whole text counts, of a length that a model hardly says twice, and only if it is no pattern that repeats itself. Everything else that begins
/// like the text is new: a repeated last word cannot be told from a word that is said twice. As long as an answer may be a repetition it is held back.
struct EchoedPrefix: Sendable {
    private let prefix: Bytes
    private var held = Bytes()
    private var isOver: Bool

    private static let bytesMin = 16

    init(_ prefix: String?) {
        self.prefix = Bytes((prefix ?? "").utf8)
        isOver = self.prefix.count < EchoedPrefix.bytesMin || EchoedPrefix.isPattern(self.prefix)
    }

    /// What of `text` is new, as far as that is known.
    mutating func add(_ text: String) -> String {
        guard !isOver else { return text }
        held += Bytes(text.utf8)
        if held.count < prefix.count, prefix.starts(with: held) { return "" }
        isOver = true
        defer { held = [] }
        return held.starts(with: prefix) ? Bytes(held[prefix.count...]).text : held.text
    }

    /// The text of an answer that ended before it had repeated everything: it is new after all.
    var rest: String? { isOver || held.isEmpty ? nil : held.text }

    /// Whether `text` consists of one part said at least twice, the last time perhaps not to its end.
    private static func isPattern(_ text: Bytes) -> Bool {
        var borders: [Int] = []
        for (index, byte) in text.enumerated() {
            var border = borders.last ?? 0
            while border > 0, text[border] != byte { border = borders[border - 1] }
            borders.append(index > 0 && text[border] == byte ? border + 1 : 0)
        }
        return (borders.last ?? 0) * 2 >= text.count
    }
}
