/// Why a turn cannot continue: misuse of the turn, or the end of its right to run here.
public struct TurnError: Error, Sendable, Equatable, CustomStringConvertible {
    public var code: String
    public var message: String
    public var description: String { "\(code): \(message)" }

    init(_ code: String, _ message: String) {
        self.code = code
        self.message = message
    }

    /// The step's scope belongs to another task.
    static func concurrentScope(_ path: String) -> TurnError {
        TurnError(
            "concurrent_scope",
            "step '\(path)' was called from a task that does not own its scope. Use turn.map, or give each task its own turn.scope(name).")
    }

    static func invalidName(_ name: String) -> TurnError {
        TurnError("invalid_step_name", "the step name '\(name)' must be 1 to 128 bytes without '/' and '#'.")
    }

    static func tooManySteps(_ path: String, _ bound: Int) -> TurnError {
        TurnError(
            "too_many_steps", "step '\(path)' would be one of more than \(bound) under way at once; give turn.map its items in batches.")
    }

    static func tooManyEmits(_ entries: Int, _ bytes: Int) -> TurnError {
        TurnError(
            "too_many_emits",
            "more than \(entries) entries or \(bytes >> 20) MiB were published without waiting for anything; wait for a step in between.")
    }

    static func mismatch(expected: String, found: String) -> TurnError {
        TurnError("journal_mismatch", "the journal has \(expected), the program asked for \(found).")
    }
}

/// The turn was interrupted. Let it pass through and the turn ends as `interrupted`; catch it and continue, and the turn ends as it ends.
public struct Interrupted: Error, Sendable, Equatable {
    /// What the model had written.
    public var partial: String
    /// What was said instead, if anything.
    public var redirection: String?
    /// The offset of the interrupt that says it.
    var entry: String?
}

/// A person said no.
public struct ApprovalDenied: Error, Sendable, Equatable {
    public var by: String
    public var reason: String?
}

/// No decision came in time.
public struct ApprovalExpired: Error, Sendable, Equatable {}

/// The turn was passivated while it waits; it replays when it is due. Let it pass through: anything that the turn does after it has no effect.
public struct Passivated: Error, Sendable {}

/// Another activation of the agent has taken over, or the process is going down: nothing this turn does has any effect any more.
public struct Fenced: Error, Sendable {}
