import Foundation
import ParleySystem
import Testing

@testable import ParleyLog

@Suite struct `The log on disk` {
    private let folder = TemporaryFolder()

    private func open(statistics: Bool = false) throws -> RocksLog { try RocksLog(DataFolder(folder.path), statistics: statistics) }

    /// Opens the log, and returns the error that it must throw.
    private func refusal() throws -> LogError {
        try #require(throws: LogError.self) { try open().close() }
    }

    /// The files of the log with this suffix, oldest first.
    private func files(_ suffix: String) -> [String] {
        DataFolder.entries("\(folder.path)/log").filter { $0.hasSuffix(suffix) }.sorted().map { "\(folder.path)/log/\($0)" }
    }

    private func flip(_ file: String, at offset: Int) throws {
        var data = try Data(contentsOf: URL(filePath: file))
        data[offset] ^= 0x40
        try data.write(to: URL(filePath: file))
    }

    // MARK: Durability

    @Test func `every commit syncs the write-ahead log once, whatever it holds`() throws {
        let log = try open(statistics: true)
        defer { log.close() }
        let before = try #require(try log.syncCount)
        for round: UInt64 in 0..<10 {
            try log.commit(
                (1...3).map { (partition: UInt16) in
                    var batch = Batch(partition: partition)
                    for family in Family.allCases { batch.put(family, key(partition, 1, round), value("x")) }
                    return batch
                })
        }
        #expect(try log.syncCount == before + 10)
    }

