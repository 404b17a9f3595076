internal import ParleyHTTP
internal import ParleySystem

/// `parley trace <kind>/<id>`: shows what happened in an agent's turns.
enum TraceCommand: Command {
    static let name = "trace"
    static let summary = "show an agent's turns as a tree of steps, models, waits and approvals"
    static let usage =
        "usage: parley trace <kind>/<id> [--turn <offset>] [--limit <n>] [--before <offset>] [--json] [--server <url>]"
    static let help = """
        \(usage)

        Prints a line for each step: its duration, its place within the turn (in a terminal), and details. What people sent is shown below the
        step that it reached, and calls of a model that no tool ran for below the model's step, with what the model was told.

          --turn <offset>   only this turn: the offset of its message
          --limit <n>       the newest <n> turns; default 20
          --before <offset> the page before: the offset that the last page printed
          --json            the server's answer as it is
        """
    static let options: [CommandOption] = [.value("turn"), .value("limit"), .value("before"), .flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        for name in ["turn", "before"] { try arguments.check(name, []) }
        if arguments.has("turn"), arguments.has("before") {
            throw UsageError("there are --turn and --before; expected --turn for one turn, or --before for a page.")
        }
        let answer = try RecordQuery.ask("trace", ["turn", "limit", "before"], arguments)
        guard !arguments.has("json") else { return .done }
        if answer["turns"]?.array?.isEmpty ?? true { RecordQuery.sayNone("turns", besides: ["before"], arguments) }
        Terminal.output(TerminalText(lines: TraceView(answer, draws: Terminal.isOutputDrawn).lines))
        RecordQuery.sayNext(answer, "older turns")
        return .done
    }
}

/// `parley audit <kind>/<id>`: shows who did what.
enum AuditCommand: Command {
    static let name = "audit"
    static let summary = "list what people sent to an agent, and what became of each approval"
    static let usage = """
        usage: parley audit <kind>/<id> [--by <principal>] [--type <type>,...] [--since <instant>] [--until <instant>]
                            [--limit <n>] [--before <offset>] [--json] [--server <url>]
        """
    static let help = """
        \(usage)

        Prints a line for each entry that was sent to the agent, with its receipt, and a line for each approval: what was requested, who
        decided, and what was executed. Calls of a model that were refused before a person was asked are in `parley trace`.

          --by <principal>  only what this principal sent or decided
          --type <type>     message, steer, interrupt, cancel, approve, deny, signal, close, resume or approval; several with commas
          --since <instant> e.g. 2026-01-31T09:30:00Z
          --until <instant>
          --limit <n>       the newest <n> records; default 100
          --before <offset> the page before: the offset that the last page printed
          --json            the server's answer as it is
        """
    static let options: [CommandOption] =
        [.value("by"), .value("type", types)] + ["since", "until", "limit", "before", "server"].map { .value($0) } + [.flag("json")]
    private static let types = ["message", "steer", "interrupt", "cancel", "approve", "deny", "signal", "close", "resume", "approval"]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        for name in ["since", "until"] { try arguments.checkInstant(name) }
        try arguments.check("before", [])
        let answer = try RecordQuery.ask("audit", ["by", "type", "since", "until", "limit", "before"], arguments)
        guard !arguments.has("json") else { return .done }
        if answer["records"]?.array?.isEmpty ?? true {
            RecordQuery.sayNone("records", besides: ["by", "type", "since", "until", "before"], arguments)
        }
        Terminal.output(TerminalText(lines: AuditView.lines(answer)))
        RecordQuery.sayNext(answer, "older records")
        return .done
    }
}

/// `parley state <kind>/<id>`: shows what an agent remembers.
enum StateCommand: Command {
    static let name = "state"
    static let summary = "print an agent's saved state as JSON"
    static let usage = "usage: parley state <kind>/<id> [--json] [--server <url>]"
    static let help = """
        \(usage)

        Prints the state that an agent in Swift has saved with its last completed turn; null if it has saved none. Agents in Markdown have no
        state: their conversation is the channel.

          --json  the server's answer as it is: the state, and the offset where it was saved
        """
    static let options: [CommandOption] = [.flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let answer = try RecordQuery.ask("state", [], arguments)
        if !arguments.has("json") { Terminal.output("\(json: answer["state"] ?? .null)\n") }
        return .done
    }
}

