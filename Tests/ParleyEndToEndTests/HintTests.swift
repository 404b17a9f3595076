import Foundation
import ParleySystem
import ParleyTesting
import Testing

@Suite struct `What the command line adds to what was asked` {
    private static let keys = "main:0123456789abcdef0123456789abcdef\n"

    private static func keyFile(_ folder: String) throws -> String {
        let file = folder + "/keys"
        try Data(keys.utf8).write(to: URL(filePath: file))
        chmod(file, 0o600)
        return file
    }

    @Test func `status says how the last turn ended`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("run", "writer/one", "Write.", environment: server).exit == .status(0))
            #expect(try parley("status", "writer/one", environment: server).standard.contains(/last turn: +completed \d+ s ago\n/))
            upstream.behaviour.fault = .status(401)
            #expect(try parley("run", "writer/one", "Write.", environment: server).exit == .status(1))
            let status = try parley("status", "writer/one", environment: server).standard
            #expect(
                status.contains(/last turn: +failed \d+ s ago, model_unauthorized \(`parley trace writer\/one` shows it\)/), "\(status)")
        }
    }

    @Test func `a trace says what all attempts have in common once, and that an answer was cut`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(
                agents: ["writer.md": "---\nmax_tokens: 5\n---\nWrite.\n"], environment: ["PARLEY_MODEL": "scripted:rate=0"])
            try node.start()
            #expect(try parley("run", "writer/one", "Write.", "--server", node.url).exit == .status(0))
            let trace = try parley("trace", "writer/one", "--server", node.url).standard
            #expect(trace.contains("cut at max_tokens"), "\(trace)")

            let (upstream, failing) = try makeNode(tokens: 1, rate: 0)
            upstream.behaviour.fault = .status(503)
            #expect(try parley("run", "writer/one", "Write.", "--server", failing.url).exit == .status(1))
            let failed = try parley("trace", "writer/one", "--server", failing.url).standard
            #expect(failed.contains("failed, 4 attempts, all model_unavailable: "), "\(failed)")
        }
    }

    @Test func `a trace says once what a turn has failed with, and lists as many attempts as there were`() async throws {
        try await OwnThread.run {
            let (upstream, node) = try makeNode(tokens: 1, rate: 0)
            upstream.behaviour.fault = .status(503)
            let run = try ChildProcess(Products.path("parley"), ["run", "writer/one", "Write.", "--server", node.url])
            try upstream.wait("the first attempt") { $0.count >= 1 }
            upstream.behaviour.fault = .status(401)
            #expect(try run.waitForExit("the turn to fail") == .status(1))
            let trace = try parley("trace", "writer/one", "--server", node.url).standard
            #expect(trace.contains("failed, 2 attempts: model_unavailable, model_unauthorized: "), "\(trace)")
            let message = try #require(trace.firstMatch(of: /model_unauthorized: (.*)\n/)?.output.1)
            #expect(trace.components(separatedBy: message).count == 2, "\(trace)")
        }
    }

    @Test func `records that are none are said to be none`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(agents: ["writer.md": "---\n---\nWrite.\n"], environment: ["PARLEY_MODEL": "scripted:rate=0"])
            try node.start()
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("create", "writer/one", environment: server).exit == .status(0))
            for (words, says) in [
                (["trace", "writer/one"], "writer/one has no turns yet\n"), (["audit", "writer/one"], "writer/one has no records yet\n"),
                (["audit", "writer/one", "--by", "ann"], "writer/one has no records with --by ann\n"),
                (["audit", "writer/one", "--type", "resume"], "writer/one has no records with --type resume\n"),
            ] {
                let process = try ChildProcess(Products.path("parley"), words, environment: server)
                #expect(try process.waitForExit("\(words)") == .status(0))
                #expect(process.output.error == says && process.output.standard.isEmpty, "\(process.output)")
            }
        }
    }

    @Test func `what was typed wrongly is misuse, also where the server finds it, and is named as it was typed`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("create", "/orders/1", environment: server).exit == .status(0))
            let bad = try parley("append", "/orders/1", "{bad", environment: server)
            #expect(bad.exit == .status(2) && bad.error.contains("(invalid_json)"), "\(bad)")
            let other = try parley("append", "/orders/1", "x", "--type", "text/plain", environment: server)
            #expect(
                other.exit == .status(1) && other.error.contains("--type is 'text/plain'; the channel's is 'application/json'")
                    && other.error.contains("Name the channel's type: --type 'application/json'."), "\(other)")
            let create = try parley("create", "/orders/1", "--type", "text/plain", environment: server)
            #expect(create.error.contains("/orders/1 exists with content type"), "\(create)")
            let backup = try node.request("POST", "/v1/backup", [("Content-Type", "application/json")], #"{"foldr": "/x"}"#)
            #expect(
                backup.status == 400 && backup.text.contains("'folder' is missing") && backup.text.contains("'foldr'"), "\(backup.text)")
        }
    }

    @Test func `an option before the command is told where options go`() async throws {
        try await OwnThread.run {
            let output = try parley("--server", "http://127.0.0.1:1", "ls")
            #expect(output.exit == .status(2) && output.error.contains("options follow it: parley <command> --server"), "\(output)")
        }
    }

    @Test func `a token that has ended makes no other`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let keys = try Self.keyFile(folder)
            let made = try parley("token", "--keys", keys, "--allow", "agents/**:read", "--name", "ann", "--expires", "1s")
            #expect(made.exit == .status(0) && made.error.isEmpty, "\(made)")
            let token = ["PARLEY_TOKEN": made.standard.trimmingCharacters(in: .whitespacesAndNewlines)]
            let end = ContinuousClock.now + .seconds(30)
            var narrowed = try parley("token", "--name", "phone", environment: token)
            while narrowed.exit == .status(0), ContinuousClock.now < end {
                narrowed = try parley("token", "--name", "phone", environment: token)
            }
            #expect(
                narrowed.exit == .status(2) && narrowed.standard.isEmpty && narrowed.error.contains("PARLEY_TOKEN: that token ended at 20"),
                "\(narrowed)")
        }
    }

    @Test func `a pattern that looks like an agent's and names a channel is noticed`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let keys = try Self.keyFile(folder)
            let made = try parley("token", "--keys", keys, "--allow", "assistant/me:read", "--name", "ann")
            #expect(
                made.exit == .status(0)
                    && made.error == "assistant/me names the channel /assistant/me; for the agent write agents/assistant/me\n", "\(made)")
            for pattern in ["agents/assistant/me", "**", "orders", "orders/42/lines"] {
                #expect(try parley("token", "--keys", keys, "--allow", "\(pattern):read", "--name", "ann").error.isEmpty)
            }
        }
    }

    @Test func `a token that may read no agent is told that, and not that there are none`() async throws {
        try await OwnThread.run {
            let node = try EndToEndNode(agents: ["writer.md": "---\n---\nWrite.\n"], environment: ["PARLEY_MODEL": "scripted"])
            let keys = try Self.keyFile(node.folder)
            try node.launch(options: ["--keys", keys]).wait("the banner") { $0.error.contains("  Stop ") ? true : nil }
            let made = try parley("token", "--keys", keys, "--allow", "agents/writer/me:append", "--name", "ann").standard
            let token = ["PARLEY_URL": node.url, "PARLEY_TOKEN": made.trimmingCharacters(in: .whitespacesAndNewlines)]
            #expect(try parley("ls", environment: token).error == "there are no agents that your token may read\n")
            #expect(try parley("ls", "/", environment: token).error == "there are no channels that your token may read\n")
        }
    }

    @Test func `a stop is said when it begins and when it is over`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            try node.process.send(SIGTERM)
            #expect(try node.process.waitForExit("the node to stop") == .status(0))
            let said = try node.process.output.error
            #expect(said.contains("parley: stopping; waits up to ") && said.hasSuffix("parley: stopped\n"), "\(said)")
        }
    }

    @Test func `a start that fails says why in its first line, and which process has the folder`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let second = try parley(
                "serve", "--listen", "127.0.0.1:0", "--data", node.dataFolder, "--agents", node.agentsFolder, environment: [:])
            #expect(second.error.hasPrefix("parley serve: data_folder_locked: process \(try node.process.pid) has "), "\(second.error)")
            let nowhere = try parley("serve", "--listen", "127.0.0.1:0", "--data", "/proc/none", "--agents", node.agentsFolder)
            #expect(
                nowhere.exit == .status(1) && nowhere.error.hasPrefix("parley serve: data_folder_inaccessible: ")
                    && nowhere.error.contains("with --data"), "\(nowhere.error)")
        }
    }

    @Test func `which process has the folder is found among very many locks`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            var locks: [CInt] = []
            defer { for lock in locks { close(lock) } }
            // Some before the node's and some after it: far more than one page of the kernel's list.
            func hold(_ names: Range<Int>) {
                for name in names {
                    let lock = open("\(folder)/\(name)", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
                    locks.append(lock)
                    #expect(flock(lock, LOCK_EX | LOCK_NB) == 0)
                }
            }
            hold(0..<200)
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            hold(200..<400)
            let second = try parley("serve", "--listen", "127.0.0.1:0", "--data", node.dataFolder, "--agents", node.agentsFolder)
            #expect(second.error.hasPrefix("parley serve: data_folder_locked: process \(try node.process.pid) has "), "\(second.error)")
        }
    }

    @Test func `certificate files are refused by the name of their option`() async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let (certificate, key) = (folder + "/cert.pem", folder + "/key.pem")
            try Data("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".utf8).write(to: URL(filePath: certificate))
            try Data("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n".utf8).write(to: URL(filePath: key))
            for (words, says) in [
                (["--tls-cert", certificate], ["--tls-key is missing"]), (["--tls-key", key], ["--tls-cert is missing"]),
                (["--tls-cert", folder + "/none", "--tls-key", key], ["--tls-cert is '\(folder)/none', which does not exist"]),
                (
                    ["--tls-cert", key, "--tls-key", certificate],
                    ["--tls-cert is '\(key)', which has no PEM certificate", "Is it swapped with --tls-key?"]
                ),
                (["--tls-cert", certificate, "--tls-key", key], ["--tls-cert, --tls-key: "]),
                (["--public", folder + "/none"], ["--public is '\(folder)/none'"]),
            ] {
                let process = try ChildProcess(Products.path("parley"), ["serve", "--listen", "127.0.0.1:0"] + words)
                #expect(try process.waitForExit("serve \(words)") == .status(2), "\(process.output.error)")
                for text in says { #expect(process.output.error.contains(text), "\(process.output.error)") }
            }
        }
    }

    @Test func `a server that is not Parley's is told so`() async throws {
        try await OwnThread.run {
            let port = FreePort.take()
            let script = """
                import socket
                s = socket.create_server(("127.0.0.1", \(port)))
                print("ready", flush=True)
                while True:
                    c = s.accept()[0]; c.recv(4096); c.sendall(b"hello\\n"); c.close()
                """
            let other = try ChildProcess("/usr/bin/env", ["python3", "-c", script])
            try other.wait("the other server") { $0.standard.contains("ready") ? true : nil }
            let output = try parley("ls", "--server", "http://127.0.0.1:\(port)")
            #expect(output.exit == .status(1) && output.error.contains("is not a Parley server"), "\(output)")
        }
    }
}
