internal import ParleyChannels
internal import ParleySystem

/// One run of one turn as a value: matches what the program asks for with what the journal has, and says what is to be done about it.
///
/// Results reach the program in log order, one at a time, with everything that can run having run in between: on the first run because they are
/// given as they commit, on a replay because they are released in the same order. So the program takes the same path, and asks for the
/// same steps.
///
/// It has no clock, lock or continuation. ``AgentMachine`` has its actions carried out, in their order.
struct TurnMachine {
    /// How a program ended.
    typealias Outcome = Result<(output: JSON, state: JSON), any Error>

    enum Action {
        /// Start a step that the journal does not have.
        case begin(StepRequest)
        /// Continue a step that was begun before a crash.
        indirect case reopen(StepRequest, Journal.OpenStep)
        /// End a step because the program no longer wants it.
        case cancel(StepRequest)
        /// Resume the program where it waits for the step.
        case give(path: String, StepOutcome)
        /// Call ``TurnMachine/give(_:)`` before the next delivery, once everything that can run has run.
        case giveNext(Journal.Completion)
        /// Call ``TurnMachine/release()`` before the next delivery, once everything that can run has run.
        case release
        /// The program has come as far as the journal takes it.
        case caughtUp
        /// Call ``TurnMachine/checkOutside()`` some time later.
        case checkOutsideLater
        /// Say that the replay waits for something outside the turn; the start that it waits for.
        case warnOfOutside(String)
        /// Cancel the program's task.
        case cancelProgram
        /// Run the compensations, one after another.
        case compensate
        /// Call ``TurnMachine/report()`` as a delivery of its own.
        case report
        /// Write the end of the turn.
        case end(Outcome)
        /// The program is not the one that the journal is of.
        case stall(TurnError)
    }

    private struct Wait {
        var request: StepRequest
        /// Cancelled by the program before it was in flight.
        var isCancelled = false
    }

    /// The steps that the program waits for.
    private struct Waits {
        fileprivate private(set) var byPath: [String: Wait] = [:]
        /// How many of them wait for a signal, by the digest of its name.
        fileprivate private(set) var signals: [Bytes: Int] = [:]

        subscript(path: String) -> Wait? { byPath[path] }

        mutating func add(_ request: StepRequest) {
            byPath[request.path] = Wait(request: request)
            if let signal = request.signal { signals[signal, default: 0] += 1 }
        }

        mutating func change(_ path: String, _ change: (inout Wait) -> Void) { if byPath[path] != nil { change(&byPath[path]!) } }

        /// - Returns: whether it waited for it.
        mutating func remove(_ path: String) -> Bool {
            guard let wait = byPath.removeValue(forKey: path) else { return false }
            if let signal = wait.request.signal, let count = signals.removeValue(forKey: signal), count > 1 { signals[signal] = count - 1 }
            return true
        }
    }

    private enum Phase {
        case running
        case ended(Outcome)
        case compensating(Outcome)
        case compensated(Outcome)
    }

    private var replay: Replay
    private var waits = Waits()
    /// Steps asked for during the replay that the journal does not have, in their order.
    private var held: [String] = []
    /// The program has come as far as the journal takes it, but for what it waits for outside the turn.
    private(set) var isLive = false
    private var isReleasing = false
    private var outside = OutsideWatch()
    private var phase = Phase.running
    /// Why the turn was cancelled, once it was.
    private(set) var cancellation: JSON?
    private(set) var compensations = Compensations()
    /// The paths of child tasks that run.
    private var children: Set<String> = []
    /// When the last entry that the program has consumed was committed.
    private(set) var now: Timestamp
    private var emits: EmitCount

    /// - Parameter now: When the turn began, unless the journal says it.
    init(_ journal: Journal, at now: Timestamp? = nil) {
        replay = Replay(journal)
        self.now = now ?? journal.start.at
        emits = EmitCount(journal: journal.emits)
    }
}

/// The compensations that a turn runs should it fail or be cancelled.
struct Compensations {
    /// Registered and not run, oldest first.
    fileprivate(set) var registered: [StepRequest] = []
    /// The ones that no start of a step has named yet.
    fileprivate var unnamed: [String] = []
    /// The paths of those that failed for good.
    fileprivate(set) var failed: [String] = []
}

