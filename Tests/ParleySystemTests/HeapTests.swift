import Testing

@testable import ParleySystem

@Suite struct `The heap` {
    @Test func `gives back what is free for a second`() {
        Heap.givesBackSoon()
        #expect(Heap.read("arena.0.dirty_decay_ms") == 1_000)
        #expect(Heap.read("arenas.dirty_decay_ms") == 1_000)
        #expect(Heap.read("max_background_threads") == 1)
        #expect(Heap.read("background_thread", false))
    }
}
