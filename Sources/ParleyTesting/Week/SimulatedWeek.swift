internal import ParleyAgents
internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import ParleyWebhooks

/// A stretch of simulated time, of some minutes up to a week, in which a server lives through everything that takes long: TTLs that expire, forks of
/// what is deleted meanwhile, producers that return, subscriptions whose workers and receivers fail for hours, agents that sleep for days, text that
/// is trimmed, a clock that is set, and crashes in commits of every kind.
///
/// The answers to clients and the views of readers are compared with a model (``WeekStreams``, ``WeekSubscriber``), after each restart and at the
/// end. Then everything is deleted, and nothing may be left. The same seed gives the same history.
package final class SimulatedWeek: @unchecked Sendable {  // Guard: all of it happens on the one thread of a simulation.
    package let seed: UInt64
    /// How long it is; the end, when everything is done and deleted, comes on top.
    package let length: Duration
    package private(set) var violations: [SimulationViolation] = []
    package private(set) var matrix = SimulationMatrix()
    package private(set) var crashes = 0
    package private(set) var commits = 0
    package private(set) var operations = 0
    /// The digest of everything that was answered and seen, in order.
    package private(set) var digest: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Receives a line for each event, if it is set.
    package var trace: ((String) -> Void)?

    package var summary: String {
        "\(length.components.seconds) s, \(operations) operations, \(crashes) crashes, \(commits) commits, \(violations.count) violations"
    }

    var random: SplitMix64
    var streams = WeekStreams()
    /// As of the commit before the one that is being settled: all that the writer could know of tails when it decided.
    private(set) var published = WeekStreams()
    private(set) var process: SimulationProcess!
    let subscribers: [WeekSubscriber]
    let receiver = WeekReceiver()
    private let keys = SigningKeys()
    private let record = SimulationRecord(keepsEntries: true)
    private let retention: Duration
    private let pace: Duration
    private let agentClients: [SimulationClient]
    /// Sent to this process and not answered, by number.
    private var inFlight: [Int: WeekOperation] = [:]
    /// The content of the last commit of the process, and which partitions of it are durable.
    private var lastCommit = LastCommit()
    private var commitsOfProcess = 0
    /// The latest that the clock has been.
    private var latest = Timestamp(milliseconds: 0)
    private var isEnding = false
    private var names: Set<String> = []
    private var nextNumber = 0

    /// The possible decisions of the dead process, and the part of them that the next one finds.
    private struct Outcome {
        var decided: WeekStreams
        var durable: WeekStreams
    }

    private struct LastCommit {
        var operations: [Int] = []
        var durable: Set<UInt16> = []
        /// Its number in its process, and when it was.
        var number = 0
        var time = Timestamp(milliseconds: 0)
    }

    /// Lengths, and how many operations on streams there are about.
    private static let lengths: [(Duration, Int)] = [
        (.seconds(60), 60), (.seconds(600), 80), (.seconds(3 * 3_600), 120), (.seconds(86_400), 200), (.seconds(7 * 86_400), 1_500),
    ]
    private static let stepsMax = 3_000_000
    static let agents = ["agents/sim/kept", "agents/sim/other"]

    /// Lives through the week of `seed`. Call it within ``SimulatedNode/simulate(_:)``.
    package init(seed: UInt64, isWhole: Bool = false, trace: ((String) -> Void)? = nil) throws {
        self.seed = seed
        self.trace = trace
        random = SplitMix64(seed: seed ^ 0x3eed)
        let (length, count) = isWhole || seed % 64 == 63 ? SimulatedWeek.lengths.last! : SimulatedWeek.lengths[Int(seed % 4)]
        self.length = length
        pace = length / count
        retention = .seconds([60, 600, 3_600, 86_400].randomElement(using: &random)!)
        subscribers = (0..<Int.random(in: 1...3, using: &random)).map { WeekSubscriber(number: $0) }
        agentClients = SimulatedWeek.clients(length, &random)
        for subscriber in subscribers { subscriber.week = self }
        receiver.week = self
        record.update { [agentClients] in $0.requests = agentClients.flatMap(\.requests) }
        try live()
    }

    func violate(_ invariant: String, _ evidence: String) {
        trace?("VIOLATION \(invariant): \(evidence)")
        guard violations.count < 20 else { return }
        violations.append(
            SimulationViolation(
                invariant: invariant, evidence: "\(evidence) (at \(process.world.now), commit \(commits + commitsOfProcess))"))
    }

    func note(_ text: @autoclosure () -> String) {
        let text = text()
        trace?("\(process.world.now) \(text)")
        for byte in text.utf8 { digest = (digest ^ UInt64(byte)) &* 0x100_0000_01b3 }
    }

    /// Whether a stream was made so recently that a client may not know of it yet.
    func isYoung(_ stream: WeekStreams.Stream) -> Bool { process.world.now < stream.made.advanced(by: .seconds(1)) }

    func chance(_ one: Int) -> Bool { random.next() % UInt64(one) == 0 }

    /// About `pace`, mostly much less, now and then much more.
    private func pause() -> Duration {
        switch random.next() % 8 {
        case 0..<5: .milliseconds(Int(random.next() % 30))
        case 5, 6: pace * Double(random.next() % 1_000) / 200.0
        default: pace * Double(random.next() % 1_000) / 100.0
        }
    }

    /// Calls `work` in this life of the server, if it lasts that long.
    func later(_ pause: Duration, _ work: @escaping @Sendable () -> Void) {
        let process = process!
        process.world.schedule(at: process.world.now.advanced(by: pause)) { [weak self] in
            guard let self, self.process === process, !process.crash.isOver else { return }
            work()
        }
    }
}

