internal import ParleyAgents
internal import ParleySystem

/// The further operations of programs with all operations.
extension SimulationAgent {
    func further(
        _ operation: SimulationProgram.Operation, _ index: Int, _ called: Called, _ turn: Turn
    ) async throws -> [JSON] {
        switch operation {
        case .listen(let signal):
            _ = try await turn.wait(for: signal)
            return ["signalled"]
        case .ask: return [try await ask(turn)]
        case .race(let milliseconds): return [try await race(milliseconds, index, turn)]
        case .respond(let prompt): return [try await respond(prompt, index, called, turn)]
        case .recall:
            record.recalled(called.name, turn.history.flatMap(\.messages).map { "\($0.role.rawValue): \($0.text)" })
            return []
        case .follow(let stream, let count, let milliseconds): return [try await follow(stream, count, milliseconds, turn)]
        case .compensate:
            try turn.compensate("undo") { context in record.bodyRan(called.name, path(context, turn), isAtMostOnce: false) }
            return []
        case .shielded(let operations):
            return try await turn.shielded("shielded\(index)") { turn in try await run(operations, called, turn) }
        default: return []
        }
    }

    private func ask(_ turn: Turn) async throws -> JSON {
        do {
            try await turn.approval("sign", of: ["amount": 7])
            return "approved"
        } catch is ApprovalDenied { return "denied" }
    }

    private func race(_ milliseconds: Int, _ index: Int, _ turn: Turn) async throws -> JSON {
        let (sleeping, waiting) = (try turn.scope("sleeping\(index)"), try turn.scope("waiting\(index)"))
        return try await withThrowingTaskGroup(of: JSON.self) { group in
            group.addTask {
                try await sleeping.sleep(.milliseconds(milliseconds))
                return "slept"
            }
            group.addTask {
                _ = try await waiting.wait(for: "go")
                return "signalled"
            }
            defer { group.cancelAll() }
            return try await group.next()!
        }
    }

    private struct ToolArguments: Codable, Sendable { var number: Int }

    /// As an agent that converses: with all that was said before.
    private func respond(_ prompt: String, _ index: Int, _ called: Called, _ turn: Turn) async throws -> JSON {
        let tools = SimulatedModel.tools.map { name, approval in
            Tool(name, "A tool.", parameters: ["type": "object"], approval: approval) { (arguments: ToolArguments, context) in
                record.bodyRan(called.name, path(context.step, turn), isAtMostOnce: false)
                await pause(arguments.number)
                return arguments.number
            }
        }
        let model = SimulatedModel(continuesPrefix: prompt.utf8.last.map { $0 % 2 == 0 } ?? true, world: world, record: record)
        let messages = turn.history.flatMap(\.messages) + [turn.input(called.input), .user(prompt)]
        return .string(try await turn.respond("respond\(index)", model, messages, tools: tools, retry: SimulationAgent.retry).text)
    }

    private func follow(_ stream: Int, _ count: Int, _ milliseconds: Int?, _ turn: Turn) async throws -> JSON {
        var read: [JSON] = []
        var end = "enough"
        do {
            var followed = try await turn.follow(SimulationProgram.followed(stream))
            while read.count < count {
                guard let entry = try await followed.next(timeout: milliseconds.map { .milliseconds($0) }) else {
                    end = "ended"
                    break
                }
                read.append(["offset": .string(entry.offset), "value": entry.value])
            }
        } catch let failure as StepFailure where failure.code != "cancelled" { end = failure.code }
        return ["stream": .string(SimulationProgram.followed(stream)), "read": .array(read), "end": .string(end)]
    }
}

extension SimulationProgram {
    /// The name of a stream that programs follow.
    static func followed(_ number: Int) -> String { "streams/f\(number)" }
}

extension SimulatedModel {
    /// The tools of a model, and which approvals they need.
    static let tools: [(name: String, approval: ToolApproval)] = [
        ("note", .none), ("risky", .required(expires: nil)), ("hasty", .required(expires: .seconds(2))),
    ]
}
