internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// Finds who answers a request.
final class Router: HTTPHandler, Sendable {
    private let context: ServerContext
    private let policy: AccessPolicy
    private let streams: StreamRoutes
    private let subscriptions: SubscriptionRoutes
    private let agents: AgentRoutes
    private let page: PageRoute
    private let sockets: SocketRoute
    private let client: ClientRoute

    init(_ context: ServerContext) {
        self.context = context
        policy = AccessPolicy(context.configuration)
        streams = StreamRoutes(context: context)
        subscriptions = SubscriptionRoutes(context: context)
        agents = AgentRoutes(context: context)
        page = PageRoute()
        sockets = SocketRoute(context: context)
        client = ClientRoute()
    }

    func handle(_ request: HTTPRequest, _ responder: HTTPResponder) {
        do throws(Problem) {
            let exchange = Exchange(request: request, responder: responder, corsHeaders: try policy.check(request))
            if let preflight = policy.preflight(request) { return exchange.respond(204, preflight) }
            try route(exchange)
        } catch {
            Exchange(request: request, responder: responder, corsHeaders: []).respond(error)
        }
    }

    private func route(_ exchange: Exchange) throws(Problem) {
        let path = exchange.request.pathUTF8
        if path.starts(with: SubscriptionRoutes.prefix.utf8) {
            return subscriptions.handle(exchange, path: path.dropFirst(SubscriptionRoutes.prefix.utf8.count))
        }
        if path.starts(with: StreamName.prefix.utf8) {
            return streams.handle(exchange, path: path.dropFirst(StreamName.prefix.utf8.count))
        }
        if path.starts(with: AgentRoutes.prefix.utf8) {
            return agents.handle(exchange, path: path.dropFirst(AgentRoutes.prefix.utf8.count))
        }
        switch exchange.request.path {
        case "/":
            try requireRead(exchange)
            page.answer(exchange)
        case StreamList.path: try StreamList(context: context).handle(exchange)
        case SocketRoute.path: try sockets.handle(exchange)
        case ClientRoute.scriptPath, ClientRoute.typesPath:
            try requireRead(exchange)
            client.answer(exchange)
        case "/healthz":
            try requireRead(exchange)
            exchange.respond(200, json: ["status": "ok"])
        case "/readyz":
            try requireRead(exchange)
            exchange.respond(context.isDraining ? 503 : 200, json: ["status": context.isDraining ? "draining" : "ready"])
        case "/metrics":
            try requireRead(exchange)
            exchange.respond(200, [("Content-Type", "text/plain; version=0.0.4"), ("Cache-Control", "no-store")], metrics)
        default:
            throw Problem(
                status: 404, code: "route_not_found",
                detail: "nothing answers '\(exchange.request.path)'. Streams are at /v1/stream/<name>, agents at /v1/agents.")
        }
    }

    private var metrics: Bytes {
        var metrics = Metrics()
        metrics.add(context.channels.writer)
        for measure in context.measures() { metrics.add(measure) }
        metrics.add("parley_connections", .gauge, "Open connections.", Double(context.connectionCount))
        metrics.add("parley_readers", .gauge, "Live readers.", Double(context.readerCount))
        metrics.add(
            "parley_agents_in_memory", .gauge, "Agents in memory; the others cost disk only.", Double(context.agents?.activeCount ?? 0))
        return metrics.text
    }

    private func requireRead(_ exchange: Exchange) throws(Problem) {
        let method = exchange.request.method
        guard method == "GET" || method == "HEAD" else { throw .wrongMethod(method, allow: "GET, HEAD") }
    }
}
