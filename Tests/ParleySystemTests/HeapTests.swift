import Glibc
import Testing

@testable import ParleySystem

@Suite struct `The heap` {
    @Test func `gives back what is free for a quarter of a second`() {
        Heap.givesBackSoon()
        #expect(Heap.read("arena.0.dirty_decay_ms") == 250)
        #expect(Heap.read("arenas.dirty_decay_ms") == 250)
        #expect(Heap.read("max_background_threads") == 1)
        #expect(Heap.read("background_thread", false))
    }

    /// The pages of which a thread had to ask the system.
    private var faults: Int {
        var usage = rusage()
        getrusage(__rusage_who_t(1), &usage)  // RUSAGE_THREAD
        return usage.ru_minflt
    }

    @Test func `keeps a large piece for that time, too: what needs it again has its pages`() {
        Heap.givesBackSoon()
        let (byteCount, rounds) = (12 << 20, 20)
        let before = faults
        for _ in 0..<rounds {
            let piece = malloc(byteCount)!
            memset(piece, 1, byteCount)
            free(piece)
        }
        // Others may have taken it now and then.
        #expect(faults - before < rounds / 2 * byteCount / 4_096)
    }
}
