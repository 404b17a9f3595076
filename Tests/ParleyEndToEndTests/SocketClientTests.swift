import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Clients of the socket that run as programs of their own, against the executable, which is killed meanwhile.
@Suite struct `Clients of the socket` {
    static let transports = ["socket", "stream"]

    @Test(arguments: transports) func `parley.js continues over kills of the server, and shows what the log says`(_ transport: String)
        async throws
    {
        try await OwnThread.run {
            var random = SplitMix64(seed: KillMoment.seed)
            let agent = "---\ncontinues: prefix\nmax_tokens: 100000\n---\nYou are a helpful assistant.\n"
            let node = try EndToEndNode(agents: ["assistant.md": agent], environment: ["PARLEY_MODEL": "scripted:tokens=150,rate=40"])
            try node.start()
            let options = transport == "socket" ? ["--experimental-websocket"] : []
            let script = SocketClients.path("follow.mjs")
            // Debian's node 20 knows WebSocket only when told to, which is what makes it the test of doing without.
            let client = try ChildProcess("/usr/bin/node", options + ["--no-warnings", script, node.url, "assistant/sea", "numbers", "60"])
            for _ in 0..<3 {
                let lines = SocketClients.lines(client).count
                try client.wait("the client to see more") { SocketClients.lines($0).count > lines + 12 ? true : nil }
                RealTime.pass(0...150, &random)
                try node.kill()
                RealTime.pass(0...300, &random)
                try node.start()
            }
            #expect(try client.waitForExit("parley.js to be done") == .status(0), "\(client.output.error)")
            let lines = SocketClients.lines(client)
            #expect(lines.first?["transport"] == .string(transport))
            let seen = lines.compactMap { $0["entry"] }
            #expect(seen == Array(try node.entries("assistant/sea").prefix(seen.count)), "seed \(KillMoment.seed)")
            let texts = lines.compactMap { $0["text"]?.string }
            let text = try #require(texts.first)
            let completed = seen.last { $0["type"] == "step.completed" }
            #expect(text == completed?["text"]?.string)
            #expect(lines.compactMap { $0["again"]?.string } == [text])
            #expect(lines.compactMap { $0["number"]?.integer } == Array(0..<60), "seed \(KillMoment.seed)")
            #expect(lines.compactMap { $0["refused"] } == ["unknown_entry_type"])
            #expect(lines.compactMap { $0["missing"] } == ["channel_not_found"])
            #expect(lines.last == ["done": true])
        }
    }

    @Test func `parley.js puts text together by the rules`() throws {
        let file = SocketClients.root.appending(path: "Sources/ParleyServer/Client/parley.js").path
        let client = try ChildProcess("/usr/bin/node", [SocketClients.path("text.mjs"), file, "\(KillMoment.seed)"])
        #expect(try client.waitForExit("the rules to be tried") == .status(0), "\(client.output.error)")
        #expect(client.output.standard.contains("all hold"))
    }

    @Test func `a client that is not ours follows many channels, each entry once, while it and the server come and go`() async throws {
        try await OwnThread.run {
            var random = SplitMix64(seed: KillMoment.seed)
            guard let python = ProcessInfo.processInfo.environment["PARLEY_LOCAL_MODEL_PYTHON"], !python.isEmpty else {
                throw Missed("PARLEY_LOCAL_MODEL_PYTHON is not set: run ./test, which installs the client and sets it")
            }
            let node = try EndToEndNode()
            try node.start()
            let words = [SocketClients.path("socket_client.py"), "\(node.port)", "8", "150", "\(KillMoment.seed % 1_000_000)"]
            let client = try ChildProcess(python, words)
            try client.wait("the client to begin") { $0.standard.contains("ready") ? true : nil }
            for _ in 0..<3 {
                RealTime.pass(50...400, &random)
                try node.kill()
                try node.start()
            }
            #expect(try client.waitForExit("the client to be done") == .status(0), "seed \(KillMoment.seed): \(client.output.error)")
            #expect(client.output.standard.contains("\"numbers\": 1200"))
        }
    }
}

private enum SocketClients {
    static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    static func path(_ name: String) -> String { root.appending(path: "Tests/Support/Clients/\(name)").path }

    static func lines(_ process: ChildProcess) -> [JSON] { lines(process.output) }

    static func lines(_ output: ChildProcess.Output) -> [JSON] {
        output.standard.split(separator: "\n").compactMap { try? JSON.parse(String($0)) }
    }
}
