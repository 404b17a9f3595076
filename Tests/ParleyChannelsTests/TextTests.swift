import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Pieces of text in one commit` {
    /// Appends the pieces in one commit and gives the deltas of the entries that came of them.
    private func merged(_ entries: NewEntry..., commitsAfter: Int? = nil) throws -> (deltas: [String], offsets: [UInt64]) {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        var answers: [Answer<Appended>] = []
        for (index, entry) in entries.enumerated() {
            answers.append(bench.append([entry], to: "agents/k/i", commits: false))
            if index == commitsAfter { bench.writer.pump() }
        }
        bench.writer.pump()
        return (
            try bench.whole("agents/k/i").map { $0["delta"]?.string ?? $0["type"]!.string! }, answers.flatMap { $0.value?.offsets ?? [] }
        )
    }

    @Test func `become one entry, whose offset they share`() throws {
        let found = try merged(.piece("ab", at: 0), .piece("é", at: 2), .piece("c", at: 4))
        #expect(found.deltas == ["abéc"])
        #expect(found.offsets == [1, 1, 1])
    }

    @Test func `stay apart when anything else is between them`() throws {
        #expect(try merged(.piece("a", at: 0), NewEntry(.emit, nil, ("name", "x")), .piece("b", at: 1)).deltas == ["a", "emit", "b"])
    }

    @Test func `stay apart when they are of different steps, attempts, turns or parts`() throws {
        #expect(try merged(.piece("a", at: 0), .piece("b", at: 1, step: "t")).deltas == ["a", "b"])
        #expect(try merged(.piece("a", at: 0), .piece("b", at: 1, attempt: 2)).deltas == ["a", "b"])
        #expect(try merged(.piece("a", at: 0), .piece("b", at: 1, turn: 2)).deltas == ["a", "b"])
        #expect(try merged(.piece("a", at: 0), .piece("b", at: 1, part: .reasoning)).deltas == ["a", "b"])
    }

    @Test func `stay apart when they do not follow on, or continue another attempt`() throws {
        #expect(try merged(.piece("a", at: 0), .piece("b", at: 2)).deltas == ["a", "b"])
        #expect(try merged(.piece("a", at: 0), .piece("a", at: 0)).deltas == ["a", "a"])
        #expect(try merged(.piece("a", at: 0), .piece("b", at: 1, continuesAt: 1)).deltas == ["a", "b"])
    }

    @Test func `are not joined to those of the commit before`() throws {
        let found = try merged(.piece("a", at: 0), .piece("b", at: 1), .piece("c", at: 2), commitsAfter: 1)
        #expect(found.deltas == ["ab", "c"])
        #expect(found.offsets == [1, 1, 2])
    }

    @Test func `are counted, also those that were merged`() throws {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        for index in 0..<300 { bench.append([.piece("x", at: index)], to: "agents/k/i", commits: false) }
        bench.writer.pump()
        let pieces = try bench.channels.entry(try bench.channel("agents/k/i"), at: 1) { $0.text?.pieces }
        #expect(pieces == 300)
    }
}

@Suite struct `The settled view` {
    /// What is left of the entries, as `type` or as the delta of a text.
    private func settled(_ entries: NewEntry..., bytesMax: Int = .max) throws -> [String] {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        for entry in entries { bench.append([entry], to: "agents/k/i") }
        var found: [JSON] = []
        var page = try bench.channels.page(try bench.channel("agents/k/i"), after: 0, view: .settled, bytesMax: bytesMax)
        while true {
            found += try JSON.parse(page.body).array ?? []
            if page.isUpToDate { break }
            page = try bench.channels.page(try bench.channel("agents/k/i"), after: page.next, view: .settled, bytesMax: bytesMax)
        }
        return found.map { $0["delta"]?.string ?? $0["type"]!.string! }
    }

    private func started(_ attempt: UInt32, continuesAt: Int64? = nil, step: String = "s") -> NewEntry {
        NewEntry(.stepStarted, Position(turn: 1, step: step, attempt: attempt), ("continues_at", continuesAt.map { .integer($0) }))
    }

    private func completed(_ attempt: UInt32 = 1, step: String = "s") -> NewEntry {
        NewEntry(.stepCompleted, Position(turn: 1, step: step, attempt: attempt), ("text", "abcd"))
    }

    @Test(arguments: [Int.max, 1, 60, 200]) func `leaves out text that its step's result has sealed`(bytesMax: Int) throws {
        #expect(
            try settled(started(1), .piece("ab", at: 0), .piece("cd", at: 2), completed(), bytesMax: bytesMax) == [
                "step.started", "step.completed",
            ])
    }

    @Test func `keeps text of a step that has no result, beside one that has`() throws {
        #expect(
            try settled(started(1), .piece("ab", at: 0), started(1, step: "t"), .piece("x", at: 0, step: "t"), completed())
                == ["step.started", "step.started", "x", "step.completed"])
    }

    @Test(arguments: [Int.max, 1, 60, 200]) func `leaves out text that a later attempt has superseded`(bytesMax: Int) throws {
        #expect(
            try settled(started(1), .piece("ab", at: 0), started(2), .piece("xy", at: 0, attempt: 2), bytesMax: bytesMax)
                == ["step.started", "step.started", "xy"])
    }

    @Test(arguments: [Int.max, 1, 60, 200]) func `keeps text that a later attempt continues`(bytesMax: Int) throws {
        #expect(
            try settled(
                started(1), .piece("ab", at: 0), .piece("cd", at: 2), started(2, continuesAt: 2),
                .piece("xy", at: 2, attempt: 2, continuesAt: 2),
                bytesMax: bytesMax) == ["step.started", "ab", "step.started", "xy"])
    }

    @Test func `leaves out what an attempt continued once a third one has begun from the start`() throws {
        #expect(
            try settled(
                started(1), .piece("ab", at: 0), started(2, continuesAt: 2), .piece("cd", at: 2, attempt: 2, continuesAt: 2), started(3),
                .piece("z", at: 0, attempt: 3)) == ["step.started", "step.started", "step.started", "z"])
    }

    @Test func `does not mistake steps of that name in other turns`() throws {
        #expect(try settled(.piece("ab", at: 0), .piece("xy", at: 0, turn: 2), completed()) == ["xy", "step.completed"])
    }

    @Test func `folds a receipt into the input it answers, and keeps it when that stands elsewhere`() throws {
        let bench = Bench()
        bench.create("agents/k/i", isAgent: true)
        bench.append([NewEntry(.message, nil, ("text", "x"))], to: "agents/k/i")
        bench.append(
            [NewEntry(.receipt, nil, members: NewEntry.join([("of", "0000000000000001"), ("state", "applied")]), hasID: true)],
            to: "agents/k/i")
        let all = try bench.whole("agents/k/i", view: .settled)
        #expect(all.types == ["message"])
        #expect(all[0]["receipt"]?["state"] == "applied")
        #expect(all[0]["receipt"]?["offset"] == "0000000000000002")
        let late = try bench.channels.page(try bench.channel("agents/k/i"), after: 1, view: .settled, bytesMax: .max)
        #expect(try JSON.parse(late.body).array?.types == ["receipt"])
    }

    @Test func `leaves a plain stream as it is`() throws {
        let bench = Bench()
        bench.create()
        bench.append("1", "2")
        #expect(try bench.whole(view: .settled) == [1, 2])
    }
}
