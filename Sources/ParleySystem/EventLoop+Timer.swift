/// Work that waits on a loop for its time. Belongs to the loop's thread.
package final class LoopTimer: @unchecked Sendable {  // Guard: used on the loop's thread only.
    private let loop: EventLoop
    let interval: Duration?
    let work: () -> Void
    /// Monotonic nanoseconds.
    var deadline: Int64 = 0
    /// Its index in the heap; -1 while it does not wait.
    var slot = -1

    init(loop: EventLoop, interval: Duration?, _ work: @escaping () -> Void) {
        self.loop = loop
        self.interval = interval
        self.work = work
    }

    package var isWaiting: Bool { slot >= 0 }

    /// Takes the work back; without effect on a timer that does not wait.
    package func cancel() {
        loop.assertOnLoop()
        loop.disarm(self)
    }

    /// Lets the work run `delay` from now, whether the timer waits or has run already.
    package func reschedule(after delay: Duration) {
        loop.assertOnLoop()
        loop.arm(self, after: delay)
    }
}

/// A binary heap of timers that know their slot, so that taking one out costs no search.
struct TimerHeap {
    private var timers: [LoopTimer] = []

    var first: LoopTimer? { timers.first }

    mutating func insert(_ timer: LoopTimer) {
        timer.slot = timers.count
        timers.append(timer)
        siftUp(timer.slot)
    }

    mutating func remove(_ timer: LoopTimer) {
        let slot = timer.slot
        guard slot >= 0 else { return }
        let last = timers.removeLast()
        timer.slot = -1
        guard last !== timer else { return }
        timers[slot] = last
        last.slot = slot
        siftUp(slot)
        siftDown(last.slot)
    }

    private mutating func siftUp(_ start: Int) {
        var slot = start
        while slot > 0, timers[slot].deadline < timers[(slot - 1) / 2].deadline {
            exchange(slot, (slot - 1) / 2)
            slot = (slot - 1) / 2
        }
    }

    private mutating func siftDown(_ start: Int) {
        var slot = start
        while true {
            var least = slot
            for child in [2 * slot + 1, 2 * slot + 2] where child < timers.count && timers[child].deadline < timers[least].deadline {
                least = child
            }
            if least == slot { return }
            exchange(slot, least)
            slot = least
        }
    }

    private mutating func exchange(_ a: Int, _ b: Int) {
        timers.swapAt(a, b)
        timers[a].slot = a
        timers[b].slot = b
    }
}
