package import CUV
internal import Glibc
internal import Synchronization

/// A libuv loop on a thread of its own.
///
/// `execute(_:)`, `isCurrent` and `stop()` may be called from any thread; everything else belongs to the loop's thread.
/// One turn of the loop is a *tick*: the callbacks of all descriptors that are ready, then the work of `atEndOfTick(_:)`, then what there is to
/// do at the end of all work (`EndOfWork`).
package final class EventLoop: @unchecked Sendable {  // Guard: `inbox` and `thread` have a mutex; the rest is the loop thread's.
    /// The libuv loop, for the types that put their own handles on it. Only to be used on the loop's thread.
    package let uv: UnsafeMutablePointer<uv_loop_t>
    /// The thread's name, 15 bytes at most.
    package let name: String

    private struct Inbox {
        var work: [@Sendable () -> Void] = []
        /// A wake is in flight that nobody has answered yet, so another one is not needed.
        var isWoken = false
        var isStopped = false
    }

    // A pthread mutex, which the thread sanitizer understands; it does not see through `Synchronization.Mutex`.
    private let inbox = Monitor(Inbox())
    private let threadID = Atomic<UInt64>(0)
    private let thread = Monitor<SystemThread?>(nil)

    private let wake = UnsafeMutablePointer<uv_async_t>.allocate(capacity: 1)
    private let prepare = UnsafeMutablePointer<uv_prepare_t>.allocate(capacity: 1)
    private let check = UnsafeMutablePointer<uv_check_t>.allocate(capacity: 1)
    private let alarm = UnsafeMutablePointer<uv_timer_t>.allocate(capacity: 1)

    private var running: [@Sendable () -> Void] = []
    private var endOfTickWork: [() -> Void] = []
    private var stopWork: [() -> Void] = []
    /// `nil` until the thread runs.
    private var endOfWork: EndOfWork?
    private var timers = TimerHeap()

    /// Prepares a loop; nothing runs before `start()`.
    package init(name: String) {
        self.name = name
        uv = .allocate(capacity: 1)
        // A peer that went away must be an error of one write, not the end of the process; libuv does not ask for MSG_NOSIGNAL.
        signal(SIGPIPE, SIG_IGN)
        precondition(uv_loop_init(uv) == 0, "uv_loop_init failed")
        uv_async_init(uv, wake) { EventLoop.of($0!.pointee.data).answerWake() }
        uv_prepare_init(uv, prepare)
        uv_check_init(uv, check)
        uv_timer_init(uv, alarm)
        let context = Unmanaged.passUnretained(self).toOpaque()  // The thread keeps the loop alive until its handles are closed.
        wake.pointee.data = context
        prepare.pointee.data = context
        check.pointee.data = context
        alarm.pointee.data = context
        // Both sides of the poll: timers run before it, descriptors after it.
        uv_prepare_start(prepare) { EventLoop.of($0!.pointee.data).endTick(beforePoll: true) }
        uv_check_start(check) { EventLoop.of($0!.pointee.data).endTick(beforePoll: false) }
    }

    /// Starts the loop's thread. Call it once.
    package func start() {
        thread.withLock { thread in
            precondition(thread == nil, "loop '\(name)' is started twice")
            thread = SystemThread(name: name) { self.run() }
        }
    }

    /// Runs the work of `atStop(_:)`, closes every handle and waits for the thread to end. Work that comes later is dropped.
    ///
    /// Idempotent; not to be called on the loop itself.
    package func stop() {
        precondition(!isCurrent, "loop '\(name)' cannot wait for itself")
        guard let thread = thread.withLock({ $0.take() }) else { return }
        execute { uv_stop(self.uv) }
        thread.join()
    }

    private static func of(_ context: UnsafeMutableRawPointer?) -> EventLoop {
        Unmanaged<EventLoop>.fromOpaque(context!).takeUnretainedValue()
    }
}

extension EventLoop {
    /// Whether the caller runs on this loop's thread.
    package var isCurrent: Bool { threadID.load(ordering: .relaxed) == SystemThread.current }

    /// Traps unless the caller runs on this loop's thread.
    package func assertOnLoop() { precondition(isCurrent, "called off loop '\(name)'") }

    /// Monotonic time, read once per tick, in whole milliseconds.
    package var now: Duration { .milliseconds(nowMilliseconds) }

    /// The same as a number, for what is compared often.
    package var nowMilliseconds: Int64 { Int64(uv_now(uv)) }

    /// Monotonic time in nanoseconds, read at each call: for measuring within a tick.
    package var preciseNanoseconds: Int64 { Int64(uv_hrtime()) }

