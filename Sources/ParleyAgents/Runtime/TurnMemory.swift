internal import ParleySystem
internal import Synchronization

/// The memory limits of all agents of a node together.
struct AgentMemory: Sendable {
    /// The memory for conversations that are kept from turn to turn.
    let conversations: ConversationBudget
    /// The memory of running turns.
    let turns: TurnMemory
    /// The memory of models' answers in flight.
    let answers: AnswerTexts
}

/// The memory for running turns, all together: their inputs and the conversations before them. A turn that finds no room waits before it begins; its
/// input waits in the log meanwhile.
///
/// A turn is let in while it takes no more than an eighth of what is left, so that large turns leave room for smaller ones, and those for small ones.
/// Alone, any turn is let in. And once no waiting turn was let in for ``patience``, the first of them is, however little is left: turns may wait for
/// one another.
package final class TurnMemory: Sendable {
    /// The share of one turn, until this is released.
    final class Share: Sendable {
        private let memory: TurnMemory
        private let bytes: Int

        fileprivate init(_ memory: TurnMemory, _ bytes: Int) { (self.memory, self.bytes) = (memory, bytes) }

        deinit { memory.release(bytes) }
    }

    private struct Waiting {
        let bytes: Int
        let letIn: @Sendable (Share) -> Void
    }

    private struct State {
        var used = 0
        var waiting: [Waiting] = []
        /// Fires when the first waiting turn is let in.
        var alarm: (any Scheduled)?
    }

    private let bytesMax: Int
    private let world: any World
    private let state = Mutex(State())

    /// A turn takes this part of what is left at most.
    private static let part = 8
    static let patience = Duration.seconds(30)
    /// The default limit of all turns together.
    package static let bytesUsual = 48 << 20

    init(bytesMax: Int, world: any World) { (self.bytesMax, self.world) = (bytesMax, world) }

    var usedBytes: Int { state.withLock { $0.used } }
    var waitingCount: Int { state.withLock { $0.waiting.count } }

    /// Room for a turn; `nil` when there is none: then `letIn` gets it later, once, on any thread.
    func take(_ bytes: Int, _ letIn: @escaping @Sendable (Share) -> Void) -> Share? {
        state.withLock { state in
            if fits(bytes, state) { return share(bytes, &state) }
            state.waiting.append(Waiting(bytes: bytes, letIn: letIn))
            if state.alarm == nil { setAlarm(&state) }
            return nil
        }
    }

    /// Room for a turn that runs, however little is left.
    func owe(_ bytes: Int) -> Share { state.withLock { share(bytes, &$0) } }

    private func fits(_ bytes: Int, _ state: State) -> Bool {
        state.used == 0 || bytes <= (bytesMax - state.used) / TurnMemory.part
    }

    private func share(_ bytes: Int, _ state: inout State) -> Share {
        state.used += bytes
        return Share(self, bytes)
    }

    private func release(_ bytes: Int) {
        letIn { state in
            state.used -= bytes
            guard !state.waiting.isEmpty else { return [] }
            var (found, rest): ([(Waiting, Share)], [Waiting]) = ([], [])
            for one in state.waiting {
                if fits(one.bytes, state) { found.append((one, share(one.bytes, &state))) } else { rest.append(one) }
            }
            guard !found.isEmpty else { return [] }
            state.waiting = rest
            setAlarm(&state)
            return found
        }
    }

    private func letInFirst() {
        letIn { state in
            guard !state.waiting.isEmpty else { return [] }
            let first = state.waiting.removeFirst()
            defer { setAlarm(&state) }
            return [(first, share(first.bytes, &state))]
        }
    }

    /// Tells the turns that `choose` has found room for, outside the lock.
    private func letIn(_ choose: (inout State) -> [(Waiting, Share)]) {
        for (waiting, share) in state.withLock({ choose(&$0) }) { waiting.letIn(share) }
    }

    private func setAlarm(_ state: inout State) {
        state.alarm?.cancel()
        state.alarm = nil
        guard !state.waiting.isEmpty else { return }
        state.alarm = world.schedule(at: world.now.advanced(by: TurnMemory.patience)) { [weak self] in self?.letInFirst() }
    }
}