/// The query that they send to the server.
private enum RecordQuery {
    /// Asks, and with `--json` prints the answer.
    static func ask(_ record: String, _ parameters: [String], _ arguments: Arguments) throws -> JSON {
        let channel = try arguments.agent()
        try arguments.requireAtMost(1)
        let query = parameters.compactMap { name in arguments[name].map { "\(name)=\(PercentEncoding.encode($0))" } }
        let client = try Client(arguments)
        let answer = try client.request("GET", "/v1/\(channel)/\(record)?" + query.joined(separator: "&"))
        guard answer.status == 200, let json = answer.json else { throw client.refusal(answer, of: channel) }
        if arguments.has("json") { Terminal.output("\(json: json)\n") }
        return json
    }

    /// An empty answer of an agent that is there may come from the options.
    static func sayNone(_ what: String, besides filters: [String], _ arguments: Arguments) {
        let given = filters.compactMap { name in arguments[name].map { "--\(name) \($0)" } }
        let agent = arguments.positional[0]
        Terminal.error(
            "\(line: given.isEmpty ? "\(agent) has no \(what) yet" : "\(agent) has no \(what) with \(given.joined(separator: " "))")")
    }

    static func sayNext(_ answer: JSON, _ what: String) {
        if let next = answer["next"]?.string { Terminal.error("\(what): --before \(next)") }
    }
}

/// An audit in a terminal: a record a line, in columns.
enum AuditView {
    static func lines(_ answer: JSON) -> [String] {
        let rows = (answer["records"]?.array ?? []).map { record in
            [
                record["at"]?.string ?? record["requested"]?["at"]?.string ?? "", record["type"]?.string ?? "",
                TerminalText.name(record["by"]?.string ?? "-"), outcome(record), detail(record),
            ]
        }
        return Columns.lines(rows)
    }

    private static func outcome(_ record: JSON) -> String {
        if record["type"] == "approval" { return record["state"]?.string ?? "" }
        guard let receipt = record["receipt"], let state = receipt["state"]?.string else { return "undecided" }
        return state + (receipt["reason"]?.string.map { " (\($0))" } ?? "")
    }

    private static func detail(_ record: JSON) -> String {
        guard record["type"] == "approval" else {
            return [
                record["text"]?.string.map { "\"\(Columns.prose($0))\"" }, record["name"]?.string.map(TerminalText.name),
                record["approval"]?.string,
                record["reason"]?.string.map { "reason: \(Columns.prose($0))" },
            ].compactMap { $0 }.joined(separator: " ")
        }
        let action = "\(TerminalText.name(record["action"]?.string ?? "")) (args \(record["args_sha256"]?.string?.prefix(12) ?? "-")) "
        let decided = record["decided"]?["at"]?.string.map { "at \($0), " } ?? ""
        return action + decided + (record["state"] == "open" ? "waits for a decision" : executed(record["executed"]))
    }

    private static func executed(_ step: JSON?) -> String {
        guard let path = step?["step"]?.string else { return "nothing executed" }
        let attempts = step?["attempts"]?.integer ?? 1
        let end = step?["ended"]?["at"]?.string.map { " at \($0)" } ?? ""
        return "executed by \(path): \(step?["state"]?.string ?? "")\(end)" + (attempts > 1 ? ", \(attempts) attempts" : "")
    }
}

enum Columns {
    /// The rows with their columns, but for the last, made as wide as their widest cell. A cell's text stays in its cell.
    static func lines(_ rows: [[String]]) -> [String] {
        let rows = rows.map { row in row.map { TerminalText.line($0) } }
        var widths: [Int] = []
        for row in rows {
            for (index, cell) in row.enumerated() {
                if index < widths.count { widths[index] = max(widths[index], cell.count) } else { widths.append(cell.count) }
            }
        }
        return rows.map { row in
            row.enumerated().map { index, cell in index == row.count - 1 ? cell : pad(cell, widths[index]) }.joined(separator: "  ")
        }
    }

    static func pad(_ text: String, _ width: Int) -> String { text + String(repeating: " ", count: max(0, width - text.count)) }

    /// Prose on one line, its line breaks as blanks.
    static func prose(_ text: String) -> String { TerminalText.line(text.split(whereSeparator: \.isNewline).joined(separator: " ")) }

    static func padLeft(_ text: String, _ width: Int) -> String { String(repeating: " ", count: max(0, width - text.count)) + text }
}
