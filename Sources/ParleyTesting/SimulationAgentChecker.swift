internal import ParleySystem
internal import ParleyChannels

/// Judges the log of one agent: receipts, turns, steps, timers, epochs, texts.
struct SimulationAgentChecker {
    private let life: SimulationHistory.Life
    private let entries: [SimulationHistory.Entry]
    private let history: SimulationHistory
    private var found: [SimulationViolation] = []

    init(_ life: SimulationHistory.Life, _ entries: [SimulationHistory.Entry], _ history: SimulationHistory) {
        self.life = life
        self.entries = entries
        self.history = history
    }

    var violations: [SimulationViolation] {
        var checker = self
        checker.checkReceipts()
        checker.checkSignals()
        checker.checkTurns()
        checker.checkSteps()
        checker.checkTimers()
        checker.checkEpochs()
        checker.checkTexts()
        checker.found += SimulationEffects.violations(life, entries, history)
        if history.isPatient {
            checker.found += SimulationPromptness.violations(life, entries, history)
            checker.found += SimulationOrder.violations(life, entries)
            checker.found += SimulationConversation.violations(life, entries, history)
            checker.checkStalls()
        }
        return checker.found
    }

    private mutating func violate(_ invariant: String, _ evidence: String) {
        found.append(SimulationViolation(invariant: invariant, evidence: "\(life): \(evidence)"))
    }

    // MARK: Inputs

    private mutating func checkReceipts() {
        var receipts: [UInt64: [SimulationHistory.Entry]] = [:]
        for entry in entries where entry.type == "receipt" {
            guard let of = entry.body["of"]?.string.flatMap({ Offset(token: $0)?.value }) else {
                violate("every input gets one receipt", "a receipt of nothing: \(entry.short)")
                continue
            }
            receipts[of, default: []].append(entry)
        }
        for entry in entries where SimulationAgentState.inputs.contains(entry.type) {
            let own = receipts.removeValue(forKey: entry.offset) ?? []
            // A signal is kept until a step waits for it.
            let isKept = entry.type == "signal" && own.isEmpty
            if own.count != 1 && !isKept { violate("every input gets one receipt", "\(entry.short) has \(own.count)") }
            if own.contains(where: { $0.offset < entry.offset }) {
                violate("every input gets one receipt", "\(entry.short) has one before it")
            }
        }
        for stray in receipts.keys.sorted() { violate("every input gets one receipt", "offset \(stray) has one and is no input") }
    }

    /// No step gives up waiting for a signal that was there.
    private mutating func checkSignals() {
        for end in entries where end.type == "step.failed" && end.body["error"]?["code"] == "wait_timeout" && end.isWait(for: "go") {
            for signal in entries
            where signal.type == "signal" && signal.body["name"] == "go" && signal.isUnconditional && signal.offset < end.offset {
                let token = Offset(signal.offset).token
                let isTaken = entries.contains { $0.type == "receipt" && $0.body["of"]?.string == token && $0.offset < end.offset }
                if !isTaken { violate("a signal is taken by who waits for it", "\(signal.short) was there before \(end.short)") }
            }
        }
    }

    // MARK: Turns

