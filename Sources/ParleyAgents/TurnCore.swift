internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// One run of one turn: matches what the program asks for with what the journal holds, starts what is new, and resumes the program.
///
/// Results reach the program in log order, one at a time, with the lane drained in between: on the first run because they are delivered as
/// they commit, on a replay because they are released in the same order. So the program takes the same path, and asks for the same steps.
package final class TurnCore: @unchecked Sendable {  // Guard: `state`, `replay`, `end`: on the lane only; the rest is immutable.
    let channelName: String
    let lane: Lane
    /// The offset of the turn's input.
    let turn: UInt64
    let epoch: UInt64
    /// What models were asked, so that the next request says only what it adds.
    let requests = RequestLedger()
    private var state: State
    private var replay: Replay
    private var end: (@Sendable (Outcome) -> Void)?
    /// Steps whose end stands in the journal, or has been handed to the log: a step has one, whoever comes first.
    private let ended: Mutex<Set<String>>
    /// Whether the program has still to ask for something that the journal has.
    private let isMissing: Atomic<Bool>
    private let items: Mutex<[HistoryItem]>
    private let whenParked: @Sendable () -> Void
    /// How often the turn was used from outside its tasks.
    private let strays = Atomic<Int>(0)

    private struct State {
        /// `nil` once the program is left to itself, see ``TurnCore/leaveProgram()``.
        var owner: (any TurnOwner)?
        /// The program has come as far as the journal takes it, but for what it waits for outside the turn.
        var isLive = false
        var isReleasing = false
        var emits: EmitCount
        var waits: [String: StepWait] = [:]
        /// How many of them follow another channel.
        var followCount = 0
        /// Steps asked for during the replay that the journal does not know.
        var held: [String] = []
        /// How many times the replay has been found waiting for something outside.
        var outsideChecks = 0
        var isOutsideCheckScheduled = false
        var isRootCancelled = false
        var now: Timestamp
        var random: SplitMix64
        var fence: (any Error)?
        var root: Task<Void, Never>?
        /// Why it was cancelled, once it was.
        var cancellation: JSON?
        var phase = Phase.running
        var compensations: [StepRequest] = []
        var failedCompensations: [String] = []
        /// How often the program was refused something since it was last given something.
        var refusals = 0
        /// Those who were refused too often, until something happens.
        var paused: [UnsafeContinuation<Void, Never>] = []
        var isAbandoned = false
        /// A task of the program will never go on.
        var hasParked = false
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
        channelName = owner.channelName
        self.lane = lane
        self.turn = turn
        self.epoch = epoch
        ended = Mutex(Set(journal.completions.lazy.filter { $0.cancellation == nil }.map(\.path)))
        items = Mutex(history)
        whenParked = owner.whenParked
        isMissing = Atomic(!journal.starts.isEmpty)
        replay = Replay(journal)
        state = State(
            owner: owner, emits: EmitCount(journal: journal.emits), now: journal.startedAt,
            random: SplitMix64(seed: journal.seed))
    }

    /// Runs the turn from its top; call it in a delivery of the lane. `end` is called on the lane when the program has returned or thrown, unless
    /// the turn was fenced.
    func start(
        _ program: @escaping @Sendable (Turn) async throws -> (output: JSON, state: JSON),
        end: @escaping @Sendable (Result<(output: JSON, state: JSON), any Error>) -> Void
    ) {
        let turn = Turn(core: self, scope: Scope(self, prefix: ""))
        self.end = end
        state.root = Task(executorPreference: lane) {
            do { self.ended(.success(try await program(turn))) } catch { self.ended(.failure(error)) }
        }
        scheduleRelease()
    }

    /// The program has ended.
    private func ended(_ result: Outcome) {
        guard state.fence == nil, case .running = state.phase else { return }
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
            do { _ = try await perform(request, in: nil) } catch {
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
        // A program that has ended waits for nothing that could stand before it.
        if let cancellation = replay.takeCancellation() { return give(cancellation) }
        if state.cancellation == nil, let missed = replay.missed {
            stall(.mismatch(expected: missed.text, found: "the end of the turn"), at: nil)
            return
        }
        end?(result)
    }

    // MARK: Being cancelled

    /// The turn was cancelled, and that is durable: what is not shielded ends. On the lane.
    func cancelled(_ reason: JSON, at: Timestamp) {
        deliver(Journal.Completion(path: "", outcome: .failed(.cancelled), at: at, cancellation: reason))
    }

    /// Why it was cancelled; `nil` unless it was.
    var cancellation: JSON? { state.cancellation }

    /// The steps that were to take something back, and failed.
    var failedCompensations: [String] { state.failedCompensations }

    /// The compensations that have been registered and have not run.
    var registeredCompensations: [String] { state.compensations.map(\.path) }

    func compensate(_ request: StepRequest) throws {
        try checkLane()
        state.compensations.append(request)
    }

    // MARK: What the program asks for

    /// The turns before this one. Any thread.
    var history: [HistoryItem] { items.withLock { $0 } }

    /// When the last entry that the program has consumed was committed.
    var now: Timestamp {
        requireLane()
        return state.now
    }

    func random() -> UInt64 {
        requireLane()
        return state.random.next()
    }

    func idempotencyKey(_ path: String) -> String { "\(channelName)/\(Offset(turn))/\(path)" }

    /// What the program's bodies may ask of the agent outside the turn.
    func owner() throws -> any TurnOwner {
        try checkLane()
        guard let owner = state.owner, state.fence == nil else { throw state.fence ?? Fenced() }
        return owner
    }

    /// Has the step done, or its recorded result found; returns when it stands in the log and it is its turn.
    func perform(_ request: StepRequest, in scope: Scope?) async throws -> JSON {
        do { try check(request) } catch { try await refuse(error) }
        let isKnown = try match(request, scope)
        if !isKnown, state.waits.count >= TurnCore.stepsMax { try await refuse(TurnError.tooManySteps(request.path, TurnCore.stepsMax)) }
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                state.waits[request.path] = StepWait(request: request, continuation: continuation)
                if request.isFollow { state.followCount += 1 }
                begin(request, isKnown: isKnown)
            }
        } onCancel: {
            // Delivered, not done here: the step's end takes its place in the log, and so in every replay.
            lane.deliver { self.cancelled(request.path) }
        }
    }

    /// How many steps of a turn may be under way at once.
    static let stepsMax = 4_096

    /// The program has cancelled the task that waits for the step.
    private func cancelled(_ path: String) {
        guard state.fence == nil, let wait = state.waits[path], !hasEnd(path) else { return }
        // What is not under way yet is cancelled once it is.
        let isUnderWay = state.isLive && !state.held.contains(path)
        if isUnderWay { state.owner?.cancel(self, wait.request) } else { state.waits[path]!.isCancelled = true }
    }

    /// Where the turn's own end is claimed: no step has an empty path.
    static let turnEnd = ""

    /// Whether the caller is the one to write the step's end. Any thread.
    func claimEnd(_ path: String) -> Bool { ended.withLock { $0.insert(path).inserted } }

    /// Whether the step's end stands in the journal, or has been handed to the log. Any thread.
    func hasEnd(_ path: String) -> Bool { ended.withLock { $0.contains(path) } }

    /// The end that was claimed did not come to be: something else must be decided first.
    func withdrawEnd(_ path: String) { ended.withLock { _ = $0.remove(path) } }

    /// The steps under way whose end has not been handed to the log, in the order of their paths; none during a replay.
    var openSteps: [StepRequest] {
        guard state.isLive, state.fence == nil else { return [] }
        let held = Set(state.held)
        return state.waits.values.map(\.request).filter { !hasEnd($0.path) && !held.contains($0.path) }.sorted { $0.path < $1.path }
    }

    /// Those of them that follow another channel. Costs nothing when there are none: it is asked after everything that happens.
    var openFollows: [StepRequest] { state.followCount == 0 ? [] : openSteps.filter(\.isFollow) }

    var isReplaying: Bool { !state.isLive }

    /// Whether the journal has the step and the program has not come to it again: what is meant for it has to wait.
    func expects(_ path: String) -> Bool { state.fence == nil && replay.misses(path) }

    /// Publishes an entry that needs no result.
    func emit(_ name: String, _ entry: NewEntry, isShielded: Bool) throws {
        try checkLane()
        try checkRunning(isShielded: isShielded)
        if try state.emits.add(name, bytes: entry.byteCount) { state.owner?.append(self, [entry]) }
    }

    private func check(_ request: StepRequest) throws {
        try checkLane()
        if state.isAbandoned, !request.isCompensation { throw state.fence ?? StepFailure.cancelled }
        try checkRunning(isShielded: request.isShielded)
    }

    private func checkRunning(isShielded: Bool) throws {
        if let fence = state.fence { throw fence }
        if state.cancellation != nil, !isShielded { throw StepFailure.cancelled }
    }

    private func match(_ request: StepRequest, _ scope: Scope?) throws -> Bool {
        if state.waits[request.path] != nil { preconditionFailure("step '\(request.path)' is under way twice") }
        let names = scope?.names
        let recorded = replay.recorded(request.path)
        switch replay.match(request, isCancelled: state.cancellation != nil, isNamed: { names?.contains($0) ?? true }) {
        case .new: return false
        case .known:
            if replay.missingCount == 0 { isMissing.store(false, ordering: .relaxed) }
            if case .model(_, let asked, _) = request.work, let recorded { requests.note(request.path, asked, at: recorded.offset) }
            return true
        case .differs(let expected):
            let error = TurnError.mismatch(expected: expected, found: request.text)
            stall(error, at: request.source)
            throw error
        }
    }

    /// What kind of step the journal has at `path` that the program has not asked for yet: what was done already stays as it was done, whatever the
    /// rules are now.
    func recordedKind(_ path: String) -> StepKind? { replay.recorded(path)?.kind }

    /// When an open step of the journal ends by itself.
    func recordedDue(_ path: String) -> Timestamp? { replay.due(of: path) }

    private func begin(_ request: StepRequest, isKnown: Bool) {
        if isKnown {
            if let result = replay.takeSkipped(request.path) { return lane.deliver(parts: [{ self.give(result) }]) }
            guard state.isLive else { return }
            // The program has come to it late, from something outside the turn.
            if let open = replay.takeOpen(request.path) { state.owner?.reopen(self, request, open) }
            scheduleRelease()
        } else if state.isLive, isCaughtUp {
            state.owner?.begin(self, request, attempt: 1)
        } else {
            state.held.append(request.path)
        }
    }

    /// Nothing that the journal has is to come any more.
    private var isCaughtUp: Bool { replay.isOver || state.cancellation != nil && !replay.hasResults }

    // MARK: Refusals

    /// Throws `error`; a program that goes on asking whatever it is told does not get the thread back for it.
    ///
    /// After a thousand refusals in a row it waits until something else of the turn ends, and when there is nothing else, the turn has failed.
    /// In a turn that has no right to run any more it is left where it is. Swift has no way to end a task that does not end itself: what
    /// it holds is given up with the process.
    func refuse(_ error: any Error) async throws {
        guard lane.isCurrent else {
            if strays.add(1, ordering: .relaxed).newValue >= TurnCore.refusalsMax { await TurnCore.suspendForEver() }
            throw error
        }
        state.refusals += 1
        if state.fence != nil || state.isAbandoned {
            if state.isAbandoned || state.refusals >= TurnCore.fencedRefusalsMax { await park() }
        } else if state.refusals >= TurnCore.refusalsMax {
            if state.waits.isEmpty {
                abandon(error)
                await park()
            } else {
                await withUnsafeContinuation { state.paused.append($0) }
            }
        }
        throw error
    }

    private static let refusalsMax = 1_000
    /// More, since a program that comes to its end takes nothing with it.
    private static let fencedRefusalsMax = 10_000

    private func abandon(_ error: any Error) {
        Diagnostics.log(
            .error, "turn abandoned: its program was refused a thousand steps in a row and went on",
            ["channel": channelName, "turn": Offset(turn).token, "reason": "\(error)"])
        ended(.failure(error))
        state.isAbandoned = true
    }

    private func park() async {
        whenParked()
        state.hasParked = true
        if state.fence != nil { leaveProgram() }
        await TurnCore.suspendForEver()
    }

    private static func suspendForEver() async { await withUnsafeContinuation { (_: UnsafeContinuation<Void, Never>) in } }

    /// What a program that does not end holds is as little as possible.
    private func leaveProgram() {
        (state.owner, state.root, state.compensations) = (nil, nil, [])
        items.withLock { $0 = [] }
        replay = Replay(Journal())
    }

    // MARK: Replay

    /// Has results given that the program waits for, once everything that can run now has run, before the next delivery. On the lane.
    private func scheduleRelease() {
        guard !state.isReleasing else { return }
        state.isReleasing = true
        lane.deliver(parts: [{ self.release() }])
    }

    private func release() {
        state.isReleasing = false
        guard state.fence == nil else { return }
        if let completion = replay.next(isAskedFor: { state.waits[$0] != nil }) {
            give(completion)
            scheduleRelease()
        } else if state.cancellation != nil, replay.skip() {
            scheduleRelease()
        } else {
            settle()
        }
    }

    /// The program can go no further by what the journal has: what was open goes on, and once everything was asked for, what is new begins.
    private func settle() {
        if !state.isLive {
            state.isLive = true
            for path in replay.openPaths {
                guard let wait = state.waits[path], let open = replay.takeOpen(path) else { continue }
                if wait.isCancelled { state.owner?.cancel(self, wait.request) } else { state.owner?.reopen(self, wait.request, open) }
            }
        }
        if isCaughtUp { beginHeld() } else { watchOutside() }
        state.owner?.caughtUp(self)
    }

    private func beginHeld() {
        let held = state.held
        state.held = []
        for path in held {
            guard let wait = state.waits[path] else { continue }
            if wait.isCancelled {
                // It was never begun, and on the next replay it will not be either.
                give(Journal.Completion(path: path, outcome: .failed(.cancelled), at: state.now))
            } else {
                state.owner?.begin(self, wait.request, attempt: 1)
            }
        }
    }

    /// No task has asked for a step that the journal has: one may wait for something outside the turn, which comes again. What is asked of a
    /// cancelled turn is that such a wait ends.
    private func watchOutside() {
        guard !state.isOutsideCheckScheduled, state.outsideChecks < TurnCore.outsideChecksMax || replay.hasCancellation else { return }
        state.isOutsideCheckScheduled = true
        lane.deliver(after: TurnCore.outsideCheckInterval) { [weak self] in self?.checkOutside() }
    }

    private func checkOutside() {
        state.isOutsideCheckScheduled = false
        guard state.fence == nil, !isCaughtUp else { return }
        state.outsideChecks += 1
        if replay.hasCancellation {
            // First whatever it waits for may end; then the turn does not wait for it any longer.
            if state.isRootCancelled, let cancellation = replay.takeCancellation() {
                give(cancellation)
                scheduleRelease()
            } else {
                state.isRootCancelled = true
                state.root?.cancel()
            }
        }
        if state.outsideChecks == TurnCore.outsideChecksMax {
            Diagnostics.log(
                .warning, "the replay of a turn waits for its program, which waits for something outside the turn",
                ["channel": channelName, "turn": Offset(turn).token, "next": replay.missed?.text ?? "-"])
        }
        watchOutside()
    }

    private static let outsideCheckInterval = Duration.seconds(10)
    private static let outsideChecksMax = 6

    /// No task can use the scope any more. Any thread.
    func scopeEnded(_ scope: String, _ names: Scope.Names) {
        guard isMissing.load(ordering: .relaxed) else { return }
        lane.deliver {
            guard self.state.fence == nil, self.state.cancellation == nil, !self.state.isAbandoned,
                let missed = self.replay.missed(in: scope[...], isNamed: names.contains)
            else { return }
            self.stall(.mismatch(expected: missed.text, found: "the end of the task that would ask for it"), at: nil)
        }
    }

    private func stall(_ error: TurnError, at source: String?) {
        state.owner?.stalled(self, error, at: source)
        fence(error)
    }

    // MARK: Results

    /// Resumes the program with a result that is durable. On the lane.
    func resume(_ path: String, _ outcome: StepOutcome, at: Timestamp) {
        guard state.waits[path] != nil else { return }
        deliver(Journal.Completion(path: path, outcome: outcome, at: at))
    }

    /// What has come to be is given at its place in the log: behind what the journal has.
    private func deliver(_ completion: Journal.Completion) {
        guard state.fence == nil else { return }
        guard replay.hasResults || completion.cancellation != nil && !replay.isOver else { return give(completion) }
        replay.add(completion)
        scheduleRelease()
    }

    private func give(_ completion: Journal.Completion) {
        if let reason = completion.cancellation {
            guard state.cancellation == nil else { return }
            state.cancellation = reason
            state.now = max(state.now, completion.at)
            state.root?.cancel()
            return conclude()
        }
        guard let wait = state.waits.removeValue(forKey: completion.path) else { return }
        if wait.request.isFollow { state.followCount -= 1 }
        state.now = max(state.now, completion.at)
        state.refusals = 0
        state.emits.progressed()
        switch completion.outcome {
        case .completed(let body): wait.continuation.resume(returning: body)
        case .failed(let failure): wait.continuation.resume(throwing: failure.thrown)
        }
        resumePaused()
    }

    private func resumePaused() {
        for continuation in state.paused { continuation.resume() }
        state.paused = []
    }

    /// The step the program waits for at `path`, unless the replay is still under way.
    func waiting(at path: String) -> StepRequest? { !state.isLive || state.fence != nil ? nil : state.waits[path]?.request }

    /// What the program waits for, when everything it waits for needs no memory: then it can be passivated.
    var restingSteps: [StepRequest]? {
        guard state.isLive, replay.isOver, state.fence == nil, !state.waits.isEmpty else { return nil }
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
        resumePaused()
        state.root?.cancel()
        end = nil
        // It holds what runs the turn, and is held by it.
        state.owner = nil
        if state.hasParked { leaveProgram() }
    }

    private static let remedy =
        "turn.* was used outside the turn's own tasks. Start child tasks with a task group or turn.map, not with Task.detached or Task {}, and do outside work in a step."

    /// - Throws: ``TurnError`` `outside_turn` for a caller that does not run on the turn's lane.
    func checkLane() throws { if !lane.isCurrent { throw TurnError("outside_turn", TurnCore.remedy) } }

    private func requireLane() { precondition(lane.isCurrent, TurnCore.remedy) }
}

