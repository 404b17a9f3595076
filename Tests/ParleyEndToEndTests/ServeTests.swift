import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// How a node starts, what it says, and how it takes up changed agent files.
@Suite struct `Serving` {
    private static let writer = "---\nkind: writer\n---\nWrite.\n"

    private static let poet = writer.replacing("writer", with: "poet")

    private static func scripted(_ agents: [String: String] = ["writer.md": writer]) throws -> EndToEndNode {
        try EndToEndNode(agents: agents, environment: ["PARLEY_MODEL": "scripted"])
    }

    private static func write(_ text: String, _ name: String, _ node: EndToEndNode) throws {
        try Data(text.utf8).write(to: URL(filePath: "\(node.agentsFolder)/\(name)"))
    }

    @Test func `says where it listens and commands that work, once it listens`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted(["writer.md": Self.writer, "clerk.md": "---\ntools: [write_file]\n---\nNote.\n"])
            // Port 0: the address is known only then.
            let process = try node.launch(options: ["--listen", "127.0.0.1:0"])
            let said = try process.wait("the banner") { $0.error.contains("  Stop ") ? $0.error : nil }
            let url = try #require(said.firstMatch(of: /export PARLEY_URL=(http:\/\/127\.0\.0\.1:[0-9]+)/)?.output.1)
            #expect(said.contains("serving \(url) from") && said.contains("Console    \(url)/"))
            let commands = said.split(separator: "\n").compactMap { $0.firstMatch(of: /(parley run .*)/).map { String($0.output.1) } }
            #expect(commands.count == 2, "\(said)")
            for command in commands {
                let run = try ChildProcess(
                    "/bin/sh", ["-c", command.replacing("parley ", with: "$parley ", maxReplacements: 1)],
                    environment: ["parley": Products.path("parley"), "PARLEY_URL": String(url)])
                if command.contains("write_file") {
                    try run.wait("the approval") { $0.error.contains("asks for approval") ? true : nil }
                    #expect(try parley("approve", "clerk/me", "--server", String(url)).exit == .status(0))
                }
                #expect(try run.waitForExit("\(command)") == .status(0), "\(run.output.error)")
            }
        }
    }

    @Test func `says that there is no agents folder`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let process = try ChildProcess(
                "/bin/sh", ["-c", "cd '\(folder)' && exec '\(Products.path("parley"))' serve --listen 127.0.0.1:0"], environment: [:])
            let said = try process.wait("the banner") { $0.error.contains("  Stop ") ? $0.error : nil }
            #expect(said.contains("there is no folder ./agents") && said.contains("--agents") && !said.contains("Reload"), "\(said)")
            process.send(SIGHUP)
            try process.wait("the answer to SIGHUP") {
                $0.error.contains("there are no agent files, key files or certificate") ? true : nil
            }
        }
    }

    @Test func `a program with agents in Swift ends in one line with the remedy, whatever is wrong`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode("steps-agent", environment: ["PARLEY_MODEL": "scripted"])
            try node.start()
            func end(_ options: [String], _ environment: [String: String]) throws -> (exit: ChildProcess.Exit, error: String, out: String) {
                let process = try ChildProcess(Products.path("steps-agent"), options, environment: environment)
                let exit = try process.waitForExit("steps-agent \(options)")
                return (exit, process.output.error, process.output.standard)
            }
            let other = ["--listen", "127.0.0.1:0", "--data", node.folder + "/other"]
            for (options, environment, status, says) in [
                (["--data", node.dataFolder], ["PARLEY_MODEL": "scripted"], 1, "--data"),
                (other, [:], 1, "PARLEY_MODEL is not set"),
                (other, ["PARLEY_MODEL": "sripted"], 1, "PARLEY_MODEL \"sripted\""),
                (other + ["--agents", node.folder + "/nowhere"], ["PARLEY_MODEL": "scripted"], 2, "/nowhere', which does not exist"),
                (["--lisen", "x"], ["PARLEY_MODEL": "scripted"], 2, "unknown option '--lisen'"),
                (
                    ["--listen", "127.0.0.1:\(node.port)", "--data", node.folder + "/other"], ["PARLEY_MODEL": "scripted"], 1,
                    "\(node.port)"
                ),
            ] as [([String], [String: String], Int32, String)] {
                let ended = try end(options, environment)
                #expect(ended.exit == .status(status) && ended.out.isEmpty, "\(options): \(ended)")
                #expect(ended.error.hasPrefix("steps-agent: ") && ended.error.contains(says), "\(ended.error)")
                #expect(ended.error.split(separator: "\n").count == 1, "\(ended.error)")
            }
            let help = try end(["--help"], [:])
            #expect(
                help.exit == .status(0) && help.out.contains("usage: steps-agent") && help.out.contains("--listen") && help.error.isEmpty)
        }
    }

    @Test func `an agent that takes data is proposed with data, and what it prints is seen at once`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode("steps-agent", environment: ["PARLEY_MODEL": "scripted"])
            try node.start()
            let said = try node.process.wait("the banner") { $0.error.contains("  Stop ") ? $0.error : nil }
            #expect(said.contains(/Talk to it +\S*parley run controlled\/me --data '{…}'/), "\(said)")
            let text = try parley("run", "controlled/me", "hello", "--server", node.url)
            #expect(
                text.exit == .status(1) && text.error.contains("it is a string; expected an object. Send it as the message's 'data'"),
                "\(text.error)")
            let data = try parley("run", "controlled/me", "--data", #"{"operations": ["print hello"]}"#, "--server", node.url)
            #expect(data.exit == .status(0), "\(data.error)")
            try node.process.wait("what the agent printed") { $0.standard.contains("hello\n") ? true : nil }
        }
    }

    @Test func `turns that fail are logged once for each agent and cause`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 1, rate: 0)
            upstream.behaviour.fault = .status(401)
            for agent in ["writer/one", "writer/one", "writer/two"] {
                #expect(try parley("run", agent, "Write.", "--server", node.url).exit == .status(1))
            }
            let lines = try node.process.output.error.split(separator: "\n").filter { $0.contains("a turn failed") }
            #expect(lines.count == 2 && lines.allSatisfy { $0.contains("code=model_unauthorized") }, "\(lines)")
            #expect(lines[0].contains("agent=writer/one") && lines[1].contains("agent=writer/two"))
        }
    }

    @Test(arguments: ["SIGHUP", "--watch-agents"])
    func `takes up changed and new agent files, and keeps what was right of those with mistakes`(_ way: String) async throws {
        try await OwnThread.run {
            let node = try Self.scripted(["writer.md": "---\nmax_tokens: 3\n---\nWrite.\n"])
            try node.start(options: way == "SIGHUP" ? [] : [way])
            let server = ["PARLEY_URL": node.url]
            let short = try parley("run", "writer/one", "Write.", environment: server).standard
            #expect(try parley("run", "poet/one", "Write.", environment: server).error.contains("unknown_agent_kind"))

            try Self.write("---\nmax_tokens: 9\n---\nWrite.\n", "writer.md", node)
            try Self.write(Self.poet, "poet.md", node)
            if way == "SIGHUP" { try node.process.send(SIGHUP) }
            try node.process.wait("both to be read") { $0.error.contains("poet") && $0.error.contains("writer") ? true : nil }
            // The agent is in memory, and its next turn has the new definition.
            #expect(try parley("run", "writer/one", "Write.", environment: server).standard.count > short.count)
            #expect(try parley("run", "poet/one", "say: a poem", environment: server).standard == "a poem\n")

            try Self.write("---\nmax_tokens: many\n---\nWrite.\n", "writer.md", node)
            if way == "SIGHUP" { try node.process.send(SIGHUP) }
            try node.process.wait("the mistake to be logged") {
                $0.error.contains("max_tokens \\\"many\\\" is not a whole number") ? true : nil
            }
            #expect(try parley("run", "writer/one", "Write.", environment: server).standard.count > short.count)
            let kinds = try parley("agents", environment: server).standard.split(separator: "\n")
            #expect(kinds.count == 2 && kinds[0].hasPrefix("poet ") && kinds[1].hasPrefix("writer "), "\(kinds)")
        }
    }

    @Test func `takes up unfinished work of a kind whose file comes back`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(agents: ["poet.md": Self.poet], environment: ["PARLEY_MODEL": "scripted:tokens=100,rate=500"])
            // The first turn does not end before the process does, however slow the machine is.
            try node.start(environment: ["PARLEY_MODEL": "scripted:tokens=100,rate=2"])
            let run = try ChildProcess(Products.path("parley"), ["run", "poet/one", "Write."], environment: ["PARLEY_URL": node.url])
            try run.wait("the beginning of the answer") { $0.standard.isEmpty ? nil : true }
            #expect(try parley("send", "poet/one", "Then this.", environment: ["PARLEY_URL": node.url]).exit == .status(0))
            try node.kill()
            try FileManager.default.removeItem(atPath: node.agentsFolder + "/poet.md")
            try node.start()
            #expect(try node.request("GET", "/v1/kinds").json == ["kinds": []])
            let status = try parley("status", "poet/one", environment: ["PARLEY_URL": node.url])
            #expect(status.standard.contains("the server does not have the kind poet"), "\(status)")
            #expect(status.standard.contains("add poet.md to the agents folder"), "\(status)")
            #expect(
                status.standard.contains(/undecided: +1 entry\n +message 0{8}[0-9a-f]{8} by anonymous at .*: "Then this\."/), "\(status)")
            try Self.write(Self.poet, "poet.md", node)
            try node.process.send(SIGHUP)
            #expect(try run.waitForExit("run to end with the turn") == .status(0), "\(run.output.error)")
        }
    }

    @Test func `agents check finds mistakes without a server`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted(["writer.md": Self.writer, "clerk.md": "---\ntools: [write_file]\n---\nNote.\n"])
            let model = ["PARLEY_MODEL": "scripted"]
            let good = try parley("agents", "check", node.agentsFolder, environment: model)
            #expect(good.exit == .status(0) && good.error.isEmpty && good.standard.contains("write_file*"), "\(good)")
            try Self.write("---\nmodle: scripted\n---\nNote.\n", "clerk.md", node)
            let bad = try parley("agents", "check", node.agentsFolder, environment: model)
            #expect(bad.exit == .status(1) && bad.error.contains("clerk.md:2: modle") && bad.standard.hasPrefix("writer "), "\(bad)")
        }
    }

    @Test func `agents check says what a right file needs at start, with status 0`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted(["writer.md": Self.writer, "poet.md": "---\nmodel: openai:gpt-5-mini\n---\nRhyme.\n"])
            let check = try parley("agents", "check", node.agentsFolder)
            #expect(
                check.exit == .status(0) && check.standard.contains("writer") && check.standard.contains("openai:gpt-5-mini"), "\(check)")
            #expect(check.error.contains("writer.md: needs PARLEY_MODEL at start"), "\(check.error)")
            #expect(check.error.contains("poet.md: needs OPENAI_API_KEY or OPENAI_BASE_URL at start"), "\(check.error)")
            let ready = ["PARLEY_MODEL": "scripted", "OPENAI_API_KEY": "sk-1"]
            #expect(try parley("agents", "check", node.agentsFolder, environment: ready).error.isEmpty)
            // The server would not start.
            let wrong = try parley("agents", "check", node.agentsFolder, environment: ["PARLEY_MODEL": "sripted"])
            #expect(wrong.exit == .status(1) && wrong.error.contains("PARLEY_MODEL \"sripted\" has no provider"), "\(wrong.error)")
        }
    }

    @Test func `agents check reads one file, too`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted(["writer.md": Self.writer, "clerk.md": "---\nmodle: x\n---\nNote.\n"])
            let model = ["PARLEY_MODEL": "scripted"]
            let good = try parley("agents", "check", node.agentsFolder + "/writer.md", environment: model)
            #expect(good.exit == .status(0) && good.error.isEmpty && good.standard.hasPrefix("writer "), "\(good)")
            let bad = try parley("agents", "check", node.agentsFolder + "/clerk.md", environment: model)
            #expect(bad.exit == .status(1) && bad.error.contains("clerk.md:2: modle") && bad.standard.isEmpty, "\(bad)")
        }
    }

    @Test(arguments: ["writer.markdown", "writer.txt", ".writer.md"])
    func `agents check refuses a file that a server would not read`(_ name: String) async throws {
        try await OwnThread.run {
            let node = try Self.scripted([name: Self.writer])
            let check = try parley("agents", "check", node.agentsFolder + "/" + name, environment: ["PARLEY_MODEL": "scripted"])
            #expect(check.exit == .status(1) && check.standard.isEmpty, "\(check)")
            #expect(check.error.contains("\(name): is a file that `parley serve` does not read. Remedy: "), "\(check)")
        }
    }

    @Test(arguments: [[:], ["writer.txt": writer]])
    func `a folder that declares no agents is said to be one, also by agents check`(_ files: [String: String]) async throws {
        try await OwnThread.run {
            let node = try Self.scripted(files)
            let said = try node.launch().wait("the banner") { $0.error.contains("  Stop ") ? $0.error : nil }
            #expect(said.contains("the agents folder \(node.agentsFolder) has no file <kind>.md"), "\(said)")
            let check = try parley("agents", "check", node.agentsFolder)
            #expect(check.exit == .status(0) && check.error == "there is no file <kind>.md in \(node.agentsFolder)\n", "\(check)")
        }
    }

    @Test func `what all agents miss is said in one line`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(agents: ["writer.md": Self.writer, "poet.md": Self.poet])
            let said = try node.launch().wait("the banner") { $0.error.contains("  Stop ") ? $0.error : nil }
            let lines = said.split(separator: "\n").filter { $0.contains("PARLEY_MODEL is not set") }
            #expect(lines.count == 1 && lines[0].contains("poet.md, ") && lines[0].contains("writer.md: "), "\(said)")
            // Commands whose turn would fail are not proposed.
            #expect(said.contains("  No model   turns of poet, writer will fail: set PARLEY_MODEL") && !said.contains(" run "), "\(said)")
        }
    }

    @Test func `agents check with json prints one object a file`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted(["writer.md": Self.writer, "clerk.md": "---\nmax_tokens: many\n---\n"])
            let check = try parley("agents", "check", node.agentsFolder, "--json")
            #expect(check.exit == .status(1) && check.error.isEmpty, "\(check.error)")
            let files = try check.standard.split(separator: "\n").map { try JSON.parse(Bytes($0.utf8)) }
            #expect(files.map { $0["kind"] } == ["clerk", "writer"] && files.map { $0["ok"] } == [false, true])
            #expect(files.map { $0["file"]?.string } == ["clerk.md", "writer.md"].map { "\(node.agentsFolder)/\($0)" })
            let problems = files[0]["problems"]?.array ?? []
            #expect(problems.count == 2 && problems[0]["line"] == 2 && problems[0]["field"] == "max_tokens", "\(files[0])")
            #expect(problems[0]["message"]?.string?.hasPrefix("max_tokens \"many\" is not a whole number") == true)
            #expect(files[1]["problems"] == [] && files[1]["notices"]?.array?.count == 1)
        }
    }

    @Test func `a change to the agents folder is logged once, and a file that goes leaves its kind`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted(["writer.md": Self.writer, "poet.md": Self.poet])
            try node.start(options: ["--watch-agents"])
            func logged(_ what: String) throws -> Int { try node.process.output.error.components(separatedBy: what).count - 1 }
            try Self.write("---\nmax_tokens: many\n---\nWrite.\n", "writer.md", node)
            try node.process.wait("the mistake to be logged") { $0.error.contains("max_tokens \\\"many\\\"") ? true : nil }
            try FileManager.default.removeItem(atPath: node.agentsFolder + "/poet.md")
            try node.process.wait("the loss to be logged") { $0.error.contains("its kind stays until the next start") ? true : nil }
            try Self.write("---\n---\nNote.\n", "clerk.md", node)
            try node.process.wait("the new file to be read") { $0.error.contains("changed=clerk") ? true : nil }
            #expect(try logged("max_tokens \\\"many\\\"") == 1 && logged("its kind stays") == 1)
            #expect(try parley("run", "poet/one", "say: a poem", "--server", node.url).standard == "a poem\n")
        }
    }

    @Test func `a port that is taken is said in one line with the remedy`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            try node.start()
            let second = try parley(
                "serve", "--listen", "127.0.0.1:\(node.port)", "--data", node.folder + "/other", "--agents", node.agentsFolder,
                environment: ["PARLEY_MODEL": "scripted"])
            #expect(second.exit == .status(1) && second.error.split(separator: "\n").count == 1, "\(second.error)")
            #expect(second.error.contains("cannot_listen: ") && second.error.contains("--listen 127.0.0.1:<port>"), "\(second.error)")
        }
    }
}
