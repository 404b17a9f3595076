internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// Reads the chunks of an answer, and decides whether it is whole.
///
/// An answer is whole when it has a `finish_reason` that means so, when nothing was said behind that without a new one or `[DONE]`, when the stream
/// did not stop where more may have been to come, and when there is a text or a call in it. Anything that the reader does not understand fails the
/// answer: an error in any place, another kind of content, a call without a name, a second text.
struct AnswerReader: Sendable {
    private let failures: ChatFailures
    private let isContinuing: Bool
    private var bounds = AnswerBounds()
    private var toolCalls: ToolCallMerger
    private var choices = AnswerChoices()
    private var text = AnswerText()
    /// The model's text in place of an answer.
    private var declined = ""
    private var returned = ReturnedMembers()
    private var split = SplitCharacters()
    /// The member of the last parsed chunk that has two values.
    private var ambiguousName: String?
    private var echo: EchoedPrefix
    /// A delta has said something.
    private var sawDelta = false
    private var sawReasoning = false

    /// Rises with everything that is of the answer.
    private(set) var progress = 0
    /// The error that came in place of an answer.
    private(set) var refusal: UpstreamError?

    /// - Parameter continuing: The text that the answer continues.
    init(_ failures: ChatFailures, tools: [String], continuing: String?, dropsEcho: Bool) {
        (self.failures, isContinuing) = (failures, continuing?.isEmpty == false)
        toolCalls = ToolCallMerger(tools: tools)
        echo = EchoedPrefix(dropsEcho ? continuing : nil)
    }

    /// It is an answer in one piece, so nothing of it can be missing.
    var isInOnePiece = false

    var hasFinished: Bool { choices.finish != nil }

    /// The members that an answer with calls wants to see again with them.
    var returnedMembers: JSON? { toolCalls.isEmpty ? nil : returned.members }

    /// The part of the text that was held back: the beginning of a repetition that did not come, or half a character.
    var rest: String? {
        let rest = (echo.rest ?? "") + (split.hasHalfOfText ? "\u{FFFD}" : "")
        return rest.isEmpty ? nil : rest
    }

    /// The end of an answer without `[DONE]` whose stream stops like that; `nil` when something may be missing.
    func ended(_ how: AnswerChoices.StreamEnd) -> ModelEvent? { isWhole(at: how) ? end() : nil }

    func isWhole(at end: AnswerChoices.StreamEnd) -> Bool { choices.isWhole(at: isInOnePiece ? .clean : end) }

    // MARK: Events

    /// Reads an event, adds what it says to `output`, and gives the end of the answer when it is one.
    mutating func read(_ event: ServerSentEvent, _ output: inout [ModelEvent]) -> ModelEvent? {
        let event = event.unframed
        if event.isDone { return end() }
        let isError = event.name.lowercased() == "error"
        guard let value = parse(event.data) else {
            // A whole answer is not discarded for what follows it.
            guard !isWhole(at: .broken) else { return nil }
            if isError { return .failed(fail(UpstreamError(.string(event.data.text)))) }
            return event.isSignOfLife ? nil : parts(event, &output)
        }
        if event.isSignOfLife, value["choices"] == nil { return nil }
        if isError, !isWhole(at: .broken) { return .failed(fail(UpstreamError(answer: value) ?? UpstreamError(value))) }
        return read(value, &output)
    }

    /// The chunk in `data`, with the halves of characters joined; `nil` when it is no JSON.
    mutating func parse(_ data: Bytes) -> JSON? {
        let chunk = split.read(data)
        ambiguousName = chunk?.ambiguousName
        return chunk?.value
    }

    /// Some servers forget the empty line between two chunks, or the line's end, too.
    private mutating func parts(_ event: ServerSentEvent, _ output: inout [ModelEvent]) -> ModelEvent? {
        guard event.data.first == UInt8(ascii: "{"), Charset.isUTF8(event.data), let parts = event.parts else {
            return .failed(unreadable(event.data))
        }
        for part in parts {
            if let end = read(ServerSentEvent(data: part), &output) { return end }
        }
        return nil
    }

