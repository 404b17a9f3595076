internal import ParleySystem

/// The ends of an answer's choices.
///
/// One answer is asked for, so several choices are parts of it: GitHub Copilot puts the text into one and the calls into another. The answer is whole
/// when each choice that said something has named the reason for its end. Text may come from one choice only: two texts would be two answers.
struct AnswerChoices: Sendable {
    private struct Choice {
        /// Something was said without, or behind, a reason to finish.
        var isOpen = false
        /// The reason came in a chunk of its own, behind something said: the choice is over, and text behind that is not of it.
        var isSettled = false
    }

    private var choices: [Int64: Choice] = [:]
    private var finishes: [Int64: (reason: FinishReason, word: String)] = [:]
    /// Which choice the text comes from.
    private(set) var speaker: Int64?

    /// The reason to finish: that of the last choice, unless another was cut or calls tools.
    private(set) var finish: (reason: FinishReason, word: String)?

    var isWhole: Bool { finish != nil && !choices.values.contains(where: \.isOpen) }

    static let choicesMax = 128

    func mayHave(_ number: Int64) -> Bool { choices[number] != nil || choices.count < AnswerChoices.choicesMax }

    func isSettled(_ number: Int64) -> Bool { choices[number]?.isSettled ?? false }

    /// Notes that `number` says something that is part of the answer.
    mutating func said(_ number: Int64) { choices[number, default: Choice()].isOpen = true }

    /// Notes that `number` says text.
    ///
    /// - Returns: whether it may.
    mutating func speaks(_ number: Int64) -> Bool {
        speaker = speaker ?? number
        return speaker == number
    }

    mutating func settle(_ number: Int64, _ isSettled: Bool) { choices[number, default: Choice()].isSettled = isSettled }

    mutating func end(_ number: Int64, _ reason: FinishReason, word: String) {
        choices[number, default: Choice()].isOpen = false
        finishes[number] = (reason, word)
        finish = (reason, word)
        for reason in [FinishReason.length, .toolCalls] {
            if let stronger = finishes.values.first(where: { $0.reason == reason }) { return finish = stronger }
        }
    }

    /// The elements of `choices`, each with its number; those without one are parts of the first.
    static func of(_ chunk: JSON) -> [(number: Int64, choice: JSON)] {
        let choices = chunk["choices"] ?? .null
        return (choices.array ?? [choices]).filter { $0.members != nil }.map { choice in
            (choice["index"]?.integer ?? choice["index"]?.string.flatMap { Int64($0) } ?? 0, choice)
        }
    }
}
