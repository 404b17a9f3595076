internal import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

extension SocketSession {
    func perform(_ request: SocketRequest) throws(Problem) {
        switch request.operation {
        case .follow(let channel, let start, let view):
            let name = try StreamName(channel)
            try access.require(.read, name.text)
            let subscription = FollowedChannel(try newReference(request.reference!), name, start, view, self)
            try hold(subscription, [name.text])
            subscription.begin()
        case .tree(let channel, let cursor, let view):
            let name = try StreamName(channel)
            try access.require(.read, name.text)
            let tree = FollowedTree(try newReference(request.reference!), try places(cursor, root: name), view, self)
            try hold(tree, tree.channels)
            tree.begin()
        case .unfollow: try unfollow(request.reference!)
        case .append(let channel, let body, let key): try append(request.reference!, try StreamName(channel), body, key)
        case .ephemeral(let channel, let event): try deliver(request.reference, try StreamName(channel), event)
        }
    }

    // MARK: Following

    private func newReference(_ reference: Int64) throws(Problem) -> Int64 {
        guard subscriptions[reference] == nil else {
            throw Problem(
                status: 409, code: "ref_in_use", detail: "ref \(reference) follows something already; unfollow it, or choose another one.")
        }
        return reference
    }

    private func hold(_ subscription: SocketSubscription, _ channels: [String]) throws(Problem) {
        try hold(channels)
        subscriptions[subscription.reference] = subscription
    }

    private func places(_ text: String?, root: StreamName) throws(Problem) -> [TreeCursor.Place] {
        guard let text else { return [TreeCursor.Place(channel: root.text, offset: 0)] }
        guard let cursor = TreeCursor(text) else {
            throw .bad("invalid_cursor", "cursor is not from this server; expected one that it gave out, or none to read from the start.")
        }
        guard cursor.places[0].channel == root.text else {
            throw .bad("invalid_cursor", "cursor is one of '\(cursor.places[0].channel)'; expected one of channel '\(root.text)'.")
        }
        return cursor.places
    }

    private func unfollow(_ reference: Int64) throws(Problem) {
        guard let subscription = subscriptions[reference] else {
            throw Problem(status: 404, code: "unknown_ref", detail: "ref \(reference) follows nothing on this connection.")
        }
        subscription.forget()
        send(["ref": .integer(reference), "ended": true, "reason": "unfollowed"])
    }

    // MARK: Appending

    private func append(_ reference: Int64, _ name: StreamName, _ body: Bytes, _ key: String?) throws(Problem) {
        let routes = StreamRoutes(context: context)
        try routes.refuseReserved(name)
        let head = AppendRequest(idempotencyKey: key)
        let done: @Sendable (Result<Appended, ChannelError>) -> Void = { result in
            self.loop.execute { self.appended(reference, result) }
        }
        if let agent = name.agent {
            let append = try AgentAppend(context: context, agent: agent, head: head, body: body, by: access)
            operationBegan()
            return append.submit { done($0.map(\.appended)) }
        }
        try access.require(.append, name.text)
        let entries = try StreamRoutes.entries(of: body, json: true)
        guard !entries.isEmpty else { throw .bad("empty_array", "entries is an empty array; expected at least one message.") }
        var append = Append(to: name.text, entries)
        append.contentType = head.contentType
        append.idempotency = head.idempotency(of: body)
        operationBegan()
        context.channels.submit(append, done)
    }

    private func appended(_ reference: Int64, _ result: Result<Appended, ChannelError>) {
        switch result {
        case .failure(let error): refuse(reference, Problem(error))
        case .success(let appended):
            send(
                .compact(
                    ("ref", .integer(reference)), ("ok", true), ("offsets", .array(appended.offsets.map { .string(Offset($0).token) })),
                    ("replayed", appended.isReplay ? true : nil)))
        }
        operationEnded()
    }

    // MARK: Telling

    private func deliver(_ reference: Int64?, _ name: StreamName, _ event: EphemeralEvent) throws(Problem) {
        guard ephemeralLimit.take(loop.now) else {
            throw Problem(
                status: 429, code: "rate_limited",
                detail:
                    "more than \(context.configuration.ephemeralPerSecond) ephemeral events a second; expected fewer. Send only the newest.",
                headers: [("Retry-After", "1")])
        }
        try access.require(.append, name.text)
        operationBegan()
        context.find(name, on: loop) { [self] result in
            switch result {
            case .failure(let error): refuse(reference, Problem(error))
            case .success(let channel) where channel.tail.isDeleted: refuse(reference, Problem(.removed(channel)))
            case .success where context.authenticator.problem(with: access) != nil: break  // The socket ends, and says so.
            case .success:
                let bytes = event.json(by: access.name, at: context.channels.world.now)
                let isDelivered = context.deliver(EphemeralDelivery(bytes, channel: name.text))
                if !isDelivered {
                    refuse(reference, .overloaded("too many ephemeral events are on their way"))
                } else if let reference {
                    send(["ref": .integer(reference), "ok": true])
                }
            }
            operationEnded()
        }
    }
}
