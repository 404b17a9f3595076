@_exported public import ParleyAgents
@_exported public import ParleySystem
internal import FoundationEssentials
// Without the annotation, `stdout` cannot be named: it is a variable of C.
@preconcurrency internal import Glibc
internal import ParleyChannels
internal import ParleyModels
internal import ParleyWebhooks

/// Runs a node with these agents until it is told to stop (SIGTERM, SIGINT), and then drains.
///
/// Reads the command line: `--listen 127.0.0.1:4437`, `--data ./parley-data`, `--agents ./agents` (agents declared in Markdown are served beside
/// these), and the other options that `--help` lists.
///
/// Does not throw what keeps the node from starting or running: it says so in one line on standard error and ends the process, with status 2 for
/// wrong options, else 1.
///
/// ```swift
/// @main struct App {
///     static func main() async throws { try await serve(Greeter()) }
/// }
/// ```
public func serve(_ agents: any Agent...) async throws {
    // An agent's output reaches a log file at the end of each line, and not when the process ends.
    setvbuf(stdout, nil, _IOLBF, 0)
    let configuration = ServeProgram.configuration()
    // On a thread of its own: the one that the program began on stays free for the main actor, which agents may use.
    let failure: (any Error)? = await withCheckedContinuation { [agents = agents.map { erase($0) }] continuation in
        _ = SystemThread(name: "node") {
            do {
                try ConfiguredModel.requireUsable()
                try ServeOptions.run(configuration, agents: agents)
                continuation.resume(returning: nil)
            } catch {
                continuation.resume(returning: error)
            }
        }
    }
    if let failure { ServeProgram.end("\(failure)", 1) }
}

/// An app as a command line: its arguments are those of `parley serve`.
private enum ServeProgram {
    private static var name: String { CommandLine.arguments.first?.split(separator: "/").last.map(String.init) ?? "parley" }

    static func configuration() -> ServeConfiguration {
        let words = Array(CommandLine.arguments.dropFirst())
        if words.contains("--help") || words.contains("-h") {
            print("usage: \(name) [options]\n\nServes this program's agents until it is stopped (SIGTERM, Ctrl-C).\n\n\(ServeOptions.help)")
            guard fflush(stdout) == 0, ferror(stdout) == 0 else {
                end("standard output cannot be written: \(String(cString: strerror(errno)))", 1)
            }
            exit(0)
        }
        do throws(ConfigurationError) {
            var configuration = try ServeOptions.parse(words)
            try configuration.complete(ProcessInfo.processInfo.environment)
            return configuration
        } catch {
            end("\(error) `\(name) --help` lists the options.", 2)
        }
    }

    static func end(_ reason: String, _ status: Int32) -> Never {
        Diagnostics.say("\(name): \(reason)")
        exit(status)
    }
}

private func erase<A: Agent>(_ agent: A) -> AnyAgent { AnyAgent(agent) }

