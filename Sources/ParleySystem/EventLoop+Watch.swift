internal import CUV

/// Watches the readiness of a descriptor that is owned elsewhere. Belongs to the loop's thread.
package final class DescriptorWatch: @unchecked Sendable {  // Guard: used on the loop's thread only.
    /// The operations a descriptor is ready for, or that are waited for.
    package struct Readiness: OptionSet, Sendable {
        package let rawValue: Int32
        package init(rawValue: Int32) { self.rawValue = rawValue }
        package static let readable = Readiness(rawValue: 1)
        package static let writable = Readiness(rawValue: 2)
        /// Reported, never asked for: the descriptor is broken.
        package static let failed = Readiness(rawValue: 4)
    }

    private let loop: EventLoop
    private let poll: UnsafeMutablePointer<uv_poll_t>
    private let ready: (Readiness) -> Void
    private var isCancelled = false

    /// Watches `descriptor`, which becomes non-blocking; `nil` if the kernel cannot watch it. Waits for nothing before `wait(for:)`.
    package init?(_ loop: EventLoop, descriptor: Int32, _ ready: @escaping (Readiness) -> Void) {
        loop.assertOnLoop()
        self.loop = loop
        self.ready = ready
        poll = .allocate(capacity: 1)
        guard uv_poll_init(loop.uv, poll, descriptor) == 0 else {
            poll.deallocate()
            return nil
        }
        poll.pointee.data = Unmanaged.passRetained(self).toOpaque()  // Released by the close callback.
    }

    /// Sets what is waited for, until it is set again.
    package func wait(for readiness: Readiness) {
        loop.assertOnLoop()
        guard !isCancelled else { return }
        uv_poll_start(poll, readiness.rawValue) { poll, status, events in
            let watch = Unmanaged<DescriptorWatch>.fromOpaque(poll!.pointee.data).takeUnretainedValue()
            guard !watch.isCancelled else { return }
            watch.ready(status < 0 ? .failed : Readiness(rawValue: events))
        }
    }

    /// Stops watching at once, so that the owner may close the descriptor. Idempotent; required before the loop stops.
    package func cancel() {
        loop.assertOnLoop()
        guard !isCancelled else { return }
        isCancelled = true
        uv_close(UnsafeMutableRawPointer(poll).assumingMemoryBound(to: uv_handle_t.self)) { handle in
            let watch = Unmanaged<DescriptorWatch>.fromOpaque(handle!.pointee.data).takeRetainedValue()
            watch.poll.deallocate()
        }
    }
}
