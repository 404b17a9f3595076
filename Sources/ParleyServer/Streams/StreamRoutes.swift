internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// The Durable Streams protocol at `/v1/stream/<path>`: creating, describing and removing; appending and reading are beside it.
struct StreamRoutes: Sendable {
    let context: ServerContext

    private static let methods = "GET, HEAD, PUT, POST, DELETE, OPTIONS"

    func handle(_ exchange: Exchange, path: ArraySlice<UInt8>) {
        do throws(Problem) {
            let name = try StreamName(path: path)
            try authorize(name, exchange)
            switch exchange.request.method {
            case "GET": try read(name, exchange)
            case "HEAD": describe(name, exchange)
            case "PUT": try create(name, exchange)
            case "POST": try append(to: name, exchange)
            case "DELETE": try remove(name, exchange)
            case "OPTIONS": exchange.respond(204, [("Allow", StreamRoutes.methods)])
            default: throw .wrongMethod(exchange.request, allow: StreamRoutes.methods)
            }
        } catch {
            exchange.respond(error)
        }
    }

    /// Refuses a request before its body comes, if its head shows that it would be refused: the body of a POST may turn out to be empty.
    ///
    /// - Parameter path: The part behind ``StreamName/prefix``.
    func authorizeBody(_ request: HTTPRequest, _ access: Access, path: ArraySlice<UInt8>) throws(Problem) {
        let name = try StreamName(path: path)
        if request.method == "POST", let agent = name.agent {
            return try AgentAppend.authorizeSome(context, agent, access)
        }
        let mayOnlyClose = request.method == "POST" && AppendRequest.isClosing(request) && request.head.contentLength == nil
        try access.require(mayOnlyClose ? .stop : .append, name.text)
        try refuseReserved(name)
    }

    /// Checks the right that a method needs on a channel. Messages to an agent are checked entry by entry: see ``AgentAppend``.
    private func authorize(_ name: StreamName, _ exchange: Exchange) throws(Problem) {
        switch exchange.request.method {
        case "GET", "HEAD": try exchange.access.require(.read, name.text)
        case "PUT": try exchange.access.require(.append, name.text)
        case "DELETE": try exchange.access.require(.admin, name.text)
        case "POST" where name.agent == nil:
            let closes = AppendRequest.isClosing(exchange.request)
            if closes { try exchange.access.require(.stop, name.text) }
            if !closes || !exchange.request.body.isEmpty { try exchange.access.require(.append, name.text) }
        default: break
        }
    }

    // MARK: Creating

    private func create(_ name: StreamName, _ exchange: Exchange) throws(Problem) {
        let request = exchange.request
        try refuseReserved(name)
        let wanted = try CreateRequest(request)
        // A fork reads its source.
        if let fork = wanted.fork { try exchange.access.require(.read, fork.source) }
        let closes = AppendRequest.isClosing(request)
        let contentType = request.header("Content-Type").flatMap { $0.isEmpty ? nil : $0 }
        var row = ChannelRow(
            name: name.text, contentType: contentType ?? ContentTypeText.bytes, isAgent: false, created: context.channels.world.now)
        var entries: [NewEntry] = []
        if let agent = name.agent {
            try requireKind(agent)
            row = try agentRow(agent, contentType: contentType, closes: closes, wanted)
            guard request.body.isEmpty else {
                throw .bad("unexpected_body", "an agent is created idle: PUT takes no body. POST a message to it.")
            }
        } else {
            row.closure = closes ? ChannelRow.Closure() : nil
            row.lifetime = wanted.lifetime
            guard wanted.fork == nil || request.body.isEmpty || contentType != nil else {
                throw .bad("missing_content_type", "Content-Type is missing; a fork with data of its own needs the source's.")
            }
            entries = try StreamRoutes.entries(of: request.body, json: ContentType.isJSON(row.contentType))
        }
        let (type, channels) = (row.contentType, context.channels)
        var creation = CreateChannel(row, entries)
        (creation.fork, creation.hasContentType) = (wanted.fork, contentType != nil)
        creation.mustBeNew = wanted.mustBeNew
        channels.submit(creation) { result in
            exchange.onLoop {
                switch result {
                case .success(let created):
                    var headers: [HeaderField] = [
                        ("Content-Type", channels.resident(name.text)?.contentType ?? type),
                        (StreamHeader.nextOffset, Offset(created.tail).token),
                        ("Location", StreamRoutes.location(of: request)),
                    ]
                    if created.isClosed { headers.append((StreamHeader.closed, "true")) }
                    exchange.respond(created.isNew ? 201 : 200, headers)
                case .failure(let error): exchange.respond(Problem(error))
                }
            }
        }
    }

