internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// The agents at `/v1/agents` and `/v1/agents/<kind>/<id>`: list, status, append, remove.
struct AgentRoutes: Sendable {
    let context: ServerContext

    private var records: AgentRecords { AgentRecords(context: context) }

    static let prefix = "/v1/agents"
    private static let listMax = 1_000
    private static let listDefault = 100
    private static let waitSecondsMax: Int64 = 60
    /// The kinds that begin a turn, or join one.
    private static let waitable: Set<EntryKind> = [.message, .steer, .interrupt]

    /// - Parameter path: The part behind ``prefix``.
    func handle(_ exchange: Exchange, path: ArraySlice<UInt8>) {
        do throws(Problem) {
            if path.isEmpty { return try list(exchange) }
            if let (agent, record) = AgentRecords.split(path) {
                try exchange.access.require(.read, agent.channel)
                return try records.handle(exchange, agent, record)
            }
            let agent = try agent(path)
            try exchange.request.requireParameters(among: [])
            switch exchange.request.method {
            case "GET", "HEAD":
                try exchange.access.require(.read, agent.channel)
                status(agent, exchange)
            case "POST": try append(to: agent, exchange)
            case "DELETE":
                try exchange.access.require(.admin, agent.channel)
                try remove(agent, exchange)
            default: throw .wrongMethod(exchange.request, allow: "GET, HEAD, POST, DELETE, OPTIONS")
            }
        } catch {
            exchange.respond(error)
        }
    }

    /// Refuses a request before its body comes, if its head shows that it would be refused.
    ///
    /// - Parameter path: The part behind ``prefix``.
    func authorizeBody(_ request: HTTPRequest, _ access: Access, path: ArraySlice<UInt8>) throws(Problem) {
        // These take no body, and say so.
        if path.isEmpty || AgentRecords.split(path) != nil { return }
        let agent = try agent(path)
        guard request.method == "POST" else { throw .wrongMethod(request, allow: "GET, HEAD, POST, DELETE, OPTIONS") }
        try AgentAppend.authorizeSome(context, agent, access)
    }

    private func agent(_ path: ArraySlice<UInt8>) throws(Problem) -> AgentName {
        if let text = PercentEncoding.decode(path), let agent = AgentName(channel: "agents" + text) {
            return agent
        }
        throw Problem(
            status: 404, code: "route_not_found",
            detail: AgentRecords.missing(path) ?? "expected /v1/agents/<kind>/<id>, each 1 to 128 characters of A-Z a-z 0-9 . _ ~ -.")
    }

    // MARK: Looking

    private func list(_ exchange: Exchange) throws(Problem) {
        let request = exchange.request
        guard request.method == "GET" || request.method == "HEAD" else { throw .wrongMethod(request, allow: "GET, HEAD, OPTIONS") }
        try request.requireParameters(among: ["kind", "state", "limit", "after", "details", "counts"])
        let limit = try request.limit(AgentRoutes.listDefault, max: AgentRoutes.listMax)
        let state = request.queryValue("state")
        let states = AgentStatus.allCases.map(\.name)
        if let state, !states.contains(state) {
            throw .bad("invalid_state", "state is '\(state)'; expected one of \(states.joined(separator: ", ")).")
        }
        guard let agents = context.agents else { return exchange.respond(200, json: ["agents": []]) }
        let access = exchange.access
        var query = AgentListQuery()
        (query.kind, query.state, query.limit) = (request.queryValue("kind"), state, limit)
        query.after = request.queryValue("after")
        query.hasDetails = try AgentRoutes.flag("details", request)
        query.hasCounts = try AgentRoutes.flag("counts", request)
        query.isShown = { access.may(.read, $0) }
        agents.list(query) { [context] found in
            context.answer(exchange) { exchange.respond(200, json: found) }
        }
    }

    private static func flag(_ name: String, _ request: HTTPRequest) throws(Problem) -> Bool {
        switch request.queryValue(name) {
        case nil, "false": return false
        case "true": return true
        case let text?: throw .bad("invalid_flag", "\(name) is '\(text.prefix(32))'; expected true or false.")
        }
    }

