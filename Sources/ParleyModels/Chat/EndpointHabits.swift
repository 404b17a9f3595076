internal import ParleyAgents
internal import ParleySystem
internal import Synchronization

/// A feature that an endpoint does not take, found out by its refusal.
package enum EndpointHabit: Sendable, Hashable {
    /// `stream_options`, with which usage is asked for.
    case refusesStreamOptions
    /// The name of the field that bounds the answer.
    case wantsOtherTokensField
    /// `temperature`, or any but its own.
    case refusesTemperature
    /// `seed`.
    case refusesSeed
    /// Members of its own answers, sent back.
    case refusesReturned
    /// Two messages of one party in a row.
    case refusesRows
    /// A user's message right behind the result of a call.
    case refusesUserAfterResult
    /// The beginning of an answer to continue from.
    case refusesPrefix
}

/// The findings on endpoints and models, until the process ends.
package final class EndpointHabits: Sendable {
    package static let shared = EndpointHabits()

    private struct Suspicion: Hashable {
        var habit: EndpointHabit
        var key: ContinuationProbes.Key
        /// The idempotency key of the call that was refused.
        var call: String
    }

    private let known = Mutex<[ContinuationProbes.Key: Set<EndpointHabit>]>([:])
    private let suspicions = Mutex<Set<Suspicion>>([])
    private static let suspicionsMax = 1_024

    package init() {}

    func of(_ key: ContinuationProbes.Key) -> Set<EndpointHabit> { known.withLock { $0[key] ?? [] } }

    func note(_ habit: EndpointHabit, of key: ContinuationProbes.Key) { known.withLock { _ = $0[key, default: []].insert(habit) } }

    /// Keeps in mind that `request` was refused for what may be `habit`, until the same call succeeds without it.
    func suspect(_ habit: EndpointHabit, of key: ContinuationProbes.Key, for request: ModelRequest) {
        guard let call = request.idempotencyKey else { return }
        suspicions.withLock { all in
            if all.count >= EndpointHabits.suspicionsMax { all.removeAll() }
            all.insert(Suspicion(habit: habit, key: key, call: call))
        }
    }

    /// Notes `habit` when `request`, which has succeeded, was refused for it before.
    func confirm(_ habit: EndpointHabit, of key: ContinuationProbes.Key, by request: ModelRequest) {
        guard let call = request.idempotencyKey else { return }
        let isSuspected = suspicions.withLock { $0.remove(Suspicion(habit: habit, key: key, call: call)) != nil }
        if isSuspected { note(habit, of: key) }
    }
}

extension EndpointHabit {
    /// Returns the feature that the refusal of `request` is about, besides the known ones.
    ///
    /// It goes by the names of the fields. Where a refusal names none and only says that there is a field too many, each optional field is left out
    /// in turn. Consecutive messages of a party are merged on any refusal that has no other reason known here: chat templates word theirs in their
    /// own ways.
    static func found(
        in refusal: UpstreamError, _ failure: StepFailure, of request: ModelRequest, known: Set<EndpointHabit>
    ) -> EndpointHabit? {
        guard [.badRequest, .other].contains(refusal.meaning) else { return nil }
        let words = (refusal.message + " " + refusal.kind).lowercased()
        func says(_ parts: String...) -> Bool { parts.contains { words.contains($0) } }
        let isTooMany = says(
            "extra inputs", "extra_forbidden", "unrecognized", "unknown parameter", "unknown field", "unknown argument",
            "unexpected keyword",
            "additional properties", "additionalproperties", "unsupported parameter", "not permitted", "unsupported_parameter",
            "unexpected field",
            "unknown name", "not supported", "unsupported", "not allowed", "does not support", "invalid parameter", "unexpected property")
        let names = Set(words.split { !($0.isLetter || $0.isNumber || $0 == "_") })
        // A value out of bounds is its author's to mend.
        let isValueRefused =
            (isTooMany
                || says("only the default", "may only be", "can only be", "is allowed for this model", "is deprecated", "cannot both be"))
            && !says("between", "less than", "greater than", "at most", "at least", "range")
        let returned = request.returnedNames
        let fields: [(habit: EndpointHabit, isSent: Bool, isNamed: Bool)] = [
            (.refusesStreamOptions, true, says("stream_options", "include_usage")),
            (
                .wantsOtherTokensField, request.options.maxTokens != nil,
                isTooMany && says("max_tokens", "max_completion_tokens")
            ),
            (.refusesTemperature, request.options.temperature != nil, isValueRefused && names.contains("temperature")),
            (.refusesSeed, request.options.seed != nil, isValueRefused && names.contains("seed")),
            (
                .refusesReturned, !returned.isEmpty,
                returned.contains { words.contains($0.lowercased()) } && !says("missing", "must be passed", "is required")
            ),
        ]
        let open = fields.filter { $0.isSent && !known.contains($0.habit) }
        if let named = open.first(where: \.isNamed) { return named.habit }
        if failure.code == "model_bad_request", let habit = order(in: words, of: request, known: known) { return habit }
        let namesAnother = says("temperature", "seed", "'stop'", "tools", "tool_choice", "model", "continue_final_message", "prefill")
        guard isTooMany, !fields.contains(where: \.isNamed), !namesAnother else { return nil }
        return open.first { [.refusesStreamOptions, .refusesReturned].contains($0.habit) }?.habit
    }

    /// Reads from a refusal in which order the parties must speak.
    private static func order(in words: String, of request: ModelRequest, known: Set<EndpointHabit>) -> EndpointHabit? {
        func says(_ parts: String...) -> Bool { parts.contains { words.contains($0) } }
        let isAfterResult = !known.contains(.refusesUserAfterResult) && ChatRequest.hasUserAfterResult(request.messages)
        if isAfterResult, says("after role 'tool'", "after role tool", "after tool") { return .refusesUserAfterResult }
        if !known.contains(.refusesRows), ChatRequest.hasRows(request.messages) { return .refusesRows }
        return isAfterResult && says("role", "alternate", "message_order") && !says("last role", "last message")
            ? .refusesUserAfterResult : nil
    }

    /// Whether a refusal of a request that continues a text may be one of that text, and if so, whether it says that.
    static func isPrefixRefused(_ failure: StepFailure, _ refusal: UpstreamError?) -> Bool? {
        guard !["context_exceeded", "model_unauthorized", "model_quota_exhausted", "model_not_found"].contains(failure.code) else {
            return nil
        }
        let words = (refusal?.message ?? "").lowercased()
        let isNamed = [
            "prefill", "prefix", "last message", "last role", "final message", "add_generation_prompt", "continue_final_message",
            "end with a user", "must be a user", "from the assistant", "assistant message", "role assistant", "role 'assistant'",
            "assistant role", "alternate",
        ].contains { words.contains($0) }
        return isNamed ? true : failure.code == "model_bad_request" ? false : nil
    }
}

extension ModelRequest {
    /// The names of all members that are sent back because an answer had them.
    fileprivate var returnedNames: Set<String> {
        let objects = messages.flatMap { message in [message.returned] + message.toolCalls.map(\.returned) }
        return Set(objects.flatMap { $0?.members ?? [] }.map(\.name))
    }
}
