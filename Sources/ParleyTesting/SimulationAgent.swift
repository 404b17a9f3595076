package import ParleyAgents
internal import ParleySystem

/// Runs the programs of messages as turns, and writes down which bodies ran.
package struct SimulationAgent: Sendable {
    let world: any World
    let record: SimulationRecord
    /// Whether the program asks for another step than the one in the journal: as after an update that forgot the turns in flight.
    let isBroken: Bool
    var policy = ConcurrentInput.queue
    /// Whether an input without a program begins a turn of some kind.
    var answersTexts = false

    /// Each policy has a kind of its own.
    static func kind(_ policy: ConcurrentInput) -> String { policy == .queue ? "sim" : "sim-\(policy.rawValue)" }

    package var erased: AnyAgent {
        AnyAgent(kind: SimulationAgent.kind(policy), policy: policy) { message, turn, state in
            guard let (program, request, input) = asked(message) else {
                throw StepFailure(code: "invalid_input", message: "no program", retryable: false)
            }
            let outputs = try await cleaningUp(program, turn) {
                try await run(program.operations, Called(name: "\(request)@\(turn.random())", input: input), turn)
            }
            if program.fails { throw StepFailure(code: "told_to", message: "the program fails", retryable: false) }
            let turns = (state?["turns"]?.integer ?? 0) + 1
            return (["turns": .integer(turns), "outputs": .array(outputs)], ["turns": .integer(turns)])
        }
    }

    /// The turn as it is called in the record, and what it was asked.
    struct Called: Sendable {
        var name: String
        var input: String
    }

    /// The program that a message names, what the request is called, and what was said.
    private func asked(_ message: TurnInput) -> (SimulationProgram, String, String)? {
        if let data = message["data"] {
            guard let program = data["program"]?.string.flatMap({ SimulationProgram($0) }), let request = data["request"]?.string
            else { return nil }
            return (program, request, data.text)
        }
        // A steer that came too late, or a redirection of nothing: a patient agent acts on any message.
        guard answersTexts, let text = message["text"]?.string else { return nil }
        let seed = text.utf8.prefix(100).reduce(7) { $0 &* 31 &+ UInt64($1) }
        return (SimulationProgram(seed: seed, palette: .all), "text", text)
    }

    private func cleaningUp(
        _ program: SimulationProgram, _ turn: Turn, _ body: @Sendable () async throws -> [JSON]
    ) async throws -> [JSON] {
        guard program.cleansUp else { return try await body() }
        do { return try await body() } catch {
            try await turn.shielded("cleanup") { turn in try await turn.step("clean") { _ in } }
            throw error
        }
    }

    func run(_ operations: [SimulationProgram.Operation], _ called: Called, _ turn: Turn) async throws -> [JSON] {
        let request = called.name
        var outputs: [JSON] = []
        for (index, operation) in operations.enumerated() {
            switch operation {
            case .step(let value, let failures, let takes): outputs.append(try await step(value, failures, takes, request, turn))
            case .once(let takes): outputs.append(try await once(takes, request, turn))
            case .doomed: outputs.append(try await doomed(request, turn))
            case .sleep(let milliseconds):
                try await turn.sleep(.milliseconds(milliseconds))
                outputs.append("slept")
            case .generate(let prompt, let continuesPrefix):
                let model = SimulatedModel(continuesPrefix: continuesPrefix, world: world, record: record)
                outputs.append(
                    .string(try await turn.generate("generate\(index)", model, .user(prompt), retry: SimulationAgent.retry).text))
            case .emit(let value): try turn.emit("emitted", value)
            case .wait(let milliseconds): outputs.append(try await wait(milliseconds, turn))
            case .approval(let milliseconds): outputs.append(try await approval(milliseconds, turn))
            case .chance: outputs.append(try await chance(turn))
            case .steady: outputs.append(try await steady(request, turn))
            case .map(let items):
                outputs += try await turn.map("map\(index)", items) { item, turn in try await run(item, called, turn) }.flatMap { $0 }
            case .scopes(let tasks): outputs += try await scopes(tasks, index, called, turn)
            default: outputs += try await further(operation, index, called, turn)
            }
        }
        return outputs
    }

    static let retry = RetryPolicy(initialInterval: .milliseconds(50))

    private func step(_ value: Int, _ failures: Int, _ takes: Int, _ request: String, _ turn: Turn) async throws -> JSON {
        let result = try await turn.step("work", retry: SimulationAgent.retry) { context in
            record.bodyRan(request, path(context, turn), isAtMostOnce: false)
            await pause(takes)
            if context.attempt <= failures { throw StepFailure(code: "flaky", message: "not yet", retryable: true) }
            return value
        }
        return .integer(Int64(result))
    }

    private func once(_ takes: Int, _ request: String, _ turn: Turn) async throws -> JSON {
        do {
            return .string(
                try await turn.step("once", .atMostOnce) { context in
                    record.bodyRan(request, path(context, turn), isAtMostOnce: true)
                    await pause(takes)
                    return "done"
                })
        } catch let failure as StepFailure { return .string(failure.code) }
    }

    private func doomed(_ request: String, _ turn: Turn) async throws -> JSON {
        do {
            return .integer(
                Int64(
                    try await turn.step("doomed") { context -> Int in
                        record.bodyRan(request, path(context, turn), isAtMostOnce: false)
                        throw StepFailure(code: "doomed", message: "never", retryable: false)
                    }))
        } catch let failure as StepFailure { return .string(failure.code) }
    }

    private func wait(_ milliseconds: Int, _ turn: Turn) async throws -> JSON {
        do {
            _ = try await turn.wait(for: "go", timeout: .milliseconds(milliseconds))
            return "signalled"
        } catch let failure as StepFailure { return .string(failure.code) }
    }

    private func approval(_ milliseconds: Int, _ turn: Turn) async throws -> JSON {
        do {
            try await turn.approval("pay", of: ["amount": 5], expires: .milliseconds(milliseconds))
            return "approved"
        } catch is ApprovalDenied { return "denied" } catch is ApprovalExpired { return "expired" }
    }

    private func chance(_ turn: Turn) async throws -> JSON {
        let drawn = "\(turn.random()) \(turn.uuid()) \(turn.now)"
        let recorded = try await turn.step("chance") { _ in drawn }
        return recorded == drawn ? "same" : "different"
    }

    private func steady(_ request: String, _ turn: Turn) async throws -> JSON {
        // Broken, it asks for another step than the one in the journal; with nothing in the journal it must not write a wrong one.
        let name = isBroken && record.hasBegun("\(request)/steady") ? "changed" : "steady"
        return .string(try await turn.step(name) { _ in "steady" })
    }

    private func scopes(
        _ tasks: [[SimulationProgram.Operation]], _ index: Int, _ called: Called, _ turn: Turn
    ) async throws -> [JSON] {
        try await withThrowingTaskGroup(of: (Int, [JSON]).self) { group in
            for (number, operations) in tasks.enumerated() {
                let scope = try turn.scope("scope\(index)x\(number)")
                group.addTask { (number, try await run(operations, called, scope)) }
            }
            var results: [(Int, [JSON])] = []
            for try await result in group { results.append(result) }
            return results.sorted { $0.0 < $1.0 }.flatMap(\.1)
        }
    }

    /// The path of the step that `context` belongs to: the end of its key, behind channel and turn.
    func path(_ context: StepContext, _ turn: Turn) -> String {
        String(context.idempotencyKey.dropFirst(turn.channel.count + 18))
    }

    func pause(_ milliseconds: Int) async {
        guard milliseconds > 0 else { return }
        await withCheckedContinuation { continuation in
            world.schedule(at: world.now.advanced(by: .milliseconds(milliseconds))) { continuation.resume() }
        }
    }
}
