package import ParleyChannels
package import ParleyLog
package import ParleySystem

/// The log of one turn, in the form a replay needs.
package struct Journal: Sendable {
    package struct Start: Sendable {
        package var path: String
        package var kind: StepKind
        package var digest: String?
        package var at: Timestamp
        package var offset: UInt64
        /// Neither a cancel nor an interrupt reaches it.
        package var isShielded = false
    }

    package struct Completion: Sendable {
        package var path: String
        package var outcome: StepOutcome
        package var at: Timestamp
        /// The program had cancelled the task that waited for the step.
        var isGivenUp = false
        /// It belongs to no step: the turn was cancelled here, for this reason.
        package var cancellation: JSON?
        /// How many steps had been started before it.
        var startsBefore = 0
    }

    /// An entry that the program publishes: those of one name in one scope, that is of one task, come in order.
    package struct Emission: Hashable, Sendable {
        package var scope: String
        package var name: String
    }

    /// The content of `turn.started`.
    package struct TurnStarted: Sendable {
        package var seed: UInt64 = 0
        /// The hash of the definition that the turn began with.
        package var definition: String?
        package var at = Timestamp(milliseconds: 0)
        package var offset: UInt64 = 0
        /// The offset at which the turn's conversation begins; `nil` in logs that do not say.
        package var history: UInt64?
    }

    /// A step that was begun and has no result.
    package struct OpenStep: Sendable {
        package var attempt: UInt32 = 1
        /// How many attempts have failed; interrupted ones do not count.
        package var failures = 0
        /// When the next attempt is due, after a failure.
        package var retryAt: Timestamp?
        /// When it ends by itself, for a sleep, a wait or an approval.
        package var due: Timestamp?
        /// The offsets of what joined the model's request.
        package var steered: [UInt64] = []
        /// The incarnation of the channel that it follows.
        package var followed: String?
        /// The offset of its first start.
        package var startedAt: UInt64 = 0
        package var text = SavedText()
        /// The text of an earlier attempt, which readers are shown until this one writes something.
        package var earlier = SavedText()
    }

    /// The first start of each step, in log order: the order in which the program asked for them.
    package var starts: [Start] = []
    /// Results in log order: the order in which the program got them.
    package var completions: [Completion] = []
    package var open: [String: OpenStep] = [:]
    /// How the turn began.
    package var start = TurnStarted()
    /// How often the turn was taken up again.
    package var restarts = 0
    /// Process ends in a row, without drain, in which the turn committed nothing after it had been resumed.
    package var crashesInVain = 0
    /// Whether something of the turn has been committed since it was last started or resumed.
    package var hasProgress = false
    /// Text entries and ended steps since the first crash; 0 while there was none.
    package var workSinceCrash = 0
    /// Whether a step of the turn has ended.
    package var hasEndedStep = false
    /// The offset of the entry that stalled or parked the agent, while it is.
    package var haltedAt: UInt64?
    /// Compensations that the program has registered, as far as a start of a step or a stall names them, and that have not run.
    package var compensations: [String] = []
    /// How many entries of each name the program has published.
    package var emits: [Emission: Int] = [:]

    package init() {}

    /// Reads the turn whose input has the offset `turn`.
    package init(_ channels: Channels, _ channel: Channel, turn: UInt64) throws(LogError) {
        try channels.walk(channel, after: turn, upTo: channel.tail.head) { offset, frame in
            guard let position = frame.position, position.turn == turn else { return true }
            add(frame, position, offset)
            return true
        }
    }

    private mutating func add(_ frame: Frame, _ position: Position, _ offset: UInt64) {
        let path = position.step
        let at = frame.at!  // Every entry with a position is stamped.
        switch frame.kind {
        case .turnStarted:
            start = TurnStarted(frame, at: at, offset: offset)
        case .supervision where frame.body["action"] == "cancel":
            completions.append(
                Completion(
                    path: "", outcome: .failed(.cancelled), at: at, cancellation: frame.body["reason"] ?? .null, startsBefore: starts.count)
            )
        case .supervision where frame.body["action"] == "resume":
            resumed(crashed: ProcessEnd.isCrash(frame.body["cause"]?.string))
        case .agentStalled:
            haltedAt = offset
            register(frame.body["compensations"])
        case .agentParked: haltedAt = offset
        case .agentResumed: resumed()
        case .emit:
            emits[Emission(scope: frame.body["scope"]?.string ?? "", name: frame.body["name"]?.string ?? ""), default: 0] += 1
            hasProgress = true
        case .stepStarted:
            let body = frame.body
            register(body["compensations"])
            if position.attempt == 1 {
                hasProgress = true
                let kind = body["kind"]?.string.flatMap { StepKind(rawValue: $0) } ?? .step
                starts.append(
                    Start(
                        path: path, kind: kind, digest: body["request"]?["sha256"]?.string, at: at, offset: offset,
                        isShielded: body["shielded"]?.bool ?? false))
                open[path] = OpenStep(startedAt: offset)
                open[path]?.followed = body["request"]?["incarnation"]?.string
            }
            open[path]?.begin(position.attempt, continuesAt: body["continues_at"]?.integer)
            if let steered = body["steered"]?.array {
                open[path]?.steered = steered.compactMap { $0.string.flatMap { Offset(token: $0)?.value } }
            }
        case .text:
            worked()
            if let text = frame.text { open[path]?.text.add(text) }
        case .timerSet: open[path]?.due = frame.body["due"]?.string.flatMap { Timestamp($0) }
        case .stepFailed where frame.body["final"]?.bool != true:
            hasProgress = true
            open[path]?.retryAt = frame.body["retry_at"]?.string.flatMap { Timestamp($0) }
            if frame.body["error"]?["code"]?.string != StepFailure.prefixRefusedCode { open[path]?.failures += 1 }
        case .stepFailed:
            let failure = StepFailure(journal: frame.body["error"] ?? .null)
            // Earlier versions did not record it: such a failure has no attempt, and its turn was not cancelled.
            let mayBeGivenUp = position.attempt == 0 && failure.code == StepFailure.cancelled.code && cancellation == nil
            let isGivenUp = frame.body["given_up"]?.bool ?? mayBeGivenUp
            close(path, .failed(failure), at, isGivenUp: isGivenUp)
        case .stepCompleted:
            close(path, .completed(frame.body), at)
        default: break
        }
    }

    private mutating func register(_ names: JSON?) {
        for case .string(let path) in names?.array ?? [] where !compensations.contains(path) { compensations.append(path) }
    }

    /// A person resumes the turn: it may do, and crash, as much once more.
    mutating func resumed() { (haltedAt, hasProgress, crashesInVain, workSinceCrash) = (nil, false, 0, min(1, workSinceCrash)) }

    private mutating func resumed(crashed: Bool) {
        restarts += 1
        haltedAt = nil
        if crashed {
            crashesInVain = hasProgress ? 0 : crashesInVain + 1
            if workSinceCrash == 0 { workSinceCrash = 1 }
        }
        hasProgress = false
    }

    private mutating func worked() {
        hasProgress = true
        if workSinceCrash > 0 { workSinceCrash += 1 }
    }

    private mutating func close(_ path: String, _ outcome: StepOutcome, _ at: Timestamp, isGivenUp: Bool = false) {
        worked()
        hasEndedStep = true
        compensations.removeAll { $0 == path }
        open[path] = nil
        completions.append(Completion(path: path, outcome: outcome, at: at, isGivenUp: isGivenUp, startsBefore: starts.count))
    }
}

