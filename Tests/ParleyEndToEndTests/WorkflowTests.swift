import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

/// `Examples/Workflow`: an activity in Python, with a client that is not ours, that lives through everything an agent lives through.
@Suite struct `A workflow that is not Parley's` {
    @Test func `obeys people, survives kills of itself and of the server, and publishes each step once, in order, to the end`() async throws
    {
        try await OwnThread.run {
            var random = SplitMix64(seed: KillMoment.seed)
            // More than can be done before the last kill.
            let (rounds, count) = KillMoment.isLong ? (20, 600) : (6, 150)
            let node = try EndToEndNode()
            try node.start()
            let workflow = Workflow("nightly", on: node)
            var activity = try workflow.start(steps: count, pace: 0.03)
            try workflow.attach()
            try workflow.wait("some progress", activity) { workflow.progress.count >= 5 ? true : nil }
            try workflow.say(#"{"command": "rows", "value": 50}"#)
            try workflow.wait("the instruction to be obeyed", activity) { workflow.progress.last?["rows"] == 50 ? true : nil }

            for round in 0..<rounds {
                RealTime.pass(50...250, &random)
                switch round % 3 {
                case 0:
                    try activity.kill()
                    activity = try workflow.start(steps: count, pace: 0.03)
                case 1:
                    try node.kill()
                    // Once durable without an answer, once neither: a repeated message must be there once, either way.
                    try node.start(failpoint: round % 2 == 1 ? "commit.after:2" : "commit.before:2")
                    try node.process.waitForExit("the server to die in a commit")
                    try node.start()
                default:
                    try node.kill()
                    try activity.kill()
                    try node.start()
                    activity = try workflow.start(steps: count, pace: 0.03)
                }
            }
            try workflow.say(#"[{"command": "pause"}, {"command": "fly"}]"#)
            try workflow.wait("the pause", activity) { workflow.steered.count == 3 ? true : nil }
            let paused = workflow.progress.count
            try activity.kill()
            activity = try workflow.start(steps: count, pace: 0.03)
            try workflow.wait("the process that takes over", activity) {
                workflow.entries("claimed").count > workflow.claimsAtStart ? true : nil
            }
            try workflow.say(#"{"command": "resume"}"#)
            #expect(try activity.waitForExit("the activity to be done", timeout: .seconds(60)) == .status(0), "\(activity.output.error)")
            try workflow.wait("the end of the channel", activity) { workflow.isClosed ? true : nil }

            let steps = workflow.progress.compactMap { $0["step"]?.integer }
            #expect(steps == Array(1...Int64(count)), "seed \(KillMoment.seed)")
            #expect(workflow.steered.map { $0["said"]?["command"]?.string } == ["rows", "pause", "fly", "resume"])
            #expect(workflow.steered.map { $0["refused"] == .null } == [true, true, false, true])
            #expect(paused < count)
            // Between the pause and the end of it nothing was done.
            let types = workflow.all.map { $0["type"]!.string! }
            let pause = try #require(workflow.all.firstIndex { $0["said"]?["command"] == "pause" })
            let resume = try #require(workflow.all.firstIndex { $0["said"]?["command"] == "resume" })
            #expect(!types[pause...resume].contains("progress"))
            #expect(types.last == "done" && types.count { $0 == "done" } == 1)
            #expect(workflow.all.last?["imported"]?.integer == workflow.progress.reduce(0) { $0 + $1["rows"]!.integer! })

            // The log says what the reader saw, and a late start changes nothing.
            #expect(try workflow.start(steps: count, pace: 0).waitForExit("a late start to see that all is done") == .status(0))
            let page = try node.request("GET", "/v1/stream/workflows/nightly?offset=-1")
            #expect(page.json?.array == workflow.all && page.header("Stream-Closed") == "true")
        }
    }

    @Test func `a second process takes over, and the first is refused`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode()
            try node.start()
            let workflow = Workflow("twice", on: node)
            let first = try workflow.start(steps: 30, pace: 0.05)
            try workflow.attach()
            // Told to wait before it can be done, however long the second takes to come.
            try workflow.say(#"{"command": "pause"}"#)
            try workflow.wait("the first to wait", first) { workflow.steered.isEmpty ? nil : true }
            let second = try workflow.start(steps: 30, pace: 0.01)
            try workflow.wait("the second to take over", second) { workflow.entries("claimed").count == 2 ? true : nil }
            try workflow.say(#"{"command": "resume"}"#)
            #expect(try first.waitForExit("the first to be refused") == .status(1))
            #expect(first.output.error.contains("another process has taken this activity over"))
            #expect(try second.waitForExit("the second to be done") == .status(0))
            try workflow.wait("the end of the channel", second) { workflow.isClosed ? true : nil }
            #expect(workflow.progress.compactMap { $0["step"]?.integer } == Array(1...30))
        }
    }
}

/// One workflow, its processes and a follower of its channel.
private final class Workflow {
    private let name: String
    private let node: EndToEndNode
    private let reader: EndToEndReader
    /// How often the activity had been claimed when it was last started.
    private(set) var claimsAtStart = 0

    init(_ name: String, on node: EndToEndNode) {
        (self.name, self.node) = (name, node)
        reader = EndToEndReader(channel: "workflows/\(name)")
    }

    func start(steps: Int, pace: Double) throws -> ChildProcess {
        guard let python = ProcessInfo.processInfo.environment["PARLEY_LOCAL_MODEL_PYTHON"], !python.isEmpty else {
            throw Missed("PARLEY_LOCAL_MODEL_PYTHON is not set: run ./test, which installs the client and sets it")
        }
        claimsAtStart = entries("claimed").count
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        let words = [
            root.appending(path: "Examples/Workflow/activity.py").path, name, "--steps", "\(steps)", "--pace", "\(pace)", "--server",
            node.url,
        ]
        return try ChildProcess(python, words)
    }

    /// Follows the channel as soon as it is there.
    func attach() throws {
        try RealTime.until("the activity to make its channel", timeout: .seconds(30)) {
            try node.request("HEAD", "/v1/stream/workflows/\(name)/control").status == 200
        }
        reader.attach(to: node)
    }

    func say(_ entry: String) throws {
        let answer = try node.request(
            "POST", "/v1/stream/workflows/\(name)/control", [(name: "Content-Type", value: "application/json")], entry)
        guard answer.status == 204 else { throw Missed("steering answers \(answer.status): \(answer.text)") }
    }

    /// Waits for what the channel shows, reading on whenever the connection broke.
    @discardableResult
    func wait<Value>(_ phase: String, _ activity: ChildProcess, _ find: () -> Value?) throws -> Value {
        let deadline = ContinuousClock.now + .seconds(60)
        while ContinuousClock.now < deadline {
            if let found = find() { return found }
            if reader.seen.isOver {
                try? RealTime.until("the node to answer") { (try? node.request("GET", "/healthz"))?.status == 200 }
                reader.attach(to: node)
            }
            let count = reader.seen.entries.count
            _ = try? reader.wait("more", timeout: .milliseconds(200)) { $0.entries.count > count || $0.isOver || $0.isClosed ? true : nil }
        }
        throw Missed("waited for \(phase); last: \(all.last?.text ?? "nothing"); the activity says:\n\(activity.output.error)")
    }

    var all: [JSON] { reader.seen.entries }
    var isClosed: Bool { reader.seen.isClosed }
    func entries(_ type: String) -> [JSON] { all.filter { $0["type"]?.string == type } }
    var progress: [JSON] { entries("progress") }
    var steered: [JSON] { entries("steered") }
}