/// How long a replay has waited for something outside its turn.
private struct OutsideWatch {
    var checks = 0
    var isScheduled = false
    /// The program's task was cancelled, so that what it waits for ends.
    var hasCancelledProgram = false

    static let checksMax = 6
}

// MARK: - What the program asks for

extension TurnMachine {
    /// How many steps the program waits for.
    var waitCount: Int { waits.byPath.count }

    func isWaiting(for path: String) -> Bool { waits[path] != nil }

    /// Whether a step waits for signals with that digest of their name.
    func awaits(_ signal: Bytes) -> Bool { waits.signals[signal] != nil }

    /// Compares what the program asks for with what the journal has. Call it once for each step, before ``ask(_:isKnown:)``.
    mutating func match(_ request: StepRequest, isNamed: (Substring) -> Bool) -> Replay.Match {
        replay.match(request, isCancelled: isCancelled, isNamed: isNamed)
    }

    /// The program waits for a step.
    /// - Parameter isKnown: The journal has it.
    mutating func ask(_ request: StepRequest, isKnown: Bool) -> [Action] {
        waits.add(request)
        guard isKnown else {
            if isLive, isCaughtUp { return [.begin(request)] }
            held.append(request.path)
            return []
        }
        if let result = replay.takeSkipped(request.path, isGivenUp: false) { return [.giveNext(result)] }
        guard isLive else { return [] }
        // The program has come to it late, from something outside the turn.
        return (reopen(request) ?? []) + releaseSoon()
    }

    /// The program has cancelled the task that waits for the step.
    mutating func cancel(_ path: String) -> [Action] {
        guard let wait = waits[path] else { return [] }
        // A step that is not in flight yet is cancelled once it is; one that the journal gave up is given up now.
        if let result = replay.takeSkipped(path, isGivenUp: true) { return [.giveNext(result)] }
        guard isLive, !held.contains(path), !replay.isGivenUp(path) else {
            waits.change(path) { $0.isCancelled = true }
            return replay.isGivenUp(path) ? releaseSoon() : []
        }
        return [.cancel(wait.request)]
    }

    /// The program's waits have all thrown, and nothing of it runs any more. Its closures are released: they may hold the turn that holds them.
    mutating func leaveProgram() { (waits, held, compensations.registered) = (Waits(), [], []) }

    /// Whether the program may leave out what the journal has: it has been told that the turn is cancelled.
    private var isCancelled: Bool { cancellation != nil || outside.hasCancelledProgram }

    /// Whether an entry that the program publishes is new to the journal.
    mutating func emit(_ emission: Journal.Emission, bytes: Int) throws -> Bool { try emits.add(emission, bytes: bytes) }

    mutating func compensate(_ request: StepRequest) {
        compensations.registered.append(request)
        compensations.unnamed.append(request.path)
    }

    /// Returns the compensations registered since the last start of a step. The next start names them: if the program never runs again, the log alone
    /// knows of them.
    mutating func nameCompensations() -> [String] {
        defer { compensations.unnamed = [] }
        return compensations.unnamed
    }

    /// The program has ended.
    mutating func ended(_ result: Outcome) -> [Action] {
        guard case .running = phase else { return [] }
        phase = .ended(result)
        return conclude()
    }

    /// No task can use the scope any more.
    func scopeEnded(_ scope: String, isNamed: (Substring) -> Bool) -> [Action] {
        guard !isCancelled, let missed = replay.missed(in: scope[...], isNamed: isNamed) else { return [] }
        return [.stall(.mismatch(expected: missed.text, found: "the end of the task that would ask for it"))]
    }
}

// MARK: - What the journal has

extension TurnMachine {
    /// Whether the program has still to ask for something that the journal has.
    var isMissingStarts: Bool { replay.missingCount > 0 }

    /// Whether the journal has the step and the program has not asked for it.
    func expects(_ path: String) -> Bool { replay.misses(path) }

    /// Returns the journal's start of a step that the program has not asked for.
    func recorded(_ path: String) -> Journal.Start? { replay.recorded(path) }

    /// When an open step of the journal ends by itself.
    func recordedDue(_ path: String) -> Timestamp? { replay.due(of: path) }

    /// The steps of the journal that were left open, and that the program has not taken up again.
    func leftOpen(_ turn: UInt64) -> OpenSteps { OpenSteps(turn, replay.open, replay.openPaths) }

    /// Nothing that the journal has is to come any more.
    private var isCaughtUp: Bool { replay.isOver || cancellation != nil && !replay.hasResults }

