import ParleySystem
import Testing

@Suite struct `The world of a server` {
    @Test func `fires timers in the order of their instants, those of one instant as they were set, and none that was cancelled`() throws {
        let world = SystemWorld(threads: 1)
        let fired = Monitor<[Int]>([])
        var random = SplitMix64(seed: 1)
        let start = world.now.advanced(by: .milliseconds(20))
        let delays = (0..<2_000).map { _ in Int.random(in: 0..<60, using: &random) }
        let timers = delays.enumerated().map { number, delay in
            world.schedule(at: start.advanced(by: .milliseconds(delay))) { fired.withLock(signalAll: true) { $0.append(number) } }
        }
        let cancelled = Set((0..<2_000).filter { $0 % 7 == 0 && delays[$0] > 30 })
        // Those that fired before are cancelled to no effect.
        for number in cancelled { timers[number].cancel() }
        _ = world.schedule(at: start.advanced(by: .milliseconds(60))) { fired.withLock(signalAll: true) { $0.append(-1) } }
        let seen = try #require(fired.wait(timeout: .seconds(20)) { $0.last == -1 ? Array($0.dropLast()) : nil })
        #expect(Set(seen).union(cancelled).count == 2_000)
        // What was due when a timer was set may have fired before it: order is promised among those that wait.
        let late = seen.filter { delays[$0] >= 30 }
        #expect(zip(late, late.dropFirst()).allSatisfy { (delays[$0], $0) < (delays[$1], $1) })
    }
}
