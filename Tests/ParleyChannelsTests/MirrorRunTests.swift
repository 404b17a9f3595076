import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

/// Readers of one node follow a channel of another while the link is slow and is cut, as a seed decides.
@Suite struct `Following over a link` {
    enum Fate: CaseIterable { case closed, deleted, moved }

    @Test(arguments: Fate.allCases)
    func `readers get every entry once and in order, to the end`(_ fate: Fate) throws {
        var (cuts, pages, commits, lefts) = (0, 0, 0, 0)
        for seed in 0..<UInt64(16) {
            let run = try SimulatedNode.simulate {
                let run = MirrorRun(seed: seed, fate)
                run.run()
                return run
            }
            for reader in run.readers {
                let numbers = reader.entries.map { $0["n"]?.integer.map(Int.init) }
                if fate == .deleted {
                    #expect(numbers == Array(0..<numbers.count) && numbers.count <= run.count, "seed \(seed)")
                } else {
                    #expect(numbers == Array(0..<run.count), "seed \(seed)")
                }
                #expect(reader.ending == (fate == .deleted ? .deleted : .closed), "seed \(seed)")
            }
            #expect(run.mirrors.resident("a") == nil, "seed \(seed)")
            #expect(try fate == .deleted || !run.owner.channel().isWatched, "seed \(seed)")
            cuts += run.links.reduce(0) { $0 + $1.counts.cuts }
            commits += run.links.reduce(0) { $0 + $1.counts.commits }
            pages += run.readers.reduce(0) { $0 + $1.pages }
            lefts += run.readers.reduce(0) { $0 + $1.lefts }
        }
        // The seeds try what they are there for.
        #expect(cuts > 40 && commits > 300 && pages > 150, "\(cuts) cuts, \(commits) commits, \(pages) pages")
        #expect((lefts > 0) == (fate == .moved))
    }
}

/// One run: an owner that appends, a link that fails, and readers that are quick and slow.
private final class MirrorRun: Sendable {
    let world: SimulatedWorld
    let mirrors: ChannelMirrors
    let readers: [TailFollower]
    private let benches: [Bench]
    let links: [LoopbackLink]
    private let fate: `Following over a link`.Fate
    private let state = Mutex(State())
    private let route = Route()

    private struct State {
        var owner = 0
        var appended = 0
        var isOver = false
    }

    private static let appends = 100
    /// The partition of the channel.
    private static let partition = Placement.partition(of: "a")

    init(seed: UInt64, _ fate: `Following over a link`.Fate) {
        let world = SimulatedWorld(seed: seed)
        (self.world, self.fate) = (world, fate)
        let first = Bench(partitions: PartitionSet(), world: world)
        benches = [first, Bench(first.log.shared(), partitions: PartitionSet(), world: world)]
        links = benches.map { bench in
            LoopbackLink(to: bench.channels, world: world) {
                world.random() % 3 == 0 ? .zero : .milliseconds(Int64(world.random() % 30))
            }
        }
        let route = route
        mirrors = ChannelMirrors { _ in route.link.withLock { $0 } }
        let channels = Bench(partitions: PartitionSet(), world: world).channels
        readers = [0, 0, 10, 200].map { [mirrors] in TailFollower("a", mirrors, channels, slowness: $0) }
    }

    /// Who is known to own the channel.
    private final class Route: Sendable {
        let link = Mutex<LoopbackLink?>(nil)
    }

    var owner: Bench { benches[state.withLock { $0.owner }] }
    /// How many entries there are.
    var count: Int { state.withLock { $0.appended } }

    func run() {
        for bench in benches { world.drive { bench.writer.pump() } }
        open(0)
        world.run()
        owner.create(commits: false)
        world.run()
        after(0...10) { self.append() }
        after(0...200) { self.trouble() }
        for reader in readers { after(0...300) { reader.begin() } }
        world.run()
        // Whatever the last trouble was, it ends.
        for link in links { link.restore() }
        world.run()
        world.end()
    }

    private func after(_ milliseconds: ClosedRange<UInt64>, _ work: @escaping @Sendable () -> Void) {
        let wait = milliseconds.lowerBound + world.random() % (milliseconds.upperBound - milliseconds.lowerBound + 1)
        world.schedule(at: world.now.advanced(by: .milliseconds(Int64(wait))), work)
    }

    private func open(_ owner: Int) {
        state.withLock { $0.owner = owner }
        benches[owner].channels.open(MirrorRun.partition) { _ in self.route.link.withLock { $0 = self.links[owner] } }
    }

    private func trouble() {
        guard !state.withLock({ $0.isOver }) else { return }
        for link in links { link.cut() }
        after(0...60) {
            for link in self.links { link.restore() }
            self.after(20...400) { self.trouble() }
        }
    }

    private func append() {
        let first = count
        let entries = (0...world.random() % 3).map { "{\"n\":\(first + Int($0)),\"x\":\"\(filler())\"}" }
        state.withLock { $0.appended += entries.count }
        let isLast = first >= MirrorRun.appends
        owner.append(entries.map { NewEntry(data: Bytes($0.utf8)) }, commits: false) {
            $0.closes = isLast && self.fate != .deleted
        }
        if fate == .moved, first < MirrorRun.appends / 2, count >= MirrorRun.appends / 2 { return move() }
        guard isLast else { return after(0...15) { self.append() } }
        if fate == .deleted { after(0...40) { self.owner.delete(commits: false) } }
        after(100...200) { self.state.withLock { $0.isOver = true } }
    }

    private func filler() -> String {
        switch world.random() % 200 {
        case 0: String(repeating: "z", count: 300_000)
        case 1...16: String(repeating: "y", count: 20_000)
        default: "x"
        }
    }

    private func move() {
        owner.channels.close(MirrorRun.partition) { _ in
            self.after(0...30) {
                self.open(1)
                self.after(20...40) { self.append() }
            }
        }
    }
}
