internal import ParleySystem

/// The ends of an answer's choices.
///
/// One answer is asked for, so several choices are parts of it: GitHub Copilot puts the text into one and the calls into another. The answer is whole
/// when each choice that said something has named the reason for its end. Text may come from one choice only: two texts would be two answers.
///
/// Some gateways name a reason with every piece. There it says nothing of the end, and the connection has to; see ``ReasonWorth``.
struct AnswerChoices: Sendable {
    private struct Choice {
        /// Something was said without, or behind, a reason to finish.
        var isOpen = false
        /// Something was said that is part of the answer.
        var hasSaid = false
        /// The reason came in a chunk of its own, behind something said: the choice is over, and text behind that is not of it.
        var isSettled = false
        /// The worth of the last reason; `nil` without one.
        var worth: ReasonWorth?
        /// That reason came beside a piece, or before anything was said.
        var isReasonBesidePiece = false
        /// A piece has come without a reason, so this is no gateway that has one for each.
        var hasPlainPiece = false
        /// Something was said behind such a reason.
        var wasWrong = false
    }

    /// How far the last reason of a choice can be taken for that of its end.
    private enum ReasonWorth: Int, Comparable {
        /// Not at all: there were such reasons before, and they were not.
        case nothing
        /// It came with the first thing that was said, or before anything: all that there is, or the first piece of many.
        case little
        /// It came in a chunk of its own, or with a piece, where others had come without.
        case all

        static func < (one: ReasonWorth, other: ReasonWorth) -> Bool { one.rawValue < other.rawValue }
    }

    /// How a stream stops without `[DONE]`.
    enum StreamEnd: Sendable {
        /// In order, between two events.
        case clean
        /// Not at all: nothing more comes, for longer than pieces are waited for.
        case silent
        /// In the middle.
        case broken
    }

    /// The content of a chunk for a choice.
    enum Saying: Sendable {
        case nothing
        /// Reasoning, and nothing else.
        case thought
        case speech
    }

    private var choices: [Int64: Choice] = [:]
    private var finishes: [Int64: (reason: FinishReason, word: String)] = [:]
    /// The choice that the text comes from.
    private(set) var speaker: Int64?

    /// The reason to finish: that of the last choice, unless another was cut or calls tools.
    private(set) var finish: (reason: FinishReason, word: String)?

    /// Whether the answer is whole when the stream stops like that.
    func isWhole(at end: StreamEnd) -> Bool {
        guard finish != nil, !choices.values.contains(where: \.isOpen) else { return false }
        let least: ReasonWorth =
            switch end {
            case .clean: .nothing
            case .silent: .little
            case .broken: .all
            }
        // White space that fills another choice is not waited for.
        let said = choices.values.filter(\.hasSaid)
        return (said.isEmpty ? Array(choices.values) : said).allSatisfy { $0.worth.map { $0 >= least } ?? true }
    }

    static let choicesMax = 128

    func mayHave(_ number: Int64) -> Bool { choices[number] != nil || choices.count < AnswerChoices.choicesMax }

    func isSettled(_ number: Int64) -> Bool { choices[number]?.isSettled ?? false }

    /// Notes that `number` says something that is part of the answer.
    mutating func said(_ number: Int64) {
        choices[number, default: Choice()].isOpen = true
        choices[number]!.hasSaid = true
    }

    /// Notes that `number` says text.
    ///
    /// - Returns: whether it may.
    mutating func speaks(_ number: Int64) -> Bool {
        speaker = speaker ?? number
        return speaker == number
    }

    /// Notes what a chunk says in `number`, before what it says is noted piece by piece.
    ///
    /// - Parameters:
    ///   - hasReason: The chunk names a reason to finish.
    ///   - isBehindText: There have been text or calls before.
    ///   - isBehindAnything: There has been something before, be it reasoning.
    mutating func read(_ number: Int64, _ saying: Saying, hasReason: Bool, isBehindText: Bool, isBehindAnything: Bool) {
        guard hasReason || saying == .speech else { return }
        var choice = choices[number] ?? Choice()
        defer { choices[number] = choice }
        // Thoughts behind the end do not change it.
        let isMore = saying == .speech || saying == .thought && choice.worth != .all
        choice.wasWrong = choice.wasWrong || isMore && choice.isReasonBesidePiece
        guard hasReason else { return choice.hasPlainPiece = true }
        choice.isSettled = saying == .nothing && (choice.isSettled || isBehindText)
        if saying == .nothing {
            // An empty piece of a gateway that has a reason for each is no end, either.
            guard choice.isOpen || choice.worth == nil else { return }
            choice.worth = isBehindAnything ? .all : .little
            choice.isReasonBesidePiece = !isBehindAnything
        } else if isMore {
            choice.worth = choice.wasWrong ? .nothing : choice.hasPlainPiece ? .all : .little
            choice.isReasonBesidePiece = true
        }
    }

    /// Notes the reason to finish of `number`.
    ///
    /// - Returns: whether it ends anything: false where it only repeats an end, as some servers do for ever.
    mutating func end(_ number: Int64, _ reason: FinishReason, word: String) -> Bool {
        let isNew = choices[number]?.isOpen ?? true || finishes[number] == nil
        defer { note(number, reason, word: word) }
        return isNew
    }

    private mutating func note(_ number: Int64, _ reason: FinishReason, word: String) {
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
