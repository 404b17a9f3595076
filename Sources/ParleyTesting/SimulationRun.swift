internal import ParleyAgents
internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// One simulated run of a scenario: processes that live and die one after another until everything is done and quiet, and the judgement.
package struct SimulationRun: Sendable {
    package internal(set) var history = SimulationHistory()
    package internal(set) var matrix = SimulationMatrix()
    package internal(set) var violations: [SimulationViolation] = []
    package internal(set) var crashes = 0
    package internal(set) var commits = 0

    /// How many processes die in a run at most; the one after them lives until everything is quiet.
    private static let crashesMax = 5
    static let stepsMax = 400_000

    /// Runs the scenario of `seed`. Call it within ``SimulatedNode/simulate(_:)``.
    ///
    /// Everything follows from the seed. Consecutive seeds aim at consecutive cells of the matrix.
    ///
    /// - Parameter palette: With `.all` turns wait for people, threads are held, commits take long, and processes die less.
    package init(seed: UInt64, palette: SimulationProgram.Palette = .quick) throws {
        guard palette != .all else {
            try runPatiently(seed)
            return
        }
        var random = SplitMix64(seed: seed ^ 0x5eed)
        let scenario = SimulationScenario(seed: seed, aim: SimulationRun.aim(seed).kind)
        let record = SimulationRecord()
        record.isAlive(true)
        record.update { $0.requests = scenario.requests }
        var now = Timestamp(milliseconds: 1_767_225_600_000)
        var log: SimulatedLog?
        for life in 0...(SimulationRun.crashesMax + 1) {
            let isLast = life >= SimulationRun.crashesMax
            let plan = plan(seed, life: life, &random)
            let isBroken = !isLast && life > 0 && (random.next() % 3 == 0 || plan.kind == "agent.stalled")
            let process = try SimulationProcess(seed: random.next(), now: now, after: log, plan: isLast ? nil : plan, record: record) {
                world in
                [SimulationAgent(world: world, record: record, isBroken: isBroken).erased]
            }
            for client in scenario.clients { client.resume(process) }
            for reader in scenario.readers { reader.resume(process) }
            if isLast { SimulationRun.resumeParked(process) }
            if random.next() % 4 == 0 { SimulationRun.stepClock(process, &random) }
            try process.run(until: process.world.now.advanced(by: .seconds(3 * 86_400)), steps: SimulationRun.stepsMax)
            commits += process.log.commits
            crashes += process.crash.isOver ? 1 : 0
            matrix.add(process.crash.matrix)
            // Quiet, and all that was to be asked has been answered by a program that is whole: the end.
            if !process.crash.isOver && isLast && life > 0 {
                try collect(process, scenario, record)
                violations += SimulationChecker(history).violations
                process.bury()
                return
            }
            log = process.log
            now = process.world.now.advanced(by: .milliseconds(Int(random.next() % 3_000)))
            process.bury()
            try judgeWhatIsLeft(process.log, scenario, record)
            if !violations.isEmpty { return }
        }
    }

    private static func aim(_ seed: UInt64) -> (kind: String, ending: SimulationMatrix.Ending) {
        let (kinds, endings) = (SimulationMatrix.kinds, SimulationMatrix.Ending.allCases)
        return (kinds[Int(seed % UInt64(kinds.count))], endings[Int(seed / UInt64(kinds.count)) % endings.count])
    }

    /// Plans in which commit the next process dies: until it was reached, one with the cell that the seed aims at, then any.
    private func plan(_ seed: UInt64, life: Int, _ random: inout SplitMix64) -> SimulationCrash.Plan {
        let (kinds, endings) = (SimulationMatrix.kinds, SimulationMatrix.Ending.allCases)
        let aim = SimulationRun.aim(seed)
        // Before the first crash, nothing is taken up again and no program has changed.
        let needsPast = ["supervision", "agent.stalled"].contains(aim.kind) && life == 0
        guard matrix[aim.kind, aim.ending] > 0 || needsPast || random.next() % 4 == 0 else {
            return SimulationCrash.Plan(kind: aim.kind, ending: aim.ending, latest: Int.random(in: 60...100, using: &random))
        }
        return SimulationCrash.Plan(
            kind: kinds.randomElement(using: &random)!, ending: endings.randomElement(using: &random)!,
            skips: [0, 0, 1, 3].randomElement(using: &random)!, latest: Int.random(in: 1...50, using: &random))
    }

    /// An operator looks after a while for agents that processes which died in a row have left parked.
    static func resumeParked(_ process: SimulationProcess) {
        process.world.schedule(at: process.world.now.advanced(by: .seconds(30))) { [unowned process] in
            // A log that cannot be read fails the run elsewhere.
            try? AgentIndex.scan(process.log, [.parked]) { name, _ in
                var resume = Append(to: name, [NewEntry(.resume, nil, ("by", "operator"))])
                resume.isInput = true
                process.channels.submit(resume)
                return true
            }
        }
    }

    private static func stepClock(_ process: SimulationProcess, _ random: inout SplitMix64) {
        let step = Duration.milliseconds([-60_000, -500, 700, 90_000].randomElement(using: &random)!)
        let world = process.world
        world.schedule(at: world.now.advanced(by: .milliseconds(Int(random.next() % 500)))) { [unowned world] in world.step(clock: step) }
    }

    /// After each death: everything that readers saw and clients were told is in the log that is left.
    mutating func judgeWhatIsLeft(_ log: SimulatedLog, _ scenario: SimulationScenario, _ record: SimulationRecord) throws {
        var history = record.history
        history.entries = try SimulationRun.entries(log.reopen(), scenario.channels)
        self.history = history
        violations += SimulationChecker(history).violationsOfDurability
    }

    mutating func collect(_ process: SimulationProcess, _ scenario: SimulationScenario, _ record: SimulationRecord) throws {
        history = record.history
        history.crashes = crashes
        history.entries = try SimulationRun.entries(process.log, scenario.channels)
        history.leftovers = try SimulationRun.leftovers(process)
        violations += try SimulationViews.violations(process, scenario.channels, seed: scenario.seed)
    }

    /// Everything the log has of the channels of these names.
    static func entries(
        _ log: any CommitLog, _ names: [String]
    ) throws -> [SimulationHistory.Life: [SimulationHistory.Entry]] {
        let world = SimulatedWorld(seed: 0)
        let writer = GroupCommit(log: log)
        let channels = Channels(log: log, writer: writer, world: world)
        var all: [SimulationHistory.Life: [SimulationHistory.Entry]] = [:]
        for name in names {
            guard let channel = try channels.find(name) else { continue }
            var entries: [SimulationHistory.Entry] = []
            try channels.walk(channel, after: 0, upTo: .max - 1) { offset, frame in
                entries.append(SimulationHistory.Entry(offset, frame, owner: name))
                return true
            }
            all[SimulationHistory.Life(name: name, id: channel.id)] = entries
        }
        return all
    }

    /// Rows that nothing refers to any more.
    static func leftovers(_ process: SimulationProcess) throws -> [String] {
        var found: [String] = []
        for family in [Family.inbox, .timers, .outbox] {
            try process.log.scan(family, from: [0, 0], to: [255, 255], reversed: false) { key, value in
                // A signal is kept until a step waits for it.
                if family == .inbox, value.first == EntryKind.signal.rawValue { return true }
                if Placement.isCounter(family, key) { return true }
                found.append("\(family) \(hexadecimal(key)) \(value.count) bytes")
                return true
            }
        }
        try AgentIndex.scan(process.log, AgentStatus.allCases) { name, status in
            if status != .idle && status != .closed { found.append("index: \(name) is \(status.name)") }
            return true
        }
        return found + (process.runtime.activeCount == 0 ? [] : ["\(process.runtime.activeCount) agents in memory"])
    }
}
