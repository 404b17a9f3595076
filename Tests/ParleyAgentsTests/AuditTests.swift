import ParleyAgents
import ParleyChannels
import ParleyLog
import ParleyModels
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `The audit` {
    /// Asks for three things, each in its own scope, and does each when it may.
    private static func asking(_ model: any Model) -> AnyAgent {
        agent { text, turn in
            let done = try await turn.map("pay", [1, 2, 3]) { amount, turn in
                try turn.compensate("refund") { _ in }
                do { try await turn.approval("pay", of: ["amount": amount], expires: .seconds(100)) } catch is ApprovalDenied {
                    return "denied"
                } catch is ApprovalExpired {
                    return "expired"
                } catch is Interrupted {
                    return "interrupted"
                }
                try await turn.sleep(.milliseconds(10))
                return try await turn.step("transfer", .atMostOnce) { _ in "paid" }
            }
            return .array(done.map { .string($0) })
        }
    }

    @Test func `an approval's record proves who asked, who decided, and that it was done once or never`() throws {
        let (records, decided) = try SimulatedNode.simulate {
            let stage = try RecordStage(Self.asking)
            stage.send(.message, by: "ann", ("text", "go"))
            stage.run(for: .seconds(10))
            let requests = try stage.entries("approval.requested")
            stage.send(.approve, by: "ben", ("approval", requests[0]["approval"]), ("args_sha256", "00"))
            stage.send(.approve, by: "ben", ("approval", requests[0]["approval"]), ("args_sha256", requests[0]["args_sha256"]))
            stage.send(.deny, by: "cem", ("approval", requests[1]["approval"]), ("reason", "too much"))
            stage.run(for: .seconds(200))
            stage.send(.approve, by: "dee", ("approval", requests[2]["approval"]))
            stage.run(for: .seconds(10))
            var query = AuditQuery()
            query.types = ["approval"]
            return (try stage.audit()["records"]!.array!, try stage.audit(query)["records"]!.array!)
        }
        let inputs = records.filter { $0["type"] != "approval" }
        #expect(
            inputs.map {
                "\($0["by"]!.string!) \($0["type"]!.string!) \($0["receipt"]!["state"]!.string!) \($0["receipt"]!["reason"]?.string ?? "")"
            }
                == [
                    "ann message applied ", "ben approve rejected arguments_changed", "ben approve applied ", "cem deny applied ",
                    "dee approve rejected approval_expired",
                ])
        #expect(decided == records.filter { $0["type"] == "approval" })
        #expect(
            decided.map { "\($0["state"]!.string!) \($0["by"]?.string ?? "-") \($0["executed"]!["step"]?.string ?? "-")" } == [
                "approved ben pay/0/transfer", "denied cem -", "expired - -",
            ])
        let paid = decided[0]
        #expect(paid["requested"]?["at"] != nil && paid["args_sha256"] != nil && paid["decided"]?["entry"] == inputs[2]["offset"])
        #expect(paid["executed"]?["attempts"] == 1 && paid["executed"]?["state"] == "completed" && paid["executed"]?["ended"] != nil)
        #expect(decided[1]["executed"] == .null && decided[1]["decided"]?["reason"] == "too much")
        #expect(decided[2]["executed"] == .null && decided[2]["decided"]?["decision"] == "expired")
    }

    @Test func `interrupted, an approval is done never; open, it is not decided`() throws {
        let (before, after) = try SimulatedNode.simulate {
            let stage = try RecordStage(Self.asking)
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(10))
            let before = try stage.audit()["records"]!.array!
            stage.send(.interrupt, by: "ben")
            stage.run(for: .seconds(10))
            return (before, try stage.audit()["records"]!.array!)
        }
        #expect(before.count { $0["state"] == "open" && $0["decided"] == nil && $0["executed"] == .null } == 3)
        #expect(after.count { $0["state"] == "interrupted" && $0["ended"]?["reason"] == "interrupted" && $0["executed"] == .null } == 3)
        #expect(after.last?["type"] == "interrupt" && after.last?["receipt"]?["state"] == "applied")
    }

    @Test func `cancelled between the approval and what it guards, that is done never, whatever is compensated`() throws {
        let (records, entries) = try SimulatedNode.simulate {
            let stage = try RecordStage(Self.asking)
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(10))
            let requests = try stage.entries("approval.requested")
            stage.send(.approve, by: "ben", ("approval", requests[0]["approval"]))
            stage.run(for: .seconds(1))
            stage.send(.approve, by: "ben", ("approval", requests[1]["approval"]))
            stage.run(for: .milliseconds(5))
            stage.send(.cancel, by: "cem")
            stage.run(for: .seconds(10))
            var query = AuditQuery()
            query.types = ["approval"]
            return (try stage.audit(query)["records"]!.array!, try stage.entries("step.started"))
        }
        #expect(entries.filter { $0["compensation"] == true }.map { $0["name"]! } == ["refund", "refund", "refund"])
        #expect(
            records.map { "\($0["state"]!.string!) \($0["executed"]!["step"]?.string ?? "-")" }
                == ["approved pay/0/transfer", "approved -", "cancelled -"])
    }

    @Test func `what is shielded from a cancel may still be executed after it`() throws {
        let record = try SimulatedNode.simulate {
            let stage = try RecordStage { _ in
                agent { _, turn in
                    .bool(
                        try await turn.shielded { turn in
                            try await turn.approval("pay", of: [1])
                            try await turn.sleep(.seconds(1))
                            return try await turn.step("transfer") { _ in true }
                        })
                }
            }
            stage.send(.message, ("text", "go"))
            stage.run(for: .seconds(1))
            stage.send(.approve, ("approval", try stage.entries("approval.requested")[0]["approval"]))
            stage.run(for: .milliseconds(100))
            stage.send(.cancel)
            stage.run(for: .seconds(10))
            #expect(try stage.entries("turn.cancelled").count == 1)
            return try stage.audit()["records"]!.array!.first { $0["type"] == "approval" }
        }
        #expect(record?["state"] == "approved" && record?["executed"]?["step"] == "shielded/transfer")
    }

    @Test func `a tool's record shows that it ran with the arguments that were approved`() throws {
        let (records, turn) = try SimulatedNode.simulate {
            let stage = try RecordStage { model in
                struct Note: Codable { var text: String }
                let tool = Tool("note", "Notes.", parameters: ["type": "object"], approval: .required(expires: nil)) {
                    (note: Note, _: ToolContext) in "noted \(note.text)"
                }
                return agent { text, turn in .string(try await turn.respond("answer", model, [.user(text)], tools: [tool]).text) }
            }
            stage.send(.message, ("text", #"call: note {"text": "milk"}"#))
            stage.run(for: .seconds(10))
            stage.send(.approve, by: "ben", ("approval", try stage.entries("approval.requested")[0]["approval"]))
            stage.run(for: .seconds(10))
            return (try stage.audit()["records"]!.array!, try stage.trace()["turns"]!.array![0])
        }
        let record = try #require(records.first { $0["type"] == "approval" })
        #expect(record["action"] == "note" && record["by"] == "ben" && record["executed"]?["step"] == "tools/0/note")
        #expect(record["args_sha256"] != nil && record["executed"]?["args_sha256"] == record["args_sha256"])
        let tools = turn["steps"]?.array?.first { $0["step"] == "tools" }?["steps"]?.array?.first?["steps"]?.array ?? []
        #expect(tools.map { $0["kind"]!.string! } == ["approval", "tool"])
        #expect(tools.first?["approval"]?["executed"] == record["executed"])
    }

    @Test(arguments: 0..<40)
    func `it says what the log says, whoever asks for what in whatever pages, and whatever the process dies in`(seed: Int) throws {
        try SimulatedNode.simulate {
            var random = SplitMix64(seed: UInt64(seed))
            let crashAt = seed % 3 == 0 ? Int.max : Int.random(in: 0..<60, using: &random)
            let log = SimulatedLog(outcome: { commit, _ in commit == crashAt ? .durableUnacknowledged : .acknowledged })
            var stage = try RecordStage(seed: UInt64(seed), log: log, Self.asking)
            let people = ["ann", "ann\"e", "annette", "Ünal"]
            for _ in 0..<25 {
                let by = people.randomElement(using: &random)!
                let approval = try stage.entries("approval.requested").randomElement(using: &random)?["approval"] ?? "none"
                switch Int.random(in: 0..<10, using: &random) {
                case 0..<3: stage.send(.message, by: by, ("text", "go"))
                case 3..<6: stage.send(.approve, by: by, ("approval", approval))
                case 6: stage.send(.deny, by: by, ("approval", approval), ("reason", "no"))
                case 7: stage.send(.interrupt, by: by, ("text", "else"))
                case 8: stage.send(.cancel, by: by)
                default: stage.send(.signal, by: by, ("name", "s"))
                }
                stage.run(for: .milliseconds(Int64.random(in: 0..<20_000, using: &random)))
                if log.crashed, stage.node.log === log {
                    stage = try RecordStage(seed: UInt64(seed) + 1, now: stage.world.now, log: log.reopen(), Self.asking)
                    stage.run(for: .seconds(1))
                }
            }
            let expected = try Oracle(stage.entries()).records
            let whole = try stage.audit()["records"]!.array!
            #expect(whole.map(Oracle.line) == expected.map(\.line))
            for by in people {
                var query = AuditQuery()
                query.by = by
                let found = try pages(stage, query, size: 1 + seed % 7)
                #expect(found.map(Oracle.line) == expected.filter { $0.by == by }.map(\.line))
            }
            #expect(try pages(stage, AuditQuery(), size: 1 + seed % 7) == whole)
            var query = AuditQuery()
            (query.types, query.since) = (["deny", "approval"], Timestamp(whole[whole.count / 2].moment))
            #expect(
                try pages(stage, query, size: 3).map(Oracle.line)
                    == whole.filter { ["deny", "approval"].contains($0["type"]!.string!) && $0.moment >= query.since!.description }.map(
                        Oracle.line))
            (query.types, query.since, query.until) = ([], nil, Timestamp(whole[whole.count / 2].moment))
            #expect(
                try pages(stage, query, size: 3).map(Oracle.line) == whole.filter { $0.moment <= query.until!.description }.map(Oracle.line)
            )
        }
    }

    private func pages(_ stage: RecordStage, _ query: AuditQuery, size: Int) throws -> [JSON] {
        var query = query
        query.limit = size
        var records: [JSON] = []
        while true {
            let page = try stage.audit(query)
            #expect(page["records"]!.array!.count <= size)
            records = page["records"]!.array! + records
            guard let next = page["next"]?.string.flatMap({ Offset(token: $0) }) else { return records }
            query.before = next.value
        }
    }
}

