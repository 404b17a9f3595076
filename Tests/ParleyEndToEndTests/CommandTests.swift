import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Runs the `parley` program to its end.
@discardableResult
func parley(_ arguments: String..., environment: [String: String] = [:], timeout: Duration = .seconds(60)) throws -> ChildProcess.Output {
    let process = try ChildProcess(Products.path("parley"), arguments, environment: environment)
    try process.waitForExit("parley \(arguments.joined(separator: " "))", timeout: timeout)
    return process.output
}

@Suite struct `The command line` {
    struct Misuse: Sendable, CustomTestStringConvertible {
        var words: [String]
        var says: [String]
        var testDescription: String { words.joined(separator: " ") }
        init(_ words: String..., says: String...) { (self.words, self.says) = (words, says) }
    }

    static let misuses = [
        Misuse("tial", "a/b", says: "unknown command 'tial'", "Did you mean 'tail'?"),
        Misuse("serve", "--lisen", "127.0.0.1:0", says: "unknown option '--lisen'", "Did you mean '--listen'?"),
        Misuse("serve", "--listen", says: "--listen", "needs a value"),
        Misuse("serve", "--listen", "here", says: "--listen is 'here'", "127.0.0.1:4437"),
        Misuse("serve", "--listen", "0.0.0.0:80", says: "loopback"),
        Misuse("serve", "--drain", "soon", says: "--drain is 'soon'", "seconds"),
        Misuse("serve", "everything", says: "'everything' was not expected"),
        Misuse("run", says: "<kind>/<id> is missing"),
        Misuse("run", "writer", "hi there", says: "'writer' is no agent", "assistant/me"),
        Misuse("run", "writer/one", says: "the text is missing"),
        Misuse("run", "writer/one", "hi", "--jsn", says: "Did you mean '--json'?"),
        Misuse("run", "writer/one", "hi", "--json=yes", says: "takes no value"),
        Misuse("run", "writer/one", "hi", "--server", "nowhere", says: "the server is 'nowhere'", "http://127.0.0.1:4437"),
        Misuse("tail", says: "the channel is missing"),
        Misuse("tail", "writer/one", "--form", "now", says: "Did you mean '--from'?"),
        Misuse("send", "writer/one", says: "the text is missing"),
        Misuse("send", "writer/one", "hi", "--kye", "k", says: "Did you mean '--key'?"),
        Misuse("ls", "--knid", "writer", says: "Did you mean '--kind'?"),
        Misuse("ls", "orders", says: "`parley ls --kind orders`", "channels are listed with a slash: /orders"),
        Misuse("append", "/orders/1", says: "the data is missing"),
        Misuse("create", "orders", says: "'orders' names neither an agent, which is <kind>/<id>, nor a channel", ": /orders."),
        Misuse("fork", "/orders/1", says: "the new channel is missing"),
        Misuse("status", says: "<kind>/<id> is missing"),
        Misuse("create", "/x", "--ttl", "soon", says: "--ttl is 'soon'", "3600"),
        Misuse("create", "/x", "/y", says: "'/y' was not expected"),
        Misuse("delete", "/x", "/y", says: "'/y' was not expected"),
        Misuse("fork", "/x", "/y", "/z", says: "'/z' was not expected"),
        Misuse("ls", "/", "more", says: "'more' was not expected"),
        Misuse("tail", "/x", "--from", "yesterday", says: "--from is 'yesterday'", "now"),
        Misuse("append", "/x", "1", "--if-tail", "1", says: "--if-tail is '1'", "hexadecimal"),
        Misuse("status", "writer/one", "--jsno", says: "Did you mean '--json'?"),
        Misuse("status", "/orders/42", says: "'/orders/42' is a channel without an agent", "`parley tail /orders/42`"),
        Misuse("run", "/writer/one", "hi", says: "The agent is named writer/one, without the slash"),
        Misuse("run", "writer", "one", "hi", says: "Did you mean writer/one?"),
        Misuse("run", "hi there", "writer/one", says: "Did you mean writer/one, which comes first?"),
        Misuse("run", "writer/one hi there", says: "Did you mean writer/one, with the quotes around the text alone?"),
        Misuse("run", "writer/one", "hi", "--server", "http://127.0.0.1:99999", says: "the server is 'http://127.0.0.1:99999'"),
        Misuse("serve", "--listen", "4438", says: "Did you mean 127.0.0.1:4438?"),
        Misuse("ls", "writer/one", says: "`parley status writer/one` shows an agent"),
        Misuse("steer", says: "<kind>/<id> is missing"), Misuse("cancel", "writer", "", says: "'writer' is no agent"),
        Misuse("run", "writer/one", "--Is it?", says: "A text that begins with -- goes behind a word --."),
        Misuse("ls", "-k", "writer", says: "unknown option '-k'", "--kind"),
        Misuse("trace", "writer/one", "--turn", "5", says: "--turn is '5'", "Did you mean 0000000000000005?"),
        Misuse("trace", "writer/one", "--before", "zz", says: "--before is 'zz'"),
        Misuse("audit", "writer/one", "--since", "yesterday", says: "--since is 'yesterday'", "2026-01-31T09:30:00Z"),
        Misuse("create", "/x", "--expires-at", "yesterday", says: "--expires-at is 'yesterday'"),
        Misuse("token", "--name", "x y", "--allow", "**:read", says: "the name is 'x y'"),
        Misuse("token", "--expires", "2020-01-01T00:00:00Z", says: "--expires is '2020-01-01T00:00:00Z', which is in the past"),
        Misuse("token", "--allow", "/agents/x/y:read", says: "leave out the slash in front: 'agents/x/y'"),
        Misuse("backup", "", says: "the folder is ''"),
    ]

