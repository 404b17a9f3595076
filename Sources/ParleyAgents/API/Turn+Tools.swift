internal import ParleySystem

extension Turn {
    /// Asks `model` to answer `messages`, runs the tools it calls, gives it the results and asks again, until it answers without a call.
    ///
    /// The calls of one answer run side by side, each as a step `tools/<number>/<tool>`; each gets its result, whatever happens: a tool that is not
    /// known, arguments that do not decode, a failure, a refusal and an interruption are results, too, which the model is told. Messages that come
    /// meanwhile join the next request (steer), or take the place of the interrupted answer.
    ///
    /// An answer that was cut at its limit calls nothing: the model is told, and may ask for less; cut again, the turn fails.
    ///
    /// - Parameter rounds: How often the model is asked at most.
    /// - Returns: the last answer.
    /// - Throws: ``Interrupted`` with what the model had written; ``StepFailure`` `tool_loop` after so many rounds, `answer_cut` for a second answer in a
    ///   row that was cut inside its calls; else as ``generate(_:_:_:tools:options:retry:file:line:)``.
    @concurrent public func respond(
        _ name: String, _ model: any Model, _ messages: [ModelMessage], tools: [Tool], options: ModelOptions = ModelOptions(),
        rounds: Int = 24, retry: RetryPolicy = .standard, file: StaticString = #fileID, line: UInt = #line
    ) async throws -> Generation {
        var conversation = messages
        var wasCut = false
        for _ in 0..<rounds {
            let answer = try await generate(
                name, model, conversation, tools: tools, options: options, retry: retry, file: file, line: line)
            conversation.join(answer.joined)
            if let redirection = answer.redirected {
                // The text so far stays part of the conversation.
                conversation += (answer.text.isEmpty ? [] : [.assistant(answer.text)]) + [redirection]
                continue
            }
            guard !answer.toolCalls.isEmpty else { return answer }
            guard answer.finishReason != "length" else {
                if wasCut { throw StepFailure.answerCut(options) }
                wasCut = true
                conversation.append(.assistant(answer.text, calls: answer.toolCalls, returned: answer.returned))
                conversation += answer.toolCalls.map { .result("error: not run. \(StepFailure.answerCut(options).message)", of: $0) }
                continue
            }
            wasCut = false
            let results = try await map("tools", answer.toolCalls) { call, turn in
                try await turn.result(of: call, tools, file: file, line: line)
            }
            conversation.append(.assistant(answer.text, calls: answer.toolCalls, returned: answer.returned))
            conversation += zip(answer.toolCalls, results).map { .result($1.text, of: $0) }
            guard let interruption = results.lazy.compactMap(\.interruption).first else { continue }
            guard let redirection = interruption.redirection else { throw Interrupted(partial: answer.text) }
            conversation.append(.user(redirection, source: interruption.entry))
        }
        throw StepFailure(code: "tool_loop", message: "the model called tools in each of \(rounds) answers", retryable: false)
    }

    private struct ToolResult: Sendable {
        var text: String
        var interruption: Interrupted?
    }

    @concurrent private func result(of call: ToolCall, _ tools: [Tool], file: StaticString, line: UInt) async throws -> ToolResult {
        guard let tool = tools.first(where: { $0.name == call.name }) else {
            return ToolResult(text: "error: there is no tool '\(call.name)'; there are: \(tools.map(\.name).joined(separator: ", "))")
        }
        do {
            let asks = asksApproval(tool)
            let arguments = try ToolArguments.parse(call.arguments, isApproved: asks)
            try tool.check(arguments)
            if asks {
                try await approval(tool.name, at: "approval", of: arguments, until: approvalEnd(tool), file: file, line: line)
            }
            return ToolResult(text: try await run(tool, call, arguments, file: file, line: line).plainText)
        } catch let interruption as Interrupted {
            return ToolResult(text: "interrupted", interruption: interruption)
        } catch let denial as ApprovalDenied {
            return ToolResult(text: "denied by \(denial.by)" + (denial.reason.map { ": \($0)" } ?? ""))
        } catch is ApprovalExpired {
            return ToolResult(text: "not done: nobody approved it in time")
        } catch let failure as StepFailure where failure.code != StepFailure.cancelled.code {
            return ToolResult(text: "error: \(failure.message)")
        }
    }

    /// Whether a person is asked. The present rule counts, also for a turn that began under another one; but a replay repeats what was done already
    /// as it was.
    private func asksApproval(_ tool: Tool) -> Bool {
        if task.recordedKind(scope.path("approval")) == .approval { return true }
        return tool.approval != .none && task.recordedKind(scope.path(tool.name)) != .tool
    }

    private func approvalEnd(_ tool: Tool) -> Timestamp? {
        guard case .required(let expires) = tool.approval else { return task.recordedDue(scope.path("approval")) }
        return expires.map { now.advanced(by: $0) }
    }

    @concurrent private func run(_ tool: Tool, _ call: ToolCall, _ arguments: JSON, file: StaticString, line: UInt) async throws -> JSON {
        let path = try await path(tool.name)
        let channel = channel
        let request = StepRequest(
            path: path, kind: .tool, digest: SHA256.hex(arguments.canonical), source: "\(file):\(line)",
            work: .body(tool.contract, tool.retry),
            details: [JSON.Member("call", .string(call.id)), JSON.Member("arguments", arguments)])
        let code = StepCode.body { step in try await tool.body(arguments, ToolContext(channel: channel, step: step)) }
        return try await perform(request, code)["result"] ?? .null
    }
}

extension StepFailure {
    /// The answer was cut at its limit, inside what it calls.
    fileprivate static func answerCut(_ options: ModelOptions) -> StepFailure {
        let limit = options.maxTokens.map { " of \($0) tokens (max_tokens)" } ?? ""
        return StepFailure(
            code: "answer_cut",
            message:
                "the answer was cut at its limit\(limit), inside the calls of tools. Remedy: call with less at once, or raise max_tokens.",
            retryable: false)
    }
}
