internal import ParleySystem

/// The `parley` program: `parley <command> [options]`.
@main
enum ParleyProgram {
    static func main() async {
        var arguments = Array(CommandLine.arguments.dropFirst())
        let status: ExitStatus
        switch arguments.first {
        case nil:
            Terminal.error(TerminalText(trusted: help))
            status = .usage
        case "--help", "-h": status = await run("help", [])
        case "--version": status = await run("version", [])
        case let name?:
            arguments.removeFirst()
            status = await run(name, arguments)
        }
        Terminal.exit(status)
    }

    static let version = Release.version

    static let commands: [any (Command & Sendable).Type] = [
        ServeCommand.self, AgentsCommand.self, BackupCommand.self,
        RunCommand.self, TailCommand.self, SendCommand.self, SteerCommand.self, InterruptCommand.self, CancelCommand.self,
        ResumeCommand.self, CloseCommand.self, ApproveCommand.self, DenyCommand.self, SignalCommand.self,
        ListCommand.self, StatusCommand.self, StateCommand.self, TraceCommand.self, AuditCommand.self, TokenCommand.self,
        CreateCommand.self, AppendCommand.self, ForkCommand.self, DeleteCommand.self,
        HelpCommand.self, CompletionCommand.self, VersionCommand.self,
    ]

    private static func run(_ name: String, _ arguments: [String]) async -> ExitStatus {
        guard let command = commands.first(where: { $0.name == name }) else {
            Terminal.error("parley: \(line: unknown(name))")
            return .usage
        }
        if arguments.contains("--help") || arguments.contains("-h") {
            Terminal.output(TerminalText(trusted: command.help + "\n"))
            return .done
        }
        do {
            return try await command.run(try Arguments(arguments, for: command))
        } catch let error as UsageError {
            Terminal.error(
                "parley \(name): \(line: Columns.prose(error.message))" + TerminalText(trusted: error.showsUsage ? "\n" + command.hint : "")
            )
            return .usage
        } catch {
            Terminal.error("parley \(name): \(line: Columns.prose("\(error)"))")
            return (error as? FollowError)?.exit ?? .failed
        }
    }

    static func unknown(_ name: String) -> String {
        if name.hasPrefix("-") { return "'\(name)' stands before the command; options follow it: parley <command> \(name) ..." }
        let meant = Suggestion.closest(to: name, in: commands.map { $0.name })
        return "unknown command '\(name)'.\(meant.map { " Did you mean '\($0)'?" } ?? "") `parley help` lists the commands."
    }

    static var help: String {
        let width = commands.map { $0.name.count }.max() ?? 0
        let lines = commands.map { "  \($0.name)\(String(repeating: " ", count: width - $0.name.count + 2))\($0.summary)" }
        return """
            parley \(version): durable agents, each with one channel that anyone can follow and talk to

            usage: parley <command> [options]

            \(lines.joined(separator: "\n"))

            `parley help <command>` says more. An agent is named <kind>/<id>, any other channel /<name>.

              PARLEY_URL      the server; --server <url> overrides it; default http://127.0.0.1:4437
              PARLEY_TOKEN    the key or token to present, if the server requires one; --token-file <file> reads it from a file
              PARLEY_CA_FILE  certificate authorities to trust besides the system's (PEM)

            Data goes to standard output, everything else to standard error. Exit status: 0 done, 1 failed, 2 usage.
            """
    }
}

enum ExitStatus: Int32 {
    case done = 0
    case failed = 1
    case usage = 2
}

/// One command of the program.
protocol Command {
    static var name: String { get }
    static var summary: String { get }
    static var usage: String { get }
    static var help: String { get }
    /// Its options: the name without `--`, and whether a value follows.
    static var options: [CommandOption] { get }
    static func run(_ arguments: Arguments) async throws -> ExitStatus
}

struct CommandOption: Sendable {
    var name: String
    var takesValue: Bool
    /// The values that completion offers; empty: any.
    var choices: [String] = []

    /// An option with a value, `--name <value>`.
    static func value(_ name: String, _ choices: [String] = []) -> CommandOption {
        CommandOption(name: name, takesValue: true, choices: choices)
    }
    /// An option that is there or not, `--name`.
    static func flag(_ name: String) -> CommandOption { CommandOption(name: name, takesValue: false) }
}

/// The words typed after the command's name.
struct Arguments {
    private(set) var positional: [String] = []
    private var values: [String: [String]] = [:]

    /// The options of every command.
    static let common: [CommandOption] = [.value("token-file")]

