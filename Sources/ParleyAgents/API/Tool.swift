public import ParleySystem

/// Something a model may ask for: its description for the model, and the code that does it.
///
/// ```swift
/// struct City: Codable { var city: String }
///
/// let weather = Tool(
///     "weather", "The weather in a city.",
///     parameters: ["type": "object", "properties": ["city": ["type": "string"]], "required": ["city"]]
/// ) { (arguments: City, context) in try await forecast(arguments.city) }
/// ```
///
/// A call is a step of the turn: its result is logged, and every replay gets that result.
public struct Tool: Sendable {
    /// The name for the model: 1 to 64 of `A-Z a-z 0-9 _ -`, as model servers accept it.
    public let name: String
    public private(set) var description: String
    /// A JSON Schema of an object: its arguments.
    public private(set) var parameters: JSON
    /// Whether a person must agree to each call, with exactly its arguments.
    public var approval: ToolApproval
    /// The guarantee on its effect outside.
    public var contract: StepContract
    public var retry: RetryPolicy
    /// Throws the reason why arguments cannot be right, before a person is asked to approve them.
    private(set) var check: @Sendable (JSON) throws -> Void
    private(set) var body: @Sendable (JSON, ToolContext) async throws -> JSON

    /// - Parameters:
    ///   - parameters: The description of the arguments for the model. Only whether they decode as `Arguments` counts; if they do not, the model is
    ///     told the place of the error, and may call again. A ``StepFailure`` from `init(from:)` says more.
    ///   - body: The work of the tool. An error that it throws is retried as a step's failures are, and is then the result that the model gets.
    public init<Arguments: Decodable & Sendable, Value: Encodable & Sendable>(
        _ name: String, _ description: String, parameters: JSON, approval: ToolApproval = .none, contract: StepContract = .atLeastOnce,
        retry: RetryPolicy = .standard, _ body: @escaping @Sendable (Arguments, ToolContext) async throws -> Value
    ) {
        self.name = name
        self.description = description
        self.parameters = parameters
        self.approval = approval
        self.contract = contract
        self.retry = retry
        check = { _ = try Tool.decode(Arguments.self, $0) }
        self.body = { arguments, context in try JSON(encoding: try await body(try Tool.decode(Arguments.self, arguments), context)) }
    }

    /// The tool as it was described to a turn that began before the description changed.
    package func described(by definition: ToolDefinition) -> Tool {
        var tool = self
        (tool.description, tool.parameters) = (definition.description, definition.parameters)
        return tool
    }

    /// A tool that the agent no longer has, in a turn that was offered it: each call's result is `tool_removed`.
    package static func removed(_ definition: ToolDefinition) -> Tool {
        var tool = Tool(definition.name, definition.description, parameters: definition.parameters) { (_: JSON, _) in JSON.null }
        tool.body = { _, _ in
            throw StepFailure(
                code: "tool_removed", message: "tool_removed: the tool '\(definition.name)' was taken from the agent meanwhile",
                retryable: false)
        }
        return tool
    }

    package var definition: ToolDefinition { ToolDefinition(name: name, description: description, parameters: parameters) }

    private static func decode<Arguments: Decodable & Sendable>(_ type: Arguments.Type, _ arguments: JSON) throws -> Arguments {
        do { return try arguments.decode(type) } catch {
            throw StepFailure(
                code: "invalid_arguments", message: "the arguments do not fit the parameters: \(arguments.misfit(error))", retryable: false)
        }
    }
}

/// Whether a person must agree before a tool runs.
public enum ToolApproval: Sendable, Equatable {
    case none
    /// Each call is asked for; undecided after `expires`, it counts as refused.
    case required(expires: Duration?)
}

/// The context that a tool receives besides its arguments.
public struct ToolContext: Sendable {
    /// The channel of the agent that it works for: `agents/<kind>/<id>`.
    public let channel: String
    /// The idempotency key, the fence and the attempt.
    public let step: StepContext
}

/// A tool as a model is offered it.
public struct ToolDefinition: Sendable, Codable, Equatable {
    public var name: String
    public var description: String
    /// A JSON Schema of an object.
    public var parameters: JSON

    public init(name: String, description: String, parameters: JSON) {
        self.name = name
        self.description = description
        self.parameters = parameters
    }
}

/// A model's call of a tool.
public struct ToolCall: Sendable, Codable, Equatable {
    /// The id by which its result refers to it.
    public var id: String
    public var name: String
    /// JSON as the model wrote it, which may be none.
    public var arguments: String
    /// Members of the call that its endpoint wants to see again, such as a signature.
    public var returned: JSON?

    public init(id: String, name: String, arguments: String) {
        self.id = id
        self.name = name
        self.arguments = arguments
    }

    init(journal: JSON) {
        self.init(
            id: journal["id"]?.string ?? "", name: journal["name"]?.string ?? "", arguments: journal["arguments"]?.string ?? "")
        returned = journal["returned"]
    }
}