extension Journal.OpenStep {
    mutating func begin(_ attempt: UInt32, continuesAt: Int64?) {
        self.attempt = attempt
        retryAt = nil
        guard attempt > 1 else { return }
        if !text.text.isEmpty { earlier = text }
        text.cut(to: continuesAt.map { Int($0) } ?? 0)
    }
}

/// The durable part of a model's unfinished answer.
package struct SavedText: Sendable, Equatable {
    package var text = Bytes()
    /// How many pieces the upstream sent of it: about as many tokens.
    package var pieces = 0
    package var hasReasoning = false
    /// The model had moved on to something else than text: the calls of tools.
    package var isTextOver = false

    package init() {}

    mutating func add(_ delta: TextDelta) {
        guard delta.part == .text else {
            hasReasoning = true
            return
        }
        if delta.delta.isEmpty { isTextOver = true }
        text.append(contentsOf: delta.delta)
        pieces += Int(delta.pieces)
    }

    mutating func cut(to count: Int) {
        // An attempt that continues keeps everything before it; one that starts again keeps nothing.
        if count == 0 { self = SavedText() } else { text.removeLast(max(0, text.count - count)) }
    }
}

/// The kind of work a step does.
package enum StepKind: String, Sendable {
    case step, model, tool, call, sleep, wait, approval, memory
}

