internal import CUV

/// Reports changes to the files of a folder, a moment after the last of several, until it is cancelled or the loop stops.
package final class FolderWatcher: @unchecked Sendable {  // Guard: used on the loop's thread only.
    private let loop: EventLoop
    private let changed: @Sendable () -> Void
    private let handle = UnsafeMutablePointer<uv_fs_event_t>.allocate(capacity: 1)
    private var timer: LoopTimer?
    private var isClosed = false

    /// An editor changes a file in several steps.
    private static let pause = Duration.milliseconds(200)

    /// Starts watching. Thread-safe; `changed` is called on the loop.
    ///
    /// - Parameter started: Receives whether the kernel watches the folder; called on the loop.
    package init(
        _ loop: EventLoop, folder: String, started: @escaping @Sendable (Bool) -> Void = { _ in }, _ changed: @escaping @Sendable () -> Void
    ) {
        (self.loop, self.changed) = (loop, changed)
        loop.execute { started(self.watch(folder)) }
    }

    /// Stops watching. Thread-safe, idempotent.
    package func cancel() { loop.execute { self.close() } }

    private func watch(_ folder: String) -> Bool {
        uv_fs_event_init(loop.uv, handle)
        handle.pointee.data = Unmanaged.passRetained(self).toOpaque()  // Released by the close callback.
        let result = uv_fs_event_start(
            handle,
            { handle, _, _, _ in Unmanaged<FolderWatcher>.fromOpaque(handle!.pointee.data).takeUnretainedValue().noticed() }, folder, 0)
        loop.atStop { [weak self] in self?.close() }
        return result == 0
    }

    private func noticed() {
        if let timer { return timer.reschedule(after: FolderWatcher.pause) }
        timer = loop.schedule(after: FolderWatcher.pause) { [changed] in changed() }
    }

    private func close() {
        guard !isClosed else { return }
        isClosed = true
        timer?.cancel()
        uv_close(UnsafeMutableRawPointer(handle).assumingMemoryBound(to: uv_handle_t.self)) { handle in
            let watcher = Unmanaged<FolderWatcher>.fromOpaque(handle!.pointee.data).takeRetainedValue()
            watcher.handle.deallocate()
        }
    }
}
