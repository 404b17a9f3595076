import Foundation
import ParleyAgents
import ParleyChannels
import ParleySystem
import ParleyTesting
import Synchronization
import Testing

@testable import ParleyModels

private let name = "agents/clerk/a"

/// Passes calls on to a scripted model under a name of its own, and remembers the first message of each.
private final class NamedModel: Model {
    let name: String
    let continues = Continuation.prefix
    let systems = Mutex<[String]>([])
    /// How many messages each call had.
    let counts = Mutex<[Int]>([])
    private let model: ScriptedModel

    init(_ name: String, _ world: SimulatedWorld) {
        var options = ScriptedModel.Options()
        (options.tokens, options.rate) = (40, 20)
        self.name = name
        model = ScriptedModel(options, name: name, world: world)
    }

    func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall {
        systems.withLock { $0.append(request.messages.first?.text ?? "") }
        counts.withLock { $0.append(request.messages.count) }
        return model.start(request, sink)
    }
}

@Suite struct `A turn of a declared agent` {
    @Test func `has as many of the turns before it as fit into its context, whole ones only`() throws {
        let counts = try SimulatedNode.simulate {
            let world = SimulatedWorld(seed: 1)
            let model = NamedModel("scripted:", world)
            var file = AgentFile(kind: "clerk", instructions: "Be brief.", file: "clerk.md")
            file.contextCharacters = 100
            let declared = DeclaredAgent(file, model: model, tools: BuiltInTools(folder: "/nowhere", world: world))
            let node = try SimulatedNode(world, SimulatedLog(), agents: [declared.agent])
            for _ in 0..<7 {
                // 15 characters, answered with 10.
                node.send("say: 0123456789", to: name)
                world.run(deadline: world.now.advanced(by: .seconds(10)))
            }
            return model.counts.withLock { $0 }
        }
        #expect(counts == [2, 4, 6, 8, 8, 8, 8])
    }

    /// One process: the file that it finds, the model that it is configured with, and what is sent to it.
    private struct Life: Sendable {
        var model = "scripted:old"
        var instructions = "Be old."
        var tools = ["current_time", "write_file"]
        var approve: [String] = []
        /// Whether models of other names are there still.
        var hasOthers = true
        var send: [(EntryKind, String)] = []
        var approves = false
        var seconds = 100.0
    }

    private struct Found: Sendable {
        var entries: [JSON] = []
        /// The instructions of each call, by life and model.
        var systems: [[String: [String]]] = []
        var outputs: [String] { entries.filter { $0["type"] == "turn.completed" }.map { $0["output"]?.string ?? "" } }
        func all(_ type: String) -> [JSON] { entries.filter { $0["type"]?.string == type } }
    }

    private func run(_ lives: [Life]) throws -> Found {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("parley-definition-\(UInt64.random(in: 0...UInt64.max))")
        defer { try? FileManager.default.removeItem(at: folder) }
        return try SimulatedNode.simulate {
            var found = Found()
            var (log, now) = (SimulatedLog(), Timestamp(milliseconds: 1_000_000))
            for life in lives {
                let world = SimulatedWorld(seed: 1, now: now)
                let models = Mutex<[String: NamedModel]>([:])
                let make = { @Sendable (name: String) -> NamedModel in
                    models.withLock { models in
                        if let known = models[name] { return known }
                        let model = NamedModel(name, world)
                        models[name] = model
                        return model
                    }
                }
                var file = AgentFile(kind: "clerk", instructions: life.instructions, file: "clerk.md")
                (file.tools, file.approve) = (life.tools, life.approve)
                let declared = DeclaredAgent(
                    file, model: make(life.model), tools: BuiltInTools(folder: folder.path, world: world)
                ) { name, _ in life.hasOthers ? make(name) as any Model : UnconfiguredModel(name: name, problem: "its key is gone") }
                let node = try SimulatedNode(world, log, agents: [declared.agent])
                for (kind, text) in life.send {
                    node.send(NewEntry(kind, nil, ("by", "ann"), ("text", .string(text))), to: name)
                }
                if life.approves {
                    let asked = try node.entries(name).last { $0["type"] == "approval.requested" }?["approval"]
                    node.send(NewEntry(.approve, nil, ("by", "ann"), ("approval", asked)), to: name)
                }
                world.run(deadline: world.now.advanced(by: .milliseconds(Int64(life.seconds * 1_000))))
                found.entries = try node.entries(name)
                found.systems.append(models.withLock { $0.mapValues { $0.systems.withLock { $0 } } })
                now = world.now
                log = log.reopen()
            }
            return found
        }
    }

