internal import ParleySystem

/// `parley steer <kind>/<id> "text"`: says something to the running turn.
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

/// `parley resume <kind>/<id>`: makes a parked or stalled agent try again.
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

/// `parley signal <kind>/<id> <name> [json]`: wakes a wait.
enum SignalCommand: Command {
    static let name = "signal"
    static let summary = "send a signal, which is kept until the agent waits for it"
    static let usage = ControlEntry.usage("signal", "<name> [<data as JSON> | - | @<file>]")
    static let help = """
        \(usage)

        Wakes a turn that waits for a signal of this name. Without one, the signal is kept until a turn waits for it.

        \(ControlEntry.conditions)
        """
    static let options = ControlEntry.options

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        _ = try arguments.agent()
        let name = try arguments.require(1, "the signal's name")
        guard !name.isEmpty else { throw UsageError("the signal's name is ''; expected at least one character.") }
        try arguments.requireAtMost(3)
        var data: JSON?
        if arguments.positional.count > 2 {
            let text = try MessageArgument.content(of: arguments.positional[2])
            do { data = try JSON.parse(Bytes(text.utf8)) } catch {
                throw UsageError("the data has \(error). A text needs quotes: '\"text\"'.")
            }
        }
        return try ControlEntry.send("signal", [("name", .string(name)), ("data", data)], arguments)
    }
}

/// Sends an entry that is not a message, and reports its outcome.
enum ControlEntry {
    static let options: [CommandOption] = [.value("if-turn"), .value("if-offset"), .value("key"), .value("server")]

    static let conditions = """
          --if-turn <offset>    only if this turn is running (a turn is named by the offset of its message)
          --if-offset <offset>  only if the channel has no entry after this one
          --key <key>           idempotency key: a repeat with the same key does nothing

        Prints the offset of the entry once it is durable, then waits up to 5 seconds for what becomes of it. Exit status 1 if it is rejected.
        """

    /// - Parameter words: The words behind the agent.
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
        // An entry that begins a turn, or is kept for one, may create the agent. For any other, an unknown name is a mistake.
        let begins = type == "signal" || type == "steer" || type == "interrupt" && body["text"] != nil
        let offset = try MessageArgument.append(
            body, to: channel, client, key: arguments["key"], mustExist: !begins || body["if_turn"] != nil)
        Terminal.output("\(offset)\n")
        do {
            // A signal, and a steer that no call of the model takes yet, may wait for long: the command reports what is decided, the rest is in the
            // log.
            let receipt: JSON?
            switch try Receipt.wait(for: offset, in: channel, client, seconds: 5) {
            case .decided(let found): receipt = found
            case .open: receipt = nil
            case .unreadable:
                Terminal.error("durable; what becomes of it is in the channel, which this key or token may not read")
                return .done
            }
            if receipt == nil, type == "signal", let text = try mismatch(of: body, channel, client) {
                Terminal.error(text)
                return .done
            }
            Terminal.error(verdict(on: type, offset, receipt, Refusal.agent(channel)))
            if type == "resume", receipt?["state"] == "applied", let text = try haltedAgain(channel, after: offset, client) {
                Terminal.error(text)
                return .failed
            }
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

    /// Says that the agent waits for a signal of that name with other data.
    private static func mismatch(of signal: JSON, _ channel: String, _ client: Client) throws -> TerminalText? {
        let status = try client.request("GET", "/v1/" + channel).json
        let wait = status?["waiting_for"]?.array?.first { $0["kind"] == "wait" && $0["name"] == signal["name"] && $0["match"] != nil }
        guard let wait else { return nil }
        return
            "kept, but it does not match: \(Refusal.agent(channel)) waits for \(line: WaitView.what(wait)), and the data is \(json: signal["data"] ?? .null)"
    }

    /// Says that the turn has stopped again as soon as it was resumed. It replays first: until then nothing tells.
    private static func haltedAgain(_ channel: String, after offset: String, _ client: Client) throws -> TerminalText? {
        var next = offset
        for _ in 0..<30 {
            let answer = try client.request("GET", "/v1/stream/\(channel)?offset=\(next)&view=raw")
            guard answer.status == 200, let entries = answer.json?.array else { return nil }
            for entry in entries {
                switch entry["type"]?.string {
                case "agent.stalled", "agent.parked":
                    let what = entry["type"] == "agent.stalled" ? "stalled" : "parked"
                    let source = entry["source"]?.string.map { " At \($0)." } ?? ""
                    return
                        "\(what) again: \(line: entry["message"]?.string ?? "")\(line: source) Remedy: \(line: entry["remedy"]?.string ?? "")"
                case "receipt", "agent.resumed", "supervision", "message", "steer": continue
                default: return nil
                }
            }
            next = answer.header("Stream-Next-Offset") ?? next
            if entries.isEmpty { Pause.wait(.milliseconds(100)) }
        }
        return nil
    }

    /// The outcome of the entry, in words.
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

/// The receipt of an entry.
enum Receipt {
    enum Outcome {
        case decided(JSON)
        /// Not within the time.
        case open
        /// The sender of the entry may append to the channel but not read it.
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