    /// Data that is no JSON is often a proxy's page or its words; the beginning of a chunk is not worth quoting.
    private func unreadable(_ data: Bytes) -> StepFailure {
        guard Charset.isUTF8(data) else { return failures.invalidEvent("is not well-formed UTF-8", retryable: false) }
        if LenientJSON.isTooDeep(data) { return failures.invalidEvent("is nested deeper than is read", retryable: false) }
        let isCut = data.first.map { [UInt8(ascii: "{"), UInt8(ascii: "["), UInt8(ascii: "\"")].contains($0) } ?? true
        return failures.invalidEvent("is not a JSON object", saying: isCut ? "" : PageText.isPage(data) ? PageText.words(data) : data.text)
    }

    /// Reads what ``parse(_:)`` gave: a chunk, or an answer in one piece.
    mutating func read(_ chunk: JSON, _ output: inout [ModelEvent]) -> ModelEvent? {
        if let name = ambiguousName {
            return ended(.broken)
                ?? .failed(failures.invalidEvent("has the member '\(name.prefix(40))' twice, with different values", retryable: false))
        }
        if let error = UpstreamError(answer: chunk) { return ended(.broken) ?? .failed(fail(error)) }
        guard chunk.members != nil else { return ended(.broken) ?? .failed(failures.invalidEvent("is not a JSON object")) }
        let choices = AnswerChoices.of(chunk)
        for (number, choice) in choices {
            guard self.choices.mayHave(number) else {
                return .failed(failures.invalidEvent("has more than \(AnswerChoices.choicesMax) choices", retryable: false))
            }
            if let failure = read(choice, number, of: chunk, &output) { return .failed(failure) }
        }
        let usage = choices.lazy.compactMap { ModelUsage(chunk: chunk, choice: $0.choice) }.first ?? ModelUsage(chunk: chunk, choice: nil)
        if let usage { output.append(.usage(usage)) }
        return nil
    }

    private mutating func read(_ choice: JSON, _ number: Int64, of chunk: JSON, _ output: inout [ModelEvent]) -> StepFailure? {
        let (delta, message) = (choice["delta"], choice["message"])
        for place in [choice, delta, message].compactMap({ $0 }) {
            if let error = place["error"], let failure = UpstreamError(answer: ["error": error]) { return fail(failure) }
        }
        var events: [ModelEvent] = []
        if let failure = read(choice, number, &events) { return failure }
        let reason = AnswerReader.word(
            choice["finish_reason"] ?? delta?["finish_reason"] ?? message?["finish_reason"] ?? chunk["finish_reason"] ?? .null)
        if choices.isSettled(number) && reason == nil { events.removeAll(where: \.isSaid) }
        // Gateways that give a reason with each piece mean the last one.
        let saying = AnswerReader.saying(events)
        // If the chunk has no text or call, any that there is came before it.
        let isBehindText = !(text.isEmpty && toolCalls.isEmpty)
        choices.read(
            number, saying, hasReason: reason != nil, isBehindText: isBehindText,
            isBehindAnything: isBehindText || sawReasoning || !declined.isEmpty)
        for event in events {
            if let failure = bounds.count(event) { return failure }
            if let failure = note(event, of: number, &output) { return failure }
        }
        guard let reason else { return nil }
        let details = [choice["native_finish_reason"], choice["finish_details"]?["type"], chunk["incomplete_details"]?["reason"]]
        return end(number, by: AnswerReader.worst(reason, details.compactMap { $0?.string }))
    }

    private mutating func fail(_ error: UpstreamError) -> StepFailure {
        if progress == 0 { refusal = error }
        return failures.inStream(error)
    }

    private static func saying(_ events: [ModelEvent]) -> AnswerChoices.Saying {
        if events.contains(where: \.isSpeech) { return .speech }
        return events.contains(where: \.isPiece) ? .thought : .nothing
    }

    private static func word(_ reason: JSON) -> String? {
        switch reason {
        case .null, .bool(false), .string(""), .string("null"), .string("None"): nil
        default: reason.string ?? reason.text
        }
    }

