public import ParleySystem

/// The reason why a step failed: the journal keeps it, and the turn catches it on the first run and on every replay alike.
public struct StepFailure: Error, Sendable, Equatable, CustomStringConvertible {
    /// Stable snake_case text a program can decide by. A step that fails with `cancelled`, `interrupted`, `approval_denied` or `approval_expired` by
    /// itself gets `step_failed`: those codes report what people did.
    public var code: String
    public var message: String
    /// Whether trying again may help.
    public var retryable: Bool
    /// How long the other side asked to wait before the next attempt.
    public var retryAfter: Duration?
    public var data: JSON?

    public init(code: String, message: String, retryable: Bool, retryAfter: Duration? = nil, data: JSON? = nil) {
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retryAfter = retryAfter
        self.data = data
    }

    /// The step was interrupted.
    ///
    /// - Parameters:
    ///   - text: The message that came in its place, if any.
    ///   - entry: The offset of the interrupt that says it.
    static func interrupted(_ text: String? = nil, by entry: String? = nil) -> StepFailure {
        StepFailure(
            code: "interrupted", message: "interrupted", retryable: false,
            data: text.map { JSON.compact(("text", .string($0)), ("interrupted_by", entry.map { .string($0) })) })
    }

    /// The turn was cancelled, or its program cancelled the step.
    static let cancelled = StepFailure(code: "cancelled", message: "the turn or its program cancelled the step", retryable: false)

    /// The endpoint does not continue from the text that it was given: the answer starts over, as another attempt that no bound counts.
    package static func prefixRefused(_ reason: String) -> StepFailure {
        StepFailure(code: prefixRefusedCode, message: "the model does not go on from a text: \(reason)", retryable: true)
    }

    static let prefixRefusedCode = "prefix_refused"

    private static let ownCodes: Set = [
        "interrupted", cancelled.code, "approval_denied", "approval_expired", prefixRefusedCode,
    ]

    /// The same as the failure of what a step ran. Codes by which the runtime tells what people did are its own: the program would take it for
    /// their doing, and a turn that was interrupted takes nothing back.
    var ofWhatRan: StepFailure {
        guard StepFailure.ownCodes.contains(code) else { return self }
        return StepFailure(code: "step_failed", message: description, retryable: retryable, retryAfter: retryAfter, data: data)
    }

    public var description: String { "\(code): \(message)" }
}
