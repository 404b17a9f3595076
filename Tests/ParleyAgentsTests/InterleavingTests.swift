import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"
private let source = "workflows/1"

extension SimulatedNode {
    fileprivate func publish(_ number: Int) {
        var append = Append(to: source, [NewEntry(data: JSON.integer(Int64(number)).bytes)])
        append.creates = ChannelRow(name: source, contentType: ContentType.json, isAgent: false, created: world.now)
        channels.submit(append)
    }
    fileprivate func followRows() throws -> Int {
        var count = 0
        try log.scan(.index, from: [0, 0, 128], to: [255], reversed: false) { key, _ in
            if key[2] == 128 { count += 1 }
            return true
        }
        return count
    }
    fileprivate func createSource() {
        channels.submit(CreateChannel(ChannelRow(name: source, contentType: ContentType.json, isAgent: false, created: world.now)))
    }
    fileprivate func control(_ kind: EntryKind, _ members: (String, JSON?)...) {
        send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: name)
    }
}

/// An outside wait that ends when its task is cancelled.
private func outside(_ world: any World, _ duration: Duration) async throws {
    let box = Mutex<CheckedContinuation<Void, any Error>?>(nil)
    try await withTaskCancellationHandler {
        try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
            box.withLock { $0 = continuation }
            if Task.isCancelled { box.withLock { $0.take() }?.resume(throwing: CancellationError()) }
        }
    } onCancel: {
        box.withLock { $0.take() }?.resume(throwing: CancellationError())
    }
}

private final class Probed: Model {
    let name = "probed:"
    let continues = Continuation.auto
    let world: any World
    let requests = Mutex<[ModelRequest]>([])
    let probeTime: Duration
    init(_ world: any World, _ probeTime: Duration) { (self.world, self.probeTime) = (world, probeTime) }
    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        requests.withLock { $0.append(request) }
        final class Call: ModelCall { func cancel() {} }
        for n in 1...20 {
            world.schedule(at: world.now.advanced(by: .milliseconds(200 * n))) { sink.received(.text("word\(n) ")) }
        }
        world.schedule(at: world.now.advanced(by: .seconds(5))) { sink.received(.finished(reason: "stop")) }
        return Call()
    }
    func probeContinuation(_ answer: @escaping @Sendable (Bool) -> Void) {
        world.schedule(at: world.now.advanced(by: probeTime)) { answer(true) }
    }
}

