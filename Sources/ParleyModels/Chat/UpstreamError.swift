internal import ParleyHTTP
internal import ParleySystem

/// An error that an endpoint reports, wherever it reports it.
///
/// Read are `{"error": {…}}`, `{"error": "…"}`, an array of such, `{"object": "error", …}`, `{"detail": …}`, `{"errors": […]}`,
/// `{"fault": {…}}`, `{"base_resp": {…}}`, and bare `{"code", "message"}`.
struct UpstreamError: Sendable, Equatable {
    /// The status that it names, if it names one.
    var status: Int?
    /// Its codes and types, in lower case and one text.
    var kind = ""
    /// Its words as they came.
    var message = ""
    /// How long it asks to wait.
    var retryAfter: Duration?

    /// The error that `body` is, if it is one; a chunk of an answer is not.
    init?(answer body: JSON) {
        guard let error = UpstreamError.error(in: body) else { return nil }
        self.init(error, in: body)
    }

    /// The error in the body of an answer that is one by its status.
    init(refusal body: JSON) {
        self.init(UpstreamError.error(in: body) ?? body, in: body)
    }

    /// The value in the place of an error, whatever it is.
    init(_ error: JSON, in body: JSON = .null) {
        let body = body.array?.first ?? body
        let codes = [
            error["code"], error["type"], error["status"], error["status_code"], error["error_type"], error["reason"], body["code"],
            body["type"], body["error_type"], body["error_code"],
        ]
        kind = codes.compactMap { $0?.string?.lowercased() }.joined(separator: " ")
        let numbers = codes + [error["http_code"], body["status"], error["error"]?["code"]]
        status = numbers.lazy.compactMap(UpstreamError.number).first { (300...599).contains($0) }
        message = UpstreamError.words(error) ?? UpstreamError.words(body) ?? ""
        // A word for programs, and beside it its meaning.
        if let words = body["error_description"]?.string, !words.isEmpty, words != message { message += (message.isEmpty ? "" : ": ") + words }
        if let metadata = error["metadata"], let raw = UpstreamError.words(metadata) { message += (message.isEmpty ? "" : ": ") + raw }
        retryAfter = UpstreamError.retryAfter(error) ?? UpstreamError.retryAfter(body)
    }

    private static func error(in body: JSON) -> JSON? {
        if let elements = body.array { return elements.lazy.compactMap(error).first }
        guard body.members != nil else { return nil }
        if let error = body["error"], says(error) { return error }
        if let fault = body["fault"], says(fault) { return fault }
        if let error = body["errors"]?.array?.first, says(error) { return error }
        if let response = body["base_resp"], let code = response["status_code"]?.integer, code != 0 {
            return .compact(("message", response["status_msg"]), ("code", .integer(code)))
        }
        if body["object"]?.string == "error" || body["type"]?.string == "error" { return body }
        // A body with choices is a part of an answer even when it has a message as well.
        guard body["choices"].map(says) != true else { return nil }
        let words = ["message", "msg", "detail"] + markedWords
        return isMarked(body) && words.contains { body[$0].map(says) == true } ? body : nil
    }

    /// Words that only an error has.
    private static let markedWords = ["error_message", "error_msg", "error_description", "errorMessage"]

    /// Whether `body` is marked as an error, and does not only have a message.
    private static func isMarked(_ body: JSON) -> Bool {
        let code = body["code"] ?? .null
        let succeeds = ["0", "200", "success", "ok"].contains(code.string?.lowercased() ?? code.text)
        if says(code) && !succeeds || (body["status"]?.integer ?? 0) >= 400 || body["success"]?.bool == false { return true }
        if ["failed", "error", "failure"].contains(body["status"]?.string?.lowercased() ?? "") { return true }
        return (["detail", "error_type", "error_code"] + markedWords).contains { body[$0].map(says) == true }
    }

    /// Whether the value in the place of an error is one: some endpoints send `null`, `false`, an empty text or an object of such with each chunk.
    private static func says(_ error: JSON) -> Bool {
        switch error {
        case .null, .bool(false), .integer(0), .string(""): false
        case .array(let elements): elements.contains(where: says)
        case .object(let members): members.contains { says($0.value) }
        default: true
        }
    }

    private static func number(_ value: JSON?) -> Int? {
        guard let value else { return nil }
        return value.integer.flatMap { Int(exactly: $0) } ?? value.string.flatMap { Int($0) }
    }

