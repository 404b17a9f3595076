internal import ParleySystem

/// `parley status <kind>/<id>`: says what an agent does.
enum StatusCommand: Command {
    static let name = "status"
    static let summary = "say what an agent is doing and what it waits for"
    static let usage = "usage: parley status <kind>/<id> [--json] [--server <url>]"
    static let help = """
        \(usage)

        Shows the state, the turn that is running and what it waits for, or how the last one ended; for an agent that is parked or stalled,
        also the reason and the remedy.

          --json  the server's answer as it is
        """
    static let options: [CommandOption] = [.flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let channel = try arguments.agent()
        try arguments.requireAtMost(1)
        let client = try Client(arguments)
        let answer = try client.request("GET", "/v1/" + channel)
        guard answer.status == 200, let status = answer.json else { throw client.refusal(answer, of: channel) }
        if arguments.has("json") {
            Terminal.output("\(json: status)\n")
        } else {
            let (entries, last) = (try undecided(status, channel, client), try lastTurn(status, channel, client))
            Terminal.output(TerminalText(lines: StatusView.lines(status, undecided: entries, lastTurn: last)))
        }
        return .done
    }

    /// `{turns, at}` of the trace with the newest turn; `nil` while a turn is open, which the status itself is about.
    private static func lastTurn(_ status: JSON, _ channel: String, _ client: Client) throws -> JSON? {
        guard status["turn"] == nil else { return nil }
        let answer = try client.request("GET", "/v1/\(channel)/trace?limit=1")
        return answer.status == 200 ? answer.json : nil
    }

    /// The entries that nothing has been decided about, oldest first, as the audit has them.
    private static func undecided(_ status: JSON, _ channel: String, _ client: Client) throws -> [JSON] {
        guard (status["undecided"]?.integer ?? 0) > 0 else { return [] }
        let answer = try client.request("GET", "/v1/\(channel)/audit?limit=1000")
        guard answer.status == 200, let records = answer.json?["records"]?.array else { throw client.refusal(answer, of: channel) }
        return records.filter { $0["type"] != "approval" && ($0["receipt"] ?? .null) == .null }
    }
}

/// The state of an agent, for a person: a fact a line, and the commands that help.
enum StatusView {
    private static let undecidedMax = 10

    /// - Parameters:
    ///   - entries: Those that are not decided yet.
    ///   - trace: The newest turn and the server's time, unless a turn is open.
    static func lines(_ status: JSON, undecided entries: [JSON], lastTurn trace: JSON?) -> [String] {
        let agent = Refusal.agent(status["agent"]?.string ?? "")
        var rows: [[String]] = [["agent:", agent], ["state:", state(status)]]
        if status["known"] == false {
            let kind = status["kind"]?.string ?? ""
            rows.append(["kind:", "the server does not have the kind \(kind): nothing is done until it does"])
            rows.append(["", "add \(kind).md to the agents folder, or start the program that has it; `parley agents` lists the kinds"])
        }
        for (name, label) in [("reason", "reason:"), ("message", "message:"), ("remedy", "remedy:")] {
            if let text = status[name]?.string { rows.append([label, Columns.prose(text)]) }
        }
        if let source = status["stalled"]?["source"]?.string { rows.append(["at:", source]) }
        if let turn = status["turn"]?.string { rows.append(["turn:", turn + restarts(status)]) }
        if let last = trace.flatMap({ lastTurn($0, agent) }) { rows.append(["last turn:", last]) }
        for wait in status["waiting_for"]?.array ?? [] { rows.append([waits(wait) ? "waits for:" : "runs:", text(ofStep: wait)]) }
        for approval in approvals(status) { rows.append(["", "parley approve \(agent) \(approval.name)"]) }
        if ["parked", "stalled"].contains(status["state"]?.string) {
            rows += [["", "parley resume \(agent)   tries again"], ["", "parley cancel \(agent)   ends the turn"]]
        }
        if let queued = status["queued"] {
            rows.append(["queued:", "\(queued["ahead"]?.integer ?? 0) behind this turn, the first since \(queued["since"]?.string ?? "")"])
        }
        if let undecided = status["undecided"]?.integer, undecided > 0 {
            rows.append(["undecided:", undecided == 1 ? "1 entry" : "\(undecided) entries"])
            rows += entries.prefix(undecidedMax).map { ["", text(ofEntry: $0)] }
            if entries.count > undecidedMax { rows.append(["", "… `parley audit \(agent)` lists all"]) }
        }
        rows += [["created:", status["created"]?.string ?? ""], ["end offset:", status["tail_offset"]?.string ?? ""]]
        return Columns.lines(rows)
    }

