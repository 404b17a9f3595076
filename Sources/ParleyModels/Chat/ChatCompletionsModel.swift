public import ParleyAgents
package import ParleyHTTP
package import ParleySystem

/// A model behind anything that speaks OpenAI's Chat Completions, streamed.
///
/// It buys one answer for each ``start(_:_:)`` and never a second one: retrying is the step's business. Only a request that was refused for a field
/// that not every endpoint takes is sent again, without it; see ``EndpointHabit``. The failures it gives are listed at ``ChatFailures``.
public final class ChatCompletionsModel: Model {
    /// The server, the model, and their particularities.
    package struct Configuration: Sendable {
        package var baseURL: BaseURL
        package var apiKey: String?
        package var model: String
        package var continues: Continuation
        /// How long the upstream may be silent once its answer has begun.
        package var idleTimeout: Duration = .seconds(120)
        /// How long it may take until its answer begins, and how long it may send nothing but signs of life.
        package var firstByteTimeout: Duration = .seconds(600)
        /// How long usage is waited for behind the end of an answer.
        package var graceTimeout: Duration = .seconds(3)
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

    /// As configured, until the endpoint has refused to continue from a text.
    public var continues: Continuation { habits.of(key).contains(.refusesPrefix) ? .no : configuration.continues }

    let configuration: Configuration
    private let transport: any OutgoingTransport
    private let world: any World
    private let probes: ContinuationProbes
    private let habits: EndpointHabits
    private let slots: CallSlots

    /// - Parameter slots: The limit of concurrent calls, shared by all models of the same upstream.
    package init(
        _ configuration: Configuration, transport: any OutgoingTransport, world: any World, probes: ContinuationProbes = .shared,
        habits: EndpointHabits = .shared, slots: CallSlots = CallSlots()
    ) {
        name = "openai:" + configuration.model
        (self.configuration, self.transport, self.world) = (configuration, transport, world)
        (self.probes, self.habits, self.slots) = (probes, habits, slots)
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
        probes.find(for: key, probe: { [self] report in probe(withFields: true, report) }, answer)
    }

    private var key: ContinuationProbes.Key { ContinuationProbes.Key(baseURL: configuration.baseURL, model: configuration.model) }

    private var continuationFields: Bool {
        continues == .auto ? probes.known(for: key) == .prefixWithFields : configuration.sendsContinuationFields
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
        _ = start(ContinuationProbe.request, sink, continuationFields: withFields, isProbe: true)
    }

    private func start(_ request: ModelRequest, _ sink: any ModelSink, continuationFields: Bool, isProbe: Bool = false) -> ChatCall {
        let redaction = Redaction(apiKey: configuration.apiKey, messages: request.messages, continuing: request.continuing)
        let failures = ChatFailures(
            baseURL: configuration.baseURL, model: configuration.model, names: configuration.names, redaction: redaction)
        let isContinuing = request.continuing.map { !$0.isEmpty } ?? false
        let (habits, key) = (habits, key)
        let endpoint = ChatCall.Endpoint(
            transport: transport, world: world, slots: slots, patience: configuration.firstByteTimeout,
            silence: max(configuration.firstByteTimeout, configuration.idleTimeout), grace: configuration.graceTimeout,
            request: { [self] in outgoing(request, continuationFields: continuationFields) },
            stream: { ChatStream(failures, tools: request.tools.map(\.name), continuing: request.continuing, dropsEcho: !isProbe) },
            adapts: { refusal, failure in
                let known = habits.of(key)
                guard let habit = EndpointHabit.found(in: refusal, failure, of: request, known: known) else { return false }
                habits.note(habit, of: key)
                return true
            },
            failure: { failure, refusal in
                guard isContinuing, !isProbe, let isNamed = EndpointHabit.isPrefixRefused(failure, refusal) else { return failure }
                // Another cause is possible: then the same call shows it, which comes next without the text.
                if isNamed { habits.note(.refusesPrefix, of: key) } else { habits.suspect(.refusesPrefix, of: key, for: request) }
                return .prefixRefused(failure.message)
            },
            succeeded: { if !isContinuing { habits.confirm(.refusesPrefix, of: key, by: request) } },
            busy: failures.busy)
        let call = ChatCall(endpoint, sink)
        call.begin()
        return call
    }

    // MARK: The request

    private func outgoing(_ request: ModelRequest, continuationFields: Bool) -> OutgoingRequest {
        var headers = [(name: "Content-Type", value: "application/json"), (name: "Accept", value: "text/event-stream")]
        if let key = configuration.apiKey { headers.append((name: "Authorization", value: "Bearer " + key)) }
        if let key = request.idempotencyKey { headers.append((name: "Idempotency-Key", value: key)) }
        let body = ChatRequest(configuration: configuration, continuationFields: continuationFields, habits: habits.of(key)).body(request)
        var outgoing = OutgoingRequest(
            method: "POST", url: configuration.baseURL.text + "/chat/completions", headers: headers, body: body.bytes)
        outgoing.idleTimeout = configuration.idleTimeout
        outgoing.firstByteTimeout = configuration.firstByteTimeout
        outgoing.decodesContent = true
        return outgoing
    }
}