@Suite struct `Turns that are interleaved with something else` {
    @Test(arguments: 0..<20 as Range<UInt64>)
    func `that pauses after a crash resumes while something is refused`(seed: UInt64) throws {
        let (entries, state, other) = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(
                first, SimulatedLog(),
                agents: [
                    agent { _, _ in
                        await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in }
                        return .null
                    }
                ])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(500)))
            var schedule = SimulatedSchedule()
            (schedule.heldOneIn, schedule.heldLongest, schedule.firesTogether) = (2, 12, true)
            let world = SimulatedWorld(seed: seed, now: first.now, schedule: schedule)
            let node = try SimulatedNode(world, before.log.reopen(), agents: [agent { _, _ in "done" }], activeMax: 1)
            // A client that repeats a conditional message every 5 ms, as after a refusal.
            for n in 0..<220 {
                world.schedule(at: world.now.advanced(by: .milliseconds(5 * n))) {
                    node.send(
                        NewEntry(.message, nil, ("by", "ann"), ("text", "y"), ("if_turn", "0000000000000fff")), to: name)
                }
            }
            world.run(deadline: world.now.advanced(by: .seconds(30)))
            node.send("z", to: "agents/probe/other")
            world.run(deadline: world.now.advanced(by: .seconds(36_000)))
            return (
                try node.entries(name), try node.runtime.status(of: name)?["state"]?.string,
                try node.entries("agents/probe/other").last?["output"]
            )
        }
        #expect(
            entries.contains { $0["output"] == "done" } && other == "done",
            "\(state ?? "-") other \(other?.text ?? "none") \(short(entries))")
    }

    @Test(arguments: [1, 60])
    func `whose own task waits outside beside a scope that waits continues`(seconds: Int) throws {
        let (entries, state) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        let s = try turn.scope("w")
                        async let signal = s.wait(for: "never")
                        await pause(world, .seconds(seconds))
                        let work = try await turn.step("work") { _ in "done" }
                        _ = try await signal
                        return .string(work)
                    }
                ])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (try node.entries(name), try node.runtime.status(of: name)?["state"]?.string)
        }
        #expect(entries.contains { $0["step"] == "work" && $0["type"] == "step.completed" }, "\(state ?? "-") \(short(entries))")
    }

    @Test func `that ended after it was passivated is not kept in mind when its program continues`() throws {
        let (entries, isKept) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let runs = Mutex(0)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        let s = try turn.scope("w")
                        async let signal = s.wait(for: "never")
                        await pause(
                            world,
                            .seconds(
                                runs.withLock { runs in
                                    runs += 1
                                    return runs == 1 ? 600 : 1
                                }))
                        _ = try await turn.step("work") { _ in "done" }
                        return try await signal
                    },
                    AnyAgent(kind: "other") { _, _, _ in (.null, .object([])) },
                ], activeMax: 1)
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            // It leaves when another one needs the room.
            node.send("x", to: "agents/other/b")
            world.run(deadline: world.now.advanced(by: .seconds(90)))
            #expect(node.runtime.activeCount == 0)
            node.control(.cancel)
            world.run(deadline: world.now.advanced(by: .seconds(200)))
            let end = try node.entries(name).last?["type"]
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (end, node.runtime.programs.hasStrayed(name, turn: 1))
        }
        #expect(entries == "turn.cancelled")
        #expect(!isKept)
    }

    @Test func `that is cancelled while its replay waits outside ends, and leaves no row`() throws {
        let (rows, timers, entries, active) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld, _ life: Int) -> AnyAgent {
                agent { _, turn in
                    let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                        if item == 1 { return try await turn.wait(for: "never") }
                        if life == 1 { await pause(world, .milliseconds(50)) } else { try await outside(world, .seconds(100_000)) }
                        var feed = try await turn.follow(source)
                        return try await feed.next()?.value ?? "end"
                    }
                    return all[0]
                }
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program(first, 1)])
            let create = CreateChannel(ChannelRow(name: source, contentType: ContentType.json, isAgent: false, created: first.now))
            before.channels.submit(create)
            first.run(deadline: first.now.advanced(by: .milliseconds(10)))
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(150)))
            let rows0 = try before.followRows()
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(world, before.log.reopen(), agents: [program(world, 2)])
            node.control(.signal, ("name", "other"))
            world.run(deadline: world.now.advanced(by: .seconds(3)))
            node.control(.cancel)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            let third = SimulatedWorld(seed: 3, now: world.now)
            let last = try SimulatedNode(third, node.log.reopen(), agents: [program(third, 2)])
            third.run(deadline: third.now.advanced(by: .seconds(3_600)))
            last.publish(1)
            third.run(deadline: third.now.advanced(by: .milliseconds(5)))
            return ([rows0, try last.followRows()], try last.rows(.timers), try last.entries(name), last.runtime.activeCount)
        }
        #expect(rows == [1, 0] && timers == 0 && active == 0, "rows \(rows) timers \(timers) active \(active) \(short(entries))")
    }

    @Test func `that is cancelled while its replay waits for long leaves no row of a follow`() throws {
        let (rows, entries, active) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld, _ life: Int) -> AnyAgent {
                agent { _, turn in
                    let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                        if item == 1 { return try await turn.wait(for: "never") }
                        await pause(world, life == 1 ? .milliseconds(50) : .seconds(100))
                        var feed = try await turn.follow(source)
                        return try await feed.next()?.value ?? "end"
                    }
                    return all[0]
                }
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program(first, 1)])
            before.createSource()
            first.run(deadline: first.now.advanced(by: .milliseconds(10)))
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(150)))
            let rows0 = try before.followRows()
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(world, before.log.reopen(), agents: [program(world, 2)])
            world.run(deadline: world.now.advanced(by: .seconds(3)))
            node.control(.cancel)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            let third = SimulatedWorld(seed: 3, now: world.now)
            let last = try SimulatedNode(third, node.log.reopen(), agents: [program(third, 2)])
            third.run(deadline: third.now.advanced(by: .seconds(3_600)))
            let active0 = last.runtime.activeCount
            last.publish(1)
            third.run(deadline: third.now.advanced(by: .milliseconds(5)))
            return ([rows0, try last.followRows()], try last.entries(name), [active0, last.runtime.activeCount])
        }
        #expect(rows == [1, 0] && active == [0, 0], "rows \(rows) active \(active) \(short(entries))")
        #expect(entries.last?["type"] == "turn.cancelled")
    }

    @Test(arguments: [false, true])
    func `that redirects a halted turn sees that turn in its history`(hasEarlier: Bool) throws {
        let (seen, entries) = try SimulatedNode.simulate {
            let seen = Mutex<[[String]]>([])
            @Sendable func program(_ life: Int) -> AnyAgent {
                agent { text, turn in
                    if text == "x" {
                        if life == 1 { return try await turn.wait(for: "never") }
                        return .integer(Int64(try await turn.step("other") { _ in 1 }))
                    }
                    seen.withLock { $0.append(turn.history.map(\.input)) }
                    return "ok"
                }
            }
            let first = SimulatedWorld(seed: 5)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [program(1)])
            if hasEarlier { node.send("earlier", to: name) }
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 6, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [program(2)])
            second.control(.signal, ("name", "other"))
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            second.control(.interrupt, ("text", "redirect"))
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            second.send("after", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            return (seen.withLock { $0 }, try second.entries(name))
        }
        let e = hasEarlier ? ["earlier"] : []
        #expect(Array(seen.suffix(2)) == [e + ["x"], e + ["x", "redirect"]], "\(seen) \(short(entries))")
    }
}

