internal import FoundationEssentials
internal import Parley
internal import ParleySystem

/// `parley agents`: lists the kinds of agents; `parley agents check`: finds mistakes in their files.
enum AgentsCommand: Command {
    static let name = "agents"
    static let summary = "list the kinds of agents with file, model and tools, or check agent files"
    static let usage = "usage: parley agents [--json] [--server <url>] | parley agents check [<folder> | <file>] [--json]"
    static let help = """
        \(usage)

        Lists the kinds that the server has: kind, model, tools (* asks a person first), file. `parley ls` lists the agents themselves.

        `check` reads the files of a folder, by default ./agents, or one file, as `parley serve` would, without a server. Each mistake is a
        line with file, line, field, value, accepted values and remedy on standard error; exit status 1 if there is one. What a file needs
        from the environment at start, such as PARLEY_MODEL, is a notice.

          --json  one object per line: of a kind; with check, of a file: file, kind, ok, problems (line, field, message), notices
        """
    static let options: [CommandOption] = [.flag("json"), .value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        guard let word = arguments.positional.first else { return try list(arguments) }
        guard word == "check" else { throw UsageError("'\(word)' was not expected; expected check, or nothing.") }
        try arguments.requireAtMost(2)
        let folder = arguments.positional.dropFirst().first
        let check = try AgentCheck(folder: folder, Terminal.allEnvironment)
        if arguments.has("json") {
            for file in check.files { Terminal.output("\(json: file.json)\n") }
        } else {
            show(check.files.compactMap(\.kind), arguments)
            for line in check.files.flatMap({ $0.problems + $0.notices }) { Terminal.error("\(line: line)") }
        }
        for problem in check.problems { Terminal.error("\(line: problem)") }
        if check.files.isEmpty, check.problems.isEmpty { Terminal.error("there is no file <kind>.md in \(check.folder)") }
        return check.isRight ? .done : .failed
    }

    private static func list(_ arguments: Arguments) throws -> ExitStatus {
        let client = try Client(arguments)
        let answer = try client.request("GET", "/v1/kinds")
        guard answer.status == 200, let kinds = answer.json?["kinds"]?.array else { throw client.refusal(answer) }
        show(kinds, arguments)
        return .done
    }

    private static func show(_ kinds: [JSON], _ arguments: Arguments) {
        if arguments.has("json") { return kinds.forEach { Terminal.output("\(json: $0)\n") } }
        Terminal.output(TerminalText(lines: Columns.lines(kinds.map(row))))
    }

    private static func row(_ kind: JSON) -> [String] {
        let asks = Set((kind["approve"]?.array ?? []).compactMap(\.string))
        let tools = (kind["tools"]?.array ?? []).compactMap(\.string).map { asks.contains($0) ? $0 + "*" : $0 }
        let isSwift = kind["source"] == "swift"
        return [
            kind["kind"]?.string ?? "", kind["model"]?.string ?? "-", tools.isEmpty ? "-" : tools.joined(separator: ","),
            isSwift ? "(Swift)" : kind["file"]?.string ?? "",
        ]
    }
}

/// `parley backup <folder>`: copies a running node's data.
enum BackupCommand: Command {
    static let name = "backup"
    static let summary = "copy all data of a running node into a new folder"
    static let usage = "usage: parley backup <folder> [--server <url>]"
    static let help = """
        \(usage)

        Makes a consistent copy while the node runs: everything acknowledged before is in it, with agents' files and signing keys. The folder is
        on the server's machine, and must be new or empty. `parley serve --data <folder>` opens it; turns that were running then continue there,
        so open it only in place of the node that it was copied from. Needs a key, or a token that allows **:admin.
        """
    static let options: [CommandOption] = [.value("server")]

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let word = try arguments.require(0, "the folder")
        try arguments.requireAtMost(1)
        guard !word.isEmpty else { throw UsageError("the folder is ''; expected a path of a new folder on the server's machine.") }
        let folder = word.hasPrefix("/") ? word : FileManager.default.currentDirectoryPath + "/" + word
        let body: JSON = ["folder": .string(folder)]
        let client = try Client(arguments)
        let answer = try client.request(
            "POST", "/v1/backup", headers: [("Content-Type", "application/json")], body: body.bytes, patience: .seconds(86_400))
        guard answer.status == 201 else { throw client.refusal(answer) }
        Terminal.output("\(folder)\n")
        Terminal.error("the copy is complete; `parley serve --data \(word)` opens it")
        return .done
    }
}
