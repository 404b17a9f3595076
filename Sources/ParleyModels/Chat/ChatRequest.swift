internal import ParleyAgents
internal import ParleySystem

/// The body of a Chat Completions call, in the form that the strictest servers take.
///
/// Those refuse an assistant's message with an empty text and poison each later turn with it; arguments that are no JSON; calls without an id, or
/// without a result right behind them. So a conversation is sent without empty messages, and with everything that must be there. Where two
/// consecutive messages of one party are refused, they are merged. Names and ids that a model has made up, and that its own endpoint refuses to see
/// again, are sent in a form that all take.
struct ChatRequest {
    var configuration: ChatCompletionsModel.Configuration
    var continuationFields: Bool
    /// The features that the endpoint has refused before.
    var habits: Set<EndpointHabit>

    func body(_ request: ModelRequest) -> JSON {
        // An empty beginning is none: llama.cpp, given one, lets the model write the role's own name into the answer.
        let prefix = request.continuing.flatMap { $0.isEmpty ? nil : $0 }
        let options = request.options
        let hasFields = prefix != nil && continuationFields
        return .compact(
            ("model", .string(configuration.model)),
            ("messages", .array(messages(request.messages) + (prefix.map { [["role": "assistant", "content": .string($0)]] } ?? []))),
            ("tools", request.tools.isEmpty ? nil : .array(request.tools.map(tool))),
            ("stream", true),
            ("stream_options", habits.contains(.refusesStreamOptions) ? nil : ["include_usage": true]),
            (tokensField, options.maxTokens.map { .integer(Int64($0)) }),
            ("temperature", habits.contains(.refusesTemperature) ? nil : options.temperature.map(JSON.number)),
            ("seed", habits.contains(.refusesSeed) ? nil : options.seed.map { .integer(Int64($0)) }),
            ("stop", options.stop.map { .array($0.map(JSON.string)) }),
            ("continue_final_message", hasFields ? true : nil),
            ("add_generation_prompt", hasFields ? false : nil))
    }

    private var tokensField: String {
        let field = configuration.maxTokensField
        guard habits.contains(.wantsOtherTokensField) else { return field }
        return field == "max_tokens" ? "max_completion_tokens" : "max_tokens"
    }

    private func tool(_ tool: ToolDefinition) -> JSON {
        [
            "type": "function",
            "function": ["name": .string(tool.name), "description": .string(tool.description), "parameters": tool.parameters],
        ]
    }

    // MARK: The conversation

    private func messages(_ conversation: [ModelMessage]) -> [JSON] {
        var said = ChatRequest.said(conversation)
        if habits.contains(.refusesRows) { said = ChatRequest.merged(said) }
        if habits.contains(.refusesUserAfterResult) { said = ChatRequest.bridged(said) }
        return said.map(message)
    }

    private static func said(_ conversation: [ModelMessage]) -> [ModelMessage] { paired(conversation).filter { !$0.saysNothing } }

    /// Whether one party says two things in a row.
    static func hasRows(_ conversation: [ModelMessage]) -> Bool {
        let said = said(conversation)
        return merged(said).count < said.count
    }

    /// Whether a user speaks right behind the result of a call.
    static func hasUserAfterResult(_ conversation: [ModelMessage]) -> Bool {
        let said = said(conversation)
        return bridged(said).count > said.count
    }

    /// With a word of the assistant between the result of a call and a user's message. Other clients of such endpoints do the same. The user's words
    /// could go to the end of the result instead, but models are taught not to obey a result's content.
    static func bridged(_ conversation: [ModelMessage]) -> [ModelMessage] {
        conversation.reduce(into: []) { output, message in
            if message.role == .user, output.last?.role == .tool { output.append(.assistant("OK.")) }
            output.append(message)
        }
    }

