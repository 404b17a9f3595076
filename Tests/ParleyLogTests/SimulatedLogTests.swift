import ParleyLog
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `A simulated log` {
    struct Case: Sendable, CustomTestStringConvertible {
        let outcome: SimulatedLog.Outcome
        let survivors: [UInt16]
        var testDescription: String { "\(outcome)" }
    }

    private func batches() -> [Batch] {
        (1...3).map { (partition: UInt16) in
            var batch = Batch(partition: partition)
            batch.put(.channels, key(partition, 1), [1])
            batch.put(.log, key(partition, 1, 1), [1])
            return batch
        }
    }

    @Test(arguments: [
        Case(outcome: .notSubmitted, survivors: []), Case(outcome: .lost, survivors: []),
        Case(outcome: .durable(batches: [0, 2]), survivors: [1, 3]), Case(outcome: .durableUnacknowledged, survivors: [1, 2, 3]),
    ])
    func `a crash leaves what its outcome says, batch by batch, to the next process alone`(test: Case) throws {
        let log = SimulatedLog(outcome: { commit, _ in commit == 1 ? test.outcome : .acknowledged })
        try log.write { $0.put(.names, key(1) + value("before"), [1]) }
        let error = try #require(throws: LogError.self) { try log.commit(batches()) }
        #expect(error.code == .closed)
        #expect(log.crashed)
        #expect(throws: LogError.self) { try log.get(.names, key(1)) }
        #expect(throws: LogError.self) { try log.commit(batches()) }
        #expect(log.commits == 2)

        let next = log.reopen()
        #expect(!next.crashed)
        #expect(try next.get(.names, key(1) + value("before")) == [1])
        for family in [Family.channels, .log] {
            let found = try next.pairs(family, key(0), key(.max)).map { $0.key.readBigEndian(at: 0, as: UInt16.self) }
            #expect(found == test.survivors)
        }
    }

    @Test func `a failed write ends the log without a crash, and a read error ends nothing`() throws {
        let log = SimulatedLog(
            readError: { family, _ in family == .big ? LogError(.damaged, "unreadable") : nil },
            outcome: { commit, _ in commit == 1 ? .failed(LogError(.writeFailed, "full")) : .acknowledged })
        #expect(performing: { try log.get(.big, key(1)) }, throws: { ($0 as? LogError)?.code == .damaged })
        #expect(performing: { try log.pairs(.big, key(1), key(2)) }, throws: { ($0 as? LogError)?.code == .damaged })
        try log.commit(batches())
        #expect(performing: { try log.commit(batches()) }, throws: { ($0 as? LogError)?.code == .writeFailed })
        #expect(performing: { try log.get(.log, key(1)) }, throws: { ($0 as? LogError)?.code == .closed })
        #expect(!log.crashed)
    }

    @Test func `a hundred thousand keys in any order are no burden`() throws {
        let log = MemoryLog()
        var random = Seeded(state: 1)
        for _ in 0..<20 {
            try log.write { batch in for _ in 0..<5_000 { batch.put(.log, key(1, .random(in: 0..<1_000_000, using: &random)), [1]) } }
        }
        let keys = try log.pairs(.log, key(1), key(2)).map(\.key)
        #expect(keys.count > 90_000)
        #expect(zip(keys, keys.dropFirst()).allSatisfy { $0.lexicographicallyPrecedes($1) })
    }
}
