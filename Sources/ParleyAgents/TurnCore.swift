internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// Runs one turn: the program's tasks on the agent's lane, where they wait, and what ``TurnMachine`` says is to be done.
package final class TurnCore: @unchecked Sendable {  // Guard: `state` and `end` are touched on the lane only; the rest is immutable.
    let channelName: String
    let lane: Lane
    /// The offset of the turn's input.
    let turn: UInt64
    let epoch: UInt64
    /// What models were asked, so that the next request says only what it adds.
    let requests = RequestLedger()
    private var state: State
    private var end: (@Sendable (TurnMachine.Outcome) -> Void)?
    /// Steps whose end stands in the journal, or has been handed to the log: a step has one, whoever comes first.
    private let ended: Mutex<Set<String>>
    /// Whether the program has still to ask for something that the journal has.
    private let isMissing: Atomic<Bool>
    private let items: Mutex<[HistoryItem]>
    private let whenParked: @Sendable () -> Void
    private let whenStrayed: @Sendable () -> Void
    /// How often the turn was used from outside its tasks.
    private let strays = Atomic<Int>(0)
    private let hasRight = Atomic<Bool>(true)

    private struct State {
        /// `nil` once the program is left to itself, see ``TurnCore/leaveProgram()``.
        var owner: (any TurnOwner)?
        var machine: TurnMachine
        /// Where the program waits, by the path of the step.
        var continuations: [String: CheckedContinuation<JSON, any Error>] = [:]
        /// How many of them follow another channel.
        var followCount = 0
        var fence: (any Error)?
        /// The turn has left memory, and everything that waited for one of its steps has been thrown out.
        var isLeft = false
        var root: Task<Void, Never>?
        var refusals = Refusals()
    }

    /// What became of a program that is refused what it asks for, and asks again.
    private struct Refusals {
        /// How often since it was last given something.
        var count = 0
        /// Those who were refused too often, until something happens.
        var paused: [UnsafeContinuation<Void, Never>] = []
        /// Its turn has failed for it.
        var isAbandoned = false
        /// A task of the program will never continue.
        var hasParked = false
    }

    init(owner: any TurnOwner, lane: Lane, turn: UInt64, epoch: UInt64, journal: Journal, history: [HistoryItem]) {
        channelName = owner.channelName
        self.lane = lane
        self.turn = turn
        self.epoch = epoch
        ended = Mutex(Set(journal.completions.lazy.filter { $0.cancellation == nil }.map(\.path)))
        items = Mutex(history)
        (whenParked, whenStrayed) = (owner.whenParked, owner.whenStrayed(turn))
        isMissing = Atomic(!journal.starts.isEmpty)
        state = State(owner: owner, machine: TurnMachine(journal))
    }

    /// Runs the turn from its top; call it in a delivery of the lane. `end` is called on the lane when the program has returned or thrown, unless
    /// the turn was fenced.
    func start(
        _ program: @escaping @Sendable (Turn) async throws -> (output: JSON, state: JSON),
        end: @escaping @Sendable (TurnMachine.Outcome) -> Void
    ) {
        let turn = Turn(core: self, scope: Scope(self, prefix: ""))
        self.end = end
        state.root = Task(executorPreference: lane) {
            do { self.programEnded(.success(try await program(turn))) } catch { self.programEnded(.failure(error)) }
        }
        carryOut { $0.releaseSoon() }
    }

    private func programEnded(_ result: TurnMachine.Outcome) { carryOut { $0.ended(result) } }

    // MARK: Carrying out

    /// Has the machine decide, and does what it says, unless the turn has lost its right to run. On the lane.
    private func carryOut(_ decide: (inout TurnMachine) -> [TurnMachine.Action]) {
        guard state.fence == nil else { return }
        for action in decide(&state.machine) {
            guard state.fence == nil else { return }
            carryOut(action)
        }
    }

    private func carryOut(_ action: TurnMachine.Action) {
        switch action {
        case .begin(let request): state.owner?.begin(self, request, attempt: 1)
        case .reopen(let request, let open): state.owner?.reopen(self, request, open)
        case .cancel(let request): if !hasEnd(request.path) { state.owner?.cancel(self, request) }
        case .give(let path, let outcome): give(path, outcome)
        case .giveNext(let completion): lane.deliver(parts: [{ self.carryOut { $0.give(completion) } }])
        case .release: lane.deliver(parts: [{ self.carryOut { $0.release() } }])
        case .caughtUp: state.owner?.caughtUp(self)
        case .checkOutsideLater:
            lane.deliver(after: TurnCore.outsideCheckInterval) { [weak self] in self?.carryOut { $0.checkOutside() } }
        case .warnOfOutside(let next):
            Diagnostics.log(
                .warning, "the replay of a turn waits for its program, which waits for something outside the turn",
                ["channel": channelName, "turn": Offset(turn).token, "next": next])
        case .cancelProgram: state.root?.cancel()
        // In a task of its own: the program's may be cancelled.
        case .compensate: Task(executorPreference: lane) { await self.compensate() }
        case .report: lane.deliver { self.carryOut { $0.report() } }
        case .end(let result): end?(result)
        case .stall(let error): stall(error, at: nil)
        }
    }

    private static let outsideCheckInterval = Duration.seconds(10)

    private func give(_ path: String, _ outcome: StepOutcome) {
        guard let continuation = state.continuations.removeValue(forKey: path) else { return }
        state.refusals.count = 0
        switch outcome {
        case .completed(let body): continuation.resume(returning: body)
        case .failed(let failure): continuation.resume(throwing: failure.thrown)
        }
        resumePaused()
    }

    private func stall(_ error: TurnError, at source: String?) {
        state.owner?.stalled(self, error, at: source)
        fence(error)
    }

    private func compensate() async {
        while state.fence == nil, let request = state.machine.nextCompensation() {
            do { _ = try await perform(request, in: nil) } catch {
                guard state.fence == nil else { return }
                state.machine.compensationFailed(request.path)
            }
        }
        carryOut { $0.compensated() }
    }

    // MARK: Being cancelled

    /// The turn was cancelled, and that is durable: what is not shielded ends. On the lane.
    func cancelled(_ reason: JSON, at: Timestamp) { carryOut { $0.cancelled(reason, at: at) } }

    /// Why it was cancelled; `nil` unless it was.
    var cancellation: JSON? { state.machine.cancellation }

    /// The steps that were to take something back, and failed.
    var failedCompensations: [String] { state.machine.compensations.failed }

    /// The compensations that have been registered and have not run.
    var registeredCompensations: [String] { state.machine.compensations.registered.map(\.path) }

    func compensate(_ request: StepRequest) throws {
        try checkLane()
        state.machine.compensate(request)
    }

    // MARK: What the program asks for

    /// The turns before this one. Any thread.
    var history: [HistoryItem] { items.withLock { $0 } }

    /// When the last entry that the program has consumed was committed.
    var now: Timestamp {
        requireLane()
        return state.machine.now
    }

    func random() -> UInt64 {
        requireLane()
        return state.machine.nextRandom()
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
        if !isKnown, state.machine.waitCount >= TurnCore.stepsMax {
            try await refuse(TurnError.tooManySteps(request.path, TurnCore.stepsMax))
        }
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                state.continuations[request.path] = continuation
                if request.isFollow { state.followCount += 1 }
                carryOut { $0.ask(request, isKnown: isKnown) }
            }
        } onCancel: {
            // Delivered, not done here: the step's end takes its place in the log, and so in every replay.
            lane.deliver { self.cancelled(request.path) }
        }
    }

    /// How many steps of a turn may be under way at once.
    static let stepsMax = 4_096

    /// The program has cancelled the task that waits for the step.
    private func cancelled(_ path: String) { carryOut { $0.cancel(path) } }

    /// Publishes an entry that needs no result.
    func emit(_ name: String, _ entry: NewEntry, isShielded: Bool) throws {
        try checkLane()
        try checkRunning(isShielded: isShielded)
        if try state.machine.emit(name, bytes: entry.byteCount) { state.owner?.append(self, [entry]) }
    }

    private func check(_ request: StepRequest) throws {
        try checkLane()
        if state.isLeft {
            state.isLeft = false
            whenStrayed()
        }
        if state.refusals.isAbandoned, !request.isCompensation { throw state.fence ?? StepFailure.cancelled }
        try checkRunning(isShielded: request.isShielded)
    }

    private func checkRunning(isShielded: Bool) throws {
        if let fence = state.fence { throw fence }
        if cancellation != nil, !isShielded { throw StepFailure.cancelled }
    }

    private func match(_ request: StepRequest, _ scope: Scope?) throws -> Bool {
        if state.machine.isWaiting(for: request.path) { preconditionFailure("step '\(request.path)' is under way twice") }
        let names = scope?.names
        let recorded = state.machine.recorded(request.path)
        switch state.machine.match(request, isNamed: { names?.contains($0) ?? true }) {
        case .new: return false
        case .known:
            if !state.machine.isMissingStarts { isMissing.store(false, ordering: .relaxed) }
            if case .model(_, let asked, _) = request.work, let recorded { requests.note(request.path, asked, at: recorded.offset) }
            return true
        case .differs(let expected):
            let error = TurnError.mismatch(expected: expected, found: request.text)
            stall(error, at: request.source)
            throw error
        }
    }

    /// Runs a child task's body. While it waits for something outside the turn, the turn stays in memory.
    func child<Result: Sendable>(_ path: String, _ body: () async throws -> Result) async throws -> Result {
        if lane.isCurrent { state.machine.childBegan(path) }
        defer { if lane.isCurrent { state.machine.childEnded(path) } }
        return try await body()
    }

    /// No task can use the scope any more. Any thread.
    func scopeEnded(_ scope: String, _ names: Scope.Names) {
        guard isMissing.load(ordering: .relaxed) else { return }
        lane.deliver {
            guard !self.state.refusals.isAbandoned else { return }
            self.carryOut { $0.scopeEnded(scope, isNamed: names.contains) }
        }
    }

    // MARK: What the journal has

    /// What kind of step the journal has at `path` that the program has not asked for yet: what was done already stays as it was done, whatever the
    /// rules are now.
    func recordedKind(_ path: String) -> StepKind? { state.machine.recorded(path)?.kind }

    /// When an open step of the journal ends by itself.
    func recordedDue(_ path: String) -> Timestamp? { state.machine.recordedDue(path) }

    /// Whether the journal has the step and the program has not come to it again: what is meant for it has to wait.
    func expects(_ path: String) -> Bool { state.fence == nil && state.machine.expects(path) }

    var isReplaying: Bool { !state.machine.isLive }

    // MARK: Ends of steps

    /// Where the turn's own end is claimed: no step has an empty path.
    static let turnEnd = ""

    /// Whether the caller is the one to write the step's end. Any thread.
    func claimEnd(_ path: String) -> Bool { ended.withLock { $0.insert(path).inserted } }

    /// Whether the step's end stands in the journal, or has been handed to the log. Any thread.
    func hasEnd(_ path: String) -> Bool { ended.withLock { $0.contains(path) } }

    /// The end that was claimed did not come to be: something else must be decided first.
    func withdrawEnd(_ path: String) { ended.withLock { _ = $0.remove(path) } }

    /// Whether a step waits for signals with that digest of their name.
    func awaits(_ signal: Bytes) -> Bool { state.machine.awaits(signal) }

    /// The steps of the journal that the program has not taken up again.
    var leftOpen: OpenSteps { state.machine.leftOpen(turn) }

    /// The steps under way whose end has not been handed to the log, in the order of their paths; none during a replay.
    var openSteps: [StepRequest] {
        guard state.fence == nil else { return [] }
        return state.machine.underWay.filter { !hasEnd($0.path) }.sorted { $0.path < $1.path }
    }

    /// Those of them that follow another channel. Costs nothing when there are none: it is asked after everything that happens.
    var openFollows: [StepRequest] { state.followCount == 0 ? [] : openSteps.filter(\.isFollow) }

    /// Resumes the program with a result that is durable. On the lane.
    func resume(_ path: String, _ outcome: StepOutcome, at: Timestamp) { carryOut { $0.resume(path, outcome, at: at) } }

    /// The step the program waits for at `path`, unless the replay is still under way.
    func waiting(at path: String) -> StepRequest? { state.fence == nil ? state.machine.waiting(at: path) : nil }

    /// What the program waits for, when everything it waits for needs no memory: then it can be passivated.
    var restingSteps: [StepRequest]? {
        guard state.fence == nil, let requests = state.machine.waitedFor, !state.machine.waitsOutside else { return nil }
        // A wait whose end is on its way to the log is over: nobody would come to wake the turn again.
        return requests.allSatisfy { [.sleep, .wait, .approval].contains($0.kind) && !hasEnd($0.path) } ? requests : nil
    }

    // MARK: The right to run

    var isFenced: Bool { state.fence != nil }

    /// The same from any thread: whether what its steps give may still be written.
    var mayWrite: Bool { hasRight.load(ordering: .relaxed) }

    /// Ends the turn's right to run: every wait and every later use throws `error`, and nothing more is appended.
    func fence(_ error: any Error) {
        guard state.fence == nil else { return }
        state.fence = error
        hasRight.store(false, ordering: .relaxed)
        // Sorted, so that a simulated run follows from its seed.
        for (_, continuation) in state.continuations.sorted(by: { $0.key < $1.key }) { continuation.resume(throwing: error) }
        state.continuations = [:]
        state.machine.leaveProgram()
        resumePaused()
        state.root?.cancel()
        end = nil
        // It holds what runs the turn, and is held by it.
        state.owner = nil
        if state.refusals.hasParked { leaveProgram() }
        // What runs now was thrown out of its waits. What comes behind that waited for something outside the turn, and goes on.
        if error is Passivated { lane.deliver { self.state.isLeft = true } }
    }

    private static let remedy =
        "turn.* was used outside the turn's own tasks. Start child tasks with a task group or turn.map, not with Task.detached or Task {}, and do outside work in a step."

    /// - Throws: ``TurnError`` `outside_turn` for a caller that does not run on the turn's lane.
    func checkLane() throws { if !lane.isCurrent { throw TurnError("outside_turn", TurnCore.remedy) } }

    private func requireLane() { precondition(lane.isCurrent, TurnCore.remedy) }
}

