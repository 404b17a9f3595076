package import ParleyChannels
package import ParleyHTTP
package import ParleySystem
package import ParleyWebhooks
internal import Synchronization

/// The HTTP server over a node's channels: streams, agents, health, metrics and the page.
package final class Server: Sendable {
    /// The loops the server runs on; outgoing calls may share them.
    package let loops: EventLoopGroup
    private let ownsLoops: Bool
    private let context: ServerContext
    private let http: HTTPServer
    private let stopped = Atomic(false)

    /// - Parameters:
    ///   - mirrors: Channels of other nodes, for live readers and reads; `nil`: there are none.
    ///   - agents: The runtime of the agents; `nil`: there are plain streams only.
    ///   - node: The node, for routes that concern it as a whole; `nil`: there are none.
    ///   - subscriptions: The delivery of subscriptions; `nil`: there are none.
    ///   - loops: Loops to share, which are not stopped with the server; by default it has its own.
    ///   - measures: Further measures for `/metrics`; called on a loop.
    package init(
        channels: Channels, mirrors: ChannelMirrors? = nil, agents: (any AgentHost)? = nil, node: (any NodeHost)? = nil,
        subscriptions: SubscriptionDelivery? = nil,
        configuration: ServerConfiguration = ServerConfiguration(),
        loops: EventLoopGroup? = nil, measures: @escaping @Sendable () -> [Measure] = { [] }
    ) {
        let group = loops ?? EventLoopGroup(count: configuration.loopCount)
        self.loops = group
        ownsLoops = loops == nil
        let context = ServerContext(
            tails: TailDirectory(channels: channels, mirrors: mirrors), agents: agents, node: node, subscriptions: subscriptions,
            configuration: configuration,
            loops: group.loops, measures: measures)
        self.context = context
        http = HTTPServer(configuration.http, on: group, handler: Router(context))
        context.count { [weak http] in
            http.map { ConnectionCounters(open: $0.connectionCount, requestBytes: $0.requestBytes, waitingBytes: $0.waitingBytes) }
                ?? ConnectionCounters()
        }
    }

    /// The port that the server listens on; 0 before ``start()``.
    package var port: Int { http.port }

    /// Binds and listens; requests are answered when this returns.
    /// - Throws: ``HTTPServerError`` that names the address and the system's reason.
    package func start() throws(HTTPServerError) { try http.start() }

    /// Takes no new readers from now on, and says that it is not ready; those there are continue, and so does everything else.
    package func refuseReaders() { context.isDraining = true }

    /// Stops accepting, tells live readers where to resume, lets open answers finish, and closes what is left at the deadline.
    ///
    /// Not to be called on one of the loops.
    /// - Returns: Whether everything finished in time.
    @discardableResult
    package func drain(within deadline: Duration) -> Bool {
        refuseReaders()
        http.stopAccepting()
        for readers in context.allReaders { readers.loop.execute { readers.endAll() } }
        return http.drain(within: deadline)
    }

    /// Takes other keys, and reads the certificate again. Readers that follow a stream are told to reconnect, and then need a credential that is
    /// valid now.
    ///
    /// - Throws: ``TLSError`` when the certificate is wrong: the old one stays, and so do the old keys.
    package func reload(_ keys: KeyRing) throws(TLSError) {
        try http.configuration.tls?.reload()
        context.authenticator.replace(keys)
        for readers in context.allReaders { readers.loop.execute { readers.endAll() } }
    }

    /// Closes everything at once, and ends the threads. Idempotent; call it before the channels' writer stops.
    package func stop() {
        guard !stopped.exchange(true, ordering: .relaxed) else { return }
        context.isDraining = true
        http.stop()
        context.reads.stop()
        if ownsLoops { loops.stop() }
    }
}
