import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyAgents

@Suite struct `The memory for turns` {
    private static let large = String(repeating: "x", count: 10_000)

    /// Agents that get `inputs` at once, with room for about `turns` large ones: their outputs, and what was held and waited at most.
    private static func flood(
        _ inputs: [String], room: Int, for time: Duration = .seconds(3_600),
        _ program: @escaping @Sendable (SimulatedWorld, String, Turn) async throws -> JSON
    ) throws -> (outputs: [JSON?], held: Int, waited: Int, left: Int) {
        try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 3)
            let node = try SimulatedNode(
                world, SimulatedLog(), agents: [agent { text, turn in try await program(world, text, turn) }], turnBytesMax: room)
            for (index, input) in inputs.enumerated() { node.send(input, to: "agents/probe/a\(index)") }
            var (held, waited) = (0, 0)
            world.run(deadline: world.now.advanced(by: time)) {
                held = max(held, node.runtime.memory.turns.usedBytes)
                waited = max(waited, node.runtime.waitingCount)
                return false
            }
            let outputs = try inputs.indices.map { try node.entries("agents/probe/a\($0)").last?["output"] }
            return (outputs, held, waited, node.runtime.memory.turns.usedBytes)
        }
    }

    private static func work(_ world: SimulatedWorld, _ text: String, _ turn: Turn) async throws -> JSON {
        try await turn.step("work") { _ in
            await pause(world, .milliseconds(50))
            return "done"
        }
    }

    @Test func `is shared by all, and those that find no room have their turn later`() throws {
        let (outputs, held, waited, left) = try Self.flood(Array(repeating: Self.large, count: 40), room: 120_000, Self.work)
        #expect(outputs.allSatisfy { $0 == "done" })
        #expect(held <= 120_000 && held > 20_000)
        #expect(waited > 30)
        #expect(left == 0)
    }

    @Test func `lets one turn in, however large it is`() throws {
        let (outputs, _, waited, _) = try Self.flood(Array(repeating: Self.large, count: 5), room: 1_000, Self.work)
        #expect(outputs.allSatisfy { $0 == "done" })
        #expect(waited == 4)
    }

    @Test func `has room for small turns while large ones fill it`() throws {
        let begun = Mutex<[String]>([])
        let (outputs, _, _, _) = try Self.flood(Array(repeating: Self.large, count: 20) + ["small"], room: 120_000) { world, text, turn in
            begun.withLock { $0.append(String(text.prefix(5))) }
            return try await Self.work(world, text, turn)
        }
        #expect(outputs.allSatisfy { $0 == "done" })
        let place = try #require(begun.withLock { $0.firstIndex(of: "small") })
        #expect(place < 8, "it began as number \(place + 1)")
    }

    /// Turns may wait for one another: ones that have room for ones that have none.
    @Test func `lets the first in that has waited for long`() throws {
        let (outputs, _, waited, _) = try Self.flood(Array(repeating: Self.large, count: 4), room: 1_000) { world, text, turn in
            let isLast = turn.channel == "agents/probe/a3"
            return try await turn.step("work") { _ in
                if isLast { return "done" }
                await pause(world, .seconds(100_000))
                return "late"
            }
        }
        #expect(outputs.last == "done")
        #expect(waited == 3)
    }

    @Test func `is given back by a turn that is passivated to wait`() throws {
        let (outputs, _, _, left) = try Self.flood(Array(repeating: Self.large, count: 4), room: 1_000, for: .seconds(600)) { _, _, turn in
            try await turn.sleep(.seconds(100_000))
            return "late"
        }
        #expect(outputs.allSatisfy { $0 == nil } && left == 0)
    }
}

@Suite struct `The memory for answers` {
    @Test func `is shared, and one that waits gets what it asks for`() {
        let texts = AnswerTexts(bytesMax: 1 << 20)
        let went = Mutex<[String]>([])
        func grow(_ share: AnswerTexts.Share, _ count: Int, _ name: String) -> Bool {
            share.grow(to: count) { went.withLock { $0.append(name) } }
        }
        var (first, second, third): (AnswerTexts.Share?, AnswerTexts.Share?, AnswerTexts.Share?) = (
            texts.share(), texts.share(), texts.share()
        )
        #expect(grow(first!, 60_000, "first") && texts.usedBytes == 0)
        for count in 1...4 { #expect(grow(first!, count * 256 << 10, "first")) }
        #expect(texts.usedBytes == 1 << 20)
        // It is the first that finds no room, and so the one that comes to its end.
        #expect(grow(second!, 100_000, "second") && grow(second!, 1_000_000, "second") && texts.usedBytes > 1 << 20)
        #expect(!grow(third!, 100_000, "third") && !grow(first!, 2 << 20, "first"))
        second!.end()
        #expect(went.withLock { $0 } == ["third"])
        third = nil
        second = nil
        #expect(went.withLock { $0 } == ["third", "first"])
        first = nil
        #expect(texts.usedBytes == 0 && texts.waitingCount == 0)
    }

    /// A call that notes what it is told.
    private final class NotedCall: ModelCall {
        let told = Mutex<[String]>([])
        func cancel() { told.withLock { $0.append("cancel") } }
        func pause() { told.withLock { $0.append("pause") } }
        func resume() { told.withLock { $0.append("resume") } }
    }

    private struct NotedModel: Model {
        let call = NotedCall()
        var name: String { "noted:" }
        var continues: Continuation { .no }
        func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall { call }
    }

    @Test func `pauses an answer that finds no room until there is some`() {
        let texts = AnswerTexts(bytesMax: 0)
        let text = String(repeating: "x", count: 50_000)
        func attempt(_ model: NotedModel) -> ModelAttempt {
            let position = Position(turn: 1, step: "g", attempt: 1)
            let attempt = ModelAttempt(position: position, saved: SavedText(), world: SimulatedWorld(seed: 1), share: texts.share()) {
                _, _ in
            } end: { _ in
            }
            attempt.start(model, ModelRequest(messages: []))
            return attempt
        }
        let (one, other) = (NotedModel(), NotedModel())
        var (going, waiting): (ModelAttempt?, ModelAttempt?) = (attempt(one), attempt(other))
        for _ in 0..<20 { going!.received(.text(text)) }
        for _ in 0..<3 { waiting!.received(.text(text)) }
        #expect(one.call.told.withLock { $0 } == [])
        #expect(other.call.told.withLock { $0 } == ["pause"])
        going!.received(.finished(reason: "stop"))
        going!.share.end()
        going = nil
        #expect(other.call.told.withLock { $0 } == ["pause", "resume"])
        waiting = nil
        #expect(texts.usedBytes == 0)
    }
}
