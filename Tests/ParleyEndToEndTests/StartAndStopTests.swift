import Foundation
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Start and stop` {
    @Test func `told to stop in the middle of a turn, it ends in time, tells its readers, and continues at the next start`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 300, rate: 300)
            // However long the stop takes to come, the answer is in its middle.
            var halting = upstream.behaviour
            halting.fault = .stalls(afterTokens: 150)
            upstream.next(halting)
            _ = try node.request("PUT", "/v1/stream/agents/writer/one", [("Content-Type", "application/json")])
            let readers = ["raw", "settled"].map { EndToEndReader(of: "writer/one", view: $0) }
            for reader in readers { reader.attach(to: node) }
            _ = try node.send("Write.", to: "writer/one")
            try upstream.wait("the middle of the answer") { $0.first.map { $0.tokensSent > 100 } ?? false }

            let start = ContinuousClock.now
            try node.process.send(SIGTERM)
            #expect(try node.process.waitForExit("the drain", timeout: .seconds(12)) == .status(0))
            #expect(ContinuousClock.now - start < .seconds(10))
            for reader in readers {
                let end = try reader.wait("the end of the connection") { $0.isOver ? $0 : nil }
                #expect(end.isClean, "the connection broke off")
                #expect(end.endsWithControl && !end.isClosed)
            }
            try upstream.wait("the upstream to be let go of") { $0.first?.outcome == .abandoned }
            let generated = upstream.tokensGenerated

            try node.start()
            for reader in readers { reader.attach(to: node) }
            for reader in readers {
                try reader.waitForTurnEnd()
                #expect(ConvergedText(reader.seen.entries).text == ScriptedUpstream.text(tokens: 300))
            }
            #expect(upstream.records.count == 2)
            #expect(upstream.tokensGenerated <= 300 + 75, "\(generated) of 300 tokens were generated before the stop")
            let offsets = readers[0].seen.entries.compactMap { $0["offset"]?.string.flatMap { UInt64($0, radix: 16) } }
            #expect(offsets == Array(1...UInt64(offsets.count)))
        }
    }

    @Test func `told to stop with nothing to do, it ends at once, also by Ctrl-C`() async throws {
        try await OwnThread.run {
            for signal in [SIGTERM, SIGINT] {
                let (_, node) = try makeNode(tokens: 1, rate: 0)
                try node.process.send(signal)
                #expect(try node.process.waitForExit("the end", timeout: .seconds(5)) == .status(0))
            }
        }
    }

    @Test func `a thread of the allocator gives back what is no longer needed`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let threads = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(node.process.pid)/task")
            let names = threads.compactMap { try? String(contentsOfFile: "/proc/\(node.process.pid)/task/\($0)/comm", encoding: .utf8) }
            #expect(names.contains("jemalloc_bg_thd\n"), "\(names)")
        }
    }

    @Test func `a second process on the folder is refused and told what to do, and the first is unharmed`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 20, rate: 0)
            let second = try ChildProcess(
                Products.path("parley"), ["serve", "--listen", "127.0.0.1:0", "--data", node.dataFolder, "--agents", node.agentsFolder])
            #expect(try second.waitForExit("the second process to be refused", timeout: .seconds(20)) == .status(1))
            let said = second.output.error
            #expect(said.contains(node.dataFolder), "\(said)")
            #expect(said.contains("--data") || said.contains("another") || said.contains("Stop"), "no remedy: \(said)")
            #expect(second.output.standard.isEmpty)
            try expectAlive(node)
        }
    }

    @Test func `a port that is taken is said with the address`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let second = try ChildProcess(
                Products.path("parley"),
                ["serve", "--listen", "127.0.0.1:\(node.port)", "--data", node.folder + "/other", "--agents", node.agentsFolder])
            #expect(try second.waitForExit("the second process to be refused", timeout: .seconds(20)) == .status(1))
            #expect(second.output.error.contains("127.0.0.1:\(node.port)"), "\(second.output.error)")
            try expectAlive(node)
        }
    }

    @Test func `a folder of a newer version is refused, and left as it is`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode()
            try write("parley data format 99\n", to: node.dataFolder, "FORMAT")
            let process = try node.launch()
            #expect(try process.waitForExit("the refusal") == .status(1))
            #expect(process.output.error.contains(node.dataFolder) && process.output.error.contains("99"), "\(process.output.error)")
            #expect(try String(contentsOf: URL(filePath: node.dataFolder + "/FORMAT"), encoding: .utf8) == "parley data format 99\n")
        }
    }

    @Test func `a folder that cannot be read is said by its name, with the reason`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode()
            try write("parley data format 1\n", to: node.dataFolder, "FORMAT")
            chmod(node.dataFolder, 0)
            defer { chmod(node.dataFolder, 0o700) }
            let process = try node.launch(mayReadAnything: false)
            #expect(try process.waitForExit("the refusal") == .status(1))
            #expect(
                process.output.error.contains(node.dataFolder) && process.output.error.contains("ermission denied"),
                "\(process.output.error)")
        }
    }

    @Test func `a folder that holds something else is refused, and left as it is`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode()
            try write("precious", to: node.dataFolder, "letters.txt")
            let process = try node.launch()
            #expect(try process.waitForExit("the refusal") == .status(1))
            #expect(process.output.error.contains("letters.txt"), "\(process.output.error)")
            #expect(try FileManager.default.contentsOfDirectory(atPath: node.dataFolder) == ["letters.txt"])
        }
    }
}

func write(_ text: String, to folder: String, _ name: String) throws {
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try Data(text.utf8).write(to: URL(filePath: "\(folder)/\(name)"))
}

/// The node answers, and does a turn.
func expectAlive(_ node: EndToEndNode, agent: String = "writer/alive", sourceLocation: SourceLocation = #_sourceLocation) throws {
    let exit = try node.process.output.exit
    #expect(exit == nil, sourceLocation: sourceLocation)
    #expect(try node.request("GET", "/healthz").status == 200, sourceLocation: sourceLocation)
    let offset = try node.send("Write.", to: agent)
    let reader = EndToEndReader(of: agent)
    reader.attach(to: node)
    let end = try reader.wait("the end of a turn of a node that is alive") { seen in
        seen.entries.first {
            $0["turn"]?.string == offset && $0["type"]?.string?.hasPrefix("turn.") == true && $0["type"] != "turn.started"
        }
    }
    #expect(end["type"] == "turn.completed", sourceLocation: sourceLocation)
}
