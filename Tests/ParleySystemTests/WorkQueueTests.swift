import Testing

@testable import ParleySystem

/// Who is called for the work that waits, as a table: what is added and looked at, and the threads that this calls.
@Suite struct WorkQueueTests {
    private let queue = Queue()

    private final class Queue {
        private var value = WorkQueue(width: 2, threadsMax: 4, shareMax: 2)

        func add(_ owner: UInt64) -> WorkQueue.Need { value.add({}, of: owner) }
        func look() -> [WorkQueue.Thread]? { value.look() }
        func isCalled() -> Bool { value.isCalled() }
        func leaves() -> Bool { value.leaves() }
        func notStarted() -> WorkQueue.Need { value.notStarted() }

        /// What is needed for the work behind the piece that was taken last.
        var takenNeed = WorkQueue.Need.nothing

        /// A thread that was called for the first time, or has ended its piece, takes the next.
        func take(after last: UInt64? = nil) -> UInt64? {
            if let last { value.ended(last) }
            let (piece, need) = value.takeOrRest()
            takenNeed = need
            return piece?.owner
        }
    }

    @Test("as many threads as the width are called at once; what comes after them waits for one of them") func width() {
        #expect(queue.add(1) == .call(.new(1)))
        #expect(queue.add(2) == .call(.new(2)))
        #expect((queue.take(), queue.take()) == (1, 2))
        #expect(queue.add(3) == .look)
        #expect(queue.add(4) == .nothing, "it is looked at already")
        #expect(queue.look() == [])
        #expect(queue.take(after: 1) == 3)
        #expect(queue.take(after: 2) == 4)
        #expect(queue.look() == nil, "nothing waits any more")
    }

    @Test("what has waited from one look to the next gets a thread of its own, up to the bound") func blocked() {
        for owner in 1...2 { _ = (queue.add(UInt64(owner)), queue.take()) }
        #expect(queue.add(3) == .look)
        #expect(queue.look() == [])
        for owner in 4...6 { #expect(queue.add(UInt64(owner)) == .nothing) }
        #expect(queue.look() == [.new(3)], "the others have come since")
        #expect(queue.take() == 3)
        #expect(queue.look() == [.new(4)], "there are four at most")
        #expect(queue.take() == 4)
        #expect(queue.look() == [])
        #expect(queue.take(after: 1) == 5)
        #expect(queue.take(after: 5) == 6)
    }

    @Test("a thread that waits is called before one is made, and once for one piece") func idle() {
        #expect(queue.add(1) == .call(.new(1)))
        #expect(queue.take() == 1)
        #expect(queue.take(after: 1) == nil)
        #expect(queue.add(1) == .call(.idle))
        #expect(queue.add(2) == .call(.new(2)), "the one that waits is on its way to the first")
        #expect(queue.isCalled())
        #expect(!queue.isCalled(), "it was called once")
        #expect((queue.take(), queue.take()) == (1, 2))
    }

    @Test("a thread that is called as its wait ends does not leave") func called() {
        _ = (queue.add(1), queue.take(), queue.take(after: 1))
        #expect(queue.add(1) == .call(.idle))
        #expect(!queue.leaves())
        #expect(queue.take() == 1)
        #expect(queue.take(after: 1) == nil)
        #expect(queue.leaves())
        #expect(queue.add(1) == .call(.new(2)), "there is none left")
    }

    @Test("an owner has its share of the threads, and its next piece a turn when one of them ends") func share() {
        #expect(queue.add(1) == .call(.new(1)))
        #expect(queue.add(1) == .nothing, "it has its place for the first piece")
        #expect(queue.take() == 1)
        #expect(queue.take() == 1)
        for _ in 0..<2 { #expect(queue.add(1) == .nothing) }
        #expect(queue.take() == nil, "the third waits for the share")
        #expect(queue.add(2) == .call(.idle))
        #expect(queue.isCalled())
        #expect(queue.take() == 2)
        #expect(queue.take(after: 1) == 1)
    }

    @Test("what an owner has behind the piece that a thread takes is looked at, too: that piece may be blocked until it has run")
    func rest() {
        #expect(queue.add(1) == .call(.new(1)))
        #expect(queue.add(1) == .nothing)
        #expect(queue.take() == 1)
        #expect(queue.takenNeed == .call(.new(2)), "one of the width is free")
        #expect(queue.add(2) == .look)
        #expect(queue.take() == 1)
        #expect(queue.takenNeed == .nothing, "it is looked at already")
    }

    @Test("a thread that the system does not give is not counted") func notStarted() {
        #expect(queue.add(1) == .call(.new(1)))
        #expect(queue.notStarted() == .look)
        #expect(queue.add(2) == .call(.new(2)))
        #expect(queue.take() == 1)
    }
}
