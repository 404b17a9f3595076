internal import ParleySystem

/// `parley completion <shell>`: prints what completes this program's commands and options in a shell.
enum CompletionCommand: Command {
    static let name = "completion"
    static let summary = "print a completion script for bash, zsh or fish"
    static let usage = "usage: parley completion bash | zsh | fish"
    static let help = """
        \(usage)

          bash  source <(parley completion bash)                                     in ~/.bashrc
          zsh   source <(parley completion zsh)                                      in ~/.zshrc, after compinit
          fish  parley completion fish > ~/.config/fish/completions/parley.fish
        """
    static let options: [CommandOption] = []

    static func run(_ arguments: Arguments) async throws -> ExitStatus {
        let shell = try arguments.require(0, "the shell")
        try arguments.requireAtMost(1)
        guard let write = shells[shell] else { throw UsageError("the shell is '\(shell)'; expected bash, zsh or fish.") }
        Terminal.output(TerminalText(trusted: write() + "\n"))
        return .done
    }

    private static let shells: [String: @Sendable () -> String] = ["bash": bash, "zsh": zsh, "fish": fish]

    private static var names: String { ParleyProgram.commands.map { $0.name }.joined(separator: " ") }

    private static func options(_ command: any Command.Type) -> [CommandOption] {
        command.options + (command.options.isEmpty ? [] : Arguments.common) + [.flag("help")]
    }

    /// The arguments of a command, if they are known.
    private static func taken(_ command: any Command.Type) -> [String] {
        switch command.name {
        case CompletionCommand.name: shells.keys.sorted()
        case HelpCommand.name: ParleyProgram.commands.map { $0.name }
        case AgentsCommand.name: ["check"]
        default: []
        }
    }

    /// Its options whose values are known, each with these.
    private static func chosen(_ command: any Command.Type) -> [(option: String, values: String)] {
        options(command).filter { !$0.choices.isEmpty }.map { ($0.name, $0.choices.joined(separator: " ")) }
    }

    /// The words that can follow a command: options; and for some, what they take.
    private static func words(_ command: any Command.Type) -> String {
        (taken(command) + options(command).map { "--\($0.name)" }).joined(separator: " ")
    }

    @Sendable private static func bash() -> String {
        let cases = ParleyProgram.commands.map { "        \($0.name)) words=\"\(words($0))\" ;;" }
        let values = ParleyProgram.commands.flatMap { command in
            chosen(command).map { "        '\(command.name) --\($0.option)') words=\"\($0.values)\" ;;" }
        }
        return """
            # parley completion bash
            _parley() {
                local words="\(names)"
                if [ "$COMP_CWORD" -gt 1 ]; then
                    case "${COMP_WORDS[1]}" in
            \(cases.joined(separator: "\n"))
                    *) words="" ;;
                    esac
                    case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD - 1]}" in
            \(values.joined(separator: "\n"))
                    esac
                fi
                COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
            }
            complete -o default -F _parley parley
            """
    }

    @Sendable private static func zsh() -> String {
        let names = ParleyProgram.commands.map { "        '\($0.name):\(quoted($0.summary))'" }
        let cases = ParleyProgram.commands.map { "        \($0.name)) compadd -- \(words($0)); _files ;;" }
        let values = ParleyProgram.commands.flatMap { command in
            chosen(command).map { "        '\(command.name) --\($0.option)') compadd -- \($0.values); return ;;" }
        }
        return """
            #compdef parley
            _parley() {
                local -a commands=(
            \(names.joined(separator: "\n"))
                )
                if (( CURRENT == 2 )); then
                    _describe command commands
                    return
                fi
                case "$words[2] $words[CURRENT-1]" in
            \(values.joined(separator: "\n"))
                esac
                case "$words[2]" in
            \(cases.joined(separator: "\n"))
                esac
            }
            compdef _parley parley
            """
    }

    @Sendable private static func fish() -> String {
        let commands = ParleyProgram.commands.flatMap { command in
            ["complete -c parley -n __fish_use_subcommand -f -a \(command.name) -d '\(quoted(command.summary))'"]
                + (taken(command).isEmpty
                    ? []
                    : ["complete -c parley -n '__fish_seen_subcommand_from \(command.name)' -a '\(taken(command).joined(separator: " "))'"])
                + options(command).map { option in
                    "complete -c parley -n '__fish_seen_subcommand_from \(command.name)' -l \(option.name)\(value(option))"
                }
        }
        return "# parley completion fish\n" + commands.joined(separator: "\n")
    }

    private static func value(_ option: CommandOption) -> String {
        option.choices.isEmpty ? option.takesValue ? " -r" : "" : " -x -a '\(option.choices.joined(separator: " "))'"
    }

    private static func quoted(_ text: String) -> String { text.replacing("'", with: "'\\''") }
}
