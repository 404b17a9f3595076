/// Threads for work that may block: made when they are needed, up to a bound, and given back when they are not.
///
/// Beyond the bound work waits, and owners take turns: one with a thousand pieces delays another's first by one piece, not by a thousand.
final class BlockingPool: Sendable {
    private struct Owner {
        var work = Fifo<@Sendable () -> Void>()
        var running = 0
    }

    private struct State {
        /// The owners with work that waits or runs.
        var owners: [UInt64: Owner] = [:]
        /// The owners that may begin another piece, in the order of their turns.
        var turns = Fifo<UInt64>()
        var threads = 0
        var idle = 0
        var made = 0
    }

    private let state = Monitor(State())
    private let name: String
    private let threadsMax: Int
    private let shareMax: Int

    /// How long a thread stays that has nothing to do.
    private static let patience = Duration.seconds(10)

    /// - Parameters:
    ///   - name: The name of the threads.
    ///   - shareMax: How many of them one owner has at most.
    init(name: String, threadsMax: Int, shareMax: Int) {
        (self.name, self.threadsMax, self.shareMax) = (name, threadsMax, shareMax)
    }

    func perform(for id: UInt64, _ work: @escaping @Sendable () -> Void) {
        let number = state.withLock(signal: true) { state -> Int? in
            var owner = state.owners.removeValue(forKey: id) ?? Owner()
            // With more waiting already, it has its place, or gets one when a piece of its ends.
            if owner.work.isEmpty, owner.running < shareMax { state.turns.append(id) }
            owner.work.append(work)
            state.owners[id] = owner
            return BlockingPool.grows(&state, threadsMax)
        }
        if let number { start(number) }
    }

    /// The number of the thread to start, if what waits needs one.
    private static func grows(_ state: inout State, _ threadsMax: Int) -> Int? {
        guard state.turns.count > state.idle, state.threads < threadsMax else { return nil }
        state.threads += 1
        state.made += 1
        return state.made
    }

    private func start(_ number: Int) {
        let isStarted = SystemThread.startDetached(name: "\(name)-\(number)") { self.run() }
        // The others take it, once they are free.
        if !isStarted { state.withLock { $0.threads -= 1 } }
    }

    private func run() {
        var last: UInt64?
        while let (id, work) = next(after: last) {
            work()
            last = id
        }
    }

    private func next(after last: UInt64?) -> (id: UInt64, work: @Sendable () -> Void)? {
        state.withLock { state in
            if let last { BlockingPool.ended(last, &state, shareMax) }
            state.idle += 1
        }
        let waited = state.wait(timeout: BlockingPool.patience) { [shareMax] in BlockingPool.take(&$0, shareMax) }
        let (next, number) = state.withLock { state -> ((id: UInt64, work: @Sendable () -> Void)?, Int?) in
            // A piece that came as the wait ended is taken, too.
            guard let next = waited ?? BlockingPool.take(&state, shareMax) else {
                state.idle -= 1
                state.threads -= 1
                return (nil, nil)
            }
            // An owner has one turn, and may have more work than that.
            return (next, BlockingPool.grows(&state, threadsMax))
        }
        if let number { start(number) }
        return next
    }

    private static func take(_ state: inout State, _ shareMax: Int) -> (id: UInt64, work: @Sendable () -> Void)? {
        guard let id = state.turns.popFirst() else { return nil }
        let work = state.owners[id]!.work.popFirst()!
        state.owners[id]!.running += 1
        state.idle -= 1
        if !state.owners[id]!.work.isEmpty, state.owners[id]!.running < shareMax { state.turns.append(id) }
        return (id, work)
    }

    private static func ended(_ id: UInt64, _ state: inout State, _ shareMax: Int) {
        let hadShare = state.owners[id]!.running < shareMax
        state.owners[id]!.running -= 1
        if !state.owners[id]!.work.isEmpty {
            if !hadShare { state.turns.append(id) }
        } else if state.owners[id]!.running == 0 {
            state.owners[id] = nil
        }
    }
}