    private mutating func checkTurns() {
        let programs = Dictionary(
            history.requests.compactMap { request in request.program.map { (request.id, $0) } }, uniquingKeysWith: { $1 })
        // The turn that each input was applied to.
        var applied: [UInt64: UInt64] = [:]
        for receipt in entries where receipt.type == "receipt" && receipt.body["state"] == "applied" {
            if let of = receipt.body["of"]?.string.flatMap({ Offset(token: $0)?.value }) { applied[of] = receipt.turn }
        }
        for message in entries where ["message", "steer", "interrupt"].contains(message.type) {
            let own = entries.filter { $0.turn == message.offset }
            let starts = own.filter { $0.type == "turn.started" }
            let ends = own.filter { ["turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled"].contains($0.type) }
            let expected = applied[message.offset] == message.offset ? 1 : 0
            if starts.count != expected { violate("every message gets one turn", "\(message.short) began \(starts.count)") }
            if ends.count != expected { violate("every turn ends once", "\(message.short) has \(ends.count) ends") }
            guard let start = starts.first, let end = ends.first else { continue }
            let steps = own.filter { $0.type != "receipt" }
            if let stray = steps.first(where: { $0.offset < start.offset || $0.offset > end.offset }) {
                violate(
                    "a turn's entries stand between its start and its end", "\(stray.short) of the turn \(start.offset)...\(end.offset)")
            }
            let controls = entries.filter { $0.offset != message.offset && applied[$0.offset] == message.offset }.map(\.type)
            // A newer message may take the turn's place, and a compensation that fails is a failure.
            let isRolledBack = own.contains { $0.type == "supervision" && $0.body["cause"] == "rollback" }
            // A turn that no program runs any more ends with the close of its agent, or with what is to be done instead.
            let closed = end.body["reason"] == "closing" && entries.contains { $0.type == "close" && $0.offset < end.offset }
            let redirected = entries.contains { $0.type == "interrupt" && $0.offset < end.offset && applied[$0.offset] == $0.offset }
            if closed || end.type == "turn.interrupted" && redirected { continue }
            if (end.type == "turn.cancelled") != (controls.contains("cancel") || isRolledBack) {
                violate("a turn is cancelled by a cancel that was applied", "\(controls) and \(end.short)")
            }
            let isRedirected = life.policy == "interrupt" && controls.contains("message")
            if end.type == "turn.interrupted", !controls.contains("interrupt"), !isRedirected {
                violate("a turn is interrupted by an interrupt that was applied", "\(controls) and \(end.short)")
            }
            if controls.contains("cancel") || controls.contains("interrupt") || isRolledBack || isRedirected { continue }
            if let request = message.body["data"]?["request"]?.string, let program = programs[request] { check(end, own, program) }
        }
    }

    private mutating func check(_ end: SimulationHistory.Entry, _ turn: [SimulationHistory.Entry], _ program: SimulationProgram) {
        if program.fails {
            if end.body["error"]?["code"] != "told_to" { violate("outputs are right", "the turn should have failed: \(end.short)") }
            return
        }
        guard end.type == "turn.completed", let outputs = end.body["output"]?["outputs"]?.array else {
            return violate("outputs are right", "the turn ended with \(end.short)")
        }
        let expectations = program.expectations
        if outputs.count != expectations.count {
            violate("outputs are right", "\(outputs.count) instead of \(expectations.count): \(end.short)")
        }
        for (output, expectation) in zip(outputs, expectations) {
            if !isRight(output, expectation, turn) {
                violate("outputs are right", "\(output.text.prefix(400)) is not \(expectation) in \(end.short)")
            }
        }
        let emitted = turn.filter { $0.type == "emit" }.compactMap { $0.body["data"] }.sorted { $0.text < $1.text }
        if emitted != program.emits {
            violate(
                "what a program publishes is there once",
                "\(emitted.map(\.text)) instead of \(program.emits.map(\.text)), turn \(end.turn ?? 0)")
        }
    }

    private func isRight(
        _ output: JSON, _ expectation: SimulationProgram.Expectation, _ turn: [SimulationHistory.Entry]
    ) -> Bool {
        switch expectation {
        case .exactly(let value): output == value
        case .anyOf(let values): values.contains(output)
        case .text(let path): turn.contains { $0.type == "step.completed" && $0.step == path && $0.body["text"] == output }
        case .lastText(let path):
            turn.last { $0.type == "step.completed" && ($0.step == path || $0.step.hasPrefix(path + "#")) }?.body["text"] == output
        case .followed(_, let count, let mayTimeOut):
            SimulationEffects.problem(output, count: count, mayTimeOut: mayTimeOut, Array(history.followed.values)) == nil
        }
    }

    /// No program has changed under its turns.
    private mutating func checkStalls() {
        for stall in entries where stall.type == "agent.stalled" {
            let isCaused = history.mayStall && stall.body["message"]?.string?.contains("changed") == true
            if !isCaused { violate("no turn stalls without a cause", stall.short) }
        }
    }

    // MARK: Steps

    private struct StepName: Hashable {
        var turn: UInt64
        var step: String
    }

    private mutating func checkSteps() {
        var attempts: [StepName: Int64] = [:]
        var ended: Set<StepName> = []
        for entry in entries {
            guard let turn = entry.turn, !entry.step.isEmpty else { continue }
            let name = StepName(turn: turn, step: entry.step)
            if ended.contains(name) { violate("a step has one result, and nothing after it", entry.short) }
            let begun = attempts[name] ?? 0
            switch entry.type {
            case "step.started":
                if entry.attempt != begun + 1 { violate("attempts count up by one", "after attempt \(begun) comes \(entry.short)") }
                attempts[name] = entry.attempt
            case "step.completed": ended.insert(name)
            case "step.failed" where entry.body["final"] == true: ended.insert(name)
            default: break
            }
            if begun == 0 && entry.type != "step.started" { violate("a step is begun before anything comes of it", entry.short) }
        }
        for name in attempts.keys where !ended.contains(name) {
            violate("a step has one result, and nothing after it", "step '\(name.step)' of turn \(name.turn) has none")
        }
    }