    private func status(_ agent: AgentName, _ exchange: Exchange) {
        guard let agents = context.agents else { return exchange.respond(Problem(.notFound(agent.channel))) }
        agents.status(of: agent.channel) { [context] status in
            context.answer(exchange) {
                if let status {
                    // Nothing continues its turns, or takes its messages, until the kind is served again.
                    let unknown = agents.kinds.contains(agent.kind) ? [] : [JSON.Member("known", false)]
                    return exchange.respond(200, json: .object((status.members ?? []) + unknown))
                }
                // Tells one that was deleted from one that never was.
                context.withChannel(StreamName(agent: agent), exchange) { _ in exchange.respond(Problem(.notFound(agent.channel))) }
            }
        }
    }

    // MARK: Changing

    private func remove(_ agent: AgentName, _ exchange: Exchange) throws(Problem) {
        let ifTail = try AppendRequest.ifTail(of: exchange.request)
        guard let agents = context.agents else { return exchange.respond(Problem(.notFound(agent.channel))) }
        agents.remove(agent.channel, ifTail: ifTail) { result in
            exchange.onLoop {
                switch result {
                case .success: exchange.respond(204)
                case .failure(let error): exchange.respond(Problem(error))
                }
            }
        }
    }

    private func append(to agent: AgentName, _ exchange: Exchange) throws(Problem) {
        let head = try AppendRequest(exchange.request)
        let wait = try AgentRoutes.wait(exchange.request)
        // The answer has the turn's output in it.
        if wait != nil { try exchange.access.require(.read, agent.channel) }
        let append = try AgentAppend(context: context, agent: agent, head: head, body: exchange.request.body, by: exchange.access)
        try exchange.hold(append.entryCount, entriesOf: AgentAppend.entryBytes)
        append.submit { result in
            exchange.onLoop {
                exchange.release()
                switch result {
                case .failure(let error): exchange.respond(Problem(error))
                case .success(let outcome): answer(outcome, wait, head, agent, exchange)
                }
            }
        }
    }

    private func answer(
        _ outcome: AgentAppend.Outcome, _ wait: Duration?, _ head: AppendRequest, _ agent: AgentName, _ exchange: Exchange
    ) {
        var headers: [HeaderField] = [
            ("Location", "/v1/agents/\(agent.kind)/\(agent.id)"), (StreamHeader.nextOffset, Offset(outcome.appended.tail).token),
        ]
        if head.idempotencyKey != nil, outcome.appended.isReplay { headers.append(("Idempotent-Replayed", "true")) }
        guard let wait, !context.isDraining, let agents = context.agents,
            let turn = outcome.entries.last(where: { AgentRoutes.waitable.contains($0.kind) })
        else {
            return exchange.respond(202, headers, jsonText: outcome.json)
        }
        let entries = JSON.array(outcome.entries.map { ["offset": .string($0.offset.token), "id": .string($0.id)] })
        let readers = context.readers(on: exchange.loop)
        TurnWait(exchange, headers + [("Preference-Applied", "wait=\(wait.components.seconds)")], entries: entries, readers)
            .begin(turn.offset, in: agent.channel, agents, for: wait)
    }

    /// The seconds of `Prefer: wait=<seconds>`, at most a minute; other preferences are left alone.
    private static func wait(_ request: HTTPRequest) throws(Problem) -> Duration? {
        for preference in request.headers("Prefer").flatMap({ $0.split(whereSeparator: { $0 == "," || $0 == ";" }) }) {
            let parts = preference.split(separator: "=", maxSplits: 1)
            guard let name = parts.first?.lowercased().filter({ $0 != " " }), name == "wait" else { continue }
            let number = parts.count == 2 ? parts[1].filter { $0 != " " && $0 != "\"" } : ""
            // More digits than fit are a number, too, and more than a minute.
            let isNumber = !number.isEmpty && number.utf8.allSatisfy { (0x30...0x39).contains($0) }
            guard let seconds = Int64(number) ?? (isNumber ? Int64.max : nil), seconds >= 0 else {
                throw .bad(
                    "invalid_prefer",
                    "Prefer is '\(preference)'; expected wait=<seconds>, a whole number; more than \(waitSecondsMax) counts as \(waitSecondsMax)."
                )
            }
            return .seconds(min(seconds, waitSecondsMax))
        }
        return nil
    }
}
