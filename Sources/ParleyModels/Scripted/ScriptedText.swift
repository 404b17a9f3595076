internal import ParleySystem

/// Writes the sentences of the scripted model: the same for the same seed and prompt, for ever.
enum ScriptedText {
    /// Text of exactly `tokens` tokens that opens with what was asked.
    static func write(about prompt: String, seed: UInt64, tokens count: Int) -> String {
        var random = SplitMix64(seed: seed &+ hash(prompt))
        var tokens = opening(prompt)
        var sentence = 0
        while tokens.count < count {
            sentence += 1
            // A paragraph only where a whole sentence fits after it.
            if sentence % 4 == 0, tokens.count + sentenceTokensMax < count { tokens.append("\n\n") }
            let words = write(&random)
            // No space at the start of a paragraph.
            tokens += tokens.last == "\n\n" ? [String(words[0].dropFirst())] + words.dropFirst() : words
        }
        return close(Array(tokens.prefix(max(0, count))))
    }

    /// Splits text as a model's tokens split it: a word with the space before it, a mark of punctuation, a run of line breaks.
    static func tokens(of text: String) -> [String] {
        var tokens: [String] = []
        split(text) { tokens.append($0) }
        return tokens
    }

    /// How many tokens there are, without holding them: a prompt of a megabyte may have as many.
    static func tokenCount(of text: String) -> Int {
        var count = 0
        split(text) { _ in count += 1 }
        return count
    }

    private static func split(_ text: String, _ take: (String) -> Void) {
        var token = ""
        func isMark(_ character: Character) -> Bool { character.isPunctuation && character != "'" && character != "-" }
        for character in text {
            let begins: Bool
            if let last = token.last {
                if character.isNewline {
                    begins = !last.isNewline
                } else if character.isWhitespace {
                    begins = true
                } else {
                    begins = last.isNewline || isMark(last) || (isMark(character) && !last.isWhitespace)
                }
            } else {
                begins = false
            }
            if begins {
                take(token)
                token = ""
            }
            token.append(character)
        }
        if !token.isEmpty { take(token) }
    }

    /// FNV-1a: stable over processes and versions, unlike `Hasher`.
    static func hash(_ text: String) -> UInt64 {
        text.utf8.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
    }

    private static let promptCharactersMax = 60
    private static let sentenceTokensMax = 30

    private static func opening(_ prompt: String) -> [String] {
        // Each word is a character at least, so what is not split is not quoted.
        let line = prompt.split(maxSplits: promptCharactersMax, whereSeparator: \.isWhitespace).joined(separator: " ")
        guard !line.isEmpty else { return tokens(of: "Nobody said anything, so here is a story.") }
        let quoted = line.count > promptCharactersMax ? line.prefix(promptCharactersMax - 1) + "…" : line[...]
        return tokens(of: "You said \"\(quoted)\". Here is what the scripted model makes of it.")
    }

    private static func write(_ random: inout SplitMix64) -> [String] {
        func one(_ words: [String]) -> String { words[Int(random.next() % UInt64(words.count))] }
        var text = " \(one(starts)) \(one(adjectives)) \(one(nouns)) \(one(verbs)) the \(one(nouns)) \(one(places))"
        if random.next() % 2 == 0 { text += ", and the \(one(nouns)) \(one(verbs)) it again" }
        return tokens(of: text + one([".", ".", ".", ".", "!"]))
    }

    /// Rounds off a text that was cut to its length, without changing the number of tokens.
    private static func close(_ tokens: [String]) -> String {
        guard let last = tokens.last, last != ".", last != "!" else { return tokens.joined() }
        let isSentenceOver = tokens.dropLast().last.map { $0 == "." || $0 == "!" } ?? false
        return tokens.dropLast().joined() + (isSentenceOver ? " End" : ".")
    }

    private static let starts = [
        "Every morning the", "By evening the", "On most days the", "Far away a", "Without hurry the", "Now and then a", "In the end the",
    ]
    private static let adjectives = ["quiet", "patient", "bright", "careful", "small", "curious", "steady", "old", "cheerful", "distant"]
    private static let nouns = [
        "river", "lantern", "garden", "letter", "clock", "bridge", "harbour", "kettle", "map", "sparrow", "window", "violin",
    ]
    private static let verbs = ["finds", "follows", "remembers", "answers", "carries", "watches", "mends", "greets"]
    private static let places = [
        "by the sea", "under the hill", "after the rain", "at the café", "without a word", "before noon", "in plain sight",
    ]
}
