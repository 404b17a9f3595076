// Which C module `timespec` belongs to depends on which the compiler loads first, so both are named.
internal import CUV
internal import Glibc
internal import Synchronization

/// The world a server runs in: the system's clock and randomness, worker threads, one thread for timers.
package final class SystemWorld: World {
    private let workers: [Worker]
    private let timers = Timers()

    /// - Parameter threads: How many threads run what is given to ``perform(lane:_:)``; by default one a core.
    package init(threads: Int = sysconf(Int32(_SC_NPROCESSORS_ONLN))) {
        workers = (0..<max(1, threads)).map { Worker(name: "worker-\($0)") }
        timers.start()
    }

    package var now: Timestamp {
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        return Timestamp(milliseconds: Int64(now.tv_sec) * 1_000 + Int64(now.tv_nsec) / 1_000_000)
    }

    package func random() -> UInt64 { UInt64.random(in: .min ... .max) }

    package func perform(lane: UInt64, _ work: @escaping @Sendable () -> Void) {
        workers[Int(lane % UInt64(workers.count))].perform(work)
    }

    @discardableResult
    package func schedule(at instant: Timestamp, _ work: @escaping @Sendable () -> Void) -> any Scheduled {
        timers.schedule(at: instant, work, clock: self)
    }
}

/// A thread that runs pieces of work in the order given. A lane always meets the same one, which is what keeps it serial.
private final class Worker: Sendable {
    private let queue = Monitor<[@Sendable () -> Void]>([])

    init(name: String) {
        let queue = queue
        _ = SystemThread(name: name) {
            while true {
                let batch = queue.wait { queue in
                    if queue.isEmpty { return nil as [@Sendable () -> Void]? }
                    defer { queue.removeAll(keepingCapacity: true) }
                    return queue
                }!
                for work in batch { work() }
            }
        }
    }

    func perform(_ work: @escaping @Sendable () -> Void) { queue.withLock(signal: true) { $0.append(work) } }
}

private final class Timers: Sendable {
    private struct State {
        var waiting = TimerQueue()
        var clock: SystemWorld?
        var isChanged = false
    }

    private let state = Monitor(State())

    /// The wall clock may be set; a wait is looked at again after this long at the latest.
    private static let recheck = Duration.seconds(1)

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

    /// What is due, or how long nothing will be; `nil`: until something is scheduled.
    private static func takeDue(_ state: inout State) -> (due: [Timer], pause: Duration?) {
        state.isChanged = false
        guard let next = state.waiting.first, let now = state.clock?.now else { return ([], nil) }
        guard next.instant <= now else { return ([], min(now.duration(to: next.instant), recheck)) }
        var due: [Timer] = []
        while let next = state.waiting.first, next.instant <= now { due.append(state.waiting.removeFirst()) }
        return (due, nil)
    }

    func schedule(at instant: Timestamp, _ work: @escaping @Sendable () -> Void, clock: SystemWorld) -> any Scheduled {
        let timer = Timer(instant: instant, work)
        state.withLock(signal: true) { state in
            state.clock = clock
            state.isChanged = true
            state.waiting.insert(timer)
        }
        return timer
    }
}

/// What waits for its time, the one due first in front; of those due at one instant, the one that came first.
///
/// A binary heap: every agent in memory has a timer that looks whether it may leave. In a sorted array those took a tenth of the time in which
/// 60,000 agents were made, and more with every agent.
private struct TimerQueue {
    private var heap: [(timer: Timer, number: UInt64)] = []
    private var count: UInt64 = 0

    var first: Timer? { heap.first?.timer }

    mutating func insert(_ timer: Timer) {
        count += 1
        heap.append((timer, count))
        var place = heap.count - 1
        while place > 0, isBefore(place, (place - 1) / 2) {
            heap.swapAt(place, (place - 1) / 2)
            place = (place - 1) / 2
        }
    }

    mutating func removeFirst() -> Timer {
        heap.swapAt(0, heap.count - 1)
        let (timer, _) = heap.removeLast()
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
        (heap[a].timer.instant, heap[a].number) < (heap[b].timer.instant, heap[b].number)
    }
}

private final class Timer: Scheduled {
    let instant: Timestamp
    private let work: Mutex<(@Sendable () -> Void)?>

    init(instant: Timestamp, _ work: @escaping @Sendable () -> Void) {
        self.instant = instant
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
