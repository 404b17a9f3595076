import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyServer

/// What clients learn that wait for the turn of an input.
@Suite struct `The outcome of an input` {
    private static let name = "agents/probe/a"

    /// An agent whose turn waits, then asks a model, and says what ended it.
    private static func agent(_ world: SimulatedWorld, _ policy: ConcurrentInput) -> AnyAgent {
        let model = ScriptedModel(ScriptedModel.Options(), world: world)
        return AnyAgent(kind: "probe", policy: policy) { _, turn, _ in
            do { try await turn.sleep(.seconds(10)) } catch is Interrupted { return ("interrupted", [:]) }
            let answer = try await turn.generate("answer", model, .user("hello"))
            return (.integer(Int64(answer.steers.count)), [:])
        }
    }

    @Test(arguments: [(ConcurrentInput.interrupt, JSON.string("interrupted")), (.steer, 1)])
    func `that joins another turn is the end of that turn`(_ policy: ConcurrentInput, _ output: JSON) throws {
        let ends = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(world, SimulatedLog(), agents: [Self.agent(world, policy)])
            node.send("first", to: Self.name)
            world.run(deadline: world.now.advanced(by: .seconds(1)))
            let (ends, questions) = (RecordedEntries(), RecordedEntries.Questions())
            // Before it is decided, and once it is; what it waits for is yet to come.
            node.send("second", to: Self.name) { result in
                guard let offset = try? result.get().offsets.first.map(Offset.init) else { return }
                questions.add(
                    node.runtime.outcome(of: offset, in: Self.name) { _ in
                    } _: { _, json in
                        ends.add(json())
                    })
            }
            world.run(deadline: world.now.advanced(by: .seconds(60)))
            questions.cancel()
            return ends.entries
        }
        #expect(ends.count == 1)
        #expect(ends.first?["type"] == "turn.completed" && ends.first?["turn"] == "0000000000000001")
        #expect(ends.first?["output"] == output)
    }

    @Test func `whose turn stalled and was taken up again is the end of that turn`() throws {
        let (stalled, ended) = try SimulatedNode.simulate {
            let whole = AnyAgent(kind: "probe") { _, turn, _ in (try await turn.wait(for: "go"), [:]) }
            let other = AnyAgent(kind: "probe") { _, turn, _ in (.integer(Int64(try await turn.step("new") { _ in 1 })), [:]) }
            let worlds = (1...3).map { SimulatedWorld(seed: UInt64($0)) }
            let first = try SimulatedNode(worlds[0], SimulatedLog(), agents: [whole])
            first.send("x", to: Self.name)
            worlds[0].run(deadline: worlds[0].now.advanced(by: .seconds(1)))
            let second = try SimulatedNode(worlds[1], first.log.reopen(), agents: [other])
            second.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "other")), to: Self.name)
            worlds[1].run(deadline: worlds[1].now.advanced(by: .seconds(60)))
            let stalled = try Self.outcome(second)
            let third = try SimulatedNode(worlds[2], second.log.reopen(), agents: [whole])
            worlds[2].run(deadline: worlds[2].now.advanced(by: .seconds(60)))
            third.send(NewEntry(.signal, nil, ("by", "ann"), ("name", "go")), to: Self.name)
            worlds[2].run(deadline: worlds[2].now.advanced(by: .seconds(60)))
            return (stalled, try Self.outcome(third))
        }
        #expect(stalled == "agent.stalled")
        #expect(ended == "turn.completed")
    }

    @Test func `whose channel goes, or goes to another node, is that`() throws {
        let gone = try SimulatedNode.simulate {
            func gone(_ end: (SimulatedNode) -> Void) throws -> [String] {
                let world = SimulatedWorld(seed: 1)
                let agent = AnyAgent(kind: "probe") { _, turn, _ in (try await turn.wait(for: "go"), [:]) }
                let node = try SimulatedNode(world, SimulatedLog(), agents: [agent])
                node.send("x", to: Self.name)
                world.run(deadline: world.now.advanced(by: .seconds(1)))
                let told = RecordedEntries()
                let question = node.runtime.outcome(of: Offset(1), in: Self.name) { error in
                    told.add(JSON.string(error.code).bytes)
                } _: { _, _ in
                }
                world.run(deadline: world.now.advanced(by: .seconds(1)))
                end(node)
                world.run(deadline: world.now.advanced(by: .seconds(1)))
                question.cancel()
                return told.entries.compactMap(\.string)
            }
            let row = ChannelRow(name: Self.name, contentType: ContentType.json, isAgent: true, created: Timestamp(milliseconds: 0))
            return try gone { $0.channels.submit(DeleteChannel(Self.name)) }
                + gone { node in
                    // In one commit, so that the name is never seen free.
                    node.channels.submit(DeleteChannel(Self.name))
                    node.channels.submit(CreateChannel(row))
                }
                + gone { $0.channels.close(Placement.partition(of: Self.name)) { _ in } }
        }
        #expect(gone == ["agent_deleted", "agent_deleted", "partition_unavailable"])
    }

    /// The type of the entry that the first input's sender is told.
    private static func outcome(_ node: SimulatedNode) throws -> JSON? {
        let told = RecordedEntries()
        _ = try node.runtime.outcome(of: Offset(1), in: name, tell: { _, json in told.add(json()) })
        return told.entries.first?["type"]
    }
}

private final class RecordedEntries: Sendable {
    final class Questions: Sendable {
        private let all = Mutex<[any Scheduled]>([])

        func add(_ question: any Scheduled) { all.withLock { $0.append(question) } }
        func cancel() { for question in all.withLock({ $0 }) { question.cancel() } }
    }

    private let all = Mutex<[JSON]>([])

    var entries: [JSON] { all.withLock { $0 } }
    func add(_ entry: Bytes) { all.withLock { $0.append((try? JSON.parse(entry)) ?? .null) } }
}