    /// Schedules the release of results that the program waits for.
    mutating func releaseSoon() -> [Action] {
        guard !isReleasing else { return [] }
        isReleasing = true
        return [.release]
    }

    mutating func release() -> [Action] {
        isReleasing = false
        let wasCancelled = cancellation != nil
        if let completion = replay.next(isCancelled: wasCancelled, isReady: { [waits] in TurnMachine.isReady($0, waits) }) {
            return give(completion) + releaseSoon()
        }
        if wasCancelled, replay.skip() { return releaseSoon() }
        return settle()
    }

    /// Whether the program waits for a result; for one that says that it gave up the step, whether it has done so again.
    private static func isReady(_ completion: Journal.Completion, _ waits: Waits) -> Bool {
        guard let wait = waits[completion.path] else { return false }
        return wait.isCancelled || !completion.isGivenUp
    }

    /// Continues a step that was left open, as it began, whatever the program asks for now.
    private mutating func reopen(_ request: StepRequest) -> [Action]? {
        guard let open = replay.takeOpen(request.path) else { return nil }
        let request = request.restored(open)
        waits.change(request.path) { $0.request = request }
        return [.reopen(request, open)]
    }

    /// The program cannot get further with the journal: open steps are continued, and once every step was asked for, new ones begin.
    private mutating func settle() -> [Action] {
        var actions: [Action] = []
        if !isLive {
            isLive = true
            for path in replay.openPaths {
                guard let wait = waits[path], let reopened = reopen(wait.request) else { continue }
                actions += wait.isCancelled ? [.cancel(waits[path]!.request)] : reopened
            }
        }
        actions += isCaughtUp ? beginHeld() : watchOutside()
        return actions + [.caughtUp]
    }

    private mutating func beginHeld() -> [Action] {
        let paths = held
        held = []
        var actions: [Action] = []
        for path in paths {
            guard let wait = waits[path] else { continue }
            guard wait.isCancelled else {
                actions.append(.begin(wait.request))
                continue
            }
            // Its end is in the log, so that every replay has it there; but nothing begins any more in a cancelled turn.
            actions +=
                cancellation == nil
                ? [.begin(wait.request), .cancel(wait.request)]
                : give(Journal.Completion(path: path, outcome: .failed(.cancelled), at: now))
        }
        return actions
    }

    /// No task has asked for a step of the journal: one may wait for something outside the turn, and asks later. In a cancelled turn, such a wait
    /// must end.
    private mutating func watchOutside() -> [Action] {
        guard !outside.isScheduled, outside.checks < OutsideWatch.checksMax || replay.hasCancellation else { return [] }
        outside.isScheduled = true
        return [.checkOutsideLater]
    }

    mutating func checkOutside() -> [Action] {
        outside.isScheduled = false
        guard !isCaughtUp else { return [] }
        outside.checks += 1
        var actions: [Action] = []
        if replay.hasCancellation {
            // First any step that it waits for may end; then the turn does not wait for it any longer.
            if outside.hasCancelledProgram, let cancellation = replay.takeCancellation() {
                actions += give(cancellation) + releaseSoon()
            } else {
                outside.hasCancelledProgram = true
                actions.append(.cancelProgram)
            }
        }
        if outside.checks == OutsideWatch.checksMax { actions.append(.warnOfOutside(replay.missed?.text ?? "-")) }
        return actions + watchOutside()
    }
}

// MARK: - Results

extension TurnMachine {
    /// A step has ended, and that is durable.
    mutating func resume(_ path: String, _ outcome: StepOutcome, at: Timestamp) -> [Action] {
        guard waits[path] != nil else { return [] }
        return deliver(Journal.Completion(path: path, outcome: outcome, at: at, startsBefore: .max))
    }

    /// The turn was cancelled, and that is durable.
    mutating func cancelled(_ reason: JSON, at: Timestamp) -> [Action] {
        deliver(Journal.Completion(path: "", outcome: .failed(.cancelled), at: at, cancellation: reason, startsBefore: .max))
    }

    /// Delivers a completion at its place in the log: behind what the journal has.
    private mutating func deliver(_ completion: Journal.Completion) -> [Action] {
        guard !replay.isOver, cancellation == nil || replay.hasResults else { return give(completion) }
        replay.add(completion)
        return releaseSoon()
    }

