internal import ParleyAgents
internal import ParleySystem

/// Keeps the key and the conversation out of what an upstream's error is quoted with.
struct Redaction: Sendable {
    private let apiKey: Bytes
    /// The conversation.
    private let secrets: [Bytes]

    private static let charactersMax = 300
    /// What is looked at of an upstream's words.
    private static let bytesMax = 4_096
    /// As many bytes in a row that also stand in the conversation count as quoting it. Shorter runs are common words.
    private static let windowBytes = 16
    /// The same for the key, of which some quote the beginning.
    private static let keyWindowBytes = 8
    private static let mark = Bytes("[...]".utf8)

    init(apiKey: String?, messages: [ModelMessage], continuing: String?) {
        self.apiKey = Bytes((apiKey ?? "").utf8)
        secrets = ([continuing].compactMap { $0 } + messages.flatMap { [$0.text] + $0.toolCalls.map(\.arguments) }).map { Bytes($0.utf8) }
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
        Redaction.mark(&isSecret, where: text, quotes: [apiKey], window: Redaction.keyWindowBytes, shortest: 1)
        Redaction.mark(&isSecret, where: text, quotes: secrets, window: Redaction.windowBytes, shortest: 8)
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

    /// Marks what of `text` stands in one of `secrets`: runs of `window` bytes, or a secret that is shorter, but not shorter than `shortest`, as a whole.
    private static func mark(_ isSecret: inout [Bool], where text: Bytes, quotes secrets: [Bytes], window: Int, shortest: Int) {
        func places(of size: Int) -> [ArraySlice<UInt8>: [Int]] {
            Dictionary((0..<max(0, text.count - size + 1)).map { (text[$0..<$0 + size], [$0]) }, uniquingKeysWith: +)
        }
        let known = places(of: window)
        for secret in secrets where secret.count >= shortest {
            let size = min(window, secret.count)
            let places = size == window ? known : places(of: size)
            guard !places.isEmpty else { continue }
            for start in 0...(secret.count - size) {
                for place in places[secret[start..<start + size]] ?? [] {
                    for index in place..<place + size { isSecret[index] = true }
                }
            }
        }
    }
}
