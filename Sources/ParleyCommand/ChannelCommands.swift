internal import ParleyHTTP
internal import ParleyServer
internal import ParleySystem
internal import Synchronization

/// `parley run <kind>/<id> "text"`: sends a message and shows the turn it starts.
enum RunCommand: Command {
    static let name = "run"
    static let summary = "send a message to an agent and watch the answer"
    static let usage = """
        usage: parley run <kind>/<id> "text" | - | @<file> [--key <idempotency key>] [--json] [--server <url>]
               parley run <kind>/<id> --data <json> | - | @<file> [...]
        """
    static let help = """
        \(usage)

        Sends a message and shows what the agent does, until the turn ends. If the connection is lost or the server restarts, the command
        reconnects and continues where it was. Ctrl-C stops watching, not the agent. Exit status 1 if the turn does not complete. With a token
        that may not read the agent, the command says where the message is, and ends.

        \(MessageBody.help)
          --key <text>    send the message once: a repeat with the same key attaches to the first
          --json          print the channel's entries, one JSON object per line
          --server <url>  default PARLEY_URL, then http://127.0.0.1:4437
        """
    static let options: [CommandOption] = [.value("data"), .value("key"), .flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try arguments.agent()
        let message = try MessageBody.read(arguments)
        let client = try Client(arguments, needs: [.read, .append])
        let offset = try MessageArgument.send(message, to: channel, client, key: arguments["key"])
        let (view, json) = (TurnView(), arguments.has("json"))
        let leaving = leavingText(channel, offset, arguments)
        let agent = Refusal.agent(channel)
        client.onInterrupt { json ? Terminal.error(leaving) : view.say(leaving) }
        let watched = Mutex(WatchedMessage(offset))
        let follower = Follower(
            client, channel: channel, from: offset, view: "settled", isReached: true, say: { json ? Terminal.error($0) : view.say($0) }
        ) { entry in
            guard case .json(let entry) = entry else { return true }
            let (isOurs, joined) = watched.withLock { ($0.take(entry), $0.hasJustJoined(entry)) }
            if json {
                Terminal.output("\(json: entry)\n")
            } else if isOurs, entry["type"] != "receipt" {
                view.show(entry)
            } else {
                view.hear(entry)
            }
            if joined { json ? () : view.say("  the message joined the turn that was running") }
            return watched.withLock { $0.outcome == nil }
        }
        // While another turn runs, nothing comes of this one.
        _ = SystemThread.startDetached(name: "queued") {
            Pause.wait(RunCommand.patience)
            guard !watched.withLock({ $0.isDecided }), let text = try? queued(channel, client) else { return }
            json ? Terminal.error(text) : view.say(text)
        }
        do { try follower.run() } catch let error as FollowError where error.code == "forbidden" {
            Terminal.error(
                """
                parley: the message is durable at offset \(offset); do not send it again. The answer is in the channel, which this token may not read.
                  a token for it  parley token --allow '\(channel):\(text: client.needs.map(\.name).joined(separator: ","))' --name <name>
                """)
            return .done
        } catch  where error is Client.Unreachable || error is Client.Disconnected {
            Terminal.error(
                """
                parley: the message is durable at offset \(offset), and the agent continues once the server runs again.
                  watch it again  \(watching(agent, offset, arguments))
                """)
            throw error
        }
        let (outcome, refused) = watched.withLock { ($0.outcome, $0.refused) }
        if let refused, !json {
            let state = refused["state"]?.string ?? ""
            view.say(Verdict.text(state, refused["reason"]?.string ?? "", agent))
        }
        return outcome == "turn.completed" ? .done : .failed
    }

    private static let patience = Duration.seconds(1)

    /// The work that the message waits behind; `nil` when there is no turn any more.
    private static func queued(_ channel: String, _ client: Client) throws -> TerminalText? {
        let answer = try client.request("GET", "/v1/" + channel)
        guard answer.status == 200, let status = answer.json, status["turn"] != nil, let since = status["since"]?.string else { return nil }
        let waits = (status["waiting_for"]?.array ?? []).filter { ["approval", "sleep", "wait"].contains($0["kind"]?.string) }
        switch status["state"]?.string {
        case "running": return "  queued behind a turn that runs since \(since)"
        case "waiting":
            let what = waits.first.map { " for \(WaitView.brief(of: $0))" } ?? ""
            return "  queued behind a turn that has begun at \(since) and waits\(line: what)"
        case let state?:
            let agent = Refusal.agent(channel)
            return "  queued behind a turn that is \(state) since \(since): `parley status \(agent)` says why, and what to do"
        case nil: return nil
        }
    }

    /// The text shown when the command ends before the turn.
    private static func leavingText(_ channel: String, _ offset: String, _ arguments: Arguments) -> TerminalText {
        let agent = Refusal.agent(channel)
        return """
            parley: the agent continues without this command.
              watch it again  \(watching(agent, offset, arguments))
              stop it         parley cancel \(agent)\(server(arguments))
            """
    }

    private static func watching(_ agent: String, _ offset: String, _ arguments: Arguments) -> TerminalText {
        "parley tail \(agent) --from \(offset)\(server(arguments))"
    }

