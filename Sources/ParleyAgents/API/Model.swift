public import ParleySystem

/// A language model that streams its answer.
///
/// Implementations are stateless towards the caller: the step that calls them decides what to continue, retry or keep. They never retry by
/// themselves, because two layers that retry buy the same answer twice.
public protocol Model: Sendable {
    /// `<provider>:<model>`, as in the journal.
    var name: String { get }

    /// Whether it can continue from the beginning of an answer.
    var continues: Continuation { get }

    /// Starts one call. `sink` hears events in order, from any one thread at a time, and after the last (`finished` or `failed`) nothing more.
    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall

    /// Finds out whether the model continues from a prefix, for ``Continuation/auto``. Costs at most one small call, once; then the answer is remembered.
    func probeContinuation(_ answer: @escaping @Sendable (Bool) -> Void)
}

extension Model {
    public func probeContinuation(_ answer: @escaping @Sendable (Bool) -> Void) { answer(continues == .prefix) }
}

/// How a model can take up an answer that was cut off.
public enum Continuation: String, Sendable, Codable, CaseIterable {
    /// The saved text is sent back as the last, unfinished message.
    case prefix
    /// The provider keeps the stream and can be asked for the rest of it.
    case resume
    /// It cannot: a cut answer starts again.
    case no
    /// Not known: try once and remember.
    case auto
}

/// Receives the events of one model call.
public protocol ModelSink: AnyObject, Sendable {
    func received(_ event: ModelEvent)
}

/// A model call in flight.
public protocol ModelCall: AnyObject, Sendable {
    /// Closes the connection, so that no further token is bought. The sink hears nothing more. Idempotent, thread-safe.
    func cancel()

    /// Stops reading from the upstream until ``resume()``: a few events may still come. A model without an upstream may continue. Must not call the
    /// sink; thread-safe.
    func pause()

    /// Continues after ``pause()``. Must not call the sink; thread-safe.
    func resume()
}

extension ModelCall {
    public func pause() {}
    public func resume() {}
}

public enum ModelEvent: Sendable, Equatable {
    case text(String)
    case reasoning(String)
    /// A piece of the tool call number `index`: its id and name come once, the arguments in pieces.
    case toolCall(index: Int, id: String?, name: String?, arguments: String)
    /// Members that the endpoint wants to see again, unchanged, when the answer is sent back: with the call of that number, or with the message.
    case returned(call: Int?, JSON)
    case usage(ModelUsage)
    /// The end as the upstream gave it: `stop`, `tool_calls`, or `length` for an answer that was cut at its limit. An answer that ended for any
    /// other reason is a failure.
    case finished(reason: String)
    case failed(StepFailure)
}

public struct ModelUsage: Sendable, Codable, Equatable {
    public var inputTokens: Int
    public var outputTokens: Int

    public init(inputTokens: Int = 0, outputTokens: Int = 0) {
        self.inputTokens = inputTokens
        self.outputTokens = outputTokens
    }

    enum CodingKeys: String, CodingKey {
        case inputTokens = "input_tokens"
        case outputTokens = "output_tokens"
    }
}

/// One request to a model.
public struct ModelRequest: Sendable {
    public var messages: [ModelMessage] { didSet { identified = nil } }
    /// The tools that the model may call.
    public var tools: [ToolDefinition]
    public var options: ModelOptions
    /// The beginning of the answer, to continue from; the model must not repeat it.
    public var continuing: String?
    /// The same over all attempts of a step.
    public var idempotencyKey: String?
    /// The hashes of the messages; `nil` unless ``identify()`` was called since they were set.
    private(set) var identified: RequestParts?

    public init(
        messages: [ModelMessage], tools: [ToolDefinition] = [], options: ModelOptions = ModelOptions(), continuing: String? = nil,
        idempotencyKey: String? = nil
    ) {
        self.messages = messages
        self.tools = tools
        self.options = options
        self.continuing = continuing
        self.idempotencyKey = idempotencyKey
    }

    /// Finds out once what the messages are, for all that ask.
    mutating func identify() { identified = RequestParts(messages) }
}

public struct ModelMessage: Sendable, Codable, Equatable {
    public enum Role: String, Sendable, Codable { case system, user, assistant, tool }

    public var role: Role { didSet { cache = MessageCache() } }
    public var text: String { didSet { cache = MessageCache() } }
    /// The calls of an assistant's message.
    public var toolCalls: [ToolCall] = [] { didSet { cache = MessageCache() } }
    /// The call that a tool's message is the result of.
    public var toolCallID: String? { didSet { cache = MessageCache() } }
    /// Members of an assistant's message that its endpoint wants to see again: reasoning, signatures.
    public var returned: JSON? { didSet { cache = MessageCache() } }
    /// The offset of the entry of the agent's own channel that holds the text, when one does: then the journal refers to it by that.
    package var source: String?
    private(set) var cache = MessageCache()

    private enum CodingKeys: String, CodingKey { case role, text, toolCalls, toolCallID, returned, source }

    public init(_ role: Role, _ text: String) {
        self.role = role
        self.text = text
    }

    public static func system(_ text: String) -> ModelMessage { ModelMessage(.system, text) }
    public static func user(_ text: String) -> ModelMessage { ModelMessage(.user, text) }
    public static func assistant(_ text: String) -> ModelMessage { ModelMessage(.assistant, text) }

    static func user(_ text: String, source: String?) -> ModelMessage { ModelMessage(.user, text, source: source) }
    static func assistant(_ text: String, source: String) -> ModelMessage { ModelMessage(.assistant, text, source: source) }

    /// A message that joined a request, from the end of its step.
    static func user(steer: JSON) -> ModelMessage { user(steer["text"]?.string ?? "", source: steer["offset"]?.string) }

    private init(_ role: Role, _ text: String, source: String?) {
        self.init(role, text)
        self.source = source
    }

    /// The model's text before its tool calls, and those calls.
    ///
    /// - Parameter returned: The members that the endpoint wants to see again: ``Generation/returned``.
    public static func assistant(_ text: String, calls: [ToolCall], returned: JSON? = nil) -> ModelMessage {
        var message = ModelMessage(.assistant, text)
        (message.toolCalls, message.returned) = (calls, returned)
        return message
    }

    /// The result of a call.
    public static func result(_ text: String, of call: ToolCall) -> ModelMessage {
        var message = ModelMessage(.tool, text)
        message.toolCallID = call.id
        return message
    }
}

extension [ModelMessage] {
    /// Adds what joined a conversation, in log order: before what was said after it, as the words of an interrupt may have been.
    mutating func join(_ said: [ModelMessage]) {
        for message in said { insert(message, at: place(of: message)) }
    }

    /// The place of a message that joins: behind everything but later messages of people.
    func place(of message: ModelMessage) -> Int {
        guard let source = message.source else { return count }
        var place = count
        // Offsets as text are ordered as they are.
        while place > 0, self[place - 1].role == .user, let other = self[place - 1].source, other > source { place -= 1 }
        return place
    }
}

/// How to sample and where to stop; `nil` leaves it to the model.
public struct ModelOptions: Sendable, Codable, Equatable {
    public var maxTokens: Int?
    public var temperature: Double?
    public var seed: Int?
    public var stop: [String]?

    enum CodingKeys: String, CodingKey {
        case maxTokens = "max_tokens"
        case temperature, seed, stop
    }

    public init(maxTokens: Int? = nil, temperature: Double? = nil, seed: Int? = nil, stop: [String]? = nil) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.seed = seed
        self.stop = stop
    }
}
