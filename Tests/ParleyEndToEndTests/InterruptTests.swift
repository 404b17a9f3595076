import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// The effect of an interrupt on a turn of the real executable, wherever it meets it.
@Suite(.serialized) struct `An interrupt` {
    /// The turn's activity when it is interrupted, in the words of the agent.
    private static let places = ["model answer", "hold answer", "sleep answer", "approval answer"]

    @Test func `ends what the turn does, keeps what was written, and runs nothing again, 100 times`() async throws {
        let (node, upstream) = try Conversation.node(tokens: 500, rate: 50)
        defer { withExtendedLifetime(node) {} }
        let extra = Monitor<[Int]>([])
        try await atOnce(5, Array(0..<100)) { number in
            let place = Self.places[number % 4]
            let conversation = try Conversation(node, "i\(number)")
            let turn = try conversation.begin("note above", place, "note below")
            let isModel = place.hasPrefix("model")
            if isModel {
                var random = SplitMix64(seed: KillMoment.seed &+ UInt64(number))
                let count = Int.random(in: 1...30, using: &random)
                try upstream.wait("token \(count)") { $0.call(of: conversation)?.tokensSent ?? 0 >= count }
            } else {
                try conversation.wait(for: "step.started", step: "answer")
            }
            let redirection: JSON? = number / 4 % 2 == 0 ? "Rather this." : nil
            let interrupt = try conversation.say("interrupt", ("text", redirection))
            let generated = upstream.records.call(of: conversation)?.tokensSent ?? 0
            let end = try conversation.waitForEnd(of: turn)

            let receipt = try conversation.receipt(of: interrupt)
            #expect(receipt["state"] == "applied" && receipt["turn"]?.string == turn && receipt["step"] == "answer")
            #expect(end["type"]?.string == (redirection == nil ? "turn.interrupted" : "turn.completed"))
            #expect(redirection == nil || Conversation.gave(end)["answer"]?["redirection"] == redirection)
            #expect(conversation.runs("above", turn: turn) == 1)
            #expect(conversation.runs("below", turn: turn) == (redirection == nil ? 0 : 1))
            #expect(!place.hasPrefix("hold") || conversation.runs("answer", turn: turn) == 1)
            guard isModel else { return }
            let records = try upstream.wait("the upstream to be let go of") { $0.call(of: conversation)?.outcome == .abandoned }
            let call = try #require(records.call(of: conversation))
            extra.withLock { $0.append(call.tokensSent - generated) }
            verifyText(conversation.reader.seen.entries, end, generated: call.tokensSent)
            #expect(records.count { $0.idempotencyKey == call.idempotencyKey } == 1)
        }
        let counts = extra.withLock { $0.sorted() }
        print("tokens generated after the answer to the interrupt: \(counts) (PARLEY_SEED=\(KillMoment.seed))")
        // How soon it stops is for the benchmarks; that it stops long before the end of the answer is for this one.
        #expect(counts.count == 25 && counts.last! < 250)
    }

    /// The text is a beginning of the generated one, and the step's result is what readers saw.
    private func verifyText(_ entries: [JSON], _ end: JSON, generated: Int) {
        let completed = entries.first { $0["type"] == "step.completed" && $0["step"] == "answer" }
        #expect(completed?["finish_reason"] == "interrupted")
        let text = completed?["text"]?.string ?? ""
        let shown = entries.filter { $0["type"] == "text" }.compactMap { $0["delta"]?.string }.joined()
        #expect(!text.isEmpty && text.hasPrefix(shown) && ConvergedText(entries).text == text)
        #expect(ScriptedUpstream.text(tokens: generated).hasPrefix(text), "the partial has what the upstream did not generate")
        #expect((end["output"]?.string ?? Conversation.gave(end)["answer"]?["text"]?.string) == text)
    }