    private static func server(_ arguments: Arguments) -> TerminalText { arguments["server"].map { " --server \($0)" } ?? "" }
}

/// A message, and what becomes of it: a turn of its own, a place in a turn that was running, or a refusal.
private struct WatchedMessage {
    private let offset: String
    /// The turn that it began or joined.
    private var turn: String
    /// The type of the entry that ended it.
    private(set) var outcome: String?
    /// The receipt that says no.
    private(set) var refused: JSON?
    /// Its receipt has come.
    private(set) var isDecided = false

    init(_ offset: String) { (self.offset, turn) = (offset, offset) }

    private static let ends: Set = [
        "turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled", "agent.stalled", "agent.parked",
    ]

    /// - Returns: whether the entry is about the message.
    mutating func take(_ entry: JSON) -> Bool {
        let type = entry["type"]?.string ?? ""
        if type == "receipt" {
            guard entry["of"]?.string == offset else { return false }
            isDecided = true
            // It comes before the turn: a message that is refused begins none.
            if entry["state"] == "applied" { turn = entry["turn"]?.string ?? turn } else { (outcome, refused) = (type, entry) }
            return true
        }
        guard entry["turn"]?.string == turn else { return false }
        if WatchedMessage.ends.contains(type) { outcome = type }
        return true
    }

    /// Whether the entry says that the message joined another's turn.
    func hasJustJoined(_ entry: JSON) -> Bool { entry["of"]?.string == offset && turn != offset }
}

/// `parley tail <channel>`: follows a channel.
enum TailCommand: Command {
    static let name = "tail"
    static let summary = "follow a channel live, from any offset"
    static let usage = "usage: parley tail <kind>/<id> | /<channel> [--from <offset>] [--raw] [--json] [--server <url>]"
    static let help = """
        \(usage)

        Follows an agent (assistant/me) or a channel of JSON or text (/orders/42) until it ends. If the connection is lost, the command
        reconnects and continues without gap or duplicate.

          --from <offset> an offset, "-1" for the start (default), "now" for new entries only
          --raw           every entry of the log; without it, sealed and superseded pieces of text are left out
          --json          one entry per line, as JSON; always so for channels of JSON. Of text, each line is a piece of it, as a JSON string
          --server <url>  default PARLEY_URL, then http://127.0.0.1:4437
        """
    static let options: [CommandOption] = [.value("from", ["-1", "now"]), .flag("raw"), .flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try ChannelArgument.any(arguments.require(0, "the channel"))
        try arguments.requireAtMost(1)
        try arguments.check("from", ["-1", "now"])
        let isAgent = channel.hasPrefix("agents/")
        let client = try Client(arguments)
        let json = arguments.has("json") || arguments.has("raw") || !isAgent
        let view = TurnView()
        let shown = Mutex(TerminalText.Stream())
        try Follower(
            client, channel: channel, from: arguments["from"] ?? "-1",
            view: isAgent && !arguments.has("raw") ? "settled" : nil, say: { json ? Terminal.error($0) : view.say($0) }
        ) { entry in
            switch entry {
            case .json(let entry) where json: Terminal.output("\(json: entry)\n")
            case .json(let entry): view.show(entry)
            case .text(let text) where arguments.has("json"): Terminal.output("\(json: .string(text.text))\n")
            case .text(let text): Terminal.output(shown.withLock { $0.feed(text) })
            }
            return true
        }.run()
        Terminal.output(shown.withLock { $0.end() })
        return .done
    }
}

