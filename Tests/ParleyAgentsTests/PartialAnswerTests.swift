import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

/// How later turns remember an answer that was cut short.
@Suite struct `A partial answer` {
    /// Returns what a turn remembers of one that was interrupted while `talk` was asking a model, and all entries.
    private static func remembered(
        _ talk: @escaping @Sendable (Turn, any Model) async throws -> String
    ) throws -> (history: [String], entries: [JSON]) {
        try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        if text == "look" {
                            return .array(turn.history.flatMap(\.messages).map { .string("\($0.role.rawValue): \($0.text)") })
                        }
                        return .string(try await talk(turn, PlayedModel(world, [.text("It "), .text("begins")])))
                    }
                ])
            node.send("talk", to: name)
            world.go(.milliseconds(300))
            node.send(.interrupt)
            world.go()
            node.send("look", to: name)
            world.go()
            let entries = try node.entries(name)
            return (entries.last?["output"]?.array?.compactMap(\.string) ?? [], entries)
        }
    }

    @Test func `is there once when an interrupt ends the turn`() throws {
        let (history, entries) = try Self.remembered { turn, model in try await turn.generate("one", model, .user("hello")).text }
        let partial = entries.last { $0["type"] == "turn.interrupted" }?["output"]?.string ?? ""
        #expect(!partial.isEmpty, "\(short(entries))")
        #expect(history == ["user: talk", "assistant: \(partial)"], "\(history)")
    }

    @Test func `is there once when the program makes it its output`() throws {
        let (history, _) = try Self.remembered { turn, model in
            do { return try await turn.generate("one", model, .user("hello")).text } catch let end as Interrupted { return end.partial }
        }
        #expect(history.count == 2, "\(history)")
    }

    @Test func `is there of each call that a redirection ends`() throws {
        let history = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        if text == "look" { return .array(turn.history.flatMap(\.messages).map { .string("\($0.role.rawValue)") }) }
                        return .array(
                            try await turn.map("m", [0, 1]) { item, turn in
                                .string(try await turn.generate("one", thirtyTokens(world), .user("hello \(item)")).finishReason)
                            })
                    }
                ])
            node.send("talk", to: name)
            world.go(.milliseconds(300))
            node.send(.interrupt, ("text", "rather"))
            world.go()
            node.send("look", to: name)
            world.go()
            return try node.entries(name).last?["output"]?.array?.compactMap(\.string) ?? []
        }
        #expect(history == ["user", "assistant", "assistant", "user", "assistant"], "\(history)")
    }
}