/// The options of `serve`, for the program and for any code that embeds it.
package enum ServeOptions {
    /// With a value.
    package static let names =
        ["listen", "data", "agents", "drain", "idle", "text-retention", "webhook", "webhook-events", "public"] + safetyNames
    private static let safetyNames = [
        "keys", "tls-cert", "tls-key", "cors-origin", "rate", "max-connections", "max-channels", "max-request-memory",
        "max-readers-per-account", "max-agents-in-memory",
    ]
    /// Without one.
    package static let flags = ["watch-agents", "webhook-allow-private"]

    /// The possible values of --webhook-events.
    package static let webhookEvents = WebhookConfiguration.possibleEvents.map(\.name)

    /// The help text of each.
    package static let help = """
          --listen <host>:<port>  default 127.0.0.1:4437; port 0 for any free one; another address than loopback needs keys
          --data <folder>         everything the node remembers; default ./parley-data
          --agents <folder>       agents declared in Markdown, <kind>.md each; default ./agents. SIGHUP reads changed and new files
          --watch-agents          read changed and new files at once
          --public <folder>       web pages for everyone, at their paths: /chat.html is <folder>/chat.html. Neither links nor names with a
                                  leading dot are served; / and /v1 stay the server's
          --keys <file>           <name>:<secret> per line, mode 600: every request then needs a key, or a token signed by one. PARLEY_KEYS
                                  (<name>:<secret>,...) adds to them
          --tls-cert <file>, --tls-key <file>
                                  serve HTTPS with this certificate (PEM, followed by its chain) and key. SIGHUP reads them, and --keys, again
          --cors-origin <origin>  also allow pages of this origin, e.g. https://app.example.com; several with commas
          --rate <number>         requests per second for each key, token or address; default unlimited
          --max-connections <n>   default 20000
          --max-channels <n>      default unlimited
          --max-request-memory <MiB>
                                  memory for all requests in flight; default 64
          --max-readers-per-account <n>
                                  live readers of one key, token or address; default half of all
          --max-agents-in-memory <n>
                                  further agents with work to do wait for room; default 10000
          --drain <seconds>       how long a stop waits for running steps; default 10
          --idle <seconds>        how long an agent with nothing to do stays in memory; default 30
          --text-retention <seconds>
                                  how long the pieces of a complete answer stay in the raw log; default 3600
          --webhook <url>         notify this receiver when an agent waits for a person (also PARLEY_WEBHOOK_URL); https, with
                                  PARLEY_WEBHOOK_SECRET=whsec_<base64>: echo "whsec_$(openssl rand -base64 32)"
          --webhook-events <types>
                                  entries to notify of; default approval.requested,agent.parked,agent.stalled. Any type that agents write but text
          --webhook-allow-private allow a receiver on this machine or in its network, and without TLS

        The model comes from PARLEY_MODEL (<provider>:<model>, e.g. openai:gpt-5-mini, or scripted), OPENAI_BASE_URL, OPENAI_API_KEY and
        PARLEY_MODEL_CONTINUES (prefix, no or auto). PARLEY_MODEL_FIRST_BYTE is how many seconds a model may take until its answer begins
        (default 600), PARLEY_MODEL_CALLS how many calls run at a time (default 256).
        """

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
        case "drain": configuration.drainTime = try ServeConfiguration.seconds(value, name, example: 10)
        case "idle": configuration.idleTime = try ServeConfiguration.seconds(value, name, example: 30)
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
        case "text-retention": configuration.textRetention = try ServeConfiguration.seconds(value, name, example: 3_600)
        case "watch-agents": configuration.watchesAgents = true
        case "public": configuration.publicFolder = value
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
        if let folder = configuration.agentsFolder { try DeclaredAgents.require(folder) }
        _ = try configuration.identity()
        _ = try configuration.pages()
    }

    /// Finds what is wrong with variables that a node takes itself.
    package static func check(environment: [String: String]) throws(ConfigurationError) {
        do { _ = try ModelConfiguration(environment: environment) } catch { throw ConfigurationError("\(error)") }
        _ = try ServeConfiguration.authorityFile(environment)
    }

    /// Starts a node, says so on standard error, and returns once it has stopped; throws what kept it from starting or continuing.
    package static func run(_ configuration: ServeConfiguration, agents: [AnyAgent]) throws {
        Heap.givesBackSoon()
        let environment = ProcessInfo.processInfo.environment
        let node = try Node(configuration, environment: environment, agents: agents) { Diagnostics.say($0) }
        Diagnostics.say(Banner(configuration, node, environment).text)
        let drain = configuration.drainTime
        let reason = node.runUntilStopped {
            Diagnostics.say("parley: stopping; waits up to \(drain.components.seconds) s for turns to pause")
        }
        if let reason { throw ConfigurationError("stopped: \(reason)") }
        Diagnostics.say("parley: stopped")
    }
}
