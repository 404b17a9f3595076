package import ParleySystem
internal import Synchronization

/// A world on one thread: time stands still until nothing is left to do and then jumps, and a seed decides every order.
///
/// The same seed gives the same run, to the last entry. Call ``run(until:)`` from a thread of its own (see ``SimulatedNode``): everything the
/// simulated code does happens in there.
package final class SimulatedWorld: World {
    private struct State {
        var now: Timestamp
        var random: SplitMix64
        /// Work by lane; in an order that follows from the seed, so that a choice by number is the same in every run.
        var lanes: [HeldLane] = []
        /// The index of each lane: there may be thousands.
        var places: [UInt64: Int] = [:]
        var timers: [SimulatedTimer] = []
        var pumps: [@Sendable () -> Bool] = []
        /// How many pieces of work were given that may block.
        var blocking: UInt64 = 0
    }

    private struct HeldLane {
        var id: UInt64
        var work: [@Sendable () -> Void]
        /// When its thread gets to it.
        var from: Timestamp
    }

    private let state: Mutex<State>
    package let seed: UInt64
    /// How promptly threads and timers run.
    package let schedule: SimulatedSchedule

    package init(
        seed: UInt64, now: Timestamp = Timestamp(milliseconds: 1_767_225_600_000), schedule: SimulatedSchedule = SimulatedSchedule()
    ) {
        self.seed = seed
        self.schedule = schedule
        state = Mutex(State(now: now, random: SplitMix64(seed: seed)))
    }

    // MARK: World

    package var now: Timestamp { state.withLock { $0.now } }

    package func random() -> UInt64 { state.withLock { $0.random.next() } }

    package func perform(lane: UInt64, _ work: @escaping @Sendable () -> Void) {
        state.withLock { state in
            if let index = state.places[lane] {
                state.lanes[index].work.append(work)
            } else {
                state.places[lane] = state.lanes.count
                let held = schedule.hold(&state.random)
                state.lanes.append(HeldLane(id: lane, work: [work], from: held.map { state.now.advanced(by: $0) } ?? .distantPast))
            }
        }
    }

    /// Each piece has a lane of its own: many are in flight at a time, and the seed decides which continues.
    package func perform(blocking use: BlockingUse, for owner: UInt64, _ work: @escaping @Sendable () -> Void) {
        let number = state.withLock { state in
            state.blocking += 1
            return state.blocking
        }
        perform(lane: 1 << 63 | number, work)
    }

    @discardableResult
    package func schedule(at instant: Timestamp, _ work: @escaping @Sendable () -> Void) -> any Scheduled {
        let timer = SimulatedTimer(instant: instant, work)
        state.withLock { state in
            // Behind all that are due no later.
            var (low, high) = (0, state.timers.count)
            while low < high {
                let middle = (low + high) / 2
                if state.timers[middle].instant > instant { high = middle } else { low = middle + 1 }
            }
            state.timers.insert(timer, at: low)
        }
        return timer
    }

    // MARK: Driving it

    /// Adds something that has its own queue, e.g. the writer: called when it is its turn, it says whether it had anything to do.
    package func drive(_ pump: @escaping @Sendable () -> Bool) { state.withLock { $0.pumps.append(pump) } }

    /// Sets the clock, forwards or back; nothing that waits notices until it looks.
    package func step(clock: Duration) { state.withLock { $0.now = Timestamp(milliseconds: $0.now.milliseconds).advanced(by: clock) } }

    /// Does one thing after another, and jumps to the next timer when there is nothing to do, until `isDone` or nothing can happen any more.
    ///
    /// - Parameter deadline: Time does not pass it.
    /// - Returns: whether `isDone` was met.
    @discardableResult
    package func run(deadline: Timestamp = Timestamp(milliseconds: .max), until isDone: () -> Bool = { false }) -> Bool {
        while !isDone() {
            if !doSomething() && !jump(deadline) { return isDone() }
        }
        return true
    }

    /// Drops all remaining work, so that its owners can be freed.
    package func end() {
        let dropped = state.withLock { state in
            defer { (state.lanes, state.places, state.timers, state.pumps) = ([], [:], [], []) }
            return (state.lanes, state.timers, state.pumps)
        }
        withExtendedLifetime(dropped) {}  // Freed outside the lock: a freed object may cancel a timer.
    }

    /// Does everything that can be done without time passing.
    package func settle() { while doSomething() {} }

    /// Does one thing, without time passing.
    /// - Returns: whether there was anything to do.
    @discardableResult
    package func doOne() -> Bool { doSomething() }

    /// Does up to `count` things that other threads do while the writer is busy; its own queue, and that of every other pump, waits.
    package func meanwhile(_ count: Int) {
        for _ in 0..<count {
            guard let work = takeWork() else { return }
            work()
        }
    }

    private func doSomething() -> Bool {
        // A pump with nothing to do costs a call; a random start keeps the writer and the lanes from alternating the same way in every run.
        let (pumps, first) = state.withLock { ($0.pumps, Int($0.random.next() % UInt64($0.pumps.count + 1))) }
        if first < pumps.count, pumps[first]() { return true }
        if let work = takeWork() {
            work()
            return true
        }
        return pumps.contains { $0() }
    }

    private func takeWork() -> (@Sendable () -> Void)? {
        state.withLock { state in
            guard let index = chooseLane(&state) else { return nil }
            let work = state.lanes[index].work.removeFirst()
            if state.lanes[index].work.isEmpty {
                state.places[state.lanes[index].id] = nil
                let last = state.lanes.removeLast()
                if index < state.lanes.count {
                    state.lanes[index] = last
                    state.places[last.id] = index
                }
            }
            return work
        }
    }

    private func chooseLane(_ state: inout State) -> Int? {
        guard schedule.holds else { return state.lanes.isEmpty ? nil : Int(state.random.next() % UInt64(state.lanes.count)) }
        let now = state.now
        let free = state.lanes.indices.filter { state.lanes[$0].from <= now }
        return free.isEmpty ? nil : free[Int(state.random.next() % UInt64(free.count))]
    }

    private func jump(_ deadline: Timestamp) -> Bool {
        let due: [SimulatedTimer]? = state.withLock { state in
            while let next = state.timers.first, next.isCancelled { state.timers.removeFirst() }
            guard let instant = nextInstant(state), instant <= deadline else {
                if deadline.milliseconds != .max { state.now = max(state.now, deadline) }
                return nil
            }
            state.now = max(state.now, instant)
            let now = state.now
            // A lane may be due alone.
            guard schedule.firesTogether else {
                return state.timers.first.map { $0.instant <= now } == true ? [state.timers.removeFirst()] : []
            }
            let due = state.timers.prefix { $0.instant <= now }
            state.timers.removeFirst(due.count)
            return due.shuffled(using: &state.random)
        }
        for timer in due ?? [] { timer.fire() }
        return due != nil
    }

    /// When the next timer is due, or a lane that is held gets its thread.
    private func nextInstant(_ state: State) -> Timestamp? {
        let released = schedule.holds ? state.lanes.lazy.map(\.from).filter { $0 > state.now }.min() : nil
        guard let timer = state.timers.first?.instant else { return released }
        return released.map { min($0, timer) } ?? timer
    }
}