/// How much a program has published: in all, to tell what the journal has, and since it last waited for something, to bound it.
struct EmitCount {
    private let journal: [String: Int]
    private var counts: [String: Int] = [:]
    private var entries = 0
    private var bytes = 0

    init(journal: [String: Int]) { self.journal = journal }

    /// Counts an entry of that name. A program that publishes without waiting for anything would fill the memory: the log is slower than it.
    /// - Returns: whether it is new: entries of one name are published in one order.
    mutating func add(_ name: String, bytes count: Int) throws -> Bool {
        let number = counts[name, default: 0] + 1
        let isNew = number > journal[name, default: 0]
        if isNew, entries >= EmitCount.entriesMax || bytes >= EmitCount.bytesMax {
            throw TurnError.tooManyEmits(EmitCount.entriesMax, EmitCount.bytesMax)
        }
        counts[name] = number
        entries += 1
        bytes += count
        return isNew
    }

    mutating func progressed() { (entries, bytes) = (0, 0) }

    static let entriesMax = 10_000
    static let bytesMax = 4 << 20
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

    /// When it ends by itself, as its timer has it.
    var due: Timestamp? {
        switch work {
        case .sleep(let instant): instant.clamped
        case .wait(_, _, let instant), .approval(_, _, let instant), .follow(_, _, _, let instant): instant?.clamped
        case .body, .model: nil
        }
    }

    /// The digest of a model's request as earlier versions computed it.
    var earlierDigest: String? {
        guard case .model(let model, let request, _) = work else { return nil }
        return request.earlierDigest(model.name)
    }

    var isFollow: Bool { if case .follow = work { true } else { false } }

    /// What was asked for, as its start has it.
    var asked: JSON? { digest.map { .object((["sha256": .string($0)] as JSON).members! + details) } }

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
    /// The program has come as far as the journal takes it; called again when it comes to a step late. On the lane.
    func caughtUp(_ core: TurnCore)
    func stalled(_ core: TurnCore, _ error: TurnError, at source: String?)
    /// Called when a task of the program will never go on nor end, because it went on calling whatever it was told. Any thread.
    var whenParked: @Sendable () -> Void { get }
}
