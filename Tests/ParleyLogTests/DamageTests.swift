import Foundation
import ParleySystem
import Testing

@testable import ParleyLog

/// Changes a bit in a folder, cuts a file, leaves a block unwritten or removes a file; then opens the folder and reads it.
@Suite struct `A damaged folder` {
    private let folder = TemporaryFolder()
    private var logPath: String { "\(folder.path)/log" }

    private func open() throws -> RocksLog { try RocksLog(DataFolder(folder.path)) }

    private func files(_ suffix: String) -> [String] {
        DataFolder.entries(logPath).filter { $0.hasSuffix(suffix) }.sorted().map { "\(logPath)/\($0)" }
    }

    private func read(_ file: String) throws -> Data { try Data(contentsOf: URL(filePath: file)) }

    /// The value of the commit `number`. Sizes differ widely, so that records lie in one sector, in one block, and over several.
    private func contents(_ number: UInt64) -> Bytes {
        var random = SplitMix64(seed: number)
        let count = [20, 200, 700, 5_000, 40_000, 100_000].randomElement(using: &random)!
        return Bytes((0..<count).map { _ in UInt8.random(in: .min ... .max, using: &random) })
    }

    /// Commits numbers, each acknowledged.
    private func write(_ log: RocksLog, _ numbers: Range<UInt64>) throws {
        for number in numbers { try log.write { $0.put(.log, key(1, 1, number), contents(number)) } }
    }

    /// The numbers that the log contains, in order. Each value must be as it was written.
    private func numbers(_ log: RocksLog) throws -> Range<UInt64> {
        let pairs = try log.pairs(.log, key(1, 1), key(1, 2))
        for (index, pair) in pairs.enumerated() {
            #expect(pair == Pair(key: key(1, 1, UInt64(index)), value: contents(UInt64(index))), "PARLEY_SEED=\(seed)")
        }
        return 0..<UInt64(pairs.count)
    }

    /// Runs `body` on many copies of the folder as it is now.
    private func onCopies(_ count: Int, _ body: (inout SplitMix64) throws -> Void) throws {
        let original = TemporaryFolder()
        try FileManager.default.removeItem(atPath: original.path)
        try FileManager.default.copyItem(atPath: folder.path, toPath: original.path)
        var random = SplitMix64(seed: seed)
        for _ in 0..<count {
            try body(&random)
            try FileManager.default.removeItem(atPath: folder.path)
            try FileManager.default.copyItem(atPath: original.path, toPath: folder.path)
        }
    }

    private static let isLong = ProcessInfo.processInfo.environment["PARLEY_LONG"] == "1"

    // MARK: The write-ahead log

