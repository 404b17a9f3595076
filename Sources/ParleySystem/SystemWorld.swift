// Which C module `timespec` belongs to depends on which the compiler loads first, so both are named.
internal import CUV
internal import Glibc
internal import Synchronization

/// The world a server runs in: the system's clock and randomness, worker threads, one thread for timers.
package final class SystemWorld: World {
    private let lanes: LanePool
    private let bodies: BlockingPool
    private let reads: BlockingPool
    private let timers = Timers()
    private let clock: @Sendable () -> Timestamp

    /// - Parameters:
    ///   - threads: How many threads run what is given to ``perform(lane:_:)`` as long as none is blocked; by default one a core.
    ///   - clock: Tells the time, for tests that set it.
    package init(
        threads: Int = sysconf(Int32(_SC_NPROCESSORS_ONLN)), clock: (@Sendable () -> Timestamp)? = nil
    ) {
        self.clock = clock ?? { SystemWorld.time(CLOCK_REALTIME) }
        let width = max(1, threads)
        lanes = LanePool(threads: width)
        bodies = BlockingPool(name: "body", width: width, threadsMax: 64, shareMax: 16)
        reads = BlockingPool(name: "read", width: width, threadsMax: 4, shareMax: 4)
        timers.start()
    }

    package var now: Timestamp { clock() }

    /// The time of one of the system's clocks.
    package static func time(_ clock: Int32) -> Timestamp {
        var now = timespec()
        clock_gettime(clock, &now)
        return Timestamp(milliseconds: Int64(now.tv_sec) * 1_000 + Int64(now.tv_nsec) / 1_000_000)
    }

    package func random() -> UInt64 { UInt64.random(in: .min ... .max) }

    package func perform(lane: UInt64, _ work: @escaping @Sendable () -> Void) { lanes.perform(lane: lane, work) }

    package func perform(blocking use: BlockingUse, for owner: UInt64, _ work: @escaping @Sendable () -> Void) {
        switch use {
        case .body: bodies.perform(for: owner, work)
        case .read: reads.perform(for: owner, work)
        }
    }

    @discardableResult
    package func schedule(at instant: Timestamp, _ work: @escaping @Sendable () -> Void) -> any Scheduled {
        timers.schedule(at: instant, work, clock: self)
    }
}

private final class Timers: Sendable {
    private struct State {
        var waiting = TimerQueue()
        var clock: SystemWorld?
        var isChanged = false
        /// How far the wall clock is ahead of the monotonic one, in milliseconds.
        var lead: Int64?

        /// When the wall clock has been set back, what waits is due as soon as it would have been, or a pause of a moment would last for hours. Code
        /// that waits for an instant of the wall clock checks it again.
        ///
        /// Set forward it makes due what it passes.
        mutating func followClock(_ now: Timestamp, between before: Timestamp, and after: Timestamp) {
            // Interrupted in between, the two clocks say nothing about one another.
            guard after.milliseconds - before.milliseconds < Timers.stepMilliseconds / 4 else { return }
            let lead = now.milliseconds - before.milliseconds
            guard let known = self.lead else { return self.lead = lead }
            if lead > known { self.lead = lead }
            guard lead < known - Timers.stepMilliseconds else { return }
            self.lead = lead
            waiting.shift(by: .milliseconds(lead - known))
        }
    }

    private let state = Monitor(State())

    /// The wall clock may be set; a wait is looked at again after this long at the latest.
    private static let recheck = Duration.seconds(1)
    /// Less is no step.
    fileprivate static let stepMilliseconds: Int64 = 1_000

    func start() {
        let state = state
        _ = SystemThread(name: "timers") {
            while true {
                let (due, pause) = state.withLock { Timers.takeDue(&$0) }
                for timer in due { timer.fire() }
                if due.isEmpty { _ = state.wait(timeout: pause) { $0.isChanged ? true : nil } }
            }
        }
    }

    /// Takes the timers that are due, or says how long none will be; `nil`: until something is scheduled.
    private static func takeDue(_ state: inout State) -> (due: [Timer], pause: Duration?) {
        state.isChanged = false
        guard !state.waiting.isEmpty, let now = now(&state) else { return ([], nil) }
        var due: [Timer] = []
        while let next = state.waiting.nextInstant, next <= now { due.append(state.waiting.removeFirst()) }
        guard due.isEmpty, let next = state.waiting.nextInstant else { return (due, nil) }
        return ([], min(now.duration(to: next), recheck))
    }

    /// The wall clock's time, once the waiting timers follow it.
    private static func now(_ state: inout State) -> Timestamp? {
        let before = SystemWorld.time(CLOCK_MONOTONIC)
        guard let now = state.clock?.now else { return nil }
        state.followClock(now, between: before, and: SystemWorld.time(CLOCK_MONOTONIC))
        return now
    }

    func schedule(at instant: Timestamp, _ work: @escaping @Sendable () -> Void, clock: SystemWorld) -> any Scheduled {
        let timer = Timer(work)
        state.withLock(signal: true) { state in
            state.clock = clock
            state.isChanged = true
            // Before it is in: it was made after the step.
            _ = Timers.now(&state)
            state.waiting.insert(timer, at: instant)
        }
        return timer
    }
}

/// The timers that wait, the one due first in front; of those due at one instant, the one that came first.
///
/// A binary heap: every agent in memory has a timer for its passivation. In a sorted array those took a tenth of the time in which 60,000 agents were
/// made, and more with every agent.
private struct TimerQueue {
    private var heap: [(timer: Timer, instant: Timestamp, number: UInt64)] = []
    private var count: UInt64 = 0

    var isEmpty: Bool { heap.isEmpty }
    var nextInstant: Timestamp? { heap.first?.instant }

    /// Moves all by as much; their order stays.
    mutating func shift(by duration: Duration) {
        for place in heap.indices { heap[place].instant = heap[place].instant.advanced(by: duration) }
    }

    mutating func insert(_ timer: Timer, at instant: Timestamp) {
        count += 1
        heap.append((timer, instant, count))
        var place = heap.count - 1
        while place > 0, isBefore(place, (place - 1) / 2) {
            heap.swapAt(place, (place - 1) / 2)
            place = (place - 1) / 2
        }
    }

    mutating func removeFirst() -> Timer {
        heap.swapAt(0, heap.count - 1)
        let timer = heap.removeLast().timer
        var place = 0
        while true {
            var least = place
            for child in [2 * place + 1, 2 * place + 2] where child < heap.count && isBefore(child, least) { least = child }
            if least == place { return timer }
            heap.swapAt(place, least)
            place = least
        }
    }

    private func isBefore(_ a: Int, _ b: Int) -> Bool {
        (heap[a].instant, heap[a].number) < (heap[b].instant, heap[b].number)
    }
}

private final class Timer: Scheduled {
    private let work: Mutex<(@Sendable () -> Void)?>

    init(_ work: @escaping @Sendable () -> Void) {
        self.work = Mutex(work)
    }

    func cancel() { _ = take() }

    func fire() { take()?() }

    private func take() -> (@Sendable () -> Void)? {
        work.withLock { work in
            defer { work = nil }
            return work
        }
    }
}
