import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

/// An approval is decided once, whichever client decides, and whatever happens to the server meanwhile.
@Suite struct `An approval` {
    /// Makes an agent ask for one; returns the turn and the request.
    private static func ask(
        _ conversation: Conversation, _ operations: String..., kind: String = "approval"
    ) throws -> (turn: String, request: JSON) {
        let plan = Conversation.plan(["\(kind) pay"] + operations)
        let turn = try conversation.say("message", ("data", plan))
        return (turn, try conversation.wait(for: "approval.requested", step: "pay", turn: turn))
    }

    @Test func `that many decide at once has one decision, and everyone else is told so`() async throws {
        let (node, _) = try Conversation.node()
        defer { withExtendedLifetime(node) {} }
        for round in 0..<5 {
            let conversation = try Conversation(node, "race\(round)")
            let (turn, request) = try Self.ask(conversation, "gate after")
            let sent = Monitor<[String]>([])
            try await atOnce(16, Array(0..<16)) { number in
                let offset = try conversation.say(number % 2 == 0 ? "approve" : "deny", ("approval", request["approval"]))
                sent.withLock { $0.append(offset) }
            }
            let verdicts = try sent.withLock { $0.sorted() }.map { try conversation.verdict(on: $0) }
            // The log's order decides: the first one wins. Denied, the turn ends, and the others come after that.
            #expect(verdicts.first == "applied")
            #expect(verdicts.dropFirst().allSatisfy { $0 == "rejected already_decided" }, "\(verdicts)")
            let decided = try conversation.entries("approval.decided")
            #expect(decided.count == 1)
            try conversation.open("after")
            let end = try conversation.waitForEnd(of: turn)
            #expect((decided.first?["decision"] == "approved") == (conversation.runs("after", turn: turn) == 1), "\(end.text)")
        }
    }

