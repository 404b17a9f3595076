internal import Glibc
package import ParleyLog
package import ParleySystem
internal import Synchronization

/// A log in memory, which behaves as the one on disk does until the process ends: for tests and benchmarks of what lies above.
package final class MemoryLog: CommitLog {
    private let contents = Mutex<MemoryContents?>(MemoryContents())

    package init() {}

    @discardableResult
    package func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] {
        let failures = contents.withLock { contents in batches.reduce(into: [UInt16: LogError]()) { $0[$1.partition] = contents?.take($1) } }
        _ = try snapshot()
        return failures
    }

    package func acquire(_ partition: UInt16) throws(LogError) -> UInt64 {
        guard let epoch = contents.withLock({ $0?.acquire(partition) }) else { throw MemoryLog.closed }
        return epoch
    }

    package func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? {
        try snapshot().get(family, key)
    }

    package func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(LogError) {
        try snapshot().scan(family, from: lower, to: upper, reversed: reversed, visit)
    }

    package func close() { contents.withLock { $0 = nil } }

    /// A value of its own: `visit` may take its time, and may call the log.
    private func snapshot() throws(LogError) -> MemoryContents {
        guard let contents = contents.withLock({ $0 }) else { throw MemoryLog.closed }
        return contents
    }

    private static let closed = LogError(.closed, "the log in memory has been closed")
}

/// The content of a log in memory; copies share their storage until one of them changes.
struct MemoryContents: Sendable {
    private var tables = [SortedTable](repeating: SortedTable(), count: Family.allCases.count)
    /// The newest epoch of each partition that has had an owner.
    private var epochs: [UInt16: UInt64] = [:]

    /// Gives a partition a new owner, and returns its epoch.
    mutating func acquire(_ partition: UInt16) -> UInt64 {
        epochs[partition, default: 0] += 1
        return epochs[partition]!
    }

    /// Applies a batch unless there has been another owner since.
    mutating func take(_ batch: Batch) -> LogError? {
        if let newest = epochs[batch.partition], batch.epoch < newest {
            return LogError(.partitionUnavailable, "partition \(batch.partition) has an owner of epoch \(newest), above \(batch.epoch)")
        }
        apply(batch)
        return nil
    }

    mutating func apply(_ batch: Batch) {
        batch.forEach { operation, family, key, value in
            let table = Int(family.rawValue)
            switch operation {
            case .put: tables[table].put(Bytes(key), Bytes(value))
            case .delete: tables[table].delete(Bytes(key))
            case .deleteRange: tables[table].delete(from: Bytes(key), to: Bytes(value))
            }
        }
    }

    func get(_ family: Family, _ key: Bytes) -> Bytes? { tables[Int(family.rawValue)].get(key) }

    func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) {
        tables[Int(family.rawValue)].scan(from: lower, to: upper, reversed: reversed) { pair in
            pair.key.withUnsafeBytes { key in pair.value.withUnsafeBytes { value in visit(key, value) } }
        }
    }
}

/// Pairs in key order: an array of arrays of at most 512 pairs, each a node of a tree of two levels.
private struct SortedTable: Sendable {
    struct Pair: Sendable {
        let key: Bytes
        var value: Bytes
    }

    private var chunks: [[Pair]] = []
    private static let chunkPairs = 512

    func get(_ key: Bytes) -> Bytes? {
        let at = lowerBound(key)
        return holds(key, at) ? chunks[at.chunk][at.index].value : nil
    }

    mutating func put(_ key: Bytes, _ value: Bytes) {
        let at = lowerBound(key)
        if holds(key, at) {
            chunks[at.chunk][at.index].value = value
        } else if chunks.isEmpty {
            chunks = [[Pair(key: key, value: value)]]
        } else if chunks[at.chunk].count < SortedTable.chunkPairs {
            chunks[at.chunk].insert(Pair(key: key, value: value), at: at.index)
        } else {
            // Keys mostly arrive in order: there a full chunk stays full, and the next one begins with the new key.
            let cut = at.index == chunks[at.chunk].count ? at.index : SortedTable.chunkPairs / 2
            chunks.insert(Array(chunks[at.chunk][cut...]), at: at.chunk + 1)
            chunks[at.chunk].removeSubrange(cut...)
            let target = at.index >= cut ? (at.chunk + 1, at.index - cut) : (at.chunk, at.index)
            chunks[target.0].insert(Pair(key: key, value: value), at: target.1)
        }
    }

    mutating func delete(_ key: Bytes) {
        let at = lowerBound(key)
        guard holds(key, at) else { return }
        chunks[at.chunk].remove(at: at.index)
        if chunks[at.chunk].isEmpty { chunks.remove(at: at.chunk) }
    }

    mutating func delete(from lower: Bytes, to upper: Bytes) {
        let (start, end) = (lowerBound(lower), lowerBound(upper))
        guard !chunks.isEmpty, (start.chunk, start.index) < (end.chunk, end.index) else { return }
        if start.chunk == end.chunk {
            chunks[start.chunk].removeSubrange(start.index..<end.index)
        } else {
            chunks[end.chunk].removeSubrange(..<end.index)
            chunks[start.chunk].removeSubrange(start.index...)
            chunks.removeSubrange((start.chunk + 1)..<end.chunk)
        }
        chunks.removeAll(where: \.isEmpty)
    }

    func scan(from lower: Bytes, to upper: Bytes, reversed: Bool, _ visit: (Pair) -> Bool) {
        guard !chunks.isEmpty, SortedTable.precedes(lower, upper) else { return }
        let (start, end) = (lowerBound(lower), lowerBound(upper))
        for step in 0...(end.chunk - start.chunk) {
            let chunk = reversed ? end.chunk - step : start.chunk + step
            let range = (chunk == start.chunk ? start.index : 0)..<(chunk == end.chunk ? end.index : chunks[chunk].count)
            for step in range {
                let index = reversed ? range.upperBound - 1 - (step - range.lowerBound) : step
                guard visit(chunks[chunk][index]) else { return }
            }
        }
    }

    /// The place of the first pair whose key is not below `key`; may be the end of a chunk.
    private func lowerBound(_ key: Bytes) -> (chunk: Int, index: Int) {
        let after = SortedTable.firstIndex(chunks.count) { SortedTable.precedes(key, chunks[$0][0].key) }
        guard after > 0 else { return (0, 0) }
        let chunk = chunks[after - 1]
        return (after - 1, SortedTable.firstIndex(chunk.count) { !SortedTable.precedes(chunk[$0].key, key) })
    }

    private func holds(_ key: Bytes, _ at: (chunk: Int, index: Int)) -> Bool {
        at.chunk < chunks.count && at.index < chunks[at.chunk].count && chunks[at.chunk][at.index].key == key
    }

    /// The first of `0..<count` for which `matches` holds, given that it holds for all that follow; else `count`.
    private static func firstIndex(_ count: Int, where matches: (Int) -> Bool) -> Int {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if matches(middle) { high = middle } else { low = middle + 1 }
        }
        return low
    }

    private static func precedes(_ a: Bytes, _ b: Bytes) -> Bool {
        let order = memcmp(a, b, min(a.count, b.count))
        return order != 0 ? order < 0 : a.count < b.count
    }
}
