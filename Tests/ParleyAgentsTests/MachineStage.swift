import ParleyChannels
import ParleyLog
import ParleySystem

@testable import ParleyAgents

/// An agent's machine with its log as a table, and what it says to do, as words.
struct MachineStage {
    var machine: AgentMachine
    let view = TableView()
    /// The writes that have not been answered.
    private var written: [(batch: AgentBatch, purpose: WritePurpose)] = []

    static let model: ModelTraits = {
        var traits = ModelTraits(SilentModel())
        traits.name = "table:model"
        return traits
    }()

    init() {
        let identity = AgentIdentity(name: "agents/probe/a", id: ChannelID(partition: 0, number: 1), node: "table", build: "")
        machine = AgentMachine(identity, AgentTraits(policy: .queue, definition: nil))
    }

    // MARK: Starts of rows

    /// In memory, with nothing to do.
    static func idle() -> MachineStage {
        var stage = MachineStage()
        _ = stage.handle(.look)
        return stage
    }

    /// The turn of a message runs, whose program has asked for nothing.
    static func running() -> MachineStage {
        var stage = MachineStage()
        _ = (stage.send(.message, ["text": "x"]), stage.commit())
        return stage
    }

    /// The same, waiting for a signal.
    static func waiting() -> MachineStage {
        var stage = running()
        _ = (stage.ask("w", .wait(signal: "go", match: [], until: nil)), stage.commit())
        return stage
    }

    /// A turn runs again, whose step was left open; it is about to be continued.
    static func reopening(_ path: String, _ work: StepRequest.Work, _ open: Journal.OpenStep = Journal.OpenStep()) -> MachineStage {
        var stage = MachineStage()
        stage.leave(.waiting) { journal in
            journal.starts = [Journal.Start(path: path, kind: work.kind, at: stage.view.now, offset: 4)]
            journal.open[path] = open
        }
        stage.isReleasing = true
        _ = (stage.handle(.look), stage.commit())
        stage.isReleasing = false
        _ = stage.ask(path, work, isKnown: true)
        return stage
    }

    /// A turn sleeps that is not in memory.
    static func sleeping() -> MachineStage {
        let stage = MachineStage()
        let now = stage.view.now
        stage.leave(.waiting) { journal in
            journal.starts = [Journal.Start(path: "s", kind: .sleep, at: now, offset: 4)]
            journal.open["s"] = Journal.OpenStep(due: now)
        }
        return stage
    }

    /// A turn is open that no program runs.
    static func halted(_ status: AgentStatus) -> MachineStage {
        var stage = MachineStage()
        stage.leave(status) { $0.crashesInVain = status == .running ? 1 : 0 }
        _ = stage.handle(.look)
        return stage
    }

    /// The first actions of a process that finds a turn which has ended so many processes in vain, the last one included.
    static func crashed(inVain count: Int) -> [String] {
        var stage = MachineStage()
        stage.leave(.running) { ($0.crashesInVain, $0.hasProgress) = (count - 1, count == 0) }
        return stage.handle(.look)
    }

    private func leave(_ status: AgentStatus, _ change: (inout Journal) -> Void) {
        view.append(.message, ["text": "x"])
        view.inboxed = []
        var journal = Journal()
        change(&journal)
        view.journals[1] = journal
        (view.turn, view.status) = (1, status)
    }

    // MARK: Events

    /// Whether what is to come next is left to the row.
    private var isReleasing = false

    /// Returns the machine's actions, with the events it asked for delivered next.
    mutating func handle(_ event: AgentEvent) -> [String] {
        var words: [String] = []
        for action in machine.handle(event, view) {
            if case .write(let batch, let purpose) = action { written.append((batch, purpose)) }
            if case .next(let events) = action {
                if !isReleasing { for event in events { words += handle(event) } }
            } else if case .later(.turn(let epoch, .report)) = action {
                words += handle(.turn(epoch: epoch, .report))
            } else if case .takeRoom = action {
                if view.hasRoom { words += handle(.hasRoom) } else { words.append("ask for room") }
            } else if let word = action.word {
                words.append(word)
            }
        }
        return words
    }

