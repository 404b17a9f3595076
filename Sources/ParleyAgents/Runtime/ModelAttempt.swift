internal import ParleyChannels
internal import ParleySystem
internal import Synchronization

/// One call of a model for a step: turns what the upstream sends into `text` entries and, at its end, into the step's result.
///
/// The newest piece of text is held back until the next event, so that the last one, the upstream's finish and the step's result can be one
/// batch: otherwise a crash between them would leave a text that is complete but looks cut off, and a model asked to continue from there
/// adds what was never part of the answer. It is held for ``holdMax`` at most: the finish comes right behind the last piece, and a slow model's
/// piece is to be read, and saved, long before the next one.
///
/// It belongs to no thread: events come from the transport's, each under the lock, and are handed to the writer in order.
final class ModelAttempt: ModelSink, Sendable {
    /// The outcome of the attempt, once.
    enum End: Sendable {
        /// The members of `step.completed`, and the last text, to be committed in one batch.
        case finished([(String, JSON?)], last: NewEntry?)
        case failed(StepFailure, SavedText)
    }

    private struct State {
        var saved: SavedText
        /// How many pieces of the saved text come from attempts before.
        let recovered: Int
        /// The part of the saved text that was not sent back, so that a model that continues may send it again: its trailing white space.
        var repeatable: Bytes
        var isFirst = true
        var last: LastPiece
        /// How many entries have been handed over and are not durable yet.
        var uncommittedCount = 0
        var beside = BesideText()
        var bounds = AnswerBounds()
        var call: (any ModelCall)?
        /// It waits for room for what comes.
        var isPaused = false
        var isOver = false
    }

    /// The parts of the answer besides its text.
    private struct BesideText {
        var reasoningCount = 0
        var toolCalls: [ToolCallInProgress] = []
        var returned: [JSON.Member] = []
        var usage: ModelUsage?
    }

    /// The newest piece of text, which is held back.
    private struct LastPiece {
        var held: TextDelta?
        var since: Timestamp
        /// Lets go of the piece that is held.
        var release: (any Scheduled)?
    }

    private struct ToolCallInProgress {
        var id = ""
        var name = ""
        var arguments = ""
        var returned: [JSON.Member] = []
    }

    private let position: Position
    private let world: any World
    private let continuesAt: UInt64?
    /// Its share of the memory for answers.
    let share: AnswerTexts.Share
    private let state: Mutex<State>
    private let append: @Sendable (ModelAttempt, [NewEntry]) -> Void
    private let end: @Sendable (End) -> Void

    /// - Parameters:
    ///   - saved: The durable text to continue from; empty for an attempt that starts over.
    ///   - append: Takes entries that are to be committed now; ``committed()`` is called when they are.
    ///   - end: Called once, unless the attempt is stopped.
    init(
        position: Position, saved: SavedText, world: any World, share: AnswerTexts.Share = AnswerTexts().share(),
        append: @escaping @Sendable (ModelAttempt, [NewEntry]) -> Void,
        end: @escaping @Sendable (End) -> Void
    ) {
        (self.position, self.world, self.share) = (position, world, share)
        continuesAt = saved.text.isEmpty ? nil : UInt64(saved.text.count)
        state = Mutex(
            State(
                saved: saved, recovered: saved.pieces, repeatable: Bytes(saved.text[ModelAttempt.prefixCount(of: saved.text)...]),
                last: LastPiece(since: world.now)))
        self.append = append
        self.end = end
    }

    /// How much of the saved text is sent back: all but the white space at its end, which many models cannot continue from.
    static func prefixCount(of text: Bytes) -> Int {
        var count = text.count
        while count > 0, [0x20, 0x0A, 0x0D, 0x09].contains(text[count - 1]) { count -= 1 }
        return count
    }

    func start(_ model: any Model, _ request: ModelRequest) {
        let call = model.start(request, self)
        let isOver = state.withLock { state in
            if !state.isOver { state.call = call }
            if state.isPaused { call.pause() }
            return state.isOver
        }
        if isOver { call.cancel() }
    }

    /// Closes the connection; nothing more is heard of the attempt. The piece that was held is appended, or dropped.
    func stop(keepingLast: Bool) {
        let call = state.withLock { state in
            if keepingLast && !state.isOver { hold(nil, &state) }
            state.isOver = true
            return state.call.take()
        }
        share.end()
        call?.cancel()
    }

