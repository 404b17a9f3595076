internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem
internal import ParleyWebhooks

/// Routes a request to its handler.
final class Router: HTTPHandler, Sendable {
    private let context: ServerContext
    private let policy: AccessPolicy
    private let streams: StreamRoutes
    private let subscriptions: SubscriptionRoutes
    private let agents: AgentRoutes
    private let page: PageRoute
    private let safety: SafetyRoutes
    private let sockets: SocketRoute
    private let client: ClientRoute
    private let node: NodeRoutes
    private let files: PublicRoute?

    init(_ context: ServerContext) {
        self.context = context
        policy = AccessPolicy(context.configuration)
        streams = StreamRoutes(context: context)
        subscriptions = SubscriptionRoutes(context: context)
        agents = AgentRoutes(context: context)
        page = PageRoute()
        safety = SafetyRoutes(context: context)
        sockets = SocketRoute(context: context)
        client = ClientRoute()
        node = NodeRoutes(context)
        files = context.configuration.publicFolder.map { PublicRoute(context: context, folder: $0) }
    }

    func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
        // A page that may read answers may read refusals, too.
        var exchange = Exchange(
            request: request, responder: responder, corsHeaders: [], refusals: context.refusals, answers: context.answers)
        do throws(Problem) {
            if let admission = request.admission as? Admission {
                (exchange.corsHeaders, exchange.access) = (admission.corsHeaders, admission.access)
                // The body may have taken its time.
                if let problem = context.authenticator.problem(with: admission.access) { throw problem }
                return try route(exchange)
            }
            exchange = Exchange(
                request: request, responder: responder, corsHeaders: try policy.check(request.head), refusals: context.refusals,
                answers: context.answers)
            try Router.check(request.head)
            if let preflight = policy.preflight(request) { return exchange.respond(204, preflight) }
            // The page and the client are no secret, and ask for the key; a health check needs to know only that the process lives.
            exchange.access = try access(request) { responder.peerAddress }
            try route(exchange)
        } catch {
            exchange.respond(error)
        }
    }

    /// Fields whose second occurrence, or ambiguous value, would have to be guessed about.
    private static let singleFields: [StaticString] = [
        "Content-Type", "Content-Encoding", "Idempotency-Key", "If-Match", "Last-Event-ID", "Origin",
        "Producer-Id", "Producer-Epoch", "Producer-Seq", "Stream-Seq", "Stream-Closed", "Stream-TTL", "Stream-Expires-At",
        "Stream-Forked-From", "Stream-Fork-Offset", "Stream-Fork-Sub-Offset",
    ]

    /// - Throws: 400 `invalid_header`, 415 `unsupported_content_encoding`.
    private static func check(_ head: HTTPRequestHead) throws(Problem) {
        switch head.misfit(among: singleFields) {
        case .repeated(let name): throw .bad("invalid_header", "\(name) is given more than once; expected once.")
        case .notUTF8(let name): throw .bad("invalid_header", "\(name) holds bytes that are not UTF-8. Encode its value as UTF-8.")
        case nil: break
        }
        if head.hasBody, let encoding = head.header("Content-Encoding"), encoding.lowercased() != "identity" {
            throw Problem(
                status: 415, code: "unsupported_content_encoding",
                detail:
                    "Content-Encoding is '\(encoding.prefix(64))'; a body is stored as it comes, and read without that field. Send it as it is.",
                headers: [("Accept-Encoding", "identity")])
        }
    }

    // MARK: Access

    /// Identifies the sender, and checks its rate of requests: a sender that shows nothing valid counts by the peer's address.
    private func access(_ request: HTTPRequest, peer: () -> String) throws(Problem) -> Access {
        let path = request.pathUTF8
        if Router.isOpen(path) { return .none }
        if isFile(request) {
            try context.rates?.take(RateLimiter.account(ofPeer: peer()), request.loop.now)
            return .none
        }
        guard let rates = context.rates else { return try isOfWake(path) ? .none : context.authenticator.access(request) }
        do throws(Problem) {
            let access = isOfWake(path) ? Access.none : try context.authenticator.access(request)
            let isKnown = access.isShown && context.authenticator.hasKeys
            try rates.take(isKnown ? access.account : RateLimiter.account(ofPeer: peer()), request.loop.now)
            return access
        } catch {
            if error.status == 401 { try rates.take(RateLimiter.account(ofPeer: peer()), request.loop.now) }
            throw error
        }
    }

    /// Whether a request is authenticated by a wake's own token, which its route compares: see ``SubscriptionRoutes/isOpen(_:)``.
    private func isOfWake(_ path: ArraySlice<UInt8>) -> Bool { SubscriptionRoutes.isOpen(path) }

    /// What is known of a request before its body comes.
    private struct Admission: Sendable {
        let access: Access
        let corsHeaders: [HeaderField]
    }

    /// The account that all requests without a key share for their bodies.
    private static let strangers = RateLimiter.account(ofPeer: "*")
    /// The most bytes of a body that no route has a use for, and of one that comes without a key.
    private static let (smallBodyMax, wakeBodyMax) = (64 << 10, 1 << 20)

    func admit(_ request: HTTPRequest, peer: () -> String) -> HTTPAdmission {
        var corsHeaders: [HeaderField] = []
        do throws(Problem) {
            corsHeaders = try policy.check(request.head)
            try Router.check(request.head)
            if policy.preflight(request) != nil {
                return .accepted(account: Router.strangers, bodyBytesMax: Router.smallBodyMax)
            }
            let access = try access(request, peer: peer)
            let bodyBytesMax = try bodyBytesMax(request, access)
            let account = access.isShown ? access.account : access.mayNothing ? Router.strangers : RateLimiter.account(ofPeer: peer())
            return .accepted(
                account: account, context: Admission(access: access, corsHeaders: corsHeaders), bodyBytesMax: bodyBytesMax)
        } catch {
            // A request with a wrong host name is refused in its time, and until then learns as little as any stranger.
            if error.code == AccessPolicy.wrongHost { return .ignored }
            context.refusals.count(error.code)
            return .refused(error, headers: corsHeaders)
        }
    }

    /// How long the body may be, once it is known that its sender may send it at all; `nil`: as long as any.
    private func bodyBytesMax(_ request: HTTPRequest, _ access: Access) throws(Problem) -> Int? {
        let path = request.pathUTF8
        if path.starts(with: SubscriptionRoutes.prefix.utf8) {
            if isOfWake(path) { return Router.wakeBodyMax }
            try requireEverything(access, "__ds/**")
            return nil
        }
        guard request.method == "POST" || request.method == "PUT" else { return Router.smallBodyMax }
        if path.starts(with: StreamName.prefix.utf8) {
            try streams.authorizeBody(request, access, path: path.dropFirst(StreamName.prefix.utf8.count))
            return nil
        }
        if path.starts(with: AgentRoutes.prefix.utf8) {
            try agents.authorizeBody(request, access, path: path.dropFirst(AgentRoutes.prefix.utf8.count))
            return nil
        }
        if !Router.asksForVerbs.contains(request.path) { try requireEverything(access, request.path) }
        return Router.smallBodyMax
    }

    func refused(_ problem: Problem, _ head: HTTPRequestHead?) -> [HeaderField] {
        context.refusals.count(problem.code)
        return head.flatMap { try? policy.check($0) } ?? []
    }

    var isShortOfMemory: Bool { context.answers.budget.isShort }

    private static let openPaths = ["/", "/healthz", ClientRoute.scriptPath, ClientRoute.typesPath].map { Bytes($0.utf8) }

    private static func isOpen(_ path: ArraySlice<UInt8>) -> Bool { openPaths.contains { path.elementsEqual($0) } }

    /// Routes that check the sender's rights themselves. All others need every right, so that a forgotten route is closed.
    private static let asksForVerbs: Set<String> = [
        "/", "/healthz", "/readyz", "/metrics", "/v1/tokens", "/v1/tickets", StreamList.path, SocketRoute.path,
        ClientRoute.scriptPath, ClientRoute.typesPath,
    ]

    /// Whether a request is for a file of the public folder, which needs no right.
    private func isFile(_ request: HTTPRequest) -> Bool {
        files != nil && (request.method == "GET" || request.method == "HEAD") && PublicRoute.isPublic(request.pathUTF8)
    }

    private func route(_ exchange: Exchange) throws(Problem) {
        if let files, isFile(exchange.request) { return files.answer(exchange) }
        let path = exchange.request.pathUTF8
        if path.starts(with: SubscriptionRoutes.prefix.utf8) {
            if !SubscriptionRoutes.isOpen(path) { try requireEverything(exchange.access, "__ds/**") }
            return subscriptions.handle(exchange, path: path.dropFirst(SubscriptionRoutes.prefix.utf8.count))
        }
        if path.starts(with: StreamName.prefix.utf8) {
            return streams.handle(exchange, path: path.dropFirst(StreamName.prefix.utf8.count))
        }
        if path.starts(with: AgentRoutes.prefix.utf8) {
            return agents.handle(exchange, path: path.dropFirst(AgentRoutes.prefix.utf8.count))
        }
        let name = exchange.request.path
        if !Router.asksForVerbs.contains(name) { try requireEverything(exchange.access, name) }
        switch name {
        case "/":
            try requireRead(exchange)
            page.answer(exchange)
        case SocketRoute.path: try sockets.handle(exchange)
        case ClientRoute.scriptPath, ClientRoute.typesPath:
            try requireRead(exchange)
            client.answer(exchange)
        case StreamList.path: try StreamList(context: context).handle(exchange)
        case "/healthz":
            try requireRead(exchange)
            exchange.respond(200, json: ["status": "ok"])
        case "/readyz":
            try requireRead(exchange)
            exchange.respond(context.isDraining ? 503 : 200, json: ["status": context.isDraining ? "draining" : "ready"])
        case "/metrics":
            try requireRead(exchange)
            try exchange.access.require(.read, Router.metricsName)
            exchange.respond(200, [("Content-Type", "text/plain; version=0.0.4"), ("Cache-Control", "no-store")], metrics)
        case "/v1/tokens": try safety.issueToken(exchange)
        case "/v1/tickets": try safety.issueTicket(exchange)
        case NodeRoutes.kindsPath: try node.kinds(exchange)
        case NodeRoutes.backupPath: try node.backUp(exchange)
        default:
            throw Problem(
                status: 404, code: "route_not_found",
                detail: "nothing answers '\(exchange.request.path)'. Channels are at /v1/stream/<name>, agents at /v1/agents.")
        }
    }

    /// The name in a token that lets its bearer read the metrics: no client's channel can have this name.
    private static let metricsName = "__ds/metrics"

    private var metrics: Bytes {
        var metrics = Metrics()
        metrics.add(context.channels.writer)
        for measure in context.measures() { metrics.add(measure) }
        metrics.add("parley_heap_allocated_bytes", .gauge, "Heap memory allocated by the program.", Double(Heap.allocatedBytes))
        metrics.add("parley_heap_resident_bytes", .gauge, "Heap memory resident in the allocator.", Double(Heap.residentBytes))
        metrics.add(context.connections)
        metrics.add(
            "parley_answer_bytes", .gauge, "Bytes of answers that clients have not taken.", Double(context.answers.budget.usedBytes))
        metrics.add("parley_readers", .gauge, "Live readers connected.", Double(context.readerCount))
        metrics.add(context.allReaders.map(\.parking))
        if let subscriptions = context.subscriptions?.subscriptions { metrics.add(subscriptions.counters) }
        metrics.add("parley_agents_in_memory", .gauge, "Agents in memory.", Double(context.agents?.activeCount ?? 0))
        metrics.add(
            "parley_agents_waiting_for_memory", .gauge,
            "Agents with work to do that wait for room in memory, for themselves or for their next turn.",
            Double(context.agents?.waitingCount ?? 0))
        metrics.add("parley_refused_total", .counter, "Refused requests, by error code.", context.refusals.all)
        return metrics.text
    }

    private func requireEverything(_ access: Access, _ what: String) throws(Problem) {
        guard !access.mayEverything else { return }
        throw Problem(
            status: 403, code: "forbidden", detail: "'\(what)' is only for keys and for tokens that allow **:admin.",
            extra: [.init("verb", .string(Verb.admin.name)), .init("verbs", [.string(Verb.admin.name)]), .init("channel", .string("**"))])
    }

    private func requireRead(_ exchange: Exchange) throws(Problem) {
        let method = exchange.request.method
        guard method == "GET" || method == "HEAD" else { throw .wrongMethod(exchange.request, allow: "GET, HEAD") }
    }
}
