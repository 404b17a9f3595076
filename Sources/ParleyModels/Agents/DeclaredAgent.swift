package import ParleyAgents
internal import ParleySystem

/// The agent that an agent file declares: instructions, the conversation so far, and the message go to the model; what it calls tools for is
/// done, and its last answer is the output.
///
/// It keeps no state: the conversation is the channel's.
package struct DeclaredAgent: Sendable {
    private let file: AgentFile
    private let model: any Model
    private let tools: [Tool]

    package init(_ file: AgentFile, model: any Model, tools: BuiltInTools) {
        self.file = file
        self.model = model
        self.tools = file.tools.map { name in
            var tool = tools.make(name)
            if file.approve.contains(name) { tool.approval = .required(expires: BuiltInTools.approvalExpires) }
            return tool
        }
    }

    /// What the runtime runs.
    package var agent: AnyAgent {
        let agent = self
        return AnyAgent(kind: file.kind, policy: file.concurrent, historyBytes: historyBytes) { message, turn, _ in
            (.string(try await agent.answer(message, turn)), [:])
        }
    }

    /// A character is up to four bytes.
    private var historyBytes: Int { max(AnyAgent.historyBytesUsual, file.contextCharacters * 4) }

    private func answer(_ message: JSON, _ turn: Turn) async throws -> String {
        guard let text = message["text"]?.string ?? message["data"]?.text else {
            throw StepFailure(code: "invalid_input", message: "the message has neither text nor data", retryable: false)
        }
        let messages: [ModelMessage] =
            [.system(file.instructions)] + conversation(turn.history, room: file.contextCharacters - text.unicodeScalars.count)
        let answer = try await turn.respond("answer", model, messages + [turn.input(text)], tools: tools, options: file.options)
        // At a limit that the agent has set, the answer is as long as was asked for; at the server's own it is half of one.
        guard answer.finishReason != "length" || file.options.maxTokens != nil else {
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
        var messages: [ModelMessage] = []
        for item in history.reversed() {
            let turn = item.messages
            room -= turn.reduce(0) { $0 + $1.text.unicodeScalars.count }
            guard room >= 0 else { break }
            messages = turn + messages
        }
        return messages
    }
}