extension JSON {
    /// When a record's first entry was committed.
    fileprivate var moment: String { self["at"]?.string ?? self["requested"]?["at"]?.string ?? "" }
}

/// The same records from the entries as readers see them, found the long way.
private struct Oracle {
    struct Record {
        var by: String?
        var line: String
    }

    var records: [Record] = []

    init(_ entries: [JSON]) throws {
        let inputs = ["message", "steer", "interrupt", "cancel", "approve", "deny", "signal", "close"]
        for (index, entry) in entries.enumerated() {
            let later = entries[(index + 1)...]
            if inputs.contains(entry["type"]!.string!) {
                let receipts = entries.filter { $0["type"] == "receipt" && $0["of"] == entry["offset"] }
                #expect(receipts.count <= 1)
                let state = receipts.first.map { "\($0["state"]!.string!) \($0["reason"]?.string ?? "") \($0["step"]?.string ?? "")" }
                let by = entry["by"]!.string!
                records.append(Record(by: by, line: "\(entry["offset"]!.string!) \(by) \(entry["type"]!.string!) \(state ?? "-")"))
            } else if entry["type"] == "approval.requested" {
                let own = later.filter { $0["turn"] == entry["turn"] && $0["step"] == entry["step"] }
                let decided = own.first { $0["type"] == "approval.decided" }
                let failed = own.first { $0["type"] == "step.failed" }
                let state = decided?["decision"]?.string ?? failed?["error"]?["code"]?.string ?? "open"
                var executed = "-"
                if state == "approved", let place = decided?["offset"]?.string {
                    let scope = entry["step"]!.string!.split(separator: "/").dropLast().joined(separator: "/") + "/"
                    let guarded = later.filter { $0["turn"] == entry["turn"] && $0["offset"]!.string! > place }
                    // The approvals of this agent are not shielded.
                    let start = guarded.prefix { $0["action"] != "cancel" }.first { step in
                        step["compensation"] == nil && step["type"] == "step.started" && step["step"]!.string!.hasPrefix(scope)
                            && !["sleep", "wait", "approval"].contains(step["kind"]!.string!)
                    }
                    if let start {
                        let ends = guarded.filter { $0["step"] == start["step"] && $0["type"] == "step.completed" }
                        executed = "\(start["offset"]!.string!) \(ends.count)"
                    }
                }
                let by = decided?["decided_by"]?.string
                records.append(Record(by: by, line: "\(entry["offset"]!.string!) \(by ?? "-") approval \(state) \(executed)"))
            }
        }
    }

    static func line(_ record: JSON) -> String {
        let start = "\(record["offset"]!.string!) \(record["by"]?.string ?? "-") \(record["type"]!.string!)"
        guard record["type"] == "approval" else {
            let receipt = record["receipt"]
            return start + " "
                + (receipt?["state"].map { "\($0.string!) \(receipt?["reason"]?.string ?? "") \(receipt?["step"]?.string ?? "")" } ?? "-")
        }
        let executed = record["executed"].flatMap { step in
            step["offset"].map { "\($0.string!) \(step["state"] == "completed" ? 1 : 0)" }
        }
        return start + " \(record["state"]!.string!) \(executed ?? "-")"
    }
}