// MARK: - Lives

extension SimulatedWeek {
    private func live() throws {
        let start = Timestamp(milliseconds: 1_767_225_600_000)
        let end = start.advanced(by: length)
        var now = start
        var log: SimulatedLog?
        var last = LastCommit()
        while violations.isEmpty {
            let isLast = now >= end || crashes >= 40
            try begin(now, after: log, plan: isLast ? nil : plan())
            now = process.world.now
            if log != nil { takeOver(last) }
            guard violations.isEmpty else { break }
            resume()
            try process.run(until: max(end, now.advanced(by: .seconds(1))), steps: SimulatedWeek.stepsMax)
            if !process.crash.isOver {
                try finish()
                commits += process.log.commits
                process.bury()
                return
            }
            crashes += 1
            commits += process.log.commits
            matrix.add(process.crash.matrix)
            note("crash: \(process.crash.plan.map { "\($0)" } ?? "")")
            last = lastCommit
            log = process.log
            now = process.world.now.advanced(by: .milliseconds([0, 3_000, 3_000, 60_000].randomElement(using: &random)!))
            if length >= .seconds(86_400), chance(4) { now = now.advanced(by: .seconds(Int(random.next() % 40_000))) }
            process.bury()
        }
        process.bury()
    }

    private func begin(_ now: Timestamp, after log: SimulatedLog?, plan: SimulationCrash.Plan?) throws {
        let seed = random.next()
        process = try SimulationProcess(
            seed: seed, now: now, after: log, plan: plan, record: record, retention: retention, keys: keys,
            receiver: { [receiver] world in receiver.transport(world) }
        ) { [record] world in [SimulationAgent(world: world, record: record, isBroken: false).erased] }
        lastCommit = LastCommit()
        commitsOfProcess = 0
        process.crash.observe { [weak self] batches, outcome in self?.committing(batches, outcome) }
    }

    /// Plans in which commit the process dies: at first one with the cell of the matrix that the seed aims at, then any.
    private func plan() -> SimulationCrash.Plan {
        let (kinds, endings) = (SimulationMatrix.kindsOfWeeks, SimulationMatrix.Ending.allCases)
        guard crashes > 0 else {
            let cell = Int(seed % UInt64(kinds.count * endings.count))
            return SimulationCrash.Plan(kind: kinds[cell % kinds.count], ending: endings[cell / kinds.count], latest: 2_000)
        }
        return SimulationCrash.Plan(
            kind: kinds.randomElement(using: &random)!, ending: endings.randomElement(using: &random)!,
            skips: [0, 1, 5, 20].randomElement(using: &random)!, latest: Int.random(in: 1...(chance(2) ? 600 : 60), using: &random))
    }