    mutating func give(_ completion: Journal.Completion) -> [Action] {
        if let reason = completion.cancellation {
            guard cancellation == nil else { return [] }
            cancellation = reason
            now = max(now, completion.at)
            return [.cancelProgram] + conclude()
        }
        guard waits.remove(completion.path) else { return [] }
        now = max(now, completion.at)
        emits.progressed()
        return [.give(path: completion.path, completion.outcome)]
    }

    /// The step the program waits for at `path`, unless the replay is still running.
    func waiting(at path: String) -> StepRequest? { isLive ? waits[path]?.request : nil }

    /// The steps in flight, in no order; none during a replay.
    var inFlight: [StepRequest] {
        guard isLive else { return [] }
        let held = Set(held)
        return waits.byPath.values.lazy.map(\.request).filter { !held.contains($0.path) }
    }

    mutating func childBegan(_ path: String) { children.insert(path) }
    mutating func childEnded(_ path: String) { children.remove(path) }

    /// Whether a child task waits for something that is no step: it waits for none, and none of its own children does.
    var waitsOutside: Bool {
        guard !children.isEmpty else { return false }
        var inside: Set<Substring> = []
        for path in waits.byPath.keys {
            var rest = path[...]
            while let slash = rest.lastIndex(of: "/"), inside.insert(rest[..<slash]).inserted { rest = rest[..<slash] }
        }
        return children.contains { !inside.contains($0[...]) }
    }

    /// The steps that the program waits for, if the journal has nothing more to give; `nil` otherwise, and while it waits for nothing.
    var waitedFor: [StepRequest]? { isLive && replay.isOver && !waits.byPath.isEmpty ? waits.byPath.values.map(\.request) : nil }
}

// MARK: - The end

extension TurnMachine {
    /// Ends the turn, or first compensates what it did: at the same place in the log on the first run and on a replay.
    private mutating func conclude() -> [Action] {
        switch phase {
        case .ended(let result) where mustCompensate(result):
            phase = .compensating(result)
            return [.compensate]
        case .ended, .compensated: return [.report]
        case .running, .compensating: return []
        }
    }

    private func mustCompensate(_ result: Outcome) -> Bool {
        guard !compensations.registered.isEmpty else { return false }
        if case .failure(let error) = result, !(error is Interrupted) { return true }
        return cancellation != nil
    }

    /// The next step that takes something back.
    mutating func nextCompensation() -> StepRequest? { compensations.registered.popLast() }

    mutating func compensationFailed(_ path: String) { compensations.failed.append(path) }

    /// All of them have been run.
    mutating func compensated() -> [Action] {
        guard case .compensating(let result) = phase else { return [] }
        phase = .compensated(result)
        return conclude()
    }

    mutating func report() -> [Action] {
        switch phase {
        // Cancelled meanwhile, it reports again once the compensations have run.
        case .running, .compensating: return []
        case .ended(let result), .compensated(let result):
            // A program that has ended waits for nothing that could come before it.
            if let cancellation = replay.takeCancellation() { return give(cancellation) }
            if cancellation == nil, let missed = replay.missed {
                return [.stall(.mismatch(expected: missed.text, found: "the end of the turn"))]
            }
            return [.end(result)]
        }
    }
}

/// How much a program has published: in all, to tell what the journal has, and since it last waited for something, to bound it.
private struct EmitCount {
    private let journal: [Journal.Emission: Int]
    private var counts: [Journal.Emission: Int] = [:]
    private var entries = 0
    private var bytes = 0

    init(journal: [Journal.Emission: Int]) { self.journal = journal }

    /// Counts an entry. A program that publishes without waiting for anything would fill the memory: the log is slower than it.
    /// - Returns: whether it is new.
    mutating func add(_ emission: Journal.Emission, bytes count: Int) throws -> Bool {
        let number = counts[emission, default: 0] + 1
        let isNew = number > journal[emission, default: 0]
        if isNew, entries >= EmitCount.entriesMax || bytes >= EmitCount.bytesMax {
            throw TurnError.tooManyEmits(EmitCount.entriesMax, EmitCount.bytesMax)
        }
        counts[emission] = number
        entries += 1
        bytes += count
        return isNew
    }

    mutating func progressed() { (entries, bytes) = (0, 0) }

    private static let entriesMax = 10_000
    private static let bytesMax = 4 << 20
}