    mutating func turn(_ event: TurnEvent) -> [String] { handle(.turn(epoch: machine.epoch, event)) }

    /// Puts an entry in the log without telling the agent.
    func put(_ kind: EntryKind, _ members: [String: JSON] = [:]) { view.append(kind, members) }

    mutating func send(_ kind: EntryKind, _ members: [String: JSON] = [:]) -> [String] {
        put(kind, members)
        return handle(.input(upTo: view.head))
    }

    mutating func ask(
        _ path: String, _ work: StepRequest.Work, isKnown: Bool = false, isShielded: Bool = false, isFromOwnTask: Bool = false
    ) -> [String] {
        let request = StepRequest(
            path: path, kind: work.kind, source: "Test.swift:1", work: work,
            origin: StepRequest.Origin(isShielded: isShielded, isFromOwnTask: isFromOwnTask))
        if isKnown { _ = machine.run!.match(request) { _ in true } }
        return turn(.asked(request, isKnown: isKnown))
    }

    mutating func end(_ output: JSON) -> [String] { turn(.ended(.success((output, .object([]))))) }

    /// Enough time has passed for an idle agent to leave.
    mutating func idle() -> [String] {
        view.now = view.now.advanced(by: .seconds(60))
        return handle(.alarm(.idle))
    }

    /// The follows that end with what was written last.
    var endedFollows: [String] {
        (written.last?.batch.rows ?? []).compactMap { if case .follow(.ends(let follow)) = $0 { follow.step } else { nil } }
    }

    // MARK: Answers to writes, oldest first

    mutating func commit() -> [String] {
        let (batch, purpose) = written.removeFirst()
        let offsets = batch.entries.map { _ in view.count() }
        view.inboxed.removeAll { batch.decides.contains($0) }
        return handle(.committed(batch, purpose, Appended(offsets: offsets, tail: view.head, at: view.now)))
    }

    mutating func yield() -> [String] { handle(.yielded(written.removeFirst().purpose)) }

    mutating func refuse(_ code: String) -> [String] { handle(.refused(written.removeFirst().batch.epoch, ChannelError(code, "refused"))) }
}

/// A machine's view, set by hand.
final class TableView: AgentView {
    var now = Timestamp(milliseconds: 1_000_000)
    var (isDraining, isCrowded, isWritingText, keepsWaiting, isDeleted) = (false, false, false, false, false)
    var idleAfter = Duration.seconds(30)
    /// There is memory for turns.
    var hasRoom = true
    private(set) var head: UInt64 = 0
    private var items: [UInt64: InboxItem] = [:]
    /// The undecided entries.
    var inboxed: [UInt64] = []
    var unreadable: Set<UInt64> = []
    var isHistoryUnreadable = false
    /// The content of the channel that a step follows.
    var followed: StepOutcome?
    var isFollowedUnreadable = false
    /// Up to here it has nothing that a step could be given.
    var followedUpTo: UInt64 = 0
    var journals: [UInt64: Journal] = [:]
    var turn: UInt64?
    var status = AgentStatus.idle

    /// The offset of one more entry.
    func count() -> UInt64 {
        head += 1
        return head
    }

    func append(_ kind: EntryKind, _ members: [String: JSON]) {
        let offset = count()
        let body = JSON.object(members.sorted { $0.key < $1.key }.map { JSON.Member($0.key, $0.value) })
        items[offset] = InboxItem(offset: offset, kind: kind, at: now, body: EntryMembers(body))
        inboxed.append(offset)
    }

    func random() -> UInt64 { 4 }
    func hasStrayed(turn: UInt64) -> Bool { false }
    private let program = Program { _, _, _ in (.null, .null) }
    func declared() -> (traits: AgentTraits, program: Program) { (AgentTraits(policy: .queue, definition: nil), program) }
    func interrupt(path: String) -> (members: [(String, JSON?)], last: NewEntry?)? { nil }