    /// The writer hands a commit to the log.
    private func committing(_ batches: [Batch], _ outcome: SimulatedLog.Outcome) {
        published = streams
        commitsOfProcess += 1
        lastCommit = LastCommit(
            operations: inFlight.keys.sorted(),
            durable: Set(batches.indices.filter { outcome.isDurable($0) }.map { batches[$0].partition }),
            number: commitsOfProcess - 1, time: process.world.now)
    }

    /// Clients, workers and readers continue.
    private func resume() {
        for subscriber in subscribers { subscriber.resume() }
        for client in agentClients { client.resume(process) }
        SimulationRun.resumeParked(process)
        act()
        stepClock()
    }

    private func stepClock() {
        guard chance(3) else { return }
        let steps = [-600_000, -5_000, -700, 700, 90_000, 3_600_000]
        later(pause()) { [self] in
            // It would cut short the time for what is left to do.
            guard !isEnding else { return }
            let step = Duration.milliseconds(steps.randomElement(using: &random)!)
            latest = max(latest, process.world.now)
            if step < .zero { streams.clockStepsBack(from: process.world.now) }
            note("clock \(step)")
            process.world.step(clock: step)
            for subscriber in subscribers { subscriber.clockWasSet() }
        }
    }

    /// Takes over from the dead process: each of its operations has happened if its rows are durable. Then the product's state is compared with that.
    private func takeOver(_ last: LastCommit) {
        published = streams
        let now = process.world.now
        var worlds = [Outcome(decided: streams, durable: streams)]
        for number in last.operations {
            guard let operation = inFlight[number] else { continue }
            trace?("in the last commit: \(operation.text), durable: \(last.durable.sorted())")
            worlds = Array(worlds.flatMap { happened(operation, last, $0) }.prefix(64))
        }
        for index in worlds.indices { worlds[index].durable.crashed(inCommit: last.number) }
        let doubts = worlds.map { differences($0.durable, now) }
        let index = doubts.firstIndex { $0.isEmpty }
        streams = worlds[index ?? 0].durable
        if index == nil { violate("after a crash everything is there or nothing", doubts[0].prefix(3).joined(separator: "; ")) }
        let unanswered = inFlight.sorted { $0.key < $1.key }.map(\.value)
        inFlight = [:]
        for subscriber in subscribers { subscriber.takeOver(durable: last.durable) }
        // A client that has no answer asks again, as a rule.
        for operation in unanswered where chance(2) { later(pause()) { [self] in send(operation) } }
        check()
    }

    /// The possible outcomes of an operation in the commit of which only those partitions are durable.
    ///
    /// It was decided against all that was decided before it, but is there only with its own rows.
    private func happened(_ operation: WeekOperation, _ last: LastCommit, _ world: Outcome) -> [Outcome] {
        world.decided.outcomes(operation, last.time, agent: agentEntries).flatMap { answer, decided in
            // An operation that was refused, or found the stream already there, has changed nothing.
            let changes = ["made", "appended", "deleted"].contains { answer.hasPrefix($0) }
            let durable = changes ? made(operation, last, world.durable) : [world.durable]
            return durable.map { Outcome(decided: decided, durable: $0) }
        }
    }

