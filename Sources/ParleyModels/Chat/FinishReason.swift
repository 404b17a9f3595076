/// An endpoint's reason for the end of an answer, by its meaning.
///
/// The standard knows five words; endpoints pass on those of the engines behind them, in their own case. A word that is not known to mean
/// that the model said all it wanted never completes an answer.
enum FinishReason: Sendable, Equatable {
    /// The answer is whole.
    case stop
    /// The answer is whole and asks for tools.
    case toolCalls
    /// The answer was cut at its limit.
    case length
    /// A filter cut or withheld the answer.
    case filtered
    /// The model declined to answer.
    case refused
    /// The endpoint gave up in the middle; another attempt may succeed.
    case broken
    case unknown

    /// The reason in the standard's word, for the reasons that an answer may be heard with.
    var standard: String? {
        switch self {
        case .stop: "stop"
        case .toolCalls: "tool_calls"
        case .length: "length"
        case .filtered, .refused, .broken, .unknown: nil
        }
    }

    init(_ word: String) {
        let word = word.lowercased().filter { $0.isLetter || $0.isNumber }
        // Gemini's endpoint puts another word before this one.
        if word.contains("malformed") {
            self = .broken
        } else {
            self = FinishReason.known.first { $0.words.contains(word) }?.reason ?? .unknown
        }
    }

    /// Words in lower case without punctuation, so that `MAX_TOKENS`, `max-tokens` and `maxTokens` are one.
    private static let known: [(words: Set<String>, reason: FinishReason)] = [
        (
            ["stop", "endturn", "eos", "eostoken", "stopsequence", "stopsequencehit", "complete", "completed", "finished", "end", "done"],
            .stop
        ),
        (["toolcalls", "toolcall", "tooluse", "functioncall", "functioncalls"], .toolCalls),
        (
            [
                "length", "maxtokens", "maxoutputtokens", "maxcompletiontokens", "maxnewtokens", "modellength", "maxlength", "tokenlimit",
                "modelcontextwindowexceeded", "contextlength",
            ],
            .length
        ),
        (
            [
                "contentfilter", "contentfiltered", "safety", "recitation", "blocklist", "prohibitedcontent", "spii", "sensitive",
                "guardrailintervened", "imagesafety", "language", "flagged", "moderation",
            ],
            .filtered
        ),
        (["refusal", "refused"], .refused),
        (
            [
                "error", "errortoxic", "insufficientsystemresource", "abort", "aborted", "cancelled", "canceled", "networkerror", "timeout",
                "malformedfunctioncall", "unexpectedtoolcall", "toomanytoolcalls", "missingthoughtsignature", "malformedresponse",
                "servererror",
                "internalerror", "overloaded", "load", "unload", "other", "finishreasonunspecified", "incomplete", "failed", "interrupted",
                "disconnect", "connectionclosed",
            ],
            .broken
        ),
    ]
}