    init(_ words: [String], for command: any Command.Type) throws(UsageError) {
        var rest = words[...]
        while let word = rest.popFirst() {
            guard word.hasPrefix("--"), word.count > 2 else {
                if word == "--" {
                    positional += rest
                    return
                }
                if word.count == 2, word.first == "-", word.last!.isLetter {
                    throw UsageError("unknown option '\(word)'; options have long names: \(Arguments.names(of: command)).")
                }
                positional.append(word)
                continue
            }
            let parts = word.dropFirst(2).split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let name = String(parts[0])
            let options = command.options + Arguments.common
            guard let option = options.first(where: { $0.name == name }) else {
                let names = options.map(\.name)
                let meant = Suggestion.closest(to: name, in: names) ?? Arguments.synonyms[name].flatMap { names.contains($0) ? $0 : nil }
                // A text, by mistake: no option has a blank in its name.
                let isText = name.contains(where: \.isWhitespace)
                throw UsageError(
                    "unknown option '--\(name)'." + (meant.map { " Did you mean '--\($0)'?" } ?? "")
                        + (isText ? " A text that begins with -- goes behind a word --." : ""))
            }
            if option.takesValue {
                guard let value = parts.count > 1 ? String(parts[1]) : rest.popFirst() else {
                    throw UsageError("option '--\(name)' needs a value.")
                }
                // Most likely a variable that is not set. A reason may be none.
                guard !value.isEmpty || name == "reason" else { throw UsageError("--\(name) is ''; expected at least one character.") }
                values[name, default: []].append(value)
            } else {
                guard parts.count == 1 else { throw UsageError("option '--\(name)' takes no value.") }
                values[name] = [""]
            }
        }
    }

    /// Names of other programs, and of the protocol, for an option.
    private static let synonyms = ["offset": "from", "since": "from", "content-type": "type", "expires": "expires-at"]

    private static func names(of command: any Command.Type) -> String {
        (command.options + common).map { "--\($0.name)" }.joined(separator: ", ")
    }

    /// The option's value; the last one if it was given several times.
    subscript(option: String) -> String? { values[option]?.last }
    func all(_ option: String) -> [String] { values[option] ?? [] }
    func has(_ option: String) -> Bool { values[option] != nil }

    /// Refuses an option whose value is neither an offset nor one of `others`.
    func check(_ option: String, _ others: [String]) throws(UsageError) {
        guard let value = self[option], !others.contains(value), value.utf8.count != 16 || UInt64(value, radix: 16) == nil else { return }
        let expected = others.map { "\"\($0)\"" } + ["an offset of 16 hexadecimal digits, as it was given out"]
        let isShort =
            (1...15).contains(value.utf8.count) && UInt64(value, radix: 16) != nil && !value.hasPrefix("-") && !value.hasPrefix("+")
        let meant = isShort ? " Did you mean \(String(repeating: "0", count: 16 - value.utf8.count) + value)?" : ""
        throw UsageError("--\(option) is '\(value)'; expected \(expected.joined(separator: ", or ")).\(meant)")
    }

    /// Refuses an option whose value is no instant.
    func checkInstant(_ option: String) throws(UsageError) {
        guard let value = self[option], Timestamp(value) == nil else { return }
        throw UsageError("--\(option) is '\(value)'; expected an instant such as 2026-01-31T09:30:00Z.")
    }

    /// Refuses words behind the first `count`.
    func requireAtMost(_ count: Int) throws(UsageError) {
        if let word = positional.dropFirst(count).first { throw UsageError("'\(word)' was not expected.") }
    }

    /// The channel of the agent that the first word names.
    func agent() throws(UsageError) -> String {
        let word = try require(0, "<kind>/<id>")
        do throws(UsageError) { return try ChannelArgument.agent(word) } catch {
            guard let meant = ChannelArgument.meant(by: positional) else { throw error }
            throw UsageError("'\(word)' is no agent. Did you mean \(meant)?")
        }
    }

    func require(_ index: Int, _ what: String) throws(UsageError) -> String {
        guard positional.indices.contains(index) else { throw UsageError("\(what) is missing.") }
        return positional[index]
    }
}

extension Command {
    /// The hint after a misuse: the usage, or where to find it when it is long.
    static var hint: String { usage.split(separator: "\n").count <= 3 ? usage : "`parley help \(name)` lists the options." }
}

struct UsageError: Error {
    var message: String
    /// Whether the way of calling the command would help.
    var showsUsage = true

    init(_ message: String, showsUsage: Bool = true) { (self.message, self.showsUsage) = (message, showsUsage) }
}