    /// Runs `work` on the loop, in the order given by each thread. Thread-safe; never runs inside this call.
    ///
    /// Waking the loop costs one system call per tick, however much work comes in.
    /// - Returns: `false` if the loop has stopped; then the work is dropped.
    @discardableResult
    package func execute(_ work: @escaping @Sendable () -> Void) -> Bool {
        inbox.withLock { inbox in
            if inbox.isStopped { return false }
            inbox.work.append(work)
            // On the loop the end of this tick finds the work without a wake.
            if inbox.isWoken || isCurrent { return true }
            inbox.isWoken = true
            // Sent under the lock: once `isStopped` is set under it, the handle may be gone.
            uv_async_send(wake)
            return true
        }
    }

    /// Runs `work` once this tick's callbacks are through: the place for flushing, and for freeing what a callback still stands on.
    ///
    /// Work added by such work runs in the next round, so that one busy connection cannot keep the others waiting.
    package func atEndOfTick(_ work: @escaping () -> Void) {
        assertOnLoop()
        endOfTickWork.append(work)
    }

    /// Runs `work` when the loop stops, before its handles are closed. Last added, first run.
    package func atStop(_ work: @escaping () -> Void) {
        assertOnLoop()
        stopWork.append(work)
    }

    /// Runs `work` on the loop after `delay`, never earlier, and then every `interval`, if there is one.
    @discardableResult
    package func schedule(after delay: Duration, every interval: Duration? = nil, _ work: @escaping () -> Void) -> LoopTimer {
        assertOnLoop()
        let timer = LoopTimer(loop: self, interval: interval, work)
        timer.reschedule(after: delay)
        return timer
    }

    func arm(_ timer: LoopTimer, after delay: Duration) {
        timers.remove(timer)
        timer.deadline = EventLoop.nanoseconds(delay, from: Int64(uv_hrtime()))
        timers.insert(timer)
        setAlarm()
    }

    func disarm(_ timer: LoopTimer) {
        timers.remove(timer)  // The alarm may ring for nothing; that is cheaper than setting it anew.
    }
}

extension EventLoop {
    private func run() {
        threadID.store(SystemThread.current, ordering: .relaxed)
        endOfWork = EndOfWork.begin()
        uv_run(uv, UV_RUN_DEFAULT)
        while let work = stopWork.popLast() { work() }
        let rest = inbox.withLock { inbox in
            inbox.isStopped = true
            return inbox.work.count
        }
        if rest > 0 { runInbox() }
        while !endOfTickWork.isEmpty || endOfWork?.perform() == true { runEndOfTickWork() }
        closeHandles()
        threadID.store(0, ordering: .relaxed)
    }

    private func closeHandles() {
        uv_walk(uv, { handle, _ in if uv_is_closing(handle) == 0 { uv_close(handle, nil) } }, nil)
        uv_run(uv, UV_RUN_DEFAULT)
        let status = uv_loop_close(uv)
        precondition(status == 0, "loop '\(name)' closes with handles open: \(status)")
        wake.deallocate()
        prepare.deallocate()
        check.deallocate()
        alarm.deallocate()
        uv.deallocate()
        timers = TimerHeap()
    }

    private func answerWake() {
        inbox.withLock { $0.isWoken = false }
        runInbox()
    }

    /// Runs what is in the inbox now; what this work adds waits for the next round.
    private func runInbox() {
        inbox.withLock { swap(&$0.work, &running) }
        for work in running { work() }
        running.removeAll(keepingCapacity: true)
    }

    private func endTick(beforePoll: Bool) {
        runInbox()
        runEndOfTickWork()
        if endOfWork?.perform() == true {
            // What was committed is answered before the loop sleeps.
            runInbox()
            runEndOfTickWork()
        }
        guard beforePoll else { return }
        // What is left must not wait for a descriptor to become ready.
        let hasMore = inbox.withLock { inbox in
            if endOfTickWork.isEmpty && (inbox.work.isEmpty || inbox.isWoken) { return false }
            inbox.isWoken = true
            return true
        }
        if hasMore { uv_async_send(wake) }
    }

    private func runEndOfTickWork() {
        guard !endOfTickWork.isEmpty else { return }
        let work = endOfTickWork
        endOfTickWork = []
        for piece in work { piece() }
    }

    private func setAlarm() {
        guard let first = timers.first else { return }
        let wait = max(0, first.deadline - Int64(uv_now(uv)) * 1_000_000)
        uv_timer_start(alarm, { EventLoop.of($0!.pointee.data).fireTimers() }, UInt64((wait + 999_999) / 1_000_000), 0)
    }

    private func fireTimers() {
        let now = Int64(uv_hrtime())
        while let timer = timers.first, timer.deadline <= now {
            timers.remove(timer)
            if let interval = timer.interval {
                timer.deadline = EventLoop.nanoseconds(max(interval, .milliseconds(1)), from: now)
                timers.insert(timer)
            }
            timer.work()
        }
        setAlarm()
    }

    private static func nanoseconds(_ delay: Duration, from start: Int64) -> Int64 {
        let (seconds, attoseconds) = max(delay, .zero).components
        // A century is as good as never, and leaves room in 64 bits.
        return start + min(seconds, 3_000_000_000) * 1_000_000_000 + attoseconds / 1_000_000_000
    }
}
