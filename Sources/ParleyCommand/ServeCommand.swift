internal import Parley

/// `parley serve`: runs a node.
enum ServeCommand: Command {
    static let name = "serve"
    static let summary = "run a node"
    static let usage = """
        usage: parley serve [--listen <host>:<port>] [--data <folder>] [--agents <folder>] [--drain <seconds>] [--idle <seconds>]
                            [--text-retention <seconds>] [--webhook <url>] [--webhook-events <types>] [--webhook-allow-private]
                            [--keys <file>] [--tls-cert <file> --tls-key <file>] [--cors-origin <origin>] [--rate <number>]
                            [--max-connections <n>] [--max-channels <n>] [--max-request-memory <MiB>] [--max-readers-per-account <n>]
                            [--max-agents-in-memory <n>]
        """
    static let help = """
        \(usage)

        Runs a node until it is told to stop (SIGTERM, Ctrl-C), and then drains. The next start goes on where this one stopped, also after
        kill -9 or a power cut.

          --listen <host>:<port>  default 127.0.0.1:4437; port 0 for any free one; another address than loopback needs keys
          --data <folder>         everything the node remembers; default ./parley-data
          --agents <folder>       agents declared in Markdown, <kind>.md each; default ./agents
          --keys <file>           <name>:<secret> a line, mode 600: from then on every request needs a key, or a token that one signed;
                                  beside them those of PARLEY_KEYS (<name>:<secret>,...)
          --tls-cert <file>, --tls-key <file>
                                  serve HTTPS with this certificate (PEM, the chain behind it) and key. SIGHUP has them, and --keys, read anew
          --cors-origin <origin>  whose pages may use the server beside its own, e.g. https://app.example.com; several with commas
          --rate <number>         requests a second that each key, token or address may make; default any
          --max-connections <n>   default 20000
          --max-channels <n>      default any
          --max-request-memory <MiB>
                                  what requests may hold in memory together until they are answered; default 64
          --max-readers-per-account <n>
                                  live readers of one key, token or address; default half of all there may be
          --max-agents-in-memory <n>
                                  agents in memory at a time; others that have something to do wait for room; default 10000
          --drain <seconds>       how long a stop waits for steps under way; default 10
          --idle <seconds>        how long an agent with nothing to do stays in memory; default 30
          --text-retention <seconds>
                                  how long the pieces of an answer stay in the raw log once it is complete; default 3600
          --webhook <url>         who is told when an agent waits for somebody (also PARLEY_WEBHOOK_URL); https, and PARLEY_WEBHOOK_SECRET
                                  must be whsec_<base64>: echo "whsec_$(openssl rand -base64 32)"
          --webhook-events <types>
                                  of which entries; default approval.requested,agent.parked,agent.stalled. Any type that agents write but text
          --webhook-allow-private the receiver may be on this machine or in its network, and be called without TLS

        The model comes from PARLEY_MODEL (<provider>:<model>, e.g. openai:gpt-5-mini or scripted:), OPENAI_BASE_URL, OPENAI_API_KEY and
        PARLEY_MODEL_CONTINUES (prefix, no or auto). PARLEY_MODEL_FIRST_BYTE is how many seconds it may take until its answer begins (default
        600), PARLEY_MODEL_CALLS how many calls there are at a time (default 256).
        """
    static let options = ServeOptions.names.map { CommandOption.value($0) } + ServeOptions.flags.map { CommandOption.flag($0) }

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(0)
        var configuration = ServeConfiguration()
        do {
            for name in ServeOptions.names + ServeOptions.flags {
                if let value = arguments[name] { try ServeOptions.set(name, value, &configuration) }
            }
            try configuration.complete(Terminal.allEnvironment)
            try ServeOptions.check(configuration)
        } catch {
            throw UsageError(error.message)
        }
        try ServeOptions.run(configuration, agents: [])
        return .done
    }
}