    @Test func `that races the end of the answer gives one of the two legal histories, 1,000 times`() async throws {
        let (node, _) = try Conversation.node(tokens: Race.tokens, rate: 400)
        defer { withExtendedLifetime(node) {} }
        let tally = Monitor<[Race.Outcome: Int]>([:])
        try await atOnce(10, Array(0..<40)) { number in
            let race = Race(try Conversation(node, "r\(number)"), seed: KillMoment.seed &+ UInt64(number))
            for _ in 0..<25 {
                let outcome = try race.run()
                tally.withLock { $0[outcome, default: 0] += 1 }
            }
        }
        let counts = tally.withLock { $0 }
        print(
            "1,000 interrupts: \(counts.map { "\($0.value) \($0.key.rawValue)" }.sorted().joined(separator: ", ")) (PARLEY_SEED=\(KillMoment.seed))"
        )
        #expect(counts.values.reduce(0, +) == 1_000)
        #expect(counts.count >= 2, "the race was always won by the same side")
    }
}

/// Short turns of one agent, each interrupted at a moment around its end.
private final class Race {
    static let tokens = 6

    enum Outcome: String {
        case interrupted = "kept a part", interruptedLate = "came with the last token", completed = "came too late"
    }

    private let conversation: Conversation
    private var random: SplitMix64
    /// How long an uninterrupted turn takes, in milliseconds, as far as it is known.
    private var usual = 20.0

    init(_ conversation: Conversation, seed: UInt64) {
        self.conversation = conversation
        random = SplitMix64(seed: seed)
    }

    func run() throws -> Outcome {
        let turn = try conversation.begin("model answer")
        RealTime.pass(usual * 0.5...usual * 1.2, &random)
        let interrupt = try conversation.say("interrupt")
        let end = try conversation.waitForEnd(of: turn)
        let receipt = try conversation.receipt(of: interrupt)
        let isInterrupted = receipt["state"] == "applied"
        let entries = conversation.reader.seen.entries
        if !isInterrupted { usual = usual * 0.8 + 0.2 * Self.milliseconds(from: turn, to: end, entries) }
        let own = entries.filter { $0["turn"]?.string == turn }
        let completed = try #require(own.first { $0["type"] == "step.completed" })
        let whole = ScriptedUpstream.text(tokens: Race.tokens)
        let text = try #require(completed["text"]?.string)
        #expect(own.count { $0["type"]?.string?.hasPrefix("turn.") == true } == 2 && own.count { $0["type"] == "step.completed" } == 1)
        #expect(entries.count { $0["of"]?.string == interrupt } == 1)
        if isInterrupted {
            #expect(end["type"] == "turn.interrupted" && end["output"]?.string == text)
            #expect(receipt["turn"]?.string == turn && completed["interrupted_by"]?.string == interrupt)
            #expect(completed["finish_reason"] == "interrupted" && whole.hasPrefix(text))
        } else {
            #expect(receipt["state"] == "rejected" && receipt["reason"] == "turn_ended")
            #expect(end["type"] == "turn.completed" && Conversation.gave(end)["answer"]?["text"]?.string == whole)
            #expect(completed["finish_reason"] == "stop" && text == whole)
            // An interrupt before the end of the answer stops it: the order of the log decides.
            #expect(interrupt > completed["offset"]?.string ?? "", "the interrupt at \(interrupt) was overtaken by \(completed.text)")
        }
        return isInterrupted ? (text == whole ? .interruptedLate : .interrupted) : .completed
    }

    private static func milliseconds(from turn: String, to end: JSON, _ entries: [JSON]) -> Double {
        let times = [entries.first { $0["offset"]?.string == turn }, end].compactMap { $0?["at"]?.string.flatMap { Timestamp($0) } }
        return times.count == 2 ? Double(times[1].milliseconds - times[0].milliseconds) : 20
    }
}

extension [ScriptedUpstream.Record] {
    /// The last call for an agent.
    func call(of conversation: Conversation) -> ScriptedUpstream.Record? {
        last { $0.idempotencyKey?.hasPrefix("agents/\(conversation.agent)/") == true }
    }
}
