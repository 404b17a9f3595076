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

            let token = try Self.said(
                ["token", "--allow", "agents/writer/*:read,append", "--expires", "1h", "--name", "ann", "--server", node.url], Self.secret)
            #expect(token.hasPrefix("parley_v1_"))
            #expect(try Self.said(["send", "writer/me", "hello", "--server", node.url], token).isEmpty == false)
            #expect(try Self.curl(node.url + "/v1/stream/agents/writer/me", token).contains("\"by\":\"ann\""))
            #expect(try Self.curl(node.url + "/v1/stream/agents/clerk/me", token).contains("\"code\":\"forbidden\""))

            let narrow = try Self.said(["token", "--allow", "**:read", "--name", "phone"], token)
            #expect(try Self.curl(node.url + "/v1/stream/agents/writer/me", narrow).contains("\"by\":\"ann\""))
            let wide = try Self.run(
                "parley",
                ["token", "--allow", "agents/writer/*:read,stop", "--allow", "agents/clerk/me:read", "--allow", "agents/writer/me:append"],
                token)
            #expect(wide.exit == .status(0) && wide.standard.hasPrefix("parley_v1_"))
            #expect(
                wide.error == """
                    stop on agents/writer/* is granted only where the token that this one is made from allows it. That token allows agents/writer/*:read,append.
                    read on agents/clerk/me is not granted. That token allows agents/writer/*:read,append.

                    """, "\(wide.error)")
            let refused = try Self.run("parley", ["send", "writer/me", "hello", "--server", node.url], narrow)
            #expect(refused.exit == .status(1))
            #expect(refused.error.contains("'append'"), "\(refused.error)")
            #expect(refused.error.contains("parley token --allow 'agents/writer/me:append'"), "\(refused.error)")
            let cancelled = try Self.run("parley", ["cancel", "writer/me", "--server", node.url], narrow)
            #expect(cancelled.error.contains("'append', 'steer', 'approve', 'stop' or 'admin'"), "\(cancelled.error)")
            #expect(cancelled.error.contains("parley token --allow 'agents/writer/me:stop'"), "\(cancelled.error)")
            // All that the command needs, and not only what was refused first.
            let writer = try Self.said(["token", "--allow", "agents/writer/*:append", "--name", "eve", "--server", node.url], Self.secret)
            let approved = try Self.run("parley", ["approve", "writer/me", "--server", node.url], writer)
            #expect(approved.error.contains("parley token --allow 'agents/writer/me:read,approve'"), "\(approved.error)")
            let stopper = try Self.said(
                ["token", "--allow", "agents/writer/*:stop", "--name", "bob", "--server", node.url], Self.secret)
            let stop = try Self.run("parley", ["cancel", "writer/me", "--server", node.url], stopper)
            #expect(stop.exit == .status(0) && stop.error.contains("which this key or token may not read"), "\(stop.error)")
            for words in [["backup", node.folder + "/copy"], ["agents"]] {
                let output = try Self.run("parley", words + ["--server", node.url], token)
                #expect(output.exit == .status(1) && output.error.contains("**:admin"), "\(output.error)")
            }
            #expect(!FileManager.default.fileExists(atPath: node.folder + "/copy"))
            let without = try parley("ls", environment: ["PARLEY_URL": node.url])
            #expect(without.exit == .status(1) && without.error.contains("Set PARLEY_TOKEN"), "\(without.error)")
            let nameless = try Self.run("parley", ["token", "--allow", "**:read", "--server", node.url], Self.secret)
            #expect(nameless.exit == .status(2) && nameless.error.contains("made from a key needs --name"), "\(nameless.error)")
            let elsewhere = try parley("ls", "--server", node.url.replacing("http://", with: "https://"))
            #expect(elsewhere.error.contains("does not speak TLS"), "\(elsewhere.error)")
            for output in [refused.error, try node.process.output.error] {
                #expect(!output.contains(Self.secret) && !output.contains(token.suffix(20)) && !output.contains(narrow.suffix(20)))
            }
        }
    }

    @Test func `run with a token that may not read says that the message is there, and not that it was refused`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["writer.md": "---\nkind: writer\n---\nWrite.\n"],
                environment: ["PARLEY_KEYS": "main:\(Self.secret)", "PARLEY_MODEL": "scripted:rate=0"])
            try node.start()
            let token = try Self.said(
                ["token", "--allow", "agents/writer/*:append", "--name", "ann", "--server", node.url], Self.secret)
            for json in [[], ["--json"]] {
                let run = try Self.run("parley", ["run", "writer/me", "say: hi", "--server", node.url] + json, token)
                #expect(run.exit == .status(0) && run.standard.isEmpty, "\(run)")
                #expect(run.error.contains(/the message is durable at offset [0-9a-f]{16}; do not send it again/), "\(run)")
                #expect(run.error.contains("parley token --allow 'agents/writer/me:read,append'"), "\(run)")
            }
        }
    }

    @Test func `a refusal names what the command needs`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["writer.md": "---\nkind: writer\n---\nWrite.\n"],
                environment: ["PARLEY_KEYS": "main:\(Self.secret)", "PARLEY_MODEL": "scripted:rate=0"])
            try node.start()
            let token = try Self.said(["token", "--allow", "agents/**:read", "--name", "ann", "--server", node.url], Self.secret)
            for (words, verb) in [
                (["run", "writer/me", "hi"], "append"), (["send", "writer/me", "hi"], "append"), (["signal", "writer/me", "go"], "append"),
                (["steer", "writer/me", "hi"], "steer"), (["cancel", "writer/me"], "stop"),
            ] {
                let refused = try Self.run("parley", words + ["--server", node.url], token)
                #expect(refused.exit == .status(1) && refused.error.contains("; this needs '\(verb)'. Ask for a token"), "\(refused)")
            }
            // A plain HTTP client is told the usual one.
            let answer = try Self.curl(
                node.url + "/v1/agents/writer/me", token, "-X", "POST", "-H", "Content-Type: application/json", "-d", "{}")
            #expect(answer.contains("whichever the type of the entry needs: 'append' for a message"), "\(answer)")
        }
    }

    @Test func `a line of a key file in the place of the secret is called that`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(agents: [:], environment: ["PARLEY_KEYS": "main:\(Self.secret)"])
            try node.start()
            let file = node.folder + "/keys"
            try Self.write("main:\(Self.secret)\n", to: file)
            let says = "it has the form <name>:<secret>. Send the secret alone"
            let variable = try Self.run("parley", ["ls", "--server", node.url], "main:\(Self.secret)")
            #expect(variable.exit == .status(1) && variable.error.contains(says) && !variable.error.contains(Self.secret), "\(variable)")
            let option = try parley("ls", "--token-file", file, "--server", node.url)
            #expect(option.exit == .status(1) && option.error.contains(says), "\(option)")
            #expect(try Self.curl(node.url + "/v1/agents", "main:\(Self.secret)").contains(says))
            #expect(try !Self.curl(node.url + "/v1/agents", "wrong").contains(says))
        }
    }

    @Test func `over TLS, with keys and certificate replaced while it runs`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let (certificate, key, keys) = (folder + "/cert.pem", folder + "/key.pem", folder + "/keys")
            try Self.makeCertificate(certificate, key, "first")
            try Self.write("old:\(Self.secret)\n", to: keys)
            let node = try EndToEndNode(
                agents: ["writer.md": "---\nkind: writer\n---\nWrite.\n"], environment: ["PARLEY_MODEL": "scripted:"])
            let process = try node.launch(options: ["--tls-cert", certificate, "--tls-key", key, "--keys", keys])
            try process.wait("the node to serve") { $0.error.contains("serving https://") ? true : nil }
            let url = "https://localhost:\(node.port)"
            var trust = ["PARLEY_TOKEN": Self.secret, "PARLEY_CA_FILE": certificate, "PARLEY_URL": url]
            let plain = try parley("ls", "--server", url.replacing("https://", with: "http://"), environment: trust)
            #expect(plain.exit == .status(1) && plain.error.contains("https:// instead of http://"), "\(plain.error)")
            #expect(try parley("send", "writer/me", "hello", environment: trust).exit == .status(0))
            #expect(try parley("ls", environment: trust).standard.contains("writer/me"))
            let token = try Self.text(try parley("token", "--allow", "**:read", "--name", "ann", environment: trust))
            #expect(try parley("ls", environment: trust.merging(["PARLEY_TOKEN": token]) { $1 }).exit == .status(0))

            // Another key and another certificate: the old key's signatures are worth nothing, and a follower reconnects and is told so.
            let follower = try ChildProcess(
                Products.path("parley"), ["tail", "writer/me"], environment: trust.merging(["PARLEY_TOKEN": token]) { $1 })
            try follower.wait("the follower to follow") { $0.standard.contains("hello") ? true : nil }
            try Self.makeCertificate(certificate, key, "second")
            try Self.write("new:\(Self.secret)x\n", to: keys)
            process.send(SIGHUP)
            try process.wait("the node to read anew") { $0.error.contains("certificate were read again") ? true : nil }
            #expect(try follower.waitForExit("the follower to be refused") == .status(1))
            #expect(follower.output.error.contains("unauthorized"), "\(follower.output.error)")
            #expect(try parley("ls", environment: trust).exit == .status(1))
            trust["PARLEY_TOKEN"] = Self.secret + "x"
            #expect(try parley("ls", environment: trust).exit == .status(0))

            // Wrong keys are not taken.
            try Self.write("nonsense\n", to: keys)
            process.send(SIGHUP)
            try process.wait("the node to complain") { $0.error.contains("stay as they were") ? true : nil }
            #expect(try parley("ls", environment: trust).exit == .status(0))
            #expect(!process.output.error.contains(Self.secret))
        }
    }

    @Test func `over TLS, the address that is printed is one that the certificate names, and hints come where they help`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let (certificate, key, other) = (folder + "/a cert.pem", folder + "/key.pem", folder + "/other.pem")
            try Self.makeCertificate(other, key, "other")
            try Self.makeCertificate(certificate, key, "own", names: "DNS:localhost")
            let node = try EndToEndNode(
                agents: ["writer.md": "---\nkind: writer\n---\nWrite.\n"], environment: ["PARLEY_MODEL": "scripted:"])
            let said = try node.launch(options: ["--tls-cert", certificate, "--tls-key", key])
                .wait("the banner") { $0.error.contains("  Stop ") ? $0.error : nil }
            #expect(said.contains("export PARLEY_URL=https://localhost:\(node.port)\n"), "\(said)")
            #expect(
                said.contains("export PARLEY_CA_FILE='\(certificate)'\n") && said.contains("curl -N --cacert '\(certificate)' "), "\(said)")
            #expect(said.contains("reads the agent files in \(node.agentsFolder) and the certificate again"), "\(said)")
            let named = try parley("ls", "--server", "https://localhost:\(node.port)", environment: ["PARLEY_CA_FILE": certificate])
            #expect(named.exit == .status(0), "\(named.error)")
            let address = "https://127.0.0.1:\(node.port)"
            let misnamed = try parley("ls", "--server", address, environment: ["PARLEY_CA_FILE": certificate])
            #expect(misnamed.error.contains("is for another host") && !misnamed.error.contains("PARLEY_CA_FILE"), "\(misnamed.error)")
            let mistrusted = try parley("ls", "--server", address, environment: ["PARLEY_CA_FILE": other])
            #expect(mistrusted.error.contains("PARLEY_CA_FILE is '\(other)'; expected"), "\(mistrusted.error)")
            let unknown = try parley("ls", "--server", address)
            #expect(unknown.error.contains("PARLEY_CA_FILE names a PEM file"), "\(unknown.error)")
            try node.kill()

            // One that names no host of this machine, and whose user has set PARLEY_CA_FILE.
            try Self.makeCertificate(certificate, key, "own", names: "DNS:*.example.com")
            let second = try EndToEndNode(agents: [:], environment: ["PARLEY_CA_FILE": certificate])
            let again = try second.launch(options: ["--tls-cert", certificate, "--tls-key", key])
                .wait("the banner") { $0.error.contains("  Stop ") ? $0.error : nil }
            #expect(again.contains("the certificate is for *.example.com, not for 127.0.0.1"), "\(again)")
            #expect(!again.contains("PARLEY_CA_FILE") && !again.contains("--cacert"), "\(again)")
        }
    }

    @Test func `a limit that is reached says how long to wait`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(agents: [:])
            try node.start(options: ["--rate", "0.01"])
            let server = ["PARLEY_URL": node.url]
            var outputs: [String] = []
            for words in [["ls"], ["ls"], ["tail", "/x"], ["status", "writer/me"]] {
                let process = try ChildProcess(Products.path("parley"), words, environment: server)
                try process.waitForExit("parley \(words)")
                outputs.append(process.output.error)
            }
            for output in outputs.dropFirst() {
                #expect(
                    output.contains("each sender's own (too_many_requests). Try again")
                        && output.contains(/Try again in 1 minute [0-9]+ seconds?\./), "\(outputs)")
            }
        }
    }

    private static func makeCertificate(
        _ certificate: String, _ key: String, _ name: String, names: String = "DNS:localhost,IP:127.0.0.1"
    ) throws {
        let process = try ChildProcess(
            "openssl",
            [
                "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                "/O=\(name)/CN=localhost", "-addext", "subjectAltName=\(names)", "-keyout", key, "-out", certificate,
            ])
        guard try process.waitForExit("openssl to end") == .status(0) else { throw Missed(process.output.error) }
    }

    private static func write(_ text: String, to path: String) throws {
        try Data(text.utf8).write(to: URL(filePath: path))
        try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
    }

    private static func text(_ output: ChildProcess.Output) throws -> String {
        guard output.exit == .status(0) else { throw Missed(output.error) }
        return output.standard.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private static func said(_ arguments: [String], _ token: String) throws -> String {
        let output = try run("parley", arguments, token)
        guard output.exit == .status(0) else { throw Missed("parley \(arguments[0]): \(output.error)") }
        return output.standard.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private static func run(_ name: String, _ arguments: [String], _ token: String) throws -> ChildProcess.Output {
        let process = try ChildProcess(Products.path(name), arguments, environment: ["PARLEY_TOKEN": token])
        try process.waitForExit("\(name) to end")
        return process.output
    }

    private static func curl(_ url: String, _ token: String, _ options: String...) throws -> String {
        let process = try ChildProcess("/usr/bin/curl", ["-s", "-H", "Authorization: Bearer \(token)"] + options + [url], environment: [:])
        try process.waitForExit("curl to end")
        return process.output.standard
    }
}