    private func agentRow(_ agent: AgentName, contentType: String?, closes: Bool, _ wanted: CreateRequest) throws(Problem) -> ChannelRow {
        guard wanted.fork == nil else {
            throw Problem(
                status: 403, code: "use_agent_fork",
                detail:
                    "an agent is not made by forking a channel: it would have entries but no state. A fork of an agent's channel is a plain channel: give it a name outside agents/."
            )
        }
        guard wanted.lifetime == nil else {
            throw .bad(
                "not_supported", "Stream-TTL and Stream-Expires-At are for plain channels; an agent ends when it is closed or deleted.")
        }
        if let contentType, !ContentType.isJSON(contentType) {
            throw Problem(.mismatch(contentType, ContentTypeText.json))
        }
        guard !closes else {
            throw .bad("not_supported", "Stream-Closed: true; an agent cannot be created closed. POST {\"type\":\"close\"} to end it.")
        }
        return ChannelRow(name: agent.channel, contentType: ContentTypeText.json, isAgent: true, created: context.channels.world.now)
    }

    /// The entries that a body becomes: its JSON messages, or all of it as one.
    static func entries(of body: Bytes, json: Bool) throws(Problem) -> [NewEntry] {
        if body.isEmpty { return [] }
        return json ? try MessageCutter.cut(body).map { NewEntry(data: Bytes(body[$0])) } : [NewEntry(data: body)]
    }

    /// The absolute URL the client used.
    private static func location(of request: HTTPRequest) -> String { ClientURL(request).text + request.path }

    // MARK: Describing

    private func describe(_ name: StreamName, _ exchange: Exchange) {
        context.withChannel(name, exchange) { channel in
            let tail = channel.tail
            guard !tail.isDeleted else { return exchange.respond(Problem(.removed(channel))) }
            var headers: [HeaderField] = [
                ("Content-Type", channel.contentType), (StreamHeader.nextOffset, Offset(tail.head).token), ("Cache-Control", "no-store"),
            ]
            if let seconds = channel.lifetime?.seconds { headers.append((StreamHeader.ttl, String(seconds))) }
            if let end = channel.lifetime?.instant { headers.append((StreamHeader.expiresAt, end.text)) }
            if tail.isClosed { headers.append((StreamHeader.closed, "true")) }
            exchange.respond(200, headers)
        }
    }

    // MARK: Removing

    private func remove(_ name: StreamName, _ exchange: Exchange) throws(Problem) {
        try refuseReserved(name)
        let ifTail = try AppendRequest.ifTail(of: exchange.request)
        let done: @Sendable (Result<Void, ChannelError>) -> Void = { result in
            exchange.onLoop {
                switch result {
                case .success: exchange.respond(204)
                case .failure(let error): exchange.respond(Problem(error))
                }
            }
        }
        if name.agent != nil, let agents = context.agents {
            agents.remove(name.text, ifTail: ifTail, done)
        } else {
            context.channels.submit(DeleteChannel(name.text, ifTail: ifTail), done)
        }
    }

    // MARK: Refusals

    func refuseReserved(_ name: StreamName) throws(Problem) {
        guard name.isReserved else { return }
        throw Problem(
            status: 403, code: "reserved_name", detail: "'\(name.text)' is a reserved name: \(StreamName.reservedText).")
    }

    func requireKind(_ agent: AgentName) throws(Problem) {
        let kinds = context.agents?.kinds ?? []
        guard !kinds.contains(agent.kind) else { return }
        throw Problem(.unknownKind(agent.kind, of: kinds))
    }
}
