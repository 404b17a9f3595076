internal import FoundationEssentials
internal import ParleyChannels
public import ParleySystem

/// The handling of one message: the program's use of it is journaled, so that it survives the process.
///
/// Ordinary Swift goes around it: `async`, task groups, `throws`. Anything that must not run twice, or is not deterministic, goes into a step.
public struct Turn: Sendable {
    let task: TurnTask
    let scope: Scope
    /// A cancelled turn leaves its steps alone.
    var isShielded = false

    // MARK: Values that are the same on every replay

    /// When the last entry the turn has consumed was committed. Use it instead of the system's clock.
    public var now: Timestamp { task.now }

    /// A random number that derives from the turn's seed. Use it instead of the system's generator.
    public func random() -> UInt64 { scope.random() }

    /// A UUID (version 4) that derives from the turn's seed.
    public func uuid() -> String {
        var bytes = Bytes()
        bytes.append(bigEndian: random())
        bytes.append(bigEndian: random())
        bytes[6] = bytes[6] & 0x0F | 0x40
        bytes[8] = bytes[8] & 0x3F | 0x80
        let hex = Array(hexadecimal(bytes))
        return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { String(hex[$0]) }.joined(separator: "-")
    }

    /// The agent's channel: its name is its address.
    public var channel: String { task.channelName }

    /// The turns before this one that were completed, oldest first, as far back as the agent's memory of the log reaches.
    public var history: [HistoryItem] { task.history }

    /// The turn's own input as a user's message, which the journal refers to instead of repeating it.
    package func input(_ text: String) -> ModelMessage {
        var message = ModelMessage.user(text)
        message.source = Offset(task.turn).token
        return message
    }

    // MARK: Steps

    /// Does `body` once and journals what it gives; a replay returns that without running it.
    ///
    /// The value comes back after an encode-decode round trip, on the first run too. An error that `body` throws is journaled as a ``StepFailure``;
    /// the step is retried by `retry` unless it is a `StepFailure` that is not retryable.
    ///
    /// - Parameters:
    ///   - name: Its name in the journal: 1 to 128 bytes without `/` and `#`. Used again in the same scope it gets a number.
    ///   - contract: The guarantee on its effect outside.
    /// - Throws: ``StepFailure`` once no attempt is left; ``TurnError`` for misuse; ``Passivated`` or ``Fenced`` when the turn has no right to
    ///   run here any more.
    /// - Complexity: two entries in the log, and one sync shared with everything else that commits at that moment.
    @concurrent public func step<Value: Codable & Sendable>(
        _ name: String, _ contract: StepContract = .atLeastOnce, retry: RetryPolicy = .standard, file: StaticString = #fileID,
        line: UInt = #line,
        _ body: @escaping @Sendable (StepContext) async throws -> Value
    ) async throws -> Value {
        let path = try await path(name)
        let request = StepRequest(path: path, kind: .step, source: "\(file):\(line)", work: .body(contract, retry))
        let end = try await perform(request, .body { context in try JSON(encoding: try await body(context)) })
        let result = end["result"] ?? .null
        do { return try result.decode(Value.self) } catch {
            throw StepFailure(
                code: "result_mismatch", message: "the result of step '\(path)' does not decode as \(Value.self): \(result.misfit(error))",
                retryable: false)
        }
    }

    /// Does `body` once, which gives nothing.
    @concurrent public func step(
        _ name: String, _ contract: StepContract = .atLeastOnce, retry: RetryPolicy = .standard, file: StaticString = #fileID,
        line: UInt = #line,
        _ body: @escaping @Sendable (StepContext) async throws -> Void
    ) async throws {
        let path = try await path(name)
        let request = StepRequest(path: path, kind: .step, source: "\(file):\(line)", work: .body(contract, retry))
        _ = try await perform(request, .giving(nothing: body))
    }

    /// Asks `model` to answer `messages`, and streams the answer into the channel as `text` entries.
    ///
    /// Killed in the middle, it continues from the last durable token where the model can, else the answer starts again and supersedes what
    /// readers saw of the first.
    ///
    /// - Throws: ``StepFailure`` with the model's code once no attempt is left, else as ``step(_:_:retry:file:line:_:)``.
    ///
    /// - Parameter tools: The tools it may call: the calls are part of the result, and the program must make them;
    ///   ``respond(_:_:_:tools:options:rounds:retry:file:line:)`` makes them.
    @concurrent public func generate(
        _ name: String, _ model: any Model, _ messages: [ModelMessage], tools: [Tool] = [], options: ModelOptions = ModelOptions(),
        retry: RetryPolicy = .standard, file: StaticString = #fileID, line: UInt = #line
    ) async throws -> Generation {
        let path = try await path(name)
        var request = ModelRequest(
            messages: messages, tools: tools.map(\.definition), options: options,
            idempotencyKey: task.idempotencyKey(path))
        request.identify()
        let step = StepRequest(
            path: path, kind: .model, digest: request.digest(model.name), source: "\(file):\(line)",
            work: .model(ModelTraits(model), request, retry))
        let generation = Generation(journal: try await perform(step, .model(model)))
        if generation.finishReason == "interrupted", generation.redirection == nil { throw Interrupted(partial: generation.text) }
        return generation
    }

