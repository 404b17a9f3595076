import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyChannels

@Suite struct `Lifetimes` {
    private struct Scene {
        let world: SimulatedWorld
        let node: SimulatedNode
        var channels: Channels { node.channels }

        init(_ log: SimulatedLog = SimulatedLog(), now: Timestamp = Timestamp(milliseconds: 1_000_000)) throws {
            world = SimulatedWorld(seed: 1, now: now)
            node = try SimulatedNode(world, log, agents: [])
            try node.channels.start()
        }

        func create(_ name: String, _ lifetime: Lifetime) {
            var row = ChannelRow(name: name, contentType: ContentType.json, isAgent: false, created: world.now)
            row.lifetime = lifetime
            channels.submit(CreateChannel(row))
            world.settle()
        }

        func fork(_ name: String, from source: String) {
            let row = ChannelRow(name: name, contentType: ContentType.json, isAgent: false, created: world.now)
            var creation = CreateChannel(row)
            (creation.fork, creation.hasContentType) = (ForkRequest(source: source, offset: nil, subOffset: nil), false)
            channels.submit(creation)
            world.settle()
        }

        func append(_ text: String, to name: String) {
            channels.submit(Append(to: name, [NewEntry(data: Bytes(text.utf8))]))
            world.settle()
        }

        /// Lets time pass.
        func pass(_ seconds: Int64) { world.run(deadline: world.now.advanced(by: .seconds(seconds))) }

        func isThere(_ name: String) throws -> Bool { try channels.find(name) != nil }
    }

    private func simulate<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
        try SimulatedNode.simulate(body)
    }

    @Test func `a sliding one is renewed by each read and write, and not by looking`() throws {
        let found = try simulate {
            let scene = try Scene()
            scene.create("a", .ttl(seconds: 100))
            var found: [Bool] = []
            for _ in 0..<5 {
                scene.pass(90)
                found.append(try scene.isThere("a"))
                scene.append("1", to: "a")
            }
            for _ in 0..<5 {
                scene.pass(90)
                found.append(try scene.isThere("a"))
                scene.channels.touched(try scene.channels.find("a")!)
            }
            scene.pass(99)
            found.append(try scene.isThere("a"))
            scene.pass(1)
            return found + [try scene.isThere("a")]
        }
        #expect(found == Array(repeating: true, count: 11) + [false])
    }

    @Test func `one up to an instant ends there, whatever is done`() throws {
        let found = try simulate {
            let scene = try Scene()
            scene.create("a", Lifetime(until: scene.world.now.advanced(by: .seconds(100)).description)!)
            scene.pass(99)
            scene.append("1", to: "a")
            let before = try scene.isThere("a")
            scene.pass(1)
            return [before, try scene.isThere("a")]
        }
        #expect(found == [true, false])
    }

    @Test func `what has ended is removed, though nobody looks`() throws {
        let (rows, atStart) = try simulate {
            let scene = try Scene()
            for number in 0..<600 { scene.create("c\(number)", .ttl(seconds: 100)) }
            scene.append("1", to: "c7")
            scene.pass(200)
            let rows = try scene.node.rows(.channels) + scene.node.rows(.log) + scene.node.rows(.index)
            // A process that comes when the time is over removes it as well.
            scene.create("late", .ttl(seconds: 100))
            let next = try Scene(scene.node.log.reopen(), now: scene.world.now.advanced(by: .seconds(1_000)))
            next.pass(1)
            return (rows, try next.node.rows(.index))
        }
        #expect(rows <= 64, "the partitions' counters")
        #expect(atStart == 0)
    }

    @Test func `a row that is due is given once while a visit holds it, and again when it is still there`() throws {
        let world = SimulatedWorld(seed: 1, now: Timestamp(milliseconds: 1_000_000))
        let log = MemoryLog()
        let given = Mutex<[DueVisit]>([])
        let rows = DueRows(.lifetime, log: log, world: world, atOnce: 256, pause: .milliseconds(20)) { _, visit in
            given.withLock { $0.append(visit) }
        }
        var batch = Batch(partition: 3)
        for number: UInt64 in 1...300 { batch.put(.index, rows.key(world.now, ChannelID(partition: 3, number: number)), []) }
        try log.commit([batch])
        try rows.start()
        world.run(deadline: world.now.advanced(by: .seconds(60)))
        #expect(given.withLock { $0.count } == 256)
        given.withLock { $0 = [] }
        world.run(deadline: world.now.advanced(by: .seconds(2)))
        #expect(given.withLock { $0.map(\.channel.number) } == Array(1...256))
    }

    @Test func `none ends before its time when the process is another`() throws {
        let found = try simulate {
            let scene = try Scene()
            scene.create("a", .ttl(seconds: 160))
            var log = scene.node.log
            var now = scene.world.now
            var found: [Bool] = []
            // Read every 5 seconds, killed every 15: what is stored of the last access is always late.
            for _ in 0..<40 {
                let next = try Scene(log.reopen(), now: now)
                for _ in 0..<3 {
                    next.pass(5)
                    let channel = try next.channels.find("a")
                    found.append(channel != nil)
                    if let channel { next.channels.touched(channel) }
                }
                (log, now) = (next.node.log, next.world.now)
            }
            return found
        }
        #expect(found.allSatisfy { $0 })
    }

    @Test func `a name whose channel has ended is free at once`() throws {
        let text = try simulate {
            let scene = try Scene()
            scene.create("a", .ttl(seconds: 100))
            scene.append("1", to: "a")
            // Nothing runs in between that could remove it.
            scene.world.step(clock: .seconds(100))
            var row = ChannelRow(name: "a", contentType: ContentType.json, isAgent: false, created: scene.world.now)
            row.lifetime = .ttl(seconds: 50)
            scene.channels.submit(CreateChannel(row))
            scene.append("2", to: "a")
            return try scene.channels.page(try scene.channels.find("a")!, after: 0, view: .raw, bytesMax: .max).body.text
        }
        #expect(text == "[2]")
    }

    @Test func `a name whose channel had ended before it was made is free within its commit`() throws {
        let bench = Bench()
        bench.create("a", lifetime: Lifetime(until: "1970-01-01T00:00:00Z"), commits: false)
        let second = bench.create("a", commits: false)
        bench.append("1", to: "a")
        #expect(second.value?.isNew == true)
        #expect(try bench.whole("a") == [1] && bench.reopened().whole("a") == [1])
    }

    @Test func `a fork has its source's unless it has its own, and outlives it`() throws {
        let found = try simulate {
            let scene = try Scene()
            scene.create("a", .ttl(seconds: 100))
            scene.append("1", to: "a")
            scene.fork("b", from: "a")
            scene.pass(60)
            scene.append("2", to: "b")
            scene.pass(60)
            let source = try scene.channels.find("a")
            let text = try scene.channels.page(try scene.channels.find("b")!, after: 0, view: .raw, bytesMax: .max).body.text
            scene.pass(100)
            return (source?.isSoftDeleted ?? true, text, try scene.isThere("b"), try scene.node.rows(.log))
        }
        #expect(found.0 && found.1 == "[1,2]" && !found.2)
        #expect(found.3 == 0)
    }
}
