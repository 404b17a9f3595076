internal import ParleyChannels
internal import ParleySystem
internal import Synchronization

/// Asks for one thing after another, and asks again, with the same key, for what was not answered: the next process, or at once and twice.
final class SimulationClient: Sendable {
    /// A request of a client.
    enum Action: Sendable {
        case message(SimulationProgram)
        /// To an agent with typed state: the note to remember.
        case remember(String?)
        case close
        case steer
        case interrupt(redirects: Bool)
        case cancel
        /// As sent by an operator who does not know that nothing is halted.
        case resume
        /// The decision on the approval that was asked for last.
        case decide(isApproved: Bool)
        case signal(String)
        case createAgent
        case createStream
        case append(items: Int)
        /// As a producer, with the sequence number after the last.
        case produce
        case closeStream
        case delete
    }

    struct Wish: Sendable {
        var id: String
        var channel: String
        var action: Action
        /// The place in a producer's sequence.
        var sequence: UInt64 = 0
        /// How long the client thinks before it asks, in milliseconds.
        var pause: Int
        /// Whether the network delivers it twice.
        var isDoubled = false
        var condition: Condition?
        /// How much there is to say.
        var padding = 0
    }

    /// A condition under which an entry counts.
    enum Condition: Sendable {
        /// The turn that was the last to begin when the entry was sent is in flight.
        case turn
        /// No entry came in between.
        case offset
    }

    private struct State {
        var next = 0
        /// The process that was asked last, and whether it has been asked for the wish in flight.
        weak var process: SimulationProcess?  // It ends before its clients do.
        var isAsked = false
    }

    private let name: String
    private let wishes: [Wish]
    private let state = Mutex(State())

    init(name: String, wishes: [Wish]) {
        self.name = name
        self.wishes = wishes
    }

    var isDone: Bool { state.withLock { $0.next == wishes.count } }

    /// The future requests, for the history.
    var requests: [SimulationHistory.Request] {
        wishes.map { wish in
            let program: SimulationProgram? = if case .message(let program) = wish.action { program } else { nil }
            return SimulationHistory.Request(id: wish.id, channel: wish.channel, entries: wish.entries, program: program)
        }
    }

    /// Continues, with a new process.
    func resume(_ process: SimulationProcess) {
        let next = state.withLock { state in
            state.process = process
            return state.next
        }
        ask(next, process)
    }

    private func ask(_ index: Int, _ process: SimulationProcess) {
        guard index < wishes.count else { return }
        let wish = wishes[index]
        process.world.schedule(at: process.world.now.advanced(by: .milliseconds(wish.pause))) { [self] in
            for _ in 0..<(wish.isDoubled ? 2 : 1) { send(wish, index, process) }
        }
    }

    private func send(_ wish: Wish, _ index: Int, _ process: SimulationProcess) {
        switch wish.action {
        case .createAgent:
            create(ChannelRow(name: wish.channel, contentType: ContentType.json, isAgent: true, created: process.world.now), index, process)
        case .createStream:
            create(
                ChannelRow(name: wish.channel, contentType: ContentType.json, isAgent: false, created: process.world.now), index, process)
        case .delete:
            process.record.update { $0.mayBeGone.insert(wish.channel) }
            process.channels.submit(DeleteChannel(wish.channel)) { [self] result in
                answered(index, process, result.map { [] })
            }
        default: append(wish, index, process)
        }
    }

    private func create(_ row: ChannelRow, _ index: Int, _ process: SimulationProcess) {
        process.channels.submit(CreateChannel(row)) { [self] result in answered(index, process, result.map { _ in [] }) }
    }

    private func append(_ wish: Wish, _ index: Int, _ process: SimulationProcess) {
        let entries = wish.newEntries(SimulationClient.sight(wish.channel, process))
        var append = Append(to: wish.channel, entries)
        switch wish.action {
        case .message, .remember, .close, .steer, .interrupt, .cancel, .resume, .decide, .signal:
            append.creates = ChannelRow(name: wish.channel, contentType: ContentType.json, isAgent: true, created: process.world.now)
            append.isInput = true
        case .closeStream: append.closes = true
        case .produce: append.producer = ProducerClaim(id: name, epoch: 1, sequence: wish.sequence)
        default: break
        }
        if append.producer == nil && !entries.isEmpty {
            append.idempotency = IdempotencyKey(key: wish.id, body: Bytes(wish.id.utf8))
        }
        process.channels.submit(append) { [self] result in
            answered(index, process, result.map(\.offsets))
        }
    }

