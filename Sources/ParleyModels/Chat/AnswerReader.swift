internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// Reads the chunks of an answer, and decides whether it is whole.
///
/// An answer is whole when it has a `finish_reason` that means so, when nothing was said behind that without a new one or `[DONE]`, and when there is a
/// text or a call in it. What it does not understand fails it: an error in any place, another kind of content, a call without a name.
struct AnswerReader: Sendable {
    private let failures: ChatFailures
    private let isContinuing: Bool
    private var bounds = AnswerBounds()
    private var toolCalls: ToolCallMerger
    private var finish: (reason: FinishReason, word: String)?
    /// Something was said behind the reason to finish.
    private var hasGoneOn = false
    /// The reason came in a chunk of its own, behind something said: the answer is over, and what is said behind that is not of it.
    private var isSettled = false
    private var text = Bytes()
    /// What the model said instead of an answer.
    private var declined = ""
    private var returned = ReturnedMembers()
    private var split = SplitCharacters()
    private var sawDelta = false
    /// `message` has what there is so far, and not what is new.
    private var isCumulative = false

    /// Rises with everything that is of the answer.
    private(set) var progress = 0
    /// The error that came in place of an answer.
    private(set) var refusal: UpstreamError?

    init(_ failures: ChatFailures, tools: [String], isContinuing: Bool) {
        (self.failures, self.isContinuing) = (failures, isContinuing)
        toolCalls = ToolCallMerger(tools: tools)
    }

    var hasFinished: Bool { finish != nil }

    /// What an answer with calls wants to see again with them.
    var returnedMembers: JSON? { toolCalls.isEmpty ? nil : returned.members }

    /// Half a character that stands alone at the end of the text.
    var rest: String? { split.hasHalfOfText ? "\u{FFFD}" : nil }

    /// The end of an answer whose connection has ended; `nil` when it was cut.
    func closed() -> ModelEvent? { finish != nil && !hasGoneOn ? end() : nil }

    // MARK: Events

    /// Reads an event, adds what it says to `output`, and gives the end of the answer when it is one.
    mutating func read(_ event: ServerSentEvent, _ output: inout [ModelEvent]) -> ModelEvent? {
        if event.isDone { return finish == nil ? .failed(failures.closed) : end() }
        let isError = event.name.lowercased() == "error"
        guard let value = split.read(event.data) else {
            // A whole answer is not given up for what follows it.
            guard finish == nil || hasGoneOn else { return nil }
            if isError { return .failed(fail(UpstreamError(.string(event.data.text)))) }
            return event.data.first == UInt8(ascii: "{") ? lines(event.data, &output) : .failed(unreadable(event.data))
        }
        if isError, closed() == nil { return .failed(fail(UpstreamError(answer: value) ?? UpstreamError(value))) }
        return read(value, &output)
    }

    /// Some servers forget the empty line between two chunks.
    private mutating func lines(_ data: Bytes, _ output: inout [ModelEvent]) -> ModelEvent? {
        let lines = data.split(separator: UInt8(ascii: "\n")).map { Bytes($0) }
        guard lines.count > 1 else { return .failed(unreadable(data)) }
        for line in lines {
            if let end = read(ServerSentEvent(data: line), &output) { return end }
        }
        return nil
    }

    /// What is no JSON is often a proxy's page or its words; the beginning of a chunk is not worth quoting.
    private func unreadable(_ data: Bytes) -> StepFailure {
        if LenientJSON.isTooDeep(data) { return failures.invalidEvent("is nested deeper than is read", retryable: false) }
        let isCut = data.first.map { [UInt8(ascii: "{"), UInt8(ascii: "["), UInt8(ascii: "\"")].contains($0) } ?? true
        return failures.invalidEvent("is not a JSON object", saying: isCut ? "" : PageText.isPage(data) ? PageText.words(data) : data.text)
    }

    /// Reads a chunk, or an answer in one piece.
    mutating func read(_ chunk: JSON, _ output: inout [ModelEvent]) -> ModelEvent? {
        if let error = UpstreamError(answer: chunk) { return closed() ?? .failed(fail(error)) }
        guard chunk.members != nil else { return closed() ?? .failed(failures.invalidEvent("is not a JSON object")) }
        let choice = chunk["choices"]?.array?.first { ($0["index"]?.integer ?? 0) == 0 }
        let failure = choice.flatMap { read(choice: $0, &output, isIncomplete: chunk["incomplete_details"]?["reason"]) }
        if failure == nil, let usage = ModelUsage(chunk: chunk, choice: choice) { output.append(.usage(usage)) }
        return failure.map { .failed($0) }
    }

    private mutating func read(choice: JSON, _ output: inout [ModelEvent], isIncomplete: JSON?) -> StepFailure? {
        let delta = choice["delta"].flatMap { $0.members?.isEmpty == false ? $0 : nil }
        let message = choice["message"].flatMap { $0.members == nil ? nil : $0 }
        for place in [choice, delta, message].compactMap({ $0 }) {
            if let error = place["error"], let failure = UpstreamError(answer: ["error": error]) { return fail(failure) }
        }
        var events: [ModelEvent] = []
        if let delta {
            if let failure = read(delta: delta, &events) { return failure }
            sawDelta = true
        } else if let message, let failure = read(message: message, &events) {
            return failure
        } else if let text = choice["text"]?.string, !text.isEmpty {
            events.append(.text(text))
        }
        let reason = AnswerReader.word(choice["finish_reason"] ?? .null)
        if isSettled && reason == nil { events.removeAll(where: \.isSaid) }
        // Gateways that give a reason with each piece mean the last one.
        if reason != nil && events.contains(where: \.isPiece) { isSettled = false }
        isSettled = isSettled || reason != nil && !events.contains(where: \.isPiece) && !(text.isEmpty && toolCalls.isEmpty)
        for event in events {
            if let failure = bounds.count(event) { return failure }
            note(event)
        }
        output += events
        guard let reason else { return nil }
        let details = [choice["native_finish_reason"], choice["finish_details"]?["type"], isIncomplete].compactMap { $0?.string }
        return end(by: AnswerReader.worst(reason, details))
    }

