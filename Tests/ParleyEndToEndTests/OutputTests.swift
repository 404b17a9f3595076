import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// Output of a command that cannot be delivered.
@Suite struct `Standard output of the command line` {
    /// Runs a line of bash, in which `$0` is the program.
    private static func bash(_ line: String, _ environment: [String: String] = [:]) throws -> ChildProcess.Output {
        let bash = try ChildProcess("/bin/bash", ["-c", line, Products.path("parley")], environment: environment)
        try bash.waitForExit(line)
        return bash.output
    }

    private static let unwritten = "parley: standard output cannot be written: No space left on device\n"

    @Test(arguments: ["version", "help", "help run", "run --help", "completion bash"])
    func `that cannot be written is a failure, with the system's reason in one line`(_ words: String) async throws {
        try await OwnThread.run {
            let output = try Self.bash("\"$0\" \(words) > /dev/full")
            #expect(output.exit == .status(1) && output.error == Self.unwritten, "\(output)")
        }
    }

    @Test func `that cannot be written is a failure of programs with agents of their own, too`() async throws {
        try await OwnThread.run {
            let help = try ChildProcess("/bin/bash", ["-c", "\"$0\" --help > /dev/full", Products.path("steps-agent")])
            #expect(try help.waitForExit("the help") == .status(1))
            #expect(help.output.error == "steps-agent: standard output cannot be written: No space left on device\n", "\(help.output)")
        }
    }

    @Test func `that cannot be written is a failure of commands that ask a server, too`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 5, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("run", "writer/one", "Write.", environment: server).exit == .status(0))
            for words in [
                "run writer/one Write.", "send writer/one Write.", "tail writer/one --json", "ls", "ls /", "status writer/one",
                "trace writer/one",
                "audit writer/one --json", "agents", "create /orders/1", "backup \(node.folder)/copy",
            ] {
                let output = try Self.bash("\"$0\" \(words) > /dev/full", server)
                #expect(output.exit == .status(1) && output.error.contains(Self.unwritten), "\(words): \(output)")
            }
        }
    }

    @Test func `whose reader has gone ends the command quietly`() async throws {
        try await OwnThread.run {
            // The pipe is closed before anything is written.
            let output = try Self.bash("{ sleep 0.2; \"$0\" help; echo \"exit $?\" >&2; } | true")
            // By itself, or by the signal, unless that is ignored.
            #expect(["exit 0\n", "exit 141\n"].contains(output.error), "\(output)")
        }
    }

    @Test func `that never blocks is waited for`() async throws {
        try await OwnThread.run {
            // Python makes the pipe one that does not block, and reads nothing until the program must have filled it.
            let script = """
                import os, subprocess, sys, time
                reading, writing = os.pipe()
                os.set_blocking(writing, False)
                os.set_blocking(reading, True)
                with open(sys.argv[2], "w") as file: file.write("x" * 1_000_000)
                process = subprocess.Popen([sys.argv[1], "tail", "/text", "--server", sys.argv[3]], stdout=writing)
                os.close(writing)
                time.sleep(1)
                count = 0
                while piece := os.read(reading, 1 << 16): count += len(piece)
                print(count, process.wait())
                """
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            let file = node.folder + "/text"
            try Data(repeating: UInt8(ascii: "x"), count: 1_000_000).write(to: URL(filePath: file))
            #expect(try parley("create", "/text", "--type", "text/plain", environment: server).exit == .status(0))
            #expect(
                try parley("append", "/text", "@" + file, "--type", "text/plain", "--close", environment: server).exit == .status(0))
            let python = try ChildProcess("python3", ["-c", script, Products.path("parley"), file, node.url])
            #expect(try python.waitForExit("the reader") == .status(0))
            #expect(python.output.standard == "1000000 0\n", "\(python.output)")
        }
    }
}

