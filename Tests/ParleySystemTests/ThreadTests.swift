import ParleySystem
import Testing

/// Something that tests let continue.
private final class Gate: Sendable {
    private let isOpen = Monitor(false)
    func pass() { _ = isOpen.wait(timeout: .seconds(60)) { $0 ? true : nil } }
    func open() { isOpen.withLock(signalAll: true) { $0 = true } }
}

@Suite struct `The threads of a server` {
    @Test func `run the work of a lane one piece at a time and in order, also when others do not come back`() {
        let world = SystemWorld(threads: 2)
        let gate = Gate()
        // More than there are cores, or threads to begin with.
        for lane in 0..<8 { world.perform(lane: 1_000 + UInt64(lane)) { gate.pass() } }
        let seen = Monitor<[Int: [Int]]>([:])
        let inside = Monitor<Set<Int>>([])
        let overlaps = Monitor(0)
        for piece in 0..<200 {
            for lane in 0..<5 {
                world.perform(lane: UInt64(lane)) {
                    if !inside.withLock({ $0.insert(lane).inserted }) { overlaps.withLock { $0 += 1 } }
                    seen.withLock(signalAll: true) { $0[lane, default: []].append(piece) }
                    inside.withLock { _ = $0.remove(lane) }
                }
            }
        }
        let all = seen.wait(timeout: .seconds(60)) { $0.values.reduce(0) { $0 + $1.count } == 1_000 ? $0 : nil }
        gate.open()
        #expect(overlaps.withLock { $0 } == 0)
        #expect(all.map { $0.values.allSatisfy { $0 == Array(0..<200) } } == true)
    }

    @Test func `run many pieces at once that block, each owner's share of them, and the others' meanwhile`() {
        let world = SystemWorld(threads: 1)
        let (gate, begun, done) = (Gate(), Monitor<[UInt64: Int]>([:]), Monitor<[UInt64: Int]>([:]))
        func perform(_ count: Int, for owner: UInt64) {
            for _ in 0..<count {
                world.perform(blocking: .body, for: owner) {
                    begun.withLock(signalAll: true) { $0[owner, default: 0] += 1 }
                    gate.pass()
                    done.withLock(signalAll: true) { $0[owner, default: 0] += 1 }
                }
            }
        }
        perform(1_000, for: 1)
        perform(3, for: 2)
        let blocked = begun.wait(timeout: .seconds(60)) { $0[2] == 3 && $0[1] == 16 ? $0 : nil }
        #expect(blocked == [1: 16, 2: 3], "one owner has a share of the threads, another what is left")
        // Neither answers nor lanes wait for bodies.
        let answered = Monitor(0)
        world.perform(blocking: .read, for: 0) { answered.withLock(signalAll: true) { $0 += 1 } }
        world.perform(lane: 1) { answered.withLock(signalAll: true) { $0 += 1 } }
        #expect(answered.wait(timeout: .seconds(60)) { $0 == 2 ? true : nil } == true)
        gate.open()
        #expect(done.wait(timeout: .seconds(60)) { $0 == [1: 1_000, 2: 3] ? true : nil } == true)
    }

    @Test func `run a piece that the one before it, of the same owner, waits for`() {
        let world = SystemWorld(threads: 1)
        let (gate, done) = (Gate(), Monitor(false))
        world.perform(blocking: .body, for: 1) {
            gate.pass()
            done.withLock(signalAll: true) { $0 = true }
        }
        world.perform(blocking: .body, for: 1) { gate.open() }
        #expect(done.wait(timeout: .seconds(30)) { $0 ? true : nil } == true)
    }
}
