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
    /// The certificate for clients; `nil` without TLS.
    let certificate: TLSIdentity?
    private let models: EventLoop
    private let signals: SignalWatcher
    /// Hears SIGHUP.
    private let reloads: SignalWatcher
    private let folderWatcher: FolderWatcher?
    private let declared: DeclaredAgents
    /// Kinds written in Swift whose input is not a text.
    private let dataKinds: Set<String>
    /// Why the node cannot continue; set by the writer.
    private let failure = Monitor<String?>(nil)

    /// Opens the folder, takes up what was unfinished, and listens.
    ///
    /// - Parameters:
    ///   - agents: Agents written in Swift. Those declared in the agents folder are added; where both declare a kind, the Swift one counts.
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
        let declared = try DeclaredAgents(
            folder: configuration.agentsFolder, files: configuration.dataFolder + "/files", environment, transport: transport(),
            world: world)
        self.declared = declared
        for problem in declared.load() { report(problem) }
        if declared.folder == nil, agents.isEmpty {
            report(
                "parley: there are no agents: there is no folder \(DeclaredAgents.usualFolder). Make it with a file <kind>.md, or name another with --agents."
            )
        }
        if let folder = declared.folder, declared.isEmpty {
            report("parley: the agents folder \(folder) has no file <kind>.md, so it declares no agents.")
        }
        let folder = try Node.open(configuration.dataFolder)
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
        dataKinds = Set(agents.filter { !$0.takesText }.map(\.kind))
        let services = NodeServices(declared, written: written.sorted(), log: log)
        runtime = AgentRuntime(
            channels: channels, world: world, agents: declared.kinds.map(\.agent).filter { !written.contains($0.kind) } + agents,
            node: "\(ProcessInfo.processInfo.hostName)", build: Node.build, idleAfter: configuration.idleTime,
            activeMax: configuration.agentsInMemoryMax ?? AgentRuntime.activeMax, textRetention: configuration.textRetention,
            observers: services.observers)
        var serving = ServerConfiguration()
        serving.http.host = configuration.host
        serving.http.port = configuration.port
        serving.keys = configuration.keys
        serving.allowedOrigins = configuration.corsOrigins
        serving.rate = configuration.rate
        if let count = configuration.connectionsMax { serving.http.connectionCountMax = count }
        if let mebibytes = configuration.requestMemory {
            (serving.http.requestBytesMax, serving.answerBytesMax) = (mebibytes << 20, mebibytes << 20)
        }
        serving.readersPerAccountMax = configuration.readersPerAccountMax
        serving.http.tls = try configuration.identity()
        certificate = serving.http.tls
        serving.publicFolder = try configuration.pages()
        if let count = configuration.channelsMax { try channels.limitCount(to: count) }
        server = Server(channels: channels, agents: runtime, node: services, subscriptions: subscriptions, configuration: serving) {
            webhooks?.measures ?? []
        }
        models.start()
        // Before any client can see that the node is up, and stop it.
        signals = SignalWatcher(models) { _ in failure.withLock(signalAll: true) { $0 = $0 ?? "" } }
        let readFiles = { @Sendable [runtime] isAsked in Node.readFiles(declared, runtime, except: written, isAsked: isAsked) }
        reloads = SignalWatcher(models, signals: [SIGHUP]) { [server] _ in
            if configuration.canReload { Node.readKeys(server, configuration, environment) }
            readFiles(true)
            if !configuration.canReload, declared.folder == nil {
                Diagnostics.log(.info, "SIGHUP: there are no agent files, key files or certificate to read again")
            }
        }
        folderWatcher = configuration.watchesAgents ? Node.watching(declared, on: models) { readFiles(false) } : nil
        signals.waitUntilListening()
        reloads.waitUntilListening()
        try webhooks?.prepare()
        try subscriptions.subscriptions.prepare()
        writer.start()
        try server.start()
        try channels.start()
        try runtime.start()
        webhooks?.start()
        subscriptions.subscriptions.start()
    }

    /// Opens the data folder; on failure the error names the reason, the process that holds the folder, and a remedy.
    private static func open(_ path: String) throws(LogError) -> DataFolder {
        do throws(LogError) { return try DataFolder(path) } catch {
            var said = error.message
            if error.code == .locked, let holder = LockHolder.find("\(path)/LOCK") {
                said = said.replacing("another process", with: holder)
            }
            if error.code == .inaccessible, ![". ", "--data"].contains(where: said.contains) {
                said += ". Name a folder that this process can write with --data"
            }
            throw LogError(error.code, said)
        }
    }

    /// The port that is listened on.
    package var port: Int { server.port }

    /// The kinds of agents there are.
    package var kinds: [String] { runtime.kinds }

    /// Whether agents of the kind take a message's text.
    func takesText(_ kind: String) -> Bool { !dataKinds.contains(kind) }

    /// The folder of the agent files; `nil`: none.
    var agentsFolder: String? { declared.folder }

    /// Why the models of those agents cannot be used.
    var modelProblems: [String] { declared.modelProblems }

    /// The agents that files declare, with the model and the tools of each.
    var declaredKinds: [DeclaredAgents.Kind] { declared.kinds }

    /// Waits for SIGTERM or SIGINT, then drains: no new work, what is in flight reaches the log, readers are told to resume elsewhere or later.
    ///
    /// - Parameter stopping: Called once it is known that the node stops, before it drains.
    /// - Returns: `nil` after a signal, or why the node had to stop: then nothing acknowledged is lost, but nothing more could be promised.
    package func runUntilStopped(_ stopping: () -> Void = {}) -> String? {
        let reason = failure.wait { $0 }!
        stopping()
        signals.cancel()
        reloads.cancel()
        folderWatcher?.cancel()
        stop()
        return reason.isEmpty ? nil : reason
    }

    package func stop() {
        server.refuseReaders()
        runtime.drain()
        webhooks?.drain()
        subscriptions.drain()
        let deadline = ContinuousClock.now + configuration.drainTime
        while runtime.runningBodies + (webhooks?.inFlightCount ?? 0) + subscriptions.inFlightCount > 0, ContinuousClock.now < deadline {
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

    /// Reads keys and certificate again; when one of them is wrong, nothing changes.
    private static func readKeys(_ server: Server, _ configuration: ServeConfiguration, _ environment: [String: String]) {
        do {
            try server.reload(try configuration.readKeys(environment))
            Diagnostics.log(.info, "keys and certificate were read again")
        } catch {
            Diagnostics.log(.error, "keys and certificate stay as they were", ["reason": "\(error)"])
        }
    }

    /// Reads the agent files again; those with mistakes stay as they were.
    ///
    /// - Parameter isAsked: Whether it is said that nothing has changed.
    private static func readFiles(_ declared: DeclaredAgents, _ runtime: AgentRuntime, except written: Set<String>, isAsked: Bool) {
        guard declared.folder != nil else { return }
        let changes = declared.reload()
        let changed = changes.kinds.filter { !written.contains($0.file.kind) }
        for problem in changes.problems {
            Diagnostics.log(
                .error, "an agent file is wrong and was not read; if it was read before, that version stays in use", ["reason": problem])
        }
        for kind in changes.gone {
            // Its agents may have turns that wait; without the kind nothing could continue them.
            Diagnostics.log(
                .warning, "an agent file is gone; its kind stays until the next start", ["kind": kind.file.kind, "file": kind.file.file])
        }
        do throws(LogError) { try runtime.declare(changed.map(\.agent)) } catch {
            Diagnostics.log(.error, "unfinished work of new agents cannot be read; restart the server", ["reason": error.message])
        }
        guard isAsked || !changed.isEmpty else { return }
        let names = changed.map(\.file.kind).joined(separator: ", ")
        Diagnostics.log(.info, "agent files were read", ["changed": names.isEmpty ? "none" : names])
    }

    private static func watching(_ declared: DeclaredAgents, on loop: EventLoop, _ changed: @escaping @Sendable () -> Void)
        -> FolderWatcher?
    {
        declared.folder.map { folder in
            FolderWatcher(
                loop, folder: folder,
                started: { isWatched in
                    if !isWatched {
                        Diagnostics.log(.error, "the agents folder cannot be watched; send SIGHUP instead", ["folder": folder])
                    }
                }, changed)
        }
    }

    private static func pause(_ duration: Duration) { _ = Monitor(()).wait(timeout: duration) { _ in nil as Void? } }

    /// The identity of this program, for `turn.started`: size and time of the executable, which change when the program does.
    private static let build: String = {
        var status = Glibc.stat()
        guard stat("/proc/self/exe", &status) == 0 else { return "" }
        return "\(status.st_size)-\(status.st_mtim.tv_sec)"
    }()
}

extension WebhookDelivery {
    /// The measures that `/metrics` shows of it.
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
