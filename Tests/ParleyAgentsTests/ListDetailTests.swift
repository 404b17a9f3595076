import ParleyAgents
import ParleyChannels
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `A list of agents` {
    /// A stage whose agent asks for approval of its message, and fails when that is denied.
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

    @Test func `says what one waits for that also runs, however much it writes meanwhile, and until when`() throws {
        let (running, busy, later, none) = try SimulatedNode.simulate {
            let stage = try RecordStage { model in
                AnyAgent(kind: "probe") { _, turn, state in
                    let scopes = try ["a", "b", "c", "d"].map { try turn.scope($0) }
                    // 80 seconds of text.
                    async let text = scopes[3].generate("text", model, .user("say:" + String(repeating: " word", count: 4_000)))
                    async let slept: Void = scopes[0].sleep(.seconds(3_600))
                    async let signal = scopes[1].wait(for: "go", timeout: .seconds(60))
                    async let approved = scopes[2].approval("publish", of: [1])
                    _ = try await (text, slept, try? signal, approved)
                    return (.null, state ?? [:])
                }
            }
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(1))
            let running = try #require(try self.list(stage)["agents"]?.array?.first)
            // Far more entries than the newest few hundred.
            stage.run(for: .seconds(50))
            let busy = try #require(try self.list(stage)["agents"]?.array?.first)
            stage.run(for: .seconds(20))
            let later = try #require(try self.list(stage)["agents"]?.array?.first)
            stage.send(.cancel)
            stage.run(for: .seconds(1))
            let none = try #require(try self.list(stage)["agents"]?.array?.first)
            return (running, busy, later, none)
        }
        #expect(running["state"] == "running")
        let waits = Dictionary((running["waiting_for"]?.array ?? []).map { ($0["kind"]?.string ?? "", $0) }, uniquingKeysWith: { $1 })
        #expect(waits.mapValues { $0["name"]?.string } == ["sleep": "sleep", "wait": "go", "approval": "publish"])
        #expect(waits.mapValues { $0["due"] != nil } == ["sleep": true, "wait": true, "approval": false])
        #expect(busy["state"] == "running" && busy["waiting_for"] == running["waiting_for"])
        #expect(Set(later["waiting_for"]?.array?.map { $0["kind"]?.string } ?? []) == ["sleep", "approval"], "the wait for the signal is over")
        #expect(none["state"] == "idle" && none["waiting_for"] == nil)
    }

    @Test func `says it of one that another process began, and of its next turn`() throws {
        let (found, next) = try SimulatedNode.simulate {
            let stage = try self.stage()
            stage.send(.message, ("text", "publish"))
            stage.run(for: .seconds(1))
            _ = try self.list(stage)
            let approval = try #require(try stage.entries("approval.requested").first?["approval"])
            stage.send(.approve, ("approval", approval))
            stage.run(for: .seconds(1))
            stage.send(.message, ("text", "print"))
            stage.run(for: .seconds(1))
            let next = try self.list(stage)["agents"]?.array?.first?["waiting_for"]
            let after = try SimulatedNode(SimulatedWorld(seed: 5, now: stage.world.now), stage.node.log.reopen(), agents: [])
            var query = AgentListQuery()
            query.hasDetails = true
            let found = try after.runtime.list(query)["agents"]?.array?.first?["waiting_for"]
            return (found, next)
        }
        #expect(next?.array?.map { $0["name"] } == ["print"] && found == next)
    }

    @Test func `names in a status what each step waits for, and what a person or a signal has to say to it`() throws {
        let waits = try SimulatedNode.simulate {
            let stage = try RecordStage { _ in
                AnyAgent(kind: "probe") { _, turn, state in
                    let scopes = try ["a", "b", "c"].map { try turn.scope($0) }
                    async let paid = scopes[2].wait(for: "payment", match: ["order": "42"])
                    async let small = scopes[0].approval("publish", of: ["path": "a.md"])
                    async let large = scopes[1].approval("publish", of: ["path": String(repeating: "x", count: 5_000)])
                    _ = try await (paid, small, large)
                    return (.null, state ?? [:])
                }
            }
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(1))
            let waits = try stage.node.runtime.status(of: stage.name)?["waiting_for"]?.array ?? []
            return waits
        }
        let byStep = Dictionary(waits.map { ($0["step"]?.string ?? "", $0) }, uniquingKeysWith: { $1 })
        #expect(byStep["c/payment"]?["name"] == "payment" && byStep["c/payment"]?["match"] == ["order": "42"])
        #expect(byStep["a/publish"]?["name"] == "publish" && byStep["a/publish"]?["args"] == ["path": "a.md"])
        #expect(byStep["b/publish"]?["name"] == "publish" && byStep["b/publish"]?["args"] == nil, "it is too long for a status")
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
