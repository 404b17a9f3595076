internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleyLog
internal import ParleySystem

/// The records of an agent in the log, at `/v1/agents/<kind>/<id>/trace`, `.../audit`, `.../request`, `.../state` and `.../definition`.
///
/// It is read on the read pool, and needs no agent in memory, nor its kind.
struct AgentRecords: Sendable {
    let context: ServerContext

    enum Record: String, Sendable, CaseIterable {
        case trace, audit, request, state, definition

        /// The parameters of its query.
        var parameters: [String] {
            switch self {
            case .trace: ["turn", "limit", "before"]
            case .audit: ["by", "type", "since", "until", "limit", "before"]
            case .request: ["step"]
            case .state, .definition: []
            }
        }
    }

    /// The agent and the requested record; `nil` when the path is none of these.
    static func split(_ path: ArraySlice<UInt8>) -> (AgentName, Record)? {
        guard let slash = path.lastIndex(of: UInt8(ascii: "/")),
            let record = Record(rawValue: String(decoding: path[(slash + 1)...], as: UTF8.self)),
            let text = PercentEncoding.decode(path[..<slash])
        else { return nil }
        return AgentName(channel: "agents" + text).map { ($0, record) }
    }

    /// The problem with a path that names an agent and a record that does not exist; `nil` for any other path.
    static func missing(_ path: ArraySlice<UInt8>) -> String? {
        guard let slash = path.lastIndex(of: UInt8(ascii: "/")), let text = PercentEncoding.decode(path[..<slash]),
            let agent = AgentName(channel: "agents" + text)
        else { return nil }
        let word = String(decoding: path[(slash + 1)...].prefix(32), as: UTF8.self)
        let records = Record.allCases.map(\.rawValue)
        let meant = Suggestion.closest(to: word, in: records).map { " Did you mean \($0)?" } ?? ""
        return "\(agent.channel) has no '\(word)'; expected \(records.joined(separator: ", ")), or nothing behind the name.\(meant)"
    }

    func handle(_ exchange: Exchange, _ agent: AgentName, _ record: Record) throws(Problem) {
        let method = exchange.request.method
        guard method == "GET" || method == "HEAD" else { throw .wrongMethod(exchange.request, allow: "GET, HEAD, OPTIONS") }
        try exchange.request.requireParameters(among: record.parameters)
        switch record {
        case .trace:
            let query = try TraceQuery(exchange.request)
            answer(agent, exchange) { channels, channel throws(ChannelError) in try AgentTrace(channels, channel).answer(query) }
        case .audit:
            let query = try AuditQuery(exchange.request)
            answer(agent, exchange) { channels, channel throws(ChannelError) in try AgentAudit(channels, channel).answer(query) }
        case .request:
            guard let step = try exchange.request.offset("step") else {
                throw .bad(
                    "invalid_step", "step is missing; expected the offset of a model call's step.started: an attempt of the trace has it.")
            }
            answer(agent, exchange) { channels, channel throws(ChannelError) in try AgentRequest(channels, channel).answer(step) }
        case .state: answer(agent, exchange) { channels, channel throws(ChannelError) in try AgentRecords.state(channels, channel) }
        case .definition:
            let agents = context.agents
            answer(agent, exchange) { _, channel throws(ChannelError) in
                do throws(LogError) { return try agents?.definition(of: channel) ?? .null } catch { throw ChannelError(error) }
            }
        }
    }

    /// `{agent, state, offset}`: the state that the last completed turn that changed it has saved, with the offset of its end; `null` for an agent
    /// without state.
    private static func state(_ channels: Channels, _ channel: Channel) throws(ChannelError) -> JSON {
        do throws(LogError) {
            let row = try channels.log.first(.states, from: channel.id.key, to: channel.id.keyEnd, reversed: true)
            return [
                "agent": .string(channel.name), "state": row.flatMap { try? JSON.parse($0.value) } ?? .null,
                "offset": row.map { .string(Offset($0.key.readBigEndian(at: 10)).token) } ?? .null,
            ]
        } catch {
            throw ChannelError(error)
        }
    }

    private func answer(
        _ agent: AgentName, _ exchange: Exchange, _ read: @escaping @Sendable (Channels, Channel) throws(ChannelError) -> JSON
    ) {
        context.withChannel(StreamName(agent: agent), exchange) { channel in
            let channels = context.channels
            context.readLarge(for: exchange, weight: \.count) { isShort throws(ChannelError) in
                if isShort { return nil }
                let body = try read(channels, channel).bytes
                // Read in part after it was removed, it might hold less than there was.
                if channel.tail.isDeleted { throw .deleted(channel.name) }
                return body
            } then: { body, room in
                exchange.respond(200, [("Content-Type", ContentTypeText.json), ("Cache-Control", "private, no-store")], body, in: room)
            }
        }
    }
}

extension TraceQuery {
    /// - Throws: 400 `invalid_turn`, `invalid_before`, `invalid_limit` or `conflicting_parameters`.
    fileprivate init(_ request: HTTPRequest) throws(Problem) {
        self.init()
        turn = try request.offset("turn")
        before = try request.offset("before")
        limit = try request.limit(TraceQuery.limitDefault, max: TraceQuery.limitMax)
        if turn != nil, before != nil {
            throw .bad("conflicting_parameters", "turn and before are both given; expected turn for one turn, or before for a page.")
        }
    }
}

extension AuditQuery {
    /// - Throws: 400 `invalid_type`, `invalid_since`, `invalid_until`, `invalid_before` or `invalid_limit`.
    fileprivate init(_ request: HTTPRequest) throws(Problem) {
        self.init()
        by = request.queryValue("by")
        types = try AuditQuery.types(request.queryValue("type"))
        since = try request.instant("since")
        until = try request.instant("until")
        before = try request.offset("before")
        limit = try request.limit(AuditQuery.limitDefault, max: AuditQuery.limitMax)
    }

    private static func types(_ text: String?) throws(Problem) -> Set<String> {
        guard let text else { return [] }
        let types = text.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        if let unknown = types.first(where: { !allTypes.contains($0) }) {
            throw .bad("invalid_type", "type is '\(unknown)'; expected one or more of \(allTypes.joined(separator: ",")).")
        }
        return Set(types)
    }
}

extension HTTPRequest {
    fileprivate func offset(_ name: String) throws(Problem) -> UInt64? {
        guard let text = queryValue(name) else { return nil }
        guard let offset = Offset(token: text) else {
            throw .bad("invalid_\(name)", "\(name) is '\(text)'; expected an offset: 16 hexadecimal digits as this server gives them out.")
        }
        return offset.value
    }

    fileprivate func instant(_ name: String) throws(Problem) -> Timestamp? {
        guard let text = queryValue(name) else { return nil }
        guard let instant = Timestamp(text) else {
            throw .bad("invalid_\(name)", "\(name) is '\(text)'; expected an instant such as 2026-01-31T09:30:00Z (RFC 3339).")
        }
        return instant
    }
}
