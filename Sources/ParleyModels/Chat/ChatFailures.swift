internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// Turns what an upstream answers into a failure that a person can act on and a retry policy can decide by.
///
/// | code | when | tried again |
/// |---|---|---|
/// | `model_unauthorized` | 401, 403 | no |
/// | `model_quota_exhausted` | 402, or a code that says the quota is used up | no |
/// | `model_not_found` | 404 | no |
/// | `context_exceeded` | the request is longer than the model takes | no |
/// | `model_content_filtered` | a filter refused the request or cut the answer | no |
/// | `model_refused` | the model declined to answer | no |
/// | `model_bad_request` | 400, 413, 422 and the rest of 4xx | no |
/// | `model_rate_limited` | 429 | yes, after `Retry-After` |
/// | `model_unavailable` | 5xx, 409, 424, 425, 498, 499, and an answer that the endpoint gave up on | yes, after `Retry-After` |
/// | `model_unreachable` | no connection | yes |
/// | `model_timeout` | 408, or silent for too long | yes |
/// | `model_busy` | too many calls wait for their place | yes |
/// | `upstream_closed` | ended before its end | yes |
/// | `model_empty_answer` | said to be complete, without text and without calls | yes |
/// | `answer_cut` | the limit was used up before any text | no |
/// | `answer_too_large` | longer than ``AnswerBounds`` | no |
/// | `model_invalid_response` | what is sent is not understood: not an event stream, another kind of content, an unknown end (no); an event that is no JSON (yes) | |
///
/// The codes and words of an error decide its meaning before its status, which is often that of a proxy.
package struct ChatFailures: Sendable {
    let baseURL: BaseURL
    let model: String
    /// The names that configuration goes by, for the remedies.
    let names: SettingNames
    private let redaction: Redaction

    package struct SettingNames: Sendable {
        package var baseURL = "OPENAI_BASE_URL"
        package var apiKey = "OPENAI_API_KEY"
        package var model = "PARLEY_MODEL"
        package var firstByte = "PARLEY_MODEL_FIRST_BYTE"

        package init() {}
    }

    init(baseURL: BaseURL, model: String, names: SettingNames, redaction: Redaction) {
        (self.baseURL, self.model, self.names, self.redaction) = (baseURL, model, names, redaction)
    }

    /// The failure for an answer other than 200.
    func http(status: Int, headers: [(name: String, value: String)], error: UpstreamError, now: Timestamp) -> StepFailure {
        if (300...399).contains(status), let place = headers.last(where: { $0.name.lowercased() == "location" })?.value {
            return moved(status, to: place)
        }
        return answer(status, error, retryAfter: RetryAfter.parse(headers, now: now) ?? error.retryAfter)
    }

    /// The failure for an error inside an answer that began well.
    func inStream(_ error: UpstreamError) -> StepFailure {
        let statuses: [UpstreamError.Meaning: Int] = [
            .quota: 402, .rateLimited: 429, .unauthorized: 401, .notFound: 404, .badRequest: 400, .filtered: 400, .contextExceeded: 400,
        ]
        return answer(error.status ?? statuses[error.meaning] ?? 500, error, retryAfter: error.retryAfter)
    }

    /// The failure for a connection that could not be made or broke.
    func transport(_ error: OutgoingError) -> StepFailure {
        switch error.code {
        case "upstream_timeout":
            return failure(
                "model_timeout",
                "\(baseURL) was silent for too long. Remedy: a model that needs longer for its first word gets it by \(names.firstByte).",
                retryable: true)
        case "upstream_closed": return closed
        case "upstream_encoding", "upstream_trailing_bytes": return encoding
        case "upstream_not_http":
            return failure(
                "model_invalid_response",
                "\(baseURL) answered something that is not HTTP. Remedy: check \(names.baseURL), and what is in between.",
                retryable: true)
        case "upstream_head_too_large":
            return failure(
                "model_invalid_response",
                "\(baseURL) sent an answer whose headers are longer than is read (100 KB for one, 300 KB together). Remedy: have the proxy "
                    + "in front of it send fewer.", retryable: false)
        case "invalid_url":
            return failure(
                "model_unreachable", "cannot use the address \(baseURL). Remedy: check \(names.baseURL).", retryable: false)
        default:
            let reason = redaction.clean(error.message).map { " (\($0))" } ?? ""
            let remedy =
                error.message.lowercased().contains("certificate")
                ? "name the authority that has signed its certificate with PARLEY_CA_FILE (a PEM file)"
                : "start the model server"
            return failure(
                "model_unreachable", "cannot reach \(baseURL)\(reason). Remedy: \(remedy), or check \(names.baseURL).", retryable: true)
        }
    }

    var closed: StepFailure { closed(saying: "") }

    /// - Parameter words: The text in the stream besides events.
    func closed(saying words: String) -> StepFailure {
        let said = redaction.clean(words).map { ": \($0)" } ?? "."
        return failure("upstream_closed", "\(baseURL) closed the stream before the end of the answer\(said)", retryable: true)
    }

    var encoding: StepFailure {
        failure(
            "model_invalid_response",
            "\(baseURL) sent an answer whose Content-Encoding cannot be undone. Remedy: turn compression off there.",
            retryable: false)
    }

    /// The failure for an endpoint that is elsewhere: credentials are not sent after it.
    private func moved(_ status: Int, to place: String) -> StepFailure {
        let place = redaction.clean(String(place.prefix { $0 != "?" })) ?? "another place"
        return failure(
            "model_invalid_response", "\(baseURL) redirects to \(place) (\(status)). Remedy: set \(names.baseURL) to where it is.",
            retryable: false)
    }

    /// The failure for an upstream that sends and sends, and nothing of an answer.
    func flooded(bytes: Int) -> StepFailure {
        failure("model_invalid_response", "\(baseURL) sent \(bytes >> 20) MiB with nothing of the answer in them.", retryable: false)
    }

    /// The failure for an upstream that keeps the connection and says nothing of the answer.
    var stalled: StepFailure {
        failure("model_timeout", "\(baseURL) sent only signs of life, and nothing of the answer, for too long.", retryable: true)
    }

    var busy: StepFailure {
        failure("model_busy", "too many calls wait for their place at \(baseURL). Remedy: raise PARLEY_MODEL_CALLS.", retryable: true)
    }

    /// The failure for a 200 that is no event stream: most often a base URL that leads to something else.
    func notAStream(contentType: String, saying words: String = "") -> StepFailure {
        let type = redaction.clean(contentType) ?? "another type"
        return failure(
            "model_invalid_response",
            "\(baseURL) answered \(type) instead of text/event-stream\(stated(words)) Remedy: check \(names.baseURL); it usually ends in /v1.",
            retryable: false)
    }

    func invalidEvent(_ problem: String, saying words: String = "", retryable: Bool = true) -> StepFailure {
        let said = redaction.clean(words).map { ": \($0)" } ?? "."
        return failure("model_invalid_response", "\(baseURL) sent an event that \(problem)\(said)", retryable: retryable)
    }

    /// The failure for an answer that ended for another reason than being whole; `nil` when it is whole, or cut at its limit.
    func ended(_ reason: FinishReason, word: String) -> StepFailure? {
        // Words that are left out altogether leave a mark.
        let word = redaction.clean(word) ?? "[...]"
        switch reason {
        case .stop, .toolCalls, .length: return nil
        case .filtered:
            return failure("model_content_filtered", "\(baseURL) cut the answer by its content filter (\(word)).", retryable: false)
        case .refused: return refused("")
        case .broken:
            return failure(
                "model_unavailable", "\(baseURL) gave up in the middle of the answer (finish_reason '\(word)').", retryable: true)
        case .unknown:
            return failure(
                "model_invalid_response",
                "\(baseURL) ended the answer with finish_reason '\(word)', which is not known to mean that it is complete; accepted: stop, "
                    + "tool_calls, length.", retryable: false)
        }
    }

    func refused(_ words: String) -> StepFailure {
        failure("model_refused", "the model refused to answer" + (redaction.clean(words).map { ": \($0)" } ?? "."), retryable: false)
    }

    /// The failure for an answer without text and without calls.
    func empty(isCut: Bool) -> StepFailure {
        isCut
            ? failure(
                "answer_cut", "the output limit was used up before the model had said anything. Remedy: raise max_tokens.", retryable: false
            )
            : failure("model_empty_answer", "\(baseURL) called the answer complete, with no text and no call in it.", retryable: true)
    }

    /// The upstream's words as the end of a sentence, behind which ours continue.
    private func stated(_ words: String) -> String {
        guard let said = redaction.clean(words) else { return "." }
        return ": " + said + (said.hasSuffix(".") || said.hasSuffix("…") ? "" : ".")
    }

    private func unauthorized(_ status: Int, _ error: UpstreamError) -> StepFailure {
        let words = stated(error.message)
        return failure(
            "model_unauthorized",
            error.hasOtherCauseThanKey
                ? "\(baseURL) refused access (\(status))\(words)"
                : "\(baseURL) refused the credentials (\(status))\(words) Remedy: set \(names.apiKey) to a key that may use '\(model)'.",
            retryable: false)
    }

    private func answer(_ status: Int, _ error: UpstreamError, retryAfter: Duration?) -> StepFailure {
        let said = redaction.clean(error.message).map { ": \($0)" } ?? ""
        switch (status, error.meaning) {
        case (_, .quota), (402, _):
            return failure(
                "model_quota_exhausted",
                "the quota at \(baseURL) is used up (\(status))\(stated(error.message)) Remedy: raise it there, or set another key in \(names.apiKey).",
                retryable: false)
        case (429, _), (400...499, .rateLimited):
            return failure("model_rate_limited", "\(baseURL) asks for fewer calls (\(status))\(said)", retryable: true, after: retryAfter)
        case (400...403, .overloaded):
            return failure(
                "model_unavailable", "\(baseURL) is not able to answer now (\(status))\(said)", retryable: true, after: retryAfter)
        case (401, _), (403, .unauthorized), (403, .other), (403, .badRequest), (500...599, .unauthorized):
            return unauthorized(status, error)
        case (_, .contextExceeded):
            return failure(
                "context_exceeded",
                "the request is longer than '\(model)' takes (\(status))\(stated(error.message)) Remedy: shorten the conversation (context: in the agent's file).",
                retryable: false)
        case (_, .filtered):
            return failure(
                "model_content_filtered", "\(baseURL) refused the request by its content filter (\(status))\(said)", retryable: false)
        case (404, _), (403, .notFound), (500...599, .notFound):
            return failure(
                "model_not_found",
                "\(baseURL) has no model '\(model)', or no Chat Completions (\(status))\(stated(error.message)) Remedy: check \(names.model) and \(names.baseURL).",
                retryable: false)
        case (408, _): return failure("model_timeout", "\(baseURL) gave up waiting (408)\(said)", retryable: true, after: retryAfter)
        case (409, _), (420, _), (423, _), (424, _), (425, _), (498, _), (499, _), (400...499, .overloaded):
            return failure(
                "model_unavailable", "\(baseURL) is not able to answer now (\(status))\(said)", retryable: true, after: retryAfter)
        case (400...499, _), (500...599, .badRequest):
            return failure("model_bad_request", "\(baseURL) refused the request (\(status))\(said)", retryable: false)
        case (500...599, _):
            return failure("model_unavailable", "\(baseURL) is not able to answer (\(status))\(said)", retryable: true, after: retryAfter)
        default:
            return failure(
                "model_invalid_response", "\(baseURL) answered with status \(status). Remedy: check \(names.baseURL).", retryable: false)
        }
    }

    private func failure(_ code: String, _ message: String, retryable: Bool, after: Duration? = nil) -> StepFailure {
        StepFailure(code: code, message: message, retryable: retryable, retryAfter: after)
    }
}