    private mutating func fail(_ error: UpstreamError) -> StepFailure {
        if progress == 0 { refusal = error }
        return failures.inStream(error)
    }

    private static func word(_ reason: JSON) -> String? {
        switch reason {
        case .null, .bool(false), .string(""), .string("null"): nil
        default: reason.string ?? reason.text
        }
    }

    /// Gateways put `stop` for what the engine behind them called a broken call or a limit; its own word is beside it.
    private static func worst(_ word: String, _ details: [String]) -> String {
        guard FinishReason(word) == .stop else { return word }
        return details.first { $0.lowercased().contains("malformed") || FinishReason($0) == .length } ?? word
    }

    private mutating func end(by word: String) -> StepFailure? {
        (finish, hasGoneOn) = ((FinishReason(word), word), false)
        progress += 1
        return failures.ended(FinishReason(word), word: word)
    }

    private mutating func note(_ event: ModelEvent) {
        progress += 1
        switch event {
        case .text(let piece): text += Bytes(piece.utf8)
        case .toolCall: break
        // What is thought or signed behind the end changes nothing of it.
        default: return
        }
        hasGoneOn = finish != nil
    }

    // MARK: What is said

    private mutating func read(delta: JSON, _ events: inout [ModelEvent]) -> StepFailure? {
        let reasoning = AnswerReader.reasoningNames.lazy.compactMap { name in delta[name]?.string.map { (name: name, text: $0) } }.first {
            !$0.text.isEmpty
        }
        if let reasoning {
            events.append(.reasoning(reasoning.text))
            returned.reasoned(reasoning.name, reasoning.text)
        }
        let content = MessageContent(delta["content"] ?? .null)
        if let kind = content.unknown
            ?? AnswerReader.unknownNames.first(where: { delta[$0].map { $0 != .null && $0 != .array([]) } ?? false })
        {
            return failures.invalidEvent("has content of a kind that is not understood ('\(kind.prefix(40))')", retryable: false)
        }
        if !content.reasoning.isEmpty { events.append(.reasoning(content.reasoning)) }
        if !content.text.isEmpty { events.append(.text(content.text)) }
        decline(content.refusal + (delta["refusal"]?.string ?? ""))
        if let kept = returned.keep(delta), let failure = bounds.count(.returned(call: nil, kept)) { return failure }
        events += toolCalls.merge(AnswerReader.calls(in: delta))
        return nil
    }

    /// A whole message in place of what is new of it: some servers put what is new there, some all that there is so far, some the whole once more
    /// behind the pieces.
    private mutating func read(message: JSON, _ events: inout [ModelEvent]) -> StepFailure? {
        let earlier = text
        var message = message
        if sawDelta, toolCalls.isRepeated(by: AnswerReader.calls(in: message)) {
            message = .object(message.members!.filter { !["tool_calls", "function_call"].contains($0.name) })
        }
        if let failure = read(delta: message, &events) { return failure }
        guard !earlier.isEmpty, let index = events.firstIndex(where: { if case .text = $0 { true } else { false } }),
            case .text(let said) = events[index]
        else { return nil }
        let all = Bytes(said.utf8)
        isCumulative = isCumulative || all.count > earlier.count && all.starts(with: earlier)
        guard isCumulative || sawDelta, all.starts(with: earlier) else { return nil }
        let rest = Bytes(all[earlier.count...])
        if rest.isEmpty { events.remove(at: index) } else { events[index] = .text(rest.text) }
        return nil
    }

    private mutating func decline(_ words: String) {
        guard !words.isEmpty, declined.utf8.count < 4_096 else { return }
        declined += words
        progress += 1
    }

    private static let reasoningNames = ["reasoning_content", "reasoning", "reasoning_text", "thinking"]
    /// What an answer may have beside text and calls, and no conversation here has a place for.
    private static let unknownNames = ["audio", "images"]

    private static func calls(in delta: JSON) -> [JSON] {
        if let calls = delta["tool_calls"] { return calls.array ?? (calls.members == nil ? [] : [calls]) }
        // What came before `tool_calls`: one call, without index and id.
        guard let call = delta["function_call"], call.members != nil else { return [] }
        return [["index": 0, "function": call]]
    }

    // MARK: The end

    private func end() -> ModelEvent {
        guard let finish else { return .failed(failures.closed) }
        if !declined.isEmpty { return .failed(failures.refused(declined)) }
        if toolCalls.lacksName { return .failed(failures.invalidEvent("has a call without a name")) }
        if finish.reason == .toolCalls && toolCalls.isEmpty {
            return .failed(failures.invalidEvent("says that the model calls tools, and has no call"))
        }
        let isBlank = text.allSatisfy { [0x20, 0x09, 0x0A, 0x0D].contains($0) }
        if isBlank && toolCalls.isEmpty && !isContinuing { return .failed(failures.empty(isCut: finish.reason == .length)) }
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

    fileprivate var isPiece: Bool { if case .toolCall = self { true } else { isSaid } }
}

extension ServerSentEvent {
    /// The event that says the stream is over.
    var isDone: Bool { data.count < 16 && data.filter { ![0x20, 0x09, 0x0D].contains($0) }.elementsEqual("[DONE]".utf8) }
}
