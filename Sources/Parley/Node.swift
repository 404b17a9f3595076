internal import FoundationEssentials
internal import Glibc
package import ParleyAgents
internal import ParleyChannels
internal import ParleyHTTP
internal import ParleyLog
internal import ParleyModels
internal import ParleyServer
internal import ParleySystem
internal import ParleyWebhooks
internal import Synchronization

/// A running node: the data folder, the log, channels, agents and the server, composed.
package final class Node: Sendable {
    private let configuration: ServeConfiguration
    private let log: RocksLog
    private let writer: GroupCommit
    private let runtime: AgentRuntime
    private let webhooks: WebhookDelivery?
    private let subscriptions: SubscriptionDelivery
    private let server: Server
    private let models: EventLoop
    private let signals: SignalWatcher
    /// Hears SIGHUP, if there is something to read anew.
    private let reloads: SignalWatcher?
    /// Why the node cannot go on; set by the writer.
    private let failure = Monitor<String?>(nil)

    /// Opens the folder, takes up what was unfinished, and listens.
    ///
    /// - Parameters:
    ///   - agents: Agents written in Swift. Those declared in the agents folder come beside them; of one kind, the Swift one counts.
    ///   - report: Gets lines for a person: mistakes in agent files, what was started.
    /// - Throws: ``ConfigurationError`` or `LogError` with a remedy; nothing runs then.
    package init(
        _ configuration: ServeConfiguration, environment: [String: String], agents: [AnyAgent], report: (String) -> Void
    ) throws {
        self.configuration = configuration
        let webhook = try configuration.webhook(environment)
        let world = SystemWorld()
        models = EventLoop(name: "models")
        let authorities = try ServeConfiguration.authorityFile(environment)
        // One for each kind of call: none takes up another's connections.
        let transport = { [models] in CurlTransport(models, authorityFile: authorities) }
        let declared = try Node.declaredAgents(configuration, environment, transport: transport(), world: world, report: report)
        let folder = try DataFolder(configuration.dataFolder)
        log = try RocksLog(folder)
        let keys = try SigningKeys.load(folder.signingKeysPath)
        let failure = failure
        writer = GroupCommit(log: log) { error in failure.withLock(signalAll: true) { $0 = error.message } }
        let channels = Channels(log: log, writer: writer, world: world, outbox: webhook.map { Outbox(kinds: $0.events) })
        let webhooks = webhook.map { WebhookDelivery($0, channels: channels, world: world, transport: transport()) }
        self.webhooks = webhooks
        subscriptions = SubscriptionDelivery(
            Subscriptions(channels, tokenKey: keys.tokenKey), keys: keys, allowsLoopback: configuration.isLoopbackOnly, world: world,
            transport: transport())
        let written = Set(agents.map(\.kind))
        runtime = AgentRuntime(
            channels: channels, world: world, agents: declared.filter { !written.contains($0.kind) } + agents,
            node: "\(ProcessInfo.processInfo.hostName)", build: Node.build, idleAfter: configuration.idleTime,
            activeMax: configuration.agentsInMemoryMax ?? AgentRuntime.activeMax, textRetention: configuration.textRetention)
        var serving = ServerConfiguration()
        serving.http.host = configuration.host
        serving.http.port = configuration.port
        serving.keys = configuration.keys
        serving.allowedOrigins = configuration.corsOrigins
        serving.rate = configuration.rate
        if let count = configuration.connectionsMax { serving.http.connectionCountMax = count }
        if let mebibytes = configuration.requestMemory { serving.http.requestBytesMax = mebibytes << 20 }
        serving.readersPerAccountMax = configuration.readersPerAccountMax
        if let certificate = configuration.tlsCertificate, let key = configuration.tlsKey {
            do throws(TLSError) { serving.http.tls = try TLSIdentity(certificateFile: certificate, keyFile: key) } catch {
                throw ConfigurationError(error.message)
            }
        }
        if let count = configuration.channelsMax { try channels.limitCount(to: count) }
        server = Server(channels: channels, agents: runtime, subscriptions: subscriptions, configuration: serving) {
            webhooks?.measures ?? []
        }
        models.start()
        // Before anybody can know that the node is up, and stop it.
        signals = SignalWatcher(models) { _ in failure.withLock(signalAll: true) { $0 = $0 ?? "" } }
        reloads = configuration.canReload ? Node.reloading(server, configuration, environment, on: models) : nil
        signals.waitUntilListening()
        reloads?.waitUntilListening()
        try webhooks?.prepare()
        try subscriptions.subscriptions.prepare()
        writer.start()
        try server.start()
        try channels.startExpiry()
        try runtime.start()
        webhooks?.start()
        subscriptions.subscriptions.start()
    }

    /// The port that is listened on.
    package var port: Int { server.port }

    /// The kinds of agents there are.
    package var kinds: [String] { runtime.kinds }

    /// Waits for SIGTERM or SIGINT, then drains: no new work, what is under way reaches the log, readers are told to resume elsewhere or later.
    ///
    /// - Returns: `nil` after a signal, or why the node had to stop: then nothing acknowledged is lost, but nothing more could be promised.
    package func runUntilStopped() -> String? {
        let reason = failure.wait { $0 }!
        signals.cancel()
        reloads?.cancel()
        stop()
        return reason.isEmpty ? nil : reason
    }

    package func stop() {
        server.refuseReaders()
        runtime.drain()
        webhooks?.drain()
        subscriptions.drain()
        let deadline = ContinuousClock.now + configuration.drainTime
        while runtime.runningBodies + (webhooks?.underWay ?? 0) + subscriptions.underWay > 0, ContinuousClock.now < deadline {
            Node.pause(.milliseconds(10))
        }
        webhooks?.stop()
        subscriptions.stop()
        server.drain(within: max(.milliseconds(500), deadline - ContinuousClock.now))
        runtime.markDrained()
        writer.stop()
        server.stop()
        models.stop()
        log.close()
    }

    /// Reads keys and certificate anew on SIGHUP; when one of them is wrong, nothing changes.
    private static func reloading(
        _ server: Server, _ configuration: ServeConfiguration, _ environment: [String: String], on loop: EventLoop
    ) -> SignalWatcher {
        SignalWatcher(loop, signals: [SIGHUP]) { _ in
            do {
                try server.reload(try configuration.readKeys(environment))
                Diagnostics.log(.info, "keys and certificate were read anew")
            } catch {
                Diagnostics.log(.error, "keys and certificate stay as they were", ["reason": "\(error)"])
            }
        }
    }

    private static func pause(_ duration: Duration) { _ = Monitor(()).wait(timeout: duration) { _ in nil as Void? } }

    /// What this program is, for `turn.started`: size and time of the executable, which change when the program does.
    private static let build: String = {
        var status = Glibc.stat()
        guard stat("/proc/self/exe", &status) == 0 else { return "" }
        return "\(status.st_size)-\(status.st_mtim.tv_sec)"
    }()

    private static func declaredAgents(
        _ configuration: ServeConfiguration, _ environment: [String: String], transport: any OutgoingTransport, world: any World,
        report: (String) -> Void
    ) throws -> [AnyAgent] {
        let providers: ModelProviders
        do { providers = ModelProviders(try ModelConfiguration(environment: environment), transport: transport, world: world) } catch {
            throw ConfigurationError("\(error)")
        }
        let usual = "./agents"
        guard let folder = configuration.agentsFolder ?? (FileManager.default.fileExists(atPath: usual) ? usual : nil) else { return [] }
        let tools = BuiltInTools(folder: configuration.dataFolder + "/files", world: world)
        let (files, problems) = AgentFile.loadAll(folder)
        for problem in problems { report("\(problem)") }
        let usualModel = providers.configuration.defaultModel
        return files.map { file in
            let model: any Model
            do { model = try providers.make(file.model, continues: file.continues) } catch {
                report("\(file.file): \(error)")
                // Its turns fail and say why: left out, it would leave those that are open where they are, and the rest unanswered.
                model = UnconfiguredModel(name: (file.model ?? usualModel)?.description ?? "", problem: "\(error)")
            }
            return DeclaredAgent(file, model: model, tools: tools) { name, continues in
                do { return try providers.make(try ModelSpec(name), continues: continues) } catch {
                    return UnconfiguredModel(name: name, problem: "\(error)")
                }
            }.agent
        }
    }
}

extension WebhookDelivery {
    /// What `/metrics` says of it.
    fileprivate var measures: [Measure] {
        let counters = counters
        return [
            Measure("parley_webhook_delivered_total", .counter, "Entries delivered to the webhook.", Double(counters.delivered)),
            Measure(
                "parley_webhook_failed_attempts_total", .counter, "Failed attempts to deliver an entry to the webhook.",
                Double(counters.failedAttempts)),
            Measure(
                "parley_webhook_given_up_total", .counter, "Entries that the webhook did not accept in time.", Double(counters.givenUp)),
            Measure("parley_webhook_pending", .gauge, "Entries waiting for delivery to the webhook.", Double(counters.pending)),
        ]
    }
}