    /// Asks `model` to answer `messages`, given one by one.
    @concurrent public func generate(
        _ name: String, _ model: any Model, _ messages: ModelMessage..., options: ModelOptions = ModelOptions(),
        retry: RetryPolicy = .standard,
        file: StaticString = #fileID, line: UInt = #line
    ) async throws -> Generation {
        try await generate(name, model, messages, options: options, retry: retry, file: file, line: line)
    }

    /// Waits, for seconds or for months: the wait is a row in the log, needs no memory, and survives restarts.
    ///
    /// Due while the node was down, it ends once the node is up. Resolution: a millisecond.
    @concurrent public func sleep(_ duration: Duration, name: String = "sleep", file: StaticString = #fileID, line: UInt = #line)
        async throws
    {
        try await sleep(until: try await instant(after: duration)!, name: name, file: file, line: line)
    }

    /// Waits until `instant`.
    @concurrent public func sleep(until instant: Timestamp, name: String = "sleep", file: StaticString = #fileID, line: UInt = #line)
        async throws
    {
        let path = try await path(name)
        _ = try await perform(StepRequest(path: path, kind: .sleep, source: "\(file):\(line)", work: .sleep(until: instant)))
    }

    /// Waits for a `signal` of that name, and returns its data. A signal that came before is kept until a wait takes it.
    ///
    /// - Parameters:
    ///   - match: Members that the signal's data must have, with these values.
    ///   - timeout: How long; `nil` waits for as long as it takes.
    /// - Throws: ``StepFailure`` with code `wait_timeout`.
    @concurrent public func wait(
        for signal: String, match: [String: JSON] = [:], timeout: Duration? = nil, file: StaticString = #fileID, line: UInt = #line
    ) async throws -> JSON {
        let path = try await path(signal)
        let members = match.sorted { $0.key < $1.key }.map { JSON.Member($0.key, $0.value) }
        let work = StepRequest.Work.wait(signal: signal, match: members, until: try await instant(after: timeout))
        let request = StepRequest(
            path: path, kind: .wait, source: "\(file):\(line)", work: work,
            details: members.isEmpty ? [] : [JSON.Member("match", .object(members))])
        return try await perform(request)["result"] ?? .null
    }

    /// Asks a person whether `action` may be done with exactly these arguments, and waits for the answer.
    ///
    /// The answer is bound to the SHA-256 of the arguments' canonical JSON (RFC 8785), is logged with the name of its sender, and counts once.
    ///
    /// - Throws: ``ApprovalDenied`` or, after `expires`, ``ApprovalExpired``; ``StepFailure`` `invalid_arguments` for a number that no double holds,
    ///   such as an identifier of 64 bits: the approver could be shown another one. Give it as a string.
    /// - Returns: the name of the approver.
    @discardableResult
    @concurrent public func approval<Arguments: Encodable>(
        _ action: String, of arguments: Arguments, expires: Duration? = nil, file: StaticString = #fileID, line: UInt = #line
    ) async throws -> String {
        let arguments = try JSON(encoding: arguments)
        try ToolArguments.requireExactNumbers(arguments)
        return try await approval(
            action, at: action, of: arguments, until: try await instant(after: expires), file: file, line: line)
    }

    @discardableResult
    @concurrent func approval(
        _ action: String, at name: String, of arguments: JSON, until: Timestamp?, file: StaticString, line: UInt
    ) async throws -> String {
        let path = try await path(name)
        let request = StepRequest(
            path: path, kind: .approval, digest: SHA256.hex(arguments.canonical), source: "\(file):\(line)",
            work: .approval(action: action, arguments: arguments, until: until))
        return try await perform(request)["result"]?["decided_by"]?.string ?? ""
    }

    /// Publishes `data` on the channel as an `emit` entry.
    public func emit<Value: Encodable>(_ name: String, _ data: Value) throws {
        _ = try scope.claim(name)
        let entry = NewEntry(
            .emit, Position(turn: task.turn), ("name", .string(name)), ("scope", scope.path.isEmpty ? nil : .string(scope.path)),
            ("data", try JSON(encoding: data)))
        try task.emit(Journal.Emission(scope: scope.path, name: name), entry, isShielded: isShielded)
    }

    @concurrent func perform(_ request: StepRequest, _ code: StepCode? = nil) async throws -> JSON {
        let origin = StepRequest.Origin(isShielded: isShielded, isFromOwnTask: !task.knowsCaller)
        return try await task.perform(request.origin == origin ? request : request.with(origin: origin), code, in: scope)
    }

    /// The path of the next step of that name, see ``Scope``.
    @concurrent func path(_ name: String) async throws -> String {
        do { return try scope.next(name) } catch {
            try await task.refuse(error)
            throw error
        }
    }

    /// When a wait of that length ends, by the turn's time.
    @concurrent func instant(after duration: Duration?) async throws -> Timestamp? {
        guard let duration else { return nil }
        do { try task.checkLane() } catch { try await task.refuse(error) }
        return now.advanced(by: duration)
    }

    // MARK: Cancelled turns

    /// Runs `body` in a task of its own that neither a cancel nor an interrupt reaches, and gives what it gives: for what must be finished
    /// once it is begun, and for what there is to do after a cancel.
    ///
    /// In a cancelled turn every other step throws ``StepFailure`` `cancelled`, the ones in flight and all later ones.
    @concurrent public func shielded<Result: Sendable>(
        _ name: String = "shielded", _ body: @escaping @Sendable (Turn) async throws -> Result
    ) async throws -> Result {
        let path = try await path(name)
        var turn = child(path)
        turn.isShielded = true
        return try await Task(executorPreference: task.lane) { [turn] in try await task.child(path) { try await body(turn) } }.value
    }

    /// Registers `body` to run should the turn fail or be cancelled, to undo what the turn has done until then.
    ///
    /// Call it before the step that it undoes, whose effect may have happened even though the step failed; so it must cope with nothing to
    /// undo. Compensations run as steps, the latest first, shielded; then the turn ends. One that fails for good does not keep
    /// the others from running; the turn then fails with `compensation_failed`, which names it.
    public func compensate(
        _ name: String, retry: RetryPolicy = .standard, file: StaticString = #fileID, line: UInt = #line,
        _ body: @escaping @Sendable (StepContext) async throws -> Void
    ) throws {
        let request = StepRequest(
            path: try scope.next(name), kind: .step, source: "\(file):\(line)", work: .body(.atLeastOnce, retry),
            origin: StepRequest.Origin(isShielded: true, isCompensation: true))
        try task.compensate(request, .giving(nothing: body))
    }

    // MARK: Tasks

    /// A scope of its own for a child task: its steps are numbered separately from all others.
    ///
    /// Call it before the task starts; the first task that uses the scope owns it.
    public func scope(_ name: String) throws -> Turn { child(try scope.next(name)) }

    private func child(_ path: String) -> Turn { Turn(task: task, scope: Scope(task, prefix: path + "/"), isShielded: isShielded) }

    /// Runs `body` for all items at once, each in a scope of its own, and returns the results in the order of the items.
    @concurrent public func map<Item: Sendable, Result: Sendable>(
        _ name: String, _ items: [Item], _ body: @escaping @Sendable (Item, Turn) async throws -> Result
    ) async throws -> [Result] {
        let prefix = try await path(name)
        return try await withThrowingTaskGroup(of: (Int, Result).self) { group in
            for (index, item) in items.enumerated() {
                let path = "\(prefix)/\(index)"
                let turn = child(path)
                group.addTask { (index, try await task.child(path) { try await body(item, turn) }) }
            }
            var results: [(Int, Result)] = []
            for try await result in group { results.append(result) }
            return results.sorted { $0.0 < $1.0 }.map(\.1)
        }
    }
}

/// The answer of a model in one step.
public struct Generation: Sendable, Equatable {
    public var text: String
    /// `stop` or `tool_calls` for an answer that is whole, `length` for one that was cut at its limit, `interrupted`.
    public var finishReason: String
    public var usage: ModelUsage?
    /// How many tokens of it had been saved before a crash and were not bought again.
    public var recoveredTokens: Int
    /// The tools that it calls, in its order.
    public var toolCalls: [ToolCall]
    /// What the model's endpoint wants to see again with an answer that has calls: for ``ModelMessage/assistant(_:calls:returned:)``.
    public var returned: JSON?
    /// What people said meanwhile that joined the request, oldest first: part of the conversation from here on.
    public var steers: [String]
    /// The message of the interrupt that stopped the answer, in which case the text is what had come until then.
    public var redirection: String?
    /// ``steers`` and ``redirection`` as messages that name their entries: the log says in which order they belong.
    private(set) var joined: [ModelMessage]
    private(set) var redirected: ModelMessage?

    init(journal: JSON) {
        text = journal["text"]?.string ?? ""
        finishReason = journal["finish_reason"]?.string ?? ""
        usage = journal["usage"].flatMap { try? $0.decode(ModelUsage.self) }
        recoveredTokens = Int(journal["recovered_tokens"]?.integer ?? 0)
        toolCalls = journal["tool_calls"]?.array?.map { ToolCall(journal: $0) } ?? []
        returned = journal["returned"]
        joined = journal["steered"]?.array?.map { .user(steer: $0) } ?? []
        steers = joined.map(\.text)
        redirection = journal["redirection"]?.string
        redirected = redirection.map { .user($0, source: journal["interrupted_by"]?.string) }
    }
}