    /// The approvals that wait for a decision: the name of each, and what is asked.
    static func approvals(_ status: JSON) -> [(name: String, asks: String)] {
        let turn = status["turn"]?.string ?? ""
        return (status["waiting_for"]?.array ?? []).filter { $0["kind"] == "approval" }.map {
            ("\(turn)/\($0["step"]?.string ?? "")", WaitView.action($0))
        }
    }

    private static func text(ofEntry entry: JSON) -> String {
        let said = entry["text"]?.string ?? entry["name"]?.string ?? entry["approval"]?.string ?? entry["reason"]?.string
        let isKept = entry["type"] == "signal" ? ", kept until a turn waits for it" : ""
        return
            "\(entry["type"]?.string ?? "") \(entry["offset"]?.string ?? "") by \(TerminalText.name(entry["by"]?.string ?? "")) at \(entry["at"]?.string ?? "")"
            + (said.map { ": \"\(Columns.prose($0))\"" } ?? "") + isKept
    }

    /// `failed 2 min ago, model_unauthorized (...)`.
    private static func lastTurn(_ trace: JSON, _ agent: String) -> String? {
        guard let turn = trace["turns"]?.array?.last, let state = turn["state"]?.string, state != "open" else { return nil }
        let instants = [turn["ended"], trace["at"]].compactMap { $0?.string.flatMap { Timestamp($0) } }
        let ago = instants.count == 2 ? " \(TraceView.roughly(instants[1].milliseconds - instants[0].milliseconds)) ago" : ""
        guard state == "failed" else { return state + ago }
        return "failed\(ago), \(turn["error"]?["code"]?.string ?? "for an unknown reason") (`parley trace \(agent)` shows it)"
    }

    private static func state(_ status: JSON) -> String {
        (status["state"]?.string ?? "") + (status["since"]?.string.map { " since \($0)" } ?? "")
    }

    private static func restarts(_ status: JSON) -> String {
        guard let count = status["restarts"]?.integer, count > 0 else { return "" }
        return ", \(count) restart\(count == 1 ? "" : "s")"
    }

    /// Whether the step needs a person, a signal or time to continue.
    private static func waits(_ step: JSON) -> Bool { ["approval", "sleep", "wait"].contains(step["kind"]?.string) }

    private static func text(ofStep wait: JSON) -> String {
        var text = WaitView.what(wait)
        if let step = wait["step"]?.string, step != wait["name"]?.string, waits(wait) { text += " (\(TerminalText.name(step)))" }
        if let attempt = wait["attempt"]?.integer, attempt > 1 { text += ", attempt \(attempt)" }
        if let since = wait["since"]?.string { text += ", since \(since)" }
        if let due = wait["due"]?.string { text += ", until \(due)" }
        if let retry = wait["retry_at"]?.string { text += ", again at \(retry)" }
        return text
    }
}

/// The wait of a step, in words: `approval of write_file {"path":"a.md"}`, `signal payment with {"order":"42"}`, `sleep`.
enum WaitView {
    private static let argumentCharactersMax = 160

    static func what(_ wait: JSON) -> String {
        let name = TerminalText.name(wait["name"]?.string ?? wait["step"]?.string ?? "")
        switch wait["kind"]?.string {
        case "approval": return "approval of \(action(wait))"
        case "wait":
            if let channel = wait["channel"]?.string { return "more of \(TerminalText.name(channel))" }
            return "signal \(name)" + (wait["match"].map { " with \(brief($0))" } ?? "")
        case "sleep": return name == "sleep" ? name : "sleep \(name)"
        case let kind: return "\(kind ?? "") \(TerminalText.name(wait["step"]?.string ?? ""))"
        }
    }

    /// The action to be approved, with its arguments where they are known.
    static func action(_ wait: JSON) -> String {
        TerminalText.name(wait["name"]?.string ?? wait["step"]?.string ?? "") + (wait["args"].map { " \(brief($0))" } ?? "")
    }

    /// The same with the time at which the wait ends by itself, for lists.
    static func brief(of wait: JSON) -> String { what(wait) + (wait["due"]?.string.map { " until \($0)" } ?? "") }

    private static func brief(_ value: JSON) -> String {
        let text = TerminalText(json: value).string
        return text.count > argumentCharactersMax ? text.prefix(argumentCharactersMax) + "…" : text
    }
}
