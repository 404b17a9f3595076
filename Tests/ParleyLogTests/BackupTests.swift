import Foundation
import ParleySystem
import Testing

@testable import ParleyLog

/// Copies of a log that is being written, over its flushes and new files of its write-ahead log.
@Suite struct `A backup of the log` {
    private let root = FileManager.default.temporaryDirectory.appending(path: "parley-backup-\(UUID().uuidString)").path

    private static func key(_ number: Int) -> Bytes { (0..<8).map { UInt8(truncatingIfNeeded: number >> (56 - 8 * $0)) } }

    @Test func `made while it is written holds every commit that was acknowledged, and no half of one`() throws {
        defer { try? FileManager.default.removeItem(atPath: root) }
        let log = try RocksLog(DataFolder(root + "/data"))
        let state = Monitor((committed: 0, isStopped: false))
        let ended = Monitor<String?>(nil)
        _ = SystemThread(name: "commits") {
            let failure = Result {
                var number = 0
                while !state.withLock({ $0.isStopped }) {
                    var batch = Batch(partition: 0)
                    // A value longer than a block of the write-ahead log, and a row of another family that belongs to it.
                    batch.put(.names, Self.key(number), Self.key(number))
                    batch.put(.index, Self.key(number), Bytes(repeating: UInt8(truncatingIfNeeded: number), count: 40_000))
                    try log.commit([batch])
                    number += 1
                    state.withLock(signalAll: true) { $0.committed = number }
                }
            }
            ended.withLock(signalAll: true) { if case .failure(let error) = failure { $0 = "\(error)" } else { $0 = "" } }
        }
        for round in 1...4 {
            let before = try #require(state.wait(timeout: .seconds(60)) { $0.committed >= round * 50 ? $0.committed : nil })
            if round > 1 { try log.flush(round == 2 ? [.names] : Family.allCases) }
            try log.backUp(to: root + "/copy-\(round)")
            let copy = try RocksLog(DataFolder(root + "/copy-\(round)"))
            let counts = try [Family.names, .index].map { family in
                var count = 0
                try copy.scan(family, from: [], to: [0xFF], reversed: false) { key, _ in
                    #expect(Bytes(key) == Self.key(count))
                    count += 1
                    return true
                }
                return count
            }
            #expect(counts[0] >= before && counts[0] == counts[1], "\(before) were acknowledged, the copy has \(counts)")
            copy.close()
        }
        state.withLock { $0.isStopped = true }
        #expect(ended.wait { $0 } == "")
        log.close()
    }

    @Test func `is refused into a folder that holds something, and cannot be opened before it is complete`() throws {
        defer { try? FileManager.default.removeItem(atPath: root) }
        let log = try RocksLog(DataFolder(root + "/data"))
        try log.backUp(to: root + "/copy")
        let error = #expect(throws: LogError.self) { try log.backUp(to: root + "/copy") }
        #expect(error?.message.contains("is not empty") == true)
        log.close()
        try FileManager.default.removeItem(atPath: root + "/copy/FORMAT")
        #expect(throws: LogError.self) { try DataFolder(root + "/copy") }
    }
}