    /// Closes the connection and gives what there is as the members of `step.completed`, and the piece that was held, which belongs before it.
    func interrupt() -> (members: [(String, JSON?)], last: NewEntry?) {
        let (call, members, last) = state.withLock { state in
            state.isOver = true
            state.beside.toolCalls = []
            return (state.call.take(), result("interrupted", state), state.last.held.map { NewEntry(text: $0, at: position) })
        }
        call?.cancel()
        return (members, last)
    }

    func received(_ event: ModelEvent) {
        // Entries are handed over under the lock, so that they reach the writer in order; the writer only queues them.
        let (ended, isTooMuch, call): (End?, Bool, (any ModelCall)?) = state.withLock { state in
            guard !state.isOver else { return (nil, false, nil) }
            let failure = state.bounds.count(event)
            let ended = take(failure.map { .failed($0) } ?? event, &state)
            if ended == nil { pauseIfFull(&state) }
            // Attempt and call hold each other, and the turn with them, until there is nothing more to hear.
            return (ended, failure != nil, ended == nil ? nil : state.call.take())
        }
        // Beyond a bound the upstream would continue.
        if isTooMuch { call?.cancel() }
        if let ended { end(ended) }
    }

    /// Under the lock, so that a pause and its end reach the call in this order.
    private func pauseIfFull(_ state: inout State) {
        guard !state.isPaused else { return }
        state.isPaused = !share.grow(to: state.bounds.heldBytes) { [weak self] in self?.resume() }
        if state.isPaused { state.call?.pause() }
    }

    private func resume() {
        state.withLock { state in
            state.isPaused = false
            // The other parts that came with the pause may need more than there was room for.
            pauseIfFull(&state)
            if !state.isPaused { state.call?.resume() }
        }
    }

    /// An entry that was handed over is durable.
    func committed() { state.withLock { $0.uncommittedCount -= 1 } }

    private func take(_ event: ModelEvent, _ state: inout State) -> End? {
        switch event {
        case .text(let text):
            if let delta = add(Bytes(text.utf8), &state) { hold(delta, &state) }
        case .reasoning(let text):
            if let delta = addReasoning(Bytes(text.utf8), &state) { hold(delta, &state) }
        case .toolCall(let index, let id, let name, let arguments):
            endText(&state)
            extend(&state, to: index)
            if let id { state.beside.toolCalls[index].id = id }
            if let name { state.beside.toolCalls[index].name += name }
            state.beside.toolCalls[index].arguments += arguments
        case .returned(call: let index?, let members):
            extend(&state, to: index)
            ModelAttempt.merge(members, into: &state.beside.toolCalls[index].returned)
        case .returned(call: nil, let members): ModelAttempt.merge(members, into: &state.beside.returned)
        case .usage(let usage): state.beside.usage = usage
        case .finished(let reason):
            state.isOver = true
            return .finished(result(reason, state), last: state.last.held.map { NewEntry(text: $0, at: position) })
        case .failed(let failure):
            state.isOver = true
            hold(nil, &state)
            // Refused can only be a text that was sent: else another attempt would be the same again.
            let isPrefixRefused = failure.code == StepFailure.prefixRefusedCode && continuesAt != nil
            return .failed(isPrefixRefused ? failure : failure.ofWhatRan, state.saved)
        }
        return nil
    }

    /// Within ``AnswerBounds``, which have been counted.
    private func extend(_ state: inout State, to index: Int) {
        while state.beside.toolCalls.count <= index { state.beside.toolCalls.append(ToolCallInProgress()) }
    }

    private static func merge(_ object: JSON, into members: inout [JSON.Member]) {
        for member in object.members ?? [] {
            members.removeAll { $0.name == member.name }
            members.append(member)
        }
    }

    /// The most pieces that wait for the writer; when it does not keep up, further ones are merged, so that a fast upstream fills no queue.
    static let uncommittedMax = 256

    /// Lets go of the piece that was held, and holds `delta` instead; or adds it to that, when too many wait.
    private func hold(_ delta: TextDelta?, _ state: inout State) {
        if let held = state.last.held {
            if let delta, state.uncommittedCount >= ModelAttempt.uncommittedMax, held.part == delta.part, delta.pieces > 0 {
                state.last.held!.delta += delta.delta
                state.last.held!.pieces += delta.pieces
                return
            }
            state.uncommittedCount += 1
            append(self, [NewEntry(text: held, at: position)])
        }
        state.last.held = delta
        if delta != nil { releaseLater(&state) }
        Failpoint.pass("model.delta")
    }

