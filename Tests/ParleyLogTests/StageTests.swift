import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

private final class Seen<Value: Sendable>: Sendable {
    private let noted = Mutex<[Value]>([])

    func note(_ value: Value) { noted.withLock { $0.append(value) } }
    var values: [Value] { noted.withLock { $0 } }
}

/// What a submission sees of earlier submissions in the same commit, and what reaches the log.
@Suite struct `A stage` {
    private let log = SimulatedLog(readError: { family, _ in family == .idempotency ? LogError(.damaged, "unreadable") : nil })

    private func step(_ body: @escaping @Sendable (inout Stage) throws(LogError) -> Void) -> TestSubmission {
        TestSubmission("", Journal(), body)
    }

    /// Stages each as a submission of its own, all in one commit.
    private func commit(_ submissions: TestSubmission...) throws {
        let group = GroupCommit(log: log)
        let before = log.commits
        for submission in submissions { try group.submit(submission) }
        group.pump()
        #expect(log.commits <= before + 1)
    }

    @Test func `later submissions see what was put, deleted and range-deleted before them`() throws {
        let seen = Seen<Bytes?>()
        try commit(step { stage in for entry: UInt64 in 1...4 { stage.put(.producers, key(1, 1, entry), value("stored")) } })
        try commit(
            step { stage throws(LogError) in
                seen.note(try stage.get(.producers, key(1, 1, 1)))
                stage.put(.producers, key(1, 1, 1), value("staged"))
                stage.delete(.producers, key(1, 1, 2))
                stage.put(.producers, key(1, 2, 1), value("staged"))
            },
            step { stage throws(LogError) in
                for entry: UInt64 in 1...3 { seen.note(try stage.get(.producers, key(1, 1, entry))) }
                stage.delete(.producers, from: key(1, 1, 3), to: key(1, 2, 2))
                stage.put(.producers, key(1, 1, 4), value("after the range"))
            },
            step { stage throws(LogError) in
                for entry: UInt64 in 3...4 { seen.note(try stage.get(.producers, key(1, 1, entry))) }
                seen.note(try stage.get(.producers, key(1, 2, 1)))
            })
        let expected = ["stored", "staged", nil, "stored", nil, "after the range", nil].map { $0.map(value) }
        #expect(seen.values == expected)
        #expect(try log.pairs(.producers, key(1), key(2)).map(\.key) == [key(1, 1, 1), key(1, 1, 4)])
    }

    @Test func `the families log and states show the last commit only`() throws {
        let seen = Seen<Bytes?>()
        try commit(
            step { stage in stage.put(.states, key(1, 1), value("new")) },
            step { stage throws(LogError) in
                seen.note(try stage.get(.states, key(1, 1)))
            })
        #expect(seen.values == [nil])
        #expect(try log.get(.states, key(1, 1)) == value("new"))
    }

    @Test func `everything that a failing submission staged is rolled back, from the log and from what others see`() throws {
        let seen = Seen<Bytes?>()
        let sizes = Seen<Int>()
        try commit(step { stage in stage.put(.outbox, key(1, 5, 5), value("stored")) })
        try commit(
            step { stage in
                stage.put(.outbox, key(1, 1), value("kept"))
                stage.put(.log, key(1, 1, 0), value("kept"))
                sizes.note(stage.bytes)
            },
            step { stage throws(LogError) in
                stage.put(.outbox, key(1, 1), value("lost"))
                stage.put(.outbox, key(1, 2), value("lost"))
                stage.put(.outbox, key(3, 2), value("lost"))
                stage.delete(.outbox, key(1, 1))
                stage.delete(.outbox, from: key(1, 5), to: key(1, 6))
                stage.put(.log, key(1, 1, 1), value("lost"))
                stage.count(70_000)
                stage.delete(.log, from: key(1, 1), to: key(1, 3))
                _ = try stage.get(.idempotency, key(1, 1))
            },
            step { stage throws(LogError) in
                for key in [key(1, 1), key(1, 2), key(1, 5, 5)] {
                    seen.note(try stage.get(.outbox, key))
                }
                sizes.note(stage.bytes)
                stage.put(.log, key(1, 1, 1), value("and on"))
            })
        #expect(seen.values == [value("kept"), nil, value("stored")])
        #expect(sizes.values.count == 2 && sizes.values[0] == sizes.values[1])
        #expect(try log.pairs(.outbox, key(1), key(4)).map(\.key) == [key(1, 1), key(1, 5, 5)])
        #expect(try log.pairs(.log, key(1), key(2)).map(\.value) == [value("kept"), value("and on")])
    }
}
