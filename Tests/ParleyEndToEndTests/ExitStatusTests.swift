import Foundation
import ParleySystem
import ParleyTesting
import Testing

/// A command that was used wrongly ends with 2, whichever program finds that out, and names what is wrong as it was typed.
@Suite struct `Wrong usage of the command line` {
    typealias Misuse = `The command line`.Misuse

    @Test func `that the server finds ends with 2`() async throws {
        try await OwnThread.run {
            let (_, node) = try makeNode(tokens: 1, rate: 0)
            let server = ["PARLEY_URL": node.url]
            #expect(try parley("create", "writer/one", environment: server).exit == .status(0))
            for misuse in [
                Misuse("trace", "writer/one", "--limit", "x", says: "--limit is 'x'; expected 1 to "),
                Misuse("audit", "writer/one", "--limit", "0", says: "--limit is '0'; expected 1 to "),
                Misuse("audit", "writer/one", "--type", "x", says: "--type is 'x'; expected one or more of "),
                Misuse("ls", "--state", "foo", says: "--state is 'foo'; expected one of "),
                Misuse("append", "writer/one", "{\"x\": 1}", says: "(invalid_entry)"),
                Misuse("append", "writer/one", "{\"type\": \"mesage\"}", says: "(unknown_entry_type)"),
                Misuse("create", "/__ds/x", says: "/__ds/x is a reserved name", "(NOT_FOUND)"),
                Misuse("create", "/llm/x", says: "/llm/x is a reserved name", "(reserved_name)"),
                Misuse("create", "/x", "--ttl", "1000000001", says: "--ttl is '1000000001'"),
                Misuse("send", "writer/one", "hi", "--key", String(repeating: "k", count: 300), says: "--key has 300 bytes"),
            ] {
                let process = try ChildProcess(Products.path("parley"), misuse.words, environment: server)
                #expect(try process.waitForExit("\(misuse)") == .status(2), "\(misuse): \(process.output)")
                #expect(process.output.standard.isEmpty, "\(misuse): \(process.output)")
                for text in misuse.says { #expect(process.output.error.contains(text), "\(process.output.error)") }
            }
        }
    }

    @Test(arguments: [
        Misuse("trace", "a/b", "--turn", "0000000000000001", "--before", "0000000000000001", says: "there are --turn and --before"),
        Misuse("create", "/q", "--ttl", "5", "--expires-at", "2999-01-01T00:00:00Z", says: "there are --ttl and --expires-at"),
        Misuse("fork", "/q", "/r", "--ttl", "5", "--expires-at", "2999-01-01T00:00:00Z", says: "there are --ttl and --expires-at"),
        Misuse("create", "a/b", "--ttl", "5", says: "--ttl is for plain channels; an agent ends when it is closed or deleted"),
        Misuse("create", "a/b", "--expires-at", "2999-01-01T00:00:00Z", says: "--expires-at is for plain channels"),
        Misuse("create", "/q", "--ttl", "0", says: "--ttl is '0', which is over at once"),
        Misuse(
            "create", "/q", "--expires-at", "2020-01-01T00:00:00Z", says: "--expires-at is '2020-01-01T00:00:00Z', which is in the past"),
        Misuse("fork", "/q", "/r", "--ttl", "00", says: "--ttl is '00', which is over at once"),
        Misuse("fork", "/q", "/r", "--expires-at", "2020-01-01T00:00:00Z", says: "which is in the past"),
        Misuse("signal", "a/b", "", says: "the signal's name is ''"),
        Misuse("signal", "a/b", "go", "@/nowhere", says: "the file '/nowhere' cannot be read"),
        Misuse("audit", "a/b", "--by", "", says: "--by is ''; expected at least one character"),
        Misuse("ls", "--kind=", says: "--kind is ''; expected at least one character"),
        Misuse("create", "/q", "--type", "", says: "--type is ''"),
        Misuse("serve", "--data", "", says: "--data is ''"),
    ])
    func `is found without a server`(_ misuse: Misuse) async throws {
        try await OwnThread.run {
            let process = try ChildProcess(
                Products.path("parley"), misuse.words, environment: ["PARLEY_URL": "http://127.0.0.1:\(FreePort.take())"])
            #expect(try process.waitForExit("\(misuse)") == .status(2), "\(process.output)")
            for text in misuse.says { #expect(process.output.error.contains(text), "\(process.output.error)") }
        }
    }

    @Test(arguments: [
        (["PARLEY_MODEL": "sripted"], "PARLEY_MODEL \"sripted\" has no provider"),
        (["PARLEY_MODEL_CONTINUES": "maybe"], "PARLEY_MODEL_CONTINUES \"maybe\" is not known; accepted: prefix, no, auto."),
        (["PARLEY_MODEL_CALLS": "0"], "PARLEY_MODEL_CALLS \"0\""), (["OPENAI_BASE_URL": "nowhere"], "OPENAI_BASE_URL \"nowhere\""),
        (["PARLEY_CA_FILE": "/nowhere"], "PARLEY_CA_FILE is '/nowhere', which cannot be read"),
    ])
    func `in the environment of a server, too`(_ environment: [String: String], _ says: String) async throws {
        try await OwnThread.run {
            let folder = try TemporaryFolder.make()
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let output = try parley("serve", "--listen", "127.0.0.1:0", "--data", folder + "/data", environment: environment)
            #expect(output.exit == .status(2) && output.error.contains("parley serve: \(says)"), "\(output)")
            #expect(!FileManager.default.fileExists(atPath: folder + "/data"))
        }
    }

    @Test func `in the environment of a command, too`() async throws {
        try await OwnThread.run {
            let output = try parley("ls", environment: ["PARLEY_CA_FILE": "/nowhere"])
            #expect(
                output.exit == .status(2)
                    && output.error.contains("PARLEY_CA_FILE is '/nowhere', which cannot be read: No such file or directory."), "\(output)")
        }
    }
}