    /// How long a piece is held at most.
    static let holdMax = Duration.milliseconds(150)

    /// One timer at a time: when it fires, it looks how long the piece then held has been held.
    private func releaseLater(_ state: inout State) {
        state.last.since = world.now
        if state.last.release == nil { setRelease(after: ModelAttempt.holdMax, &state) }
    }

    private func setRelease(after wait: Duration, _ state: inout State) {
        state.last.release = world.schedule(at: world.now.advanced(by: wait)) { [weak self] in self?.state.withLock { self?.release(&$0) } }
    }

    private func release(_ state: inout State) {
        state.last.release = nil
        guard state.last.held != nil, !state.isOver else { return }
        let left = ModelAttempt.holdMax - state.last.since.duration(to: world.now)
        // While the writer does not keep up, what comes is put together still. A clock that was set back holds nothing for longer.
        if left > .zero || state.uncommittedCount >= ModelAttempt.uncommittedMax {
            return setRelease(after: left > .zero ? min(left, ModelAttempt.holdMax) : ModelAttempt.holdMax, &state)
        }
        hold(nil, &state)
    }

    private func add(_ delta: Bytes, _ state: inout State) -> TextDelta? {
        var delta = delta
        if !state.repeatable.isEmpty {
            let same = zip(delta, state.repeatable).prefix { $0 == $1 }.count
            delta.removeFirst(same)
            // Once something new has come, nothing is a repetition any more.
            if delta.isEmpty { state.repeatable.removeFirst(same) } else { state.repeatable = [] }
        }
        guard !delta.isEmpty else { return nil }
        let text = piece(delta, pieces: 1, &state)
        state.saved.text.append(contentsOf: delta)
        state.saved.pieces += 1
        return text
    }

    /// The next piece; an attempt's first one says from where it continues the attempt before.
    private func piece(_ delta: Bytes, pieces: UInt32, _ state: inout State) -> TextDelta {
        defer { state.isFirst = false }
        return TextDelta(
            index: UInt64(state.saved.text.count), continuesAt: state.isFirst ? continuesAt : nil, pieces: pieces, delta: delta)
    }

    /// A call of a tool has begun: a text that it follows is not to be continued after a crash, which an empty piece says.
    private func endText(_ state: inout State) {
        guard !state.saved.text.isEmpty, !state.saved.isTextOver else { return }
        state.saved.isTextOver = true
        hold(piece([], pieces: 0, &state), &state)
        hold(nil, &state)
    }

    private func addReasoning(_ delta: Bytes, _ state: inout State) -> TextDelta? {
        guard !delta.isEmpty else { return nil }
        let text = TextDelta(part: .reasoning, index: UInt64(state.beside.reasoningCount), delta: delta)
        state.beside.reasoningCount += delta.count
        state.saved.hasReasoning = true
        return text
    }

    private func result(_ reason: String, _ state: State) -> [(String, JSON?)] {
        var ids: Set<String> = []
        let calls = state.beside.toolCalls.enumerated().map { index, call in
            // Results refer to calls by their ids, so each has one of its own.
            let id = call.id.isEmpty || !ids.insert(call.id).inserted ? newID(index) : call.id
            return JSON.compact(
                ("id", .string(id)), ("name", .string(call.name)), ("arguments", .string(ModelAttempt.arguments(call.arguments))),
                ("returned", call.returned.isEmpty ? nil : .object(call.returned)))
        }
        return [
            ("text", .string(state.saved.text.text)), ("tool_calls", calls.isEmpty ? nil : .array(calls)),
            ("returned", calls.isEmpty || state.beside.returned.isEmpty ? nil : .object(state.beside.returned)),
            ("finish_reason", .string(reason)),
            ("usage", state.beside.usage.flatMap { try? JSON(encoding: $0) }), ("recovered_tokens", .integer(Int64(state.recovered))),
        ]
    }

    /// An id for a call that came without one: it follows from the call's place, and has the form that the strictest servers want, nine letters and
    /// digits.
    private func newID(_ index: Int) -> String {
        "c" + SHA256.hex(Bytes("\(position.turn)/\(position.step)/\(index)".utf8)).prefix(8)
    }

    /// Some servers send an empty object first, and then the arguments.
    private static func arguments(_ text: String) -> String {
        let rest = text.dropFirst(2)
        guard text.hasPrefix("{}"), !rest.isEmpty, (try? JSON.parse(String(rest)))?.members != nil else { return text }
        return String(rest)
    }
}
