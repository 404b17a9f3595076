internal import CUV
internal import Glibc

/// The threads that run lanes: pieces of one lane run one at a time and in order, those of different lanes in parallel.
///
/// No lane belongs to a thread: any free thread takes the lane that has waited longest. As many threads run as there are cores; one that does not
/// return from its piece of work (it waits for a lock, or computes) does not count, and another takes its place.
final class LanePool: Sendable {
    private struct Lane {
        var work: [@Sendable () -> Void] = []
    }

    private struct State {
        var lanes: [UInt64: Lane] = [:]
        /// The lanes that have work and that no thread runs, those that have waited longest first.
        var ready = Fifo<UInt64>()
        /// Since when each thread has been in the piece of work that it runs.
        var busy: [Int: Timestamp] = [:]
        var idle = 0
        var threads = 0
        var made = 0
        /// The watcher sleeps: it has to be told when there is something to watch.
        var isWatcherAsleep = true
    }

    private let state = Monitor(State())
    private let lookout = Lookout(name: "lanes", every: LanePool.patience)
    private let width: Int

    /// A piece of work that takes longer is not waited for.
    private static let patience = Duration.milliseconds(20)
    /// How long a thread beyond the usual number stays without work.
    private static let idlePatience = Duration.seconds(10)
    /// How many threads may be stuck, at most, before nothing moves any more.
    private static let stuckMax = 64

    init(threads: Int) { width = threads }

    func perform(lane id: UInt64, _ work: @escaping @Sendable () -> Void) {
        let (needsThread, needsWatcher) = state.withLock(signal: true) { state in
            if state.lanes[id] != nil {
                state.lanes[id]!.work.append(work)
                return (false, false)
            }
            state.lanes[id] = Lane(work: [work])
            state.ready.append(id)
            let isWaited = state.ready.count > state.idle
            let needsThread = isWaited && state.threads < width
            if needsThread { state.threads += 1 }
            let needsWatcher = isWaited && !needsThread && state.isWatcherAsleep
            if needsWatcher { state.isWatcherAsleep = false }
            return (needsThread, needsWatcher)
        }
        if needsThread { LanePool.start(state, width) }
        if needsWatcher { lookout.wake { [state, width] in LanePool.watch(state, width) } }
    }

    /// Adds a thread where those that there are do not come back.
    /// - Returns: whether there is something to watch.
    private static func watch(_ state: Monitor<State>, _ width: Int) -> Bool {
        let (keepsWatching, needsThread) = state.withLock { state in
            guard !state.ready.isEmpty else {
                state.isWatcherAsleep = true
                return (false, false)
            }
            let stuck = stuck(state)
            guard state.threads - stuck < width, stuck < stuckMax else { return (true, false) }
            state.threads += 1
            return (true, true)
        }
        if needsThread { start(state, width) }
        return keepsWatching
    }

    private static func start(_ state: Monitor<State>, _ width: Int) {
        let number = state.withLock { state in
            state.made += 1
            return state.made
        }
        let isStarted = SystemThread.startDetached(name: "lane-\(number)") { run(state, width, number) }
        // The others continue; another one is tried when a lane has waited again.
        if !isStarted { state.withLock { $0.threads -= 1 } }
    }

    private static func run(_ state: Monitor<State>, _ width: Int, _ number: Int) {
        let end = EndOfWork.begin()
        var last: UInt64?
        while let (id, work) = next(state, width, number, after: last) {
            for piece in work {
                piece()
                _ = end.perform()
            }
            last = id
        }
    }

    /// The next piece to run; `nil`: the thread is one too many.
    private static func next(
        _ state: Monitor<State>, _ width: Int, _ number: Int, after last: UInt64?
    ) -> (id: UInt64, work: [@Sendable () -> Void])? {
        let isSurplus = state.withLock { state in
            if let last { ended(last, number, &state) }
            guard state.threads > width, state.threads - stuck(state) > width else {
                state.idle += 1
                return false
            }
            // The stuck threads have come back.
            state.threads -= 1
            return true
        }
        if isSurplus { return nil }
        while true {
            if let next = state.wait(timeout: idlePatience, { take(&$0, number) }) { return next }
            let isLeaving = state.withLock { state in
                guard state.threads > width, state.ready.isEmpty else { return false }
                state.threads -= 1
                state.idle -= 1
                return true
            }
            if isLeaving { return nil }
        }
    }

    private static func take(_ state: inout State, _ number: Int) -> (id: UInt64, work: [@Sendable () -> Void])? {
        guard let id = state.ready.popFirst() else { return nil }
        let work = state.lanes[id]!.work
        state.lanes[id]!.work = []
        state.idle -= 1
        state.busy[number] = SystemWorld.time(CLOCK_MONOTONIC)
        return (id, work)
    }

    private static func ended(_ id: UInt64, _ number: Int, _ state: inout State) {
        state.busy[number] = nil
        if state.lanes[id]!.work.isEmpty { state.lanes[id] = nil } else { state.ready.append(id) }
    }

    /// How many threads do not come back from what they run.
    private static func stuck(_ state: State) -> Int {
        let now = SystemWorld.time(CLOCK_MONOTONIC)
        return state.busy.values.count { $0.duration(to: now) >= patience }
    }
}
