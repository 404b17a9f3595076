internal import ParleySystem

/// The limits of a model's answer. A longer one fails the call with an error: an answer is held in memory and is logged as a whole.
package struct AnswerBounds: Sendable {
    package static let textBytesMax = 4 << 20
    package static let reasoningBytesMax = 4 << 20
    package static let callsMax = 128
    package static let argumentsBytesMax = 1 << 20
    /// All arguments of an answer, and what is kept of it to be sent back, together.
    package static let callBytesMax = 4 << 20

    private var textBytes = 0
    private var reasoningBytes = 0
    private var argumentBytes: [Int] = []
    private var callBytes = 0

    /// The memory that an answer takes until it ends.
    var heldBytes: Int { textBytes + callBytes }

    package init() {}

    /// Counts `event`.
    ///
    /// - Returns: why the answer is refused, once it is beyond a bound.
    package mutating func count(_ event: ModelEvent) -> StepFailure? {
        switch event {
        case .text(let text):
            textBytes += text.utf8.count
            return problem("text", textBytes, AnswerBounds.textBytesMax)
        case .reasoning(let text):
            reasoningBytes += text.utf8.count
            return problem("reasoning", reasoningBytes, AnswerBounds.reasoningBytesMax)
        case .toolCall(let index, let id, let name, let arguments):
            guard (0..<AnswerBounds.callsMax).contains(index) else {
                return AnswerBounds.failure("calls tools more than \(AnswerBounds.callsMax) times")
            }
            while argumentBytes.count <= index { argumentBytes.append(0) }
            argumentBytes[index] += arguments.utf8.count
            callBytes += arguments.utf8.count + (id?.utf8.count ?? 0) + (name?.utf8.count ?? 0)
            return problem("the arguments of a call", argumentBytes[index], AnswerBounds.argumentsBytesMax)
                ?? problem("its calls", callBytes, AnswerBounds.callBytesMax)
        case .returned(_, let members):
            callBytes += members.bytes.count
            return problem("what it wants back", callBytes, AnswerBounds.callBytesMax)
        case .usage, .finished, .failed: return nil
        }
    }

    private func problem(_ part: String, _ count: Int, _ max: Int) -> StepFailure? {
        count > max ? AnswerBounds.failure("is too large: \(part) is more than \(max) bytes") : nil
    }

    private static func failure(_ problem: String) -> StepFailure {
        StepFailure(
            code: "answer_too_large", message: "the model's answer \(problem). Remedy: lower max_tokens, or ask for less at once.",
            retryable: false)
    }
}
