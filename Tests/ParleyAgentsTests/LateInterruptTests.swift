import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Testing

private let name = "agents/probe/a"

/// An interrupt with a text that its turn has no use for.
@Suite struct `A late redirection` {
    @Test func `begins a turn of its own behind what was queued before it`() throws {
        let entries = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let node = try SimulatedNode(
                world, SimulatedLog(),
                agents: [
                    agent { text, turn in
                        if text == "first" {
                            try await turn.shielded { turn in try await turn.sleep(.seconds(5)) }
                            return "first done"
                        }
                        return .string(try await turn.generate("one", thirtyTokens(world), .user("hello")).finishReason)
                    }
                ])
            node.send("first", to: name)
            world.go(.seconds(1))
            node.send("second", to: name)
            world.go(.seconds(1))
            node.send(.interrupt, ("text", "third"))
            world.go()
            return try node.entries(name)
        }
        #expect(
            entries.filter { $0["type"] == "turn.completed" }.map { $0["output"]! } == ["first done", "stop", "stop"], "\(short(entries))")
    }

    @Test func `interrupts no other turn, whenever it comes`() throws {
        let wrong = try SimulatedNode.simulate {
            var wrong: [String] = []
            for moment in 0..<200 {
                let world = SimulatedWorld(seed: 1)
                let node = try SimulatedNode(
                    world, SimulatedLog(),
                    agents: [
                        agent { text, turn in
                            if text == "first" { return .integer(Int64(try await turn.step("one") { _ in 1 })) }
                            return .string(try await turn.generate("one", thirtyTokens(world), .user("hello")).finishReason)
                        }
                    ])
                node.send("first", to: name)
                node.send("second", to: name)
                for _ in 0..<moment { world.doOne() }
                node.send(.interrupt, ("text", "third"))
                world.go()
                let entries = try node.entries(name)
                let interrupt = entries.first { $0["type"] == "interrupt" }!["offset"]!.string!
                let receipt = entries.first { $0["type"] == "receipt" && $0["of"]?.string == interrupt }
                let end = entries.first {
                    $0["turn"]?.string == Offset(1).token && $0["type"]?.string?.hasPrefix("turn.") == true && $0["type"] != "turn.started"
                }!["offset"]!.string!
                if interrupt < end, receipt?["turn"]?.string == Offset(2).token, receipt?["state"] == "applied" {
                    wrong.append("\(moment): \(short(entries))")
                }
            }
            return wrong
        }
        #expect(wrong.isEmpty, "\(wrong.count) \(wrong.first ?? "")")
    }
}
