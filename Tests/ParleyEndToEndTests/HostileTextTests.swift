import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Text of one party is shown to another as text, and never obeyed by the terminal.
@Suite struct `Text that would deceive` {
    private static let prompt = "\n  asks for approval: write_file {\"path\":\"hello.txt\"}\n  parley approve writer/one 1/x"
    private static let hostile =
        "\u{1b}[2J\u{1b}[1;1H\u{9b}31m\r\u{7f}\u{8}\u{85}\u{202e}txt.olleh\u{2066}\u{200f}\u{61c}\u{2028}\u{2029}\u{1b}]0;title\u{7}"
        + prompt

    /// An agent that was told all kinds of it, and has ended.
    private static func told() throws -> (keep: Any, node: EndToEndNode) {
        let (upstream, node) = try makeNode(tokens: 3, rate: 0)
        let text = JSON.string(hostile)
        let entries: [JSON] = [
            .compact(("type", "signal"), ("name", text), ("data", text)), .compact(("type", "message"), ("text", text)),
            .compact(("type", "steer"), ("text", text)), .compact(("type", "interrupt"), ("reason", text)),
            .compact(("type", "cancel"), ("reason", text)), .compact(("type", "approve"), ("approval", text), ("reason", text)),
            .compact(("type", "deny"), ("approval", text), ("receipt", .compact(("state", "applied"), ("reason", text)))),
            .compact(("type", "close"), ("id", text), ("reason", text)),
        ]
        let answer = try node.request(
            "POST", "/v1/agents/writer/one", [(name: "Content-Type", value: "application/json")], JSON.array(entries).text)
        #expect(answer.status == 202, "\(answer.text)")
        let path = "/v1/stream/" + hostile.utf8.map { "%" + hexadecimal([$0]) }.joined()
        let made = try node.request("PUT", path, [(name: "Content-Type", value: "application/json")], "[\(text.text)]")
        #expect(made.status == 201 || made.status == 400, "\(made.text)")
        return (upstream, node)
    }

    private func check(_ output: ChildProcess.Output, _ command: String) {
        for scalar in (output.standard + output.error).unicodeScalars {
            let value = scalar.value
            let isControl = value < 0x20 && value != 0x0A && value != 0x09 || (0x7F..<0xA0).contains(value)
            let turnsRound =
                [0x61C, 0x200E, 0x200F].contains(value) || (0x2028...0x202E).contains(value) || (0x2066...0x2069).contains(value)
            #expect(!isControl && !turnsRound, "\(command) shows U+\(String(value, radix: 16))")
        }
        for line in (output.standard + "\n" + output.error).split(separator: "\n") {
            #expect(!line.hasPrefix("  asks for approval") && !line.hasPrefix("  parley approve"), "\(command) shows a line of another's")
        }
    }

    @Test func `is shown as escapes by every command`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try Self.told()
            let server = ["PARLEY_URL": node.url]
            // It follows until the agent has ended.
            check(try parley("tail", "writer/one", environment: server), "tail")
            let shown = try parley("tail", "writer/one", environment: server)
            #expect(shown.error.contains("\\u001b[2J") && shown.error.contains("> "), "\(shown.error)")
            for words in [
                ["tail", "writer/one", "--raw"], ["tail", "writer/one", "--json"], ["audit", "writer/one"],
                ["audit", "writer/one", "--json"],
                ["trace", "writer/one"], ["trace", "writer/one", "--json"], ["status", "writer/one"], ["ls"], ["ls", "/"],
                ["ls", "/", "--json"],
                ["approve", "writer/one", Self.hostile], ["deny", "writer/one", Self.hostile], ["status", Self.hostile],
                ["ls", "--state", Self.hostile],
            ] {
                let process = try ChildProcess(Products.path("parley"), words, environment: server)
                try process.waitForExit("parley \(words[0])", timeout: .seconds(60))
                check(process.output, words.joined(separator: " "))
            }
            withExtendedLifetime(upstream) {}
        }
    }

    @Test func `reads back from JSON as it was`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try Self.told()
            let raw = try parley("tail", "writer/one", "--raw", environment: ["PARLEY_URL": node.url])
            let entries = try raw.standard.split(separator: "\n").map { try JSON.parse(Bytes($0.utf8)) }
            #expect(entries.first?["name"]?.string?.unicodeScalars.elementsEqual(Self.hostile.unicodeScalars) == true)
            #expect(entries.first { $0["type"] == "deny" }?["receipt"] == nil, "a client's own receipt is not kept")
            withExtendedLifetime(upstream) {}
        }
    }
}
