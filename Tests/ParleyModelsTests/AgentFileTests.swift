import Foundation
import ParleyAgents
import ParleySystem
import Testing

@testable import ParleyModels

@Suite struct `An agent's file` {
    func parse(_ text: String, kind: String = "writer") -> AgentFile.Outcome {
        AgentFile.parse(text, kind: kind, file: "agents/\(kind).md")
    }

    func problems(_ text: String, kind: String = "writer") -> [String] {
        guard case .problems(let problems) = parse(text, kind: kind) else { return [] }
        return problems.map(\.description)
    }

    @Test func `declares an agent`() throws {
        let text = """
            ---
            # Who writes.
            kind: writer
            model: "scripted:rate=0"
            continues: no
            input: text
            max_tokens: 800
            temperature: 0.3
            first_token_timeout: 15m
            context: 9000
            tools: [current_time, write_file]
            approve: all
            concurrent: steer
            ---

            You write – briefly.

            ---
            Really.

            """
        var expected = AgentFile(kind: "writer", instructions: "You write – briefly.\n\n---\nReally.", file: "agents/writer.md")
        expected.model = try ModelSpec("scripted:rate=0")
        (expected.continues, expected.maxTokens, expected.temperature, expected.contextCharacters) = (.no, 800, 0.3, 9000)
        expected.firstTokenTimeout = .seconds(900)
        (expected.tools, expected.approve, expected.concurrent) = (["current_time", "write_file"], ["current_time", "write_file"], .steer)
        #expect(parse(text) == .agent(expected))
        #expect(parse("\u{FEFF}" + text.replacing("\n", with: "\r\n")) == .agent(expected))
        #expect(expected.options == ModelOptions(maxTokens: 800, temperature: 0.3))
    }

    @Test(arguments: [
        "---\n---\nWrite.", "---\n\n---\nWrite.", "---\n# nothing\n---  \nWrite.", "---\nkind: writer\n---\nWrite.",
        "---\n{kind: writer}\n---\nWrite.",
    ])
    func `may leave every field out`(text: String) {
        #expect(parse(text) == .agent(AgentFile(kind: "writer", instructions: "Write.", file: "agents/writer.md")))
    }

    static let fields = "kind, model, continues, input, max_tokens, temperature, first_token_timeout, context, tools, approve, concurrent"

