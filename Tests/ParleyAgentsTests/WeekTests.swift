import Foundation
import ParleySystem
import ParleyTesting
import Testing

@Suite(.serialized) struct `Simulated weeks` {
    @Test func `whatever ends, fails or dies in a week, every promise holds and nothing is left`() throws {
        if let seed = ProcessInfo.processInfo.environment["PARLEY_SEED"].flatMap({ UInt64($0) }) {
            let week = try SimulatedNode.simulate { try SimulatedWeek(seed: seed) }
            print("seed \(seed): \(week.summary)")
            for violation in week.violations { Issue.record("PARLEY_SEED=\(seed) \(violation)") }
            return
        }
        // Every 64th is a whole week.
        for seed: UInt64 in 0..<128 {
            let week = try SimulatedNode.simulate { try SimulatedWeek(seed: seed) }
            for violation in week.violations.prefix(3) { Issue.record("PARLEY_SEED=\(seed) \(violation)") }
            guard week.violations.isEmpty else { return }
        }
    }

    @Test(arguments: [3, 63] as [UInt64])
    func `the same seed gives the same week`(seed: UInt64) throws {
        let weeks = try SimulatedNode.simulate { [try SimulatedWeek(seed: seed), try SimulatedWeek(seed: seed)] }
        #expect(weeks[0].digest == weeks[1].digest)
        #expect(weeks[0].commits == weeks[1].commits && weeks[0].commits > 0)
        #expect(try SimulatedNode.simulate { try SimulatedWeek(seed: seed + 64) }.digest != weeks[0].digest)
    }
}