@Suite struct `A step` {
    @Test(arguments: ["interrupt", "redirect", "give up", "drain", "none"])
    func `that was ended while its model was probed buys nothing`(what: String) throws {
        let (calls, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ model: Probed, _ world: SimulatedWorld, _ life: Int) -> AnyAgent {
                agent { _, turn in
                    let s = try turn.scope("g")
                    var text = ""
                    if what == "give up" {
                        text =
                            (try? await withThrowingTaskGroup(of: String.self) { group in
                                group.addTask { try await s.generate("answer", model, .user("q")).text }
                                group.addTask {
                                    await pause(world, .milliseconds(life == 1 ? 100_000 : 2_000))
                                    return "timed out"
                                }
                                defer { group.cancelAll() }
                                return try await group.next()!
                            }) ?? "thrown"
                    } else {
                        do { text = try await s.generate("answer", model, .user("q")).text } catch is Interrupted { text = "interrupted" }
                    }
                    _ = try await turn.step("after") { _ in await pause(world, .seconds(30)) }
                    return .string(text)
                }
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program(Probed(first, .zero), first, 1)])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(1_100)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let model = Probed(world, .seconds(5))
            let node = try SimulatedNode(world, before.log.reopen(), agents: [program(model, world, 2)])
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            switch what {
            case "interrupt": node.control(.interrupt)
            case "redirect": node.control(.interrupt, ("text", "something else"))
            case "drain": node.runtime.drain()
            default: break
            }
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (model.requests.withLock { $0.count }, try node.entries(name))
        }
        #expect(calls == (what == "none" ? 1 : 0), "\(short(entries))")
    }
}

@Suite struct `A wait that was given up` {
    @Test func `in the shielded part of a cancelled turn is given up on the replay`() throws {
        let (first, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    do { _ = try await turn.wait(for: "never") } catch let failure as StepFailure where failure.code == "cancelled" {}
                    let said = try await turn.shielded { turn in
                        let w = try turn.scope("w")
                        let result: String = await {
                            do {
                                return try await withThrowingTaskGroup(of: String.self) { group in
                                    group.addTask {
                                        _ = try await w.wait(for: "go")
                                        return "answered"
                                    }
                                    group.addTask {
                                        await pause(world, .seconds(1))
                                        return "timed out"
                                    }
                                    defer { group.cancelAll() }
                                    return try await group.next()!
                                }
                            } catch { return "thrown" }
                        }()
                        _ = try await turn.step("after \(result)") { _ in await pause(world, .seconds(20)) }
                        return result
                    }
                    return .string(said)
                }
            }
            let first = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [program(first)])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(100)))
            node.control(.cancel)
            first.run(deadline: first.now.advanced(by: .milliseconds(1_500)))
            let before = try node.entries(name)
            let world = SimulatedWorld(seed: 2, now: first.now)
            let second = try SimulatedNode(world, node.log.reopen(), agents: [program(world)])
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (before, try second.entries(name))
        }
        #expect(first.contains { $0["step"] == "shielded/after timed out" }, "\(short(first))")
        #expect(!entries.contains { $0["step"] == "shielded/after thrown" }, "\(short(entries))")
    }
}

