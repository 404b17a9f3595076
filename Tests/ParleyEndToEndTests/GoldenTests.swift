import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// The program's texts, word for word, in files that a reviewer reads: `Golden/*.txt`. `PARLEY_GOLDEN=write swift test --filter Golden` writes them
/// again.
@Suite struct `Golden texts of the command line` {
    private static let folder = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "Golden")

    /// Compares `text` with the file, or writes the file.
    private static func check(_ name: String, _ text: String) throws {
        let file = folder.appending(path: name + ".txt")
        if ProcessInfo.processInfo.environment["PARLEY_GOLDEN"] == "write" {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try Data(text.utf8).write(to: file)
        }
        let golden = try String(contentsOf: file, encoding: .utf8)
        #expect(text == golden, "Golden/\(name).txt differs; if the new text is right, run with PARLEY_GOLDEN=write")
    }

    private static func commands() throws -> [String] {
        let lines = try parley("help").standard.split(separator: "\n", omittingEmptySubsequences: false)
        return lines.drop { !$0.hasPrefix("usage:") }.dropFirst(2).prefix { !$0.isEmpty }.compactMap { line in
            line.split(separator: " ").first.map(String.init)
        }
    }

    @Test func `help, of the program and of each command, asked for in either way`() async throws {
        try await OwnThread.run {
            let commands = try Self.commands()
            #expect(commands.count > 20 && commands.contains("serve"), "\(commands)")
            var all = try parley("help").standard
            #expect(try parley("--help").standard == all)
            for command in commands {
                let help = try parley("help", command)
                #expect(help.exit == .status(0) && help.error.isEmpty)
                #expect(try parley(command, "--help").standard == help.standard)
                all += "\n$ parley help \(command)\n" + help.standard
            }
            try Self.check("help", all)
        }
    }

    /// Everything that is refused before a server is asked.
    private static let mistakes = [
        "tial writer/one", "help tial", "serve --lisen x", "serve --listen", "serve --listen here", "serve --listen 0.0.0.0:80",
        "serve --drain soon", "serve --agents /nowhere", "serve --agents /dev/null",
        "serve everything", "serve --webhook-events message", "run", "run writer hi", "run writer/one", "run writer/one hi --data 1",
        "run writer/one --data {", "run writer/one @/nowhere", "run writer/o?ne hi", "run writer/one hi --server nowhere",
        "run writer/one hi --jsn",
        "run writer/one hi --json=yes", "run writer/one hi --key=", "run writer/one --hello", "ls -k writer", "steer", "cancel writer",
        "token", "tail", "tail /a//b", "tail /x --from yesterday", "tail /x --from 1", "tail /x --offset 1", "ls orders",
        "append /orders/1",
        "append /x 1 --if-tail 1", "fork /orders/1", "create /x --ttl soon", "close writer/one now", "state writer", "signal writer/one",
        "signal writer/one go {", "agents chekc", "agents check /nowhere", "completion tcsh", "token --allow agents/**",
        "token --allow **:read",
        "token --name ann", "create orders", "serve --keys nokeys", "token --keys nokeys --allow **:read --name ann",
        "ls --token-file nokeys", "token --expires never --name ann --allow **:read", "backup",
        "serve --tls-cert nocert --tls-key nokey", "serve --tls-cert nocert", "serve --public nofolder", "--server x ls",
        "trace writer/one --turn 5", "audit writer/one --since yesterday",
    ]

    @Test func `mistakes`() async throws {
        try await OwnThread.run {
            var all = ""
            for line in Self.mistakes {
                let process = try ChildProcess(Products.path("parley"), line.split(separator: " ").map(String.init))
                let exit = try process.waitForExit("parley \(line)")
                #expect(
                    exit == .status(line == "agents check /nowhere" ? 1 : 2) && process.output.standard.isEmpty,
                    "\(line): \(process.output)")
                all += "$ parley \(line)\n\(process.output.error)\n"
            }
            try Self.check("mistakes", all)
        }
    }

    /// Requests that a server refuses, or answers with nothing: in order, on one server with the agents clerk/me, which waits for an approval, and
    /// writer/done, which is closed.
    private static let refusals = [
        "status writer/nobody", "cancel writer/nobody", "interrupt writer/nobody", "close writer/nobody", "resume writer/nobody",
        "approve writer/nobody", "deny writer/nobody 0000000000000001/x", "cancel clerk/em", "tail clerk/em", "trace clerk/em",
        "run wirter/one hi", "run poet/one hi", "cancel poet/one", "tail orders/42", "tail /orders/42", "append /orders/42 1",
        "fork /orders/42 /orders/43", "delete /orders/42", "status /orders/42", "ls --kind wirter", "ls --kind writer --state parked",
        "ls --state happy", "ls /nothing",
        "approve clerk/me bogus", "deny clerk/me 0000000000000001/bogus", "resume clerk/me", "trace clerk/me --turn 0000000000000009",
        "cancel clerk/me --if-turn 0000000000000009", "cancel writer/idle", "approve writer/idle", "send writer/done hi",
        "cancel writer/done",
        "create /orders/1", "create /orders/1", "create writer/idle", "fork /orders/1 /orders/2", "fork /orders/1 /orders/2",
        "append /orders/1 1 --if-tail 0000000000000009", "append /orders/1 hello", "append clerk/me hello",
        "tail /orders/1 --from 00000000000000ff", "tail orders", "create /agents/x", "create /__ds/x", "create /llm/x",
        "create writer/done",
        "create /orders/1 --type text/plain", "fork clerk/me clerk/copy", "tail /it's", "send clerk/me @BIG", "run clerk/me @BIG",
        "delete clerk/nobody", "run clerk/me hi --server SERVER/v1",
        "delete /orders/1", "delete writer/done",
        "send writer/done hi",
        "token --allow **:read --name ann",
    ]

    @Test func `refusals of a server`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["writer.md": "---\n---\nWrite.\n", "clerk.md": "---\ntools: [write_file]\n---\nNote.\n"],
                environment: ["PARLEY_MODEL": "scripted:rate=0"])
            try node.start()
            let server = ["PARLEY_URL": node.url]
            let call = "call: write_file {\"path\": \"a.md\", \"text\": \"a\"}"
            let run = try ChildProcess(Products.path("parley"), ["run", "clerk/me", call], environment: server)
            try run.wait("the approval to be asked for") { $0.error.contains("asks for approval") ? true : nil }
            #expect(try parley("run", "writer/done", "say: hi", environment: server).exit == .status(0))
            #expect(try parley("close", "writer/done", environment: server).exit == .status(0))
            #expect(try parley("create", "writer/idle", environment: server).exit == .status(0))
            let big = node.folder + "/big.txt"
            try Data(repeating: UInt8(ascii: "a"), count: 2 << 20).write(to: URL(filePath: big))
            var all = ""
            for line in Self.refusals {
                let process = try ChildProcess(
                    Products.path("parley"),
                    line.replacing("SERVER", with: node.url).replacing("@BIG", with: "@" + big).split(separator: " ").map(String.init),
                    environment: server)
                try process.waitForExit("parley \(line)")
                let said = process.output.error.split(separator: "\n", omittingEmptySubsequences: false).filter {
                    !$0.hasPrefix("durable; waiting")
                }
                all += "$ parley \(line)\n\(said.joined(separator: "\n"))\n"
            }
            try Self.check("refusals", all.replacing(node.url, with: "http://127.0.0.1:4437"))
        }
    }

    @Test func `completion for three shells`() async throws {
        try await OwnThread.run {
            for shell in ["bash", "zsh", "fish"] { try Self.check("completion-\(shell)", try parley("completion", shell).standard) }
        }
    }

    @Test func `the completion of bash completes commands and their options`() async throws {
        try await OwnThread.run {
            func completed(_ words: String) throws -> [String] {
                let script = """
                    source <("$0" completion bash)
                    COMP_WORDS=(parley \(words)); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _parley; printf '%s\\n' "${COMPREPLY[@]}"
                    """
                let bash = try ChildProcess("/bin/bash", ["-c", script, Products.path("parley")])
                #expect(try bash.waitForExit("bash") == .status(0), "\(bash.output.error)")
                return bash.output.standard.split(separator: "\n").map(String.init)
            }
            #expect(try completed("ls --state pa") == ["parked"])
            #expect(try completed("audit writer/one --type appro") == ["approve", "approval"])
            let found = try ["ta", "run writer/one --js", "completion f"].map(completed)
            #expect(found == [["tail"], ["--json"], ["fish"]])
        }
    }
}