    @Test(arguments: misuses)
    func `misused, it says how, on standard error, with status 2`(_ misuse: Misuse) async throws {
        try await OwnThread.run {
            let process = try ChildProcess(Products.path("parley"), misuse.words)
            #expect(try process.waitForExit("parley to refuse") == .status(2))
            let output = process.output
            #expect(output.standard.isEmpty)
            for text in misuse.says { #expect(output.error.contains(text), "\(output.error)") }
            if misuse.words.count > 1, misuse.words[0] != "tial" {
                let usage = misuse.words[0] == "serve" ? nil : "usage: parley \(misuse.words[0])"
                #expect(
                    output.error.contains(usage ?? "parley serve: ") && (usage != nil || !output.error.contains("usage:")),
                    "\(output.error)")
            }
        }
    }

    @Test func `help goes to standard output with status 0, no command at all is misuse`() async throws {
        try await OwnThread.run {
            for words in [
                ["--help"], ["serve", "--help"], ["run", "--help"], ["tail", "-h"], ["send", "--help"], ["ls", "--help"],
                ["status", "--help"], ["trace", "--help"], ["audit", "-h"], ["create", "-h"], ["append", "-h"], ["fork", "-h"],
                ["delete", "-h"],
            ] {
                let process = try ChildProcess(Products.path("parley"), words)
                #expect(try process.waitForExit("help") == .status(0))
                #expect(process.output.standard.contains("usage: parley"), "\(words)")
                #expect(process.output.error.isEmpty)
            }
            let bare = try parley()
            #expect(bare.exit == .status(2) && bare.standard.isEmpty && bare.error.contains("usage: parley"))
        }
    }

    @Test func `nobody there is said with the address and what to do, status 1`() async throws {
        try await OwnThread.run {
            let url = "http://127.0.0.1:\(FreePort.take())"
            let output = try parley("status", "writer/one", environment: ["PARLEY_URL": url])
            #expect(output.exit == .status(1) && output.standard.isEmpty)
            #expect(output.error.contains(url), "\(output.error)")
            #expect(output.error.contains("parley serve"), "no remedy: \(output.error)")
        }
    }

