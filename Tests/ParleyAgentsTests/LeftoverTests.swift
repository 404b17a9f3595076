import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"

/// A program that works much in its second process, so that the turn is parked for it, and does `side` meanwhile.
private struct Overworked {
    let world: SimulatedWorld
    let node: SimulatedNode

    init(
        seed: UInt64 = 2, steps: Int = 1_300, before: @escaping @Sendable (SimulatedNode) -> Void = { _ in },
        pre: @escaping @Sendable (SimulatedWorld, Turn) async throws -> Void = { _, _ in },
        next: @escaping @Sendable (SimulatedWorld, Turn) async throws -> JSON = { _, _ in "next" },
        side: @escaping @Sendable (SimulatedWorld, Turn) async throws -> JSON
    ) throws {
        func program(_ world: SimulatedWorld, life: Int) -> AnyAgent {
            agent { text, turn in
                guard text == "x" else { return try await next(world, turn) }
                _ = try await turn.step("first") { _ in 1 }
                _ = try await turn.step("hold") { _ in await pause(world, .milliseconds(life == 1 ? 100_000 : 1_000)) }
                try await pre(world, turn)
                let results = try await turn.map("m", [0, 1]) { item, turn in
                    if item == 0 { return try await side(world, turn) }
                    for number in 0..<steps { _ = try await turn.step("s\(number)") { _ in number } }
                    return "worked"
                }
                return results[0]
            }
        }
        let first = SimulatedWorld(seed: 1)
        let before1 = try SimulatedNode(first, SimulatedLog(), agents: [program(first, life: 1)])
        before(before1)
        before1.send("x", to: name)
        first.run(deadline: first.now.advanced(by: .milliseconds(50)))
        world = SimulatedWorld(seed: seed, now: first.now)
        node = try SimulatedNode(world, before1.log.reopen(), agents: [program(world, life: 2)])
    }

    func run(_ seconds: Int) { world.run(deadline: world.now.advanced(by: .seconds(seconds))) }
    func send(_ kind: EntryKind, _ members: (String, JSON?)...) {
        node.send(NewEntry(kind, members: NewEntry.join([("by", "ann")] + members)), to: name)
    }
    func state() throws -> String? { try node.runtime.status(of: name)?["state"]?.string }
}