    private mutating func checkTimers() {
        var due: [String: String] = [:]
        var fired: Set<String> = []
        for entry in entries where entry.type.hasPrefix("timer.") {
            let timer = entry.body["timer"]?.string ?? ""
            if entry.type == "timer.set" {
                if due.updateValue(entry.body["due"]?.string ?? "", forKey: timer) != nil { violate("a timer is set once", entry.short) }
                continue
            }
            if !fired.insert(timer).inserted { violate("a timer fires once", entry.short) }
            guard let instant = due[timer] else {
                violate("a timer is set before it fires", entry.short)
                continue
            }
            if entry.body["at"]?.string ?? "" < instant { violate("no timer fires before it is due", "due \(instant): \(entry.short)") }
        }
        let ended = endedByTime
        for timer in due.keys where fired.contains(timer) != ended.contains(timer) {
            violate("every timer fires", "\(timer) did \(fired.contains(timer) ? "and its step ended otherwise" : "not")")
        }
    }

    /// The timers of the sleeps, waits and approvals that nothing has ended before it was time.
    private var endedByTime: Set<String> {
        var sleeps: Set<String> = []
        var ended: Set<String> = []
        for entry in entries where !entry.step.isEmpty {
            let timer = "\(Offset(entry.turn ?? 0))/\(entry.step)"
            switch entry.type {
            case "step.started" where entry.body["kind"] == "sleep": sleeps.insert(timer)
            case "step.completed" where sleeps.contains(timer): ended.insert(timer)
            case "step.failed" where ["wait_timeout", "approval_expired"].contains(entry.body["error"]?["code"]?.string):
                ended.insert(timer)
            default: break
            }
        }
        return ended
    }

    // MARK: Epochs

    private mutating func checkEpochs() {
        var last: Int64 = 0
        for entry in entries {
            guard let epoch = entry.body["epoch"]?.integer else { continue }
            if epoch <= last { violate("epochs rise", "after \(last) comes \(entry.short)") }
            last = epoch
        }
    }

    // MARK: Texts

    private mutating func checkTexts() {
        var pieces: Set<String> = []
        for entry in entries where entry.type == "text" {
            let piece =
                "\(entry.turn ?? 0) \(entry.step) \(entry.attempt) \(entry.body["part"]?.string ?? "") \(entry.body["index"]?.integer ?? -1)"
            if !pieces.insert(piece).inserted { violate("no text stands twice", entry.short) }
        }
        for entry in entries where entry.type == "step.completed" && entry.body["text"] != nil { checkModel(entry) }
        // From any offset: all are tried while there are few, some when there are many.
        for start in stride(from: 0, to: entries.count, by: max(1, entries.count / 16)) { checkConvergence(from: start) }
    }

    /// The text of a step is what its model wrote: in the last call, behind what that was given to continue from.
    private mutating func checkModel(_ entry: SimulationHistory.Entry) {
        let key = "\(life.name)/\(Offset(entry.turn ?? 0))/\(entry.step)"
        let text = Bytes((entry.body["text"]?.string ?? "").utf8)
        let isInterrupted = entry.body["finish_reason"] == "interrupted"
        let calls = history.modelCalls.filter { $0.key == key && ($0.isFinished || isInterrupted) }
        let isWritten = calls.contains { call in
            let written = Bytes((call.continuing + call.generated).utf8)
            return isInterrupted ? written.starts(with: text) : written == text
        }
        if !isWritten && !(isInterrupted && text.isEmpty) {
            violate("a step's text is what its model wrote", "\(entry.short); the model's calls: \(calls)")
        }
    }

    private mutating func checkConvergence(from start: Int) {
        var view = SimulationTextView()
        for entry in entries[start...] {
            if let problem = view.take(entry) { return violate("whoever follows the rules converges", "from offset \(start): \(problem)") }
        }
    }
}

extension SimulationHistory.Entry {
    /// Whether it is of a wait for that signal.
    fileprivate func isWait(for signal: String) -> Bool {
        step.split(separator: "/").last.map { $0 == signal || $0.hasPrefix(signal + "#") } ?? false
    }
}