/// Channels that are no agent's, as `parley tail` and `parley append` have them.
@Suite struct `Channels at the command line` {
    @Test func `of text are followed as text`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("create", "/notes", "--type", "text/plain; charset=utf-8", environment: server).exit == .status(0))
            #expect(
                try parley("append", "/notes", "Zwölf\n[1]\n", "--type", "text/plain; charset=utf-8", environment: server).exit
                    == .status(0))
            let tail = try ChildProcess(Products.path("parley"), ["tail", "/notes"], environment: server)
            try tail.wait("the first lines") { $0.standard == "Zwölf\n[1]\n" ? true : nil }
            #expect(
                try parley("append", "/notes", "\u{1b}[31mend", "--type", "text/plain; charset=utf-8", "--close", environment: server).exit
                    == .status(0))
            #expect(try tail.waitForExit("the channel to end") == .status(0))
            #expect(tail.output.standard == "Zwölf\n[1]\n\\u001b[31mend" && tail.output.error.isEmpty, "\(tail.output)")
            let json = try parley("tail", "/notes", "--json", environment: server)
            let pieces = try json.standard.split(separator: "\n").map { try JSON.parse(Bytes($0.utf8)).string ?? "" }
            #expect(pieces.joined() == "Zwölf\n[1]\n\u{1b}[31mend", "\(json)")
        }
    }

    @Test(arguments: ["[1]", "1]", "[{\"a\": 1}]\n", "{}", "null"])
    func `of text are followed as text, also where that could be JSON`(_ text: String) async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("create", "/text", "--type", "text/plain", environment: server).exit == .status(0))
            #expect(try parley("append", "/text", text, "--type", "text/plain", "--close", environment: server).exit == .status(0))
            let tail = try parley("tail", "/text", environment: server)
            #expect(tail.exit == .status(0) && tail.standard == text, "\(tail)")
        }
    }

    @Test func `of JSON are followed, whatever the messages are`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("create", "/json", environment: server).exit == .status(0))
            #expect(try parley("append", "/json", #"[1, "a", null, [2], {"b": 3}]"#, "--close", environment: server).exit == .status(0))
            #expect(try parley("tail", "/json", environment: server).standard == "1\n\"a\"\nnull\n[2]\n{\"b\":3}\n")
        }
    }

    @Test func `of text that is not UTF-8 are shown as far as they are`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            #expect(try node.request("PUT", "/v1/stream/old", [("Content-Type", "text/plain; charset=latin1")], "abc\n").status == 201)
            #expect(
                try node.request("POST", "/v1/stream/old", [("Content-Type", "text/plain; charset=latin1"), ("Stream-Closed", "true")])
                    .status
                    == 204)
            let tail = try parley("tail", "/old", environment: ["PARLEY_URL": node.url])
            #expect(tail.exit == .status(0) && tail.standard == "abc\n", "\(tail)")
        }
    }

    @Test func `of anything else are not followed, and it is said how to read them`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("create", "/images/1", "--type", "image/png", environment: server).exit == .status(0))
            let tail = try parley("tail", "/images/1", environment: server)
            #expect(
                tail.exit == .status(1) && tail.standard.isEmpty
                    && tail.error
                        == "parley tail: /images/1 holds image/png, which is neither JSON nor text. Read it with: curl '\(node.url)/v1/stream/images/1?offset=-1' -o <file>\n",
                "\(tail)")
        }
    }

    @Test func `with a message of several megabytes are followed, too`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            let file = node.folder + "/big.json"
            try Data("\"\(String(repeating: "x", count: 3 << 20))\"\n".utf8).write(to: URL(filePath: file))
            #expect(try parley("create", "/big", environment: server).exit == .status(0))
            #expect(try parley("append", "/big", "@" + file, "--close", environment: server).exit == .status(0))
            let tail = try parley("tail", "/big", environment: server)
            #expect(tail.exit == .status(0) && tail.standard.utf8.count == (3 << 20) + 3, "\(tail.standard.utf8.count) \(tail.error)")
        }
    }

    @Test func `take data from a file, as it is`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            let file = node.folder + "/bytes"
            try Data([0x61, 0xFF, 0x0A, 0x0A]).write(to: URL(filePath: file))
            #expect(try parley("create", "/bytes", "--type", "application/octet-stream", environment: server).exit == .status(0))
            let append = try parley("append", "/bytes", "@" + file, "--type", "application/octet-stream", environment: server)
            #expect(append.exit == .status(0), "\(append)")
            let length = try node.request("GET", "/v1/stream/bytes?offset=-1").header("Content-Length")
            #expect(length == "4")
            let missing = try parley("append", "/bytes", "@/nowhere", environment: server)
            #expect(missing.exit == .status(2) && missing.error.contains("the file '/nowhere' cannot be read: No such file"), "\(missing)")
        }
    }
}
