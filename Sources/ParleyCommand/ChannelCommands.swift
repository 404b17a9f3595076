internal import ParleyHTTP
internal import ParleySystem
internal import Synchronization

/// `parley run <kind>/<id> "text"`: sends a message and shows the turn it starts.
enum RunCommand: Command {
    static let name = "run"
    static let summary = "send a message to an agent and watch the answer"
    static let usage = "usage: parley run <kind>/<id> \"text\" [--key <idempotency key>] [--json] [--server <url>]"
    static let help = """
        \(usage)

        Sends a message and shows what the agent does with it, until the turn ends. The connection, and the server, may go away meanwhile:
        the command goes on where it was. Exit status 1 when the turn fails.

          --key <text>   send it once: a repeat with the same key attaches to the first
          --json         one entry of the channel a line, as JSON
          --server <url> default PARLEY_URL, then http://127.0.0.1:4437
        """
    static let options: [CommandOption] = [.value("key"), .flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try ChannelArgument.agent(arguments.require(0, "<kind>/<id>"))
        let text = try MessageArgument.text(arguments)
        let client = try Client(arguments)
        let offset = try MessageArgument.send(text, to: channel, client, key: arguments["key"])
        let view = TurnView()
        let outcome = Mutex<String?>(nil)
        let json = arguments.has("json")
        try Follower(client, channel: channel, from: offset, view: "settled") { entry in
            if json { Terminal.output("\(json: entry)\n") }
            let isOurs = entry["turn"]?.string == offset
            let type = entry["type"]?.string ?? ""
            // Its receipt comes before the turn: a message that is refused starts none.
            let isRefused = type == "receipt" && entry["of"]?.string == offset && entry["state"]?.string != "applied"
            if isOurs || isRefused, !json { view.show(entry) }
            guard
                isRefused
                    || isOurs
                        && (["turn.completed", "turn.failed", "turn.interrupted", "turn.cancelled", "agent.stalled", "agent.parked"]
                            .contains(type))
            else { return true }
            outcome.withLock { $0 = type }
            return false
        }.run()
        return outcome.withLock { $0 } == "turn.completed" ? .done : .failed
    }
}

/// `parley tail <channel>`: follows a channel.
enum TailCommand: Command {
    static let name = "tail"
    static let summary = "follow a channel live, from any offset"
    static let usage = "usage: parley tail <kind>/<id> | /<channel> [--from <offset>] [--raw] [--json] [--server <url>]"
    static let help = """
        \(usage)

        Follows an agent (assistant/me) or any JSON channel (/orders/42) until it ends. The connection may break: it goes on.

          --from <offset> an offset, "-1" for the start (default), "now" for what comes from now on
          --raw           every entry as it stands in the log; without it text that was sealed or superseded is left out
          --json          one entry a line, as JSON (always for channels that are no agent's)
          --server <url>  default PARLEY_URL, then http://127.0.0.1:4437
        """
    static let options: [CommandOption] = [.value("from"), .flag("raw"), .flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = ChannelArgument.any(try arguments.require(0, "the channel"))
        try arguments.requireAtMost(1)
        try arguments.check("from", ["-1", "now"])
        let isAgent = channel.hasPrefix("agents/")
        let client = try Client(arguments)
        let json = arguments.has("json") || arguments.has("raw") || !isAgent
        let view = TurnView()
        try Follower(client, channel: channel, from: arguments["from"] ?? "-1", view: isAgent && !arguments.has("raw") ? "settled" : nil) {
            entry in
            if json { Terminal.output("\(json: entry)\n") } else { view.show(entry) }
            return true
        }.run()
        return .done
    }
}

