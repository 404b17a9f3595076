import ParleySystem
import Testing

@Suite struct `The world of a server` {
    @Test func `fires timers in the order of their instants, those of one instant as they were set, and none that was cancelled`() throws {
        let world = SystemWorld(threads: 1)
        let fired = Monitor<[Int]>([])
        var random = SplitMix64(seed: 1)
        // Held up, so that all of them are due when it looks.
        let (isHeld, isSet) = (Monitor(false), Monitor(false))
        _ = world.schedule(at: world.now) {
            isHeld.withLock(signalAll: true) { $0 = true }
            _ = isSet.wait(timeout: .seconds(20)) { $0 ? true : nil }
        }
        _ = isHeld.wait(timeout: .seconds(20)) { $0 ? true : nil }
        let start = world.now.advanced(by: .seconds(-60))
        let delays = (0..<2_000).map { _ in Int.random(in: 0..<60, using: &random) }
        let timers = delays.enumerated().map { number, delay in
            world.schedule(at: start.advanced(by: .milliseconds(delay))) { fired.withLock { $0.append(number) } }
        }
        let cancelled = Set((0..<2_000).filter { $0 % 7 == 0 })
        for number in cancelled { timers[number].cancel() }
        _ = world.schedule(at: world.now) { fired.withLock(signalAll: true) { $0.append(-1) } }
        isSet.withLock(signalAll: true) { $0 = true }
        let seen = try #require(fired.wait(timeout: .seconds(20)) { $0.last == -1 ? Array($0.dropLast()) : nil })
        #expect(Set(seen) == Set(0..<2_000).subtracting(cancelled))
        #expect(zip(seen, seen.dropFirst()).allSatisfy { (delays[$0], $0) < (delays[$1], $1) })
    }
}
