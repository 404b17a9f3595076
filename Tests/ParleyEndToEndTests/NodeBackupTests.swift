import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// A copy of a running node's data, and a node that is started on it.
@Suite struct `A backup` {
    @Test func `made under load holds what was acknowledged before, and the node on it continues`() async throws {
        try await OwnThread.run {
            let agents = [
                "writer.md": "---\nkind: writer\n---\nWrite.\n", "clerk.md": "---\nkind: clerk\ntools: [write_file]\n---\nNote.\n",
            ]
            let environment = ["PARLEY_MODEL": "scripted:tokens=200,rate=40"]
            let node = try EndToEndNode(agents: agents, environment: environment)
            try node.start()
            let server = ["PARLEY_URL": node.url]
            try Self.writeFile(server)
            #expect(try parley("create", "/load/1", environment: server).exit == .status(0))
            let turn = try node.send("Write.", to: "writer/one")
            let load = Load(node)
            try load.waitForAcknowledged(50)
            let before = load.acknowledged
            let copy = node.folder + "/backup"
            let backup = try parley("backup", copy, environment: server)
            #expect(backup.exit == .status(0) && backup.standard == copy + "\n", "\(backup)")
            try load.waitForAcknowledged(load.acknowledged + 20)
            load.stop()
            for folder in [copy, copy + "/FORMAT/copy"] {
                let again = try node.request(
                    "POST", "/v1/backup", [("Content-Type", "application/json")], #"{"folder": "\#(folder)"}"#)
                #expect(again.status == 400 && again.json?["code"] == "invalid_folder", "\(again.text)")
            }
            let refused = try parley("backup", copy, environment: server)
            #expect(
                refused.exit == .status(1) && refused.error.contains("is not empty") && refused.error.contains("(invalid_folder)"),
                "\(refused)")
            try node.kill()

            let restored = try EndToEndNode(agents: agents, environment: environment)
            try restored.start(options: ["--data", copy])
            let numbers = try Self.numbers(restored)
            #expect(
                numbers == Array(0..<numbers.count) && numbers.count >= before, "\(before) were acknowledged, there are \(numbers.count)")
            // The turn that was running continues there, and its text is whole.
            let tail = try ChildProcess(
                Products.path("parley"), ["tail", "writer/one", "--json"], environment: ["PARLEY_URL": restored.url])
            try tail.wait("the turn to end") { $0.standard.contains("\"turn.completed\"") ? true : nil }
            let entries = try restored.entries("writer/one")
            #expect(entries.last { $0["type"] == "turn.completed" }?["turn"]?.string == turn)
            #expect(try String(contentsOfFile: copy + "/files/kind-clerk/id-one/note.md", encoding: .utf8) == "The sea.")
        }
    }

    private static func writeFile(_ server: [String: String]) throws {
        let call = "call: write_file {\"path\": \"note.md\", \"text\": \"The sea.\"}"
        let run = try ChildProcess(Products.path("parley"), ["run", "clerk/one", call], environment: server)
        try run.wait("the approval to be asked for") { $0.error.contains("asks for approval") ? true : nil }
        #expect(try parley("approve", "clerk/one", environment: server).exit == .status(0))
        #expect(try run.waitForExit("run to end") == .status(0))
    }

    private static func numbers(_ node: EndToEndNode) throws -> [Int] {
        let output = try parley("append", "/load/1", "-1", "--close", environment: ["PARLEY_URL": node.url])
        #expect(output.exit == .status(0), "\(output.error)")
        return try parley("tail", "/load/1", environment: ["PARLEY_URL": node.url]).standard.split(separator: "\n").compactMap { Int($0) }
            .dropLast()
    }

    /// Appends numbers one after another, and knows how many were acknowledged.
    private final class Load: Sendable {
        private let state = Monitor((acknowledged: 0, isStopped: false, failure: String?.none))
        private let done = Monitor(false)

        init(_ node: EndToEndNode) {
            _ = SystemThread(name: "load") { [state, done] in
                var number = 0
                while !state.withLock({ $0.isStopped }) {
                    let answer = try? node.request("POST", "/v1/stream/load/1", [("Content-Type", "application/json")], "\(number)")
                    state.withLock(signalAll: true) { state in
                        if answer?.status == 204 {
                            state.acknowledged += 1
                        } else {
                            (state.isStopped, state.failure) = (true, "\(number): \(answer?.text ?? "-")")
                        }
                    }
                    number += 1
                }
                done.withLock(signalAll: true) { $0 = true }
            }
        }

        var acknowledged: Int { state.withLock { $0.acknowledged } }

        func waitForAcknowledged(_ count: Int) throws {
            let reached = state.wait(timeout: .seconds(60)) { state in state.acknowledged >= count || state.failure != nil ? true : nil }
            let failure = state.withLock { $0.failure }
            guard reached != nil, failure == nil else { throw Missed("\(count) appends were not acknowledged: \(failure ?? "in time")") }
        }

        func stop() {
            state.withLock { $0.isStopped = true }
            _ = done.wait { $0 ? true : nil }
        }
    }
}
