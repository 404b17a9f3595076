import ParleyLog
import ParleySystem
import Synchronization
import Testing

/// The contract of every log, on disk or in memory.
@Suite struct `The contract of a log` {
    @Test(arguments: LogKind.allCases)
    func `what was put is found, what was deleted is not, and a family knows nothing of another`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        try test.log.write {
            $0.put(.channels, key(1, 7), value("row"))
            $0.put(.names, key(1) + value("agents/a"), value("7"))
        }
        #expect(try test.log.get(.channels, key(1, 7)) == value("row"))
        #expect(try test.log.get(.names, key(1) + value("agents/a")) == value("7"))
        #expect(try test.log.get(.channels, key(1, 8)) == nil)
        #expect(try test.log.get(.states, key(1, 7)) == nil)

        try test.log.write { $0.delete(.channels, key(1, 7)) }
        #expect(try test.log.get(.channels, key(1, 7)) == nil)
        try test.log.write { $0.delete(.channels, key(1, 7)) }
    }

    @Test(arguments: LogKind.allCases, Family.allCases)
    func `every family stores and scans`(kind: LogKind, family: Family) throws {
        let test = try LogUnderTest(kind)
        let keys = (0..<20).map { key(1, 5, $0) }
        try test.log.write { batch in for key in keys { batch.put(family, key, key) } }
        #expect(try test.log.pairs(family, key(1, 5), key(1, 6)).map(\.key) == keys)
        #expect(try test.log.get(family, keys[3]) == keys[3])
    }

    @Test(arguments: LogKind.allCases)
    func `operations of a batch apply in the order they were added`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        try test.log.write {
            $0.put(.inbox, key(1, 1, 1), value("first"))
            $0.put(.inbox, key(1, 1, 1), value("second"))
            $0.put(.inbox, key(1, 1, 2), value("deleted"))
            $0.delete(.inbox, key(1, 1, 2))
            $0.delete(.inbox, key(1, 1, 3))
            $0.put(.inbox, key(1, 1, 3), value("put after delete"))
            $0.put(.inbox, key(1, 2, 1), value("in the range"))
            $0.delete(.inbox, from: key(1, 2), to: key(1, 3))
            $0.put(.inbox, key(1, 2, 2), value("put after the range"))
        }
        let found = try test.log.pairs(.inbox, key(1), key(2))
        #expect(found.map(\.key) == [key(1, 1, 1), key(1, 1, 3), key(1, 2, 2)])
        #expect(found.map(\.value) == [value("second"), value("put after delete"), value("put after the range")])
    }

    @Test(arguments: LogKind.allCases)
    func `ranges with few and with many keys are deleted alike, stored or put in the same commit`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        var random = Seeded(state: UInt64(seed))
        var expected: [Family: Set<Bytes>] = [:]
        for round in 0..<60 {
            try test.log.write { batch in
                for _ in 0..<12 {
                    let (family, channel) = (Family.allCases.randomElement(using: &random)!, UInt64.random(in: 0..<5, using: &random))
                    if Bool.random(using: &random) {
                        for _ in 0..<Int.random(in: 1...90, using: &random) {
                            let key = key(1, channel, UInt64.random(in: 0..<200, using: &random))
                            batch.put(family, key, [UInt8(round)])
                            expected[family, default: []].insert(key)
                        }
                    } else {
                        let isWhole = Bool.random(using: &random)
                        let lower = isWhole ? key(1, channel) : key(1, channel, UInt64.random(in: 0..<200, using: &random))
                        let upper = key(1, channel + UInt64.random(in: 1...2, using: &random))
                        batch.delete(family, from: lower, to: upper)
                        expected[family] = expected[family]?.filter {
                            $0.lexicographicallyPrecedes(lower) || !$0.lexicographicallyPrecedes(upper)
                        }
                    }
                }
            }
            for family in Family.allCases {
                let found = try test.log.pairs(family, key(1), key(2)).map(\.key)
                let kept = (expected[family] ?? []).sorted { $0.lexicographicallyPrecedes($1) }
                #expect(found == kept, "seed \(seed), round \(round), \(family)")
            }
        }
    }

    @Test(arguments: LogKind.allCases)
    func `a deleted range takes its first key and leaves its end`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        try test.log.write { batch in for offset: UInt64 in 0..<2_000 { batch.put(.log, key(1, 1, offset), [1]) } }
        try test.log.write { $0.delete(.log, from: key(1, 1, 10), to: key(1, 1, 1_990)) }
        let expected = (Array<UInt64>(0..<10) + Array(1_990..<2_000)).map { key(1, 1, $0) }
        #expect(try test.log.pairs(.log, key(1), key(2)).map(\.key) == expected)
        #expect(try test.log.get(.log, key(1, 1, 10)) == nil)
        #expect(try test.log.get(.log, key(1, 1, 1_990)) == [1])
        try test.log.write { $0.delete(.log, from: key(1, 1, 1_990), to: key(1, 1, 1_990)) }
        #expect(try test.log.get(.log, key(1, 1, 1_990)) == [1])
    }

    @Test(arguments: LogKind.allCases)
    func `a scan keeps to its bounds, forwards and in reverse`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        let keys = [key(1, 1, 5), key(1, 2, 1), key(1, 2, 2), key(1, 2, 3), key(1, 3, 1), key(2, 1, 1)]
        for partition: UInt16 in 1...2 {
            try test.log.write(partition) { batch in
                for key in keys where key.readBigEndian(at: 0, as: UInt16.self) == partition { batch.put(.log, key, []) }
            }
        }
        let ranges: [(lower: Bytes, upper: Bytes, expected: ArraySlice<Bytes>)] = [
            (key(1, 2), key(1, 3), keys[1...3]),  // A channel; the end is the prefix of the next.
            (key(1, 2, 2), key(1, 2, 3), keys[2...2]),
            (key(1, 2, 0), key(1, 2, .max), keys[1...3]),  // A channel, within its prefix.
            (key(1, 2, 4), key(1, 2, .max), []),
            (key(1, 9), key(1, 10), []),
            (key(1), key(2), keys[0...4]),  // A partition, across prefixes.
            (key(1, 1, 6), key(1, 3, 1), keys[1...3]),
            (key(2), key(3), keys[5...5]),
            ([], key(9), keys[...]),
            (key(1, 2, 2), key(1, 2, 2), []),
            (key(1, 3), key(1, 2), []),  // Ends before it begins.
        ]
        for range in ranges {
            #expect(try test.log.pairs(.log, range.lower, range.upper).map(\.key) == Array(range.expected))
            #expect(try test.log.pairs(.log, range.lower, range.upper, reversed: true).map(\.key) == range.expected.reversed())
        }
        #expect(try test.log.pairs(.states, key(1), key(2)).isEmpty)
    }

    @Test(arguments: LogKind.allCases)
    func `a scan stops when it is told to, and the first pair of either end is found`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        try test.log.write { batch in for offset: UInt64 in 0..<3_000 { batch.put(.log, key(1, 1, offset), value("\(offset)")) } }
        #expect(try test.log.pairs(.log, key(1, 1), key(1, 2), limit: 3).map(\.value) == ["0", "1", "2"].map(value))
        #expect(try test.log.pairs(.log, key(1, 1), key(1, 2), reversed: true, limit: 2).map(\.value) == ["2999", "2998"].map(value))
        #expect(try test.log.first(.log, from: key(1, 1, 100), to: key(1, 2))?.value == value("100"))
        #expect(try test.log.first(.log, from: key(1, 1), to: key(1, 1, 100), reversed: true)?.value == value("99"))
        #expect(try test.log.first(.log, from: key(1, 2), to: key(1, 3)) == nil)
    }

    @Test(arguments: LogKind.allCases, [0, 1, 255, 4_096, 70_000, 5 << 20])
    func `values come back as they were`(kind: LogKind, count: Int) throws {
        let test = try LogUnderTest(kind)
        var random = Seeded(state: UInt64(count))
        let piece = (0..<997).map { _ in UInt8.random(in: 0...255, using: &random) }
        var content = Bytes()
        while content.count < count { content.append(contentsOf: piece) }
        content.removeLast(content.count - count)
        for family in [Family.big, .log] {
            try test.log.write { $0.put(family, key(1, 1, 1), content) }
            #expect(try test.log.get(family, key(1, 1, 1)) == content)
            #expect(try test.log.pairs(family, key(1), key(2)) == [Pair(key: key(1, 1, 1), value: content)])
        }
    }

    @Test(arguments: LogKind.allCases)
    func `one commit writes to many partitions, which stay apart and in order`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        let batches = [300, 2, 1, 256].map { (partition: UInt16) in
            var batch = Batch(partition: partition)
            for channel: UInt64 in [2, 1] { batch.put(.channels, key(partition, channel), value("\(partition)/\(channel)")) }
            return batch
        }
        try test.log.commit(batches)
        let found = try test.log.pairs(.channels, key(0), key(.max)).map(\.value.text)
        #expect(found == ["1/1", "1/2", "2/1", "2/2", "256/1", "256/2", "300/1", "300/2"])
    }

    @Test(arguments: [LogKind.rocks, .simulated])
    func `what was committed is there after the log was opened again`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        for offset: UInt64 in 0..<50 { try test.log.write { $0.put(.log, key(1, 1, offset), value("\(offset)")) } }
        try test.log.write { $0.delete(.log, from: key(1, 1, 0), to: key(1, 1, 10)) }
        let before = try test.log.pairs(.log, key(1), key(2))
        try test.reopen()
        #expect(before.count == 40)
        #expect(try test.log.pairs(.log, key(1), key(2)) == before)
        try test.log.write { $0.put(.log, key(1, 1, 50), []) }
        try test.reopen()
        #expect(try test.log.pairs(.log, key(1), key(2)).count == 41)
    }

    @Test(arguments: LogKind.allCases)
    func `readers see a commit as a whole while the next ones are written`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        let log = test.log
        let done = Atomic(false)
        let seen = Mutex<[String]>([])
        // Each commit replaces the same twenty values; a reader that finds two different ones has seen a part of a commit.
        let readers = (0..<2).map { number in
            SystemThread(name: "reader") {
                var scans = 0
                while !done.load(ordering: .acquiring) || scans == 0 {
                    let found = (try? log.pairs(.states, key(1, 1), key(1, 2), reversed: number == 1).map(\.value)) ?? [value("failed")]
                    if Set(found).count > 1 || (!found.isEmpty && found.count != 20) { seen.withLock { $0.append("\(found)") } }
                    scans += 1
                }
            }
        }
        defer {
            done.store(true, ordering: .releasing)
            for reader in readers { reader.join() }
            #expect(seen.withLock { $0 }.isEmpty)
        }
        for round in 0..<100 {
            try log.write { batch in for entry: UInt64 in 0..<20 { batch.put(.states, key(1, 1, entry), value("\(round)")) } }
        }
    }

    @Test(arguments: LogKind.allCases)
    func `a closed log refuses everything`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        test.log.close()
        let closed = { (error: any Error) in (error as? LogError)?.code == .closed }
        #expect(performing: { try test.log.write { $0.put(.log, key(1), []) } }, throws: closed)
        #expect(performing: { try test.log.get(.log, key(1)) }, throws: closed)
        #expect(performing: { try test.log.pairs(.log, key(1), key(2)) }, throws: closed)
        test.log.close()
    }

    @Test(arguments: LogKind.allCases)
    func `long random sequences of operations agree with a plain dictionary`(kind: LogKind) throws {
        let test = try LogUnderTest(kind)
        var random = Seeded(state: seed)
        var model: [Bytes: Bytes] = [:]
        func randomKey() -> Bytes { key(1, .random(in: 0..<4, using: &random), .random(in: 0..<700, using: &random)) }
        for commit in 0..<60 {
            try test.log.write { batch in
                for _ in 0..<Int.random(in: 1...80, using: &random) {
                    let (a, b) = (randomKey(), randomKey())
                    switch Int.random(in: 0..<40, using: &random) {
                    case 0:
                        let (lower, upper) = a.lexicographicallyPrecedes(b) ? (a, b) : (b, a)
                        batch.delete(.log, from: lower, to: upper)
                        model = model.filter { $0.key.lexicographicallyPrecedes(lower) || !$0.key.lexicographicallyPrecedes(upper) }
                    case 1...8:
                        batch.delete(.log, a)
                        model[a] = nil
                    default:
                        batch.put(.log, a, value("\(commit)"))
                        model[a] = value("\(commit)")
                    }
                }
            }
            // Half-way the table files and their prefix filters come into play.
            if commit == 30 { try (test.log as? RocksLog)?.flush() }
            let (lower, upper) = (randomKey(), randomKey())
            let expected = model.filter { !$0.key.lexicographicallyPrecedes(lower) && $0.key.lexicographicallyPrecedes(upper) }
                .sorted { $0.key.lexicographicallyPrecedes($1.key) }.map { Pair(key: $0.key, value: $0.value) }
            try #require(try test.log.pairs(.log, lower, upper) == expected, "PARLEY_SEED=\(seed), commit \(commit)")
            try #require(
                try test.log.pairs(.log, lower, upper, reversed: true) == expected.reversed(), "PARLEY_SEED=\(seed), commit \(commit)")
            try #require(try test.log.get(.log, lower) == model[lower], "PARLEY_SEED=\(seed), commit \(commit)")
        }
    }
}
