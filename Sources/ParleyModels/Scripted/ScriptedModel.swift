public import ParleyAgents
package import ParleySystem
internal import Synchronization

/// A model that needs no network: its answer follows from the last user message and a seed.
///
/// It serves tests, simulations and people who try Parley without a key. It streams at a steady rate, reports usage, obeys `max_tokens` and `stop`,
/// and continues from a prefix as real models do. Its outside input comes from a ``World``, so it runs in a simulation.
///
/// Some lines of a user message are commands: a message that begins with `say: X` is answered with X, with `fail: CODE` by a failure of that code;
/// each line `call: TOOL {arguments}` calls a tool that it is offered, and once the results are there the answer names them. If a tool is not
/// offered, the answer says so.
public final class ScriptedModel: Model {
    /// How it answers; as text: `scripted:tokens=300,rate=50,seed=7,continues=prefix`.
    package struct Options: Sendable, Equatable {
        /// The length of an answer, unless a command or `max_tokens` makes it another.
        package var tokens = 120
        /// Tokens a second; 0 is as fast as possible.
        package var rate = 40
        package var seed: UInt64 = 1
        package var continues = Continuation.prefix

        package init() {}
    }

    public let name: String
    public let continues: Continuation

    private let options: Options
    private let world: any World

    package init(_ options: Options = Options(), name: String = "scripted:", world: any World) {
        (self.options, self.name, self.world) = (options, name, world)
        continues = options.continues
    }

    public func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        // `auto` means a model that continues, as the probe finds too.
        let answer = ScriptedAnswer(to: request, options, continuesPrefix: continues != .no)
        let call = ScriptedCall(answer, rate: options.rate, sink, world)
        call.begin()
        return call
    }

    public func probeContinuation(_ answer: @escaping @Sendable (Bool) -> Void) { answer(continues != .no) }
}

/// The answer of the scripted model, before it is given.
package struct ScriptedAnswer: Sendable, Equatable {
    package var tokens: [String] = []
    package var calls: [ToolCall] = []
    package var inputTokens = 0
    package var finishReason = "stop"
    package var failure: StepFailure?

    /// Failures of these codes are tried again; `fail:` gives any code there is.
    private static let retryableCodes: Set = [
        "model_rate_limited", "model_unavailable", "model_unreachable", "model_timeout", "upstream_closed",
    ]

    package init(to request: ModelRequest, _ options: ScriptedModel.Options, continuesPrefix: Bool = true) {
        var prompt = request.messages.last { $0.role == .user }?.text ?? ""
        // The last user's message is followed by the results of the calls that it asked for.
        let results = request.messages.reversed().prefix { $0.role != .user }.filter { $0.role == .tool }.reversed()
        let unknown: String?
        (prompt, calls, unknown) = ScriptedAnswer.calls(in: prompt, of: request)
        if !results.isEmpty {
            calls = []
            prompt = "say: The result: \(results.map(\.text).joined(separator: "; "))."
        } else if let unknown {
            let names = request.tools.map(\.name).joined(separator: ", ")
            prompt = "say: There is no tool \(unknown); this agent has \(names.isEmpty ? "none" : names)."
        } else if !calls.isEmpty && prompt.allSatisfy(\.isWhitespace) {
            prompt = "say:"
        }
        if let code = ScriptedAnswer.argument(of: "fail:", in: prompt) {
            failure = StepFailure(
                code: code, message: "the scripted model fails because the message asked for it.",
                retryable: ScriptedAnswer.retryableCodes.contains(code))
            return
        }
        var text =
            ScriptedAnswer.argument(of: "say:", in: prompt)
            ?? ScriptedText.write(about: prompt, seed: ScriptedAnswer.seed(options, request.options), tokens: options.tokens)
        for stop in request.options.stop ?? [] where !stop.isEmpty {
            if let range = text.firstRange(of: stop) { text = String(text[..<range.lowerBound]) }
        }
        if continuesPrefix, let prefix = request.continuing { text = ScriptedAnswer.rest(of: text, after: prefix) }

        let all = ScriptedText.tokens(of: text)
        let count = min(all.count, max(0, request.options.maxTokens ?? .max))
        tokens = Array(all[..<count])
        finishReason = count < all.count ? "length" : calls.isEmpty ? "stop" : "tool_calls"
        let input = request.messages.map(\.text) + [request.continuing ?? ""]
        inputTokens = input.reduce(0) { $0 + ScriptedText.tokenCount(of: $1) }
    }

    package var usage: ModelUsage { ModelUsage(inputTokens: inputTokens, outputTokens: tokens.count) }

    /// The part of `text` after `prefix`, where white space at the end of the prefix is not counted: a real model sends it again, because it belongs
    /// to the token after it. A prefix from elsewhere is answered with nothing more: it counts as a finished answer.
    static func rest(of text: String, after prefix: String) -> String {
        var known = Bytes(prefix.utf8)[...]
        while let last = known.last, [0x20, 0x09, 0x0A, 0x0D].contains(last) { known.removeLast() }
        // Bytes, because strings are compared by whole characters, and a prefix may end inside one.
        let text = Bytes(text.utf8)
        return text.starts(with: known) ? Bytes(text[known.count...]).text : ""
    }

    private static func seed(_ options: ScriptedModel.Options, _ request: ModelOptions) -> UInt64 {
        options.seed &+ UInt64(bitPattern: Int64(request.seed ?? 0)) &* 0x9E37_79B9_7F4A_7C15
    }

    /// The lines that call tools, and the rest of the prompt; and the first tool that is called and not offered.
    private static func calls(in prompt: String, of request: ModelRequest) -> (rest: String, calls: [ToolCall], unknown: String?) {
        var (rest, calls, unknown): ([Substring], [ToolCall], String?) = ([], [], nil)
        for line in prompt.split(separator: "\n", omittingEmptySubsequences: false) {
            let words = line.drop(while: \.isWhitespace)
            let call = words.dropFirst("call:".count).drop(while: \.isWhitespace)
            let name = call.prefix { !$0.isWhitespace }
            guard words.hasPrefix("call:"), !name.isEmpty else {
                rest.append(line)
                continue
            }
            guard request.tools.contains(where: { $0.name == name }) else {
                unknown = unknown ?? String(name)
                continue
            }
            let arguments = call.dropFirst(name.count).drop(while: \.isWhitespace)
            calls.append(ToolCall(id: "call_\(calls.count + 1)", name: String(name), arguments: String(arguments)))
        }
        return (calls.isEmpty ? prompt : rest.joined(separator: "\n"), calls, unknown)
    }

    private static func argument(of command: String, in prompt: String) -> String? {
        let line = prompt.drop(while: \.isWhitespace)
        guard line.hasPrefix(command) else { return nil }
        let argument = line.dropFirst(command.count).drop(while: \.isWhitespace)
        return command == "say:" ? String(argument) : String(argument.prefix { !$0.isWhitespace })
    }
}

