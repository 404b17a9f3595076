import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

/// One turn of a node that is killed in the middle, once or more often, and what must hold of it afterwards.
///
/// It acts as a careful client does: it sends its message with a key until that is acknowledged, and reads on from its offset.
final class KilledTurn {
    static let tokens = 300
    static let rate = 500
    static let text = ScriptedUpstream.text(tokens: tokens)

    let upstream: ScriptedUpstream
    let node: EndToEndNode
    let agent: String
    let reader: EndToEndReader
    private(set) var kills = 0
    private var acknowledged: String?
    /// The channel is there, so the reader can be.
    private var isFollowed = false
    /// How often each step had run when the node was killed, for each kill.
    private var runsAtKill: [[String: Int]] = []

    /// - Parameters:
    ///   - continues: The node's setting for the model, and the model's behaviour.
    ///   - hasSteps: Whether the agent is the one with steps that leave a trace, else one declared in a file.
    init(continues: Bool = true, hasSteps: Bool) throws {
        var behaviour = ScriptedUpstream.Behaviour()
        (behaviour.tokens, behaviour.rate, behaviour.continues) = (KilledTurn.tokens, KilledTurn.rate, continues)
        upstream = try ScriptedUpstream(behaviour)
        node = try EndToEndNode(
            hasSteps ? "steps-agent" : "parley", agents: ["writer.md": "---\nkind: writer\n---\nYou write.\n"],
            environment: [
                "PARLEY_MODEL": "openai:scripted", "OPENAI_BASE_URL": upstream.baseURL,
                "PARLEY_MODEL_CONTINUES": continues ? "prefix" : "no",
            ], keeping: upstream)
        agent = hasSteps ? "stepper/one" : "writer/one"
        reader = EndToEndReader(of: agent)
    }

    deinit { upstream.stop() }

    // MARK: Events

    /// Runs the turn to its end, with the node killed at `moment`.
    /// - Returns: Whether it was: a failpoint may lie behind the end of the turn.
    func run(killedAt moment: KillMoment) throws -> Bool {
        if case .failpoint(let name, let passage) = moment { try node.start(failpoint: "\(name):\(passage)") } else { try node.start() }
        try untilAcknowledged()
        switch moment {
        case .failpoint where kills > 0: break
        case .failpoint: guard try waitForDeathOrEnd() else { return false }
        case .tokens(let count, let microseconds):
            try upstream.wait("token \(count)", timeout: .seconds(60)) { $0.reduce(0) { $0 + $1.tokensSent } >= count }
            RealTime.pass(.microseconds(microseconds))
            try kill()
        case .after(let milliseconds):
            RealTime.pass(.milliseconds(milliseconds))
            try kill()
        }
        try reader.waitForTurnEnd()
        return true
    }

    /// `kill -9` now; then the node is started again and the reader continues.
    func kill(failpoint: String? = nil) throws {
        try node.kill()
        try startAgain(failpoint: failpoint)
    }

    /// Makes the channel, attaches the reader and sends the message; requests that the node does not live to answer are repeated.
    func untilAcknowledged() throws {
        try persist { _ = try node.request("PUT", "/v1/stream/agents/\(agent)", [("Content-Type", "application/json")]) }
        isFollowed = true
        if reader.seen.isOver { reader.attach(to: node) }
        acknowledged = try persist { try node.send("Write.", to: agent, key: "the only message") }
    }

    @discardableResult
    private func persist<Value>(_ body: () throws -> Value) throws -> Value {
        while true {
            do { return try body() } catch let error as OutgoingError {
                guard kills < 3 else { throw error }
                try node.process.waitForExit("the end of a node that does not answer (\(error))")
                try startAgain()
            }
        }
    }

    private func startAgain(failpoint: String? = nil) throws {
        kills += 1
        runsAtKill.append(node.stepRuns)
        try reader.wait("the reader to see the connection break") { $0.isOver ? true : nil }
        try node.start(failpoint: failpoint)
        if isFollowed { reader.attach(to: node) }
    }

    private func waitForDeathOrEnd() throws -> Bool {
        let process = try node.process
        try reader.wait("the node to die, or the turn to end") { seen in seen.isOver || seen.first("turn.completed") != nil ? true : nil }
        if reader.seen.first("turn.completed") != nil { return false }
        #expect(try process.waitForExit("the node to be gone") == .signal(SIGKILL))
        try startAgain()
        return true
    }

    // MARK: Invariants