    private func made(_ operation: WeekOperation, _ last: LastCommit, _ streams: WeekStreams) -> [WeekStreams] {
        let durable = last.durable
        let name = Placement.partition(of: operation.name)
        let rows = streams.streams[operation.name]?.partition ?? name
        var streams = streams
        switch operation.action {
        case .create: guard durable.contains(name) else { return [streams] }
        case .append: guard durable.contains(rows) else { return [streams] }
        case .fork(let source, _, _, _):
            let partition = streams.streams[source]?.partition ?? Placement.partition(of: source)
            guard durable.contains(partition) else {
                if durable.contains(name) { streams.namesLeft.insert(operation.name) }
                return [streams]
            }
            guard durable.contains(name) else {
                // The name that an attempt before it left is its own, when it was given the same number.
                guard streams.namesLeft.contains(operation.name) else { return [streams] }
                return [streams] + streams.outcomes(operation, last.time, agent: agentEntries).map(\.streams)
            }
        case .delete where streams.isForked(operation.name): guard durable.contains(rows) else { return [streams] }
        case .delete:
            guard durable.contains(rows), durable.contains(name) else {
                if durable.contains(rows) || durable.contains(name) { streams.removeByHalves(operation.name) }
                return [streams]
            }
        }
        return streams.outcomes(operation, last.time, agent: agentEntries).map(\.streams)
    }
}

// MARK: - Operations

extension SimulatedWeek {
    /// One thing after another, for as long as the process lives.
    private func act() {
        later(pause()) { [self] in
            guard !isEnding else { return }
            if chance(3) { read() } else { send(newOperation()) }
            act()
        }
    }

    func send(_ operation: WeekOperation) {
        var operation = operation
        operation.sent = process.world.now
        let number = nextNumber
        nextNumber += 1
        operations += 1
        inFlight[number] = operation
        names.insert(operation.name)
        let process = process!
        let answered: @Sendable (String) -> Void = { [weak self] answer in
            guard let self, self.process === process else { return }
            self.answered(number, answer)
        }
        operation.submit(to: process.channels, answered)
    }

    private func answered(_ number: Int, _ answer: String) {
        if answer.hasPrefix("log_") { return }  // The outcome is unknown.
        guard let operation = inFlight.removeValue(forKey: number) else { return }
        note("\(operation.text): \(answer)")
        let outcomes = streams.outcomes(operation, process.world.now, agent: agentEntries)
        if let outcome = outcomes.first(where: { $0.answer == answer }) {
            streams = outcome.streams
        } else {
            violate(
                "a request is answered as what came before it demands",
                "\(operation.text) was answered '\(answer)', not '\(outcomes.map(\.answer).joined(separator: "' or '"))'")
        }
    }

    private func read() {
        let name = WeekOperation.name(&random)
        names.insert(name)
        guard let difference = difference(name, streams, process.world.now, touches: true) else { return }
        violate("a reader sees what was appended, and nothing else", difference)
    }

    /// Whether the product shows of `name` what the model has: `nil`, or what is different.
    private func difference(_ name: String, _ streams: WeekStreams, _ now: Timestamp, touches: Bool = false) -> String? {
        let stream = streams.streams[name]
        let presence = stream.map { streams.presence($0, now) } ?? .gone
        do {
            guard let channel = try process.channels.find(name), !channel.isSoftDeleted, !channel.tail.isDeleted else {
                return presence == .there ? "'\(name)' is gone" : nil
            }
            guard let stream, presence != .gone else { return "'\(name)' is there, and should not be" }
            if touches {
                process.channels.touched(channel)
                self.streams.touch(name, now, commits: commitsOfProcess)
            }
            let start = chance(2) ? 0 : random.next() % (stream.head + 1)
            let shown = try pages(channel, from: start)
            let expected = stream.entries[Int(start)...].compactMap { $0 }
            let tail = channel.tail
            guard tail.head == stream.head, tail.isClosed == stream.isClosed else {
                return "'\(name)' ends at \(tail.head), closed: \(tail.isClosed); it should at \(stream.head), closed: \(stream.isClosed)"
            }
            let body = SimulatedWeek.joined(expected, isJSON: stream.isJSON)
            if touches { note("read \(name) from \(start): \(shown.count)") }
            if shown == body { return nil }
            return "'\(name)' from \(start) shows \(shown.text.prefix(300)), and should \(body.text.prefix(300))"
        } catch { return "'\(name)': \(error)" }
    }

