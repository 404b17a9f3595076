import ParleySystem
import ParleyTesting
import Testing

/// The outcome of a steer that is sent while a tool of the turn runs.
@Suite struct `A steer` {
    @Test(arguments: [false, true])
    func `sent while a tool runs joins the next call of the model once`(isKilled: Bool) async throws {
        try await OwnThread.run {
            let (node, upstream) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let turn = try conversation.begin("gate tool", "model answer", "model more")
            try conversation.wait(for: "step.started", step: "tool")
            let steer = try conversation.say("steer", ("text", "Keep it short."))
            // Accepted is durable: the call has not been made, and is made by the next process.
            if isKilled { try conversation.killAndRestart() }
            try conversation.open("tool")
            let end = try conversation.waitForEnd(of: turn)

            let receipt = try conversation.receipt(of: steer)
            #expect(receipt["state"] == "applied" && receipt["turn"]?.string == turn && receipt["step"] == "answer")
            #expect(try conversation.entries("receipt").count { $0["of"]?.string == steer } == 1)
            #expect(Conversation.gave(end)["answer"]?["steers"] == ["Keep it short."])
            #expect(Conversation.gave(end)["more"]?["steers"] == [])
            let said = upstream.records.map { record in
                (record.body["messages"]?.array ?? []).count { $0["role"] == "user" && $0["content"] == "Keep it short." }
            }
            #expect(said == [1, 0], "the model was told \(said) times, call by call")
        }
    }

    @Test func `that no later call takes becomes the next message, or expires when it was meant for that turn`() async throws {
        try await OwnThread.run {
            let (node, upstream) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let turn = try conversation.begin("gate tool")
            try conversation.wait(for: "step.started", step: "tool")
            let meant = try conversation.say("steer", ("text", "For that turn."), ("if_turn", .string(turn)))
            let steer = try conversation.say("steer", ("data", Conversation.plan(["note next"])))
            try conversation.open("tool")
            #expect(try conversation.waitForEnd(of: steer)["type"] == "turn.completed")
            #expect(try conversation.verdict(on: meant) == "expired turn_ended")
            #expect(try conversation.receipt(of: steer)["turn"]?.string == steer)
            #expect(conversation.runs("next", turn: steer) == 1)
            #expect(try conversation.entries("receipt").count == 3)
            #expect(upstream.records.isEmpty)
        }
    }
}