/// An answer being said: each token at its time, counted from the start so that late timers do not add up.
private final class ScriptedCall: ModelCall {
    private struct State {
        var isCancelled = false
        var scheduled: (any Scheduled)?
    }

    private let answer: ScriptedAnswer
    private let rate: Int
    private let sink: any ModelSink
    private let world: any World
    private let lane: UInt64
    private let started: Timestamp
    private let state = Mutex(State())

    /// The number of tokens between two chances to cancel, where nothing waits for the clock.
    private static let burst = 8

    init(_ answer: ScriptedAnswer, rate: Int, _ sink: any ModelSink, _ world: any World) {
        (self.answer, self.rate, self.sink, self.world) = (answer, rate, sink, world)
        (lane, started) = (world.random(), world.now)
    }

    func begin() { schedule(from: 0) }

    func cancel() {
        let scheduled = state.withLock { state in
            state.isCancelled = true
            return state.scheduled.take()
        }
        scheduled?.cancel()
    }

    private var isCancelled: Bool { state.withLock { $0.isCancelled } }

    private func schedule(from index: Int) {
        guard rate > 0, index < answer.tokens.count else { return world.perform(lane: lane) { [self] in say(from: index) } }
        let scheduled = world.schedule(at: due(index)) { [self] in say(from: index) }
        let isLate = state.withLock {
            // Either `cancel` finds the timer here, or this finds that `cancel` came first.
            $0.scheduled = scheduled
            return $0.isCancelled
        }
        if isLate { scheduled.cancel() }
    }

    private func due(_ index: Int) -> Timestamp { started.advanced(by: .milliseconds((index + 1) * 1_000 / rate)) }

    private func say(from first: Int) {
        var index = first
        while index < answer.tokens.count, rate > 0 ? due(index) <= max(world.now, due(first)) : index < first + ScriptedCall.burst {
            guard !isCancelled else { return }
            sink.received(.text(answer.tokens[index]))
            index += 1
        }
        guard !isCancelled else { return }
        guard index == answer.tokens.count else { return schedule(from: index) }
        end()
    }

    private func end() {
        if let failure = answer.failure { return sink.received(.failed(failure)) }
        for (index, call) in answer.calls.enumerated() {
            sink.received(.toolCall(index: index, id: call.id, name: call.name, arguments: call.arguments))
        }
        sink.received(.usage(answer.usage))
        guard !isCancelled else { return }
        sink.received(.finished(reason: answer.finishReason))
    }
}
