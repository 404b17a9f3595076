import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"
private let source = "workflows/1"

extension SimulatedNode {
    /// Appends to a plain channel, once however often it is called with the same number.
    fileprivate func publish(_ number: Int, closes: Bool = false) {
        var append = Append(to: source, [NewEntry(data: JSON.integer(Int64(number)).bytes)])
        append.creates = ChannelRow(name: source, contentType: ContentType.json, isAgent: false, created: world.now)
        append.idempotency = IdempotencyKey(key: "\(number)", body: [])
        append.closes = closes
        channels.submit(append)
    }

    fileprivate func follows() throws -> Int {
        var count = 0
        try log.scan(.index, from: [0, 0, 128], to: [255], reversed: false) { key, _ in
            if key[2] == 128 { count += 1 }
            return true
        }
        return count
    }
}

/// Gives everything that it finds in the channel.
private func follower(timeout: Duration? = nil, from start: FollowStart = .beginning) -> AnyAgent {
    agent { _, turn in
        var feed = try await turn.follow(source, from: start)
        var values: [JSON] = []
        do {
            while let entry = try await feed.next(timeout: timeout) { values.append(entry.value) }
            values.append("end")
        } catch let failure as StepFailure { values.append(.string(failure.code)) }
        return .array(values)
    }
}