    /// The first words in `value`, which puts them in one of many places.
    private static func words(_ value: JSON, depth: Int = 0) -> String? {
        guard depth < 12 else { return nil }
        switch value {
        case .string(let text): return text.isEmpty ? nil : text
        case .array(let elements):
            let words = elements.prefix(3).compactMap { element -> String? in
                guard let said = UpstreamError.words(element, depth: depth + 1) else { return nil }
                // FastAPI reports the place of the problem beside the problem.
                let place = element["loc"]?.array?.compactMap { $0.string ?? $0.integer.map(String.init) }.joined(separator: ".") ?? ""
                return place.isEmpty ? said : "\(place): \(said)"
            }
            return words.isEmpty ? nil : words.joined(separator: "; ")
        case .object:
            for name in [
                "message", "msg", "detail", "error", "status_msg", "error_message", "error_msg", "errorMessage", "faultstring", "errors", "raw",
                "innererror", "error_description", "title", "reason",
            ] {
                if let member = value[name], let said = words(member, depth: depth + 1) { return unwrapped(said, depth) }
            }
            return nil
        default: return nil
        }
    }

    /// Proxies pass on another's error as text: its own words are inside.
    private static func unwrapped(_ text: String, _ depth: Int) -> String {
        guard text.utf8.first == UInt8(ascii: "{"), let inner = try? JSON.parse(text) else { return text }
        return words(inner, depth: depth + 1) ?? text
    }

    /// `retry_after` in seconds, or Google's `RetryInfo`.
    private static func retryAfter(_ error: JSON) -> Duration? {
        if let seconds = (error["retry_after"] ?? error["metadata"]?["retry_after"])?.double { return RetryAfter.seconds(seconds) }
        let delay = error["details"]?.array?.lazy.compactMap { $0["retryDelay"]?.string }.first
        return delay.flatMap { $0.hasSuffix("s") ? Double($0.dropLast()) : nil }.flatMap(RetryAfter.seconds)
    }
}

extension UpstreamError {
    enum Meaning: Sendable, Equatable {
        case contextExceeded, quota, rateLimited, overloaded, unauthorized, notFound, badRequest, filtered, other
    }

    /// Its meaning, by its codes first and its words second: the status is often a proxy's, and not the endpoint's.
    var meaning: Meaning {
        let words = message.lowercased()
        func kindHas(_ parts: String...) -> Bool { parts.contains { kind.contains($0) } }
        func says(_ parts: String...) -> Bool { parts.contains { words.contains($0) } }

        let isContext =
            kindHas("context_length", "exceed_context", "context_window", "max_tokens_exceeded", "string_above_max_length")
            || says(
                "maximum context length", "available context size", "context length exceeded", "context window", "prompt is too long",
                "reduce the length of the messages", "exceeds the maximum number of tokens", "exceed context limit", "exceeds the context",
                "input is too long", "maximum prompt length", "context size has been exceeded", "model's maximum context")
        if isContext && !says("per minute", "rate limit") { return .contextExceeded }
        if kindHas("insufficient_quota", "insufficient_balance", "insufficient_credits", "billing", "payment_required", "quota_exceeded")
            || says("insufficient balance", "credit balance is too low", "insufficient credits")
        {
            return .quota
        }
        if kindHas("rate_limit", "ratelimit", "too_many_requests", "throttl", "resource_exhausted", "limit_burst", "tokens_per") {
            return .rateLimited
        }
        if kindHas("overloaded", "capacity", "unavailable", "engine_busy", "server_busy", "model_loading", "not_ready") {
            return .overloaded
        }
        if says("throttlingexception", "too many requests", "rate limit exceeded", "rate limit reached") { return .rateLimited }
        let isOverloaded =
            says("is overloaded", "currently overloaded", "server overloaded", "at capacity", "temporarily unavailable")
            || words.hasPrefix("overloaded")
        if isOverloaded { return .overloaded }
        if kindHas("content_filter", "content_policy", "responsibleai", "moderation", "data_inspection")
            || says("requires moderation", "was flagged", "content management policy")
        {
            return .filtered
        }
        if kindHas("invalid_api_key", "authentication", "permission", "unauthorized", "forbidden") { return .unauthorized }
        if kindHas("model_not_found", "not_found", "notfound", "does_not_exist") { return .notFound }
        // A template that refuses a conversation is told as the server's own error, and refuses it again.
        if kindHas("invalid_request", "bad_request", "badrequest", "invalid_argument", "invalidparameter", "unprocessable", "validation")
            || says("jinja", "roles must alternate", "chat template", "add_generation_prompt")
        {
            return .badRequest
        }
        return .other
    }
}

extension UpstreamError {
    /// A refusal of access gives a cause that another key of the same account does not mend.
    var hasOtherCauseThanKey: Bool {
        let words = (message + " " + kind).lowercased()
        return [
            "deactivated", "suspended", "banned", "country", "region", "territory", "your location", "ip address", "ip_not_", "allowlist",
            "whitelist", "must be verified", "member of an organization",
        ].contains { words.contains($0) }
    }
}
