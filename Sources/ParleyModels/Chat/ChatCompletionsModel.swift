public import ParleyAgents
package import ParleyHTTP
package import ParleySystem
internal import Synchronization

/// A model behind anything that speaks OpenAI's Chat Completions, streamed.
///
/// It makes one HTTP call for each ``start(_:_:)`` and never a second one: retrying is the step's business. The failures it gives are
/// listed at ``ChatFailures``.
public final class ChatCompletionsModel: Model {
    /// Which server, which model, and what is particular to them.
    package struct Configuration: Sendable {
        package var baseURL: BaseURL
        package var apiKey: String?
        package var model: String
        package var continues: Continuation
        /// How long the upstream may be silent, before its first byte as well.
        package var idleTimeout: Duration = .seconds(120)
        /// Sends `continue_final_message` and `add_generation_prompt` with a continuation, which vLLM wants and hosted servers may refuse.
        /// With ``Continuation/auto`` the probe finds out and this is not read.
        package var sendsContinuationFields = false
        /// The field that bounds the answer. OpenAI's newer models refuse the old name, and other servers may not know the new one.
        package var maxTokensField: String
        /// The names that settings go by in remedies.
        package var names = ChatFailures.SettingNames()

        package init(baseURL: BaseURL, apiKey: String? = nil, model: String, continues: Continuation = .auto) {
            (self.baseURL, self.apiKey, self.model, self.continues) = (baseURL, apiKey, model, continues)
            maxTokensField = baseURL.host == BaseURL.openAI.host ? "max_completion_tokens" : "max_tokens"
        }
    }

    public let name: String
    public var continues: Continuation { configuration.continues }

    let configuration: Configuration
    private let transport: any OutgoingTransport
    private let world: any World
    private let probes: ContinuationProbes

    package init(
        _ configuration: Configuration, transport: any OutgoingTransport, world: any World, probes: ContinuationProbes = .shared
    ) {
        name = "openai:" + configuration.model
        (self.configuration, self.transport, self.world, self.probes) = (configuration, transport, world, probes)
    }

