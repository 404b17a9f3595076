internal import ParleySystem

/// `parley help [<command>]`.
enum HelpCommand: Command {
    static let name = "help"
    static let summary = "say what a command does and takes"
    static let usage = "usage: parley help [<command>]"
    static let help = usage
    static let options: [CommandOption] = []

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(1)
        var text = ParleyProgram.help
        if let name = arguments.positional.first {
            guard let command = ParleyProgram.commands.first(where: { $0.name == name }) else {
                throw UsageError(ParleyProgram.unknown(name))
            }
            text = command.help
        }
        Terminal.output(TerminalText(trusted: text + "\n"))
        return .done
    }
}

/// `parley version`.
enum VersionCommand: Command {
    static let name = "version"
    static let summary = "print the version of this program"
    static let usage = "usage: parley version"
    static let help = usage
    static let options: [CommandOption] = []

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        try arguments.requireAtMost(0)
        Terminal.output("parley \(ParleyProgram.version)\n")
        return .done
    }
}
