internal import ParleyChannels
internal import ParleySystem
internal import Synchronization

/// The program of one turn: its tasks on the agent's lane, and where they wait. ``AgentMachine`` decides its requests.
package final class TurnTask: @unchecked Sendable {  // Guard: `state` is touched on the lane only; the rest is immutable, atomic or locked.
    let channelName: String
    let lane: Lane
    /// The offset of the turn's input.
    let turn: UInt64
    let epoch: UInt64
    /// The seed of its random numbers.
    let seed: UInt64
    private var state: State
    /// Whether the program has still to ask for something that the journal has.
    private let isMissing: Atomic<Bool>
    private let items: Mutex<[HistoryItem]>
    private let reports: TurnReports
    private let time: Mutex<Timestamp>
    /// The program's requests from another thread than the lane's, where an actor that it shares with others had left it. They are processed before
    /// its next ones.
    private let besideLane = Mutex<[@Sendable () -> Void]>([])
    /// How often the turn was used from outside its tasks.
    private let strays = Atomic<Int>(0)

    private struct State {
        var right: Right
        /// The continuations of the program's waits, by the path of the step.
        var continuations: [String: CheckedContinuation<JSON, any Error>] = [:]
        /// The code of its steps, by path.
        var code: [String: StepCode] = [:]
        var root: Task<Void, Never>?
        /// The numbers of the tasks that are known: the program's own, and those of `map` and `shielded`.
        var known: Set<String> = []
        var refusals = Refusals()
        /// The turn was passivated, and all waits for its steps have thrown.
        var isLeft = false
    }

    /// Whether the program may continue.
    private enum Right {
        case held(by: any TurnOwner)
        /// All its waits throw; its further requests are answered from what is left.
        case lost(any Error, TurnMachine)
    }

    /// The state of a program whose requests are refused, and that asks again.
    private struct Refusals {
        /// How often since it was last given something.
        var count = 0
        /// Tasks that were refused too often, paused until something happens.
        var paused: [UnsafeContinuation<Void, Never>] = []
        /// Its turn has failed for it.
        var isAbandoned = false
        /// A task of the program will never continue.
        var hasParked = false
    }

    init(
        owner: any TurnOwner, lane: Lane, channelName: String, turn: UInt64, epoch: UInt64, journal: Journal, history: [HistoryItem]
    ) {
        (self.channelName, self.lane, self.turn, self.epoch, seed) = (channelName, lane, turn, epoch, journal.start.seed)
        items = Mutex(history)
        reports = owner.reports(turn)
        isMissing = Atomic(!journal.starts.isEmpty)
        time = Mutex(journal.start.at)
        state = State(right: .held(by: owner))
    }

    /// Runs the turn from its top; call it in a delivery of the lane.
    func start(_ program: @escaping @Sendable (Turn) async throws -> (output: JSON, state: JSON)) {
        let turn = Turn(task: self, scope: Scope(self, prefix: ""))
        state.root = Task(executorPreference: lane) {
            self.state.known.insert(Scope.currentTask)
            do { self.ended(.success(try await program(turn))) } catch { self.ended(.failure(error)) }
        }
    }

    /// False for a task that the program has made itself. On the lane.
    var knowsCaller: Bool { !lane.isCurrent || state.known.contains(Scope.currentTask) }

    private func ended(_ result: TurnMachine.Outcome) {
        catchUp()
        tell(.ended(result))
    }

    /// Passes the event to the agent to decide, unless the turn has lost its right to run. On the lane.
    private func tell(_ event: TurnEvent) { if case .held(let owner) = state.right { owner.handle(epoch, event) } }

    private var fence: (any Error)? { if case .lost(let error, _) = state.right { error } else { nil } }

    /// Looks at the turn's machine, or changes what only the program sees of it.
    private func machine<Value>(_ body: (inout TurnMachine) throws -> Value) rethrows -> Value {
        switch state.right {
        case .held(let owner):
            if let value = try owner.run(epoch, { try body(&$0.machine) }) { return value }
            preconditionFailure("a turn that was not thrown out is not the one that runs")
        case .lost(let error, var machine):
            defer { state.right = .lost(error, machine) }
            return try body(&machine)
        }
    }

    // MARK: Deliveries

    func give(_ path: String, _ outcome: StepOutcome, now: Timestamp) {
        state.code[path] = nil
        time.withLock { $0 = now }
        guard let continuation = state.continuations.removeValue(forKey: path) else { return }
        state.refusals.count = 0
        switch outcome {
        case .completed(let body): continuation.resume(returning: body)
        case .failed(let failure): continuation.resume(throwing: failure.thrown)
        }
        resumePaused()
    }

    func cancel(now: Timestamp) {
        time.withLock { $0 = now }
        state.root?.cancel()
    }

    /// The code of the step; `nil` once the program was given its end.
    func code(_ path: String) -> StepCode? { state.code[path] }

    /// Runs the compensations, one after another, in a task of its own: the program's may be cancelled.
    func compensate() {
        Task(executorPreference: lane) { [self] in
            while fence == nil, let request = machine({ $0.nextCompensation() }) {
                do { _ = try await perform(request, state.code[request.path], in: nil) } catch {
                    guard fence == nil else { return }
                    machine { $0.compensationFailed(request.path) }
                }
            }
            tell(.compensated)
        }
    }

    func compensate(_ request: StepRequest, _ code: StepCode) throws {
        try checkTask()
        onLane { [self] in
            guard fence == nil else { return }
            state.code[request.path] = code
            machine { $0.compensate(request) }
        }
    }

    // MARK: Off the lane

    private func onLane(_ work: @escaping @Sendable () -> Void) {
        if lane.isCurrent {
            catchUp()
            work()
        } else {
            besideLane.withLock { $0.append(work) }
            lane.deliver { self.catchUp() }
        }
    }

    private func catchUp() {
        let works = besideLane.withLock { works in
            defer { works = [] }
            return works
        }
        for work in works { work() }
    }

    // MARK: Requests of the program

    /// The turns before this one. Any thread.
    var history: [HistoryItem] { items.withLock { $0 } }

    /// When the last entry that the program has consumed was committed. Any thread.
    var now: Timestamp { time.withLock { $0 } }

    func idempotencyKey(_ path: String) -> String { StepRequest.idempotencyKey(channelName, turn, path) }

    /// The owner, for what the program's bodies ask of the agent outside the turn.
    func owner() throws -> any TurnOwner {
        try checkLane()
        switch state.right {
        case .held(let owner): return owner
        case .lost(let error, _): throw error
        }
    }

    /// Performs the step, or finds its recorded result; returns once that is in the log and its turn has come.
    @concurrent func perform(_ request: StepRequest, _ code: StepCode?, in scope: Scope?) async throws -> JSON {
        do { try check(request) } catch { try await refuse(error) }
        let isKnown = try match(request, scope)
        if !isKnown, machine({ $0.waitCount }) >= TurnTask.stepsMax {
            try await refuse(TurnError.tooManySteps(request.path, TurnTask.stepsMax))
        }
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                state.continuations[request.path] = continuation
                state.code[request.path] = code
                tell(.asked(request, isKnown: isKnown))
            }
        } onCancel: {
            // Delivered, not done here: the step's end takes its place in the log, and so in every replay.
            lane.deliver { self.tell(.gaveUp(path: request.path)) }
        }
    }

    /// How many steps of a turn may be open at once.
    static let stepsMax = 4_096

    /// Publishes an entry that needs no result.
    func emit(_ emission: Journal.Emission, _ entry: NewEntry, isShielded: Bool) throws {
        try checkTask()
        guard lane.isCurrent else { return onLane { [self] in try? emitNow(emission, entry, isShielded) } }
        catchUp()
        try emitNow(emission, entry, isShielded)
    }

    private func emitNow(_ emission: Journal.Emission, _ entry: NewEntry, _ isShielded: Bool) throws {
        try checkRunning(isShielded: isShielded)
        if try machine({ try $0.emit(emission, bytes: entry.byteCount) }) { tell(.emitted(entry)) }
    }

    private func check(_ request: StepRequest) throws {
        try checkLane()
        catchUp()
        if state.isLeft {
            state.isLeft = false
            reports.strayed()
        }
        if state.refusals.isAbandoned, !request.isCompensation { throw fence ?? StepFailure.cancelled }
        try checkRunning(isShielded: request.isShielded)
    }

    private func checkRunning(isShielded: Bool) throws {
        if let fence { throw fence }
        if !isShielded, machine({ $0.cancellation }) != nil { throw StepFailure.cancelled }
    }

    /// Whether the journal has the step.
    private func match(_ request: StepRequest, _ scope: Scope?) throws -> Bool {
        let names = scope?.names
        let match = try owner().run(epoch) { run in
            if run.machine.isWaiting(for: request.path) { preconditionFailure("step '\(request.path)' is under way twice") }
            let match = run.match(request, isNamed: { names?.contains($0) ?? true })
            if match == .known, !run.machine.isMissingStarts { isMissing.store(false, ordering: .relaxed) }
            return match
        }
        switch match {
        case .known: return true
        case .new, nil: return false
        case .differs(let expected):
            let error = TurnError.mismatch(expected: expected, found: request.text)
            tell(.differs(error, source: request.source, request: request))
            throw error
        }
    }

    /// Runs a child task's body. While it waits for something outside the turn, the turn stays in memory.
    @concurrent func child<Result: Sendable>(_ path: String, _ body: () async throws -> Result) async throws -> Result {
        let number = Scope.currentTask
        if lane.isCurrent {
            state.known.insert(number)
            machine { $0.childBegan(path) }
        }
        defer {
            if lane.isCurrent {
                state.known.remove(number)
                machine { $0.childEnded(path) }
            }
        }
        return try await body()
    }

    /// No task can use the scope any more. Any thread.
    func scopeEnded(_ scope: String, _ names: Scope.Names) {
        guard isMissing.load(ordering: .relaxed) else { return }
        lane.deliver { if !self.state.refusals.isAbandoned { self.tell(.scopeEnded(scope, names)) } }
    }

    // MARK: The journal

    /// The kind of the journal's step at `path` that the program has not asked for yet: a step that was done already stays as it was done, whatever
    /// the rules are now.
    func recordedKind(_ path: String) -> StepKind? { machine { $0.recorded(path)?.kind } }

    /// When an open step of the journal ends by itself.
    func recordedDue(_ path: String) -> Timestamp? { machine { $0.recordedDue(path) } }

    // MARK: The right to run

    /// Ends the turn's right to run: every wait and every later use throws `error`.
    func fence(_ error: any Error, left: TurnMachine) {
        guard fence == nil else { return }
        var left = left
        left.leaveProgram()
        // It holds what runs the turn, and is held by it.
        state.right = .lost(error, left)
        state.code = [:]
        // Sorted, so that a simulated run follows from its seed.
        for (_, continuation) in state.continuations.sorted(by: { $0.key < $1.key }) { continuation.resume(throwing: error) }
        state.continuations = [:]
        resumePaused()
        state.root?.cancel()
        if state.refusals.hasParked { leaveProgram() }
        // Waits of tasks that run before this delivery have thrown. A task that runs after it waited for something outside the turn.
        if error is Passivated { lane.deliver { self.state.isLeft = true } }
    }

    private static let remedy =
        "turn.* was used outside the turn's own tasks. Start child tasks with a task group or turn.map, not with Task.detached or Task {}, and do outside work in a step."

    /// - Throws: ``TurnError`` `outside_turn` for a caller that does not run on the turn's lane.
    func checkLane() throws { if !lane.isCurrent { throw TurnError("outside_turn", TurnTask.remedy) } }

    /// - Throws: The same for a caller that is none of the turn's tasks. A task of the turn may run on another lane's thread, where an actor that
    ///   both wait for has left it.
    func checkTask() throws {
        guard !lane.isCurrent else { return }
        let isOwn = withUnsafeCurrentTask { $0?.unownedTaskExecutor == lane.asUnownedTaskExecutor() }
        if !isOwn { throw TurnError("outside_turn", TurnTask.remedy) }
    }
}

