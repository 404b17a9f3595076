internal import CUV
internal import Glibc

/// Hears signals sent to the process, SIGTERM and SIGINT unless told otherwise, until the loop stops or it is cancelled.
///
/// While it listens, the signals do not end the process.
package final class SignalWatcher: @unchecked Sendable {  // Guard: used on the loop's thread only.
    private let loop: EventLoop
    private let received: @Sendable (Int32) -> Void
    private let isListening = Monitor(false)
    private var handles: [UnsafeMutablePointer<uv_signal_t>] = []

    /// Starts listening. Thread-safe; `received` is called on the loop with the signal's number.
    package init(_ loop: EventLoop, signals: [Int32] = [SIGTERM, SIGINT], _ received: @escaping @Sendable (Int32) -> Void) {
        self.loop = loop
        self.received = received
        loop.execute { self.listen(to: signals) }
    }

    /// Returns once a signal would be heard; until then it ends the process. Not on the loop, which must run.
    package func waitUntilListening() { _ = isListening.wait { $0 ? true : nil } }

    /// Stops listening; the signals do what they did before. Thread-safe, idempotent.
    package func cancel() { loop.execute { self.close() } }

    private func listen(to signals: [Int32]) {
        for number in signals {
            let handle = UnsafeMutablePointer<uv_signal_t>.allocate(capacity: 1)
            uv_signal_init(loop.uv, handle)
            handle.pointee.data = Unmanaged.passRetained(self).toOpaque()  // Released by the close callback.
            uv_signal_start(
                handle,
                { handle, number in
                    Unmanaged<SignalWatcher>.fromOpaque(handle!.pointee.data).takeUnretainedValue().received(number)
                }, number)
            handles.append(handle)
        }
        loop.atStop { [weak self] in self?.close() }
        isListening.withLock(signalAll: true) { $0 = true }
    }

    private func close() {
        for handle in handles {
            uv_close(UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_handle_t.self)) { handle in
                Unmanaged<SignalWatcher>.fromOpaque(handle!.pointee.data).release()
                UnsafeMutableRawPointer(handle!).assumingMemoryBound(to: uv_signal_t.self).deallocate()
            }
        }
        handles = []
    }
}
