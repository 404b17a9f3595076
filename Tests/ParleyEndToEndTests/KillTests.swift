import ParleySystem
import ParleyTesting
import Testing

/// The real executable, killed as by `kill -9` in the middle of a turn of 300 tokens, and started again.
@Suite(.serialized) struct `Killed in the middle of a turn` {
    @Test(arguments: Array(KillMoment.all.enumerated()).map { NumberedMoment(number: $0.offset, moment: $0.element) })
    func `nothing is lost, repeated or bought twice`(_ numbered: NumberedMoment) async throws {
        let line = try await OwnThread.run { try kill(at: numbered.moment, hasSteps: numbered.number % 2 == 1) }
        print("killed at \(numbered.moment): \(line) (PARLEY_SEED=\(KillMoment.seed))")
    }

    @Test func `killed five times in one answer, it continues each time`() async throws {
        try await OwnThread.run {
            let turn = try KilledTurn(hasSteps: true)
            try turn.node.start()
            try turn.untilAcknowledged()
            for count in [30, 90, 150, 210, 270] {
                try turn.upstream.wait("token \(count)") { $0.reduce(0) { $0 + $1.tokensSent } >= count }
                try turn.kill()
            }
            try turn.reader.waitForTurnEnd()
            print("killed five times: \(try turn.verify())")
        }
    }

    @Test(arguments: [
        KillMoment.tokens(40, microseconds: 0), .failpoint("model.delta", 200), .failpoint("commit.after", 25),
        .failpoint("model.finish", 1),
    ])
    func `a model that cannot continue starts again, and its new text supersedes the old`(_ moment: KillMoment) async throws {
        try await OwnThread.run {
            let turn = try KilledTurn(continues: false, hasSteps: false)
            #expect(try turn.run(killedAt: moment))
            try turn.verify(continues: false)
            let attempts = turn.reader.seen.entries.compactMap { $0["type"]?.string == "text" ? $0["attempt"]?.integer : nil }
            #expect(Set(attempts) == [1, 2])
        }
    }
}

struct NumberedMoment: Sendable, CustomTestStringConvertible {
    var number: Int
    var moment: KillMoment
    var testDescription: String { "\(number): \(moment)" }
}

/// A place that a fast machine's turn does not pass so often is tried again with half as many passages.
private func kill(at moment: KillMoment, hasSteps: Bool) throws -> String {
    var moment = moment
    while true {
        let turn = try KilledTurn(hasSteps: hasSteps)
        if try turn.run(killedAt: moment) { return try turn.verify() }
        guard case .failpoint(let name, let passage) = moment, passage > 1 else { throw Missed("the turn ended without passing \(moment)") }
        moment = .failpoint(name, passage / 2)
    }
}
