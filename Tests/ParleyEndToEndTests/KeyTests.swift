import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Keys and tokens of the real program, as a person at a terminal uses them.
@Suite struct `Keys of a node` {
    private static let secret = "0123456789abcdef0123456789abcdef"

    @Test func `a node that others can reach needs keys`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let process = try ChildProcess(
                Products.path("parley"), ["serve", "--listen", "0.0.0.0:\(FreePort.take())", "--data", folder + "/data"], environment: [:])
            #expect(try process.waitForExit("the node to refuse") == .status(2))
            let output = process.output
            #expect(output.error.contains("PARLEY_KEYS") && output.error.contains("--keys"), "it says how: \(output.error)")
        }
    }

    @Test func `a token made at the command line is used by curl, and narrowed without the server`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["writer.md": "---\nkind: writer\n---\nWrite.\n"],
                environment: ["PARLEY_KEYS": "main:\(Self.secret)", "PARLEY_MODEL": "scripted:"])
            // The last one counts.
            try node.start(options: ["--listen", "0.0.0.0:\(node.port)"])
            #expect(try node.request("GET", "/v1/agents").status == 401)

            let token = try Self.parley(
                ["token", "--allow", "agents/writer/*:read,append", "--expires", "1h", "--name", "ann", "--server", node.url], Self.secret)
            #expect(token.hasPrefix("parley_v1_"))
            #expect(try Self.parley(["send", "writer/me", "hello", "--server", node.url], token).isEmpty == false)
            #expect(try Self.curl(node.url + "/v1/stream/agents/writer/me", token).contains("\"by\":\"ann\""))
            #expect(try Self.curl(node.url + "/v1/stream/agents/clerk/me", token).contains("\"code\":\"forbidden\""))

            let narrow = try Self.parley(["token", "--allow", "**:read", "--name", "phone"], token)
            #expect(try Self.curl(node.url + "/v1/stream/agents/writer/me", narrow).contains("\"by\":\"ann\""))
            let refused = try Self.run("parley", ["send", "writer/me", "hello", "--server", node.url], narrow)
            #expect(refused.exit == .status(1))
            #expect(refused.error.contains("'append'"), "\(refused.error)")
            for output in [refused.error, try node.process.output.error] {
                #expect(!output.contains(Self.secret) && !output.contains(token.suffix(20)) && !output.contains(narrow.suffix(20)))
            }
        }
    }

    private static func parley(_ arguments: [String], _ token: String) throws -> String {
        let output = try run("parley", arguments, token)
        guard output.exit == .status(0) else { throw Missed("parley \(arguments[0]): \(output.error)") }
        return output.standard.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private static func run(_ name: String, _ arguments: [String], _ token: String) throws -> ChildProcess.Output {
        let process = try ChildProcess(Products.path(name), arguments, environment: ["PARLEY_TOKEN": token])
        try process.waitForExit("\(name) to end")
        return process.output
    }

    private static func curl(_ url: String, _ token: String) throws -> String {
        let process = try ChildProcess("/usr/bin/curl", ["-s", "-H", "Authorization: Bearer \(token)", url], environment: [:])
        try process.waitForExit("curl to end")
        return process.output.standard
    }
}
