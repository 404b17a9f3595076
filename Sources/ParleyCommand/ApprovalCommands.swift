internal import ParleyHTTP
internal import ParleyServer
internal import ParleySystem

/// `parley approve <kind>/<id>`: lets the agent do what it asks for.
enum ApproveCommand: Command {
    static let name = "approve"
    static let summary = "approve what an agent asks for"
    static let usage = ApprovalChoice.usage("approve")
    static let help = ApprovalChoice.help(usage)
    static let options = ApprovalChoice.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus { try ApprovalChoice.send("approve", arguments) }
}

/// `parley deny <kind>/<id>`: says no.
enum DenyCommand: Command {
    static let name = "deny"
    static let summary = "deny what an agent asks for"
    static let usage = ApprovalChoice.usage("deny")
    static let help = ApprovalChoice.help(usage)
    static let options = ApprovalChoice.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus { try ApprovalChoice.send("deny", arguments) }
}

/// The choice of an approval.
enum ApprovalChoice {
    static let options: [CommandOption] = [.value("args-sha256"), .value("reason"), .value("key"), .value("server")]

    static func usage(_ command: String) -> String {
        let indent = String(repeating: " ", count: "usage: parley \(command) ".count)
        return """
            usage: parley \(command) <kind>/<id> [<approval>] [--args-sha256 <digest>] [--reason <text>]
            \(indent)[--key <idempotency key>] [--server <url>]
            """
    }

    static func help(_ usage: String) -> String {
        """
        \(usage)

        Decides the open approval, and prints what it is for. If several are open, it lists them; name one. The decision is bound to the digest
        of the arguments that were printed. Exit status 1 if the decision is rejected.

          --args-sha256 <digest>  decide only if the arguments have this digest
          --reason <text>         kept in the log with the decision
          --key <key>             idempotency key: a repeat with the same key does nothing
        """
    }

    static func send(_ type: String, _ arguments: Arguments) throws -> ExitStatus {
        let channel = try arguments.agent()
        if arguments.positional.count > 2 {
            throw UsageError("'\(arguments.positional[2])' was not expected. A reason is an option: --reason \"text\".")
        }
        // Without the approval's name it is looked up, which needs the right to read.
        let client = try Client(arguments, needs: arguments.positional.count > 1 ? [.approve] : [.read, .approve])
        let approval = try arguments.positional.count > 1 ? arguments.positional[1] : only(channel, client)
        var digest = arguments["args-sha256"]
        switch try request(approval, channel, client) {
        case .found(let request):
            // The decision is on the request as shown: should that be another by now, it is refused.
            Terminal.error("\(request["action"]?.string ?? "") \(json: request["args"] ?? .null)")
            digest = digest ?? request["args_sha256"]?.string
        case .missing:
            throw FollowError("\(Refusal.agent(channel)) has asked for no approval '\(approval)'. " + (try choices(type, channel, client)))
        case .unreadable: break
        }
        return try ControlEntry.send(
            type,
            [
                ("approval", .string(approval)), ("args_sha256", digest.map { .string($0) }),
                ("reason", arguments["reason"].map { .string($0) }),
            ],
            arguments)
    }

    /// The names of the approvals that wait for a decision, and whether the agent may be about to ask for one.
    private static func open(_ channel: String, _ client: Client) throws -> (
        approvals: [(name: String, asks: String)], isBusy: Bool
    ) {
        let answer = try client.request("GET", "/v1/" + channel)
        guard answer.status == 200, let status = answer.json else { throw client.refusal(answer, of: channel) }
        return (StatusView.approvals(status), status["state"] == "running" || (status["undecided"]?.integer ?? 0) > 0)
    }

    /// The one open approval. An agent that has just been given work gets a moment to ask.
    private static func only(_ channel: String, _ client: Client) throws -> String {
        var (open, isBusy) = try open(channel, client)
        for _ in 0..<20 where open.isEmpty && isBusy {
            Pause.wait(.milliseconds(100))
            (open, isBusy) = try self.open(channel, client)
        }
        let agent = Refusal.agent(channel)
        guard let only = open.first else {
            throw FollowError("\(agent) waits for no approval. `parley audit \(agent) --type approval` shows what was decided.")
        }
        guard open.count == 1 else {
            throw FollowError("several approvals are open; name one: \(open.map { "\($0.name) (\($0.asks))" }.joined(separator: ", "))")
        }
        return only.name
    }

    /// Returns the requests that can be decided instead.
    private static func choices(_ type: String, _ channel: String, _ client: Client) throws -> String {
        let open = try open(channel, client).approvals
        let agent = Refusal.agent(channel)
        if open.isEmpty { return "None waits for a decision. `parley audit \(agent) --type approval` shows those that were decided." }
        return "Open: \(open.map { "`parley \(type) \(agent) \($0.name)`" }.joined(separator: ", "))."
    }

    private enum Request {
        case found(JSON)
        /// The agent has never asked for it.
        case missing
        /// The decider may not read the channel.
        case unreadable
    }

    /// Returns the newest request of that name.
    private static func request(_ approval: String, _ channel: String, _ client: Client) throws -> Request {
        var found: JSON?
        var offset = String(approval.prefix { $0 != "/" })
        while true {
            let answer = try client.request("GET", "/v1/stream/\(channel)?offset=\(PercentEncoding.encode(offset))&view=settled")
            if answer.status == 403 { return .unreadable }
            // A name that does not begin with the offset of a turn.
            if answer.status == 400 { return .missing }
            guard answer.status == 200, let entries = answer.json?.array else { throw client.refusal(answer, of: channel) }
            found = entries.last { $0["type"] == "approval.requested" && $0["approval"]?.string == approval } ?? found
            guard let next = answer.header("Stream-Next-Offset"), next != offset, !entries.isEmpty else {
                return found.map { .found($0) } ?? .missing
            }
            offset = next
        }
    }
}
