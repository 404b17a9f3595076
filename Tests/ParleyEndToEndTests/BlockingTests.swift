import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

/// An agent's code that blocks its thread is felt by that agent alone.
@Suite struct `Code that holds on to its thread` {
    @Test(arguments: ["block", "stuck"]) func `delays neither other agents nor answers`(operation: String) async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let held = try (0..<12).map { try Conversation(node, "\(operation)\($0)") }
            let turns = try held.map { try $0.begin("note before", "\(operation) held", "note after") }
            for (conversation, turn) in zip(held, turns) { try conversation.wait(for: "step.completed", step: "before", turn: turn) }
            let free = try Conversation(node, "free")
            for _ in 0..<3 {
                let turn = try free.begin("note one", "block open", "note two")
                try free.open("open")
                #expect(try free.waitForEnd(of: turn)["type"] == "turn.completed")
            }
            for conversation in held {
                let status = try node.request("GET", "/v1/agents/\(conversation.agent)")
                #expect(status.json?["state"] == "running")
            }
            #expect(try node.request("GET", "/v1/agents").json?["agents"]?.array?.count == 13)
            try free.open("held")
            for (conversation, turn) in zip(held, turns) { #expect(try conversation.waitForEnd(of: turn)["type"] == "turn.completed") }
        }
    }

    @Test func `on the main actor comes back`() async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "main")
            let end = try conversation.waitForEnd(of: try conversation.begin("main m"))
            #expect(Conversation.gave(end)["m"]?["text"] == "turn body")
        }
    }

    @Test func `outside the turn's steps replays after kill -9`() async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "nap")
            let turn = try conversation.begin("nap a", "note one", "main m", "nap b", "note two", "gate last")
            for step in ["one", "m", "two"] { try conversation.wait(for: "step.completed", step: step, turn: turn) }
            try conversation.wait(for: "step.started", step: "last", turn: turn)
            try conversation.killAndRestart()
            try conversation.open("last")
            #expect(try conversation.waitForEnd(of: turn)["type"] == "turn.completed")
            let completed = try conversation.entries("step.completed").compactMap { $0["step"]?.string }
            #expect(completed == ["one", "m", "two", "last"])
        }
    }

    @Test func `that asks again and again, whatever it is told, comes to rest`() async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            try node.process.send(SIGTERM)
            try node.process.waitForExit("the node to stop")
            try node.start(options: ["--idle", "1"])
            let conversations = try (0..<3).map { try Conversation(node, "spin\($0)") }
            let turns = try conversations.map { try $0.begin("spin go") }
            // They are passivated; then none of the node's threads runs for long.
            for conversation in conversations {
                try RealTime.until("the agent to leave memory") {
                    try node.request("GET", "/v1/agents/\(conversation.agent)").json?["in_memory"] == false
                }
            }
            let pid = try node.process.pid
            try RealTime.until("no thread to run") { Self.runningThreads(of: pid) == 0 }
            // One is answered, one cancelled, one left to the stop.
            try conversations[0].say("signal", ("name", "go"), ("data", 7))
            #expect(Conversation.gave(try conversations[0].waitForEnd(of: turns[0]))["go"]?["text"] == "7")
            try conversations[1].say("cancel")
            #expect(try conversations[1].waitForEnd(of: turns[1])["type"] == "turn.cancelled")
            try RealTime.until("no thread to run") { Self.runningThreads(of: pid) == 0 }
            try node.process.send(SIGTERM)
            #expect(try node.process.waitForExit("the node to stop") == .status(0))
        }
    }

    /// How many threads of a process want a processor at this moment: one that computes does at each.
    private static func runningThreads(of pid: Int32) -> Int {
        let threads = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []
        return threads.count { thread in
            let stat = (try? String(contentsOfFile: "/proc/\(pid)/task/\(thread)/stat", encoding: .utf8)) ?? ""
            return stat.split(separator: ")").last?.split(separator: " ").first == "R"
        }
    }
}
