internal import Parley

/// `parley serve`: runs a node.
enum ServeCommand: Command {
    static let name = "serve"
    static let summary = "run a node"
    static let usage = """
        usage: parley serve [--listen <host>:<port>] [--data <folder>] [--agents <folder>] [--watch-agents] [--public <folder>]
                            [--drain <seconds>] [--idle <seconds>] [--text-retention <seconds>]
                            [--webhook <url>] [--webhook-events <types>] [--webhook-allow-private]
                            [--keys <file>] [--tls-cert <file> --tls-key <file>] [--cors-origin <origin>] [--rate <number>]
                            [--max-connections <n>] [--max-channels <n>] [--max-request-memory <MiB>] [--max-readers-per-account <n>]
                            [--max-agents-in-memory <n>]
        """
    static let help = """
        \(usage)

        Runs a node until it is stopped (SIGTERM, Ctrl-C), and then drains. The next start continues where this one stopped, also after kill -9
        or a power cut.

        \(ServeOptions.help)
        """
    static let options =
        ServeOptions.names.map { CommandOption.value($0, $0 == "webhook-events" ? ServeOptions.webhookEvents : []) }
        + ServeOptions.flags.map { CommandOption.flag($0) }

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(0)
        var configuration = ServeConfiguration()
        do {
            for name in ServeOptions.names + ServeOptions.flags {
                if let value = arguments[name] { try ServeOptions.set(name, value, &configuration) }
            }
            try configuration.complete(Terminal.allEnvironment)
            try ServeOptions.check(configuration)
            try ServeOptions.check(environment: Terminal.allEnvironment)
        } catch {
            throw UsageError(error.message, showsUsage: false)
        }
        try ServeOptions.run(configuration, agents: [])
        return .done
    }
}
