internal import FoundationEssentials
internal import ParleyChannels
package import ParleySystem

/// A durable actor: one per name, with a channel that is its address, mailbox, journal, memory and trace.
///
/// ```swift
/// struct Greeter: Agent {
///     static let kind = "greeter"
///     struct State: AgentState { var greeted = 0 }
///
///     func receive(_ name: String, _ turn: Turn, _ state: inout State) async throws -> String {
///         state.greeted += 1
///         return "Hello, \(name), you are number \(state.greeted)."
///     }
/// }
/// ```
///
/// The value holds the agent's dependencies (models, clients); it is shared by all agents of the kind. An agent's memory is its `State`, saved in the
/// batch that ends a turn; a turn that throws leaves the state of the last completed turn.
public protocol Agent: Sendable {
    associatedtype State: AgentState = NoState
    associatedtype Input: Codable & Sendable
    associatedtype Output: Codable & Sendable

    /// The first segment of its agents' names: 1 to 128 characters of `[A-Za-z0-9._~-]`.
    static var kind: String { get }

    /// How a message is handled that comes while a turn runs.
    static var policy: ConcurrentInput { get }

    /// Handles one message: a turn. After a crash it runs again from the top, and each step returns what the journal holds.
    func receive(_ input: Input, _ turn: Turn, _ state: inout State) async throws -> Output
}

extension Agent {
    public static var policy: ConcurrentInput { .queue }
}

/// How a message is handled that comes while a turn runs.
public enum ConcurrentInput: String, Sendable, CaseIterable {
    /// It waits for the turn to end.
    case queue
    /// It joins the turn's next model call; when none comes, it waits for the turn to end.
    case steer
    /// It interrupts the turn, as its redirection.
    case interrupt
    /// Its receipt is `rejected: busy`.
    case reject
    /// It cancels the turn and begins one of its own.
    case rollback
}

/// The memory of an agent from turn to turn. Give every property a default: a saved state is laid over the default one, so that a state saved before
/// a property existed still decodes. An optional that was set to `nil` stays `nil`, whatever its default is.
public protocol AgentState: Codable, Sendable {
    init()
}

/// The state of an agent that has none.
public struct NoState: AgentState {
    public init() {}
}

/// An agent whose types have been erased to JSON, as the runtime runs it.
package struct AnyAgent: Sendable {
    package let kind: String
    package let policy: ConcurrentInput
    /// How much of the conversation a turn can use, in bytes of UTF-8.
    package let historyBytes: Int
    package typealias Receive = @Sendable (_ input: TurnInput, _ turn: Turn, _ state: JSON?) async throws -> (output: JSON, state: JSON)

    /// Whether its input is the message's text.
    package let takesText: Bool
    /// Handles one input; gives the output and the new state.
    package let receive: Receive
    /// The data that directs `receive`, if it is declared by data: a turn that has begun keeps it.
    package let definition: AgentDefinition?
    /// The program of turns that began with another definition.
    package let beganWith: (@Sendable (_ definition: JSON) -> Receive)?

    package init(
        kind: String, policy: ConcurrentInput = .queue, historyBytes: Int = AnyAgent.historyBytesUsual, definition: AgentDefinition? = nil,
        takesText: Bool = true, receive: @escaping Receive, beganWith: (@Sendable (_ definition: JSON) -> Receive)? = nil
    ) {
        self.kind = kind
        self.policy = policy
        self.historyBytes = historyBytes
        self.definition = definition
        self.takesText = takesText
        self.receive = receive
        self.beganWith = beganWith
    }

    /// More than the context of most models holds.
    package static let historyBytesUsual = 256 << 10

    package init<A: Agent>(_ agent: A) {
        self.init(kind: A.kind, policy: A.policy, takesText: A.Input.self == String.self) { message, turn, saved in
            let input = try AnyAgent.input(A.Input.self, from: message.take())
            var state = try AnyAgent.state(A.State.self, from: saved)
            let output = try await agent.receive(input, turn, &state)
            return (try JSON(encoding: output), try SavedState.encode(state))
        }
    }

    /// A message carries text or data; an agent that takes text gets the text, every other gets the data decoded.
    private static func input<Input: Codable>(_ type: Input.Type, from message: EntryMembers) throws -> Input {
        if type == String.self, let text = message["text"]?.string { return text as! Input }
        guard let data = message["data"] ?? message["text"] else {
            throw StepFailure(code: "invalid_input", message: "the message has neither text nor data", retryable: false)
        }
        do { return try data.decode(type) } catch {
            let isText = message["data"] == nil
            // A remedy for the sender of a text to an agent that takes none, appended to the error.
            let remedy = isText ? ". Send it as the message's 'data', for example with `parley run <kind>/<id> --data '{...}'`" : ""
            throw StepFailure(
                code: "invalid_input",
                message: "the message's \(isText ? "text" : "data") is not a \(type): \(data.misfit(error))\(remedy)",
                retryable: false)
        }
    }

    private static func state<State: AgentState>(_ type: State.Type, from saved: JSON?) throws -> State {
        guard let saved else { return State() }
        let completed = try SavedState.complete(saved, State())
        do { return try completed.decode(type) } catch {
            throw StepFailure(
                code: "state_mismatch",
                message: "the saved state does not decode as \(type): \(completed.misfit(error)). Give new properties a default.",
                retryable: false)
        }
    }
}

extension JSON {
    /// The value as Foundation's encoder writes it, members sorted by name: unsorted, their order would differ from process to process, and
    /// with it every digest.
    package init(encoding value: some Encodable) throws {
        switch value {
        case let value as JSON:
            guard !value.isNested(deeperThan: JSONScanner.depthMax) else {
                throw JSONError(position: 0, problem: "nested deeper than \(JSONScanner.depthMax)")
            }
            self = value
            return
        // What most steps give needs neither encoder nor parser.
        case let text as String:
            self = .string(text)
            return
        case let number as Int:
            self = .integer(Int64(number))
            return
        case let flag as Bool:
            self = .bool(flag)
            return
        default: break
        }
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        self = try JSON.parse(Bytes(try encoder.encode(value)))
    }

    package func decode<Value: Decodable>(_ type: Value.Type) throws -> Value {
        // Passed on as it came: Foundation's decoder would parse its numbers again.
        if let value = self as? Value { return value }
        switch self {
        case .string(let text) where type == String.self: return text as! Value
        case .integer(let number) where type == Int.self: return Int(number) as! Value
        case .bool(let flag) where type == Bool.self: return flag as! Value
        default: break
        }
        return try JSONDecoder().decode(type, from: Data(bytes))
    }
}