    /// Gateways put `stop` for what the engine behind them called a broken call or a limit; its own word is beside it.
    private static func worst(_ word: String, _ details: [String]) -> String {
        guard FinishReason(word) == .stop else { return word }
        return details.first { $0.lowercased().contains("malformed") || FinishReason($0) == .length } ?? word
    }

    private mutating func end(_ number: Int64, by word: String) -> StepFailure? {
        if choices.end(number, FinishReason(word), word: word) { progress += 1 }
        return failures.ended(FinishReason(word), word: word)
    }

    /// Takes what a choice says into the answer, and adds what is heard of it to `output`.
    private mutating func note(_ event: ModelEvent, of number: Int64, _ output: inout [ModelEvent]) -> StepFailure? {
        switch event {
        case .text(let piece):
            let isBlank = Bytes(piece.utf8).isBlank
            // White space in another choice is a filler.
            if isBlank, let speaker = choices.speaker, speaker != number { return nil }
            progress += 1
            guard isBlank || choices.speaks(number) else {
                return failures.invalidEvent(
                    "has a second text (choices \(choices.speaker!) and \(number)), where one answer was asked for", retryable: false)
            }
            text.add(Bytes(piece.utf8))
            choices.said(number)
            let new = echo.add(piece)
            if !new.isEmpty { output.append(.text(new)) }
        case .toolCall:
            progress += 1
            choices.said(number)
            output.append(event)
        // Thoughts or signatures behind the end do not change it, nor put it off.
        case .reasoning, .returned, .usage, .finished, .failed:
            if !isWhole(at: .broken) { progress += 1 }
            output.append(event)
        }
        return nil
    }

    // MARK: Text and calls

    /// Reads all places of a choice in which something may be said.
    private mutating func read(_ choice: JSON, _ number: Int64, _ events: inout [ModelEvent]) -> StepFailure? {
        for name in ["delta", "message"] {
            guard let said = choice[name], said.members == nil, ![.null, .bool(false), .string(""), .array([])].contains(said) else {
                continue
            }
            return failures.invalidEvent("has a \(name) that is \(said.kindName)", retryable: false)
        }
        if let delta = choice["delta"], delta.members != nil, let failure = read(delta: delta, number, &events) { return failure }
        let hasDelta = events.contains(where: \.isPiece)
        if let message = choice["message"], message.members != nil, let failure = read(message: message, number, &events) { return failure }
        let beside = choice.members!.filter { ["tool_calls", "function_call"].contains($0.name) }
        if !beside.isEmpty, let failure = read(message: .object(beside), number, &events) { return failure }
        if let text = choice["text"]?.string, !text.isEmpty {
            if !events.contains(where: \.isPiece) {
                events.append(.text(text))
            } else if let failure = read(message: ["content": .string(text)], number, &events) {
                return failure
            }
        }
        sawDelta = sawDelta || hasDelta
        return nil
    }

    private mutating func read(delta: JSON, _ number: Int64, _ events: inout [ModelEvent]) -> StepFailure? {
        let before = events.count
        if let failure = read(said: delta, number, &events) { return failure }
        if events[before...].contains(where: \.isText) { text.cameAsDelta() }
        return nil
    }

    private mutating func read(said delta: JSON, _ number: Int64, _ events: inout [ModelEvent]) -> StepFailure? {
        let reasoning = AnswerReader.reasoningNames.lazy.compactMap { name in delta[name]?.string.map { (name: name, text: $0) } }.first {
            !$0.text.isEmpty
        }
        if let reasoning {
            events.append(.reasoning(reasoning.text))
            returned.reasoned(reasoning.name, reasoning.text)
        }
        let content = MessageContent(of: delta, hasReasoning: reasoning != nil)
        if let kind = content.unknown
            ?? AnswerReader.unknownNames.first(where: { delta[$0].map { $0 != .null && $0 != .array([]) } ?? false })
        {
            return failures.invalidEvent("has content of a kind that is not understood ('\(kind.prefix(40))')", retryable: false)
        }
        if !content.reasoning.isEmpty { events.append(.reasoning(content.reasoning)) }
        if !content.text.isEmpty { events.append(.text(content.text)) }
        sawReasoning = sawReasoning || reasoning != nil || !content.reasoning.isEmpty
        decline(content.refusal + (delta["refusal"]?.string ?? ""))
        if let kept = returned.keep(delta), let failure = bounds.count(.returned(call: nil, kept)) { return failure }
        guard let calls = ToolCallMerger.pieces(in: delta) else {
            return failures.invalidEvent("has tool_calls that are neither objects nor JSON", retryable: false)
        }
        events += toolCalls.merge(calls, of: number)
        return nil
    }

