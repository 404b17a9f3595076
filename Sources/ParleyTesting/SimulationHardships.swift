internal import ParleyAgents
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// The hardships of a process besides its death: reads that fail once, and an orderly end.
package struct SimulationHardships: Sendable {
    /// The reads of agents' data in the log that fail, by number, counted since the process has started.
    package var failingReads: Set<Int> = []
    /// How many names of agents that wait for room are remembered.
    package var waitingMax = AgentRuntime.waitingMax
    /// When the process begins to drain, and how long it has for that; then it ends.
    package var drain: (after: Duration, takes: Duration)?

    package init() {}

    /// Some of them, more or less at once.
    init(_ random: inout SplitMix64, mayEnd: Bool) {
        if Int.random(in: 0..<3, using: &random) == 0 {
            let last = [10, 100, 400].randomElement(using: &random)!
            failingReads = Set((0..<2).map { _ in Int.random(in: 0..<last, using: &random) })
        }
        waitingMax = [1, 2, 100].randomElement(using: &random)!
        if mayEnd, Int.random(in: 0..<3, using: &random) == 0 {
            let after = [5, 50, 500, 2_000, 5_000, 60_000].randomElement(using: &random)!
            drain = (.milliseconds(Int.random(in: 0...after, using: &random)), .milliseconds(Int.random(in: 0...200, using: &random)))
        }
    }
}

/// Makes reads fail once each, as those of a disk that is away for a moment.
final class SimulationReadFaults: Sendable {
    private let failing: Set<Int>
    /// How many reads there were; `nil`: none fails now, nor is counted.
    private let count = Mutex<Int?>(nil)

    init(_ failing: Set<Int>) { self.failing = failing }

    /// Reads by the judge of a run never fail.
    func pausing<Value>(_ body: () throws -> Value) rethrows -> Value {
        let paused = count.withLock { $0.take() }
        defer { count.withLock { $0 = paused } }
        return try body()
    }

    func begin() { count.withLock { $0 = 0 } }

    var readError: SimulatedLog.ReadError {
        { [self] family, _ in
            guard !failing.isEmpty, [.log, .inbox, .states, .big].contains(family) else { return nil }
            return count.withLock { count in
                guard let number = count else { return nil }
                count = number + 1
                return failing.contains(number) ? LogError(.damaged, "unreadable for a moment") : nil
            }
        }
    }
}