@Suite struct `What is left of a turn that was halted` {
    @Test func `a body that heeds its cancellation when its turn is parked is not failed in the journal`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            let stage = try Overworked { world, turn in
                try await turn.step("slow") { _ in
                    for _ in 0..<100 {
                        try Task.checkCancellation()
                        await pause(world, .milliseconds(100))
                    }
                    return "whole"
                }
            }
            stage.run(5)
            let state = try stage.state()
            stage.send(.resume)
            stage.run(600)
            return (state, try stage.node.entries(name))
        }
        #expect(state == "parked")
        #expect(entries.last?["output"] == "whole", "\(short(entries).suffix(8))")
    }

    @Test(arguments: 0..<4 as Range<UInt64>)
    func `a body that ends late does not take the agent that was parked and resumed out of memory`(seed: UInt64) throws {
        let (state, entries) = try SimulatedNode.simulate {
            let stage = try Overworked(seed: seed) { world, turn in
                try await turn.step("slow") { _ in
                    await pause(world, .seconds(30))
                    return "whole"
                }
            }
            stage.run(5)
            let state = try stage.state()
            stage.send(.resume)
            stage.run(3_600)
            return (state, try stage.node.entries(name))
        }
        #expect(state == "parked")
        #expect(entries.last?["output"] == "whole", "\(short(entries).suffix(8))")
    }

    /// As B, for a turn that stalls while a body runs.
    @Test func `a body that ends late does not take the agent that stalled and was resumed out of memory`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            @Sendable func program(_ world: SimulatedWorld, _ life: Int, _ runs: Counter) -> AnyAgent {
                agent { text, turn in
                    runs.add("run")
                    let isWrong = life == 2 && runs["run"] == 1
                    let all = try await turn.map("m", [0, 1]) { item, turn -> JSON in
                        if item == 0 {
                            return try await turn.step("slow") { _ in
                                await pause(world, .seconds(30))
                                return "whole"
                            }
                        }
                        if life == 2 { await pause(world, .seconds(1)) }
                        _ = try await turn.step(isWrong ? "other" : "quick") { _ in 1 }
                        return "ok"
                    }
                    return all[0]
                }
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program(first, 1, Counter())])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(50)))
            let world = SimulatedWorld(seed: 2, now: first.now)
            let node = try SimulatedNode(world, before.log.reopen(), agents: [program(world, 2, Counter())])
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            let state = try node.runtime.status(of: name)?["state"]?.string
            node.send(NewEntry(.resume, nil, ("by", "ann")), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(3_600)))
            return (state, try node.entries(name))
        }
        #expect(state == "stalled")
        #expect(entries.last?["output"] == "whole", "\(short(entries).suffix(8))")
    }

    @Test func `a body that ends after its parked turn was cancelled writes nothing and stops nothing`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            let stage = try Overworked(next: { world, turn in
                try await turn.step("long") { _ in
                    await pause(world, .seconds(100))
                    return "next"
                }
            }) { world, turn in
                try await turn.step("slow") { _ in
                    await pause(world, .seconds(30))
                    return "whole"
                }
            }
            stage.run(5)
            let state = try stage.state()
            stage.send(.cancel)
            stage.run(5)
            stage.send(.message, ("text", "y"))
            stage.run(3_600)
            return (state, try stage.node.entries(name))
        }
        #expect(state == "parked")
        #expect(entries.last?["output"] == "next", "\(short(entries).suffix(10))")
    }

    @Test func `a body that ends after its parked turn was cancelled writes nothing`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            let stage = try Overworked { world, turn in
                try await turn.step("slow") { _ in
                    await pause(world, .seconds(30))
                    return "whole"
                }
            }
            stage.run(5)
            let state = try stage.state()
            stage.send(.cancel)
            stage.run(3_600)
            return (state, try stage.node.entries(name))
        }
        #expect(state == "parked")
        #expect(entries.last?["type"] == "turn.cancelled", "\(short(entries).suffix(8))")
        #expect(entries.filter { $0["step"] == "m/0/slow" && ["step.failed", "step.completed"].contains($0["type"]?.string) }.count == 1)
    }

    @Test func `a signal that a parked turn did not want is there for the next one`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            let stage = try Overworked(
                before: { node in
                    node.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "go"), ("data", ["n": 1])), to: name)
                },
                next: { world, turn in
                    try await turn.map("m", [0]) { _, turn in try await turn.wait(for: "go") }[0]
                }
            ) { world, turn in try await turn.wait(for: "go", match: ["n": 2]) }
            stage.run(5)
            let state = try stage.state()
            stage.send(.cancel)
            stage.run(2)
            stage.send(.message, ("text", "y"))
            stage.run(20)
            return (state, try stage.node.entries(name))
        }
        #expect(state == "parked")
        #expect(entries.last?["output"] == ["n": 1], "\(short(entries).suffix(8))")
    }

    @Test func `what had joined a call of a parked turn is not said in the next turn`() throws {
        let models = Mutex<[PlayedModel]>([])
        let (state, entries, asked) = try SimulatedNode.simulate {
            @Sendable func model(_ world: SimulatedWorld) -> PlayedModel {
                models.withLock { models in
                    if models.isEmpty { models.append(PlayedModel(world, [.text("old ")], [.text("new"), .finished(reason: "stop")])) }
                    return models[0]
                }
            }
            let stage = try Overworked(next: { world, turn in
                try await turn.map("m", [0]) { _, turn in
                    .string(try await turn.generate("answer", model(world), .user("second")).text)
                }[0]
            }) { world, turn in .string(try await turn.generate("answer", model(world), .user("first")).text) }
            stage.world.run(deadline: stage.world.now.advanced(by: .milliseconds(500)))
            stage.send(.steer, ("text", "a steer of the first turn"))
            stage.run(5)
            let state = try stage.state()
            stage.send(.cancel)
            stage.run(2)
            stage.send(.message, ("text", "y"))
            stage.run(20)
            return (state, try stage.node.entries(name), models.withLock { $0[0].requests.map { $0.messages.map(\.text) } })
        }
        #expect(state == "parked")
        #expect(entries.last?["output"] == "new", "\(short(entries).suffix(8))")
        #expect(asked.last == ["second"], "\(asked)")
    }

    @Test func `a turn after one that was cancelled and then stalled comes to its end`() throws {
        let (state, entries) = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 5)
            let node = try SimulatedNode(
                first, SimulatedLog(),
                agents: [
                    agent { _, turn in
                        _ = try await turn.step("a") { _ in 1 }
                        return try await turn.wait(for: "never")
                    }
                ])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(100)))
            let world = SimulatedWorld(seed: 6, now: first.now)
            let second = try SimulatedNode(
                world, node.log.reopen(),
                agents: [
                    agent { text, turn in
                        guard text == "x" else { return "fine" }
                        _ = try await turn.step("a") { _ in 1 }
                        await pause(world, .seconds(5))
                        return .integer(Int64(try await turn.step("other") { _ in 1 }))
                    }
                ])
            world.run(deadline: world.now.advanced(by: .seconds(3)))
            second.send(NewEntry(.cancel, nil, ("by", "ann")), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            let state = try second.runtime.status(of: name)?["state"]?.string
            second.send(NewEntry(.cancel, nil, ("by", "ann")), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            second.send("y", to: name)
            world.run(deadline: world.now.advanced(by: .seconds(500)))
            return (state, try second.entries(name))
        }
        #expect(state == "stalled")
        #expect(entries.last?["output"] == "fine", "\(short(entries).suffix(12))")
    }

    @Test func `what counts as work is what the log has, not how many pieces it was made of`() throws {
        struct Burst: Model {
            let name = "burst"
            let continues = Continuation.no
            let world: SimulatedWorld
            final class Call: ModelCall { func cancel() {} }
            func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
                for burst in 1...6 {
                    world.schedule(at: world.now.advanced(by: .milliseconds(10 * burst))) {
                        for _ in 0..<250 { sink.received(.text("a ")) }
                        if burst == 6 { sink.received(.finished(reason: "stop")) }
                    }
                }
                return Call()
            }
        }
        let entries = try SimulatedNode.simulate {
            let stage = try Overworked(steps: 1) { world, turn in
                .string(try await turn.generate("answer", Burst(world: world), .user("first")).text)
            }
            stage.run(50)
            return try stage.node.entries(name)
        }
        let texts = entries.count { $0["type"] == "text" }
        #expect(texts < 100)
        #expect(entries.last?["type"] == "turn.completed", "\(texts) texts: \(short(entries).suffix(3))")
    }

    @Test func `a turn that stalled and never crashed may do as much as it likes`() throws {
        let entries = try SimulatedNode.simulate {
            let right: @Sendable (String, Turn) async throws -> JSON = { _, turn in
                _ = try await turn.wait(for: "go")
                for number in 0..<1_100 { _ = try await turn.step("s\(number)") { _ in number } }
                return "done"
            }
            let wrong: @Sendable (String, Turn) async throws -> JSON = { _, turn in .integer(Int64(try await turn.step("new") { _ in 1 })) }
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            var entries: [JSON] = []
            for life in 1...3 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try SimulatedNode(world, life == 1 ? log : log.reopen(), agents: [agent("probe", life == 2 ? wrong : right)])
                if life == 1 { node.send("x", to: name) }
                if life == 2 { node.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "other")), to: name) }
                world.run(deadline: world.now.advanced(by: .seconds(2)))
                if life == 3 { node.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "go")), to: name) }
                world.run(deadline: world.now.advanced(by: .seconds(20)))
                entries = try node.entries(name)
                node.runtime.drain()
                node.runtime.markDrained()
                world.settle()
                (log, now) = (node.log, world.now)
            }
            return entries
        }
        #expect(entries.contains { $0["type"] == "agent.stalled" })
        #expect(entries.last?["output"] == "done", "\(short(entries).suffix(8)) \(entries.filter { $0["type"] == "supervision" })")
    }

    /// Controls that come about when the turn is parked for what it has done.
    @Test(arguments: 0..<40 as Range<UInt64>)
    func `controls around a park are each decided once, and there is a way out`(seed: UInt64) throws {
        let (entries, state, text) = try SimulatedNode.simulate {
            var random = SplitMix64(seed: seed)
            let at = Int.random(in: 940...1_010, using: &random)
            let kinds: [EntryKind] = (0..<Int.random(in: 1...3, using: &random)).map { _ in
                [.cancel, .interrupt, .resume, .close, .approve, .steer, .message].randomElement(using: &random)!
            }
            let shields = Bool.random(using: &random)
            let nodes = Mutex<[SimulatedNode]>([])
            @Sendable func program(_ world: SimulatedWorld, life: Int) -> AnyAgent {
                agent { text, turn in
                    guard text == "x" else { return "next" }
                    try turn.compensate("undo") { _ in }
                    _ = try await turn.step("first") { _ in 1 }
                    _ = try await turn.step("hold") { _ in await pause(world, .milliseconds(life == 1 ? 100_000 : 1_000)) }
                    for number in 0..<1_100 {
                        if shields, number % 7 == 0 {
                            _ = try await turn.shielded { turn in try await turn.step("t") { _ in 1 } }
                        }
                        _ = try await turn.step("s\(number)") { _ in
                            if number == at, let node = nodes.withLock({ $0.popLast() }) {
                                for kind in kinds {
                                    node.send(
                                        NewEntry(kind, nil, ("by", "ann"), ("text", kind == .cancel ? nil : "later"), ("approval", "x/y")),
                                        to: name)
                                }
                            }
                            return number
                        }
                    }
                    return "whole"
                }
            }
            let first = SimulatedWorld(seed: 1)
            let before = try SimulatedNode(first, SimulatedLog(), agents: [program(first, life: 1)])
            before.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .milliseconds(50)))
            let world = SimulatedWorld(seed: seed, now: first.now)
            let node = try SimulatedNode(world, before.log.reopen(), agents: [program(world, life: 2)])
            nodes.withLock { $0 = [node] }
            world.run(deadline: world.now.advanced(by: .seconds(10)))
            for _ in 0..<2 {
                node.send(NewEntry(.cancel, nil, ("by", "ann")), to: name)
                world.run(deadline: world.now.advanced(by: .seconds(10)))
            }
            let text = "\(kinds) at \(at) shields \(shields)"
            return (try node.entries(name), try node.runtime.status(of: name)?["state"]?.string, text)
        }
        let inputs = entries.filter {
            ["message", "cancel", "interrupt", "resume", "close", "approve", "steer"].contains($0["type"]?.string)
        }
        let wrong = inputs.filter { input in entries.count { $0["type"] == "receipt" && $0["of"] == input["offset"] } != 1 }
        var ends: [String: Int] = [:]
        for entry in entries where entry["type"] == "step.completed" || entry["type"] == "step.failed" && entry["final"] == true {
            ends["\(entry["turn"]!.string!) \(entry["step"]!.string!)", default: 0] += 1
        }
        #expect(
            wrong.isEmpty && ["idle", "closed"].contains(state) && ends.allSatisfy { $0.value == 1 },
            "\(text) \(state ?? "-") \(wrong) \(short(entries).suffix(14))")
    }
}

