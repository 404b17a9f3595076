internal import ParleyAgents
internal import ParleyChannels
internal import ParleySystem

/// Runs in which turns wait for people as long as it takes: nothing ends by itself there, so input that is left lying stays.
extension SimulationRun {
    private static let roundsMax = 60

    mutating func runPatiently(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed ^ 0x9a71)
        let scenario = SimulationScenario(seed: random.next(), aim: "", palette: .all)
        let record = SimulationRecord(keepsEntries: true)
        record.update { history in
            history.requests = scenario.requests
            history.isPatient = true
        }
        let reflexes = SimulationReflexes(seed: random.next(), record)
        let deaths = [0, 0, 1, 2, 3].randomElement(using: &random)!
        var now = Timestamp(milliseconds: 1_767_225_600_000)
        var log: SimulatedLog?
        for life in 0...deaths {
            let plan = life == deaths ? nil : SimulationRun.anyDeath(&random)
            let hardships = SimulationHardships(&random, mayEnd: life < deaths)
            // As after an update that forgot the turns in flight, and was rolled back.
            let isBroken = life > 0 && life < deaths && Int.random(in: 0..<2, using: &random) == 0
            let process = try SimulationRun.process(&random, now, log, plan, record, hardships, isBroken: isBroken)
            record.update { history in
                history.starts.append(now)
                if isBroken { history.mayStall = true }
            }
            reflexes.watch(process)
            for client in scenario.clients { client.resume(process) }
            for reader in scenario.readers { reader.resume(process) }
            SimulationRun.resumeParked(process)
            try live(process, scenario, record, isBroken ? 1 : SimulationRun.roundsMax)
            commits += process.log.commits
            crashes += process.crash.isOver ? 1 : 0
            matrix.add(process.crash.matrix)
            if life == deaths, violations.isEmpty {
                try process.readFaults.pausing { try collect(process, scenario, record) }
                history.followed = record.entries
                violations += SimulationChecker(history).violations
            }
            log = process.log
            now = process.world.now.advanced(by: .milliseconds(Int(random.next() % 3_000)))
            process.bury()
            if life < deaths { try judgeWhatIsLeft(process.log, scenario, record) }
            if !violations.isEmpty { return }
        }
    }

    private static func anyDeath(_ random: inout SplitMix64) -> SimulationCrash.Plan {
        SimulationCrash.Plan(
            kind: SimulationMatrix.kinds.randomElement(using: &random)!,
            ending: SimulationMatrix.Ending.allCases.randomElement(using: &random)!, skips: [0, 0, 1, 3].randomElement(using: &random)!,
            latest: Int.random(in: 1...80, using: &random))
    }

    private static func process(
        _ random: inout SplitMix64, _ now: Timestamp, _ log: SimulatedLog?, _ plan: SimulationCrash.Plan?, _ record: SimulationRecord,
        _ hardships: SimulationHardships, isBroken: Bool
    ) throws -> SimulationProcess {
        var schedule = SimulatedSchedule()
        schedule.firesTogether = true
        schedule.heldOneIn = [2, 4, 16].randomElement(using: &random)!
        schedule.heldLongest = [20, 200, 2_500].randomElement(using: &random)!
        let activeMax = [1, 2, 100].randomElement(using: &random)!
        record.update { $0.places = min($0.places, activeMax) }
        return try SimulationProcess(
            seed: random.next(), now: now, after: log, plan: plan, record: record, schedule: schedule, activeMax: activeMax,
            hardships: hardships
        ) { world in
            ConcurrentInput.allCases.map {
                SimulationAgent(world: world, record: record, isBroken: isBroken, policy: $0, answersTexts: true).erased
            }
                + SimulationMemory.agents
        }
    }

    /// Lets a process live until it dies or everything has ended: whenever all is quiet it is judged, and turns get what they wait for.
    private mutating func live(
        _ process: SimulationProcess, _ scenario: SimulationScenario, _ record: SimulationRecord, _ rounds: Int
    ) throws {
        for _ in 0..<rounds {
            try process.run(until: process.world.now.advanced(by: .seconds(3_600)), steps: SimulationRun.stepsMax)
            guard !process.crash.isOver else { return }
            history = record.history
            history.entries = try process.readFaults.pausing { try SimulationRun.entries(process.log, scenario.channels) }
            violations += SimulationChecker(history).violationsAtRest
            guard violations.isEmpty, SimulationNudge.nudge(process, history.entries) else { return }
        }
        guard rounds == SimulationRun.roundsMax else { return }
        violations.append(
            SimulationViolation(invariant: "no turn stalls without a cause", evidence: "turns still wait after all that they waited for"))
    }
}
