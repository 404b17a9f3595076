import ParleyAgents
import ParleyChannels
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `A list of agents` {
    /// A stage whose agent asks for approval of what it is told, and fails when that is denied.
    private func stage() throws -> RecordStage {
        try RecordStage { _ in
            AnyAgent(kind: "probe") { message, turn, state in
                _ = try await turn.step("prepare") { _ in 1 }
                _ = try await turn.approval(message["text"]?.string ?? "", of: [1], expires: .seconds(3_600))
                return (.null, state ?? [:])
            }
        }
    }

    private func list(_ stage: RecordStage, _ change: (inout AgentListQuery) -> Void = { $0.hasDetails = true }) throws -> JSON {
        var query = AgentListQuery()
        change(&query)
        return try stage.node.runtime.list(query)
    }

    @Test func `says of one that waits what for, and of one that is idle how its last turn ended`() throws {
        let stage = try stage()
        stage.send(.message, ("text", "publish"))
        stage.run(for: .seconds(1))
        let waiting = try #require(try list(stage)["agents"]?.array?.first)
        #expect(waiting["state"] == "waiting" && waiting["last_turn"] == nil)
        let waits = waiting["waiting_for"]?.array ?? []
        #expect(waits.map { $0["kind"]?.string } == ["approval"] && waits[0]["name"] == "publish" && waits[0]["due"] != nil)
        #expect(waiting["updated"] == (try stage.entries().last?["at"]))

        let approval = try #require(try stage.entries("approval.requested").first?["approval"])
        stage.send(.deny, ("approval", approval))
        stage.run(for: .seconds(1))
        let failed = try #require(try list(stage)["agents"]?.array?.first)
        #expect(failed["state"] == "idle" && failed["waiting_for"] == nil)
        #expect(failed["last_turn"]?["state"] == "failed" && failed["last_turn"]?["error"]?["code"] == "approval_denied")
    }

    @Test func `says nothing of that unless it is asked, and counts only what may be seen`() throws {
        let stage = try stage()
        stage.send(.message, ("text", "publish"))
        stage.run(for: .seconds(1))
        let plain = try list(stage) { _ in }
        #expect(plain["agents"]?.array?.first?["waiting_for"] == nil && plain["counts"] == nil)
        let counts = try list(stage) { $0.hasCounts = true }["counts"]
        #expect(counts?["waiting"] == 1 && counts?["idle"] == 0)
        let hidden = try list(stage) {
            $0.hasCounts = true
            $0.isShown = { _ in false }
        }
        #expect(hidden["counts"]?["waiting"] == 0 && hidden["agents"]?.array?.isEmpty == true)
    }
}
