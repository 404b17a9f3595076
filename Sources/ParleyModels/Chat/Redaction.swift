internal import ParleyAgents
internal import ParleySystem

/// Keeps the key and the conversation out of what an upstream's error is quoted with.
struct Redaction: Sendable {
    private let apiKey: Bytes
    /// The conversation; its bytes are looked at when something is quoted, and not held as long as the call lasts.
    private let secrets: [String]

    private static let charactersMax = 300
    /// The part of an upstream's words that is looked at.
    private static let bytesMax = 4_096
    /// A run of this many bytes that is also in the conversation counts as a quotation of it. Shorter runs are common words.
    private static let windowBytes = 16
    /// The same for the key, of which some quote the beginning.
    private static let keyWindowBytes = 8
    private static let mark = Bytes("[...]".utf8)

    init(apiKey: String?, messages: [ModelMessage], continuing: String?) {
        self.apiKey = Bytes((apiKey ?? "").utf8)
        secrets = [continuing].compactMap { $0 } + messages.flatMap { [$0.text] + $0.toolCalls.map(\.arguments) }
    }

    /// `text` in one line of at most 300 characters, with `[...]` for what it quotes of a secret; `nil` when it says nothing.
    func clean(_ text: String) -> String? {
        let kept = redacted(Bytes(text.utf8.prefix(Redaction.bytesMax))).text
        let line = String(kept.map { $0.isNewline || $0 == "\t" ? " " : $0 }.prefix(Redaction.charactersMax + 1))
        let words = line.drop { $0 == " " }
        guard words.replacing("[...]", with: "").contains(where: { $0.isLetter || $0.isNumber }) else { return nil }
        return line.count > Redaction.charactersMax ? String(line.prefix(Redaction.charactersMax - 1)) + "…" : String(words)
    }

    private func redacted(_ text: Bytes) -> Bytes {
        var isSecret = [Bool](repeating: false, count: text.count)
        Redaction.mark(&isSecret, where: text, quotes: [apiKey], window: Redaction.keyWindowBytes)
        Redaction.mark(&isSecret, where: text, quotes: secrets.lazy.map { Bytes($0.utf8) }, window: Redaction.windowBytes)
        guard isSecret.contains(true) else { return text }
        var output = Bytes()
        for index in text.indices {
            // Not within a character.
            let isInside = text[index] & 0xC0 == 0x80
            if isInside && index > 0 && isSecret[index - 1] { isSecret[index] = true }
            if !isSecret[index] { output.append(text[index]) } else if index == 0 || !isSecret[index - 1] { output += Redaction.mark }
        }
        return output
    }

    /// Marks the parts of `text` that quote one of `secrets`: runs of `window` bytes, or a shorter secret as a whole. One of fewer than eight bytes
    /// is no secret: it is a word like another.
    private static func mark(_ isSecret: inout [Bool], where text: Bytes, quotes secrets: some Sequence<Bytes>, window: Int) {
        let known = Runs(of: window, in: text)
        for secret in secrets where secret.count >= 8 {
            let size = min(window, secret.count)
            let runs = size == window ? known : Runs(of: size, in: text)
            for start in 0...(secret.count - size) where runs.mayHave(secret, at: start) {
                for place in runs.places[secret[start..<start + size]] ?? [] {
                    for index in place..<place + size { isSecret[index] = true }
                }
            }
        }
    }

    /// The places of each run of so many bytes in a text.
    private struct Runs {
        private(set) var places: [ArraySlice<UInt8>: [Int]] = [:]
        /// A look at four bytes rules most places of a long conversation out.
        private var beginnings = [Bool](repeating: false, count: 1 << 16)

        init(of size: Int, in text: Bytes) {
            for start in 0..<max(0, text.count - size + 1) {
                places[text[start..<start + size], default: []].append(start)
                beginnings[Runs.beginning(text, start)] = true
            }
        }

        func mayHave(_ secret: Bytes, at start: Int) -> Bool { beginnings[Runs.beginning(secret, start)] }

        private static func beginning(_ bytes: Bytes, _ start: Int) -> Int {
            let word = (0..<4).reduce(UInt32(0)) { $0 << 8 | UInt32(bytes[start + $1]) }
            return Int((word &* 0x9E37_79B1) >> 16)
        }
    }
}