    @Test func `a process killed after the sync of a commit leaves it behind, and one killed before it does not`() async throws {
        for (point, survivors) in [("commit.before:3", 2), ("commit.after:3", 3)] {
            let data = "\(folder.path)/\(point.prefix(10))"
            await #expect(processExitsWith: .signal(SIGKILL)) { [data = data as String, point = point as String] in
                setenv("PARLEY_FAILPOINT", point, 1)
                let log = try RocksLog(DataFolder(data))
                for offset: UInt64 in 0..<5 { try log.write { $0.put(.log, key(1, 1, offset), value("kept")) } }
            }
            let log = try RocksLog(DataFolder(data))
            #expect(try log.pairs(.log, key(1), key(2)).count == survivors)
            log.close()
        }
    }

    // MARK: Memory

    @Test func `what is in memory of the newest writes is bounded over all families`() throws {
        let log = try open()
        defer { log.close() }
        let piece = Bytes(repeating: 7, count: 1 << 20)
        var most = 0
        for offset: UInt64 in 0..<40 {
            try log.write { batch in for family in [Family.channels, .log, .states, .inbox] { batch.put(family, key(1, 1, offset), piece) }
            }
            most = max(most, try log.memtableBytes)
        }
        #expect(most > 16 << 20 && most < 80 << 20, "\(most >> 20) MB of 160 were in memory")
    }

    // MARK: Deleted ranges

    @Test func `channels with few keys are deleted without range tombstones, which slow all that comes later`() throws {
        let log = try open()
        defer { log.close() }
        for channel: UInt64 in 0..<600 {
            try log.write { batch in for family in Family.allCases where family.hasPrefix { batch.put(family, key(1, channel, 1), [1]) } }
        }
        for channel: UInt64 in 0..<600 {
            try log.write { batch in
                batch.put(.inbox, key(1, channel, 2), [2])
                for family in Family.allCases where family.hasPrefix {
                    batch.delete(family, from: key(1, channel), to: key(1, channel + 1))
                }
            }
        }
        #expect(try log.tombstones.allSatisfy { $0 == 0 })
        for family in Family.allCases { #expect(try log.pairs(family, key(1), key(2)).isEmpty) }
    }

    @Test func `range tombstones of channels with many keys go to table files before they are many`() throws {
        let log = try open()
        defer { log.close() }
        for channel: UInt64 in 0..<1_200 {
            try log.write { batch in for number: UInt64 in 0..<80 { batch.put(.log, key(1, channel, number), [1]) } }
            try log.write { $0.delete(.log, from: key(1, channel), to: key(1, channel + 1)) }
            let count = try log.tombstones[Int(Family.log.rawValue)]
            #expect(count < 500)
            if channel == 10 { #expect(count == 11) }
        }
        #expect(try log.pairs(.log, key(1), key(2)).isEmpty)
    }

    // MARK: Table files

    @Test func `a scan finds what lies in table files, also when it begins or ends at a channel that is not there`() throws {
        let log = try open()
        defer { log.close() }
        let channels: [UInt64] = [1, 3, 5]
        try log.write { batch in for channel in channels { batch.put(.log, key(1, channel, 1), value("\(channel)")) } }
        try log.flush()
        for (lower, upper, expected) in [
            (key(1, 2), key(1, 9), ["3", "5"]), (key(1, 2, 0), key(1, 4, 0), ["3"]), (key(1, 0), key(1, 4), ["1", "3"]),
            (key(1, 3), key(1, 4), ["3"]), (key(1, 3, 0), key(1, 3, .max), ["3"]), (key(1, 4, 0), key(1, 4, .max), []),
        ] {
            #expect(try log.pairs(.log, lower, upper).map(\.value.text) == expected)
            #expect(try log.pairs(.log, lower, upper, reversed: true).map(\.value.text) == expected.reversed())
        }
    }

    // MARK: Damage

    @Test func `a write-ahead log cut anywhere inside its last record opens with everything before it`() throws {
        do {
            let log = try open()
            for offset: UInt64 in 0..<5 { try log.write { $0.put(.log, key(1, 1, offset), Bytes(repeating: 7, count: 100)) } }
            log.close()
        }
        let original = TemporaryFolder()
        try FileManager.default.removeItem(atPath: original.path)
        try FileManager.default.copyItem(atPath: folder.path, toPath: original.path)
        // The record: 7 bytes of header, 12 of the batch, then a put of a key of 18 bytes and a value of 100.
        for cut in [1, 2, 50, 100, 101, 110, 120, 130, 138, 140, 141] {
            try FileManager.default.removeItem(atPath: folder.path)
            try FileManager.default.copyItem(atPath: original.path, toPath: folder.path)
            let file = try #require(files(".log").last)
            let data = try Data(contentsOf: URL(filePath: file))
            try data.dropLast(cut).write(to: URL(filePath: file))
            let log = try open()
            #expect(try log.pairs(.log, key(1), key(2)).map(\.key) == (0..<4).map { key(1, 1, $0) }, "cut by \(cut)")
            try log.write { $0.put(.log, key(1, 1, 4), value("again")) }
            log.close()
        }
    }

    @Test func `damage in the middle of the write-ahead log is reported, naming the file, and nothing is dropped in silence`() throws {
        do {
            let log = try open()
            for offset: UInt64 in 0..<50 { try log.write { $0.put(.log, key(1, 1, offset), Bytes(repeating: 7, count: 100)) } }
            log.close()
        }
        let file = try #require(files(".log").last)
        try flip(file, at: try Data(contentsOf: URL(filePath: file)).count / 2)
        let error = try refusal()
        #expect(error.code == .damaged)
        #expect(error.message.contains(URL(filePath: file).lastPathComponent))
        #expect(error.message.contains("backup"))
    }

    @Test func `damage to a table file is reported by the reads that meet it, naming family and file, and by no other`() throws {
        do {
            let log = try open()
            for channel: UInt64 in 0..<2 {
                try log.write { batch in
                    for offset: UInt64 in 0..<100 { batch.put(.states, key(1, channel, offset), Bytes(repeating: 7, count: 1_000)) }
                }
            }
            try log.write { $0.put(.channels, key(1, 1), value("row")) }
            try log.flush()
            log.close()
        }
        let size = { (file: String) in try Data(contentsOf: URL(filePath: file)).count }
        let file = try #require(try files(".sst").max { try size($0) < size($1) })
        try flip(file, at: 5_000)

        let log = try open()
        defer { log.close() }
        for read in [{ try log.get(.states, key(1, 0, 3)) != nil }, { try !log.pairs(.states, key(1, 0), key(1, 1)).isEmpty }] {
            let error = try #require(throws: LogError.self) { _ = try read() }
            #expect(error.code == .damaged)
            #expect(error.message.contains("family 'states'"))
            #expect(error.message.contains(file))
        }
        #expect(try log.get(.states, key(1, 1, 90)) == Bytes(repeating: 7, count: 1_000))
        #expect(try log.get(.channels, key(1, 1)) == value("row"))
    }

    @Test func `a log that has lost a file does not open as if it were whole`() throws {
        do {
            let log = try open()
            try log.write { $0.put(.states, key(1, 1), value("state")) }
            try log.flush()
            log.close()
        }
        let file = URL(filePath: try #require(files(".sst").first))
        try FileManager.default.removeItem(at: file)
        let error = try refusal()
        #expect(error.code == .damaged)
        #expect(
            error.message.contains("/\(file.deletingPathExtension().lastPathComponent)."), "by its number: RocksDB gives it another suffix")
    }

    // MARK: A disk that fails

    @Test func `a write that the disk refuses fails the log, with the reason and a remedy, and loses nothing acknowledged`() async throws {
        let data = "\(folder.path)/small"
        await #expect(processExitsWith: .success) { [data = data as String] in
            let log = try RocksLog(DataFolder(data))
            let error = try withFiles(upTo: 20 << 10) {
                try #require(throws: LogError.self) {
                    for offset: UInt64 in 0..<100 { try log.write { $0.put(.log, key(1, 1, offset), Bytes(repeating: 7, count: 10_000)) } }
                }
            }
            #expect(error.code == .writeFailed)
            #expect(error.message.contains("File too large"))
            #expect(error.message.contains("free some space"))
            for call in [{ try log.write { $0.put(.log, key(1), []) } }, { _ = try log.get(.log, key(1, 1, 0)) }] {
                let later = try #require(throws: LogError.self) { try call() }
                #expect(later.code == .closed)
            }
            log.close()
        }
        let log = try RocksLog(DataFolder(data))
        #expect(try log.pairs(.log, key(1), key(2)).count >= 1)
        log.close()
    }

    @Test func `a disk too full to open the log is reported with the remedy`() async throws {
        let data = "\(folder.path)/full"
        await #expect(processExitsWith: .success) { [data = data as String] in
            let folder = try DataFolder(data)
            let error = try withFiles(upTo: 64) { try #require(throws: LogError.self) { try RocksLog(folder).close() } }
            #expect(error.code == .writeFailed)
            #expect(error.message.contains("no space for 4 MB") && error.message.contains("Free some space"))
        }
    }

    @Test func `a table file that the disk refuses fails the log and not the process, and nothing acknowledged is lost`() async throws {
        let data = "\(folder.path)/tables"
        await #expect(processExitsWith: .success) { [data = data as String] in
            let log = try RocksLog(DataFolder(data))
            for offset: UInt64 in 0..<100 { try log.write { $0.put(.log, key(1, 1, offset), Bytes(repeating: 7, count: 10_000)) } }
            let error = try withFiles(upTo: 20 << 10) { try #require(throws: LogError.self) { try log.flush() } }
            #expect(error.code == .writeFailed)
            let later = try #require(throws: LogError.self) { try log.write { $0.put(.log, key(1, 1, 100), []) } }
            #expect(later.code == .writeFailed || later.code == .closed)
            log.close()
        }
        let log = try RocksLog(DataFolder(data))
        #expect(try log.pairs(.log, key(1), key(2)).count == 100)
        log.close()
    }

    @Test(arguments: [
        ("IO error: No space left on device: While appending to file: /d/log/000004.log: No space left on device", "free some space"),
        ("IO error: Input/output error: While fdatasync: /d/log/000004.log: Input/output error", "check the disk"),
        ("Corruption: block checksum mismatch: stored = 1, computed = 2 in /d/log/000012.sst offset 0 size 4096", "from a backup"),
    ])
    func `the remedy follows the system's reason`(text: String, remedy: String) {
        let error = LogError(writing: "/d/log", text)
        #expect(error.code == .writeFailed)
        #expect(error.message.contains(text) && error.message.contains(remedy))
    }

    @Test func `a manifest that was found whole is not what is damaged`() {
        let error = LogError(opening: "/d/log", "Corruption: properties unsorted in file /d/log/MANIFEST-000034")
        #expect(error.code == .damaged)
        for word in ["properties unsorted", "one of the .sst files", "from a backup"] { #expect(error.message.contains(word)) }
    }

    @Test func `families that this version does not know are those of a newer one`() {
        let error = LogError(opening: "/d/log", "Invalid argument: Column families not opened: vectors")
        #expect(error.code == .newerFormat)
        #expect(error.message.contains("vectors"))
    }
}

/// Runs `body` while no file of this process can grow beyond `bytes`: a write fails there as it does on a full disk.
private func withFiles<Result>(upTo bytes: UInt, _ body: () throws -> Result) throws -> Result {
    signal(SIGXFSZ, SIG_IGN)
    let resource = __rlimit_resource_t(1)  // RLIMIT_FSIZE, which is an enumeration's case in C.
    var before = rlimit()
    try #require(getrlimit(resource, &before) == 0)
    var limit = rlimit(rlim_cur: bytes, rlim_max: before.rlim_max)
    try #require(setrlimit(resource, &limit) == 0)
    // The test's own report also goes to a file.
    defer { setrlimit(resource, &before) }
    return try body()
}
