import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

extension SimulatedWorld {
    fileprivate func go(_ duration: Duration = .seconds(60)) { run(deadline: now.advanced(by: duration)) }
}

private func scripted(_ world: any World) -> ScriptedModel {
    var options = ScriptedModel.Options()
    (options.tokens, options.rate) = (30, 50)
    return ScriptedModel(options, world: world)
}

/// What later turns remember of an answer that was cut short.
@Suite struct `A partial answer` {
    @Test func `is there once when an interrupt ends the turn`() throws {
        let (history, partial, entries) = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        if text == "look" {
                            return .array(turn.history.flatMap(\.messages).map { .string("\($0.role.rawValue): \($0.text)") })
                        }
                        return .string(
                            try await turn.generate("one", PlayedModel(world, [.text("It "), .text("begins")]), .user("hello")).text)
                    }
                ])
            node.send("talk", to: name)
            world.go(.milliseconds(300))
            node.send(.interrupt)
            world.go()
            let partial = try node.entries(name).last { $0["type"] == "turn.interrupted" }?["output"]?.string
            node.send("look", to: name)
            world.go()
            return (try node.entries(name).last?["output"]?.array?.compactMap(\.string) ?? [], partial ?? "", try node.entries(name))
        }
        #expect(!partial.isEmpty, "\(short(entries))")
        #expect(history == ["user: talk", "assistant: \(partial)"], "\(history)")
    }

    @Test func `is there once when the program makes it its output`() throws {
        let history = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        if text == "look" {
                            return .array(turn.history.flatMap(\.messages).map { .string("\($0.role.rawValue): \($0.text)") })
                        }
                        do {
                            return .string(
                                try await turn.generate("one", PlayedModel(world, [.text("It "), .text("begins")]), .user("hello")).text)
                        } catch let end as Interrupted {
                            return .string(end.partial)
                        }
                    }
                ])
            node.send("talk", to: name)
            world.go(.milliseconds(300))
            node.send(.interrupt)
            world.go()
            node.send("look", to: name)
            world.go()
            return try node.entries(name).last?["output"]?.array?.compactMap(\.string) ?? []
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
                                .string(try await turn.generate("one", scripted(world), .user("hello \(item)")).finishReason)
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
