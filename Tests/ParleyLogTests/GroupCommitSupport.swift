import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization

/// What happened to submissions, in order.
final class Journal: Sendable {
    private let monitor = Monitor<[String]>([])

    func note(_ event: String) { monitor.withLock(signalAll: true) { $0.append(event) } }
    var events: [String] { monitor.withLock { $0 } }

    /// Waits until `count` events have happened.
    /// - Returns: Whether they did within ten seconds.
    func wait(for count: Int) -> Bool { monitor.wait(timeout: .seconds(10)) { $0.count >= count ? true : nil } ?? false }
}

/// A submission with a name and the changes that it stages. Records `<name> committed` or `<name> failed <code>`.
final class TestSubmission: Submission {
    let name: String
    let cost: Int
    let isUrgent: Bool
    private let journal: Journal
    private let body: @Sendable (inout Stage) throws(LogError) -> Void

    init(
        _ name: String, _ journal: Journal, cost: Int = 100, isUrgent: Bool = true,
        _ body: @escaping @Sendable (inout Stage) throws(LogError) -> Void = { _ in }
    ) {
        self.name = name
        self.cost = cost
        self.isUrgent = isUrgent
        self.journal = journal
        self.body = body
    }

    func stage(into stage: inout Stage) throws(LogError) { try body(&stage) }
    func committed() { journal.note("\(name) committed") }
    func failed(_ error: LogError) { journal.note("\(name) failed \(error.code.text)") }
}

/// A log that holds each commit until it is let through.
final class GatedLog: CommitLog {
    private let inner = MemoryLog()
    private let gate = Monitor((waiting: 0, passes: 0))
    private let sizes = Mutex<[Int]>([])

    /// Operations of each commit so far.
    var commits: [Int] { sizes.withLock { $0 } }

    /// Waits until a commit is at the gate.
    func waitForCommit() -> Bool { gate.wait(timeout: .seconds(10)) { $0.waiting > 0 ? true : nil } ?? false }
    func letThrough(_ count: Int = 1) { gate.withLock(signalAll: true) { $0.passes += count } }

    func commit(_ batches: [Batch]) throws(LogError) -> [UInt16: LogError] {
        gate.withLock(signalAll: true) { $0.waiting += 1 }
        let passed: Bool? = gate.wait(timeout: .seconds(30)) { state in
            guard state.passes > 0 else { return nil }
            state.passes -= 1
            state.waiting -= 1
            return true
        }
        guard passed == true else { throw LogError(.writeFailed, "the test never let the commit through") }
        sizes.withLock { $0.append(batches.reduce(0) { $0 + $1.count }) }
        return try inner.commit(batches)
    }

    func get(_ family: Family, _ key: Bytes) throws(LogError) -> Bytes? { try inner.get(family, key) }

    func scan(
        _ family: Family, from lower: Bytes, to upper: Bytes, reversed: Bool,
        _ visit: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(LogError) {
        try inner.scan(family, from: lower, to: upper, reversed: reversed, visit)
    }

    func close() { inner.close() }
}