    /// Reads a whole message in place of what is new of it: some servers put what is new there, some all that there is so far, some the whole once more
    /// behind or beside the pieces.
    private mutating func read(message: JSON, _ number: Int64, _ events: inout [ModelEvent]) -> StepFailure? {
        let piece = events.reduce(into: Bytes()) { if case .text(let text) = $1 { $0 += Bytes(text.utf8) } }
        var said: [ModelEvent] = []
        if let failure = read(said: unrepeated(message, isBehindPieces: sawDelta || !events.isEmpty), number, &said) { return failure }
        defer { events += said }
        guard let index = said.firstIndex(where: \.isText), case .text(let whole) = said[index] else { return nil }
        guard let rest = text.new(in: Bytes(whole.utf8), beside: piece) else {
            return failures.invalidEvent("has a message that differs from the pieces before it", retryable: false)
        }
        if rest.isEmpty { said.remove(at: index) } else { said[index] = .text(rest.text) }
        return nil
    }

    /// `message` without the reasoning and the calls that its pieces have said.
    private func unrepeated(_ message: JSON, isBehindPieces: Bool) -> JSON {
        guard isBehindPieces else { return message }
        var names: Set<String> = sawReasoning ? Set(AnswerReader.reasoningNames) : []
        if toolCalls.isRepeated(by: ToolCallMerger.pieces(in: message) ?? []) { names.formUnion(["tool_calls", "function_call"]) }
        return .object(message.members!.filter { !names.contains($0.name) })
    }

    private mutating func decline(_ words: String) {
        guard !words.isEmpty, declined.utf8.count < 4_096 else { return }
        declined += words
        progress += 1
    }

    /// The members of a choice that are read.
    static let choiceNames: Set = [
        "index", "delta", "message", "text", "tool_calls", "function_call", "finish_reason", "native_finish_reason", "finish_details",
        "usage",
        "error",
    ]
    /// The members of a delta or message that are read.
    static let saidNames = Set(
        ["content", "refusal", "tool_calls", "function_call", "finish_reason", "error"] + reasoningNames + unknownNames
            + MessageContent.otherNames + ReturnedMembers.names)
    private static let reasoningNames = ["reasoning_content", "reasoning", "reasoning_text", "thinking"]
    /// Content that an answer may have besides text and calls, and that no conversation here has a place for.
    private static let unknownNames = ["audio", "images"]

    // MARK: The end

    /// The end of an answer of which the endpoint says that it is over.
    func end() -> ModelEvent {
        guard let finish = choices.finish else { return .failed(failures.closed) }
        if !declined.isEmpty { return .failed(failures.refused(declined)) }
        if toolCalls.lacksName { return .failed(failures.invalidEvent("has a call without a name")) }
        if finish.reason == .toolCalls && toolCalls.isEmpty {
            return .failed(failures.invalidEvent("says that the model calls tools, and has no call"))
        }
        if text.isBlank && toolCalls.isEmpty && !isContinuing { return .failed(failures.empty(isCut: finish.reason == .length)) }
        return .finished(reason: finish.reason.standard ?? finish.word)
    }
}

extension ModelEvent {
    /// It is a piece of text or reasoning.
    fileprivate var isSaid: Bool {
        switch self {
        case .text, .reasoning: true
        default: false
        }
    }

    fileprivate var isText: Bool { if case .text = self { true } else { false } }

    /// It is a piece of text or of a call.
    fileprivate var isSpeech: Bool {
        switch self {
        case .text, .toolCall: true
        default: false
        }
    }

    fileprivate var isPiece: Bool { if case .toolCall = self { true } else { isSaid } }
}