/// The recorded end of a step.
package enum StepOutcome: Sendable {
    /// The members of `step.completed`.
    case completed(JSON)
    case failed(StepFailure)
}

extension StepFailure {
    /// The failure as in `step.failed` and `turn.failed`.
    package var journal: JSON {
        JSON.compact(
            ("code", .string(code)), ("message", .string(message)), ("retryable", .bool(retryable)),
            ("retry_after_ms", retryAfter.map { .integer(Timestamp(milliseconds: 0).advanced(by: $0).milliseconds) }), ("data", data))
    }

    /// The failure as a replay will see it, which is how the first run sees it too.
    var asReplayed: StepFailure { StepFailure(journal: (try? JSON.parse(stored: journal.bytes)) ?? .null) }

    init(journal: JSON) {
        self.init(
            code: journal["code"]?.string ?? "unknown", message: journal["message"]?.string ?? "",
            retryable: journal["retryable"]?.bool ?? false,
            retryAfter: journal["retry_after_ms"]?.integer.map { .milliseconds($0) }, data: journal["data"])
    }

    /// The error that the program gets: failures caused by people have their own types.
    var thrown: any Error {
        switch code {
        case "interrupted": Interrupted(partial: "", redirection: data?["text"]?.string, entry: data?["interrupted_by"]?.string)
        case "approval_denied": ApprovalDenied(by: data?["decided_by"]?.string ?? "", reason: data?["reason"]?.string)
        case "approval_expired": ApprovalExpired()
        default: self
        }
    }

    /// The failure for an error from the body of a step. A cancellation is the body's own doing, as when it ran out of the time that it gave itself:
    /// a cancelled step does not wait for its body.
    init(ofBody error: any Error) {
        if error is CancellationError {
            self.init(code: "step_failed", message: "the step's body threw CancellationError", retryable: true)
        } else {
            self = StepFailure(error).ofWhatRan
        }
    }

    /// The failure for an error from a program, as it will be journaled.
    init(_ error: any Error) {
        if let failure = error as? StepFailure {
            self = failure
        } else if let error = error as? ApprovalDenied {
            self.init(code: "approval_denied", message: "denied by \(error.by)", retryable: false, data: error.reason.map { .string($0) })
        } else if error is ApprovalExpired {
            self.init(code: "approval_expired", message: "nobody decided in time", retryable: false)
        } else if let error = error as? TurnError {
            self.init(code: error.code, message: error.message, retryable: false)
        } else if error is CancellationError {
            self.init(code: "cancelled", message: "the step was cancelled", retryable: false)
        } else {
            self.init(code: "step_failed", message: String(describing: error), retryable: true)
        }
    }
}

extension Journal.TurnStarted {
    fileprivate init(_ frame: Frame, at: Timestamp, offset: UInt64) {
        (self.at, self.offset) = (at, offset)
        seed = frame.body["seed"]?.string.flatMap { UInt64($0, radix: 16) } ?? 0
        history = frame.body["history"]?.string.flatMap { Offset(token: $0)?.value }
        definition = frame.body["definition"]?.string
    }
}
