import Foundation
import ParleyHTTP
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `Readers of a running turn` {
    @Test func `the only reader goes away, and the turn completes`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 200, rate: 400)
            let reader = EndToEndReader(of: "writer/one", view: "settled")
            _ = try node.request("PUT", "/v1/stream/agents/writer/one", [("Content-Type", "application/json")])
            reader.attach(to: node)
            _ = try node.send("Write.", to: "writer/one")
            try reader.wait("the middle of the answer") { ConvergedText($0.entries).text.utf8.count > 200 ? true : nil }
            reader.detach()
            let offset = reader.seen.offset
            try upstream.wait("the upstream to be heard out") { $0.first?.outcome == .finished }
            // Back later, from where it was.
            reader.attach(to: node)
            try reader.waitForTurnEnd()
            #expect(ConvergedText(reader.seen.entries).text == ScriptedUpstream.text(tokens: 200))
            #expect(upstream.records.count == 1)
            #expect(offset < reader.seen.offset)
        }
    }

    /// Early and late, in both views, over events, long-polls and catch-up reads, from the start and from the middle, before and after a kill.
    @Test func `all readers converge on the same text, whenever and however they read`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 240, rate: 300)
            _ = try node.request("PUT", "/v1/stream/agents/writer/one", [("Content-Type", "application/json")])
            var readers = ["raw", "settled"].map { EndToEndReader(of: "writer/one", view: $0) }
            for reader in readers { reader.attach(to: node) }
            let polled = ["raw", "settled"].map { LongPoller(node, "writer/one", view: $0) }
            _ = try node.send("Write.", to: "writer/one")
            for (count, kills) in [(60, true), (120, true), (180, false)] {
                try upstream.wait("token \(count)") { $0.reduce(0) { $0 + $1.tokensSent } >= count }
                for view in ["raw", "settled"] {
                    let late = EndToEndReader(of: "writer/one", view: view)
                    late.attach(to: node)
                    try late.wait("the first text of a late reader") { ConvergedText($0.entries).text.isEmpty ? nil : true }
                    readers.append(late)
                }
                guard kills else { continue }
                try node.kill()
                for reader in readers { try reader.wait("the connection to break") { $0.isOver ? true : nil } }
                try node.start()
                for reader in readers { reader.attach(to: node) }
            }
            for reader in readers { try reader.waitForTurnEnd() }
            let text = ScriptedUpstream.text(tokens: 240)
            for reader in readers { #expect(ConvergedText(reader.seen.entries).text == text) }
            for poller in polled { #expect(ConvergedText(try poller.untilTurnEnd()).text == text) }

            // After the end: from the start, from the middle of the text, and joined to what an early reader had.
            let raw = try node.entries("writer/one")
            #expect(ConvergedText(raw).text == text)
            #expect(ConvergedText(try node.entries("writer/one", view: "settled")).text == text)
            for cut in stride(from: 0, to: raw.count, by: max(1, raw.count / 7)) {
                let seen = Array(raw[..<cut])
                for view in ["raw", "settled"] {
                    let rest = try node.entries("writer/one", from: seen.last?["offset"]?.string ?? "-1", view: view)
                    #expect(ConvergedText(seen + rest).text == text, "cut after entry \(cut), then \(view)")
                }
            }
        }
    }

    @Test func `the settled view of a finished turn holds the text once, and no delta`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 50, rate: 0)
            _ = try node.send("Write.", to: "writer/one")
            let reader = EndToEndReader(of: "writer/one")
            reader.attach(to: node)
            try reader.waitForTurnEnd()
            let settled = try node.entries("writer/one", view: "settled")
            #expect(!settled.contains { $0["type"] == "text" })
            #expect(settled.count { $0["type"] == "step.completed" && $0["text"]?.string == ScriptedUpstream.text(tokens: 50) } == 1)
        }
    }
}

/// A scripted upstream and a node in front of it, with an agent `writer`.
func makeNode(tokens: Int, rate: Int, environment: [String: String] = [:]) throws -> (ScriptedUpstream, EndToEndNode) {
    var behaviour = ScriptedUpstream.Behaviour()
    (behaviour.tokens, behaviour.rate) = (tokens, rate)
    let upstream = try ScriptedUpstream(behaviour)
    let settings = ["PARLEY_MODEL": "openai:scripted", "OPENAI_BASE_URL": upstream.baseURL, "PARLEY_MODEL_CONTINUES": "prefix"]
    let node = try EndToEndNode(
        agents: ["writer.md": "---\nkind: writer\n---\nYou write.\n"], environment: settings.merging(environment) { $1 }, keeping: upstream)
    try node.start()
    return (upstream, node)
}

/// Reads with long-polls from the start of a channel.
private final class LongPoller {
    private let node: EndToEndNode
    private let agent: String
    private let view: String

    init(_ node: EndToEndNode, _ agent: String, view: String) { (self.node, self.agent, self.view) = (node, agent, view) }

    func untilTurnEnd() throws -> [JSON] {
        var (entries, offset): ([JSON], String) = ([], "-1")
        for _ in 0..<1_000 {
            let answer = try node.request("GET", "/v1/stream/agents/\(agent)?offset=\(offset)&live=long-poll&view=\(view)")
            guard let next = answer.header("Stream-Next-Offset") else {
                throw Missed("a long-poll answers \(answer.status): \(answer.text)")
            }
            entries += answer.json?.array ?? []
            offset = next
            if entries.contains(where: { $0["type"] == "turn.completed" }) { return entries }
        }
        throw Missed("a thousand long-polls did not reach the end of the turn")
    }
}
