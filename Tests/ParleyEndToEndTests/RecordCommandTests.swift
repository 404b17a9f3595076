import Foundation
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Looking back from the command line` {
    typealias Misuse = `The command line`.Misuse

    @Test(arguments: [
        Misuse("trace", says: "<kind>/<id> is missing"), Misuse("trace", "writer", says: "'writer' is no agent"),
        Misuse("trace", "writer/one", "two", says: "'two' was not expected"),
        Misuse("trace", "writer/one", "--trun", "1", says: "Did you mean '--turn'?"), Misuse("audit", says: "<kind>/<id> is missing"),
        Misuse("audit", "writer/one", "--sinse", "now", says: "Did you mean '--since'?"),
    ])
    func `misused, it says how, on standard error, with status 2`(_ misuse: Misuse) async throws {
        try await OwnThread.run {
            let process = try ChildProcess(Products.path("parley"), misuse.words)
            #expect(try process.waitForExit("parley to refuse") == .status(2))
            for text in misuse.says { #expect(process.output.error.contains(text), "\(process.output.error)") }
            #expect(process.output.error.contains("usage: parley \(misuse.words[0])"))
        }
    }

    @Test func `a trace shows turns, attempts and who did what, as text, as JSON and drawn`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 10_000, rate: 200)
            let server = ["PARLEY_URL": node.url]
            _ = try node.send("Write\nsomething.", to: "writer/one")
            try upstream.wait("token 50") { $0.reduce(0) { $0 + $1.tokensSent } >= 50 }
            try node.kill()
            try node.start()
            try upstream.wait("the second attempt") { $0.count >= 2 && $0.last!.tokensSent > 10 }
            #expect(try parley("interrupt", "writer/one", environment: server).exit == .status(0))

            let trace = try parley("trace", "writer/one", environment: server)
            #expect(trace.exit == .status(0) && trace.error.isEmpty, "\(trace.error)")
            for text in [
                "turn 0000000000000001  interrupted after ", "anonymous: \"Write something.\"", "resumed at ", "cause: crash",
                "2 attempts: lost, interrupted", "interrupt", "applied", "1 step, 2 attempts, 1 restart",
            ] { #expect(trace.standard.contains(text), "'\(text)' is not in:\n\(trace.standard)") }
            #expect(!trace.standard.unicodeScalars.contains { $0.value > 0x7F }, "lines and bars are for terminals")

            let json = try parley("trace", "writer/one", "--json", "--turn", "0000000000000001", environment: server)
            let turn = try JSON.parse(Bytes(json.standard.utf8))["turns"]?.array?.first
            #expect(turn?["state"] == "interrupted" && turn?["controls"]?.array?.first?["type"] == "interrupt")
            #expect(turn == (try node.request("GET", "/v1/agents/writer/one/trace").json?["turns"]?.array?.first))

            let drawn = try ChildProcess(
                "script",
                ["--quiet", "--return", "--command", "\(Products.path("parley")) trace writer/one --server \(node.url)", "/dev/null"])
            #expect(try drawn.waitForExit("the drawn trace") == .status(0))
            #expect(drawn.output.standard.contains("└─ ") && drawn.output.standard.contains("█"), "\(drawn.output.standard)")
        }
    }

    @Test func `a trace shows calls that no tool ran for, below the answer that has them`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["clerk.md": "---\ntools: [write_file]\n---\nNote.\n"], environment: ["PARLEY_MODEL": "scripted:rate=0"])
            try node.start()
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("run", "clerk/one", "call: write_file [1]", environment: server).exit == .status(0))
            let lines = try parley("trace", "clerk/one", environment: server).standard.split(separator: "\n")
            let call = try #require(
                lines.firstIndex { $0.contains("not run, and the model was told: error: the arguments are not a JSON object") })
            #expect(lines[call].hasPrefix("    write_file") && lines[call - 1].hasPrefix("  answer "), "\(lines)")
        }
    }

    @Test func `an audit says who did what, page by page`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 5, rate: 0)
            let server = ["PARLEY_URL": node.url]
            for number in 1...3 { #expect(try parley("run", "writer/one", "Write \(number).", environment: server).exit == .status(0)) }
            #expect(try parley("interrupt", "writer/one", environment: server).exit == .status(1))

            let audit = try parley("audit", "writer/one", environment: server)
            #expect(audit.exit == .status(0) && audit.error.isEmpty)
            let lines = audit.standard.split(separator: "\n")
            #expect(
                lines.count == 4 && lines[0].hasSuffix("message    anonymous  applied                \"Write 1.\""), "\(audit.standard)")
            #expect(lines[3].contains("rejected (turn_ended)"))

            let newest = try parley("audit", "writer/one", "--type", "message", "--limit", "2", environment: server)
            #expect(newest.standard.contains("Write 3.") && !newest.standard.contains("Write 1."))
            let next = try #require(newest.error.split(separator: " ").last).trimmingCharacters(in: .newlines)
            #expect(newest.error == "older records: --before \(next)\n")
            #expect(try parley("audit", "writer/one", "--limit", "2", "--before", next, environment: server).standard.contains("Write 1."))
            #expect(try parley("audit", "writer/one", "--by", "somebody", environment: server).standard.isEmpty)
            let json = try parley("audit", "writer/one", "--json", "--type", "interrupt", environment: server)
            #expect(try JSON.parse(Bytes(json.standard.utf8))["records"]?.array?.first?["receipt"]?["reason"] == "turn_ended")
        }
    }

    @Test func `the exact request of each call of a model is answered`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 5, rate: 0)
            for text in ["Write.", "And more."] { #expect(try parley("run", "writer/one", text, "--server", node.url).exit == .status(0)) }
            let calls = try node.entries("writer/one").filter { $0["type"] == "step.started" && $0["kind"] == "model" }
            #expect(calls.count == 2 && upstream.records.count == 2)
            for (call, record) in zip(calls, upstream.records) {
                let step = try #require(call["offset"]?.string)
                let answer = try node.request("GET", "/v1/agents/writer/one/request?step=\(step)")
                #expect(answer.status == 200 && answer.header("Cache-Control") == "private, no-store")
                #expect(answer.json?["offset"]?.string == step && answer.json?["model"] == "openai:scripted")
                let said = { (messages: JSON?) in
                    (messages?.array ?? []).map { [$0["role"]?.string, ($0["content"] ?? $0["text"])?.string] }
                }
                #expect(said(answer.json?["messages"]) == said(record.body["messages"]), "\(answer.text)")
            }
        }
    }

    @Test func `what the server refuses is said with its code, status 1, or 2 for wrong usage`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            for (words, code, status) in [
                (["trace", "writer/nobody"], "channel_not_found", 1), (["audit", "writer/nobody"], "channel_not_found", 1),
                (["trace", "writer/one", "--turn", "0000000000000009"], "turn_not_found", 1),
                // Wrong usage, whichever side finds it.
                (["trace", "writer/one", "--limit", "many"], "invalid_limit", 2),
                (["audit", "writer/one", "--type", "nope"], "invalid_type", 2),
            ] as [([String], String, Int32)] {
                _ = try node.send("Write.", to: "writer/one")
                let process = try ChildProcess(Products.path("parley"), words, environment: ["PARLEY_URL": node.url])
                #expect(try process.waitForExit("the refusal of \(words)") == .status(status))
                #expect(process.output.standard.isEmpty && process.output.error.contains(code), "\(process.output)")
            }
        }
    }
}
