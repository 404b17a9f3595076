internal import ParleyHTTP
internal import ParleySystem

/// `parley steer <kind>/<id> "text"`: says something to the turn under way.
enum SteerCommand: Command {
    static let name = "steer"
    static let summary = "say something that joins the turn before its next model call"
    static let usage = """
        usage: parley steer <kind>/<id> "text" | - | @<file> [--if-turn <offset>] [--if-offset <offset>]
                            [--key <idempotency key>] [--server <url>]
               parley steer <kind>/<id> --data <json> | - | @<file> [...]
        """
    static let help = """
        \(usage)

        If no turn is running, or the turn ends before its next model call, it becomes the next message; the command says which.

        \(ControlEntry.conditions)
        """
    static let options = ControlEntry.options + [.value("data")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        _ = try arguments.agent()
        let message = try MessageBody.read(arguments)
        return try ControlEntry.send("steer", [(message.name, message.value)], arguments)
    }
}

/// `parley interrupt <kind>/<id> ["text"]`: stops what the turn does now.
enum InterruptCommand: Command {
    static let name = "interrupt"
    static let summary = "stop the current step of a turn, keep what was written, and optionally redirect it"
    static let usage = ControlEntry.usage("interrupt", "[\"what to do instead\"]")
    static let help = """
        \(usage)

        Stops what the turn's step runs: a model call, a tool, a sleep, a wait or an approval. With a text the turn continues with that; if no
        turn is running, the text becomes the next message. To end the turn: parley cancel.

        \(ControlEntry.conditions)
        """
    static let options = ControlEntry.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        _ = try arguments.agent()
        let text = arguments.positional.count > 1 ? try MessageArgument.text(arguments) : nil
        return try ControlEntry.send("interrupt", [("text", text.map { .string($0) })], arguments)
    }
}

/// `parley cancel <kind>/<id>`: ends the turn.
enum CancelCommand: Command {
    static let name = "cancel"
    static let summary = "cancel the turn and everything that runs in it"
    static let usage = ControlEntry.usage("cancel", "[\"reason\"]")
    static let help = """
        \(usage)

        Ends the turn. What its steps registered to undo them runs before it ends. The next message starts a new turn.

        \(ControlEntry.conditions)
        """
    static let options = ControlEntry.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        _ = try arguments.agent()
        let reason = arguments.positional.count > 1 ? try MessageArgument.text(arguments) : nil
        return try ControlEntry.send("cancel", [("reason", reason.map { .string($0) })], arguments)
    }
}

/// `parley close <kind>/<id>`: ends the agent for good.
enum CloseCommand: Command {
    static let name = "close"
    static let summary = "end an agent after its current turn"
    static let usage = ControlEntry.usage("close", "")
    static let help = """
        \(usage)

        Messages that are still queued are rejected, and the channel ends; it can still be read. To remove it: parley delete.

        \(ControlEntry.conditions)
        """
    static let options = ControlEntry.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(1)
        return try ControlEntry.send("close", [], arguments)
    }
}

/// `parley resume <kind>/<id>`: has a parked or stalled agent try again.
enum ResumeCommand: Command {
    static let name = "resume"
    static let summary = "retry the turn of a parked or stalled agent"
    static let usage = ControlEntry.usage("resume", "[\"reason\"]")
    static let help = """
        \(usage)

        Replays the turn with the current program. Completed steps return their recorded results and do not run again. To end the turn
        instead: parley cancel.

        \(ControlEntry.conditions)
        """
    static let options = ControlEntry.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        _ = try arguments.agent()
        let reason = arguments.positional.count > 1 ? try MessageArgument.text(arguments) : nil
        return try ControlEntry.send("resume", [("reason", reason.map { .string($0) })], arguments)
    }
}

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

/// `parley signal <kind>/<id> <name> [json]`: wakes a wait.
enum SignalCommand: Command {
    static let name = "signal"
    static let summary = "send a signal, which is kept until the agent waits for it"
    static let usage = ControlEntry.usage("signal", "<name> [<data as JSON>]")
    static let help = """
        \(usage)

        Wakes a turn that waits for a signal of this name. Without one, the signal is kept until a turn waits for it.

        \(ControlEntry.conditions)
        """
    static let options = ControlEntry.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        _ = try arguments.agent()
        let name = try arguments.require(1, "the signal's name")
        try arguments.requireAtMost(3)
        var data: JSON?
        if arguments.positional.count > 2 {
            do { data = try JSON.parse(arguments.positional[2]) } catch {
                throw UsageError("the data is no JSON: \(error). A text needs quotes: '\"text\"'.")
            }
        }
        return try ControlEntry.send("signal", [("name", .string(name)), ("data", data)], arguments)
    }
}

/// Sends an entry that is no message, and says what became of it.
enum ControlEntry {
    static let options: [CommandOption] = [.value("if-turn"), .value("if-offset"), .value("key"), .value("server")]

    static let conditions = """
          --if-turn <offset>    only if this turn is running (a turn is named by the offset of its message)
          --if-offset <offset>  only if the channel has no entry after this one
          --key <key>           idempotency key: a repeat with the same key does nothing

        Prints the offset of the entry once it is durable, then waits up to 5 seconds for what becomes of it. Exit status 1 if it is rejected.
        """

