import Foundation
import ParleyTesting

/// Simulated runs, one seed after another, until time is up: `parley-simulate [seconds]`. With `PARLEY_SEED` that one run.
///
/// The same as the tests do, as a program of its own: optimized it does many times more runs, and that without building the tests again.
@main
enum Simulate {
    static func main() throws {
        let environment = ProcessInfo.processInfo.environment
        if let seed = environment["PARLEY_SEED"].flatMap({ UInt64($0) }) {
            let run = try SimulatedNode.simulate { try SimulationRun(seed: seed) }
            print("seed \(seed): \(run.crashes) crashes, \(run.commits) commits, \(run.violations.count) violations")
            for violation in run.violations { print(violation) }
            exit(run.violations.isEmpty ? 0 : 1)
        }
        let seconds = CommandLine.arguments.dropFirst().first.flatMap { Double($0) } ?? 60
        let failures = try SimulatedNode.simulate { try series(seconds) }
        for failure in failures { print("failed: \(failure)") }
        exit(failures.isEmpty ? 0 : 1)
    }

    /// - Returns: what went wrong, each with its seed.
    private static func series(_ seconds: Double) throws -> [String] {
        var (runs, crashes, commits, failures, matrix) = (UInt64(0), 0, 0, [String](), SimulationMatrix())
        let start = Date()
        while -start.timeIntervalSinceNow < seconds, failures.count < 3 {
            do {
                let run = try SimulationRun(seed: runs)
                (crashes, commits) = (crashes + run.crashes, commits + run.commits)
                matrix.add(run.matrix)
                if !run.violations.isEmpty {
                    failures.append("PARLEY_SEED=\(runs) \(run.violations.prefix(3).map(\.description).joined(separator: "; "))")
                }
            } catch { failures.append("PARLEY_SEED=\(runs) \(error)") }
            runs += 1
        }
        if !matrix.missing.isEmpty { failures.append("no process died in: \(matrix.missing.joined(separator: "; "))") }
        print(matrix.table)
        print("\(runs) runs (seeds 0..<\(runs)), \(crashes) crashes, \(commits) commits, \(failures.count) failed")
        return failures
    }
}
