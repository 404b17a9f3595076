internal import ParleySystem

/// Drops the text that was sent to be continued, where the endpoint repeats it at the beginning of the continuation, as Mistral does.
///
/// Only the whole text counts, of a length that a model hardly says twice, and only if it is no pattern that repeats itself. Everything else that begins
/// like the text is new: a repeated last word cannot be told from a word that is said twice. As long as an answer may be a repetition it is held back.
struct EchoedPrefix: Sendable {
    private let prefix: Bytes
    /// How much of it has come back.
    private var count = 0
    private var isOver: Bool

    private static let bytesMin = 16
    /// How much of the text is looked at for a pattern.
    private static let patternBytesMax = 4_096

    init(_ prefix: String?) {
        self.prefix = Bytes((prefix ?? "").utf8)
        isOver = self.prefix.count < EchoedPrefix.bytesMin || EchoedPrefix.isPattern(self.prefix.prefix(EchoedPrefix.patternBytesMax))
    }

    /// Returns the new part of `text`, as far as it is known.
    mutating func add(_ text: String) -> String {
        guard !isOver else { return text }
        let (piece, missing) = (Bytes(text.utf8), prefix[count...])
        if piece.count < missing.count, missing.starts(with: piece) {
            count += piece.count
            return ""
        }
        isOver = true
        return piece.starts(with: missing) ? Bytes(piece[missing.count...]).text : Bytes(prefix[..<count]).text + text
    }

    /// The text of an answer that ended before it had repeated everything: it is new after all.
    var rest: String? { isOver || count == 0 ? nil : Bytes(prefix[..<count]).text }

    /// Whether `text` consists of one part said at least twice, the last time perhaps not to its end.
    private static func isPattern(_ text: ArraySlice<UInt8>) -> Bool {
        var borders: [Int] = []
        for (index, byte) in text.enumerated() {
            var border = borders.last ?? 0
            while border > 0, text[border] != byte { border = borders[border - 1] }
            borders.append(index > 0 && text[border] == byte ? border + 1 : 0)
        }
        return (borders.last ?? 0) * 2 >= text.count
    }
}
