import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Testing

/// A node with one agent in a simulated world that is asked for its past.
struct RecordStage {
    let world: SimulatedWorld
    let node: SimulatedNode
    let name = "agents/probe/a"

    init(
        seed: UInt64 = 1, now: Timestamp = Timestamp(milliseconds: 1_767_225_600_000), log: SimulatedLog = SimulatedLog(),
        _ agent: (any Model) -> AnyAgent
    ) throws {
        world = SimulatedWorld(seed: seed, now: now)
        var options = ScriptedModel.Options()
        (options.tokens, options.rate) = (20, 50)
        node = try SimulatedNode(world, log, agents: [agent(ScriptedModel(options, world: world))])
    }

    func send(_ kind: EntryKind, by: String = "ann", _ members: (String, JSON?)...) {
        node.send(NewEntry(kind, members: NewEntry.join([("by", .string(by))] + members)), to: name)
    }

    func run(for duration: Duration) { world.run(deadline: world.now.advanced(by: duration)) }

    /// Entries as an agent's owner writes them, without an agent.
    func write(_ entries: [NewEntry]) {
        var append = Append(to: name, entries)
        append.creates = ChannelRow(name: name, contentType: ContentType.json, isAgent: true, created: world.now)
        node.channels.submit(append)
        world.settle()
    }

    func trace(_ query: TraceQuery = TraceQuery()) throws -> JSON {
        try AgentTrace(node.channels, try #require(try node.channels.find(name))).answer(query)
    }

    func audit(_ query: AuditQuery = AuditQuery()) throws -> JSON {
        try AgentAudit(node.channels, try #require(try node.channels.find(name))).answer(query)
    }

    func entries(_ type: String? = nil) throws -> [JSON] { try node.entries(name).filter { type == nil || $0["type"]?.string == type } }
}

extension JSON {
    /// The steps of a turn and below each other, as `path kind state`, indented by depth.
    fileprivate func outline(_ depth: Int = 0) -> [String] {
        (self["steps"]?.array ?? []).flatMap { step in
            [
                String(repeating: " ", count: depth)
                    + "\(step["step"]!.string!) \(step["kind"]!.string!) \(step["state"]!.string!)"
            ] + step.outline(depth + 1)
        }
    }

    fileprivate func step(_ path: String) -> JSON? {
        for step in self["steps"]?.array ?? [] {
            if step["step"]?.string == path { return step }
            if let found = step.step(path) { return found }
        }
        return nil
    }
}

@Suite struct `The trace` {
    @Test func `shows a turn as the tree of its scopes, with times, tokens and sums`() throws {
        let (page, entries) = try SimulatedNode.simulate {
            let stage = try RecordStage { model in
                agent { _, turn in
                    _ = try await turn.map("research", ["a", "b"]) { text, turn in
                        let text = try await turn.generate("answer", model, .user(text)).text
                        return try await turn.step("count") { _ in text.utf8.count }
                    }
                    try await turn.sleep(.seconds(100))
                    return .integer(Int64(try await turn.step("sum") { _ in 3 }))
                }
            }
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(200))
            return (try stage.trace(), try stage.entries())
        }
        let turn = try #require(page["turns"]?.array?.first)
        #expect(
            turn.outline() == [
                "research scope completed", " research/0 scope completed", "  research/0/answer model completed",
                "  research/0/count step completed", " research/1 scope completed", "  research/1/answer model completed",
                "  research/1/count step completed", "sleep sleep completed", "sum step completed",
            ])
        #expect(turn["state"] == "completed" && turn["turn"] == "0000000000000001" && page["next"] == nil)
        #expect(turn["input"]?["by"] == "ann" && turn["input"]?["text"] == "go")
        // The figures are those of the entries.
        let answer = try #require(turn.step("research/1/answer"))
        let start = try #require(entries.first { $0["type"] == "step.started" && $0["step"] == "research/1/answer" })
        let end = try #require(entries.first { $0["type"] == "step.completed" && $0["step"] == "research/1/answer" })
        #expect(answer["started"] == start["at"] && answer["ended"] == end["at"] && answer["model"] == start["request"]?["model"])
        #expect(answer["input_tokens"] == end["usage"]?["input_tokens"] && answer["output_tokens"] == end["usage"]?["output_tokens"])
        #expect(answer["attempts"]?.array?.count == 1 && answer["attempts"]?.array?[0]["offset"] == start["offset"])
        #expect(turn.step("sleep")?["duration_ms"] == 100_000)
        let used = entries.filter { $0["usage"] != nil }.reduce(0) { $0 + $1["usage"]!["output_tokens"]!.integer! }
        #expect(turn["totals"]?["output_tokens"]?.integer == used && page["totals"]?["output_tokens"]?.integer == used)
        #expect(turn["totals"]?["steps"] == 6 && turn["totals"]?["waiting_ms"] == 100_000 && page["totals"]?["turns"] == 1)
        #expect(turn["ended"] == entries.last?["at"])
    }

