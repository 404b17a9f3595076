internal import CUV
internal import Glibc

/// A thread of the operating system's, for work that blocks or that owns an event loop.
package struct SystemThread: @unchecked Sendable {  // Guard: the handle is written once, before any other thread can see it.
    private let handle: pthread_t

    /// Starts a thread that runs `body` once. The name (15 bytes at most) shows in `top -H` and in debuggers.
    package init(name: String, _ body: @escaping @Sendable () -> Void) {
        let (thread, status) = SystemThread.create(name, body)
        precondition(status == 0, "pthread_create failed with \(status)")
        handle = thread
    }

    /// Starts a detached thread, which is never joined.
    /// - Returns: whether the system has given one.
    package static func startDetached(name: String, _ body: @escaping @Sendable () -> Void) -> Bool {
        let (thread, status) = create(name, body)
        if status == 0 { pthread_detach(thread) }
        return status == 0
    }

    private static func create(_ name: String, _ body: @escaping @Sendable () -> Void) -> (thread: pthread_t, status: Int32) {
        let context = Unmanaged.passRetained(Body(name: name, body))  // Released once, by the thread itself.
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { raw in
                let body = Unmanaged<Body>.fromOpaque(raw!).takeRetainedValue()
                parley_name_this_thread(String(body.name.prefix(15)))
                body.run()
                return nil
            }, context.toOpaque())
        if status != 0 { context.release() }
        return (thread, status)
    }

    /// Waits for the thread to end. Call it once at most.
    package func join() { pthread_join(handle, nil) }

    /// The calling thread, as a number that is its own while it lives.
    package static var current: UInt64 { UInt64(pthread_self()) }

    private final class Body: Sendable {
        let name: String
        let run: @Sendable () -> Void

        init(name: String, _ run: @escaping @Sendable () -> Void) {
            self.name = name
            self.run = run
        }
    }
}

/// A mutex with a condition variable around one value: for threads that wait for work.
package final class Monitor<State>: @unchecked Sendable {  // Guard: `state` is touched under `mutex` only.
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var state: State

    package init(_ state: sending State) {
        self.state = state
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// Runs `body` under the lock; `signal` wakes one waiting thread, `signalAll` all of them.
    package func withLock<Result>(signal: Bool = false, signalAll: Bool = false, _ body: (inout State) throws -> Result) rethrows -> Result
    {
        pthread_mutex_lock(mutex)
        defer {
            // The woken thread finds the lock free.
            pthread_mutex_unlock(mutex)
            if signalAll { pthread_cond_broadcast(condition) } else if signal { pthread_cond_signal(condition) }
        }
        return try body(&state)
    }

    /// Wakes one waiting thread.
    package func signal() { pthread_cond_signal(condition) }

    /// Waits until `body` gives a value. With a `timeout`, gives up after it and returns `nil`.
    package func wait<Result>(timeout: Duration? = nil, _ body: (inout State) -> Result?) -> Result? {
        var deadline = timespec()
        if let timeout {
            clock_gettime(CLOCK_MONOTONIC, &deadline)
            // A year is as good as for ever, and no clock overflows by adding it.
            let total =
                Duration(secondsComponent: Int64(deadline.tv_sec), attosecondsComponent: Int64(deadline.tv_nsec) * 1_000_000_000)
                + min(max(timeout, .zero), .seconds(366 * 86_400))
            deadline = timespec(tv_sec: Int(total.components.seconds), tv_nsec: Int(total.components.attoseconds / 1_000_000_000))
        }
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while true {
            if let result = body(&state) { return result }
            if timeout == nil {
                pthread_cond_wait(condition, mutex)
            } else if pthread_cond_timedwait(condition, mutex, &deadline) == ETIMEDOUT {
                return body(&state)
            }
        }
    }
}
