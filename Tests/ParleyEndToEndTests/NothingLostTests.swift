import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Entries of every type, sent at random to agents in every state, while the real executable is killed at random.
@Suite struct `What was accepted` {
    @Test func `gets exactly one receipt, whatever the agent did and whenever the server was killed`() async throws {
        let seed = KillMoment.seed
        let (node, upstream) = try Conversation.node(tokens: 20, rate: 200)
        defer { withExtendedLifetime(upstream) {} }
        let clients = try (0..<4).map { RandomClient(try Conversation(node, "n\($0)"), seed: seed &+ UInt64($0)) }
        let accepted = Monitor(0)
        let killer = SystemThread(name: "killer") {
            var random = SplitMix64(seed: seed)
            var next = 0
            for _ in 0..<(KillMoment.isLong ? 40 : 8) {
                next += Int.random(in: 20...80, using: &random)
                _ = accepted.wait(timeout: .seconds(60)) { $0 >= next ? true : nil }
                RealTime.pass(0...20, &random)
                do {
                    try node.kill()
                    try node.start()
                } catch { Issue.record("\(error)") }
            }
        }
        try await atOnce(clients.count, clients) { client in
            for _ in 0..<(KillMoment.isLong ? 600 : 120) {
                try client.sendSomething()
                accepted.withLock(signalAll: true) { $0 += 1 }
            }
        }
        try await OwnThread.run { killer.join() }
        for client in clients { try await OwnThread.run { try client.end() } }
        let states = try clients.reduce(into: [:]) { sum, client in sum.merge(try client.verify(), uniquingKeysWith: +) }
        print(
            "receipts: \(states.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key)" }.joined(separator: ", ")) (PARLEY_SEED=\(seed))")
    }
}

/// A client that sends one message after another to one agent, each with a key until it is accepted.
private final class RandomClient: @unchecked Sendable {  // Guard: used by one thread after another.
    private let conversation: Conversation
    private var random: SplitMix64
    private var turns: [String] = []
    /// The offset that each key was given.
    private var accepted: [String: String] = [:]

    init(_ conversation: Conversation, seed: UInt64) {
        self.conversation = conversation
        random = SplitMix64(seed: seed)
    }

    private static let plans = [
        ["model answer"], ["note a", "model answer", "note b", "model more"], ["sleep s"], ["hold h", "note a"],
        ["approval pay", "note a"],
        ["wait go", "model answer"], ["wait go", "wait go"], ["flaky f", "model answer"],
    ]

    func sendSomething() throws {
        // Mostly meant for the turn that runs, or is about to.
        let turn: JSON? = Bool.random(using: &random) ? turns.suffix(2).randomElement(using: &random).map { .string($0) } : nil
        let text: JSON? = Bool.random(using: &random) ? "Something else." : nil
        switch Int.random(in: 0..<13, using: &random) {
        case 0...2: turns.append(try send("message", ("data", Conversation.plan(Self.plans.randomElement(using: &random)!))))
        case 3, 4: try send("steer", ("text", "Keep it short."), ("if_turn", turn))
        case 5, 6: try send("interrupt", ("text", text), ("if_turn", turn))
        case 7, 8: try send("cancel", ("if_turn", turn))
        case 9, 10:
            let approval = (turns.suffix(3).randomElement(using: &random) ?? "0000000000000001") + "/pay"
            try send(Bool.random(using: &random) ? "approve" : "deny", ("approval", .string(approval)))
        default: try send("signal", ("name", Bool.random(using: &random) ? "go" : "never"))
        }
        RealTime.pass(0...15, &random)
    }

    @discardableResult
    private func send(_ type: String, _ members: (String, JSON?)...) throws -> String {
        let key = "\(conversation.agent) \(accepted.count)"
        let entry = Conversation.entry(type, members + [("id", .string(key))])
        var answer: EndToEndHTTP.Answer?
        try RealTime.until("an answer to \(type)", timeout: .seconds(60)) {
            answer = try? conversation.post(entry, key: key)
            return answer != nil
        }
        guard let answer, answer.status == 202, let offset = answer.json?["entries"]?.array?.first?["offset"]?.string else {
            if type == "cancel", answer?.status == 409 { return "" }  // It has ended.
            throw Missed("\(type) is answered \(answer?.status ?? 0): \(answer?.text ?? "")")
        }
        accepted[key] = offset
        return offset
    }

    /// Ends the agent, so that nothing has a reason to wait any longer for its decision.
    func end() throws {
        try send("close")
        try send("cancel")
        conversation.reader.attach(to: conversation.node)
        try conversation.wait(for: "agent.closed")
    }

    /// - Returns: How often each verdict was given.
    func verify() throws -> [String: Int] {
        let entries = try conversation.entries()
        let inputs = entries.filter { $0["by"]?.string != "agents/" + conversation.agent }
        #expect(inputs.count == accepted.count)
        for input in inputs {
            let key = input["id"]?.string ?? ""
            #expect(accepted[key] == input["offset"]?.string, "\(input.text) stands where nobody was told")
        }
        let receipts = Dictionary(grouping: entries.filter { $0["type"] == "receipt" }) { $0["of"]?.string ?? "" }
        #expect(Set(receipts.keys) == Set(accepted.values))
        for (offset, receipts) in receipts where receipts.count != 1 {
            Issue.record("\(offset) of \(conversation.agent) has \(receipts.count) receipts: \(receipts.map(\.text))")
        }
        verifyEnds(entries)
        return receipts.values.reduce(into: [:]) { counts, receipts in
            counts[[receipts[0]["state"]?.string, receipts[0]["reason"]?.string].compactMap { $0 }.joined(separator: " "), default: 0] += 1
        }
    }

    /// Everything that began has one end.
    private func verifyEnds(_ entries: [JSON]) {
        var turns: [String: Int] = [:]
        var steps: [String: Int] = [:]
        for entry in entries {
            let (turn, step) = (entry["turn"]?.string ?? "", "\(entry["turn"]?.string ?? "")/\(entry["step"]?.string ?? "")")
            switch entry["type"]?.string {
            case "turn.started": turns[turn, default: 0] += 1
            case "turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled": turns[turn, default: 0] -= 1
            case "step.started" where entry["attempt"] == 1: steps[step, default: 0] += 1
            case "step.completed": steps[step, default: 0] -= 1
            case "step.failed" where entry["final"] == true: steps[step, default: 0] -= 1
            default: break
            }
        }
        let odd = (turns.merging(steps) { $1 }).filter { $0.value != 0 }
        #expect(odd.isEmpty, "not begun once and ended once, in \(conversation.agent): \(odd)")
    }
}