@Suite struct `Following a channel` {
    @Test func `gives what is there and what comes, in order, and its end`() throws {
        let (output, rows, active) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [follower()])
            for number in 1...3 { node.publish(number) }
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            let active = node.runtime.activeCount
            node.publish(4)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            node.publish(5, closes: true)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            return (try node.entries(name).last?["output"], try node.follows(), active)
        }
        #expect(output == [1, 2, 3, 4, 5, "end"])
        #expect(rows == 0)
        #expect(active == 0, "it waits on disk")
    }

    @Test func `begins where it is told`() throws {
        for (start, output) in [(FollowStart.end, [3, "end"] as JSON), (.after(Offset(1).token), [2, 3, "end"])] {
            let found = try SimulatedNode.simulate {
                let world = SimulatedWorld(seed: 1)
                let node = try SimulatedNode(world, SimulatedLog(), agents: [follower(from: start)])
                for number in 1...2 { node.publish(number) }
                world.settle()
                node.send("go", to: name)
                world.settle()
                node.publish(3, closes: true)
                world.run(deadline: world.now.advanced(by: .seconds(10)))
                return try node.entries(name).last?["output"]
            }
            #expect(found == output)
        }
    }

    @Test func `fails when there is no such channel, when it is deleted, and after its timeout`() throws {
        let outputs = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [follower(timeout: .seconds(100))])
            node.send("go", to: name)
            world.settle()
            node.publish(1)
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            node.send("go", to: name)
            world.settle()
            node.channels.submit(DeleteChannel(source))
            world.settle()
            return (
                try node.entries(name).filter { $0["type"] == "turn.completed" }.compactMap { $0["output"]?.text }, try node.follows(),
                try node.rows(.timers)
            )
        }
        #expect(outputs.0 == [#"["channel_not_found"]"#, #"[1,"wait_timeout"]"#, #"[1,"channel_not_found"]"#])
        #expect(outputs.1 == 0)
    }

    @Test func `gives what came in time, though its time was over before there was anybody to read it`() throws {
        let output = try SimulatedNode.simulate {
            var world = SimulatedWorld(seed: 1)
            var node = try SimulatedNode(world, SimulatedLog(), agents: [follower(timeout: .seconds(100))])
            node.publish(1)
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            // A process that does not have the agent's kind takes the entry.
            world = SimulatedWorld(seed: 2, now: world.now)
            node = try SimulatedNode(world, node.log.reopen(), agents: [])
            node.publish(2, closes: true)
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            world = SimulatedWorld(seed: 3, now: world.now)
            node = try SimulatedNode(world, node.log.reopen(), agents: [follower(timeout: .seconds(100))])
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            return try node.entries(name).last?["output"]
        }
        #expect(output == [1, 2, "end"])
    }

    @Test func `is over with the agent, and with an interrupt`() throws {
        let (rows, isWatched) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [follower()])
            node.publish(1)
            for (agent, end) in [("a", EntryKind.interrupt), ("b", .cancel), ("c", .message)] {
                node.send("go", to: "agents/probe/\(agent)")
                world.settle()
                if end == .message {
                    node.channels.submit(DeleteChannel("agents/probe/\(agent)"))
                } else {
                    node.send(NewEntry(end, nil, ("by", "ann")), to: "agents/probe/\(agent)")
                }
                world.settle()
            }
            return (try node.follows(), try node.channels.find(source)?.isWatched)
        }
        #expect(rows == 0 && isWatched == false)
    }

    @Test func `gives what there is although an interrupt waits that cannot stop it`() throws {
        let (output, steps) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let program = agent { _, turn in
                try await turn.shielded { turn in
                    var feed = try await turn.follow(source)
                    var values: [JSON] = []
                    while values.count < 2, let entry = try await feed.next() { values.append(entry.value) }
                    return .array(values)
                }
            }
            let node = try SimulatedNode(world, SimulatedLog(), agents: [program])
            node.publish(1)
            node.send("go", to: name)
            world.settle()
            node.send(NewEntry(.interrupt, nil, ("by", "ann")), to: name)
            world.settle()
            node.publish(2)
            var steps = 0
            world.run(deadline: world.now.advanced(by: .seconds(60))) {
                steps += 1
                return steps > 10_000
            }
            return (try node.entries(name).first { $0["type"] == "turn.completed" }?["output"], steps)
        }
        #expect(output == [1, 2])
        #expect(steps < 1_000)
    }

    /// Dies at every commit, durable or not: each entry is given once, and nothing is missed that came while no process ran.
    @Test(arguments: 0..<30, [SimulatedLog.Outcome.lost, .durableUnacknowledged])
    func `misses nothing and gives nothing twice when the process dies`(crashAt: Int, outcome: SimulatedLog.Outcome) throws {
        let (output, steps) = try SimulatedNode.simulate {
            let log = SimulatedLog(outcome: { commit, _ in commit == crashAt ? outcome : .acknowledged })
            func drive(_ node: SimulatedNode) {
                for number in 1...3 {
                    node.publish(number)
                    if number == 1 { node.send("go", to: name, key: "go") }
                    node.world.run(deadline: node.world.now.advanced(by: .seconds(40)))
                }
                node.publish(4, closes: true)
                node.world.run(deadline: node.world.now.advanced(by: .seconds(40)))
            }
            var node = try SimulatedNode(SimulatedWorld(seed: UInt64(crashAt)), log, agents: [follower()])
            drive(node)
            if log.crashed {
                let world = SimulatedWorld(seed: UInt64(crashAt) + 1_000, now: node.world.now)
                node = try SimulatedNode(world, log.reopen(), agents: [follower()])
                drive(node)
            }
            return (try node.entries(name).last?["output"], try node.follows())
        }
        #expect(output == [1, 2, 3, 4, "end"])
        #expect(steps == 0)
    }

    /// An earlier version had no row in the partition of the channel, and no word in the follower's.
    @Test(arguments: [true, false])
    func `goes on in a folder of an earlier version`(hasNews: Bool) throws {
        let output = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [follower()])
            node.publish(1)
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            try node.log.scan(.index, from: [0, 0], to: [255, 255], reversed: false) { key, value in
                if key[2] == IndexMark.watch.rawValue { node.channels.submit(RowChange.delete(.index, Bytes(key))) }
                guard key[2] == IndexMark.follow.rawValue, let row = try? JSON.parse(Bytes(value)) else { return true }
                let members = row.members!.filter { $0.name != "news" }
                node.channels.submit(RowChange.put(.index, Bytes(key), JSON.object(members).bytes))
                return true
            }
            world.settle()
            if hasNews { node.publish(2) }
            world.settle()
            let next = try SimulatedNode(SimulatedWorld(seed: 2, now: world.now), node.log.reopen(), agents: [follower()])
            next.world.run(deadline: next.world.now.advanced(by: .seconds(100)))
            if !hasNews { next.publish(2) }
            next.publish(3, closes: true)
            next.world.run(deadline: next.world.now.advanced(by: .seconds(100)))
            return try next.entries(name).last?["output"]
        }
        #expect(output == [1, 2, 3, "end"])
    }

    @Test func `ends when the time of the channel is over`() throws {
        let output = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [follower()])
            try node.channels.start()
            var row = ChannelRow(name: source, contentType: ContentType.json, isAgent: false, created: world.now)
            row.lifetime = .ttl(seconds: 500)
            node.channels.submit(CreateChannel(row))
            world.settle()
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(100_000)))
            return try node.entries(name).last?["output"]
        }
        #expect(output == ["channel_not_found"])
    }

    /// The file of the kind is broken while the channel is deleted; it is mended while the next process runs.
    @Test func `is told of the end of a channel that went while the kind was missing`() throws {
        let output = try SimulatedNode.simulate {
            var log = SimulatedLog()
            var now = SimulatedWorld(seed: 1).now
            func process(_ agents: [AnyAgent]) throws -> SimulatedNode {
                try SimulatedNode(SimulatedWorld(seed: 1, now: now), log, agents: agents)
            }
            func run(_ node: SimulatedNode, _ seconds: Int) {
                node.world.run(deadline: node.world.now.advanced(by: .seconds(seconds)))
                (log, now) = (node.log.reopen(), node.world.now)
            }
            let first = try process([follower()])
            first.publish(1)
            first.send("go", to: name)
            run(first, 100)
            let without = try process([])
            without.channels.submit(DeleteChannel(source))
            run(without, 10)
            let mended = try process([])
            mended.world.run(deadline: mended.world.now.advanced(by: .seconds(10)))
            try mended.runtime.declare([follower()])
            mended.world.run(deadline: mended.world.now.advanced(by: .seconds(36_000)))
            return try mended.entries(name).last?["output"]
        }
        #expect(output == [1, "channel_not_found"])
    }
}

