/// Threads for work that may block: made when they are needed, up to a bound, and given back when they are not.
///
/// Most pieces take less time than it takes to wake a thread for them, so as many threads as there are cores take one after another. What has waited
/// for a moment gets further threads, because those that run may be blocked.
///
/// Beyond the bound work waits, and owners take turns: one with a thousand pieces delays another's first by one piece, not by a thousand.
final class BlockingPool: Sendable {
    private let state: Monitor<WorkQueue>
    private let lookout: Lookout
    private let name: String

    /// How long a thread stays that has nothing to do.
    private static let patience = Duration.seconds(10)
    /// How often what waits is looked at.
    private static let interval = Duration.milliseconds(1)

    /// - Parameters:
    ///   - name: The name of the threads.
    ///   - width: How many of them are enough as long as none is blocked.
    ///   - shareMax: How many of them one owner has at most.
    init(name: String, width: Int, threadsMax: Int, shareMax: Int) {
        self.name = name
        lookout = Lookout(name: "\(name)-watch", every: BlockingPool.interval)
        state = Monitor(WorkQueue(width: width, threadsMax: threadsMax, shareMax: shareMax))
    }

    func perform(for owner: UInt64, _ work: @escaping @Sendable () -> Void) {
        meet(state.withLock { $0.add(work, of: owner) })
    }

    private func meet(_ need: WorkQueue.Need) {
        switch need {
        case .nothing: break
        case .look: lookout.wake { self.look() }
        case .call(let thread): call([thread])
        }
    }

    private func look() -> Bool {
        guard let threads = state.withLock({ $0.look() }) else { return false }
        call(threads)
        return true
    }

    private func call(_ threads: [WorkQueue.Thread]) {
        for thread in threads {
            switch thread {
            case .idle: state.signal()
            case .new(let number):
                let isStarted = SystemThread.startDetached(name: "\(name)-\(number)") { self.run() }
                if !isStarted { meet(state.withLock { $0.notStarted() }) }
            }
        }
    }

    private func run() {
        var last: UInt64?
        while let (owner, work) = next(after: last) {
            work()
            last = owner
        }
    }

    /// The next piece to run; `nil`: the thread is no longer needed.
    private func next(after last: UInt64?) -> WorkQueue.Piece? {
        var (piece, need) = state.withLock { queue in
            if let last { queue.ended(last) }
            return queue.takeOrRest()
        }
        while piece == nil {
            let isCalled = state.wait(timeout: BlockingPool.patience) { $0.isCalled() ? true : nil } ?? false
            if !isCalled, state.withLock({ $0.leaves() }) { return nil }
            (piece, need) = state.withLock { $0.takeOrRest() }
        }
        meet(need)
        return piece
    }
}

/// What waits for the threads of a ``BlockingPool``, and how many of them there are: who is called for what, as a value.
struct WorkQueue: Sendable {
    typealias Piece = (owner: UInt64, work: @Sendable () -> Void)

    /// A thread to call.
    enum Thread: Equatable {
        case idle
        /// One with that number.
        case new(Int)
    }

    /// What is needed for the work that waits.
    enum Need: Equatable {
        case nothing
        /// Call ``WorkQueue/look()`` from now on, until it gives `nil`.
        case look
        case call(Thread)
    }

    private struct Owner {
        var work = Fifo<@Sendable () -> Void>()
        var running = 0
    }

    /// The owners with work that waits or runs.
    private var owners: [UInt64: Owner] = [:]
    /// The owners that may begin another piece, in the order of their turns, and at which look they came.
    private var turns = Fifo<(owner: UInt64, look: Int)>()
    /// All there are; of these, those that wait to be called; of these, those that have been.
    private var (threads, idle, called) = (0, 0, 0)
    private var made = 0
    private var looks = 0
    private var isLookedAt = false
    private let (width, threadsMax, shareMax): (Int, Int, Int)

    init(width: Int, threadsMax: Int, shareMax: Int) { (self.width, self.threadsMax, self.shareMax) = (width, threadsMax, shareMax) }

    // MARK: Work

    mutating func add(_ work: @escaping @Sendable () -> Void, of id: UInt64) -> Need {
        var owner = owners.removeValue(forKey: id) ?? Owner()
        // With more waiting already, it has its place, or gets one when a piece of its ends.
        let isNext = owner.work.isEmpty && owner.running < shareMax
        owner.work.append(work)
        owners[id] = owner
        guard isNext else { return .nothing }
        turns.append((id, looks))
        return need()
    }

    /// What is needed for the turn that was added last.
    private mutating func need() -> Need {
        if threads - idle + called < width, let thread = call() { return .call(thread) }
        return needToLook()
    }

    private mutating func needToLook() -> Need {
        guard !isLookedAt, !turns.isEmpty else { return .nothing }
        isLookedAt = true
        return .look
    }

    mutating func ended(_ id: UInt64) {
        let hadShare = owners[id]!.running < shareMax
        owners[id]!.running -= 1
        if !owners[id]!.work.isEmpty {
            if !hadShare { turns.append((id, looks)) }
        } else if owners[id]!.running == 0 {
            owners[id] = nil
        }
    }

    /// Looks at what waits, see ``Need/look``.
    /// - Returns: the threads to call, one for each owner that has waited from one look to the next; `nil` once nothing waits.
    mutating func look() -> [Thread]? {
        guard !turns.isEmpty else {
            isLookedAt = false
            return nil
        }
        looks += 1
        var threads: [Thread] = []
        for _ in 0..<max(0, turns.count { $0.look < looks - 1 } - called) {
            guard let thread = call() else { break }
            threads.append(thread)
        }
        return threads
    }

    // MARK: Threads

    private mutating func call() -> Thread? {
        if idle > called {
            called += 1
            return .idle
        }
        guard threads < threadsMax else { return nil }
        threads += 1
        made += 1
        return .new(made)
    }

    /// Takes the next piece for a thread that is free, which otherwise waits to be called.
    ///
    /// The piece may block until the next one of its owner has run, so its taking comes with what that needs.
    mutating func takeOrRest() -> (piece: Piece?, need: Need) {
        guard let id = turns.popFirst()?.owner else {
            idle += 1
            return (nil, .nothing)
        }
        var owner = owners.removeValue(forKey: id)!
        let work = owner.work.popFirst()!
        owner.running += 1
        owners[id] = owner
        guard !owner.work.isEmpty, owner.running < shareMax else { return ((id, work), .nothing) }
        turns.append((id, looks))
        return ((id, work), need())
    }

    /// Whether the waiting thread has been called.
    mutating func isCalled() -> Bool {
        guard called > 0 else { return false }
        called -= 1
        idle -= 1
        return true
    }

    /// Whether a thread ends that has waited for long: not if it has just been called.
    mutating func leaves() -> Bool {
        guard !isCalled() else { return false }
        (threads, idle) = (threads - 1, idle - 1)
        return true
    }

    /// A thread could not be started: another is tried at the next look.
    mutating func notStarted() -> Need {
        threads -= 1
        return needToLook()
    }
}