    @Test(arguments: 1...3)
    func `a bit that changes in the write-ahead log is reported with file and place, wherever it is`(round: UInt64) throws {
        do {
            let log = try open()
            try write(log, 0..<(round * 7))
            log.close()
        }
        let file = try #require(files(".log").last)
        let byteCount = try read(file).count
        try onCopies(Self.isLong ? 2_000 : 30) { random in
            // Mostly near the end, where RocksDB takes a damaged record for the end of the file.
            let behind = Bool.random(using: &random) ? byteCount : min(byteCount, 2_000)
            let place = byteCount - 1 - Int.random(in: 0..<behind, using: &random)
            try change(file) { $0[place] ^= 1 << UInt8.random(in: 0..<8, using: &random) }
            try expectRefusal(naming: file, "bit flipped in byte \(place) of \(byteCount)")
        }
        // The length is two bytes of some hundred thousand: this flips each bit of the last record's.
        for place in try #require(records(file).last).header(4..<6) {
            for bit in 0..<8 {
                try onCopies(1) { _ in
                    try change(file) { $0[place] ^= 1 << UInt8(bit) }
                    try expectRefusal(naming: file, "bit \(bit) flipped in byte \(place) of \(byteCount)")
                }
            }
        }
    }

    private func change(_ file: String, _ body: (inout Data) -> Void) throws {
        var data = try read(file)
        body(&data)
        try data.write(to: URL(filePath: file))
    }

    /// Expects that opening fails with an error that names the file, the place and the remedy.
    private func expectRefusal(naming file: String, _ what: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
        do {
            let log = try open()
            defer { log.close() }
            Issue.record("\(what): it opens, with \(try numbers(log)) (PARLEY_SEED=\(seed))", sourceLocation: sourceLocation)
        } catch let error as LogError {
            #expect(error.code == .damaged, "\(what)", sourceLocation: sourceLocation)
            #expect(error.message.contains(file) && error.message.contains("at byte "), "\(what): \(error)", sourceLocation: sourceLocation)
            #expect(error.message.contains("Restore the folder from a backup"), sourceLocation: sourceLocation)
        }
    }

    private struct Record {
        var start: Int
        func header(_ range: Range<Int>) -> Range<Int> { start + range.lowerBound..<start + range.upperBound }
    }

    /// The pieces that the file consists of.
    private func records(_ file: String) throws -> [Record] {
        let data = try read(file)
        var (records, place) = ([Record](), 0)
        while place + 7 <= data.count {
            if 32_768 - place % 32_768 < 7 {
                place += 32_768 - place % 32_768
                continue
            }
            records.append(Record(start: place))
            place += 7 + Int(data[place + 4]) + Int(data[place + 5]) << 8
        }
        return records
    }

    @Test func `a write-ahead log cut anywhere opens with what was committed up to there, and continues`() throws {
        do {
            let log = try open()
            try write(log, 0..<12)
            log.close()
        }
        let file = try #require(files(".log").last)
        let byteCount = try read(file).count
        try onCopies(Self.isLong ? 1_000 : 30) { random in
            let place = Int.random(in: 0...byteCount, using: &random)
            try change(file) { $0 = $0.prefix(place) }
            let log = try open()
            defer { log.close() }
            let there = try numbers(log)
            #expect(place < byteCount || there.count == 12)
            try write(log, there.upperBound..<there.upperBound + 1)
            #expect(try numbers(log).count == there.count + 1)
        }
    }

    /// A file may have grown by a write of which a power cut has left some blocks unwritten.
    @Test func `a last record with sectors that were never written is cut off, whichever they are`() throws {
        for last: UInt64 in 5..<15 {
            let (file, start, byteCount) = try logEnding(with: last)
            // All sectors that the last write added. The sector where it begins exists in any case, but may have its former bytes.
            let sectors = Array(stride(from: (start + 511) / 512 * 512, to: byteCount, by: 512))
            try onCopies(Self.isLong ? 200 : 6) { random in
                var unwritten = sectors.filter { _ in Bool.random(using: &random) }
                if unwritten.isEmpty, let one = sectors.randomElement(using: &random) { unwritten = [one] }
                try change(file) { data in
                    for sector in unwritten { for place in sector..<min(sector + 512, byteCount) { data[place] = 0 } }
                    if Bool.random(using: &random) || unwritten.isEmpty {
                        for place in start..<min((start + 511) / 512 * 512, byteCount) { data[place] = 0 }
                    }
                }
                guard byteCount - (sectors.last ?? start) >= 8 else { return }
                let log = try open()
                defer { log.close() }
                #expect(try numbers(log).count == Int(last), "sectors \(unwritten) of \(start)..<\(byteCount) (PARLEY_SEED=\(seed))")
            }
        }
    }

    /// Makes a log of `last` commits and one more. Returns its file, and where the record of the last commit begins and ends.
    private func logEnding(with last: UInt64) throws -> (file: String, start: Int, byteCount: Int) {
        try FileManager.default.removeItem(atPath: folder.path)
        let log = try open()
        try write(log, 0..<last)
        let start = try read(files(".log").last!).count
        try write(log, last..<last + 1)
        log.close()
        let file = try #require(files(".log").last)
        return (file, start, try read(file).count)
    }

    /// Expects that the log opens with the commits before the last record, and accepts more.
    private func expectCut(_ count: UInt64, _ what: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
        let log = try open()
        defer { log.close() }
        #expect(try numbers(log) == 0..<count, "\(what) (PARLEY_SEED=\(seed))", sourceLocation: sourceLocation)
        try write(log, count..<count + 1)
        #expect(try numbers(log).count == Int(count) + 1, "\(what)", sourceLocation: sourceLocation)
    }

    /// A file may have been allocated before it was written to.
    @Test func `a last record that was written up to any byte is cut off, however many zeros follow`() throws {
        for last: UInt64 in 5..<13 {
            let (file, start, byteCount) = try logEnding(with: last)
            try onCopies(Self.isLong ? 200 : 8) { random in
                // Mostly within the header, or near one of the ends.
                let written = [Int.random(in: 0...16, using: &random), Int.random(in: 0..<byteCount - start, using: &random)]
                let place = start + min(written.randomElement(using: &random)!, byteCount - start - 8)
                let more = [0, 8, 100, 5_000, 70_000].randomElement(using: &random)!
                try change(file) { $0 = $0.prefix(place) + Data(count: byteCount - place + more) }
                try expectCut(last, "\(place - start) of \(byteCount - start) bytes written, \(more) zeros behind")
            }
        }
    }

    @Test func `a bit that changes in a last record is damage also when zeros end it, or follow`() throws {
        for zeros in [0, 40] {
            for more in [0, 8, 700, 40_000] {
                try FileManager.default.removeItem(atPath: folder.path)
                do {
                    let log = try open()
                    try write(log, 0..<3)
                    try log.write { $0.put(.log, key(1, 1, 3), contents(3) + Bytes(repeating: 0, count: zeros)) }
                    log.close()
                }
                let file = try #require(files(".log").last)
                let (last, byteCount) = (try #require(records(file).last), try read(file).count)
                try onCopies(Self.isLong ? 200 : 4) { random in
                    // Not in the length: a changed length makes the reader look elsewhere, and only up to the end of the file.
                    let places = Array(last.start..<last.start + 4) + Array(last.start + 7..<byteCount)
                    let place = places.randomElement(using: &random)!
                    try change(file) {
                        $0[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
                        $0 += Data(count: more)
                    }
                    try expectRefusal(naming: file, "bit flipped in byte \(place) of \(byteCount), \(zeros) zeros in it, \(more) behind")
                }
            }
        }
    }

    @Test func `sectors that are zero in the midst of the write-ahead log are damage`() throws {
        do {
            let log = try open()
            try write(log, 0..<12)
            log.close()
        }
        let file = try #require(files(".log").last)
        let last = try #require(records(file).last)
        try onCopies(Self.isLong ? 300 : 20) { random in
            let sector = Int.random(in: 0..<(last.start / 512), using: &random) * 512
            try change(file) { for place in sector..<sector + 512 { $0[place] = 0 } }
            try expectRefusal(naming: file, "sector \(sector) is zero, the last piece begins at \(last.start)")
        }
    }

    // MARK: Several files

    /// Leaves a folder as a killed process does, with `count` files of the write-ahead log that are all needed.
    private func writeSeveralFiles(_ count: UInt64) throws {
        let log = try open()
        for file in 0..<count {
            try write(log, file * 5..<file * 5 + 5)
            // A flush of another family begins a file, while family `log` stays in memory.
            try log.write { $0.put(.names, key(1, file), value("name")) }
            try log.flush([.names])
        }
        try write(log, count * 5..<count * 5 + 5)
        let killed = TemporaryFolder()
        try FileManager.default.removeItem(atPath: killed.path)
        try FileManager.default.copyItem(atPath: folder.path, toPath: killed.path)
        log.close()
        try FileManager.default.removeItem(atPath: folder.path)
        try FileManager.default.moveItem(atPath: killed.path, toPath: folder.path)
    }

    @Test func `a write-ahead log of several files opens after a kill`() throws {
        try writeSeveralFiles(3)
        #expect(files(".log").count == 4)
        let log = try open()
        #expect(try numbers(log) == 0..<20)
        log.close()
    }

    @Test func `a hole in the write-ahead log is damage: a file that is missing, cut, or cut between two records`() throws {
        try writeSeveralFiles(3)
        let logs = files(".log")
        try onCopies(Self.isLong ? 200 : 24) { random in
            let file = logs.dropLast().randomElement(using: &random)!
            let byteCount = try read(file).count
            let how = Int.random(in: 0..<3, using: &random)
            switch how {
            case 0: try FileManager.default.removeItem(atPath: file)
            case 1: try change(file) { $0 = $0.prefix(Int.random(in: 0..<byteCount, using: &random)) }
            default:
                let start = try records(file).randomElement(using: &random)!.start
                try change(file) { $0 = $0.prefix(start) }
            }
            let error = try #require(throws: LogError.self, "\(file) changed by way \(how) (PARLEY_SEED=\(seed))") {
                let log = try open()
                print(try numbers(log))
                log.close()
            }
            #expect(error.code == .damaged && error.message.contains("backup"), "\(error)")
        }
    }

    // MARK: Any file

    @Test func `a bit that changes in any file is reported or harmless: what is read is what was written`() throws {
        do {
            let log = try open()
            try write(log, 0..<8)
            try log.flush()
            try write(log, 8..<12)
            try log.flush()
            try write(log, 12..<16)
            log.close()
        }
        let inLog = DataFolder.entries(logPath).map { "\(logPath)/\($0)" }.filter { (try? read($0).isEmpty) == false }
        let files = inLog + ["\(folder.path)/FORMAT"]
        try onCopies(Self.isLong ? 3_000 : 80) { random in
            let file = files.randomElement(using: &random)!
            let byteCount = try read(file).count
            let place = Int.random(in: 0..<byteCount, using: &random)
            try change(file) { $0[place] ^= 1 << UInt8.random(in: 0..<8, using: &random) }
            let what = "bit flipped in byte \(place) of \(byteCount) of \(file)"
            do {
                let log = try open()
                defer { log.close() }
                #expect(try numbers(log).count == 16, "\(what) (PARLEY_SEED=\(seed))")
            } catch let error as LogError {
                #expect([.damaged, .newerFormat, .inaccessible].contains(error.code), "\(what): \(error)")
                #expect(error.message.contains(folder.path), "\(what): \(error)")
            }
        }
    }

    @Test func `damage that is met by what merges tables stops the log with the file's name, and not its restart`() throws {
        do {
            let log = try open()
            for _ in 0..<3 {
                try write(log, 0..<8)
                try log.flush([.log])
            }
            log.close()
        }
        let file = try #require(files(".sst").max { try read($0).count < read($1).count })
        try change(file) { $0[1_000] ^= 1 }
        let log = try open()
        defer { log.close() }
        var failure: LogError?
        // The fourth table gets them merged at some time.
        let deadline = ContinuousClock.now + .seconds(60)
        while failure == nil && ContinuousClock.now < deadline {
            do throws(LogError) {
                var batch = Batch(partition: 1)
                batch.put(.log, key(1, 1, 0), [])
                try log.commit([batch])
                try log.flush([.log])
            } catch { failure = error }
        }
        let error = try #require(failure)
        #expect(error.code == .writeFailed)
        #expect(error.message.contains("Corruption") && error.message.contains(file) && error.message.contains("backup"), "\(error)")
    }
}
