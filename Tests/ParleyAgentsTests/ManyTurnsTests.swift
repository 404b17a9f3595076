import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

private let name = "agents/probe/a"

/// An agent that says what was said before, and then what is said now.
private func companion(_ model: any Model, _ began: @escaping @Sendable (Turn) -> Void = { _ in }) -> AnyAgent {
    agent { text, turn in
        began(turn)
        let messages = [.system("Be brief.")] + turn.history.flatMap(\.messages) + [turn.input(text)]
        return .string(try await turn.generate("answer", model, messages).text)
    }
}

/// Objects that are to be released.
private final class Held<Object: AnyObject & Sendable>: Sendable {
    private struct Reference: Sendable { weak let object: Object? }
    private let references = Mutex<[Reference]>([])

    func add(_ object: Object) { references.withLock { $0.append(Reference(object: object)) } }
    var count: Int { references.withLock { $0.count } }
    var aliveCount: Int { references.withLock { $0.count { $0.object != nil } } }
}

@Suite struct `Many turns of one conversation` {
    @Test func `cost as much for each in the log, and show their exact requests`() throws {
        let count = 400
        let (written, last, parts, seen, shown) = try SimulatedNode.simulate {
            let written = Mutex(0)
            let log = SimulatedLog(outcome: { _, batches in
                let count = batches.reduce(0) { $0 + $1.bytes.count }
                written.withLock { $0 += count }
                return .acknowledged
            })
            let atTurn = Mutex<[Int]>([])
            let world = SimulatedWorld(seed: 1)
            let model = RecordingModel(scripted(world))
            let node = try SimulatedNode(
                world, log,
                agents: [
                    companion(model) { _ in
                        let bytes = written.withLock { $0 }
                        atTurn.withLock { $0.append(bytes) }
                    }
                ])
            for number in 0..<count {
                node.send("say: word \(number)", to: name)
                world.run(deadline: world.now.advanced(by: .seconds(1)))
            }
            let starts = try node.entries(name).filter { $0["type"] == "step.started" }
            let request = AgentRequest(node.channels, try node.channels.find(name)!)
            let shown = try [10, count / 2, count - 1].map { number in
                let start = starts[number]
                return (start["idempotency_key"]!.string!, try request.answer(Offset(token: start["offset"]!.string!)!.value))
            }
            let seen = model.seen.withLock { seen in [10, count / 2, count - 1].map { seen[$0] } }
            return (
                atTurn.withLock { $0 }, try node.entries(name).last?["type"]?.string, starts.last?["request"]?["parts"]?.array, seen, shown
            )
        }
        #expect(last == "turn.completed" && written.count == count)
        let (early, late) = (written[120] - written[20], written[count - 1] - written[count - 101])
        #expect(late * 10 <= early * 11, "the last 100 turns wrote \(late) bytes, the first \(early)")
        #expect(parts?.count == 3 && parts?[1]["count"]?.integer == Int64(2 * (count - 1)), "\(parts?.count ?? 0) parts")
        #expect(seen[2].messages.count == 2 * count && notShown(seen, shown).isEmpty)
    }

    @Test func `leave nothing in memory but the last, and nothing at all once the agent has left`() throws {
        let (begun, alive, afterwards) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let (cores, activations) = (Held<TurnTask>(), Held<AgentDriver>())
            let runtime = Mutex<AgentRuntime?>(nil)
            // Each word takes its time, so that it can be interrupted, steered and cancelled.
            let model = RecordingModel(scripted(world, rate: 20)) { $0 % 5 == 4 }
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    companion(model) { turn in
                        cores.add(turn.task)
                        if let activation = runtime.withLock({ $0 })?.directory.activation(name) { activations.add(activation) }
                    }
                ])
            runtime.withLock { $0 = node.runtime }
            for number in 0..<40 {
                node.send("say: one two three four five six \(number)", to: name)
                world.run(deadline: world.now.advanced(by: .milliseconds(150)))
                switch number % 4 {
                case 1: node.send(NewEntry(.interrupt, nil, ("by", "ann"), ("text", "say: rather this")), to: name)
                case 2: node.send(NewEntry(.cancel, nil, ("by", "ann")), to: name)
                case 3: node.send(NewEntry(.steer, nil, ("by", "ann"), ("text", "and that")), to: name)
                default: break
                }
                world.run(deadline: world.now.advanced(by: .seconds(10)))
            }
            let (begun, alive) = (cores.count, cores.aliveCount)
            world.run(deadline: world.now.advanced(by: .seconds(300)))
            runtime.withLock { $0 = nil }
            return (begun, alive, (cores.aliveCount, activations.count, activations.aliveCount))
        }
        #expect(begun >= 40 && alive <= 1, "\(alive) turns of \(begun) are in memory")
        #expect(afterwards.1 >= 40 && afterwards == (0, afterwards.1, 0))
    }

    @Test(arguments: [0, 1_500, 1 << 20])
    func `are the same where there is no room to keep them, and what is kept is given back`(bytesMax: Int) throws {
        let (seen, most, rest) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let model = RecordingModel(scripted(world))
            let budget = ConversationBudget(bytesMax: bytesMax)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [companion(model)], conversations: budget)
            var most = 0
            for number in 0..<12 {
                for agent in ["a", "b"] { node.send("say: word \(number)", to: "agents/probe/\(agent)") }
                world.run(deadline: world.now.advanced(by: .seconds(1)))
                most = max(most, budget.usedBytes)
            }
            world.run(deadline: world.now.advanced(by: .seconds(300)))
            return (model.seen.withLock { $0.map(\.messages.count) }, most, budget.usedBytes)
        }
        #expect(seen.sorted() == (0..<24).map { 2 + $0 / 2 * 2 })
        #expect(most <= bytesMax && (most > 0 || bytesMax == 0) && rest == 0, "\(most) bytes, \(rest) in the end")
    }

    @Test func `are told by their offsets also when inputs queued, joined and interrupted`() throws {
        let (ranges, seen, shown) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let model = RecordingModel(scripted(world, rate: 20))
            let node = try SimulatedNode(world, SimulatedLog(), agents: [companion(model)])
            for number in 0..<24 {
                node.send("say: one two three four five six \(number)", to: name)
                // Some wait for the turn before them, so that inputs and turns overlap in the log.
                guard number % 3 == 2 else { continue }
                world.run(deadline: world.now.advanced(by: .milliseconds(200)))
                node.send(NewEntry(.interrupt, nil, ("by", "ann"), ("text", "say: rather this")), to: name)
                node.send(NewEntry(.steer, nil, ("by", "ann"), ("text", "and that")), to: name)
                world.run(deadline: world.now.advanced(by: .seconds(20)))
            }
            let request = AgentRequest(node.channels, try node.channels.find(name)!)
            let starts = try node.entries(name).filter { $0["type"] == "step.started" }
            let ranges = starts.count { $0["request"]?["parts"]?.array?.contains { $0["from"] != nil } ?? false }
            let shown = try starts.map { start in
                (start["idempotency_key"]!.string!, try request.answer(Offset(token: start["offset"]!.string!)!.value))
            }
            return (ranges, model.seen.withLock { $0 }, shown)
        }
        #expect(ranges > 10 && seen.count > 20)
        #expect(notShown(seen, shown).isEmpty)
    }
}