@Suite struct `Following a name that changes hands` {
    @Test(arguments: 0..<80 as Range<UInt64>)
    func `never mixes the entries of two channels, and never skips one`(seed: UInt64) throws {
        let output = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: seed)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [follower()])
            for number in 1...3 { node.publish(number) }
            node.send("go", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(seed % 3 == 0 ? 100 : 1)))
            var random = SplitMix64(seed: seed)
            node.channels.submit(DeleteChannel(source))
            for _ in 0..<random.next() % 3 { world.doOne() }
            for number in 11...16 {
                node.publish(number)
                for _ in 0..<random.next() % 3 { world.doOne() }
            }
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            return try node.entries(name).last?["output"]
        }
        #expect(output == [1, 2, 3, "channel_not_found"])
    }

    /// Deletes the follower, and makes another one of its name, while the end of a step is on its way back to the first.
    @Test(arguments: 0..<(isLong ? 600 : 60) as Range<UInt64>)
    func `tells the agent that has the follower's name now, whatever its predecessor still does`(seed: UInt64) throws {
        let (entries, state) = try SimulatedNode.simulate {
            var schedule = SimulatedSchedule()
            (schedule.heldOneIn, schedule.heldLongest, schedule.firesTogether) = (2, 2_500, true)
            let world = SimulatedWorld(seed: seed, schedule: schedule)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        var feed = try await turn.follow("streams/f", from: .after(Offset(1).token))
                        return try await feed.next()?.value ?? "end"
                    }
                ])
            node.publish(1, to: "streams/f")
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(30)))
            node.publish(2, to: "streams/f")
            world.run(deadline: world.now.advanced(by: .seconds(30))) {
                (try? node.entries(name).contains { $0["type"] == "step.completed" }) == true
            }
            node.delete(name)
            node.create(name)
            node.send("y", to: name)
            // So that the successor waits: the channel that it follows is recreated as well.
            node.channels.submit(DeleteChannel("streams/f"))
            node.publish(1, to: "streams/f")
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            node.publish(2, to: "streams/f")
            world.run(deadline: world.now.advanced(by: .seconds(1_000)))
            return (try node.entries(name), try node.runtime.status(of: name)?["state"]?.string)
        }
        #expect(entries.contains { $0["type"] == "turn.completed" }, "\(state ?? "-") \(short(entries))")
    }
}