/// `parley send <kind>/<id> "text"`: sends a message and does not wait.
enum SendCommand: Command {
    static let name = "send"
    static let summary = "send a message to an agent without waiting for the answer"
    static let usage = """
        usage: parley send <kind>/<id> "text" | - | @<file> [--key <idempotency key>] [--server <url>]
               parley send <kind>/<id> --data <json> | - | @<file> [...]
        """
    static let help = """
        \(usage)

        Prints the offset of the message once it is durable; `parley tail <kind>/<id> --from <offset>` shows what follows.

        \(MessageBody.help)
          --key <text>    send the message once, however often the command is repeated with that key
          --server <url>  default PARLEY_URL, then http://127.0.0.1:4437
        """
    static let options: [CommandOption] = [.value("data"), .value("key"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try arguments.agent()
        let message = try MessageBody.read(arguments)
        Terminal.output("\(try MessageArgument.send(message, to: channel, Client(arguments), key: arguments["key"]))\n")
        return .done
    }
}

/// `parley ls`: lists agents, or channels.
enum ListCommand: Command {
    static let name = "ls"
    static let summary = "list agents with their states, or channels by name"
    static let usage = "usage: parley ls [--kind <kind>] [--state <state>] [--json] [--server <url>] | parley ls /[<beginning of names>]"
    static let help = """
        \(usage)

        Lists agents by name: name, state, the reason if the agent is parked or stalled, and the approvals, signals and sleeps it waits for,
        and until when. With a slash it lists channels instead, those of agents included: name as commands take it, end offset,
        content type.

          --kind <kind>    only agents of this kind
          --state <state>  only agents in this state: idle, running, waiting, parked, stalled or closed
          --json           one agent or channel per line, as JSON
        """
    static let options: [CommandOption] = [
        .value("kind"), .value("state", ["idle", "running", "waiting", "parked", "stalled", "closed"]), .flag("json"), .value("server"),
    ]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(1)
        let client = try Client(arguments)
        if let prefix = arguments.positional.first { return try channels(prefix, arguments, client) }
        let filters = ["kind", "state"].compactMap { name in arguments[name].map { "&\(name)=\(PercentEncoding.encode($0))" } }.joined()
        var agents: [(name: String, row: JSON)] = []
        var after = ""
        repeat {
            let answer = try client.request("GET", "/v1/agents?limit=500&details=true\(filters)\(after)")
            guard answer.status == 200, let page = answer.json else { throw client.refusal(answer) }
            agents += (page["agents"]?.array ?? []).map { (Refusal.agent($0["agent"]?.string ?? ""), $0) }
            after = page["next"]?.string.map { "&after=\(PercentEncoding.encode($0))" } ?? ""
        } while !after.isEmpty
        for (name, agent) in agents.sorted(by: { $0.name < $1.name }) {
            let columns = [name, agent["state"]?.string ?? "", agent["reason"]?.string, waits(agent)].compactMap { $0 }
            let line = columns.map { TerminalText.line($0) }.joined(separator: "\t") + "\n"
            Terminal.output(arguments.has("json") ? "\(json: agent)\n" : TerminalText(trusted: line))
        }
        return agents.isEmpty ? try sayWhyEmpty(arguments, client) : .done
    }

    private static let waitsMax = 3

    /// The wait of an agent, in a column.
    private static func waits(_ agent: JSON) -> String? {
        guard let waits = agent["waiting_for"]?.array, !waits.isEmpty else { return nil }
        let more = waits.count > waitsMax ? ["\(waits.count - waitsMax) more"] : []
        return (waits.prefix(waitsMax).map { WaitView.brief(of: $0) } + more).joined(separator: "; ")
    }

    /// A list of nothing may come from a mistyped kind.
    private static func sayWhyEmpty(_ arguments: Arguments, _ client: Client) throws -> ExitStatus {
        let answer = try client.request("GET", "/v1/kinds")
        let kinds = (answer.json?["kinds"]?.array ?? []).compactMap { $0["kind"]?.string }
        if let kind = arguments["kind"], answer.status == 200, !kinds.contains(kind) {
            let meant = Suggestion.closest(to: kind, in: kinds).map { " Did you mean '\($0)'?" } ?? ""
            throw FollowError(
                "there is no agent of the kind '\(kind)', and the server does not have that kind. It has: \(kinds.isEmpty ? "none" : kinds.joined(separator: ", ")).\(meant)"
            )
        }
        let filters = ["kind", "state"].compactMap { name in arguments[name].map { "\(name) \($0)" } }.joined(separator: " and ")
        Terminal.error(
            filters.isEmpty
                ? client.showsToken
                    ? "there are no agents that your token may read"
                    : "there are no agents yet; `parley run <kind>/<id> \"text\"` creates one"
                : "no agent\(text: client.showsToken ? " that your token may read" : "") has \(line: filters)")
        return .done
    }
}

extension ListCommand {
    private static func channels(_ prefix: String, _ arguments: Arguments, _ client: Client) throws -> ExitStatus {
        guard prefix.hasPrefix("/") else {
            let agents =
                prefix.contains("/")
                ? "`parley status \(prefix)` shows an agent" : "`parley ls --kind \(prefix)` lists the agents of a kind"
            throw UsageError("'\(prefix)' was not expected; \(agents), channels are listed with a slash: /\(prefix)")
        }
        var (after, isEmpty) = ("", true)
        repeat {
            let query = "limit=1000&prefix=\(PercentEncoding.encode(String(prefix.dropFirst())))\(after)"
            let answer = try client.request("GET", "/v1/streams?\(query)")
            guard answer.status == 200, let page = answer.json else { throw client.refusal(answer) }
            for channel in page["streams"]?.array ?? [] {
                isEmpty = false
                let name = channel["name"]?.string ?? ""
                let columns =
                    [name.hasPrefix("agents/") ? Refusal.agent(name) : "/" + name]
                    + ["tail_offset", "content_type"].map { channel[$0]?.string ?? "" }
                let isClosed = channel["closed"]?.bool == true
                Terminal.output(
                    arguments.has("json")
                        ? "\(json: channel)\n" : "\(columns[0])\t\(columns[1])\t\(columns[2])\(text: isClosed ? "\tclosed" : "")\n")
            }
            after = page["next"]?.string.map { "&after=\(PercentEncoding.encode($0))" } ?? ""
        } while !after.isEmpty
        if isEmpty {
            let which = client.showsToken ? " that your token may read" : prefix == "/" ? " yet" : ""
            Terminal.error(
                prefix == "/"
                    ? "there are no channels\(text: which)" : "no channel\(text: which) has a name that begins with \(line: prefix)")
        }
        return .done
    }
}