    public func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        start(request, sink, continuationFields: continuationFields)
    }

    /// As ``Model/probeContinuation(_:)``. When the answer is known it is given at once, inside this call.
    ///
    /// One small call is bought at most: it carries the fields of ``Configuration/sendsContinuationFields``, and only an upstream that refuses it
    /// for them (so sells nothing) is asked again without.
    public func probeContinuation(_ answer: @escaping @Sendable (Bool) -> Void) {
        guard continues == .auto else { return answer(continues == .prefix) }
        probes.find(for: probeKey, probe: { [self] report in probe(withFields: true, report) }, answer)
    }

    private var probeKey: ContinuationProbes.Key { ContinuationProbes.Key(baseURL: configuration.baseURL, model: configuration.model) }

    private var continuationFields: Bool {
        continues == .auto ? probes.known(for: probeKey) == .prefixWithFields : configuration.sendsContinuationFields
    }

    private func probe(withFields: Bool, _ report: @escaping @Sendable (ContinuationProbes.Outcome) -> Void) {
        let sink = ContinuationProbe.Sink { [self] outcome in
            switch outcome {
            case .continues: report(.found(withFields ? .prefixWithFields : .prefix))
            case .refused where withFields: probe(withFields: false, report)
            case .refused, .startsOver: report(.found(.no))
            case .unknown: report(.unknown)
            }
        }
        _ = start(ContinuationProbe.request, sink, continuationFields: withFields)
    }

    private func start(_ request: ModelRequest, _ sink: any ModelSink, continuationFields: Bool) -> ChatCall {
        let redaction = Redaction(apiKey: configuration.apiKey, messages: request.messages, continuing: request.continuing)
        let failures = ChatFailures(
            baseURL: configuration.baseURL, model: configuration.model, names: configuration.names, redaction: redaction)
        let call = ChatCall(ChatStream(failures), sink, world)
        call.begin(outgoing(request, continuationFields: continuationFields), on: transport)
        return call
    }

    // MARK: The request

    private func outgoing(_ request: ModelRequest, continuationFields: Bool) -> OutgoingRequest {
        var headers = [(name: "Content-Type", value: "application/json"), (name: "Accept", value: "text/event-stream")]
        if let key = configuration.apiKey { headers.append((name: "Authorization", value: "Bearer " + key)) }
        if let key = request.idempotencyKey { headers.append((name: "Idempotency-Key", value: key)) }
        var outgoing = OutgoingRequest(
            method: "POST", url: configuration.baseURL.text + "/chat/completions", headers: headers,
            body: body(request, continuationFields: continuationFields).bytes)
        outgoing.idleTimeout = configuration.idleTimeout
        return outgoing
    }

    private func body(_ request: ModelRequest, continuationFields: Bool) -> JSON {
        var messages = request.messages.map(message)
        // An empty beginning is none: llama.cpp, given one, lets the model write the role's own name into the answer.
        let prefix = request.continuing.flatMap { $0.isEmpty ? nil : $0 }
        if let prefix { messages.append(["role": "assistant", "content": .string(prefix)]) }
        let options = request.options
        let hasFields = prefix != nil && continuationFields
        return .compact(
            ("model", .string(configuration.model)),
            ("messages", .array(messages)),
            ("tools", request.tools.isEmpty ? nil : .array(request.tools.map(tool))),
            ("stream", true),
            ("stream_options", ["include_usage": true]),
            (configuration.maxTokensField, options.maxTokens.map { .integer(Int64($0)) }),
            ("temperature", options.temperature.map(JSON.number)),
            ("seed", options.seed.map { .integer(Int64($0)) }),
            ("stop", options.stop.map { .array($0.map(JSON.string)) }),
            ("continue_final_message", hasFields ? true : nil),
            ("add_generation_prompt", hasFields ? false : nil))
    }

    private func message(_ message: ModelMessage) -> JSON {
        let calls = message.toolCalls.map { call -> JSON in
            [
                "id": .string(call.id), "type": "function",
                "function": ["name": .string(call.name), "arguments": .string(call.arguments.isEmpty ? "{}" : call.arguments)],
            ]
        }
        return .compact(
            ("role", .string(message.role.rawValue)), ("content", .string(message.text)),
            ("tool_calls", calls.isEmpty ? nil : .array(calls)), ("tool_call_id", message.toolCallID.map(JSON.string)))
    }

    private func tool(_ tool: ToolDefinition) -> JSON {
        [
            "type": "function",
            "function": ["name": .string(tool.name), "description": .string(tool.description), "parameters": tool.parameters],
        ]
    }
}

/// One call: passes what the transport brings through ``ChatStream`` and on to the sink.
private final class ChatCall: ModelCall, OutgoingCallDelegate {
    private struct State {
        var stream: ChatStream
        var outgoing: (any OutgoingCall)?
        var isOver = false
    }

    private let state: Mutex<State>
    private let sink: any ModelSink
    private let world: any World

    init(_ stream: ChatStream, _ sink: any ModelSink, _ world: any World) {
        state = Mutex(State(stream: stream))
        (self.sink, self.world) = (sink, world)
    }

    func begin(_ request: OutgoingRequest, on transport: any OutgoingTransport) {
        let outgoing = transport.start(request, self)
        // The transport may be on another thread and have the end before this line.
        let isOver = state.withLock {
            if !$0.isOver { $0.outgoing = outgoing }
            return $0.isOver
        }
        if isOver { outgoing.cancel() }
    }

    func cancel() { close()?.cancel() }

    func received(status: Int, headers: [(name: String, value: String)]) {
        state.withLock { $0.stream.head(status: status, headers: headers) }
    }

    func received(body: UnsafeRawBufferPointer) {
        deliver { $0.body(body) }
    }

    func ended(_ error: OutgoingError?) {
        let now = world.now
        deliver { $0.end(error, now: now) }
        _ = close()
    }

    private func deliver(_ read: (inout ChatStream) -> [ModelEvent]) {
        let events = state.withLock { $0.isOver ? [] : read(&$0.stream) }
        for event in events {
            // Looked at before each event, because the sink may cancel on hearing the one before.
            guard !state.withLock({ $0.isOver }) else { return }
            // A failure found in the stream leaves an upstream that would go on generating.
            if case .failed = event { close()?.cancel() }
            sink.received(event)
        }
    }

    /// Lets no further event through; gives what is left to be cancelled.
    private func close() -> (any OutgoingCall)? {
        state.withLock { state in
            state.isOver = true
            return state.outgoing.take()
        }
    }
}
