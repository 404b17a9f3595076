import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// The output and the effects of `run`, `send` and the controls at a terminal.
@Suite struct `Talking from the command line` {
    private static func scripted(_ options: String = "rate=0", agent: String = "") throws -> EndToEndNode {
        let node = try EndToEndNode(
            agents: [
                "writer.md": "---\nkind: writer\n\(agent)---\nWrite.\n",
                "clerk.md": "---\nkind: clerk\ntools: [write_file]\n---\nNote.\n",
            ],
            environment: ["PARLEY_MODEL": "scripted:\(options)"])
        try node.start()
        return node
    }

    /// Runs a line of a shell in which `$parley` is the program.
    private static func shell(_ line: String, _ node: EndToEndNode) throws -> ChildProcess.Output {
        let process = try ChildProcess(
            "/bin/sh", ["-c", "cd '\(node.folder)' && \(line)"], environment: ["PARLEY_URL": node.url, "parley": Products.path("parley")])
        try process.waitForExit(line)
        return process.output
    }

    @Test func `text and data come as words, from standard input and from files`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            #expect(try Self.shell("printf 'say: from\\n  input\\n' | $parley run writer/one -", node).standard == "from\n  input\n")
            #expect(try Self.shell("printf 'say: from a file\\n' > text && $parley run writer/one @text", node).standard == "from a file\n")
            for line in [
                "$parley send writer/two --data '{\"a\": 1}'", "echo '{\"a\": 1}' | $parley send writer/two --data -",
                "echo '{\"a\": 1}' > input.json && $parley send writer/two --data @input.json",
            ] {
                let sent = try Self.shell(line, node)
                #expect(sent.exit == .status(0), "\(line): \(sent.error)")
            }
            let messages = try node.entries("writer/two").filter { $0["type"] == "message" }
            #expect(messages.count == 3 && messages.allSatisfy { $0["data"] == ["a": 1] && $0["text"] == nil }, "\(messages)")
        }
    }

    @Test func `an agent in Swift takes data, and shows its state`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode("steps-agent", environment: ["PARLEY_MODEL": "scripted"])
            try node.start()
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("run", "stepper/one", "Go.", environment: server).exit == .status(0))
            #expect(try parley("state", "stepper/one", environment: server).standard == "{\"turns\":1}\n")
            #expect(try parley("run", "stepper/one", "Go.", environment: server).exit == .status(0))
            let state = try JSON.parse(Bytes(try parley("state", "stepper/one", "--json", environment: server).standard.utf8))
            let end = try node.entries("stepper/one").last { $0["type"] == "turn.completed" }
            #expect(state == ["agent": "agents/stepper/one", "state": ["turns": 2], "offset": end?["offset"] ?? .null])
            #expect(try parley("run", "controlled/one", "--data", #"{"operations": []}"#, environment: server).exit == .status(0))
            #expect(try parley("state", "controlled/one", environment: server).standard == "null\n")
            let kinds = try parley("agents", environment: server).standard
            #expect(kinds.contains("stepper") && kinds.contains("(Swift)"), "\(kinds)")
        }
    }

    @Test func `an empty text is refused before anything is sent`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            for line in ["run writer/one ''", "send writer/one '  '", "steer writer/one ''", "run writer/one - < /dev/null"] {
                let output = try Self.shell("$parley \(line)", node)
                #expect(output.exit == .status(2) && output.error.contains("the text is empty"), "\(line): \(output.error)")
            }
            #expect(try node.request("GET", "/v1/agents/writer/one").status == 404)
        }
    }

    @Test func `every command fails at once and alike when no server is there`() async throws {
        try await OwnThread.run {
            let url = "http://127.0.0.1:\(FreePort.take())"
            let lines = [
                "run writer/one hi", "send writer/one hi", "tail writer/one", "tail /x", "steer writer/one hi", "interrupt writer/one",
                "cancel writer/one", "resume writer/one", "close writer/one", "approve writer/one", "deny writer/one",
                "signal writer/one go", "ls",
                "ls /", "status writer/one", "state writer/one", "trace writer/one", "audit writer/one", "agents", "backup /nowhere",
                "create /x",
                "append /x 1", "fork /x /y", "delete /x", "token --allow **:read --name ann",
            ]
            for line in lines {
                let words = line.split(separator: " ").map(String.init)
                let process = try ChildProcess(Products.path("parley"), words, environment: ["PARLEY_URL": url])
                // One that follows and retries takes a minute.
                #expect(try process.waitForExit("parley \(line) to fail at once", timeout: .seconds(40)) == .status(1))
                let expected =
                    "parley \(words[0]): no server answers at \(url). Start one with `parley serve`, or name another with --server or PARLEY_URL.\n"
                #expect(process.output.error == expected && process.output.standard.isEmpty)
            }
        }
    }

    @Test func `tail says when the connection is lost and when it is back`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            _ = try node.send("say: one", to: "writer/one")
            let tail = try ChildProcess(Products.path("parley"), ["tail", "writer/one"], environment: ["PARLEY_URL": node.url])
            try tail.wait("the first answer") { $0.standard.contains("one") ? true : nil }
            try node.kill()
            try tail.wait("the loss to be said") { $0.error.contains("the connection to \(node.url) is lost") ? true : nil }
            try node.start()
            try tail.wait("the return to be said") { $0.error.contains("connected again") ? true : nil }
            _ = try node.send("say: two", to: "writer/one")
            try tail.wait("the second answer") { $0.standard.contains("two") ? true : nil }
            let error = tail.output.error
            #expect(
                error.components(separatedBy: "is lost").count == 2 && error.components(separatedBy: "connected again").count == 2,
                "\(error)")
        }
    }

    @Test func `Ctrl-C in run says that the agent continues and how to stop it, and the agent does`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted("tokens=60,rate=20")
            let run = try ChildProcess(Products.path("parley"), ["run", "writer/one", "Write."], environment: ["PARLEY_URL": node.url])
            try run.wait("the beginning of the answer") { $0.standard.isEmpty ? nil : true }
            run.send(SIGINT)
            #expect(try run.waitForExit("run to end") == .signal(SIGINT))
            let error = run.output.error
            #expect(
                error.contains("parley tail writer/one --from 0000000000000001") && error.contains("parley cancel writer/one"), "\(error)")
            let tail = try ChildProcess(Products.path("parley"), ["tail", "writer/one", "--json"], environment: ["PARLEY_URL": node.url])
            try tail.wait("the turn to complete") { $0.standard.contains("\"turn.completed\"") ? true : nil }
        }
    }

    @Test func `run says that an answer was cut at max_tokens`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted(agent: "max_tokens: 5\n")
            let cut = try parley("run", "writer/one", "Write.", "--server", node.url)
            #expect(cut.exit == .status(0) && cut.error.contains("cut: it has reached max_tokens"), "\(cut)")
            #expect(try parley("run", "writer/one", "say: hi", "--server", node.url).error.isEmpty)
        }
    }

    @Test func `run ends with the turn that its message joined`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["clerk.md": "---\ntools: [write_file]\nconcurrent: steer\n---\nNote.\n"],
                environment: ["PARLEY_MODEL": "scripted:rate=0"])
            try node.start()
            let server = ["PARLEY_URL": node.url]
            let call = "call: write_file {\"path\": \"note.md\", \"text\": \"The sea.\"}"
            let first = try ChildProcess(Products.path("parley"), ["run", "clerk/one", call], environment: server)
            try first.wait("the approval to be asked for") { $0.error.contains("asks for approval") ? true : nil }
            let second = try ChildProcess(Products.path("parley"), ["run", "clerk/one", "say: joined"], environment: server)
            let tail = try ChildProcess(Products.path("parley"), ["tail", "clerk/one", "--json"], environment: server)
            try tail.wait("the second message") { $0.standard.contains("say: joined") ? true : nil }
            #expect(try parley("approve", "clerk/one", environment: server).exit == .status(0))
            #expect(try first.waitForExit("the first run to end") == .status(0))
            #expect(try second.waitForExit("the second run to end") == .status(0))
            #expect(
                second.output.error.contains("joined the turn that was running") && second.output.standard == "joined\n", "\(second.output)"
            )
        }
    }

    @Test func `steer says when it has become the next message`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let data = try parley("steer", "writer/two", "--data", #"{"a": 1}"#, "--server", node.url)
            #expect(try data.exit == .status(0) && node.entries("writer/two").first?["data"] == ["a": 1], "\(data)")
            let steer = try parley("steer", "writer/one", "say: hi", "--server", node.url)
            #expect(steer.exit == .status(0) && steer.error.contains("became the next message"), "\(steer)")
        }
    }

    @Test func `close ends an agent, delete removes it with its files and says how to start anew`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let server = ["PARLEY_URL": node.url]
            let call = "call: write_file {\"path\": \"note.md\", \"text\": \"The sea.\"}"
            let run = try ChildProcess(Products.path("parley"), ["run", "clerk/one", call], environment: server)
            try run.wait("the approval to be asked for") { $0.error.contains("asks for approval") ? true : nil }
            #expect(try parley("approve", "clerk/one", environment: server).exit == .status(0))
            #expect(try run.waitForExit("run to end") == .status(0))
            let folder = node.dataFolder + "/files/kind-clerk/id-one"
            #expect(try String(contentsOfFile: folder + "/note.md", encoding: .utf8) == "The sea.")

            #expect(try parley("close", "clerk/one", environment: server).error.hasSuffix("applied\n"))
            #expect(try parley("send", "clerk/one", "hi", environment: server).error.contains("channel_closed"))
            let deleted = try parley("delete", "clerk/one", environment: server)
            #expect(deleted.exit == .status(0) && deleted.error.contains("`parley create clerk/one`"), "\(deleted.error)")
            #expect(!FileManager.default.fileExists(atPath: folder))
            let late = try parley("send", "clerk/one", "hi", environment: server)
            #expect(late.exit == .status(1) && late.error.contains("parley create"), "\(late.error)")
            #expect(try parley("create", "clerk/one", environment: server).exit == .status(0))
            #expect(try parley("send", "clerk/one", "hi", environment: server).exit == .status(0))
        }
    }

    @Test func `a run that is cancelled says by whom, and calls nothing a failure`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let server = ["PARLEY_URL": node.url]
            let call = "call: write_file {\"path\": \"note.md\", \"text\": \"The sea.\"}"
            let run = try ChildProcess(Products.path("parley"), ["run", "clerk/one", call], environment: server)
            try run.wait("the approval to be asked for") { $0.error.contains("asks for approval") ? true : nil }
            let status = try parley("status", "clerk/one", environment: server).standard
            #expect(status.contains("waits for:") && status.contains("parley approve clerk/one 0000000000000001/"), "\(status)")
            #expect(try parley("cancel", "clerk/one", "never mind", environment: server).exit == .status(0))
            #expect(try run.waitForExit("run to end") == .status(1))
            #expect(
                run.output.error.hasSuffix("cancelled by anonymous: never mind\n") && !run.output.error.contains("failed"),
                "\(run.output.error)")
        }
    }

    @Test func `a run that fails says why once`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 10, rate: 0)
            upstream.behaviour.fault = .status(401)
            let error = try parley("run", "writer/one", "Write.", "--server", node.url).error
            #expect(
                error.components(separatedBy: "OPENAI_API_KEY").count == 2 && error.hasSuffix("failed (model_unauthorized)\n"), "\(error)")
        }
    }

    @Test func `a run whose message is refused says why, and what to do`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted("tokens=60,rate=20", agent: "concurrent: reject\n")
            let first = try ChildProcess(Products.path("parley"), ["run", "writer/one", "Write."], environment: ["PARLEY_URL": node.url])
            try first.wait("the beginning of the answer") { $0.standard.isEmpty ? nil : true }
            let second = try parley("run", "writer/one", "And more.", "--server", node.url)
            #expect(
                second.exit == .status(1) && second.error.contains("(busy)") && second.error.contains("`parley cancel writer/one`"),
                "\(second)")
        }
    }

    @Test func `a steer whose server dies says that it is kept, and how to follow it`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let server = ["PARLEY_URL": node.url]
            let call = "call: write_file {\"path\": \"note.md\", \"text\": \"The sea.\"}"
            let run = try ChildProcess(Products.path("parley"), ["run", "clerk/one", call], environment: server)
            try run.wait("the approval to be asked for") { $0.error.contains("asks for approval") ? true : nil }
            let steer = try ChildProcess(Products.path("parley"), ["steer", "clerk/one", "Keep it short."], environment: server)
            try steer.wait("the wait to be said") { $0.error.contains("durable; waiting up to 5 s") ? true : nil }
            try node.kill()
            #expect(try steer.waitForExit("steer to end") == .status(0))
            let offset = steer.output.standard.trimmingCharacters(in: .newlines)
            #expect(steer.output.error.contains("durable at offset \(offset)"), "\(steer.output.error)")
            #expect(steer.output.error.contains("parley tail clerk/one --from \(offset)"), "\(steer.output.error)")
            try node.start()
            #expect(try node.entries("clerk/one").contains { $0["type"] == "steer" && $0["offset"]?.string == offset })
        }
    }

    @Test func `an approval is waited for while the agent works towards it`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let call = "call: write_file {\"path\": \"note.md\", \"text\": \"The sea.\"}"
            let output = try Self.shell("$parley send clerk/one '\(call)' && $parley approve clerk/one", node)
            #expect(output.exit == .status(0) && output.error.contains("applied"), "\(output)")
        }
    }

    @Test func `run that gives up on a server does not say that anything continues without one`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 100_000, rate: 100)
            let run = try ChildProcess(Products.path("parley"), ["run", "writer/one", "Write."], environment: ["PARLEY_URL": node.url])
            try upstream.wait("token 5") { $0.reduce(0) { $0 + $1.tokensSent } >= 5 }
            try node.kill()
            #expect(try run.waitForExit("run to give up", timeout: .seconds(180)) == .status(1))
            let said = run.output.error
            #expect(
                said.contains("the message is durable at offset 0000000000000001, and the agent continues once the server runs again"),
                "\(said)")
            #expect(said.contains("parley tail writer/one --from 0000000000000001") && said.contains("no server answers"), "\(said)")
            #expect(!said.contains("continues without this command"), "\(said)")
        }
    }

    @Test func `a parked agent says why, and what to do`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            try node.kill()
            try node.start(failpoint: "turn.end:1")
            _ = try parley("send", "writer/one", "say: hi", "--server", node.url)
            // Each process ends at the end of that turn; the turn is parked after three that wrote nothing new, unlike the first.
            for _ in 1...4 {
                #expect(try node.process.waitForExit("the node to end with the turn") == .signal(SIGKILL))
                // Perhaps before it says that it serves.
                try node.launch(failpoint: "turn.end:1")
            }
            try node.awaitServing()
            let server = ["PARLEY_URL": node.url]
            let tail = try ChildProcess(Products.path("parley"), ["tail", "writer/one"], environment: server)
            try tail.wait("the turn to be parked") { $0.error.contains("parked: ") ? true : nil }
            #expect(try parley("ls", environment: server).standard == "writer/one\tparked\tcrash\n")
            let status = try parley("status", "writer/one", environment: server).standard
            for text in ["parked since ", "reason: ", "crash", "remedy: ", "parley resume writer/one", "parley cancel writer/one"] {
                #expect(status.contains(text), "'\(text)' is not in:\n\(status)")
            }
            #expect(try parley("cancel", "writer/one", environment: server).error.hasSuffix("applied\n"))
        }
    }

    @Test func `several open approvals are told apart by what they are for`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let server = ["PARLEY_URL": node.url]
            let calls = ["a", "b"].map { "call: write_file {\"path\": \"\($0).md\", \"text\": \"\($0)\"}" }.joined(separator: "\n")
            let run = try ChildProcess(Products.path("parley"), ["run", "clerk/one", calls], environment: server)
            try run.wait("both approvals to be asked for") { $0.error.components(separatedBy: "asks for approval").count == 3 ? true : nil }
            let asked = ["a", "b"].map { "write_file {\"path\":\"\($0).md\",\"text\":\"\($0)\"}" }
            let several = try parley("approve", "clerk/one", environment: server)
            #expect(several.exit == .status(1) && asked.allSatisfy { several.error.contains("/approval (\($0))") }, "\(several)")
            let status = try parley("status", "clerk/one", environment: server).standard
            #expect(asked.allSatisfy { status.contains("approval of \($0) (tools/") }, "\(status)")
            let list = try parley("ls", environment: server).standard
            let waits = "approval of write_file until 20"
            #expect(list.hasPrefix("clerk/one\t") && list.contains("\t\(waits)") && list.contains("; \(waits)"), "\(list)")
        }
    }

    @Test func `a signal that does not match says what is waited for, and so do status and ls`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode("steps-agent", environment: ["PARLEY_MODEL": "scripted"])
            try node.start()
            let server = ["PARLEY_URL": node.url]
            _ = try parley("send", "controlled/one", "--data", #"{"operations": ["match payment"]}"#, environment: server)
            let tail = try ChildProcess(Products.path("parley"), ["tail", "controlled/one", "--json"], environment: server)
            try tail.wait("the wait to begin") { $0.standard.contains("\"step.started\"") ? true : nil }
            let awaited = #"signal payment with {"order":"42"}"#
            let wrong = try parley("signal", "controlled/one", "payment", #"{"order": 42}"#, environment: server)
            #expect(wrong.exit == .status(0) && wrong.error.contains("does not match: controlled/one waits for \(awaited)"), "\(wrong)")
            let status = try parley("status", "controlled/one", environment: server).standard
            #expect(status.contains(awaited) && status.contains("kept until a turn waits for it"), "\(status)")
            #expect(try parley("ls", environment: server).standard.hasSuffix("\tsignal payment\n"))
            let right = try parley("signal", "controlled/one", "payment", #"{"order": "42"}"#, environment: server)
            #expect(right.exit == .status(0) && right.error.contains("applied"), "\(right)")
        }
    }

    @Test func `run says what its message waits behind`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted("tokens=5000,rate=20")
            let server = ["PARLEY_URL": node.url]
            let first = try ChildProcess(Products.path("parley"), ["run", "writer/one", "Write."], environment: server)
            try first.wait("the beginning of the answer") { $0.standard.isEmpty ? nil : true }
            let second = try ChildProcess(Products.path("parley"), ["run", "writer/one", "And more."], environment: server)
            try second.wait("it to be said") { $0.error.contains("queued behind a turn that runs since 20") ? true : nil }
            #expect(second.output.standard.isEmpty)
        }
    }

    @Test func `resume says when the agent stalls again, in what the program differs, and where`() async throws {
        try await OwnThread.run {
            let before = try EndToEndNode("steps-agent", environment: ["PARLEY_MODEL": "scripted:rate=0"])
            try before.start()
            _ = try parley("send", "controlled/one", "--data", #"{"operations": ["model draft", "wait go"]}"#, "--server", before.url)
            let tail = try ChildProcess(
                Products.path("parley"), ["tail", "controlled/one", "--json"], environment: ["PARLEY_URL": before.url])
            try tail.wait("the wait to begin") { $0.standard.contains("\"name\":\"go\"") ? true : nil }
            try before.kill()
            // The same agents and another model: the program asks for something else than it did.
            let node = try EndToEndNode("steps-agent", environment: ["PARLEY_MODEL": "scripted:tokens=9"])
            try FileManager.default.copyItem(atPath: before.dataFolder, toPath: node.dataFolder)
            try node.start()
            let server = ["PARLEY_URL": node.url]
            _ = try parley("signal", "controlled/one", "go", environment: server)
            let differs = "differs in: model (was 'scripted:rate=0', is 'scripted:tokens=9')"
            let status = try parley("status", "controlled/one", environment: server).standard
            #expect(status.contains("stalled since") && status.contains(differs) && status.contains("Controlled.swift:"), "\(status)")
            let resume = try parley("resume", "controlled/one", environment: server)
            #expect(resume.exit == .status(1) && resume.error.contains("stalled again: ") && resume.error.contains(differs), "\(resume)")
        }
    }

    @Test func `agents are listed by name, and a kind that there is not is said`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let server = ["PARLEY_URL": node.url]
            let none = try parley("ls", environment: server)
            #expect(none.exit == .status(0) && none.standard.isEmpty && none.error.contains("parley run <kind>/<id>"), "\(none)")
            for agent in ["writer/two", "clerk/nine", "writer/one", "writer/ten", "clerk/eight"] {
                #expect(try parley("create", agent, environment: server).exit == .status(0))
            }
            let names = { (output: String) in output.split(separator: "\n").map { $0.split(separator: "\t")[0] } }
            #expect(
                try names(parley("ls", environment: server).standard) == [
                    "clerk/eight", "clerk/nine", "writer/one", "writer/ten", "writer/two",
                ])
            let bogus = try parley("ls", "--kind", "wirter", environment: server)
            #expect(
                bogus.exit == .status(1) && bogus.standard.isEmpty && bogus.error.contains("clerk, writer. Did you mean 'writer'?"),
                "\(bogus)")
            let parked = try parley("ls", "--kind", "writer", "--state", "parked", environment: server)
            #expect(parked.exit == .status(0) && parked.error == "no agent has kind writer and state parked\n", "\(parked)")
        }
    }

    @Test func `arguments that cannot be carried out are refused before anybody is asked`() async throws {
        try await OwnThread.run {
            let node = try Self.scripted()
            let call = "call: write_file {\"path\": \"../note.md\", \"text\": \"The sea.\"}"
            let run = try parley("run", "clerk/one", call, "--server", node.url)
            #expect(run.exit == .status(0) && run.standard.contains("'../note.md' is no path"), "\(run)")
            #expect(try node.entries("clerk/one").allSatisfy { $0["type"] != "approval.requested" })
        }
    }
}
