import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// The seed to replay, from the environment.
private enum Setting {
    static let seed = ProcessInfo.processInfo.environment["PARLEY_SEED"].flatMap { UInt64($0) }
}

@Suite(.serialized) struct `Simulated runs` {
    @Test func `whatever commit a process dies in, and however that commit ends, every promise holds`() throws {
        if let seed = Setting.seed {
            let run = try SimulatedNode.simulate { try SimulationRun(seed: seed) }
            print("seed \(seed): \(run.crashes) crashes, \(run.commits) commits")
            for violation in run.violations { Issue.record("PARLEY_SEED=\(seed) \(violation)") }
            return
        }
        let summary = try SimulatedNode.simulate { try runs() }
        print(
            "\(summary.runs) runs (seeds 0..<\(summary.runs)), \(summary.crashes) crashes, \(summary.commits) commits in \(summary.seconds) s"
        )
        print(summary.matrix.table)
        for failure in summary.failures { Issue.record("\(failure)") }
        #expect(summary.matrix.missing.isEmpty, "no process died in: \(summary.matrix.missing.joined(separator: "; "))")
    }

    @Test func `nothing that is durable is left lying, however busy the machine and whatever turns wait for`() throws {
        let seeds = Setting.seed.map { $0...$0 } ?? 0...127
        for seed in seeds {
            let run = try SimulatedNode.simulate { try SimulationRun(seed: seed, palette: .all) }
            for violation in run.violations.prefix(3) { Issue.record("PARLEY_SEED=\(seed) \(violation)") }
            guard run.violations.isEmpty else { return }
        }
    }

    @Test(arguments: [SimulationProgram.Palette.quick, .all])
    func `the same seed gives the same run`(palette: SimulationProgram.Palette) throws {
        let (a, b) = try SimulatedNode.simulate {
            (try SimulationRun(seed: 7, palette: palette), try SimulationRun(seed: 7, palette: palette))
        }
        #expect(a.commits == b.commits)
        let seen = [a, b].map { run in run.history.sightings.map { "\($0.reader) \($0.life) \($0.entry.offset): \($0.entry.body.text)" } }
        let difference = zip(seen[0], seen[1]).first { $0 != $1 }
        #expect(difference == nil)
        #expect(seen[0].count == seen[1].count)
        #expect(!a.history.entries.isEmpty)
    }
}

private struct Summary: Sendable {
    var runs: UInt64 = 0
    var crashes = 0
    var commits = 0
    var seconds = 0.0
    var matrix = SimulationMatrix()
    var failures: [String] = []
}

/// Simulates until every cell has had a crash. Counted, not timed: a busy machine takes longer and finds the same.
private func runs() throws -> Summary {
    var summary = Summary()
    let start = Date()
    while summary.failures.count < 3, summary.runs < 200 || (summary.runs < 3_000 && !summary.matrix.missing.isEmpty) {
        do {
            let run = try SimulationRun(seed: summary.runs)
            summary.crashes += run.crashes
            summary.commits += run.commits
            summary.matrix.add(run.matrix)
            if !run.violations.isEmpty {
                summary.failures.append(
                    "PARLEY_SEED=\(summary.runs) " + run.violations.prefix(3).map(\.description).joined(separator: "\n"))
            }
        } catch { summary.failures.append("PARLEY_SEED=\(summary.runs) \(error)") }
        summary.runs += 1
        summary.seconds = -start.timeIntervalSinceNow
    }
    return summary
}