    @Test(arguments: [
        (
            "kind: author",
            "agents/writer.md:2: kind \"author\" is not the file's name; accepted: writer. Remedy: write `kind: writer`, or leave the line out."
        ),
        (
            "kind: a/b",
            "agents/writer.md:2: kind \"a/b\" is not the file's name; accepted: writer. Remedy: write `kind: writer`, or leave the line out."
        ),
        ("kind:", "agents/writer.md:2: kind is empty; accepted: writer. Remedy: write `kind: writer`, or leave the line out."),
        (
            "\nmodel: gpt",
            "agents/writer.md:3: model \"gpt\" has no provider; accepted: <provider>:<model>, where the provider is \"openai\" or \"scripted\". Remedy: try \"openai:gpt\"."
        ),
        (
            "model: [a, b]",
            "agents/writer.md:2: model is a list; accepted: <provider>:<model>. Remedy: write `model: openai:gpt-5-mini`, or leave the line out."
        ),
        (
            "continues: prefx",
            "agents/writer.md:2: continues \"prefx\" is not known; accepted: prefix, no, auto. Remedy: write `continues: prefix`."
        ),
        (
            "continues: false",
            "agents/writer.md:2: continues \"false\" is not known; accepted: prefix, no, auto. Remedy: write one of these, or leave the line out."
        ),
        (
            "input: json",
            "agents/writer.md:2: input \"json\" is not known; accepted: text. Remedy: write one of these, or leave the line out."
        ),
        (
            "max_tokens: many",
            "agents/writer.md:2: max_tokens \"many\" is not a whole number; accepted: a whole number from 1 to 1000000. Remedy: write `max_tokens: 800`, or leave the line out."
        ),
        (
            "max_tokens: 0",
            "agents/writer.md:2: max_tokens \"0\" is out of range; accepted: a whole number from 1 to 1000000. Remedy: write `max_tokens: 800`, or leave the line out."
        ),
        (
            "temperature: 2.5",
            "agents/writer.md:2: temperature \"2.5\" is out of range; accepted: a number from 0 to 2. Remedy: write `temperature: 0.3`, or leave the line out."
        ),
        (
            "temperature: nan",
            "agents/writer.md:2: temperature \"nan\" is out of range; accepted: a number from 0 to 2. Remedy: write `temperature: 0.3`, or leave the line out."
        ),
        (
            "first_token_timeout: soon",
            "agents/writer.md:2: first_token_timeout \"soon\" is not a duration from 1s to 24h; accepted: a whole number with s, m or h, from 1s to 24h. Remedy: write `first_token_timeout: 90s`, or leave the line out."
        ),
        (
            "first_token_timeout: 25h",
            "agents/writer.md:2: first_token_timeout \"25h\" is not a duration from 1s to 24h; accepted: a whole number with s, m or h, from 1s to 24h. Remedy: write `first_token_timeout: 90s`, or leave the line out."
        ),
        (
            "first_token_timeout: 90",
            "agents/writer.md:2: first_token_timeout \"90\" has no unit; accepted: a whole number with s, m or h, from 1s to 24h. Remedy: write `first_token_timeout: 90s`, or leave the line out."
        ),
        (
            "context: 12",
            "agents/writer.md:2: context \"12\" is out of range; accepted: a whole number of characters from 100 to 10000000. Remedy: write `context: 24000`, or leave the line out."
        ),
        (
            "tools:\n  - search",
            "agents/writer.md:3: tools \"search\" is not known; accepted: current_time, write_file. Remedy: leave it out."
        ),
        (
            "tools: [write_fil]",
            "agents/writer.md:2: tools \"write_fil\" is not known; accepted: current_time, write_file. Remedy: did you mean `write_file`?"
        ),
        (
            "tools: [[write_file]]",
            "agents/writer.md:2: tools holds a list; accepted: current_time, write_file. Remedy: write `tools: [current_time]`, or leave the line out."
        ),
        (
            "tools:",
            "agents/writer.md:2: tools holds nothing; accepted: current_time, write_file. Remedy: write `tools: [current_time]`, or leave the line out."
        ),
        (
            "tools: current_time\napprove: write_file",
            "agents/writer.md:3: approve \"write_file\" is not one of the agent's tools; accepted: all, current_time. Remedy: add it to `tools`, or leave it out here."
        ),
        (
            "concurrent: parallel",
            "agents/writer.md:2: concurrent \"parallel\" is not known; accepted: queue, steer, interrupt, reject, rollback. Remedy: write one of these, or leave the line out."
        ),
        ("modle: openai:x", "agents/writer.md:2: modle is an unknown field; accepted: \(fields). Remedy: did you mean `model`?"),
        ("colour: red", "agents/writer.md:2: colour is an unknown field; accepted: \(fields). Remedy: leave it out."),
        ("temperature: 1\ntemperature: 1", "agents/writer.md:3: temperature is already on line 2. Remedy: keep one of the two."),
        (
            "continues: resume",
            "agents/writer.md:2: continues \"resume\" is not possible with any provider of this version; accepted: prefix, no, auto. Remedy: try \"auto\"."
        ),
        (
            "model: openai:m\ncontinues: resume",
            "agents/writer.md:3: continues \"resume\" is not possible with the provider \"openai\"; accepted: prefix, no, auto. Remedy: try \"auto\"."
        ),
        (
            "- kind",
            "agents/writer.md:2: the front matter is a list; accepted: lines of `name: value`. Remedy: write for example `max_tokens: 800`."
        ),
        (
            "kind",
            "agents/writer.md:2: the front matter is a plain value; accepted: lines of `name: value`. Remedy: write for example `max_tokens: 800`."
        ),
        (
            "kind: writer\nmodel: a: b",
            "agents/writer.md:3: the front matter is not YAML: mapping values are not allowed in this context. Remedy: write `name: value`, and put values with `:` or `#` in quotes."
        ),
        (
            "kind: writer\n\tmodel: x",
            "agents/writer.md:3: the front matter is not YAML: a tab is where only spaces may be. Remedy: indent with spaces."
        ),
        (
            "tools:\n\t- write_file",
            "agents/writer.md:3: the front matter is not YAML: a tab is where only spaces may be. Remedy: indent with spaces."
        ),
        (
            "kind: &a writer",
            "agents/writer.md:2: the front matter uses an anchor, an alias or a tag. Remedy: write the value out, in quotes if it begins with & * or !."
        ),
        (
            "kind: *a",
            "agents/writer.md:2: the front matter uses an anchor, an alias or a tag. Remedy: write the value out, in quotes if it begins with & * or !."
        ),
        (
            "kind: !!str writer",
            "agents/writer.md:2: the front matter uses an anchor, an alias or a tag. Remedy: write the value out, in quotes if it begins with & * or !."
        ),
        (
            "kind: writer\n[a]: b",
            "agents/writer.md:3: the front matter has a list or a mapping as a name. Remedy: begin the line with `name:`."
        ),
        (
            "kind: writer\n...\nx: y",
            "agents/writer.md:4: the front matter is not YAML: did not find expected <document start>. Remedy: write `name: value`, and put values with `:` or `#` in quotes."
        ),
        (
            "tools: \(String(repeating: "[", count: 20))",
            "agents/writer.md:2: the front matter is nested deeper than 16 or has more than 10000 values. Remedy: make it simpler."
        ),
        (
            "tools: [\(String(repeating: "a,", count: 11_000))]",
            "agents/writer.md:2: the front matter is nested deeper than 16 or has more than 10000 values. Remedy: make it simpler."
        ),
        (
            "kind: \(String(repeating: "a", count: 70_000))",
            "agents/writer.md:1: the front matter is longer than 64 KiB. Remedy: move text into the instructions."
        ),
        (
            "temperature: \(String(repeating: "9", count: 100))",
            "agents/writer.md:2: temperature \"\(String(repeating: "9", count: 79))…\" is out of range; accepted: a number from 0 to 2. Remedy: write `temperature: 0.3`, or leave the line out."
        ),
    ])
    func `says where a mistake is and what to do`(frontMatter: String, problem: String) {
        #expect(problems("---\n\(frontMatter)\n---\nWrite.") == [problem])
    }

    @Test(arguments: [
        (
            "",
            "agents/writer.md:1: there is no front matter. Remedy: begin the file with two lines `---`; fields, if any, go between them."
        ),
        (
            "Write.",
            "agents/writer.md:1: there is no front matter. Remedy: begin the file with two lines `---`; fields, if any, go between them."
        ),
        (
            "---\nkind: writer\nWrite.",
            "agents/writer.md:1: the front matter does not end. Remedy: put a line `---` between the fields and the instructions."
        ),
        (
            "---\nkind: writer\n---",
            "agents/writer.md:3: there are no instructions. Remedy: write after the second `---` what the agent is to do."
        ),
        (
            "---\nkind: writer\n---\n \n\t\n",
            "agents/writer.md:3: there are no instructions. Remedy: write after the second `---` what the agent is to do."
        ),
    ])
    func `needs front matter and instructions`(text: String, problem: String) {
        #expect(problems(text) == [problem])
    }

    @Test func `has all its mistakes reported, in the order of its lines`() {
        let found = problems("---\nkind: other\nbudget: 3\ntemperature: hot\nmodel: scripted:rate=x,seed=y\n---\n")
        #expect(found.map { String($0.prefix { $0 != " " }) } == [2, 3, 4, 5, 5, 6].map { "agents/writer.md:\($0):" })
    }

    @Test(arguments: ["budget", "supervision", "memory"]) func `knows the fields of later versions`(field: String) {
        #expect(problems("---\n\(field): x\n---\nWrite.").first?.contains("is not supported in this version") == true)
    }

    @Test(arguments: [
        ("a", true), ("A.b_c~d-9", true), (String(repeating: "a", count: 128), true), (String(repeating: "a", count: 129), false),
        ("", false), ("a b", false), ("é", false), ("a/b", false),
    ])
    func `has a name that fits in an address`(kind: String, isKind: Bool) {
        #expect(AgentFile.isKind(kind) == isKind)
        #expect(problems("---\n---\nWrite.", kind: kind).isEmpty == isKind)
    }
}

@Suite struct `A folder of agents' files` {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("parley-agents-\(UInt64.random(in: 0...UInt64.max))")

