import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

/// One agent of kind `controlled`, its clients, and the entries of its channel.
final class Conversation: Sendable {
    let node: EndToEndNode
    let agent: String
    let reader: EndToEndReader

    init(_ node: EndToEndNode, _ name: String) throws {
        self.node = node
        agent = "controlled/\(name)"
        reader = EndToEndReader(of: agent)
        _ = try node.request("PUT", "/v1/stream/agents/\(agent)", [("Content-Type", "application/json")])
        reader.attach(to: node)
    }

    /// A node with that agent, in front of a scripted upstream.
    static func node(tokens: Int = 20, rate: Int = 0) throws -> (node: EndToEndNode, upstream: ScriptedUpstream) {
        var behaviour = ScriptedUpstream.Behaviour()
        (behaviour.tokens, behaviour.rate) = (tokens, rate)
        let upstream = try ScriptedUpstream(behaviour)
        let node = try EndToEndNode(
            "steps-agent",
            environment: ["PARLEY_MODEL": "openai:scripted", "OPENAI_BASE_URL": upstream.baseURL, "PARLEY_MODEL_CONTINUES": "prefix"],
            keeping: upstream)
        try node.start()
        return (node, upstream)
    }

    // MARK: Talking

    /// The message that has the agent do these operations.
    static func plan(_ operations: [String]) -> JSON { ["operations": .array(operations.map { .string($0) })] }

    /// Makes the agent do this; returns the turn.
    @discardableResult
    func begin(_ operations: String...) throws -> String { try say("message", ("data", Conversation.plan(operations))) }

    /// Sends an entry; gives its offset, once it is durable.
    @discardableResult
    func say(_ type: String, _ members: (String, JSON?)..., key: String? = nil) throws -> String {
        let answer = try post(Conversation.entry(type, members), key: key)
        guard answer.status == 202, let offset = answer.json?["entries"]?.array?.first?["offset"]?.string else {
            throw Missed("\(type) to \(agent) answers \(answer.status): \(answer.text)")
        }
        return offset
    }

    static func entry(_ type: String, _ members: [(String, JSON?)]) -> JSON {
        .object(([("type", .string(type))] + members).compactMap { name, value in value.map { JSON.Member(name, $0) } })
    }

    func post(_ entry: JSON, key: String? = nil) throws -> EndToEndHTTP.Answer {
        var headers = [(name: "Content-Type", value: "application/json")]
        if let key { headers.append((name: "Idempotency-Key", value: key)) }
        return try node.request("POST", "/v1/agents/\(agent)", headers, entry.text)
    }

    /// Opens the gate that a step of that name waits at, in all agents of the node.
    func open(_ gate: String) throws { try Data().write(to: URL(filePath: "\(node.stepsFile).\(gate)")) }

    /// `kill -9`, and on again; the reader comes back.
    func killAndRestart() throws {
        try node.kill()
        try reader.wait("the connection to break") { $0.isOver ? true : nil }
        try node.start()
        reader.attach(to: node)
    }

    // MARK: Results

    /// Waits for an entry of this type, and of that step.
    @discardableResult
    func wait(for type: String, step: String? = nil, turn: String? = nil) throws -> JSON {
        try reader.wait("\(type) \(step ?? "") of \(agent)") { seen in
            seen.entries.last {
                $0["type"]?.string == type && (step == nil || $0["step"]?.string == step) && (turn == nil || $0["turn"]?.string == turn)
            }
        }
    }

    /// Waits for the end of a turn.
    func waitForEnd(of turn: String) throws -> JSON {
        try reader.wait("the end of turn \(turn) of \(agent)") { seen in
            seen.entries.last {
                $0["turn"]?.string == turn && $0["type"]?.string?.hasPrefix("turn.") == true && $0["type"] != "turn.started"
            }
        }
    }

    /// Waits for the receipt of an entry.
    func receipt(of offset: String) throws -> JSON {
        try reader.wait("the receipt of \(offset) of \(agent)") { seen in
            seen.entries.last { $0["type"] == "receipt" && $0["of"]?.string == offset }
        }
    }

    /// The receipt in short: `applied`, `rejected turn_ended`.
    func verdict(on offset: String) throws -> String {
        let receipt = try receipt(of: offset)
        return [receipt["state"]?.string, receipt["reason"]?.string].compactMap { $0 }.joined(separator: " ")
    }

    /// The present entries of the log.
    func entries(_ type: String? = nil) throws -> [JSON] { try node.entries(agent).filter { type == nil || $0["type"]?.string == type } }

    /// How often the body of that step ran.
    func runs(_ step: String, turn: String) -> Int { node.stepRuns["agents/\(agent)/\(turn)/\(step)", default: 0] }

    /// The results of a turn's operations, by step.
    static func gave(_ end: JSON) -> [String: JSON] {
        Dictionary((end["output"]?["gave"]?.array ?? []).map { ($0["step"]?.string ?? "", $0) }, uniquingKeysWith: { $1 })
    }
}

/// Does `body` for each of `items`, so many at once, each on a thread of its own.
func atOnce<Item: Sendable>(_ count: Int, _ items: [Item], _ body: @escaping @Sendable (Item) throws -> Void) async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
        for (index, item) in items.enumerated() {
            if index >= count { try await group.next() }
            group.addTask { try await OwnThread.run { try body(item) } }
        }
        try await group.waitForAll()
    }
}
