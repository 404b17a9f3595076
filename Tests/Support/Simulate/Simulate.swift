import Foundation
import ParleyTesting

/// Simulated runs, one seed after another, until time is up: `parley-simulate [weeks | patient] [seconds]`. With `PARLEY_SEED` that one run, and with
/// `PARLEY_TRACE` besides what happens in it. With `PARLEY_TALLY` patient runs do not stop at the third that fails.
///
/// The same as the tests do, as a program of its own: optimized it does many times more runs, and that without building the tests again.
@main
enum Simulate {
    static func main() throws {
        let environment = ProcessInfo.processInfo.environment
        let arguments = CommandLine.arguments.dropFirst()
        let (isWeeks, isPatient) = (arguments.first == "weeks", arguments.first == "patient")
        if let seed = environment["PARLEY_SEED"].flatMap({ UInt64($0) }) {
            let violations = try SimulatedNode.simulate {
                let isTraced = environment["PARLEY_TRACE"] != nil
                return try isWeeks ? week(seed, isTraced: isTraced) : run(seed, isPatient ? .all : .quick, isTraced: isTraced)
            }
            for violation in violations { print(violation) }
            exit(violations.isEmpty ? 0 : 1)
        }
        let seconds = arguments.last.flatMap { Double($0) } ?? 60
        let failures = try SimulatedNode.simulate { try isWeeks ? weeks(seconds) : isPatient ? patient(seconds) : runs(seconds) }
        for failure in failures { print("failed: \(failure)") }
        exit(failures.isEmpty ? 0 : 1)
    }

    /// On a slow machine it takes longer than was asked for: with so many seeds a process has died in every way.
    private static let runsForAll: UInt64 = 2_000

    private static func run(
        _ seed: UInt64, _ palette: SimulationProgram.Palette, isTraced: Bool
    ) throws -> [SimulationViolation] {
        let run = try SimulationRun(seed: seed, palette: palette)
        if isTraced {
            for (life, entries) in run.history.entries.sorted(by: { $0.key.name < $1.key.name }) {
                print("-- \(life)")
                for entry in entries { print(entry.text) }
            }
        }
        print("seed \(seed): \(run.crashes) crashes, \(run.commits) commits, \(run.violations.count) violations")
        return run.violations
    }

    private static func week(_ seed: UInt64, isTraced: Bool) throws -> [SimulationViolation] {
        let week = try SimulatedWeek(seed: seed, trace: isTraced ? { print($0) } : nil)
        print("seed \(seed): \(week.summary)")
        return week.violations
    }

    /// - Returns: the violations, each with its seed.
    private static func runs(_ seconds: Double) throws -> [String] {
        var (runs, crashes, commits, failures, matrix) = (UInt64(0), 0, 0, [String](), SimulationMatrix())
        let start = Date()
        while failures.count < 3, -start.timeIntervalSinceNow < seconds || runs < runsForAll && !matrix.missing.isEmpty {
            do {
                let run = try SimulationRun(seed: runs)
                (crashes, commits) = (crashes + run.crashes, commits + run.commits)
                matrix.add(run.matrix)
                failures += failure(runs, run.violations)
            } catch { failures.append("PARLEY_SEED=\(runs) \(error)") }
            runs += 1
        }
        if !matrix.missing.isEmpty { failures.append("no process died in: \(matrix.missing.joined(separator: "; "))") }
        print(matrix.table)
        print("\(runs) runs (seeds 0..<\(runs)), \(crashes) crashes, \(commits) commits, \(failures.count) failed")
        return failures
    }

    /// The same for runs in which turns wait for people.
    private static func patient(_ seconds: Double) throws -> [String] {
        let first = ProcessInfo.processInfo.environment["PARLEY_FIRST"].flatMap { UInt64($0) } ?? 0
        let failuresMax = ProcessInfo.processInfo.environment["PARLEY_TALLY"] == nil ? 3 : Int.max
        var (seed, crashes, commits, failures, tally) = (first, 0, 0, [String](), [String: [UInt64]]())
        let start = Date()
        while failures.count < failuresMax, -start.timeIntervalSinceNow < seconds {
            do {
                let run = try SimulationRun(seed: seed, palette: .all)
                (crashes, commits) = (crashes + run.crashes, commits + run.commits)
                failures += failure(seed, run.violations)
                for invariant in Set(run.violations.map(\.invariant)) { tally[invariant, default: []].append(seed) }
            } catch { failures.append("PARLEY_SEED=\(seed) \(error)") }
            seed += 1
        }
        for (invariant, seeds) in tally.sorted(by: { $0.key < $1.key }) {
            print("\(seeds.count) runs broke '\(invariant)': \(seeds.prefix(5))")
        }
        print("\(seed - first) runs (seeds \(first)..<\(seed)), \(crashes) crashes, \(commits) commits, \(failures.count) failed")
        return failures.prefix(20).map { $0 }
    }

    /// The same for simulated weeks.
    private static func weeks(_ seconds: Double) throws -> [String] {
        let first = ProcessInfo.processInfo.environment["PARLEY_FIRST"].flatMap { UInt64($0) } ?? 0
        var (seed, crashes, commits, operations, failures, matrix) = (first, 0, 0, 0, [String](), SimulationMatrix())
        var length = Duration.zero
        let start = Date()
        var missing: [String] { matrix.missing(of: SimulationMatrix.kindsOfWeeks) }
        while failures.count < 3, -start.timeIntervalSinceNow < seconds || seed - first < runsForAll && !missing.isEmpty {
            do {
                let week = try SimulatedWeek(seed: seed)
                (crashes, commits, operations) = (crashes + week.crashes, commits + week.commits, operations + week.operations)
                length += week.length
                matrix.add(week.matrix)
                failures += failure(seed, week.violations)
            } catch { failures.append("PARLEY_SEED=\(seed) \(error)") }
            seed += 1
        }
        if !missing.isEmpty { failures.append("no process died in: \(missing.joined(separator: "; "))") }
        print(matrix.table(of: SimulationMatrix.kindsOfWeeks))
        print(
            "\(seed - first) runs (seeds \(first)..<\(seed)) over \(length.components.seconds / 86_400) days, \(operations) operations, "
                + "\(crashes) crashes, \(commits) commits, \(failures.count) failed")
        return failures
    }

    private static func failure(_ seed: UInt64, _ violations: [SimulationViolation]) -> [String] {
        violations.isEmpty ? [] : ["PARLEY_SEED=\(seed) \(violations.prefix(3).map(\.description).joined(separator: "; "))"]
    }
}