    /// Each assistant's calls with an id and a result of their own right behind them.
    static func paired(_ conversation: [ModelMessage]) -> [ModelMessage] {
        var output: [ModelMessage] = []
        var rest = conversation[...]
        while var message = rest.popFirst() {
            guard !message.toolCalls.isEmpty else {
                output.append(message)
                continue
            }
            var results = Array(rest.prefix { $0.role == .tool })
            rest = rest.dropFirst(results.count)
            let number = output.count
            var answers: [ModelMessage] = []
            for index in message.toolCalls.indices {
                let call = message.toolCalls[index]
                // A result without an id belongs to the first call that has none left.
                let place = results.firstIndex { $0.toolCallID == call.id } ?? results.firstIndex { ($0.toolCallID ?? "").isEmpty }
                var answer = place.map { results.remove(at: $0) } ?? .result("error: there is no result", of: call)
                if call.id.isEmpty { message.toolCalls[index].id = newID(number, index) }
                answer.toolCallID = message.toolCalls[index].id
                answers.append(answer)
            }
            output += [message] + answers + results
        }
        return output
    }

    /// Nine letters and digits, which is what the strictest server wants.
    private static func newID(_ message: Int, _ call: Int) -> String {
        let digits = String((message * 1_000 + call) % 100_000_000)
        return "c" + String(repeating: "0", count: 8 - digits.count) + digits
    }

    /// Merges consecutive messages of one party into one.
    static func merged(_ conversation: [ModelMessage]) -> [ModelMessage] {
        conversation.reduce(into: []) { output, message in
            guard let last = output.last, last.role == message.role, message.role == .user || message.role == .assistant,
                last.toolCalls.isEmpty, message.toolCalls.isEmpty
            else { return output.append(message) }
            output[output.count - 1].text += "\n\n" + message.text
        }
    }

    private func message(_ message: ModelMessage) -> JSON {
        let isBlank = message.text.utf8.allSatisfy { [0x20, 0x09, 0x0A, 0x0D].contains($0) }
        let content: JSON =
            switch message.role {
            case .assistant where isBlank: .null
            case .tool where isBlank: "(empty)"
            default: .string(message.text)
            }
        let calls = message.toolCalls.map(call)
        var body = JSON.compact(
            ("role", .string(message.role.rawValue)), ("content", content),
            ("tool_calls", calls.isEmpty ? nil : .array(calls)),
            ("tool_call_id", message.toolCallID.map { .string(ChatRequest.sendable(id: $0)) }))
        if !calls.isEmpty { body = returning(message.returned, with: body) }
        return body
    }

    private func call(_ call: ToolCall) -> JSON {
        let arguments = try? JSON.parse(call.arguments)
        var returned = call.returned?.members ?? []
        var function: JSON = [
            "name": .string(ChatRequest.sendable(name: call.name)), "arguments": .string(arguments?.members == nil ? "{}" : call.arguments),
        ]
        if let index = returned.firstIndex(where: { $0.name == "function" }) {
            function = returning(returned.remove(at: index).value, with: function)
        }
        return returning(
            .object(returned), with: ["id": .string(ChatRequest.sendable(id: call.id)), "type": "function", "function": function])
    }

    private static func isPlain(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, UInt8(ascii: "_"), UInt8(ascii: "-"): true
        default: false
        }
    }

    /// The name of a tool that a model made up, as it may be sent: at most 64 letters, digits, `_` and `-`.
    static func sendable(name: String) -> String {
        let plain = Bytes(name.utf8.prefix(64).map { isPlain($0) ? $0 : UInt8(ascii: "_") }).text
        return plain.isEmpty ? "unnamed" : plain
    }

    /// An id as it may be sent: itself, or one that follows from it, so that a call and its result stay a pair.
    ///
    /// Ids have 64 bytes at most, without spaces and quotation marks. LiteLLM's are longer when they carry Gemini's signature, which must come back.
    static func sendable(id: String) -> String {
        let isShort = id.utf8.count <= 64 || id.contains("__thought__")
        let isClean = id.utf8.allSatisfy { (0x21...0x7E).contains($0) && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") }
        return isShort && isClean ? id : "c" + SHA256.hex(Bytes(id.utf8)).prefix(8)
    }

    /// `object` with the members that the endpoint wants to see again.
    private func returning(_ members: JSON?, with object: JSON) -> JSON {
        guard let members = members?.members, !members.isEmpty, !habits.contains(.refusesReturned) else { return object }
        let known = object.members ?? []
        return .object(known + members.filter { member in !known.contains { $0.name == member.name } })
    }
}

extension ModelMessage {
    /// An assistant's message without text and calls.
    fileprivate var saysNothing: Bool {
        role == .assistant && toolCalls.isEmpty && text.utf8.allSatisfy { [0x20, 0x09, 0x0A, 0x0D].contains($0) }
    }
}
