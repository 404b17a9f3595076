internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// Turns what an upstream answers into a failure that a person can act on and a retry policy can decide by.
///
/// | code | when | tried again |
/// |---|---|---|
/// | `model_unauthorized` | 401, 403 | no |
/// | `model_quota_exhausted` | 402, or 429 that says the quota is used up | no |
/// | `model_not_found` | 404 | no |
/// | `model_bad_request` | 400, 413, 422 and the rest of 4xx | no |
/// | `model_rate_limited` | 429 | yes, after `Retry-After` |
/// | `model_unavailable` | 5xx | yes, after `Retry-After` |
/// | `model_unreachable` | no connection | yes |
/// | `model_timeout` | 408, or silent for too long | yes |
/// | `upstream_closed` | ended before its end | yes |
/// | `model_invalid_response` | not an event stream (no), or an event that is not what it should be (yes) | |
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

        package init() {}
    }

    init(baseURL: BaseURL, model: String, names: SettingNames, redaction: Redaction) {
        (self.baseURL, self.model, self.names, self.redaction) = (baseURL, model, names, redaction)
    }

    /// The failure for an answer other than 200.
    func http(status: Int, headers: [(name: String, value: String)], body: Bytes, now: Timestamp) -> StepFailure {
        let error = (try? JSON.parse(body)) ?? .null
        return answer(status, error: error, retryAfter: RetryAfter.parse(headers, now: now))
    }

    /// The failure for an error object inside the stream: `{"error": {"message", "type", "code"}}`.
    func inStream(_ object: JSON) -> StepFailure {
        let error = object["error"] ?? .null
        let words = ((error["code"]?.string ?? "") + " " + (error["type"]?.string ?? "")).lowercased()
        if let status = error["code"]?.integer ?? error["status"]?.integer, (400...599).contains(status) {
            return answer(Int(status), error: object, retryAfter: nil)
        }
        let kinds: [(words: [String], status: Int)] = [
            (["insufficient_quota", "rate_limit", "too_many_requests"], 429),
            (["invalid_api_key", "authentication", "permission"], 401),
            (["model_not_found", "not_found"], 404),
            (["invalid_request", "context_length", "content_policy", "exceed_context", "bad_request"], 400),
        ]
        let status = kinds.first { $0.words.contains(where: words.contains) }?.status ?? 500
        return answer(status, error: object, retryAfter: nil)
    }

    /// The failure for a connection that could not be made or broke.
    func transport(_ error: OutgoingError) -> StepFailure {
        switch error.code {
        case "upstream_timeout":
            return failure("model_timeout", "\(baseURL) was silent for too long.", retryable: true)
        case "upstream_closed": return closed
        case "invalid_url":
            return failure(
                "model_unreachable", "cannot use the address \(baseURL). Remedy: check \(names.baseURL).", retryable: false)
        default:
            let reason = redaction.clean(error.message).map { " (\($0))" } ?? ""
            return failure(
                "model_unreachable",
                "cannot reach \(baseURL)\(reason). Remedy: start the model server, or check \(names.baseURL).", retryable: true)
        }
    }

    var closed: StepFailure {
        failure("upstream_closed", "\(baseURL) closed the stream before the end of the answer.", retryable: true)
    }

    /// The failure for a 200 that is no event stream: most often a base URL that leads to something else.
    func notAStream(contentType: String) -> StepFailure {
        let type = redaction.clean(contentType) ?? "another type"
        return failure(
            "model_invalid_response",
            "\(baseURL) answered \(type) instead of text/event-stream. Remedy: check \(names.baseURL); it usually ends in /v1.",
            retryable: false)
    }

    func invalidEvent(_ problem: String) -> StepFailure {
        failure("model_invalid_response", "\(baseURL) sent an event that \(problem).", retryable: true)
    }

    private func answer(_ status: Int, error: JSON, retryAfter: Duration?) -> StepFailure {
        let said = message(in: error).map { ": \($0)" } ?? ""
        switch status {
        case 401, 403:
            // The upstream's words are left out: some quote the key.
            return failure(
                "model_unauthorized",
                "\(baseURL) refused the credentials (\(status)). Remedy: set \(names.apiKey) to a key that may use '\(model)'.",
                retryable: false)
        case _ where status == 402 || (status == 429 && isQuota(error)):
            return failure(
                "model_quota_exhausted",
                "the quota at \(baseURL) is used up (\(status))\(said). Remedy: raise it there, or set another key in \(names.apiKey).",
                retryable: false)
        case 404:
            return failure(
                "model_not_found",
                "\(baseURL) has no model '\(model)', or no Chat Completions (404)\(said). Remedy: check \(names.model) and \(names.baseURL).",
                retryable: false)
        case 408: return failure("model_timeout", "\(baseURL) gave up waiting (408)\(said)", retryable: true, after: retryAfter)
        case 429:
            return failure("model_rate_limited", "\(baseURL) asks for fewer calls (429)\(said)", retryable: true, after: retryAfter)
        case 400...499: return failure("model_bad_request", "\(baseURL) refused the request (\(status))\(said)", retryable: false)
        case 500...599:
            return failure("model_unavailable", "\(baseURL) is not able to answer (\(status))\(said)", retryable: true, after: retryAfter)
        default:
            return failure(
                "model_invalid_response", "\(baseURL) answered with status \(status). Remedy: check \(names.baseURL).", retryable: false)
        }
    }

    private func isQuota(_ error: JSON) -> Bool {
        error["error"]?["code"]?.string == "insufficient_quota" || error["error"]?["type"]?.string == "insufficient_quota"
    }

    /// The upstream's own words, cleaned; every server puts them somewhere else.
    private func message(in body: JSON) -> String? {
        let text =
            body["error"]?["message"]?.string ?? body["error"]?.string ?? body["message"]?.string ?? body["detail"]?.string
            ?? body["detail"]?.array?.first?["msg"]?.string
        return text.flatMap(redaction.clean)
    }

    private func failure(_ code: String, _ message: String, retryable: Bool, after: Duration? = nil) -> StepFailure {
        StepFailure(code: code, message: message, retryable: retryable, retryAfter: after)
    }
}