// MARK: - Refusals

extension TurnCore {
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
        state.refusals.count += 1
        if state.fence != nil || state.refusals.isAbandoned {
            if state.refusals.isAbandoned || state.refusals.count >= TurnCore.fencedRefusalsMax { await park() }
        } else if state.refusals.count >= TurnCore.refusalsMax {
            if state.machine.waitCount == 0 {
                abandon(error)
                await park()
            } else {
                await withUnsafeContinuation { state.refusals.paused.append($0) }
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
        programEnded(.failure(error))
        state.refusals.isAbandoned = true
    }

    private func park() async {
        whenParked()
        state.refusals.hasParked = true
        if state.fence != nil { leaveProgram() }
        await TurnCore.suspendForEver()
    }

    private static func suspendForEver() async { await withUnsafeContinuation { (_: UnsafeContinuation<Void, Never>) in } }

    /// What a program that does not end holds is as little as possible.
    private func leaveProgram() {
        (state.owner, state.root) = (nil, nil)
        state.machine = TurnMachine(Journal(), at: state.machine.now)
        items.withLock { $0 = [] }
    }

    private func resumePaused() {
        for continuation in state.refusals.paused { continuation.resume() }
        state.refusals.paused = []
    }
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
    /// Called when the program goes on although the turn has left memory. Any thread.
    func whenStrayed(_ turn: UInt64) -> @Sendable () -> Void
    /// Called when a task of the program will never go on nor end, because it went on calling whatever it was told. Any thread.
    var whenParked: @Sendable () -> Void { get }
}