    @Test func `shows attempts that failed, with their errors, and what a person did where it applied`() throws {
        let page = try SimulatedNode.simulate {
            let stage = try RecordStage { model in
                agent { _, turn in
                    _ = try await turn.step("fetch", retry: RetryPolicy(initialInterval: .seconds(1), maximumAttempts: 3)) { step in
                        if step.attempt < 3 { throw StepFailure(code: "unreachable", message: "no answer", retryable: true) }
                        return true
                    }
                    let refuse: @Sendable (StepContext) async throws -> Bool = { _ in
                        throw StepFailure(code: "no", message: "not so", retryable: false)
                    }
                    _ = try? await turn.step("never", .atMostOnce, refuse)
                    _ = try await turn.generate("one", model, .user("x"))
                    return .string(try await turn.generate("two", model, .user("y")).text)
                }
            }
            stage.send(.message, ("text", "go"))
            stage.run(for: .milliseconds(3_200))
            stage.send(.steer, by: "ben", ("text", "be brief"))
            stage.send(.approve, by: "cem", ("approval", "nothing"))
            stage.run(for: .milliseconds(400))
            stage.send(.interrupt, by: "dee", ("reason", "enough"))
            stage.run(for: .seconds(20))
            return try stage.trace()
        }
        let turn = try #require(page["turns"]?.array?.first)
        #expect(turn["state"] == "interrupted")
        let fetch = try #require(turn.step("fetch")?["attempts"]?.array)
        #expect(fetch.map { $0["state"]!.string! } == ["failed", "failed", "completed"])
        #expect(fetch[0]["error"]?["code"] == "unreachable" && fetch[0]["retry_at"] != nil && fetch[2]["error"] == nil)
        #expect(turn.step("never")?["state"] == "failed" && turn.step("never")?["error"]?["code"] == "no")
        let controls = try #require(turn["controls"]?.array)
        try #require(controls.count == 3)
        #expect(
            controls.map { "\($0["type"]!.string!) \($0["by"]!.string!) \($0["state"]!.string!) \($0["step"]?.string ?? "-")" } == [
                "approve cem rejected -", "steer ben applied two", "interrupt dee applied two",
            ])
        #expect(controls[0]["refused"] == "unknown_approval")
        #expect(turn.step("two")?["steered"]?.array?.first == controls[1]["offset"])
        #expect(turn.step("two")?["state"] == "interrupted" && turn["totals"]?["failed_attempts"] == 3)
    }

    @Test func `an attempt that the process did not survive is lost, and the restart is shown`() throws {
        let page = try SimulatedNode.simulate {
            let probe = { @Sendable (model: any Model) in
                agent { _, turn in .string(try await turn.generate("g", model, .user("x")).text) }
            }
            let log = SimulatedLog(outcome: { commit, _ in commit == 8 ? .lost : .acknowledged })
            var stage = try RecordStage(log: log, probe)
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(30))
            #expect(log.crashed)
            stage = try RecordStage(seed: 2, now: stage.world.now, log: log.reopen(), probe)
            stage.run(for: .seconds(30))
            return try stage.trace()
        }
        let turn = try #require(page["turns"]?.array?.first)
        #expect(turn["restarts"]?.array?.map { $0["cause"]! } == ["crash"])
        let step = try #require(turn.step("g"))
        #expect(step["attempts"]?.array?.map { $0["state"]! } == ["lost", "completed"])
        #expect((step["recovered_tokens"]?.integer ?? 0) > 0 && step["attempts"]?.array?[1]["continues_at"] != nil)
        #expect(turn["totals"]?["recovered_tokens"] == step["recovered_tokens"] && turn["totals"]?["restarts"] == 1)
    }

    @Test func `an open turn says what it does, a cancelled one ends its steps`() throws {
        let (open, cancelled) = try SimulatedNode.simulate {
            let stage = try RecordStage { model in
                agent { _, turn in
                    _ = try await turn.map("both", [0, 1]) { index, turn in
                        if index == 0 { try await turn.sleep(.seconds(1_000)) }
                        return try await turn.generate("g", model, .user("x")).text
                    }
                    return true
                }
            }
            stage.send(.message, ("text", "go"))
            stage.run(for: .milliseconds(200))
            let open = try stage.trace()
            stage.send(.cancel, ("reason", "no need"))
            stage.run(for: .seconds(1))
            return (open, try stage.trace())
        }
        let turn = try #require(open["turns"]?.array?.first)
        #expect(turn["state"] == "open" && turn["ended"] == nil)
        #expect(turn.step("both/0/sleep")?["state"] == "open" && turn.step("both/0/sleep")?["due"] != nil)
        #expect((turn.step("both/1/g")?["pieces"]?.integer ?? 0) > 0 && turn.step("both")?["state"] == "open")
        let ended = try #require(cancelled["turns"]?.array?.first)
        #expect(ended["state"] == "cancelled" && ended["reason"] == "no need" && ended["cancelled"]?["reason"] == "no need")
        #expect(ended["restarts"] == [])
        #expect(ended.step("both/0/sleep")?["state"] == "cancelled" && ended.step("both")?["state"] == "completed")
        #expect(ended["controls"]?.array?.first?["type"] == "cancel")
    }

    @Test(arguments: 0..<12) func `pages show what one answer shows, in every size, also when input had queued`(seed: Int) throws {
        let (whole, paged, single) = try SimulatedNode.simulate {
            let stage = try RecordStage(seed: UInt64(seed)) { model in
                agent { text, turn in
                    _ = try await turn.step("s") { _ in 1 }
                    if text.hasSuffix("1") { try await turn.sleep(.seconds(5)) }
                    return .string(try await turn.generate("g", model, .user(text)).text)
                }
            }
            var random = SplitMix64(seed: UInt64(seed))
            for number in 0..<12 {
                stage.send(.message, ("text", .string("m\(number % 3)")))
                if number % 4 == 0 { stage.send(.steer, ("text", "s")) }
                stage.run(for: .milliseconds(Int64(random.next() % 4_000)))
            }
            stage.run(for: .seconds(100))
            let whole = try stage.trace()["turns"]!.array!
            var paged: [JSON] = []
            var query = TraceQuery()
            query.limit = 1 + seed % 5
            while true {
                let page = try stage.trace(query)
                paged = page["turns"]!.array! + paged
                guard let next = page["next"]?.string.flatMap({ Offset(token: $0) }) else { break }
                query.before = next.value
            }
            let single = try whole.map { turn in
                var query = TraceQuery()
                query.turn = Offset(token: turn["turn"]!.string!)!.value
                return try stage.trace(query)["turns"]!.array!
            }
            // In the middle of a turn: that turn is shown whole.
            var inside = TraceQuery()
            inside.before = Offset(token: whole[5].step("g")!["attempts"]!.array![0]["offset"]!.string!)!.value
            #expect(try stage.trace(inside)["turns"]!.array! == Array(whole[...5]))
            return (whole, paged, single)
        }
        #expect(whole.count >= 12 && paged == whole)
        #expect(single == whole.map { [$0] })
    }

    @Test func `what is no turn is said, and an agent that did nothing has none`() throws {
        try SimulatedNode.simulate {
            let stage = try RecordStage { _ in agent { _, _ in true } }
            stage.send(.signal, ("name", "s"))
            stage.world.settle()
            #expect(try stage.trace()["turns"] == [])
            var query = TraceQuery()
            query.turn = 1
            #expect { try stage.trace(query) } throws: { ($0 as? ChannelError)?.code == "turn_not_found" }
        }
    }

    @Test func `of a turn with very many steps the first are listed, and all are counted`() throws {
        let turn = try SimulatedNode.simulate {
            let stage = try RecordStage { _ in agent { _, _ in true } }
            var entries = [NewEntry(.turnStarted, Position(turn: 1))]
            for number in 0..<6_000 {
                let position = Position(turn: 1, step: "s#\(number)", attempt: 1)
                entries.append(NewEntry(.stepStarted, position, ("kind", "step"), ("name", "s")))
                if number != 5_999 { entries.append(NewEntry(.stepCompleted, position, ("result", 1), ("usage", ["output_tokens": 2]))) }
            }
            stage.write(entries)
            return try stage.trace()["turns"]!.array![0]
        }
        // One that is in flight is shown in any case.
        #expect(turn["steps"]?.array?.count == 5_001 && turn.step("s#5999")?["state"] == "open")
        #expect(turn["steps_omitted"] == 999 && turn["totals"]?["steps"] == 6_000 && turn["totals"]?["output_tokens"] == 11_998)
    }
}