// MARK: - Refusals

extension TurnTask {
    /// Throws `error`; a program that keeps asking, whatever the answer, does not get the thread back for it.
    ///
    /// After a thousand refusals in a row it waits until something else of the turn ends, and when there is nothing else, the turn has failed. In a
    /// turn that has no right to run any more it is left where it is. Swift has no way to end a task that does not end itself: its memory is freed
    /// with the process.
    func refuse(_ error: any Error) async throws {
        guard lane.isCurrent else {
            if strays.add(1, ordering: .relaxed).newValue >= TurnTask.refusalsMax { await TurnTask.suspendForEver() }
            throw error
        }
        state.refusals.count += 1
        if fence != nil || state.refusals.isAbandoned {
            if state.refusals.isAbandoned || state.refusals.count >= TurnTask.fencedRefusalsMax { await park() }
        } else if state.refusals.count >= TurnTask.refusalsMax {
            if machine({ $0.waitCount }) == 0 {
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
        ended(.failure(error))
        state.refusals.isAbandoned = true
    }

    private func park() async {
        reports.parked()
        state.refusals.hasParked = true
        if fence != nil { leaveProgram() }
        await TurnTask.suspendForEver()
    }

    private static func suspendForEver() async { await withUnsafeContinuation { (_: UnsafeContinuation<Void, Never>) in } }

    /// Frees as much as possible of what a program holds that does not end.
    private func leaveProgram() {
        state.root = nil
        if case .lost(let error, let left) = state.right { state.right = .lost(error, TurnMachine(Journal(), at: left.now)) }
        items.withLock { $0 = [] }
    }

    private func resumePaused() {
        for continuation in state.refusals.paused { continuation.resume() }
        state.refusals.paused = []
    }
}

/// Decides what the program asks for, on the lane.
protocol TurnOwner: AnyObject, Sendable {
    func handle(_ epoch: UInt64, _ event: TurnEvent)
    /// The turn of that epoch; `nil` if it is not the one that runs.
    func run<Value>(_ epoch: UInt64, _ body: (inout TurnRun) throws -> Value) rethrows -> Value?
    /// The offset at which another channel ends now, and which channel that is.
    func tail(of channel: String) throws -> JSON
    func reports(_ turn: UInt64) -> TurnReports
}

/// The reports on a program that is not where its turn believes it. Any thread.
struct TurnReports: Sendable {
    /// It continues although the turn was passivated.
    let strayed: @Sendable () -> Void
    /// A task of it will never continue nor end, because it kept calling whatever the answer was.
    let parked: @Sendable () -> Void
}
