internal import ParleyChannels
internal import ParleySystem

/// The facts that a `step.started` gives of its step.
struct StepStart {
    let kind: String
    let name: String?
    /// It compensates what the turn did.
    let isCompensation: Bool
    let model: JSON?
    /// The digest of a tool call's arguments.
    let argumentsDigest: JSON?
    /// The channel that is followed.
    let followed: JSON?
    let steered: JSON?

    init(_ entry: LogEntry) {
        let (body, request) = (entry.body, entry.body["request"])
        kind = body["kind"]?.string ?? StepKind.step.rawValue
        name = body["name"]?.string
        isCompensation = body["compensation"] == true
        model = request?["model"]
        argumentsDigest = kind == StepKind.tool.rawValue ? request?["sha256"] : nil
        followed = request?["channel"]
        steered = body["steered"]
    }

    /// It does nothing but wait.
    var isWait: Bool { [StepKind.sleep, .wait, .approval].contains { $0.rawValue == kind } }
}

/// How an attempt of a step ended, from its `step.completed` or `step.failed`.
struct AttemptEnd {
    /// `completed`, `interrupted`, `cancelled` or `failed`.
    let state: String
    let error: JSON?
    /// The step has ended with it.
    let isFinal: Bool

    init?(_ entry: LogEntry) {
        switch entry.kind {
        case .stepCompleted: (state, error, isFinal) = ("completed", nil, true)
        case .stepFailed:
            let body = entry.body
            error = body["error"]
            state = ["interrupted", "cancelled"].first { $0 == body["error"]?["code"]?.string } ?? "failed"
            isFinal = body["final"]?.bool == true
        default: return nil
        }
    }

    var code: String? { error?["code"]?.string }
}

/// One step of a turn.
struct StepTrace {
    let path: String
    let start: StepStart
    let started: Timestamp
    let isListed: Bool
    private(set) var end = End()
    private(set) var result = Result()
    var due: JSON?
    /// How many pieces of text came so far: about as many tokens.
    var pieces = 0
    private var attempts: [Attempt] = []
    // Filled when the step is shown.
    var approval: JSON?
    var callsNotRun: JSON?

    /// The state of the step, and since when it has ended.
    struct End {
        var state = "open"
        var at: Timestamp?
        var error: JSON?
    }

    /// The facts that a model's answer gives of itself.
    struct Result {
        var inputTokens: Int64?
        var outputTokens: Int64?
        var recoveredTokens: Int64?
        var finishReason: JSON?
    }

    struct Attempt {
        var number: UInt32
        var offset: UInt64
        var started: Timestamp
        var continuesAt: JSON?
        var ended: Timestamp?
        var state = "open"
        var error: JSON?
        var retryAt: JSON?
    }

    init(_ path: String, _ entry: LogEntry, isListed: Bool) {
        (self.path, start, started, self.isListed) = (path, StepStart(entry), entry.at, isListed)
    }

    mutating func begins(_ entry: LogEntry) {
        // If an attempt has neither failed nor completed when the next one begins, its process has ended.
        if let last = attempts.indices.last, attempts[last].state == "open" { attempts[last].state = "lost" }
        let continuesAt = entry.body["continues_at"]
        attempts.append(
            Attempt(number: entry.position?.attempt ?? 0, offset: entry.offset, started: entry.at, continuesAt: continuesAt))
        if continuesAt == nil { pieces = 0 }
    }

    mutating func ends(_ entry: LogEntry) {
        guard let end = AttemptEnd(entry) else { return }
        if entry.kind == .stepCompleted { takeResult(entry.body) }
        // A model that was interrupted completes with what it had written.
        let state = result.finishReason?.string == "interrupted" ? "interrupted" : end.state
        if let last = attempts.indices.last {
            (attempts[last].ended, attempts[last].state) = (entry.at, state)
            if entry.kind == .stepFailed { (attempts[last].error, attempts[last].retryAt) = (end.error, entry.body["retry_at"]) }
        }
        if end.isFinal { self.end = End(state: state, at: entry.at, error: end.error) }
    }

    private mutating func takeResult(_ body: JSON) {
        result = Result(
            inputTokens: body["usage"]?["input_tokens"]?.integer, outputTokens: body["usage"]?["output_tokens"]?.integer,
            recoveredTokens: body["recovered_tokens"]?.integer, finishReason: body["finish_reason"])
    }
}

// MARK: - JSON

extension StepTrace {
    /// - Parameter turnEnded: When its turn ended: a step without an end by then never has one.
    func members(turnEnded: Timestamp?) -> [(String, JSON?)] {
        let last = end.at ?? turnEnded
        let state = end.at == nil && last != nil ? "cancelled" : end.state
        return [
            ("step", .string(path)), ("kind", .string(start.kind)), ("name", .string(start.name ?? path)),
            ("state", .string(state)), ("compensation", start.isCompensation ? true : nil), ("started", .string(started.description)),
            ("ended", last.map { .string($0.description) }),
            ("duration_ms", last.map { .integer($0.milliseconds - started.milliseconds) }), ("attempts", .array(attempts.map(\.json))),
            ("due", due), ("channel", start.followed), ("args_sha256", start.argumentsDigest),
            ("model", start.model), ("input_tokens", result.inputTokens.map { .integer($0) }),
            ("output_tokens", result.outputTokens.map { .integer($0) }),
            ("recovered_tokens", result.recoveredTokens.map { .integer($0) }),
            ("pieces", result.outputTokens == nil && pieces > 0 ? .integer(Int64(pieces)) : nil),
            ("finish_reason", result.finishReason), ("steered", start.steered), ("error", end.error),
            ("approval", approval), ("calls_not_run", callsNotRun),
        ]
    }
}

extension StepTrace.Attempt {
    var json: JSON {
        JSON.compact(
            ("attempt", .integer(Int64(number))), ("offset", .string(Offset(offset).token)), ("state", .string(state)),
            ("started", .string(started.description)), ("ended", ended.map { .string($0.description) }),
            ("duration_ms", ended.map { .integer($0.milliseconds - started.milliseconds) }), ("continues_at", continuesAt),
            ("error", error), ("retry_at", retryAt))
    }
}
