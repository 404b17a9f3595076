package import ParleySystem
internal import Synchronization

/// The serial executor of one agent: everything its turns do, children included, runs here one job at a time, first in, first out.
///
/// Input from outside (a step's result, a timer, new input) is a *delivery*. A delivery is taken only when no job is left, so the code always sees
/// results one by one, in the order they have in the log. That is what makes a replay take the same path as the first run.
package final class Lane: TaskExecutor, @unchecked Sendable {
    // Guard: `queue` is locked, `thread` is atomic, `parts` and `jobs` are used on the lane only.

    private struct Queue {
        var jobs: [UnownedJob] = []
        var deliveries = Fifo<@Sendable () -> Void>()
        var isScheduled = false
    }

    private let id: UInt64
    private let world: any World
    private let queue = Mutex(Queue())
    private let thread = Atomic<UInt64>(0)
    /// The rest of the delivery in flight.
    private var parts: [@Sendable () -> Void] = []
    /// The jobs that run now: it takes turns with the queue's array, so that neither is allocated again.
    private var jobs: [UnownedJob] = []

    package init(id: UInt64, world: any World) {
        self.id = id
        self.world = world
    }

    /// Whether the caller runs on this lane.
    package var isCurrent: Bool { thread.load(ordering: .relaxed) == SystemThread.current }

    package func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        schedule { $0.jobs.append(job) }
    }

    /// Runs `work` on the lane when everything that can run now has run, after the deliveries before it. Thread-safe.
    package func deliver(_ work: @escaping @Sendable () -> Void) { schedule { $0.deliveries.append(work) } }

    /// Runs the rest of the delivery in flight, in parts with everything that can run in between, before the next delivery: the results of one commit
    /// reach the program before those of the next one.
    package func deliver(parts rest: [@Sendable () -> Void]) {
        precondition(isCurrent, "only a delivery has parts")
        parts = rest + parts
    }

    /// Delivers `work` as ``deliver(_:)`` does, some time later.
    package func deliver(after pause: Duration, _ work: @escaping @Sendable () -> Void) {
        world.schedule(at: world.now.advanced(by: pause)) { self.deliver(work) }
    }

    /// Whether something waits to be delivered.
    package var hasDeliveries: Bool { queue.withLock { !$0.deliveries.isEmpty } }

    private func schedule(_ add: (inout Queue) -> Void) {
        let wakes = queue.withLock { queue in
            add(&queue)
            defer { queue.isScheduled = true }
            return !queue.isScheduled
        }
        if wakes { world.perform(lane: id) { self.run() } }
    }

    /// After so many pieces of work other lanes have their turn.
    private static let quantum = 512

    private func run() {
        thread.store(SystemThread.current, ordering: .relaxed)
        defer { thread.store(0, ordering: .relaxed) }
        var left = Lane.quantum
        while left > 0 {
            queue.withLock { swap(&$0.jobs, &jobs) }
            for job in jobs { job.runSynchronously(on: asUnownedTaskExecutor()) }
            left -= max(1, jobs.count)
            guard jobs.isEmpty else {
                jobs.removeAll(keepingCapacity: jobs.count <= Lane.quantum)
                continue
            }
            if parts.isEmpty {
                guard let delivery = takeDeliveryOrRest() else { return }
                delivery()
            } else {
                parts.removeFirst()()
            }
        }
        world.perform(lane: id) { self.run() }
    }

    /// Takes the next delivery; when there is none and no job has come meanwhile, the lane rests until it is scheduled again.
    private func takeDeliveryOrRest() -> (@Sendable () -> Void)? {
        queue.withLock { queue in
            if let delivery = queue.deliveries.popFirst() { return delivery }
            guard queue.jobs.isEmpty else { return {} }
            queue.isScheduled = false
            return nil
        }
    }
}

/// Runs the bodies of an agent's steps: beside the turns, many at a time, on threads that they may block.
final class StepExecutor: TaskExecutor {
    private let world: any World
    private let owner: UInt64

    /// - Parameter owner: The agent's number: its bodies have their share of the threads.
    init(world: any World, owner: UInt64) { (self.world, self.owner) = (world, owner) }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        world.perform(blocking: .body, for: owner) { job.runSynchronously(on: self.asUnownedTaskExecutor()) }
    }
}
