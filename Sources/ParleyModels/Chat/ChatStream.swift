internal import ParleyAgents
internal import ParleyHTTP
internal import ParleySystem

/// Reads the answer to one streaming Chat Completions call: bytes in, events out. It does no I/O and is told the time.
///
/// It gives exactly one `finished` or `failed`, as the last event; whatever comes later is read over.
struct ChatStream: Sendable {
    private enum Phase {
        case head
        case events
        /// Another answer than an event stream: its body tells why.
        case refusal(status: Int, headers: [(name: String, value: String)], body: Bytes)
        case done
    }

    private let failures: ChatFailures
    private var phase = Phase.head
    private var parser = ServerSentEventParser()
    private var toolCalls = ToolCallMerger()
    private var finishReason: String?
    private var sawChoice = false

    /// What is kept of an error's body, which is text for people.
    private static let refusalBytesMax = 64 << 10

    init(_ failures: ChatFailures) { self.failures = failures }

    var isDone: Bool { if case .done = phase { true } else { false } }

    mutating func head(status: Int, headers: [(name: String, value: String)]) {
        // A server that does not say what it sends gets the benefit of the doubt.
        let type = headers.last { $0.name.lowercased() == "content-type" }?.value.lowercased() ?? "text/event-stream"
        let isStream = status == 200 && type.hasPrefix("text/event-stream")
        phase = isStream ? .events : .refusal(status: status, headers: headers, body: [])
    }

    mutating func body(_ bytes: UnsafeRawBufferPointer) -> [ModelEvent] {
        switch phase {
        case .head, .done: return []
        case .refusal(let status, let headers, var body):
            body.append(contentsOf: bytes.prefix(max(0, ChatStream.refusalBytesMax - body.count)))
            phase = .refusal(status: status, headers: headers, body: body)
            return []
        case .events:
            var events: [ServerSentEvent] = []
            var output: [ModelEvent] = []
            do throws(ServerSentEventError) {
                try parser.feed(bytes) { events.append($0) }
                for event in events { read(event, &output) }
            } catch {
                for event in events { read(event, &output) }
                finish(.failed(failures.invalidEvent("is longer than \(parser.bytesMax) bytes")), &output)
            }
            return output
        }
    }

    mutating func end(_ error: OutgoingError?, now: Timestamp) -> [ModelEvent] {
        var output: [ModelEvent] = []
        switch phase {
        case .done: break
        case .head: finish(.failed(error.map(failures.transport) ?? failures.closed), &output)
        case .refusal(let status, let headers, let body):
            finish(.failed(refusal(status: status, headers: headers, body: body, now: now)), &output)
        case .events:
            if error == nil, let last = try? parser.end(), isWhole(last) { read(last, &output) }
            guard !isDone else { break }
            // The reason to finish is the end of the answer. What may be missing then is the usage, which is not worth a second call.
            if let finishReason {
                finish(.finished(reason: finishReason), &output)
            } else {
                finish(.failed(error.map(failures.transport) ?? failures.closed), &output)
            }
        }
        return output
    }

    /// Whether an event that the connection's end cut off came through in full.
    private func isWhole(_ event: ServerSentEvent) -> Bool {
        event.data.elementsEqual("[DONE]".utf8) || (try? JSON.parse(event.data)) != nil
    }

    private func refusal(status: Int, headers: [(name: String, value: String)], body: Bytes, now: Timestamp) -> StepFailure {
        guard status == 200 else { return failures.http(status: status, headers: headers, body: body, now: now) }
        if let object = try? JSON.parse(body), object["error"] != nil { return failures.inStream(object) }
        return failures.notAStream(contentType: headers.last { $0.name.lowercased() == "content-type" }?.value ?? "")
    }

    // MARK: Events

    private mutating func read(_ event: ServerSentEvent, _ output: inout [ModelEvent]) {
        guard !isDone, !event.data.isEmpty else { return }
        if event.data.elementsEqual("[DONE]".utf8) {
            // Without any choice there was no answer, whatever the upstream says.
            guard sawChoice else { return finish(.failed(failures.closed), &output) }
            return finish(.finished(reason: finishReason ?? "stop"), &output)
        }
        guard let chunk = try? JSON.parse(event.data), chunk.members != nil else {
            return finish(.failed(failures.invalidEvent("is not a JSON object")), &output)
        }
        if let error = chunk["error"], error != .null { return finish(.failed(failures.inStream(chunk)), &output) }
        if let choice = chunk["choices"]?.array?.first(where: { ($0["index"]?.integer ?? 0) == 0 }) { read(choice: choice, &output) }
        if let usage = usage(in: chunk) { output.append(.usage(usage)) }
    }

    private mutating func read(choice: JSON, _ output: inout [ModelEvent]) {
        sawChoice = true
        let delta = choice["delta"] ?? .null
        if let text = delta["reasoning_content"]?.string ?? delta["reasoning"]?.string, !text.isEmpty { output.append(.reasoning(text)) }
        if let text = delta["content"]?.string, !text.isEmpty { output.append(.text(text)) }
        for piece in delta["tool_calls"]?.array ?? [] {
            if let event = toolCalls.merge(piece) { output.append(event) }
        }
        if let reason = choice["finish_reason"]?.string, !reason.isEmpty { finishReason = reason }
    }

    private func usage(in chunk: JSON) -> ModelUsage? {
        guard let usage = chunk["usage"], usage.members != nil else { return nil }
        return ModelUsage(
            inputTokens: Int(usage["prompt_tokens"]?.integer ?? 0), outputTokens: Int(usage["completion_tokens"]?.integer ?? 0))
    }

    private mutating func finish(_ event: ModelEvent, _ output: inout [ModelEvent]) {
        phase = .done
        output.append(event)
    }
}
