import Glibc
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

    @Test func `a clock that is set back holds up no timer, set forward it brings on those it passes`() throws {
        let ahead = Monitor(0)
        let world = SystemWorld(threads: 1) {
            SystemWorld.time(CLOCK_REALTIME).advanced(by: .seconds(ahead.withLock { $0 }))
        }
        let fired = Monitor<[String]>([])
        func schedule(_ name: String, in duration: Duration) {
            world.schedule(at: world.now.advanced(by: duration)) { fired.withLock(signalAll: true) { $0.append(name) } }
        }
        schedule("before the step back", in: .milliseconds(1_500))
        schedule("in two hours", in: .seconds(7_200))
        ahead.withLock { $0 = -36_000 }
        schedule("after the step back", in: .milliseconds(1_400))
        schedule("in three hours", in: .seconds(10_800))
        let first = fired.wait(timeout: .seconds(20)) { $0.count == 2 ? $0 : nil }
        #expect(first.map(Set.init) == ["after the step back", "before the step back"])
        ahead.withLock { $0 += 9_000 }
        #expect(fired.wait(timeout: .seconds(20)) { $0.count == 3 ? $0.last : nil } == "in two hours")
    }
}