    private let write = #"call: write_file {"path":"a.txt","text":"hello"}"#

    @Test func `that waits keeps the definition it began with, and the next one has the new`() throws {
        let found = try run([
            Life(send: [(.message, write)]),
            Life(model: "scripted:new", instructions: "Be new.", approves: true),
            Life(model: "scripted:new", instructions: "Be new.", send: [(.message, "say: hello")]),
        ])
        #expect(found.all("agent.stalled").isEmpty)
        #expect(found.outputs == ["The result: wrote 5 bytes to a.txt.", "hello"])
        #expect(found.systems[1]["scripted:old"] == ["Be old."] && found.systems[1]["scripted:new"] == [])
        #expect(found.systems[2] == ["scripted:new": ["Be new."]])
        let definitions = found.all("turn.started").compactMap { $0["definition"]?.string }
        #expect(Set(definitions).count == 2 && definitions.allSatisfy { $0.utf8.count == 64 })
    }

    @Test func `that streams continues in another process with an edited file`() throws {
        let found = try run([
            Life(send: [(.message, "Tell me more.")], seconds: 1), Life(model: "scripted:new", instructions: "Be new.", tools: []),
        ])
        #expect(found.all("agent.stalled").isEmpty && found.outputs.count == 1)
        #expect(found.all("step.completed").first?["recovered_tokens"]?.integer ?? 0 > 0)
        #expect(found.systems[1]["scripted:old"] == ["Be old."])
    }

    @Test func `whose model is not configured any more fails and says so`() throws {
        let found = try run([
            Life(send: [(.message, write)]), Life(model: "scripted:new", hasOthers: false, approves: true),
        ])
        let error = found.all("turn.failed").first?["error"]
        #expect(found.all("agent.stalled").isEmpty)
        #expect(error?["code"] == "model_not_configured" && error?["message"]?.string?.contains("its key is gone") == true)
    }

    @Test func `asks for approval by the rules of now, and does again what was done by others`() throws {
        let calls = "call: current_time {}\n" + write
        // `current_time` ran without being asked for; then the file is edited, and later edited back.
        let found = try run([
            Life(send: [(.message, calls)]), Life(approve: ["current_time"]), Life(approves: true),
        ])
        #expect(found.all("agent.stalled").isEmpty && found.outputs.count == 1)
        #expect(found.all("approval.requested").map { $0["action"] } == ["write_file"])

        // Cut off before the model has called anything: its later calls need an approval.
        let stricter = try run([
            Life(send: [(.message, "say: Let me see what time it is now.\ncall: current_time {}")], seconds: 0.3),
            Life(approve: ["current_time"]), Life(), Life(approves: true),
        ])
        #expect(stricter.all("agent.stalled").isEmpty && stricter.outputs.count == 1)
        #expect(stricter.all("approval.requested").map { $0["action"] } == ["current_time"])
        #expect(stricter.all("step.started").filter { $0["kind"] == "tool" }.count == 1)
    }

    @Test func `gets tool_removed for a tool that was taken away, also when that is approved or given back later`() throws {
        let approved = try run([Life(send: [(.message, write)]), Life(tools: ["current_time"], approves: true)])
        #expect(approved.all("agent.stalled").isEmpty && approved.outputs.first?.contains("tool_removed") == true)

        let found = try run([
            Life(send: [(.message, "say: Let me write this down for you.\n" + write)], seconds: 0.3),
            Life(tools: ["current_time"], seconds: 3.5), Life(), Life(send: [(.message, "say: hello")]),
        ])
        #expect(found.all("agent.stalled").isEmpty && found.all("approval.requested").isEmpty)
        #expect(found.outputs.first?.contains("tool_removed") == true && found.outputs.last == "hello")
    }
}

@Suite struct `A definition` {
    @Test func `is one for files that decide the same, and comes back from what is stored`() {
        let tool = ToolDefinition(name: "t", description: "d", parameters: ["type": "object", "b": 1, "a": [1.5]])
        let definition = DeclaredDefinition(
            instructions: "é \"x\"", model: "openai:m", continues: .auto, options: ModelOptions(maxTokens: 5, temperature: 0.3),
            contextCharacters: 7, tools: [tool])
        let stored = DeclaredDefinition(try! JSON.parse(definition.json.canonical))
        #expect(AgentDefinition(stored.json).sha256 == AgentDefinition(definition.json).sha256)
        #expect(stored.continues == .auto && stored.options == definition.options && stored.contextCharacters == 7)
        var other = definition
        other.tools[0].description = "e"
        #expect(AgentDefinition(other.json).sha256 != AgentDefinition(definition.json).sha256)
    }
}