    func write(_ name: String, _ bytes: Bytes) throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data(bytes).write(to: folder.appendingPathComponent(name))
    }

    @Test func `loads what is right and reports what is not`() throws {
        defer { try? FileManager.default.removeItem(at: folder) }
        try write("b.md", Bytes("---\n---\nWrite.".utf8))
        try write("a.md", Bytes("---\nkind: a\n---\nRead.".utf8))
        try write("bad name.md", Bytes("---\nkind: bad name\n---\nWrite.".utf8))
        try write("binary.md", Bytes("---\n---\n".utf8) + [0xFF])
        try write("huge.md", Bytes(repeating: 0x20, count: 1 << 20 + 1))
        try write(".hidden.md", Bytes("x".utf8))
        try write("notes.txt", Bytes("x".utf8))
        try FileManager.default.createDirectory(at: folder.appendingPathComponent("sub.md"), withIntermediateDirectories: true)
        try FileManager.default.createSymbolicLink(atPath: folder.path + "/link.md", withDestinationPath: "/nowhere")

        let (agents, problems) = AgentFile.loadAll(folder.path)
        #expect(agents.map(\.kind) == ["a", "b"] && agents.map(\.instructions) == ["Read.", "Write."])
        #expect(
            problems.map { $0.description.replacing(folder.path + "/", with: "") } == [
                "bad name.md: \"bad name\" is no name for an agent's file; accepted: 1 to 128 of A-Z a-z 0-9 . _ ~ -. Remedy: rename the file, e.g. to `bad-name.md`.",
                "binary.md:3: is not UTF-8 text. Remedy: save it as UTF-8.",
                "huge.md: is longer than 1 MiB. Remedy: make it shorter.",
                "link.md: cannot be read: No such file or directory. Remedy: check its permissions.",
            ])
    }

    @Test func `that does not exist is one problem`() {
        let (agents, problems) = AgentFile.loadAll(folder.path)
        #expect(agents.isEmpty)
        #expect(
            problems.map(\.description) == [
                "\(folder.path): cannot be read: No such file or directory. Remedy: make the folder, or name another one."
            ])
    }
}
