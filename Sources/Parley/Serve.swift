@_exported public import ParleyAgents
@_exported public import ParleySystem
internal import FoundationEssentials
internal import ParleyHTTP
internal import ParleyModels

/// Runs a node with these agents until it is told to stop (SIGTERM, SIGINT), and then drains.
///
/// Reads the command line: `--listen 127.0.0.1:4437`, `--data ./parley-data`, `--agents ./agents` (agents declared in Markdown come beside
/// these), `--keys`, `--tls-cert` (see docs/safety.md), `--drain 10`, `--webhook https://...` (see docs/webhooks.md). Ends the process with status 1 when the node cannot start or go on, 2 for a wrong option; standard error says why.
///
/// ```swift
/// @main struct App {
///     static func main() async throws { try await serve(Greeter()) }
/// }
/// ```
public func serve(_ agents: any Agent...) async throws {
    var configuration = try ServeOptions.parse(Array(CommandLine.arguments.dropFirst()))
    try configuration.complete(ProcessInfo.processInfo.environment)
    // On a thread of its own: the one that the program began on stays free for the main actor, which agents may use.
    try await withCheckedThrowingContinuation { [configuration, agents = agents.map { erase($0) }] continuation in
        _ = SystemThread(name: "node") { continuation.resume(with: Result { try ServeOptions.run(configuration, agents: agents) }) }
    }
}

private func erase<A: Agent>(_ agent: A) -> AnyAgent { AnyAgent(agent) }

/// The options of `serve`, for the program and for whoever embeds it.
package enum ServeOptions {
    /// With a value.
    package static let names =
        ["listen", "data", "agents", "drain", "idle", "text-retention", "webhook", "webhook-events"] + safetyNames
    private static let safetyNames = [
        "keys", "tls-cert", "tls-key", "cors-origin", "rate", "max-connections", "max-channels", "max-request-memory",
        "max-readers-per-account", "max-agents-in-memory",
    ]
    /// Without one.
    package static let flags = ["webhook-allow-private"]

    /// - Throws: ``ConfigurationError`` naming the option, the value and what is accepted.
    package static func parse(
        _ words: [String], _ environment: [String: String] = ProcessInfo.processInfo.environment
    ) throws(ConfigurationError) -> ServeConfiguration {
        var configuration = ServeConfiguration()
        var rest = words[...]
        while let word = rest.popFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            let name = String(parts[0].dropFirst(2))
            guard word.hasPrefix("--"), names.contains(name) || flags.contains(name) else {
                let known = (names + flags).map { "--" + $0 }.joined(separator: ", ")
                throw ConfigurationError("unknown option '\(word)'; there are \(known).")
            }
            if flags.contains(name) {
                guard parts.count == 1 else { throw ConfigurationError("option '\(parts[0])' takes no value.") }
                try set(name, "", &configuration)
                continue
            }
            guard let value = parts.count > 1 ? parts[1] : rest.popFirst() else {
                throw ConfigurationError("option '\(parts[0])' needs a value.")
            }
            try set(name, value, &configuration)
        }
        try check(configuration, environment)
        return configuration
    }

    package static func set(_ name: String, _ value: String, _ configuration: inout ServeConfiguration) throws(ConfigurationError) {
        switch name {
        case "listen": try configuration.listen(on: value)
        case "data": configuration.dataFolder = value
        case "agents": configuration.agentsFolder = value
        case "drain": configuration.drainTime = try ServeConfiguration.seconds(value, name)
        case "idle": configuration.idleTime = try ServeConfiguration.seconds(value, name)
        case "keys": configuration.addKeys(file: value)
        case "tls-cert": configuration.tlsCertificate = value
        case "tls-key": configuration.tlsKey = value
        case "cors-origin": try configuration.addOrigins(value)
        case "rate": configuration.rate = try ServeConfiguration.rate(value)
        case "max-connections": configuration.connectionsMax = try ServeConfiguration.count(value, name)
        case "max-channels": configuration.channelsMax = try ServeConfiguration.count(value, name)
        case "max-request-memory": configuration.requestMemory = try ServeConfiguration.count(value, name, max: 1 << 20)
        case "max-readers-per-account": configuration.readersPerAccountMax = try ServeConfiguration.count(value, name)
        case "max-agents-in-memory": configuration.agentsInMemoryMax = try ServeConfiguration.count(value, name)
        case "text-retention": configuration.textRetention = try ServeConfiguration.seconds(value, name)
        case "webhook": configuration.webhookURL = value
        case "webhook-events": configuration.webhookEvents = value
        case "webhook-allow-private": configuration.webhookAllowsPrivate = true
        default: preconditionFailure("option '\(name)' is listed and not handled")
        }
    }

    /// Finds what is wrong with options that depend on one another and on the environment.
    package static func check(
        _ configuration: ServeConfiguration, _ environment: [String: String] = ProcessInfo.processInfo.environment
    ) throws(ConfigurationError) {
        _ = try configuration.webhook(environment)
    }

    /// Starts a node, says so on standard error, and returns once it has stopped; throws what kept it from starting or going on.
    package static func run(_ configuration: ServeConfiguration, agents: [AnyAgent]) throws {
        Heap.givesBackSoon()
        let node = try Node(configuration, environment: ProcessInfo.processInfo.environment, agents: agents) { Diagnostics.say($0) }
        let host = configuration.host.contains(":") ? "[\(configuration.host)]" : configuration.host
        Diagnostics.say(
            "parley: serving \(configuration.tlsCertificate == nil ? "http" : "https")://\(host):\(node.port) from \(configuration.dataFolder); agents: \(node.kinds.joined(separator: ", "))"
        )
        if let reason = node.runUntilStopped() { throw ConfigurationError("stopped: \(reason)") }
    }
}

/// A model by its spec, with the keys and addresses of the environment.
public struct ConfiguredModel: Model {
    private let model: any Model

    /// - Parameter spec: `<provider>:<model>`; without it `PARLEY_MODEL`.
    /// - Throws: what is wrong with the configuration, naming the variable and the remedy.
    public init(_ spec: String? = nil) throws {
        model = try ConfiguredModel.providers.get().make(try spec.map { try ModelSpec($0) })
    }

    private static let providers = Result {
        let loop = EventLoop(name: "models")
        loop.start()
        let configuration = try ModelConfiguration(environment: ProcessInfo.processInfo.environment)
        return ModelProviders(configuration, transport: CurlTransport(loop), world: SystemWorld(threads: 1))
    }

    public var name: String { model.name }
    public var continues: Continuation { model.continues }
    public func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall { model.start(request, sink) }
    public func probeContinuation(_ answer: @escaping @Sendable (Bool) -> Void) { model.probeContinuation(answer) }
}
