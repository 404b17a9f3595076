internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// One run of one turn: matches what the program asks for with what the journal holds, starts what is new, and resumes the program.
///
/// Results reach the program in log order, one at a time, with the lane drained in between: on the first run because they are delivered as
/// they commit, on a replay because they are released in the same order. So the program takes the same path, and asks for the same steps.
package final class TurnCore: @unchecked Sendable {  // Guard: `state` is touched on the lane only (`requireLane`); the rest is immutable.
    let owner: any TurnOwner
    let lane: Lane
    /// The offset of the turn's input.
    let turn: UInt64
    let epoch: UInt64
    let history: [HistoryItem]
    private var state: State
    private var end: (@Sendable (Outcome) -> Void)?
    /// Steps whose end has been handed to the log: a step has one, whoever comes first.
    private let ended = Mutex<Set<String>>([])

    private struct State {
        var journal: Journal
        /// How many of the journal's starts the program has asked for again.
        var matched = 0
        let emitsInJournal: Int
        var emitted = 0
        var isReplaying = true
        var waits: [String: StepWait] = [:]
        /// How many of them follow another channel.
        var followCount = 0
        /// Steps asked for during the replay that the journal does not know.
        var unstarted: [String] = []
        var now: Timestamp
        var random: SplitMix64
        var fence: (any Error)?
        var root: Task<Void, Never>?
        /// Why it was cancelled, once it was.
        var cancellation: JSON?
        var phase = Phase.running
        var compensations: [StepRequest] = []
        var failedCompensations: [String] = []
    }

    private typealias Outcome = Result<(output: JSON, state: JSON), any Error>

    private enum Phase {
        case running
        /// The program has ended.
        case ended(Outcome)
        case compensating(Outcome)
        case compensated(Outcome)
    }

    init(owner: any TurnOwner, lane: Lane, turn: UInt64, epoch: UInt64, journal: Journal, history: [HistoryItem]) {
        self.owner = owner
        self.lane = lane
        self.turn = turn
        self.epoch = epoch
        self.history = history
        state = State(journal: journal, emitsInJournal: journal.emits, now: journal.startedAt, random: SplitMix64(seed: journal.seed))
    }

    /// Runs the turn from its top. `end` is called on the lane when the program has returned or thrown, unless the turn was fenced.
    func start(
        _ program: @escaping @Sendable (Turn) async throws -> (output: JSON, state: JSON),
        end: @escaping @Sendable (Result<(output: JSON, state: JSON), any Error>) -> Void
    ) {
        let turn = Turn(core: self, scope: Scope(prefix: ""))
        self.end = end
        state.root = Task(executorPreference: lane) {
            do { self.ended(.success(try await program(turn))) } catch { self.ended(.failure(error)) }
        }
        for completion in state.journal.completions { lane.deliver { self.release(completion) } }
        lane.deliver { self.goLive() }
    }

    /// The program has ended.
    private func ended(_ result: Outcome) {
        guard state.fence == nil else { return }
        state.phase = .ended(result)
        conclude()
    }

    /// Ends the turn, or first takes back what it did: at the same place in the log on the first run and on a replay.
    private func conclude() {
        switch state.phase {
        case .ended(let result) where mustCompensate(result):
            state.phase = .compensating(result)
            // In a task of its own: the program's may be cancelled.
            Task(executorPreference: lane) { await self.compensate(result) }
        case .ended(let result), .compensated(let result): lane.deliver { self.report(result) }
        case .running, .compensating: break
        }
    }

    private func mustCompensate(_ result: Outcome) -> Bool {
        guard !state.compensations.isEmpty else { return false }
        if case .failure(let error) = result, !(error is Interrupted) { return true }
        return state.cancellation != nil
    }

    private func compensate(_ result: Outcome) async {
        while let request = state.compensations.popLast() {
            do { _ = try await perform(request) } catch {
                guard state.fence == nil else { return }
                state.failedCompensations.append(request.path)
            }
        }
        guard state.fence == nil else { return }
        state.phase = .compensated(result)
        conclude()
    }

    private func report(_ result: Outcome) {
        // Cancelled meanwhile, it is reported again when what there is to take back has been.
        if case .compensating = state.phase { return }
        guard state.fence == nil else { return }
        if let missed = unmatchedStart {
            stall(.mismatch(expected: missed, found: "the end of the turn"), at: nil)
            return
        }
        end?(result)
    }

    // MARK: Being cancelled

    /// The turn was cancelled, and that is durable: what is not shielded ends. On the lane.
    func cancelled(_ reason: JSON, at: Timestamp) {
        guard state.fence == nil, state.cancellation == nil else { return }
        state.cancellation = reason
        state.now = max(state.now, at)
        state.root?.cancel()
        conclude()
    }

    /// Why it was cancelled; `nil` unless it was.
    var cancellation: JSON? { state.cancellation }

    /// The steps that were to take something back, and failed.
    var failedCompensations: [String] { state.failedCompensations }

    /// The compensations that have been registered and have not run.
    var registeredCompensations: [String] { state.compensations.map(\.path) }

    func compensate(_ request: StepRequest) {
        requireLane()
        state.compensations.append(request)
    }

    // MARK: What the program asks for

    /// When the last entry that the program has consumed was committed.
    var now: Timestamp {
        requireLane()
        return state.now
    }

    func random() -> UInt64 {
        requireLane()
        return state.random.next()
    }

    /// Has the step done, or its recorded result found; returns when it stands in the log and it is its turn.
    func perform(_ request: StepRequest) async throws -> JSON {
        requireLane()
        try checkRunning(isShielded: request.isShielded)
        let isKnown = try match(request)
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                state.waits[request.path] = StepWait(request: request, continuation: continuation)
                if request.isFollow { state.followCount += 1 }
                if isKnown { return }
                if state.isReplaying { state.unstarted.append(request.path) } else { owner.begin(self, request, attempt: 1) }
            }
        } onCancel: {
            // Delivered, not done here: the step's end takes its place in the log, and so in every replay.
            lane.deliver { self.cancelled(request.path) }
        }
    }

    /// The program has cancelled the task that waits for the step.
    private func cancelled(_ path: String) {
        guard state.fence == nil, let wait = state.waits[path] else { return }
        // In a replay the journal may have its end already; if not, it is cancelled once the replay is over.
        if state.isReplaying { state.waits[path]!.isCancelled = true } else { owner.cancel(self, wait.request) }
    }

    /// Where the turn's own end is claimed: no step has an empty path.
    static let turnEnd = ""

    /// Whether the caller is the one to write the step's end. Any thread.
    func claimEnd(_ path: String) -> Bool { ended.withLock { $0.insert(path).inserted } }

    /// Whether the step's end has been handed to the log. Any thread.
    func hasEnd(_ path: String) -> Bool { ended.withLock { $0.contains(path) } }

    /// The end that was claimed did not come to be: something else must be decided first.
    func withdrawEnd(_ path: String) { ended.withLock { _ = $0.remove(path) } }

    /// The steps under way whose end has not been handed to the log, in the order of their paths; none during a replay.
    var openSteps: [StepRequest] {
        guard !state.isReplaying, state.fence == nil else { return [] }
        return state.waits.values.map(\.request).filter { !hasEnd($0.path) }.sorted { $0.path < $1.path }
    }

    /// Those of them that follow another channel. Costs nothing when there are none: it is asked after everything that happens.
    var openFollows: [StepRequest] { state.followCount == 0 ? [] : openSteps.filter(\.isFollow) }

    var isReplaying: Bool { state.isReplaying }

    /// Publishes an entry that needs no result. The program publishes in one order only, so the journal's count tells which are there.
    func emit(_ entry: NewEntry, isShielded: Bool) throws {
        requireLane()
        try checkRunning(isShielded: isShielded)
        state.emitted += 1
        if state.emitted > state.emitsInJournal { owner.append(self, [entry]) }
    }

    private func checkRunning(isShielded: Bool) throws {
        if let fence = state.fence { throw fence }
        if state.cancellation != nil, !isShielded { throw StepFailure.cancelled }
    }

    /// Compares what the program asks for with the next start the journal has. Starts come in one order only, so the first difference is
    /// where the program and the journal part.
    private func match(_ request: StepRequest) throws -> Bool {
        if state.waits[request.path] != nil { preconditionFailure("step '\(request.path)' is under way twice") }
        guard state.matched < state.journal.starts.count else { return false }
        let recorded = state.journal.starts[state.matched]
        let isSame =
            recorded.path == request.path && recorded.kind == request.kind
            && (recorded.digest == nil || request.digest == nil || recorded.digest == request.digest)
        guard isSame else {
            let error = TurnError.mismatch(expected: recorded.text, found: request.text)
            stall(error, at: request.source)
            throw error
        }
        state.matched += 1
        return true
    }

    private var unmatchedStart: String? {
        state.matched < state.journal.starts.count ? state.journal.starts[state.matched].text : nil
    }

    // MARK: Replay

    private func release(_ completion: Journal.Completion) {
        guard state.fence == nil else { return }
        if let reason = completion.cancellation { return cancelled(reason, at: completion.at) }
        guard state.waits[completion.path] != nil else {
            stall(.mismatch(expected: "the end of step '\(completion.path)'", found: "a program that does not wait for it"), at: nil)
            return
        }
        resume(completion.path, completion.outcome, at: completion.at)
    }

    /// The replay has caught up with the log: what was open goes on, what is new begins.
    private func goLive() {
        guard state.fence == nil else { return }
        if let missed = unmatchedStart {
            stall(.mismatch(expected: missed, found: "a program that does not ask for it"), at: nil)
            return
        }
        state.isReplaying = false
        for start in state.journal.starts {
            guard let open = state.journal.open[start.path], let wait = state.waits[start.path] else { continue }
            if wait.isCancelled { owner.cancel(self, wait.request) } else { owner.reopen(self, wait.request, open) }
        }
        for path in state.unstarted {
            guard let wait = state.waits[path] else { continue }
            owner.begin(self, wait.request, attempt: 1)
            if wait.isCancelled { owner.cancel(self, wait.request) }
        }
        state.unstarted = []
        state.journal = Journal()
        state.matched = 0
        owner.caughtUp(self)
    }

    private func stall(_ error: TurnError, at source: String?) {
        owner.stalled(self, error, at: source)
        fence(error)
    }

    // MARK: Results

    /// Resumes the program with a result that is durable. On the lane.
    func resume(_ path: String, _ outcome: StepOutcome, at: Timestamp) {
        guard let wait = state.waits.removeValue(forKey: path) else { return }
        if wait.request.isFollow { state.followCount -= 1 }
        state.now = max(state.now, at)
        switch outcome {
        case .completed(let body): wait.continuation.resume(returning: body)
        case .failed(let failure): wait.continuation.resume(throwing: failure.thrown)
        }
    }

    /// The step the program waits for at `path`, unless the replay is still under way.
    func waiting(at path: String) -> StepRequest? { state.isReplaying || state.fence != nil ? nil : state.waits[path]?.request }

    /// What the program waits for, when everything it waits for needs no memory: then it can be passivated.
    var restingSteps: [StepRequest]? {
        guard !state.isReplaying, state.fence == nil, !state.waits.isEmpty else { return nil }
        let requests = state.waits.values.map(\.request)
        // A wait whose end is on its way to the log is over: nobody would come to wake the turn again.
        return requests.allSatisfy { [.sleep, .wait, .approval].contains($0.kind) && !hasEnd($0.path) } ? requests : nil
    }

    var isFenced: Bool { state.fence != nil }

    /// Ends the turn's right to run: every wait and every later use throws `error`, and nothing more is appended.
    func fence(_ error: any Error) {
        guard state.fence == nil else { return }
        state.fence = error
        // Sorted, so that a simulated run follows from its seed.
        for (_, wait) in state.waits.sorted(by: { $0.key < $1.key }) { wait.continuation.resume(throwing: error) }
        state.waits = [:]
        state.root?.cancel()
        end = nil
    }

    func requireLane() {
        precondition(
            lane.isCurrent,
            "turn.* was used outside the turn's own tasks. Start child tasks with a task group or turn.map, not with Task.detached or Task {}, and do outside work in a step."
        )
    }
}

