internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// The calls of a turn's models that no tool ran for: because the tool is unknown, the arguments are wrong, the call was denied, or the answer was
/// cut.
///
/// Such a call is no step. Its traces are the call in the model's answer, and the result in the request of a later call of the model.
struct CallsNotRun: Projection {
    private typealias Call = (id: String, name: String)

    /// The calls, by the path of the model's step.
    private var asked: [String: (offset: UInt64, calls: [Call])] = [:]
    /// The offsets at which tools began, by the id of the call.
    private var began: [String: [UInt64]] = [:]
    /// The offsets at which a model was told results, and the digests of their content.
    private var told: [(offset: UInt64, digests: [String])] = []

    /// How many later requests are searched for a result: side by side, others may come first.
    private static let requestsMax = 8
    private static let resultMax = 200

    mutating func apply(_ entry: LogEntry) {
        guard entry.kind == .stepStarted || entry.kind == .stepCompleted, let position = entry.position else { return }
        let (offset, body) = (entry.offset, entry.body)
        if let calls = body["tool_calls"]?.array, !calls.isEmpty {
            asked[position.step] = (offset, calls.map { ($0["id"]?.string ?? "", $0["name"]?.string ?? "") })
        }
        if let call = body["request"]?["call"]?.string { began[call, default: []].append(offset) }
        let results = (body["request"]?["parts"]?.array ?? []).filter { $0["role"]?.string == ModelMessage.Role.tool.rawValue }
        if !results.isEmpty { told.append((offset, results.compactMap { $0["sha256"]?.string })) }
    }

    /// The calls by the path of the model's step, each with what the model was told: `{call, name, result}`.
    func members(_ channels: Channels, _ channel: Channel) throws(LogError) -> [String: JSON] {
        var found: [String: JSON] = [:]
        for (path, answer) in asked {
            let missing = answer.calls.filter { call in !(began[call.id] ?? []).contains { $0 > answer.offset } }
            let calls = try missing.isEmpty ? [] : results(of: missing, after: answer.offset, channels, channel)
            if !calls.isEmpty { found[path] = .array(calls) }
        }
        return found
    }

    private func results(
        of calls: [Call], after offset: UInt64, _ channels: Channels, _ channel: Channel
    ) throws(LogError) -> [JSON] {
        var results: [String: String] = [:]
        for request in told.filter({ $0.offset > offset }).prefix(CallsNotRun.requestsMax) where results.count < calls.count {
            for digest in request.digests {
                guard let bytes = try channels.content(digest, of: channel), let result = try? JSON.parse(stored: bytes),
                    let id = result["tool_call_id"]?.string, calls.contains(where: { $0.id == id }), results[id] == nil
                else { continue }
                results[id] = result["text"]?.string ?? ""
            }
        }
        return calls.compactMap { call in
            results[call.id].map { text in
                ["call": .string(call.id), "name": .string(call.name), "result": .string(String(text.prefix(CallsNotRun.resultMax)))]
            }
        }
    }
}