    /// The client's knowledge of the channel when it sends.
    struct Sight {
        var approval = "none"
        var turn: UInt64?
        var head: UInt64 = 0
    }

    static func sight(_ name: String, _ process: SimulationProcess) -> Sight {
        var sight = Sight()
        guard let channel = try? process.channels.find(name) else { return sight }
        sight.head = channel.tail.head
        var approval: String?
        try? process.channels.walkBack(channel, from: sight.head) { _, frame in
            if frame.kind == .approvalRequested, approval == nil { approval = frame.body["approval"]?.string }
            if frame.kind == .turnStarted, sight.turn == nil { sight.turn = frame.position?.turn }
            return approval == nil || sight.turn == nil
        }
        sight.approval = approval ?? "none"
        return sight
    }

    /// Writer thread.
    private func answered(_ index: Int, _ process: SimulationProcess, _ result: Result<[UInt64], ChannelError>) {
        if case .failure(let error) = result, error.code == "log_closed" { return }  // No answer: the next process is asked again.
        let wish = wishes[index]
        if case .success(let offsets) = result {
            let channel = try? process.channels.find(wish.channel)
            let life = channel.map { SimulationHistory.Life(name: $0.name, id: $0.id) }
            process.record.update { $0.answers.append(SimulationHistory.Answer(request: wish.id, life: life, offsets: offsets)) }
        }
        let isCurrent = state.withLock { state in
            guard state.process === process, state.next == index else { return false }
            state.next += 1
            return true
        }
        if isCurrent { ask(index + 1, process) }
    }
}

extension SimulationClient.Wish {
    /// The members that each entry must have.
    var entries: [JSON] {
        switch action {
        case .message(let program): [["data": ["program": .string(program.text), "request": .string(id)]]]
        case .remember(let note): [["data": SimulationClient.Wish.memory(id, note)]]
        case .close, .steer, .interrupt, .cancel, .resume, .decide, .signal: [["type": .string(kind.name), "request": .string(id)]]
        case .append(let items): (0..<items).map { ["request": .string(id), "item": .integer(Int64($0))] }
        case .produce: [["request": .string(id), "item": 0]]
        default: []
        }
    }

    /// The kind of an entry for an agent.
    private var kind: EntryKind {
        switch action {
        case .steer: .steer
        case .interrupt: .interrupt
        case .cancel: .cancel
        case .resume: .resume
        case .decide(let isApproved): isApproved ? .approve : .deny
        case .signal: .signal
        case .close: .close
        default: .message
        }
    }

    private static func memory(_ id: String, _ note: String?) -> JSON {
        JSON.compact(("request", .string(id)), ("note", note.map { .string($0) }))
    }

    func newEntries(_ sight: SimulationClient.Sight) -> [NewEntry] {
        let head: [(String, JSON?)] = [("by", "client")] + conditions(sight)
        switch action {
        case .message(let program):
            return [
                NewEntry(.message, members: NewEntry.join(head + [("data", ["program": .string(program.text), "request": .string(id)])]))
            ]
        case .remember(let note): return [NewEntry(.message, members: NewEntry.join(head + [("data", Self.memory(id, note))]))]
        case .close, .steer, .interrupt, .cancel, .resume, .decide, .signal:
            return [NewEntry(kind, members: NewEntry.join(head + [("request", .string(id))] + members(sight.approval)))]
        default: return entries.map { NewEntry(data: $0.bytes) }
        }
    }

    private func conditions(_ sight: SimulationClient.Sight) -> [(String, JSON?)] {
        switch condition {
        case .turn: [("if_turn", .string(Offset(sight.turn ?? 1).token))]
        case .offset: [("if_offset", .string(Offset(sight.head).token))]
        case nil: []
        }
    }

    private func members(_ approval: String) -> [(String, JSON?)] {
        switch action {
        case .steer, .interrupt(redirects: true): [("text", .string("something else, says \(id)" + String(repeating: ".", count: padding)))]
        case .decide: [("approval", .string(approval))]
        case .signal(let name): [("name", .string(name))]
        default: []
        }
    }
}