/// `parley send <kind>/<id> "text"`: sends a message and does not wait.
enum SendCommand: Command {
    static let name = "send"
    static let summary = "send a message to an agent without waiting for the answer"
    static let usage = "usage: parley send <kind>/<id> \"text\" [--key <idempotency key>] [--server <url>]"
    static let help = """
        \(usage)

        Prints the offset of the message once it is durable; `parley tail <kind>/<id> --from <offset>` shows what follows.
        """
    static let options: [CommandOption] = [.value("key"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try ChannelArgument.agent(arguments.require(0, "<kind>/<id>"))
        let text = try MessageArgument.text(arguments)
        Terminal.output("\(try MessageArgument.send(text, to: channel, Client(arguments), key: arguments["key"]))\n")
        return .done
    }
}

/// `parley ls`: lists agents, or channels.
enum ListCommand: Command {
    static let name = "ls"
    static let summary = "list agents and what they do, or channels by name"
    static let usage = "usage: parley ls [--kind <kind>] [--state <state>] [--json] [--server <url>] | parley ls /[<beginning of names>]"
    static let help = """
        \(usage)

        States: idle running waiting parked stalled closed. With a slash it lists channels, agents' among them: name, tail, content type.
        """
    static let options: [CommandOption] = [.value("kind"), .value("state"), .flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(1)
        let client = try Client(arguments)
        if let prefix = arguments.positional.first { return try channels(prefix, arguments, client) }
        let filters = ["kind", "state"].compactMap { name in arguments[name].map { "&\(name)=\(PercentEncoding.encode($0))" } }.joined()
        var after = ""
        repeat {
            let answer = try client.request("GET", "/v1/agents?limit=500\(filters)\(after)")
            guard answer.status == 200, let page = answer.json else { throw FollowError(answer.problem) }
            for agent in page["agents"]?.array ?? [] {
                let reason = agent["reason"]?.string.map { "\t\($0)" } ?? ""
                Terminal.output(
                    arguments.has("json")
                        ? "\(json: agent)\n"
                        : "\(agent["kind"]?.string ?? "")/\(agent["id"]?.string ?? "")\t\(agent["state"]?.string ?? "")\(reason)\n")
            }
            after = page["next"]?.string.map { "&after=\(PercentEncoding.encode($0))" } ?? ""
        } while !after.isEmpty
        return .done
    }
}

extension ListCommand {
    private static func channels(_ prefix: String, _ arguments: Arguments, _ client: Client) throws -> ExitStatus {
        guard prefix.hasPrefix("/") else { throw UsageError("'\(prefix)' was not expected; channels are listed with a slash: /\(prefix)") }
        var after = ""
        repeat {
            let query = "limit=1000&prefix=\(PercentEncoding.encode(String(prefix.dropFirst())))\(after)"
            let answer = try client.request("GET", "/v1/streams?\(query)")
            guard answer.status == 200, let page = answer.json else { throw FollowError(answer.problem) }
            for channel in page["streams"]?.array ?? [] {
                let columns = ["name", "tail_offset", "content_type"].map { channel[$0]?.string ?? "" }
                let isClosed = channel["closed"]?.bool == true
                Terminal.output(
                    arguments.has("json")
                        ? "\(json: channel)\n" : "\(columns[0])\t\(columns[1])\t\(columns[2])\(text: isClosed ? "\tclosed" : "")\n")
            }
            after = page["next"]?.string.map { "&after=\(PercentEncoding.encode($0))" } ?? ""
        } while !after.isEmpty
        return .done
    }
}

/// `parley status <kind>/<id>`: says what an agent does.
enum StatusCommand: Command {
    static let name = "status"
    static let summary = "say what an agent is doing and what it waits for"
    static let usage = "usage: parley status <kind>/<id> [--json] [--server <url>]"
    static let help = usage
    static let options: [CommandOption] = [.flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let name = try ChannelArgument.agent(arguments.require(0, "<kind>/<id>"))
        try arguments.requireAtMost(1)
        let answer = try Client(arguments).request("GET", "/v1/" + name)
        guard answer.status == 200, let status = answer.json else { throw FollowError(answer.problem) }
        if arguments.has("json") {
            Terminal.output("\(json: status)\n")
        } else {
            for member in status.members ?? [] {
                let value: TerminalText = member.value.string.map { "\(line: $0)" } ?? TerminalText(json: member.value)
                Terminal.output("\(member.name): \(value)\n")
            }
        }
        return .done
    }
}

/// How channels are named on the command line.
enum ChannelArgument {
    /// `<kind>/<id>` of an agent; its channel.
    static func agent(_ text: String) throws(UsageError) -> String {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        if parts.count == 3, parts[0] == "agents" { return text }
        guard parts.count == 2, !parts.contains("") else {
            throw UsageError("'\(text)' is no agent; expected <kind>/<id>, e.g. assistant/me.")
        }
        return "agents/" + text
    }

    /// Two segments are an agent's, anything else is a channel's whole name, as is what begins with a slash.
    static func any(_ text: String) -> String {
        if text.hasPrefix("/") { return String(text.dropFirst()) }
        return text.split(separator: "/", omittingEmptySubsequences: false).count == 2 ? "agents/" + text : text
    }
}

/// The message that `run` and `send` send.
enum MessageArgument {
    static func text(_ arguments: Arguments) throws(UsageError) -> String {
        let words = arguments.positional.dropFirst()
        guard !words.isEmpty else { throw UsageError("the text is missing.") }
        return words.joined(separator: " ")
    }

    /// Sends the message, once however often it has to be tried, and returns its offset.
    static func send(_ text: String, to channel: String, _ client: Client, key: String?) throws -> String {
        try append(["type": "message", "text": .string(text)], to: channel, client, key: key)
    }

    /// Appends an entry, once however often it has to be tried, and returns its offset.
    static func append(_ body: JSON, to channel: String, _ client: Client, key: String?) throws -> String {
        let key = key ?? Client.newIdempotencyKey()
        let answer = try client.requestPatiently(
            "POST", "/v1/" + channel, headers: [("Content-Type", "application/json"), ("Idempotency-Key", key)], body: body.bytes)
        guard answer.status == 202, let offset = answer.json?["entries"]?.array?.first?["offset"]?.string else {
            throw FollowError(answer.problem)
        }
        return offset
    }
}