    /// - Parameter words: What stands behind the agent.
    static func usage(_ command: String, _ words: String) -> String {
        let indent = String(repeating: " ", count: "usage: parley \(command) ".count)
        return """
            usage: parley \(command) <kind>/<id> \(words.isEmpty ? "" : words + " ")[--if-turn <offset>] [--if-offset <offset>]
            \(indent)[--key <idempotency key>] [--server <url>]
            """
    }

    /// Waits for the receipt and says what it says; one that says no makes the exit status 1.
    static func send(_ type: String, _ members: [(String, JSON?)], _ arguments: Arguments) throws -> ExitStatus {
        let channel = try arguments.agent()
        for name in ["if-turn", "if-offset"] { try arguments.check(name, []) }
        let client = try Client(arguments)
        let conditions = [("if_turn", arguments["if-turn"]), ("if_offset", arguments["if-offset"])].map { name, value in
            (name, value.map { JSON.string($0) })
        }
        let body = JSON.object(
            [JSON.Member("type", .string(type))]
                + (members + conditions).compactMap { name, value in value.map { JSON.Member(name, $0) } })
        let offset = try MessageArgument.append(body, to: channel, client, key: arguments["key"])
        Terminal.output("\(offset)\n")
        do {
            // A signal, and a steer that no call of the model takes yet, may wait for long: what is decided is said, the rest is in the log.
            let receipt: JSON?
            switch try Receipt.wait(for: offset, in: channel, client, seconds: 5) {
            case .decided(let found): receipt = found
            case .open: receipt = nil
            case .unreadable:
                Terminal.error("durable; what becomes of it is in the channel, which this key or token may not read")
                return .done
            }
            Terminal.error(verdict(on: type, offset, receipt, Refusal.agent(channel)))
            return receipt == nil || receipt?["state"] == "applied" ? .done : .failed
        } catch  where error is Client.Unreachable || error is Client.Disconnected {
            Terminal.error(
                """
                the server has stopped answering. The \(type) is durable at offset \(offset), and is decided once the server runs again:
                  parley tail \(Refusal.agent(channel)) --from \(offset)
                """)
            return .done
        }
    }

    /// What became of the entry, in words.
    private static func verdict(on type: String, _ offset: String, _ receipt: JSON?, _ agent: String) -> TerminalText {
        switch receipt?["state"]?.string {
        case nil where type == "steer":
            "kept for the next call of the model; if none comes before the turn ends, it becomes the next message"
        case nil: "kept until the agent comes to it: parley tail \(agent) --from \(offset)"
        // A turn is named by its message: this entry has become one.
        case "applied" where receipt?["turn"]?.string == offset: "no turn could take it: it became the next message, and began a turn"
        case "applied": "applied\(line: receipt?["step"]?.string.map { " (\($0))" } ?? "")"
        case let state?: Verdict.text(state, receipt?["reason"]?.string ?? "", agent)
        }
    }
}

/// Which approval is meant.
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
        let client = try Client(arguments)
        let approval = try arguments.positional.count > 1 ? arguments.positional[1] : only(channel, client)
        var digest = arguments["args-sha256"]
        switch try request(approval, channel, client) {
        case .found(let request):
            // What is decided is what was shown: should it be something else by now, it is refused.
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
    private static func open(_ channel: String, _ client: Client) throws -> (names: [String], isBusy: Bool) {
        let answer = try client.request("GET", "/v1/" + channel)
        guard answer.status == 200, let status = answer.json else { throw client.refusal(answer, of: channel) }
        return (StatusView.approvals(status), status["state"] == "running" || (status["undecided"]?.integer ?? 0) > 0)
    }

    /// The one approval that is open. An agent that has just been told to do something gets a moment to ask.
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
        guard open.count == 1 else { throw FollowError("several approvals are open; name one: \(open.joined(separator: ", "))") }
        return only
    }

    /// What can be decided instead.
    private static func choices(_ type: String, _ channel: String, _ client: Client) throws -> String {
        let open = try open(channel, client).names
        let agent = Refusal.agent(channel)
        if open.isEmpty { return "None waits for a decision. `parley audit \(agent) --type approval` shows those that were decided." }
        return "Open: \(open.map { "`parley \(type) \(agent) \($0)`" }.joined(separator: ", "))."
    }

    private enum Request {
        case found(JSON)
        /// The agent has never asked for it.
        case missing
        /// Whoever decides may not read the channel.
        case unreadable
    }

    /// What was asked: the newest request of that name.
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

/// The receipt of an entry.
enum Receipt {
    enum Outcome {
        case decided(JSON)
        /// Not within the time.
        case open
        /// Whoever sent the entry may append to the channel and not read it.
        case unreadable
    }

    static func wait(for offset: String, in channel: String, _ client: Client, seconds: Int) throws -> Outcome {
        var next = offset
        for round in 0..<(seconds * 10) {
            let answer = try client.request("GET", "/v1/stream/\(channel)?offset=\(next)&view=raw")
            if answer.status == 403 { return .unreadable }
            guard answer.status == 200, let entries = answer.json?.array else { throw client.refusal(answer, of: channel) }
            if let receipt = entries.first(where: { $0["type"] == "receipt" && $0["of"]?.string == offset }) { return .decided(receipt) }
            next = answer.header("Stream-Next-Offset") ?? next
            if round == 10 { Terminal.error("durable; waiting up to \(seconds) s for what becomes of it") }
            if entries.isEmpty { Pause.wait(.milliseconds(100)) }
        }
        return .open
    }
}