/// A step as the program asks for it.
struct StepRequest: Sendable {
    var path: String
    var kind: StepKind
    var digest: String?
    /// Where in the program: `File.swift:12`.
    var source: String
    var work: Work
    /// What else its start says of it, beside the digest.
    var details: [JSON.Member] = []
    /// Neither a cancel nor an interrupt reaches it.
    var isShielded = false
    /// It takes back what the turn did.
    var isCompensation = false
    /// How many of its attempts have failed so far.
    var failures = 0

    enum Work: Sendable {
        case body(StepContract, RetryPolicy, @Sendable (StepContext) async throws -> JSON)
        case model(any Model, ModelRequest, RetryPolicy)
        case sleep(until: Timestamp)
        /// For a signal of that name whose data has these members.
        case wait(signal: String, match: [JSON.Member], until: Timestamp?)
        case approval(action: String, arguments: JSON, until: Timestamp?)
        /// For entries of another channel behind `after`: the one of that incarnation, where it is known already.
        case follow(channel: String, after: UInt64, incarnation: String?, until: Timestamp?)
    }

    /// When it ends by itself.
    var due: Timestamp? {
        switch work {
        case .sleep(let instant): instant
        case .wait(_, _, let instant), .approval(_, _, let instant), .follow(_, _, _, let instant): instant
        case .body, .model: nil
        }
    }