@Suite struct `Entries for a turn that is halted` {
    @Test(arguments: [EntryKind.cancel, .interrupt])
    func `a control for the turn that is halted is decided as one for it`(kind: EntryKind) throws {
        let receipt = try SimulatedNode.simulate {
            let first = SimulatedWorld(seed: 5)
            let node = try SimulatedNode(first, SimulatedLog(), agents: [agent { _, turn in try await turn.wait(for: "never") }])
            node.send("x", to: name)
            first.run(deadline: first.now.advanced(by: .seconds(1)))
            let world = SimulatedWorld(seed: 6, now: first.now)
            let second = try SimulatedNode(
                world, node.log.reopen(), agents: [agent { _, turn in .integer(Int64(try await turn.step("new") { _ in 1 })) }])
            second.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "other")), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            let state = try second.runtime.status(of: name)?["state"]?.string ?? "-"
            second.send(NewEntry(kind, nil, ("by", "ann"), ("if_turn", "0000000000000001")), to: name)
            world.run(deadline: world.now.advanced(by: .seconds(5)))
            let receipt = try second.entries(name).last { $0["type"] == "receipt" }!
            return "\(state) \(receipt["state"]!.string!) \(receipt["reason"]?.string ?? "")"
        }
        #expect(receipt == "stalled applied ")
    }

    @Test(arguments: [EntryKind.steer, .message, .interrupt, .signal])
    func `what is for the turn that pauses after a crash is not refused because of the pause`(kind: EntryKind) throws {
        let receipts = try SimulatedNode.simulate {
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 0))
            for life in 0..<2 {
                let world = SimulatedWorld(seed: UInt64(life), now: now)
                let node = try SimulatedNode(
                    world, life == 0 ? log : log.reopen(),
                    agents: [
                        agent { _, _ in
                            await withCheckedContinuation { (_: CheckedContinuation<Void, Never>) in }
                            return .null
                        }
                    ])
                if life == 0 { node.send("x", to: name) }
                world.run(deadline: world.now.advanced(by: .milliseconds(1_500)))
                (log, now) = (node.log, world.now)
            }
            let world = SimulatedWorld(seed: 9, now: now)
            let node = try SimulatedNode(
                world, log.reopen(),
                agents: [
                    agent { _, turn in
                        try await turn.step("s") { _ in await pause(world, .seconds(2)) }
                        return .null
                    }
                ])
            world.run(deadline: world.now.advanced(by: .milliseconds(100)))
            node.send(
                NewEntry(kind, nil, ("by", "ann"), ("name", "go"), ("text", "y"), ("if_turn", "0000000000000001")), to: name)
            // Still pausing: nothing is decided yet.
            world.run(deadline: world.now.advanced(by: .milliseconds(200)))
            return try node.entries(name).filter { $0["type"] == "receipt" }.map { "\($0["state"]!.string!) \($0["reason"]?.string ?? "")" }
        }
        #expect(receipts == ["applied "])
    }
}