    /// - Returns: a line about what was seen.
    @discardableResult
    func verify(continues: Bool = true) throws -> String {
        let entries = reader.seen.entries
        let log = try node.entries(agent)
        verifyOrder(entries, log)
        verifyText(entries)
        let recovered = verifyRecovery(entries, continues: continues)
        verifySteps(entries)
        let beyond = upstream.tokensGenerated - KilledTurn.tokens
        if continues {
            let allowed = Double(kills * KilledTurn.rate) * 0.25
            #expect(Double(beyond) <= allowed, "the upstream generated \(beyond) tokens beyond need")
            #expect(!upstream.records.contains { $0.hasForeignPrefix }, "a prefix was sent that is not the upstream's own text")
        }
        return "kills \(kills), recovered \(recovered), tokens beyond need \(beyond), upstream calls \(upstream.records.count)"
    }

    private func verifyOrder(_ entries: [JSON], _ log: [JSON]) {
        let offsets = entries.compactMap { $0["offset"]?.string.flatMap { UInt64($0, radix: 16) } }
        #expect(offsets == Array(1...UInt64(max(1, entries.count))), "the reader saw a gap or a repetition")
        #expect(entries == Array(log.prefix(entries.count)), "what the reader saw is not what the log holds")
        let messages = entries.filter { $0["type"]?.string == "message" }
        #expect(messages.compactMap { $0["offset"]?.string } == [acknowledged], "the message is not in the log exactly once")
        #expect(log.count { $0["type"]?.string == "turn.completed" } == 1)
        #expect(log.count { $0["type"]?.string == "turn.started" } == 1)
        #expect(log.count { $0["type"]?.string == "receipt" } == 1)
    }

    private func verifyText(_ entries: [JSON]) {
        #expect(ConvergedText(entries).text == KilledTurn.text)
        let completed = entries.filter { $0["type"]?.string == "step.completed" && $0["text"] != nil }
        #expect(completed.map { $0["text"]?.string } == [KilledTurn.text])
        let output = entries.first { $0["type"]?.string == "turn.completed" }?["output"]
        #expect((output?.string ?? output?["text"]?.string) == KilledTurn.text)
        var seen: Set<String> = []
        var next: [String: Int64] = [:]
        for entry in entries where entry["type"]?.string == "text" {
            let attempt = ["turn", "step", "attempt", "part"].map { entry[$0]?.string ?? entry[$0]?.text ?? "" }.joined(separator: " ")
            let index = entry["index"]?.integer ?? -1
            #expect(seen.insert("\(attempt) \(index)").inserted, "\(attempt) \(index) stands in the log twice")
            let expected = next[attempt] ?? entry["continues_at"]?.integer ?? 0
            #expect(index == expected, "a gap in the text of \(attempt)")
            next[attempt] = index + Int64(entry["delta"]?.string?.utf8.count ?? 0)
        }
    }

    /// A node that was killed with text in the log continues from it, or starts again when its model cannot.
    private func verifyRecovery(_ entries: [JSON], continues: Bool) -> Int64 {
        let sealed = entries.firstIndex { $0["type"]?.string == "step.completed" && $0["text"] != nil } ?? entries.count
        let lastRestart = entries[..<sealed].lastIndex { $0["type"]?.string == "supervision" } ?? 0
        let hadText = entries[..<lastRestart].contains { $0["type"]?.string == "text" }
        let recovered = sealed < entries.count ? entries[sealed]["recovered_tokens"]?.integer ?? 0 : -1
        let attempts = Set(entries.compactMap { $0["type"]?.string == "text" ? $0["attempt"]?.integer : nil })
        if continues {
            #expect((recovered > 0) == hadText, "text was saved: \(hadText), recovered tokens: \(recovered)")
        } else {
            #expect(recovered == 0)
            if hadText { #expect(attempts.count >= 2, "the answer did not start again") }
        }
        return recovered
    }

    /// A step whose result was in the log when the node died did not run again.
    private func verifySteps(_ entries: [JSON]) {
        let runs = node.stepRuns
        guard agent.hasPrefix("stepper/") else { return }
        #expect(runs.count == 4)
        let restarts = entries.indices.filter { entries[$0]["type"]?.string == "supervision" }
        // Kills before the turn had begun leave no trace in the log, and no step had run.
        let kills = runsAtKill.suffix(restarts.count)
        for (restart, before) in zip(restarts, kills) {
            for entry in entries[..<restart] where entry["type"]?.string == "step.completed" {
                guard let key = key(of: entry, in: entries), let count = runs[key] else { continue }
                #expect(count == before[key], "step \(key) ran again after its result was recorded")
            }
        }
        let nonces = entries.first { $0["type"]?.string == "turn.completed" }?["output"]?["nonces"]?.array
        let results = entries.filter { $0["type"]?.string == "step.completed" && $0["text"] == nil }.compactMap { $0["result"] }
        #expect(
            Set(nonces?.compactMap(\.string) ?? []) == Set(results.compactMap(\.string)), "a step gave something else than the log says")
    }

    private func key(of completed: JSON, in entries: [JSON]) -> String? {
        entries.first { $0["type"]?.string == "step.started" && $0["step"] == completed["step"] }?["idempotency_key"]?.string
    }
}