    var isFollow: Bool { if case .follow = work { true } else { false } }

    /// What was asked for, as its start has it.
    var asked: JSON? { digest.map { .object((["sha256": .string($0)] as JSON).members! + details) } }

    var text: String { "\(kind.rawValue) '\(path)'" + (digest.map { " (\($0.prefix(12)))" } ?? "") }
}

extension Journal.Start {
    var text: String { "\(kind.rawValue) '\(path)'" + (digest.map { " (\($0.prefix(12)))" } ?? "") }
}

private struct StepWait {
    var request: StepRequest
    var continuation: CheckedContinuation<JSON, any Error>
    /// Cancelled by the program during the replay.
    var isCancelled = false
}

/// What runs the steps of a turn and writes its entries.
protocol TurnOwner: AnyObject, Sendable {
    var channelName: String { get }
    func idempotencyKey(_ turn: UInt64, _ path: String) -> String
    /// The offset at which another channel ends now, and which channel that is.
    func tail(of channel: String) throws -> JSON
    /// Starts a step that the journal does not know. On the lane.
    func begin(_ core: TurnCore, _ request: StepRequest, attempt: UInt32)
    /// Goes on with a step that was begun before a crash. On the lane.
    func reopen(_ core: TurnCore, _ request: StepRequest, _ open: Journal.OpenStep)
    /// Ends a step because the program no longer wants it. On the lane.
    func cancel(_ core: TurnCore, _ request: StepRequest)
    func append(_ core: TurnCore, _ entries: [NewEntry])
    /// The replay is over. On the lane.
    func caughtUp(_ core: TurnCore)
    func stalled(_ core: TurnCore, _ error: TurnError, at source: String?)
}
