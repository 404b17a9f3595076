import Foundation
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

/// A folder that is deleted with this value.
final class TemporaryFolder: Sendable {
    let path: String

    init() {
        path = FileManager.default.temporaryDirectory.appending(path: "parley-log-\(UUID().uuidString)").path
        try! FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// `[partition][number][number]...`
func key(_ partition: UInt16, _ numbers: UInt64...) -> Bytes {
    var key = Bytes()
    key.append(bigEndian: partition)
    for number in numbers { key.append(bigEndian: number) }
    return key
}

func value(_ text: String) -> Bytes { Bytes(text.utf8) }

extension CommitLog {
    /// Commits one batch of partition 1.
    func write(_ partition: UInt16 = 1, _ body: (inout Batch) -> Void) throws {
        var batch = Batch(partition: partition)
        body(&batch)
        try commit([batch])
    }

    func pairs(_ family: Family, _ lower: Bytes, _ upper: Bytes, reversed: Bool = false, limit: Int = .max) throws -> [Pair] {
        var pairs: [Pair] = []
        try scan(family, from: lower, to: upper, reversed: reversed) { key, value in
            pairs.append(Pair(key: Bytes(key), value: Bytes(value)))
            return pairs.count < limit
        }
        return pairs
    }
}

struct Pair: Equatable, CustomStringConvertible {
    let key: Bytes
    let value: Bytes
    var description: String { "\(hexadecimal(key)): \(value.count < 64 ? hexadecimal(value) : "\(value.count) bytes")" }
}

/// The logs that must behave the same.
enum LogKind: CaseIterable, CustomTestStringConvertible {
    case rocks, memory, simulated
    var testDescription: String { "\(self)" }
}

/// A log of a kind, and the folder it lives in.
final class LogUnderTest {
    let kind: LogKind
    private let folder = TemporaryFolder()
    private(set) var log: any CommitLog

    init(_ kind: LogKind) throws {
        self.kind = kind
        switch kind {
        case .rocks: log = try RocksLog(DataFolder(folder.path))
        case .memory: log = MemoryLog()
        case .simulated: log = SimulatedLog()
        }
    }

    deinit { log.close() }

    /// The log as the next process opens it.
    func reopen() throws {
        switch log {
        case let simulated as SimulatedLog: log = simulated.reopen()
        case is RocksLog:
            log.close()
            log = try RocksLog(DataFolder(folder.path))
        default: Issue.record("a log in memory cannot be opened again")
        }
    }
}

/// A seeded generator (SplitMix64), so that a failure can be run again.
struct Seeded: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// The seed of `PARLEY_SEED`, or a new one.
let seed = ProcessInfo.processInfo.environment["PARLEY_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0..<1_000_000)
