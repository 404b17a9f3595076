internal import ParleyChannels
internal import ParleyHTTP
internal import ParleyLog
internal import ParleySystem
internal import ParleyWebhooks

/// Subscriptions at `/v1/stream/__ds/` (PROTOCOL.md, sections 6 and 7).
struct SubscriptionRoutes: Sendable {
    let context: ServerContext

    static let prefix = StreamName.prefix + "__ds/"

    /// Whether a request needs no key: the holder of a wake proves it by the wake's own token, and public keys are public.
    ///
    /// - Parameter path: All of it.
    static func isOpen(_ path: ArraySlice<UInt8>) -> Bool {
        guard path.starts(with: prefix.utf8) else { return false }
        let parts = path.dropFirst(prefix.utf8.count).split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
        if parts.count == 1 { return parts[0].elementsEqual("jwks.json".utf8) }
        return parts.count == 3 && parts[0].elementsEqual("subscriptions".utf8)
            && ["callback", "ack", "release"].contains { parts[2].elementsEqual($0.utf8) }
    }

    /// - Parameter path: The part behind ``prefix``.
    func handle(_ exchange: Exchange, path: ArraySlice<UInt8>) {
        do throws(SubscriptionProblem) {
            guard let service = context.subscriptions else {
                throw SubscriptionProblem(404, "NOT_FOUND", "this server has no subscriptions.")
            }
            let parts = path.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map { Bytes($0).text }
            if parts == ["jwks.json"] { return try keys(exchange, service) }
            guard parts.count >= 2, parts[0] == "subscriptions" else {
                throw SubscriptionProblem(
                    404, "NOT_FOUND",
                    "'__ds/\(parts.joined(separator: "/").prefix(64))' is a reserved name: \(StreamName.reservedText). Below __ds/ there are __ds/subscriptions/<id> and __ds/jwks.json."
                )
            }
            let call = SubscriptionCall(context: context, exchange: exchange, service: service, id: try SubscriptionRoutes.id(parts[1]))
            try route(call, Array(parts.dropFirst(2)))
        } catch {
            exchange.respond(error)
        }
    }

    private func route(_ call: SubscriptionCall, _ rest: [String]) throws(SubscriptionProblem) {
        let method = call.exchange.request.method
        switch (rest.first, method) {
        case (nil, "PUT"): try call.put()
        case (nil, "GET"), (nil, "HEAD"): describe(call)
        case (nil, "DELETE"): call.submit(.delete)
        case (nil, _): throw .wrongMethod(call.exchange.request, allow: "GET, HEAD, PUT, DELETE, OPTIONS")
        case ("streams", "POST") where rest.count == 1: try call.addStreams()
        case ("streams", "DELETE") where rest.count > 1: try call.removeStream(rest.dropFirst().joined(separator: "/"))
        case ("streams", _): throw .wrongMethod(call.exchange.request, allow: rest.count == 1 ? "POST, OPTIONS" : "DELETE, OPTIONS")
        case ("claim", "POST") where rest.count == 1: try call.claim()
        case ("callback", "POST") where rest.count == 1: try call.acknowledge(isCallback: true)
        case ("ack", "POST") where rest.count == 1: try call.acknowledge(isCallback: false)
        case ("release", "POST") where rest.count == 1: try call.release()
        case ("claim", _), ("callback", _), ("ack", _), ("release", _): throw .wrongMethod(call.exchange.request, allow: "POST, OPTIONS")
        default:
            throw SubscriptionProblem(
                404, "NOT_FOUND", "a subscription has streams, claim, ack, release and callback, and nothing called '\(rest[0])'.")
        }
    }

    private static let idBytesMax = 256

    private static func id(_ text: String) throws(SubscriptionProblem) -> String {
        guard let id = PercentEncoding.decode(text), (1...idBytesMax).contains(id.utf8.count),
            !id.utf8.contains(where: { $0 < 0x20 || $0 == 0x7F || $0 == UInt8(ascii: "/") })
        else {
            throw .invalid("the subscription's id is 1 to \(idBytesMax) bytes of UTF-8 without '/' and control characters.")
        }
        return id
    }

    private func keys(_ exchange: Exchange, _ service: SubscriptionDelivery) throws(SubscriptionProblem) {
        let method = exchange.request.method
        guard method == "GET" || method == "HEAD" else { throw .wrongMethod(exchange.request, allow: "GET, HEAD, OPTIONS") }
        exchange.respond(
            200, [("Content-Type", "application/jwk-set+json"), ("Cache-Control", "public, max-age=300")], service.keys.jwks.bytes)
    }

    private func describe(_ call: SubscriptionCall) {
        let (subscriptions, id) = (call.service.subscriptions, call.id)
        context.read(for: call.exchange) { () throws(ChannelError) in
            do throws(LogError) { return try subscriptions.describe(id).map { ($0.subscription, $0.streams) } } catch {
                throw ChannelError(error)
            }
        } then: { (found: (Subscription, [SubscriptionStream])?) in
            guard let found else { return call.exchange.respond(SubscriptionProblem.notFound(id)) }
            call.exchange.respond(200, json: call.json(found.0, found.1))
        }
    }
}

/// One request about a subscription.
struct SubscriptionCall: Sendable {
    let context: ServerContext
    let exchange: Exchange
    let service: SubscriptionDelivery
    let id: String

    private static let acksMax = 10_000
    private static let textBytesMax = 1_024