    @Test func `run prints the answer on standard output and nothing else there`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 30, rate: 300)
            let output = try parley("run", "writer/one", "Write.", "--server", node.url)
            #expect(output.exit == .status(0), "\(output.error)")
            #expect(output.standard == ScriptedUpstream.text(tokens: 30))
        }
    }

    @Test func `run with json prints entries, one a line, to the end of the turn`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 30, rate: 300)
            let output = try parley("run", "writer/one", "Write.", "--json", environment: ["PARLEY_URL": node.url])
            #expect(output.exit == .status(0), "\(output.error)")
            let entries = try output.standard.split(separator: "\n").map { try JSON.parse(Bytes($0.utf8)) }
            #expect(entries.last?["type"] == "turn.completed")
            #expect(ConvergedText(entries).text == ScriptedUpstream.text(tokens: 30))
            #expect(output.error.isEmpty)
        }
    }

    @Test func `send, tail, ls and status, as a person uses them`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 30, rate: 300)
            let server = ["PARLEY_URL": node.url]
            let sent = try parley("send", "writer/one", "Write.", "--key", "k", environment: server)
            #expect(sent.exit == .status(0) && sent.error.isEmpty)
            let offset = sent.standard.trimmingCharacters(in: .newlines)
            #expect(offset == "0000000000000001")
            #expect(try parley("send", "writer/one", "Write.", "--key", "k", environment: server).standard == sent.standard)

            let tail = try ChildProcess(Products.path("parley"), ["tail", "writer/one"], environment: server)
            try tail.wait("the answer in tail") { output in
                output.standard.contains(ScriptedUpstream.text(tokens: 30)) && output.error.contains("> Write.") ? true : nil
            }
            let raw = try ChildProcess(Products.path("parley"), ["tail", "writer/one", "--raw", "--from", offset], environment: server)
            let lines = try raw.wait("the end of the turn in tail --raw") { output in
                output.standard.contains("\"turn.completed\"") && output.standard.hasSuffix("\n") ? output.standard : nil
            }
            let entries = try lines.split(separator: "\n").map { try JSON.parse(Bytes($0.utf8)) }
            #expect(entries == Array(try node.entries("writer/one").dropFirst()))

            let list = try parley("ls", environment: server)
            #expect(list.exit == .status(0) && list.standard == "writer/one\tidle\n", "\(list)")
            let listed = try parley("ls", "--json", "--state", "idle", environment: server)
            #expect(try JSON.parse(Bytes(listed.standard.utf8))["id"] == "one")

            let status = try parley("status", "writer/one", environment: server)
            #expect(status.exit == .status(0) && status.standard.contains(/state: +idle/), "\(status)")
            #expect(
                try JSON.parse(Bytes(try parley("status", "writer/one", "--json", environment: server).standard.utf8))["state"] == "idle")
        }
    }

    @Test func `create, append, fork, ls and delete, for channels without an agent`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            func run(_ words: String...) throws -> (out: String, error: String, isDone: Bool) {
                let process = try ChildProcess(Products.path("parley"), words, environment: ["PARLEY_URL": node.url])
                let exit = try process.waitForExit("parley \(words)")
                return (process.output.standard.trimmingCharacters(in: .newlines), process.output.error, exit == .status(0))
            }
            #expect(try run("create", "/orders/1", "--ttl", "3600") == ("0000000000000000", "", true))
            #expect(try run("append", "/orders/1", #"[{"a": 1}, {"a": 2}]"#, "--if-tail", "0000000000000000").out == "0000000000000002")
            let late = try run("append", "/orders/1", "3", "--if-tail", "0000000000000000")
            #expect(!late.isDone && late.error.contains("tail_moved"), "\(late)")
            #expect(try run("fork", "/orders/1", "/orders/2", "--offset", "0000000000000001").out == "0000000000000001")
            #expect(try run("append", "/orders/2", "7", "--close").out == "0000000000000002")
            #expect(try run("tail", "/orders/2").out == "{\"a\": 1}\n7" || run("tail", "/orders/2").out == "{\"a\":1}\n7")
            #expect(
                try run("ls", "/orders/").out
                    == "/orders/1\t0000000000000002\tapplication/json\n/orders/2\t0000000000000002\tapplication/json\tclosed")
            #expect(try run("delete", "/orders/1").isDone && run("ls", "/orders/", "--json").out.split(separator: "\n").count == 1)
            #expect(try run("delete", "/orders/nothing").error.contains("channel_not_found"))
        }
    }

    @Test func `what the server refuses is said with its code, status 1`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            for words in [
                ["run", "wirter/one", "hi"], ["send", "wirter/one", "hi"], ["status", "writer/nobody"], ["tail", "writer/nobody"],
            ] {
                let process = try ChildProcess(Products.path("parley"), words, environment: server)
                #expect(try process.waitForExit("the refusal of \(words)") == .status(1))
                #expect(process.output.standard.isEmpty && process.output.error.contains("parley \(words[0]): "), "\(process.output)")
            }
            let unknown = try parley("run", "wirter/one", "hi", environment: server)
            #expect(unknown.error.contains("unknown_agent_kind") && unknown.error.contains("writer"), "\(unknown.error)")
        }
    }

    @Test func `a turn that fails ends run with status 1 and the reason`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 10, rate: 0)
            upstream.behaviour.fault = .status(401)
            let output = try parley("run", "writer/one", "Write.", "--server", node.url)
            #expect(output.exit == .status(1))
            #expect(output.standard.isEmpty)
            #expect(output.error.contains("model_unauthorized") && output.error.contains("OPENAI_API_KEY"), "\(output.error)")
        }
    }

    @Test(arguments: [false, true])
    func `run continues through a kill of the server, and ends with the whole text`(_ json: Bool) async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 200, rate: 300)
            let run = try ChildProcess(
                Products.path("parley"), ["run", "writer/one", "Write."] + (json ? ["--json"] : []), environment: ["PARLEY_URL": node.url])
            for count in [50, 120] {
                try upstream.wait("token \(count)") { $0.reduce(0) { $0 + $1.tokensSent } >= count }
                try node.kill()
                try node.start()
            }
            #expect(try run.waitForExit("run to end after two kills", timeout: .seconds(90)) == .status(0))
            let text = ScriptedUpstream.text(tokens: 200)
            guard json else {
                #expect(run.output.standard == text, "\(run.output.error)")
                #expect(run.output.error.contains("saved tokens"))
                return
            }
            let entries = try run.output.standard.split(separator: "\n").map { try JSON.parse(Bytes($0.utf8)) }
            #expect(ConvergedText(entries).text == text)
            let offsets = entries.compactMap { $0["offset"]?.string }
            #expect(Set(offsets).count == offsets.count && offsets == offsets.sorted(), "an entry came twice")
        }
    }

    @Test func `a server that stops before the message was acknowledged gets it once when it is back`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 20, rate: 300)
            try node.kill()
            try node.start(failpoint: "answer.before:1")
            let run = try ChildProcess(Products.path("parley"), ["run", "writer/one", "Write."], environment: ["PARLEY_URL": node.url])
            #expect(try node.process.waitForExit("the server to die before its answer") == .signal(SIGKILL))
            try node.start()
            #expect(try run.waitForExit("run to end", timeout: .seconds(90)) == .status(0))
            #expect(run.output.standard == ScriptedUpstream.text(tokens: 20))
            #expect(try node.entries("writer/one").count { $0["type"] == "message" } == 1)
        }
    }
}
