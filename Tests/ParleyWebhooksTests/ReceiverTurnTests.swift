import Testing

@testable import ParleyWebhooks

@Suite struct `The turns of receivers` {
    @Test func `a receiver has so many calls at once, and gets its own in their order`() {
        var turns = ReceiverTurns()
        for number in 0..<20 { turns.add("a\(number)", for: "a") }
        #expect((0..<16).map { _ in turns.next()?.id } == (0..<16).map { "a\($0)" })
        #expect(turns.next() == nil)
        turns.ended(for: "a")
        #expect(turns.next()?.id == "a16")
        #expect(turns.next() == nil && turns.inFlightCount == 16)
    }

    @Test func `receivers take turns, however much waits for one of them`() {
        var turns = ReceiverTurns()
        for number in 0..<100 { turns.add("a\(number)", for: "a") }
        #expect(turns.next()?.id == "a0")
        turns.add("b0", for: "b")
        turns.add("b1", for: "b")
        turns.add("c0", for: "c")
        #expect((0..<5).map { _ in turns.next()?.id } == ["a1", "b0", "c0", "a2", "b1"])
    }

    @Test func `whoever comes to a full house is next, before those that fill it`() {
        var turns = ReceiverTurns()
        for number in 0..<400 { turns.add("\(number)", for: "slow\(number % 5)") }
        var slow: [String] = []
        while let next = turns.next() { slow.append(next.receiver) }
        #expect(slow.count == 64)
        turns.add("quick", for: "quick")
        #expect(turns.next() == nil)
        var waited = 0
        repeat {
            turns.ended(for: slow.removeFirst())
            waited += 1
        } while turns.next()?.id != "quick" && waited < 100
        #expect(waited <= 6)
    }

    @Test func `what does not wait any more is not begun, and nothing is kept of it`() {
        var turns = ReceiverTurns()
        for number in 0..<20 { turns.add("a\(number)", for: "a") }
        turns.add("b0", for: "b")
        #expect(turns.next()?.receiver == "a")
        turns.dropWaiting()
        #expect(turns.next() == nil)
        turns.add("a20", for: "a")
        #expect(turns.next()?.id == "a20")
        for _ in 0..<2 { turns.ended(for: "a") }
        #expect(turns.inFlightCount == 0 && turns.next() == nil)
    }
}