    // MARK: Requests

    func put() throws(SubscriptionProblem) {
        let configuration = try SubscriptionBody(exchange.request).configuration(allowsLoopback: service.allowsLoopback)
        submit(.put(configuration, root: root))
    }

    func addStreams() throws(SubscriptionProblem) {
        guard let streams = try SubscriptionBody(exchange.request).streams(), !streams.isEmpty else {
            throw .invalid("streams is missing; expected a list of names of streams.")
        }
        submit(.add(streams))
    }

    func removeStream(_ path: String) throws(SubscriptionProblem) { submit(.remove(try SubscriptionBody.name(encoded: path))) }

    func claim() throws(SubscriptionProblem) {
        let worker = try SubscriptionBody(exchange.request).text("worker", bytesMax: SubscriptionCall.textBytesMax)
        submit(.claim(worker: worker))
    }

    func acknowledge(isCallback: Bool) throws(SubscriptionProblem) {
        let body = try SubscriptionBody(exchange.request)
        let acks = try body.acks(max: SubscriptionCall.acksMax)
        submit(.acknowledge(try proof(body), acks, isDone: try body.flag("done"), isCallback: isCallback))
    }

    func release() throws(SubscriptionProblem) { submit(.release(try proof(try SubscriptionBody(exchange.request)))) }

    private func proof(_ body: SubscriptionBody) throws(SubscriptionProblem) -> SubscriptionProof {
        let words = (exchange.request.header("Authorization") ?? "").split(separator: " ")
        guard words.count == 2, words[0].lowercased() == "bearer" else {
            throw SubscriptionProblem(401, "TOKEN_INVALID", "Authorization is missing; expected the wake's token as Bearer.")
        }
        return SubscriptionProof(
            token: String(words[1]), wakeID: try body.text("wake_id", bytesMax: SubscriptionCall.textBytesMax),
            generation: try body.generation())
    }

    func submit(_ request: SubscriptionRequest) {
        service.subscriptions.request(request, of: id) { [self] result in
            exchange.onLoop { answer(result) }
        }
    }

    // MARK: Answers

    /// Whether the client has shown no right to know which subscriptions there are.
    private var mayNotKnow: Bool { exchange.access.mayNothing && context.authenticator.hasKeys }

    private func answer(_ result: Result<SubscriptionAnswer, ChannelError>) {
        switch result {
        case .failure(let error) where error.code == "SUBSCRIPTION_NOT_FOUND" && mayNotKnow:
            // Answered as for an existing one, with a token that is not its own.
            exchange.respond(SubscriptionProblem(401, "TOKEN_INVALID", SubscriptionTokens.wrong(id)))
        case .failure(let error): exchange.respond(SubscriptionProblem(error))
        case .success(.created(let subscription)): answer(201, subscription)
        case .success(.confirmed(let subscription)): answer(200, subscription)
        case .success(.claimed(let subscription, let wake, let token, let streams)):
            exchange.respond(
                200,
                json: [
                    "wake_id": .string(wake.id), "generation": .integer(Int64(subscription.generation)), "token": .string(token),
                    "streams": .array(streams.map(\.json)), "lease_ttl_ms": .integer(subscription.configuration.leaseMilliseconds),
                ])
        case .success(.acknowledged(let nextWake)): exchange.respond(200, json: ["ok": true, "next_wake": .bool(nextWake)])
        case .success(.done): exchange.respond(204, [("Cache-Control", "no-store")])
        }
    }

    /// With its streams, which it has once it is committed.
    private func answer(_ status: Int, _ subscription: Subscription) {
        let (subscriptions, id) = (service.subscriptions, id)
        context.read(for: exchange) { () throws(ChannelError) in
            do throws(LogError) { return try subscriptions.describe(id)?.streams ?? [] } catch { throw ChannelError(error) }
        } then: { (streams: [SubscriptionStream]) in
            exchange.respond(status, json: json(subscription, streams))
        }
    }

    func json(_ subscription: Subscription, _ streams: [SubscriptionStream]) -> JSON {
        let configuration = subscription.configuration
        let webhook = configuration.webhookURL.map { url -> JSON in
            [
                "url": .string(url),
                "signing": [
                    "alg": "ed25519", "kid": .string(service.keys.activeID), "jwks_url": .string(subscription.root + "__ds/jwks.json"),
                ],
            ]
        }
        let links: [JSON] = streams.map {
            ["path": .string($0.path), "link_type": .string($0.link.typeName), "acked_offset": .string(Offset($0.link.acked).token)]
        }
        return .compact(
            ("id", .string(id)), ("subscription_id", .string(id)), ("type", configuration.isWebhook ? "webhook" : "pull-wake"),
            ("pattern", configuration.pattern.map { .string($0.text) } ?? .null), ("streams", .array(links)), ("webhook", webhook ?? .null),
            ("wake_stream", configuration.wakeStream.map(JSON.string) ?? .null),
            ("lease_ttl_ms", .integer(configuration.leaseMilliseconds)), ("created_at", .string(subscription.created.description)),
            ("status", subscription.hasFailed ? "failed" : "active"),
            ("next_attempt_at", subscription.nextAttempt.map { .string($0.description) }),
            ("description", configuration.description.map(JSON.string) ?? .null))
    }

    /// The URL of the stream root as the client has it.
    private var root: String { ClientURL(exchange.request).text + StreamName.prefix }
}