/// Keeps the key and the conversation out of what an upstream's error is quoted with.
struct Redaction: Sendable {
    /// The conversation and the key, as far as they must not be quoted.
    let secrets: [String]

    private static let charactersMax = 300
    /// As many bytes in a row that also stand in a secret count as quoting it. Shorter runs are common words.
    private static let windowBytes = 16

    init(apiKey: String?, messages: [ModelMessage], continuing: String?) {
        secrets = [apiKey, continuing].compactMap { $0 } + messages.map(\.text)
    }

    /// `text` in one line of at most 300 characters; `nil` when nothing is left or it quotes a secret.
    func clean(_ text: String) -> String? {
        let line = String(text.map { $0.isNewline || $0 == "\t" ? " " : $0 }.prefix(Redaction.charactersMax + 1))
        let words = line.drop { $0 == " " }
        guard !words.isEmpty, !quotes(Bytes(line.utf8)) else { return nil }
        return line.count > Redaction.charactersMax ? String(line.prefix(Redaction.charactersMax - 1)) + "…" : String(words)
    }

    private func quotes(_ text: Bytes) -> Bool {
        func windows(_ bytes: Bytes, of size: Int) -> some Sequence<ArraySlice<UInt8>> {
            (0..<max(0, bytes.count - size + 1)).lazy.map { bytes[$0..<$0 + size] }
        }
        let known = Set(windows(text, of: Redaction.windowBytes))
        return secrets.contains { secret in
            let secret = Bytes(secret.utf8)
            guard secret.count >= Redaction.windowBytes else {
                return secret.count >= 8 && windows(text, of: secret.count).contains { $0.elementsEqual(secret) }
            }
            return windows(secret, of: Redaction.windowBytes).contains(where: known.contains)
        }
    }
}