    private func pages(_ channel: Channel, from start: UInt64) throws -> Bytes {
        let bytesMax = [1, 40, 10_000].randomElement(using: &random)!
        var (pieces, cursor) = ([Bytes](), start)
        while true {
            let page = try process.channels.page(channel, after: cursor, view: .raw, bytesMax: bytesMax)
            // Between the messages of a long page there is a line break; within one there is none.
            let lines = { Bytes(page.body.dropFirst().dropLast()).filter { $0 != UInt8(ascii: "\n") } }
            if !page.isEmpty { pieces.append(channel.isJSON ? lines() : page.body) }
            if page.isUpToDate { break }
            guard page.next > cursor else { throw ChannelError("stuck", "a page after \(cursor) leads nowhere") }
            cursor = page.next
        }
        return SimulatedWeek.joined(pieces, isJSON: channel.isJSON)
    }

    private static func joined(_ pieces: [Bytes], isJSON: Bool) -> Bytes {
        isJSON ? Bytes("[".utf8) + Bytes(pieces.joined(separator: [UInt8(ascii: ",")])) + Bytes("]".utf8) : Bytes(pieces.joined())
    }

    private func differences(_ streams: WeekStreams, _ now: Timestamp) -> [String] {
        names.sorted().compactMap { difference($0, streams, now) }
    }

    private func agentEntries(_ name: String) -> [Bytes?]? {
        guard name.hasPrefix("agents/"), let channel = try? process.channels.find(name) else { return nil }
        var entries = [Bytes?](repeating: nil, count: Int(channel.tail.head))
        try? process.channels.walk(channel, after: 0, upTo: channel.tail.head) { offset, frame in
            var bytes = Bytes()
            frame.writeJSON(offset: offset, owner: name, to: &bytes)
            entries[Int(offset) - 1] = bytes
            return true
        }
        return entries
    }

    /// Compares everything.
    func check() {
        for difference in differences(streams, process.world.now).prefix(3) {
            violate("a reader sees what was appended, and nothing else", difference)
        }
        for subscriber in subscribers { subscriber.check() }
        latest = max(latest, process.world.now)
        checkAgents()
    }
}

// MARK: - Agents

extension SimulatedWeek {
    private static func clients(_ length: Duration, _ random: inout SplitMix64) -> [SimulationClient] {
        agents.enumerated().flatMap { number, agent in
            (0..<Int.random(in: 1...2, using: &random)).map { index in
                let wishes = (0..<Int.random(in: 1...8, using: &random)).map { wish in
                    let program = SimulationProgram(seed: random.next(), palette: length >= .seconds(3_600) ? .slow : .quick)
                    let action: SimulationClient.Action =
                        switch random.next() % 6 {
                        case 0: .steer
                        case 1: .decide(isApproved: random.next() % 2 == 0)
                        case 2: .signal("go")
                        default: .message(program)
                        }
                    let milliseconds = Int(length.components.seconds) * 1_000
                    return SimulationClient.Wish(
                        id: "r\(number)-\(index)-\(wish)", channel: agent, action: action,
                        pause: [0, 20, 3_000, milliseconds / 20, milliseconds / 5].randomElement(using: &random)!,
                        isDoubled: random.next() % 4 == 0)
                }
                return SimulationClient(name: "\(agent)-\(index)", wishes: wishes)
            }
        }
    }