    @Test func `is bound to its arguments, and stays open when they were others`() async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let (turn, request) = try Self.ask(conversation, "note paid")
            for digest in ["00", request["args_sha256"]!.string!.uppercased(), String(repeating: "a", count: 64)] {
                let wrong = try conversation.say("approve", ("approval", request["approval"]), ("args_sha256", .string(digest)))
                #expect(try conversation.verdict(on: wrong) == "rejected arguments_changed")
            }
            #expect(try conversation.entries("approval.decided").isEmpty)
            let right = try conversation.say("approve", ("approval", request["approval"]), ("args_sha256", request["args_sha256"]))
            #expect(try conversation.verdict(on: right) == "applied")
            #expect(try conversation.waitForEnd(of: turn)["type"] == "turn.completed")
            #expect(conversation.runs("paid", turn: turn) == 1)
        }
    }

    @Test(arguments: [false, true])
    func `that nobody decides in time expires in the log, also while the server is down`(isKilled: Bool) async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let (turn, request) = try Self.ask(conversation, "note paid", kind: "expiring")
            if isKilled {
                try node.kill()
                let due = try #require(request["expires_at"]?.string.flatMap { Timestamp($0) })
                let world = SystemWorld(threads: 1)
                try RealTime.until("the approval to expire") { world.now >= due }
                try conversation.reader.wait("the connection to break") { $0.isOver ? true : nil }
                try node.start()
                conversation.reader.attach(to: node)
            }
            let end = try conversation.waitForEnd(of: turn)
            let late = try conversation.say("approve", ("approval", request["approval"]))
            #expect(Conversation.gave(end)["pay"]?["text"] == "expired")
            #expect(try conversation.verdict(on: late) == "rejected approval_expired")
            let decided = try conversation.entries("approval.decided")
            #expect(decided.map { $0["decision"] } == ["expired"])
            #expect(decided[0]["at"]!.string! >= request["expires_at"]!.string!)
            #expect(conversation.runs("paid", turn: turn) == 0)
        }
    }

    /// The failpoint kills the node once the approval is durable and before any client is told.
    @Test(arguments: [nil, "answer.before:1"] as [String?])
    func `given while the server is down, and tried again with its key until it is back, counts once`(failpoint: String?) async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let (turn, request) = try Self.ask(conversation, "note paid")
            try node.kill()
            try conversation.reader.wait("the connection to break") { $0.isOver ? true : nil }
            if let failpoint { try node.start(failpoint: failpoint) }
            let attempts = Monitor(0)
            let answered = Monitor<Result<EndToEndHTTP.Answer, any Error>?>(nil)
            let entry = Conversation.entry("approve", [("approval", request["approval"])])
            _ = SystemThread(name: "client") {
                while true {
                    attempts.withLock(signalAll: true) { $0 += 1 }
                    guard let answer = try? conversation.post(entry, key: "my approval") else { continue }
                    return answered.withLock(signalAll: true) { $0 = .success(answer) }
                }
            }
            _ = attempts.wait(timeout: .seconds(30)) { $0 > 5 ? true : nil }
            if failpoint != nil { #expect(try node.process.waitForExit("the failpoint") == .signal(SIGKILL)) }
            try node.start()
            conversation.reader.attach(to: node)
            let answer = try #require(answered.wait(timeout: .seconds(30)) { $0 }).get()
            #expect(answer.status == 202)
            #expect((answer.header("Idempotent-Replayed") == "true") == (failpoint != nil))
            let end = try conversation.waitForEnd(of: turn)
            #expect(end["type"] == "turn.completed" && conversation.runs("paid", turn: turn) == 1)
            #expect(try conversation.entries("approve").count == 1)
            #expect(try conversation.entries("approval.decided").count == 1)
            #expect(try conversation.entries("receipt").count == 2)
        }
    }

    @Test(arguments: 0..<5) func `given right before the server is killed holds, and what it guards is done once`(round: Int) async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let (turn, request) = try Self.ask(conversation, "once paid")
            let approve = try conversation.say("approve", ("approval", request["approval"]))
            RealTime.pass(.microseconds(round * 1_500))
            try conversation.killAndRestart()
            let end = try conversation.waitForEnd(of: turn)
            #expect(try conversation.verdict(on: approve) == "applied")
            #expect(try conversation.entries("approval.decided").map { $0["decision"] } == ["approved"])
            // At most once: cut off in its midst, its outcome is reported as unknown.
            let gave = Conversation.gave(end)["paid"]?["text"]
            let runs = conversation.runs("paid", turn: turn)
            #expect(gave == "once" && runs == 1 || gave == "outcome_unknown" && runs <= 1, "\(end.text), \(runs) runs")
        }
    }

    @Test(arguments: ["flaky", "dies"]) func `is not asked for again when what it guards fails`(operation: String) async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let (turn, request) = try Self.ask(conversation, "\(operation) paid")
            let approve = try conversation.say("approve", ("approval", request["approval"]))
            if operation == "dies" {
                #expect(try node.process.waitForExit("the step to kill its process") == .signal(SIGKILL))
                try conversation.reader.wait("the connection to break") { $0.isOver ? true : nil }
                try node.start()
                conversation.reader.attach(to: node)
            }
            let end = try conversation.waitForEnd(of: turn)
            #expect(end["type"] == "turn.completed")
            #expect(conversation.runs("paid", turn: turn) == (operation == "dies" ? 2 : 3))
            #expect(try conversation.entries("approval.requested").count == 1)
            let decided = try conversation.entries("approval.decided")
            #expect(decided.map { $0["decision"] } == ["approved"])
            #expect(try conversation.verdict(on: approve) == "applied")
        }
    }

    @Test func `that was decided before a kill is decided after it, and after the turn`() async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            let (turn, request) = try Self.ask(conversation, "gate after")
            #expect(try conversation.verdict(on: conversation.say("approve", ("approval", request["approval"]))) == "applied")
            try conversation.wait(for: "step.started", step: "after")
            try conversation.killAndRestart()
            func tryAgain() throws {
                let late = try conversation.say("deny", ("approval", request["approval"]))
                #expect(try conversation.verdict(on: late) == "rejected already_decided")
            }
            try tryAgain()
            try conversation.open("after")
            #expect(try conversation.waitForEnd(of: turn)["type"] == "turn.completed")
            try tryAgain()
        }
    }
}

@Suite struct `A signal` {
    @Test func `is kept until it is waited for, over turns and kills, and is taken in the order sent`() async throws {
        try await OwnThread.run {
            let (node, _) = try Conversation.node()
            let conversation = try Conversation(node, "one")
            // Before there is any turn, while one does something else, and while one waits for another.
            let first = try conversation.say("signal", ("name", "paid"), ("data", "first"))
            try conversation.killAndRestart()
            #expect(try conversation.waitForEnd(of: conversation.begin("note one"))["type"] == "turn.completed")
            let turn = try conversation.begin("gate busy", "wait other", "wait paid", "wait paid")
            try conversation.wait(for: "step.started", step: "busy")
            let second = try conversation.say("signal", ("name", "paid"), ("data", "second"))
            try conversation.killAndRestart()
            try conversation.open("busy")
            try conversation.wait(for: "step.started", step: "other")
            try conversation.killAndRestart()
            #expect(try conversation.entries("receipt").count == 2, "a signal was taken that nobody waited for")
            try conversation.say("signal", ("name", "other"))
            let end = try conversation.waitForEnd(of: turn)
            let gave = (end["output"]?["gave"]?.array ?? []).compactMap { $0["text"]?.string }
            #expect(gave.count == 4 && gave[2].contains("first") && gave[3].contains("second"), "\(gave)")
            for (offset, step) in [(first, "paid"), (second, "paid#2")] {
                let receipt = try conversation.receipt(of: offset)
                #expect(receipt["state"] == "applied" && receipt["turn"]?.string == turn && receipt["step"]?.string == step)
            }
        }
    }
}
