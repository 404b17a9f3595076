package import ParleyAgents
internal import ParleySystem

/// The agent that an agent file declares: instructions, the conversation so far, and the message go to the model; its tool calls are run, and its
/// last answer is the output.
///
/// It keeps no state: the conversation is the channel's. A turn keeps the definition that it began with, so that an edit of the file does not change
/// what the turn has already asked for; the file's rules on approvals, and the removal of a tool, apply at once.
package struct DeclaredAgent: Sendable {
    private let file: AgentFile
    private let model: any Model
    private let tools: BuiltInTools
    private let makeModel: @Sendable (_ name: String, _ continues: Continuation?) -> any Model

    /// - Parameter makeModel: Makes the model of a turn that began with another one than `model`.
    package init(
        _ file: AgentFile, model: any Model, tools: BuiltInTools,
        makeModel: @escaping @Sendable (_ name: String, _ continues: Continuation?) -> any Model = { name, _ in
            UnconfiguredModel(name: name)
        }
    ) {
        (self.file, self.model, self.tools, self.makeModel) = (file, model, tools, makeModel)
    }

    /// The agent for the runtime.
    package var agent: AnyAgent {
        let (agent, current) = (self, definition)
        let program = program(of: current)
        return AnyAgent(
            kind: file.kind, policy: file.concurrent, historyBytes: historyBytes, definition: AgentDefinition(current.json)
        ) { message, turn, _ in
            (.string(try await program.answer(message, turn)), [:])
        } beganWith: { json in
            let program = agent.program(of: DeclaredDefinition(json))
            return { message, turn, _ in (.string(try await program.answer(message, turn)), [:]) }
        }
    }

    /// A character is up to four bytes.
    private var historyBytes: Int { max(AnyAgent.historyBytesUsual, file.contextCharacters * 4) }

    private var definition: DeclaredDefinition {
        DeclaredDefinition(
            instructions: file.instructions, model: model.name, continues: file.continues, options: file.options,
            contextCharacters: file.contextCharacters, tools: file.tools.map { tools.make($0).definition })
    }

    private func program(of definition: DeclaredDefinition) -> DeclaredProgram {
        let isCurrent = definition.model == model.name && definition.continues == file.continues
        return DeclaredProgram(
            definition: definition, model: isCurrent ? model : makeModel(definition.model, definition.continues),
            tools: definition.tools.map(tool))
    }

    /// The tool as the definition describes it, and as the file of now lets it be used.
    private func tool(_ definition: ToolDefinition) -> Tool {
        guard file.tools.contains(definition.name), BuiltInTools.names.contains(definition.name) else { return .removed(definition) }
        var tool = tools.make(definition.name).described(by: definition)
        if file.approve.contains(definition.name) { tool.approval = .required(expires: BuiltInTools.approvalExpires) }
        return tool
    }
}

/// The data that determines a turn of a declared agent: stored by hash when the turn begins.
struct DeclaredDefinition: Sendable {
    var instructions: String
    var model: String
    var continues: Continuation?
    var options: ModelOptions
    var contextCharacters: Int
    var tools: [ToolDefinition]

    var json: JSON {
        JSON.compact(
            ("instructions", .string(instructions)), ("model", .string(model)), ("continues", continues.map { .string($0.rawValue) }),
            ("options", try? JSON(encoding: options)), ("context", .integer(Int64(contextCharacters))),
            ("tools", try? JSON(encoding: tools)))
    }
}

extension DeclaredDefinition {
    init(_ json: JSON) {
        self.init(
            instructions: json["instructions"]?.string ?? "", model: json["model"]?.string ?? "",
            continues: json["continues"]?.string.flatMap(Continuation.init),
            options: json["options"].flatMap { try? $0.decode(ModelOptions.self) } ?? ModelOptions(),
            contextCharacters: json["context"]?.integer.map { Int($0) } ?? AgentFile.contextCharactersDefault,
            // By hand: decoded, the members of a schema would come in another order.
            tools: (json["tools"]?.array ?? []).map { tool in
                ToolDefinition(
                    name: tool["name"]?.string ?? "", description: tool["description"]?.string ?? "",
                    parameters: tool["parameters"] ?? .null)
            })
    }
}

/// A definition with the model and the tools that it names.
private struct DeclaredProgram: Sendable {
    let definition: DeclaredDefinition
    let model: any Model
    let tools: [Tool]

    func answer(_ message: TurnInput, _ turn: Turn) async throws -> String {
        guard let text = message.takeText() else {
            throw StepFailure(code: "invalid_input", message: "the message has neither text nor data", retryable: false)
        }
        let messages: [ModelMessage] =
            [.system(definition.instructions)] + conversation(turn.history, room: definition.contextCharacters - text.unicodeScalars.count)
        let answer = try await turn.respond("answer", model, messages + [turn.input(text)], tools: tools, options: definition.options)
        // At a limit that the agent has set, the answer is as long as was asked for; at the server's own it is half of one.
        guard answer.finishReason != "length" || definition.options.maxTokens != nil else {
            throw StepFailure(
                code: "answer_cut",
                message:
                    "the answer was cut at the server's own limit. Remedy: set max_tokens in the agent's file, or shorten its context.",
                retryable: false)
        }
        return answer.text
    }

    /// The newest turns that fit into `room` characters, whole ones only, oldest first.
    private func conversation(_ history: [HistoryItem], room: Int) -> [ModelMessage] {
        var room = room
        var turns: [[ModelMessage]] = []
        for item in history.reversed() {
            let turn = item.messages
            room -= turn.reduce(0) { $0 + $1.text.unicodeScalars.count }
            guard room >= 0 else { break }
            turns.append(turn)
        }
        return turns.reversed().flatMap { $0 }
    }
}
