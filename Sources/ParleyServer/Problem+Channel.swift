internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

extension Problem {
    /// A channel's refusal, as the answer that the protocol has for it.
    init(_ error: ChannelError) {
        self.init(status: Problem.status(of: error.code), code: error.code, detail: Problem.detail(of: error))
        for detail in error.details { extra.append(.init(detail.name, detail.value)) }
        headers = Problem.headers(of: error)
    }

    /// An agent is created by its first message, where a channel needs a request of its own.
    private static func detail(of error: ChannelError) -> String {
        let beginning = "there is no channel 'agents/"
        guard error.code == "channel_not_found", error.message.hasPrefix(beginning) else { return error.message }
        let agent = error.message.dropFirst(beginning.count).prefix { $0 != "'" }
        return "there is no agent '\(agent)'. Check the name, or create the agent with a message: POST /v1/agents/\(agent)."
    }

    private static func status(of code: String) -> Int {
        switch code {
        case "invalid_entry", "unknown_entry_type", "producer_epoch_sequence", "invalid_fork_offset": 400
        case "producer_fenced": 403
        case "channel_not_found", "unknown_agent", "unknown_agent_kind", "turn_not_found", "step_not_found", "fork_source_not_found": 404
        case "fork_source_gone", "fork_too_deep", "content_type_mismatch", "sequence_conflict", "producer_gap", "channel_closed",
            "channel_exists":
            409
        case "agent_deleted", "channel_gone": 410
        case "tail_moved", "precondition_failed": 412
        case "entry_too_large": 413
        case "idempotency_key_reused": 422
        case "overloaded", "log_closed", "partition_unavailable", "channel_elsewhere", "channel_changed": 503
        case "outcome_unknown": 504
        case "inbox_full": 429
        case "too_many_channels": 507
        default: 500
        }
    }

    /// The protocol says in header fields what a program needs to continue.
    private static func headers(of error: ChannelError) -> [HeaderField] {
        func field(_ name: String, _ detail: String) -> [HeaderField] {
            switch error[detail: detail] {
            case .string(let text): [(name, text)]
            case .integer(let number): [(name, String(number))]
            default: []
            }
        }
        switch error.code {
        case "channel_closed": return [(StreamHeader.closed, "true")] + field(StreamHeader.nextOffset, "tail")
        case "tail_moved": return field(StreamHeader.nextOffset, "tail")
        case "producer_fenced": return field(StreamHeader.producerEpoch, "producer_epoch")
        case "producer_gap":
            return field(StreamHeader.producerExpectedSequence, "expected_seq")
                + field(StreamHeader.producerReceivedSequence, "received_seq")
        case "overloaded", "log_closed", "inbox_full", "partition_unavailable", "channel_elsewhere", "channel_changed":
            return [("Retry-After", "1")]
        default: return []
        }
    }

    static func overloaded(_ detail: String) -> Problem {
        Problem(status: 503, code: "overloaded", detail: "\(detail). Try again later.", headers: [("Retry-After", "1")])
    }

    static func beyondTail(_ offset: Offset, _ head: UInt64) -> Problem {
        .bad(
            "offset_beyond_tail",
            "offset is \(offset), the tail is \(Offset(head)): it was not given out for this channel. Read from -1.")
    }

    static func bad(_ code: String, _ detail: String) -> Problem { Problem(status: 400, code: code, detail: detail) }

    /// 405 `method_not_allowed`, or 501 `unsupported_method` where there is no such method.
    static func wrongMethod(_ request: HTTPRequest, allow: String) -> Problem {
        guard request.hasKnownMethod else {
            return Problem(
                status: 501, code: "unsupported_method", detail: "\(request.method) is no method that the server knows; expected \(allow).")
        }
        return Problem(
            status: 405, code: "method_not_allowed", detail: "\(request.method) does not apply here; expected \(allow).",
            headers: [("Allow", allow)])
    }
}

extension ChannelError {
    /// An agent that was never named, and a request that creates none.
    static func unknownAgent(_ agent: AgentName) -> ChannelError {
        ChannelError(
            "unknown_agent",
            "there is no agent '\(agent.kind)/\(agent.id)', and with If-Match: * none is created. Check the name, or create the agent: POST it a 'message', or PUT /v1/stream/\(agent.channel).",
            [("agent", .string(agent.channel))])
    }

    /// An agent whose kind this server does not have.
    static func unknownKind(_ kind: String, of kinds: [String]) -> ChannelError {
        ChannelError(
            "unknown_agent_kind",
            "there is no agent kind '\(kind)'; \(kinds.isEmpty ? "this server has none" : "expected one of \(kinds.joined(separator: ", "))").",
            [("kinds", .array(kinds.map { .string($0) }))])
    }
}
