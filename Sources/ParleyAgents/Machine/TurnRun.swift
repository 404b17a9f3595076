internal import ParleyChannels
internal import ParleySystem

/// The turn that runs: its program's side is ``TurnMachine``, this is what its agent does for it.
struct TurnRun {
    /// The offset of its input.
    let turn: UInt64
    let epoch: UInt64
    private var parts: Boxed<Parts>

    private struct Parts {
        let history: [HistoryItem]
        var machine: TurnMachine
        var requests = RequestLedger()
        var steps: [String: StepState] = [:]
        var ended: Set<String>
        var end = End.open
        var isMarkedWaiting = false
        var crash: CrashWork?
        var hasMoreToScan = false
        var hasFollowed = false
    }

    /// A write in flight that ends the turn, or cancels it.
    enum End {
        case open
        case cancelling
        case ending
    }

    /// How much the turn has done since it first crashed.
    struct CrashWork {
        var count: Int
        /// The offset of the last of that work.
        var at: UInt64 = 0
    }

    init(turn: UInt64, epoch: UInt64, _ journal: Journal, history: [HistoryItem]) {
        (self.turn, self.epoch) = (turn, epoch)
        let ended = Set(journal.completions.lazy.filter { $0.cancellation == nil }.map(\.path))
        let crash = journal.workSinceCrash > 0 ? CrashWork(count: journal.workSinceCrash) : nil
        parts = Boxed(Parts(history: history, machine: TurnMachine(journal), ended: ended, crash: crash))
    }

    // MARK: Parts

    /// The conversation that it began with.
    var history: [HistoryItem] { parts.value.history }

    var machine: TurnMachine {
        _read { yield parts.value.machine }
        _modify { yield &parts.value.machine }
    }

    /// The requests to models, so that the next one records only its additions.
    var requests: RequestLedger {
        _read { yield parts.value.requests }
        _modify { yield &parts.value.requests }
    }

    var steps: [String: StepState] {
        _read { yield parts.value.steps }
        _modify { yield &parts.value.steps }
    }

    /// Steps whose end is in the journal, or being written: a step has one.
    private var ended: Set<String> {
        _read { yield parts.value.ended }
        _modify { yield &parts.value.ended }
    }

    private(set) var end: End {
        get { parts.value.end }
        set { parts.value.end = newValue }
    }

    /// The log says, or is about to, that the turn only waits.
    var isMarkedWaiting: Bool {
        get { parts.value.isMarkedWaiting }
        set { parts.value.isMarkedWaiting = newValue }
    }

    var crash: CrashWork? {
        get { parts.value.crash }
        set { parts.value.crash = newValue }
    }

    /// There are signals that an open wait has not looked at yet.
    var hasMoreToScan: Bool {
        get { parts.value.hasMoreToScan }
        set { parts.value.hasMoreToScan = newValue }
    }

    /// It has followed a channel.
    private(set) var hasFollowed: Bool {
        get { parts.value.hasFollowed }
        set { parts.value.hasFollowed = newValue }
    }
}

/// The state of an open step, besides its request.
struct StepState {
    /// How many attempts have failed; interrupted ones do not count.
    var failures = 0
    /// How far it has looked through the signals of its name.
    var scan = SignalScan()
    /// The messages that joined its request, as its end has them.
    var steered: JSON?
    /// The text of earlier attempts, while the next one has none.
    var partial = SavedText()
    /// The incarnation of the channel that it follows.
    var followed: String?
    /// Up to here there was nothing in it, or in the one that has its name now.
    var read: (channel: String, upTo: UInt64)?
    /// It was kept from beginning, because the process drains.
    var isKept = false

    /// Its work is over.
    mutating func isOver() { (steered, partial) = (nil, SavedText()) }

    mutating func keep(_ text: SavedText) { if !text.text.isEmpty { partial = text } }
}

extension TurnRun {
    // MARK: Ends of steps

    func end(
        of request: StepRequest, _ entries: [NewEntry], outcome: StepOutcome, considered: UInt64 = 0,
        yieldsTo: EntryKinds = AgentMachine.stopping
    ) -> StepEnd {
        StepEnd(
            turn: turn, epoch: epoch, request: request, entries: entries, outcome: outcome, yieldsTo: yieldsTo, considered: considered)
    }

    /// Whether the caller is the one to write the step's end.
    mutating func claimEnd(_ path: String) -> Bool { ended.insert(path).inserted }

    func hasEnd(_ path: String) -> Bool { ended.contains(path) }

    /// The end that was claimed did not come to be: something else must be decided first.
    mutating func withdrawEnd(_ path: String) { ended.remove(path) }

    // MARK: The turn's own end

    var canCancel: Bool { if case .open = end { machine.cancellation == nil } else { false } }

    /// Whether the end can be written: being cancelled, the turn comes to it again once that is durable.
    var canEnd: Bool {
        switch end {
        case .open: true
        case .cancelling: machine.cancellation != nil
        case .ending: false
        }
    }

    mutating func cancels() { end = .cancelling }
    mutating func ends() { end = .ending }
    mutating func withdrawsEnd() { end = .open }

    // MARK: Steps

    /// Compares what the program asks for with what the journal has, see ``TurnMachine/match(_:isNamed:)``.
    mutating func match(_ request: StepRequest, isNamed: (Substring) -> Bool) -> Replay.Match {
        let recorded = machine.recorded(request.path)
        let match = machine.match(request, isNamed: isNamed)
        if match == .known, case .model(_, let asked, _) = request.work, let recorded {
            requests.note(request.path, asked, at: recorded.offset)
        }
        return match
    }

    mutating func ask(_ request: StepRequest, isKnown: Bool) -> [TurnMachine.Action] {
        if request.isFollow { hasFollowed = true }
        return machine.ask(request, isKnown: isKnown)
    }

    /// The open steps whose end has not been handed to the log, in the order of their paths; none during a replay.
    var openSteps: [StepRequest] {
        machine.inFlight.filter { !hasEnd($0.path) && steps[$0.path]?.isKept != true }.sorted { $0.path < $1.path }
    }

    /// The step does not begin in this process.
    mutating func keepsFromBeginning(_ path: String) { steps[path, default: StepState()].isKept = true }

    /// The open steps that follow another channel. Costs nothing when there are none: it is called after every event.
    var openFollows: [StepRequest] { hasFollowed ? openSteps.filter(\.isFollow) : [] }

    /// The steps that the program waits for, when none of them needs memory: then it can be passivated.
    var restingSteps: [StepRequest]? {
        guard let requests = machine.waitedFor, !machine.waitsOutside else { return nil }
        // A wait whose end is on its way to the log is over: nothing would come to wake the turn again.
        return requests.allSatisfy { [.sleep, .wait, .approval].contains($0.kind) && !hasEnd($0.path) } ? requests : nil
    }

    /// Whether tasks that are not known may wait for something outside, with those that wait for a step.
    var hasOwnTasks: Bool { machine.waitedFor?.contains(where: \.isFromOwnTask) ?? false }

    /// The steps of the journal that the program has not taken up again.
    var leftOpen: OpenSteps { machine.leftOpen(turn) }
}