    func load() throws -> LoadedAgent {
        LoadedAgent(
            record: AgentRecord(), head: head, inbox: try inbox(after: 0, upTo: head), turn: turn, status: status, wasStopped: false,
            triesStalledAgain: false, hasDrained: false)
    }

    func inbox(after: UInt64, upTo: UInt64) throws -> [Inbox.Entry] {
        inboxed.filter { $0 > after && $0 <= upTo }.map { offset in
            Inbox.Entry(offset: offset, row: InboxRow(items[offset]!.kind, body: items[offset]!.body, byteCount: 10))
        }
    }

    func item(at offset: UInt64) throws -> InboxItem? {
        if unreadable.contains(offset) { throw LogError(.damaged, "it cannot be read") }
        return items[offset]
    }

    func body(at offset: UInt64) throws -> EntryMembers? { items[offset]?.body }
    func journal(of turn: UInt64) throws -> Journal { journals[turn] ?? Journal() }
    func program(of journal: Journal) throws -> Program { program }
    func conversation() throws -> ConversationExtent { ConversationExtent(first: nil, byteCount: 0) }
    func history(of journal: Journal) throws -> [HistoryItem] {
        if isHistoryUnreadable { throw LogError(.damaged, "it cannot be read") }
        return []
    }

    func decision(of item: InboxItem) throws -> String? { nil }
    func incarnation(of channel: String) throws -> String? { nil }
    func read(_ follow: Follow) throws -> FollowReading {
        if isFollowedUnreadable { throw LogError(.damaged, "it cannot be read") }
        return followed.map { .outcome($0) } ?? .nothing(upTo: followedUpTo, of: ChannelID(partition: 0, number: 7))
    }
}

/// A model that is never called.
private struct SilentModel: Model {
    let name = "table:model"
    let continues = Continuation.no
    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall { preconditionFailure("it is never called") }
}

extension StepRequest.Work {
    fileprivate var kind: StepKind {
        switch self {
        case .body: .step
        case .model: .model
        case .sleep: .sleep
        case .wait, .follow: .wait
        case .approval: .approval
        }
    }
}

extension AgentAction {
    /// `nil` for events that rows do not mention: alarms, and the machine's own affairs.
    fileprivate var word: String? {
        switch self {
        case .write(let batch, _): (["write"] + batch.entries.map(\.kind.name) + batch.rows.compactMap(\.word)).joined(separator: " ")
        case .start(let start, _, _, _): "start \(start.turn)"
        case .give(let path, _, _): "give \(path)"
        case .cancelProgram: "cancel program"
        case .compensate: "compensate"
        case .fence(let error, _): "fence \(type(of: error))"
        case .runBody(let path, _): "run \(path)"
        case .callModel(let run): "call \(run.path) with \(run.request.messages.map(\.text).joined(separator: ", "))"
        case .probe(let path, _, _): "probe \(path)"
        case .stop(let path): "stop \(path)"
        case .reopened(let path, _): "reopened \(path)"
        case .forget(let path): "forget \(path)"
        case .stopAll: "stop all"
        case .next, .later, .at, .timerSet: nil
        case .timerSettled(let timer): "settled \(timer.path)"
        case .removeTimer(let timer): "remove \(timer.path)"
        case .timerAgain(let timer): "again \(timer.path)"
        case .followAgain(let follow, let channel, let offset): "follow \(channel.text) again for \(follow.step) from \(offset)"
        case .turnEnded(let turn): "turn \(turn) ended"
        case .turnFailed: "turn failed"
        case .notice: "notice"
        case .takeRoom: "ask for room"
        case .releaseRoom: nil
        case .rest: "rest"
        case .leave: "leave"
        case .noteTakenUp: nil
        case .noteStopped: "note"
        case .tryAgainLater(_, let timers): (["again later"] + timers.map { "with \($0.path)" }).joined(separator: " ")
        }
    }
}

extension AgentRow {
    fileprivate var word: String? { if case .status(let status, _) = self { "as \(status.name)" } else { nil } }
}