/// How promptly the threads of a simulated world run.
package struct SimulatedSchedule: Sendable {
    /// One lane in so many is held when it gets something to do, as by a machine that is busy; 0: none.
    package var heldOneIn: UInt64 = 0
    /// How long at most, in milliseconds: for a moment mostly.
    package var heldLongest: UInt64 = 0
    /// Whether all timers of an instant fire, in any order, before anything that they cause happens; else one by one.
    package var firesTogether = false

    package init() {}

    var holds: Bool { heldOneIn > 0 }

    func hold(_ random: inout SplitMix64) -> Duration? {
        guard holds, random.next() % heldOneIn == 0 else { return nil }
        return .milliseconds(Int64(1 + random.next() % (random.next() % 8 == 0 ? heldLongest : 12)))
    }
}

extension Timestamp {
    fileprivate static var distantPast: Timestamp { Timestamp(milliseconds: .min) }
}

private final class SimulatedTimer: Scheduled {
    let instant: Timestamp
    private let work: Mutex<(@Sendable () -> Void)?>

    init(instant: Timestamp, _ work: @escaping @Sendable () -> Void) {
        self.instant = instant
        self.work = Mutex(work)
    }

    var isCancelled: Bool { work.withLock { $0 == nil } }
    func cancel() { work.withLock { $0 = nil } }

    func fire() {
        let work = work.withLock { work in
            defer { work = nil }
            return work
        }
        work?()
    }
}