@Suite struct `A steer` {
    @Test(arguments: 0..<8)
    func `that cannot be read for a moment joins the call, which is bought once`(number: Int) throws {
        let (asked, entries) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 3)
            let fault = ReadFault(at: number) { $0 == .log }
            let log = SimulatedLog(readError: fault.readError)
            let model = PlayedModel(world, [.text("a "), .text("b "), .text("c "), .finished(reason: "stop")])
            let node = try SimulatedNode(
                world, log,
                agents: [
                    agent { _, turn in
                        _ = try await turn.step("hold") { _ in
                            await pause(world, .seconds(1))
                            fault.arm()
                        }
                        return .string(try await turn.generate("answer", model, .user("q")).text)
                    }
                ])
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .milliseconds(500)))
            node.control(.steer, ("text", "also this"))
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            fault.disarm()
            return (model.requests.map { $0.messages.map(\.text) }, try node.entries(name))
        }
        #expect(asked.count == 1 && asked.last == ["q", "also this"], "\(asked) \(short(entries))")
    }

    @Test(arguments: 0..<14)
    func `that had joined a call is in it after a restart although a read fails`(number: Int) throws {
        let (asked, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ model: PlayedModel, _ world: SimulatedWorld) -> AnyAgent {
                agent { _, turn in
                    _ = try await turn.step("hold") { _ in await pause(world, .seconds(1)) }
                    return .string(try await turn.generate("answer", model, .user("q")).text)
                }
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(
                first, SimulatedLog(), agents: [program(PlayedModel(first, [.text("old ")]), first)])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(500)))
            before.control(.steer, ("text", "also this"))
            first.run(deadline: first.now.advanced(by: .seconds(3)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let model = PlayedModel(world, [.text("new"), .finished(reason: "stop")])
            let fault = ReadFault(at: number) { $0 == .log }
            let node = try SimulatedNode(
                world,
                before.log.reopen(readError: fault.readError), agents: [program(model, world)])
            fault.arm()
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            fault.disarm()
            return (model.requests.map { $0.messages.map(\.text) }, try node.entries(name))
        }
        #expect(asked.last == ["q", "also this"], "\(asked) \(short(entries).suffix(8))")
    }
}

@Suite struct `A timer or a follow` {
    @Test func `that came due before its kind was declared fires once it is`() throws {
        let (entries, state) = try SimulatedNode.simulate {
            let program = agent { _, turn in
                try await turn.sleep(.seconds(60))
                return "done"
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(40)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(world, before.log.reopen(), agents: [agent("other") { _, _ in .null }])
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            try node.runtime.declare([program])
            world.run(deadline: world.now.advanced(by: .seconds(360_000)))
            return (try node.entries(name), try node.runtime.status(of: name)?["state"]?.string)
        }
        #expect(entries.last?["output"] == "done", "\(state ?? "-") \(short(entries))")
    }

    @Test func `that got something before its kind was declared is read once it is`() throws {
        let (entries, state) = try SimulatedNode.simulate {
            let program = agent { _, turn in
                var feed = try await turn.follow(source)
                return try await feed.next()?.value ?? "end"
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program])
            before.createSource()
            first.run(deadline: first.now.advanced(by: .milliseconds(10)))
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(40)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(world, before.log.reopen(), agents: [agent("other") { _, _ in .null }])
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            node.publish(7)
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            try node.runtime.declare([program])
            world.run(deadline: world.now.advanced(by: .seconds(360_000)))
            return (try node.entries(name), try node.runtime.status(of: name)?["state"]?.string)
        }
        #expect(entries.last?["output"] == 7, "\(state ?? "-") \(short(entries))")
    }

    @Test(arguments: 0..<6)
    func `that cannot be read for a moment is read later`(number: Int) throws {
        let (entries, hasFailed) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let fault = ReadFault(at: number) { $0 == .log }
            let log = SimulatedLog(readError: fault.readError)
            let node = try SimulatedNode(
                world, log,
                agents: [
                    agent { _, turn in
                        var feed = try await turn.follow(source)
                        return try await feed.next()?.value ?? "end"
                    }
                ])
            node.channels.submit(CreateChannel(ChannelRow(name: source, contentType: ContentType.json, isAgent: false, created: world.now)))
            {
                _ in
            }
            world.run(deadline: world.now.advanced(by: .milliseconds(10)))
            node.send("x", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            fault.arm()
            node.publish(7)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            let hasFailed = fault.hasFailed
            fault.disarm()
            return (try node.entries(name), hasFailed)
        }
        #expect(entries.last?["output"] == 7, "\(hasFailed) \(short(entries)) \(entries.last?.text ?? "")")
    }

    @Test(arguments: 0..<40 as Range<UInt64>)
    func `that is deleted is woken by nothing`(seed: UInt64) throws {
        let active = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: seed)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        var feed = try await turn.follow(source)
                        return try await feed.next()?.value ?? "end"
                    }
                ])
            node.channels.submit(CreateChannel(ChannelRow(name: source, contentType: ContentType.json, isAgent: false, created: world.now)))
            {
                _ in
            }
            world.run(deadline: world.now.advanced(by: .milliseconds(10)))
            node.send("x", to: name)
            for _ in 0..<(3 + seed % 30) { world.doOne() }
            node.delete(name)
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            node.create(name)
            world.run(deadline: world.now.advanced(by: .seconds(100)))
            let before = node.runtime.activeCount
            node.publish(1)
            world.run(deadline: world.now.advanced(by: .milliseconds(5)))
            return [before, node.runtime.activeCount]
        }
        #expect(active == [0, 0])
    }
}