    /// All that has been durable is still there, but for text that was sealed long enough ago.
    private func checkAgents(isEnd: Bool = false) {
        for name in SimulatedWeek.agents {
            guard let channel = try? process.channels.find(name) else { continue }
            let all = record.entries(of: channel.id)
            var now: [UInt64: SimulationHistory.Entry] = [:]
            do {
                try process.channels.walk(channel, after: 0, upTo: channel.tail.head) { offset, frame in
                    now[offset] = SimulationHistory.Entry(offset, frame)
                    return true
                }
            } catch { violate("an agent's entries stay", "\(name): \(error)") }
            var sealed: [String: Timestamp] = [:]
            for entry in all where entry.type == "step.completed" {
                sealed["\(entry.turn ?? 0)/\(entry.step)"] = entry.body["at"]?.string.flatMap { Timestamp($0) }
            }
            for entry in all where now[entry.offset] != entry {
                // Stamps never go back: the clock that the text's time counts from may have been so much before them.
                let due = sealed["\(entry.turn ?? 0)/\(entry.step)"]?.advanced(by: retention - .seconds(1_200))
                if now[entry.offset] == nil, entry.type == "text", let due, due <= latest { continue }
                violate("an agent's entries stay", "\(name): \(entry.short) is now \(now[entry.offset]?.short ?? "missing")")
            }
            if all.count != channel.tail.head {
                violate("an agent's entries stay", "\(name) has \(channel.tail.head), there were \(all.count)")
            }
            guard isEnd, !streams.isForkedFrom(name) else { continue }
            for entry in now.values where entry.type == "text" && sealed["\(entry.turn ?? 0)/\(entry.step)"] != nil {
                violate("sealed text goes in its time", "\(name): \(entry.short)")
            }
        }
    }
}

// MARK: - The end

extension SimulatedWeek {
    /// All clients do what is left to do, everything is judged, everything is deleted, and nothing may be left.
    private func finish() throws {
        isEnding = true
        process.crash.spare()
        receiver.isPatient = true
        for subscriber in subscribers { subscriber.finish() }
        try run(.seconds(1_500))
        check()
        for subscriber in subscribers { subscriber.checkEnd() }
        for subscriber in subscribers { subscriber.isOver = true }
        // Agents that sleep for days wake up, and what is to be trimmed is trimmed.
        try run(.seconds(12 * 86_400))
        latest = max(latest, process.world.now)
        checkAgents(isEnd: true)
        judgeAgents()
        for name in names.sorted() { send(WeekOperation(name: name, action: .delete, sent: process.world.now)) }
        for subscriber in subscribers {
            subscriber.delete()
            if let stream = subscriber.wakeStream { process.channels.submit(DeleteChannel(stream)) }
        }
        try run(.seconds(60))
        for name in SimulatedWeek.agents { process.channels.submit(DeleteChannel(name)) }
        // A fork of a fork may have been waiting for the others.
        for name in names.sorted() { send(WeekOperation(name: name, action: .delete, sent: process.world.now)) }
        try run(.seconds(3 * 86_400))
        guard violations.isEmpty else { return }
        for row in try rows() { violate("nothing is left over", row) }
        if process.writer.queued != 0 { violate("nothing is left over", "\(process.writer.queued) submissions") }
        if process.channels.residentCount != 0 { violate("nothing is left over", "\(process.channels.residentCount) channels in memory") }
    }

    private func run(_ duration: Duration) throws {
        try process.run(until: process.world.now.advanced(by: duration), steps: SimulatedWeek.stepsMax)
    }

    private func judgeAgents() {
        var history = record.history
        for name in SimulatedWeek.agents {
            guard let channel = try? process.channels.find(name) else { continue }
            history.entries[SimulationHistory.Life(name: name, id: channel.id)] = record.entries(of: channel.id)
        }
        history.leftovers = (try? SimulationRun.leftovers(process)) ?? []
        for violation in SimulationChecker(history).violations { violate(violation.invariant, violation.evidence) }
    }

    /// The rows that are there when everything has been deleted, but for counters and the tombstones of agents.
    private func rows() throws -> [String] {
        var found: [String] = []
        for family in Family.allCases {
            try process.log.scan(family, from: [0, 0], to: [255, 255], reversed: false) { key, value in
                if Placement.isCounter(family, key) { return true }
                if family == .names, NameRow(Bytes(value))?.isTombstone == true { return true }
                found.append("\(family) \(hexadecimal(key)) \(Bytes(key.dropFirst(2)).text.filter { $0.isASCII }) \(value.count) bytes")
                return true
            }
        }
        return found
    }
}
