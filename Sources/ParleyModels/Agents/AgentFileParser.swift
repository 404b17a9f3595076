internal import ParleyAgents
internal import ParleySystem

/// Reads one agent's file and gathers every mistake on the way.
struct AgentFileParser {
    private(set) var problems: [AgentFileProblem] = []
    private var agent: AgentFile
    private var approvesAll = false

    private static let fields = [
        "kind", "model", "continues", "input", "max_tokens", "temperature", "first_token_timeout", "context", "tools", "approve",
        "concurrent",
    ]
    /// Fields that a later version knows.
    private static let plannedFields = ["budget", "supervision", "memory"]
    private static let frontMatterBytesMax = 64 << 10

    init(kind: String, file: String) {
        agent = AgentFile(kind: kind, instructions: "", file: file)
    }

    mutating func parse(_ text: String) -> AgentFile {
        if !AgentFile.isKind(agent.kind) {
            report(
                nil, nil, agent.kind, "is no name for an agent's file", accepted: "1 to 128 of A-Z a-z 0-9 . _ ~ -",
                "rename the file, e.g. to `\(AgentFileParser.name(like: agent.kind)).md`.")
        }
        guard let (frontMatter, body, bodyLine) = split(text) else { return agent }
        do throws(YAMLError) {
            // A line break in front for the `---`, so that lines count as in the file.
            readFields(try YAML.parse("\n" + frontMatter))
        } catch {
            report(error.line, nil, nil, "the front matter \(error.problem)", error.remedy)
        }
        if approvesAll { agent.approve = agent.tools }
        agent.instructions = body
        if body.isEmpty {
            report(bodyLine, nil, nil, "there are no instructions", "write after the second `---` what the agent is to do.")
        }
        return agent
    }

    /// Cuts the text at the two `---` lines; the body comes without the white space around it.
    private mutating func split(_ text: String) -> (frontMatter: String, body: String, bodyLine: Int)? {
        let text = text.unicodeScalars.first == "\u{FEFF}" ? String(text.unicodeScalars.dropFirst()) : text
        let lines = text.split(omittingEmptySubsequences: false, whereSeparator: { $0 == "\n" || $0 == "\r\n" })
        func isFence(_ line: Substring) -> Bool { line.hasPrefix("---") && line.dropFirst(3).allSatisfy(\.isWhitespace) }
        guard let first = lines.first, isFence(first) else {
            report(
                1, nil, nil, "there is no front matter", "begin the file with two lines `---`; fields, if any, go between them.")
            return nil
        }
        guard let end = lines.indices.dropFirst().first(where: { isFence(lines[$0]) }) else {
            report(1, nil, nil, "the front matter does not end", "put a line `---` between the fields and the instructions.")
            return nil
        }
        let frontMatter = lines[1..<end].joined(separator: "\n")
        guard frontMatter.utf8.count <= AgentFileParser.frontMatterBytesMax else {
            report(
                1, nil, nil, "the front matter is longer than \(AgentFileParser.frontMatterBytesMax >> 10) KiB",
                "move text into the instructions.")
            return nil
        }
        let body = lines[(end + 1)...].joined(separator: "\n")
        let trimmed = body.drop(while: \.isWhitespace).reversed().drop(while: \.isWhitespace).reversed()
        return (frontMatter, String(trimmed), end + 1)
    }

    // MARK: Fields

    private mutating func readFields(_ root: YAML) {
        guard case .mapping(let pairs, _) = root else {
            // A front matter of comments alone is one empty value.
            if case .scalar("", _) = root { return }
            report(
                root.line, nil, nil, "the front matter is \(root.kindName)", accepted: "lines of `name: value`",
                "write for example `max_tokens: \(example("max_tokens"))`.")
            return
        }
        var seen: [String: Int] = [:]
        for pair in pairs {
            if let line = seen[pair.name] {
                report(pair.line, pair.name, nil, "is already on line \(line)", "keep one of the two.")
                continue
            }
            seen[pair.name] = pair.line
            read(pair)
        }
        if let line = seen["continues"], let continues = agent.continues {
            // Without a model of its own, it uses the one that PARLEY_MODEL names.
            let problem = agent.model.map { $0.problem(with: continues) } ?? ModelSpec.problem(withAnyProvider: continues)
            if let problem { report(line, "continues", continues.rawValue, problem) }
        }
        if let line = seen["approve"], let name = agent.approve.first(where: { !agent.tools.contains($0) }) {
            report(
                line, "approve", name, "is not one of the agent's tools", accepted: (["all"] + agent.tools).joined(separator: ", "),
                "add it to `tools`, or leave it out here.")
        }
    }

    private mutating func read(_ pair: YAML.Pair) {
        guard AgentFileParser.fields.contains(pair.name) else { return reportUnknown(pair) }
        if pair.name == "tools" || pair.name == "approve" { return readNames(pair) }
        guard case .scalar(let value, _) = pair.value, !value.isEmpty else {
            let found = pair.value == .scalar("", line: pair.value.line) ? "is empty" : "is \(pair.value.kindName)"
            return report(
                pair.line, pair.name, nil, found, accepted: accepted(pair.name),
                "write `\(pair.name): \(example(pair.name))`, or leave the line out.")
        }
        switch pair.name {
        case "kind": readKind(value, pair.line)
        case "model": readModel(value, pair.line)
        case "continues": agent.continues = continuation(pair, value)
        case "input": _ = choice(pair, value, ["text"])
        case "concurrent":
            agent.concurrent = choice(pair, value, ConcurrentInput.allCases.map(\.rawValue)).flatMap(ConcurrentInput.init) ?? .queue
        case "max_tokens": agent.maxTokens = number(pair, value, 1...1_000_000)
        case "temperature": agent.temperature = number(pair, value, 0...2.0)
        case "first_token_timeout": agent.firstTokenTimeout = duration(pair, value)
        default: agent.contextCharacters = number(pair, value, 100...10_000_000) ?? agent.contextCharacters
        }
    }

    private mutating func readKind(_ value: String, _ line: Int) {
        // A file whose name is wrong is renamed first, and the field cannot agree with it before.
        guard value != agent.kind, AgentFile.isKind(agent.kind) else { return }
        report(line, "kind", value, "is not the file's name", accepted: agent.kind, "write `kind: \(agent.kind)`, or leave the line out.")
    }

    /// A valid file name that resembles an invalid one.
    private static func name(like text: String) -> String {
        let name = String(text.map { AgentFile.isKind(String($0)) ? $0 : "-" }.prefix(128))
        return name.contains { $0 != "-" } ? name : "assistant"
    }

    /// A list of tools, or one alone.
    private mutating func readNames(_ pair: YAML.Pair) {
        let values = if case .sequence(let values, _) = pair.value { values } else { [pair.value] }
        var names: [String] = []
        for value in values {
            guard case .scalar(let name, _) = value, !name.isEmpty else {
                return report(
                    value.line, pair.name, nil, "holds \(value == .scalar("", line: value.line) ? "nothing" : value.kindName)",
                    accepted: accepted(pair.name), "write `\(pair.name): \(example(pair.name))`, or leave the line out.")
            }
            if pair.name == "approve", name == "all", values.count == 1 {
                approvesAll = true
            } else if BuiltInTools.names.contains(name) {
                if !names.contains(name) { names.append(name) }
            } else {
                let meant = Suggestion.closest(to: name, in: BuiltInTools.names).map { "did you mean `\($0)`?" }
                report(value.line, pair.name, name, "is not known", accepted: accepted(pair.name), meant ?? "leave it out.")
            }
        }
        if pair.name == "tools" { agent.tools = names } else { agent.approve = names }
    }

    private mutating func readModel(_ value: String, _ line: Int) {
        do throws(SettingError) { agent.model = try ModelSpec(value) } catch {
            for problem in error.problems { report(line, "model", value, problem) }
        }
    }

    /// A continuation that no provider has is parsed, too: its problem is reported once the provider is known.
    private mutating func continuation(_ pair: YAML.Pair, _ value: String) -> Continuation? {
        Continuation(rawValue: value) ?? choice(pair, value, ModelSpec.continuations).flatMap(Continuation.init)
    }

    private mutating func choice(_ pair: YAML.Pair, _ value: String, _ choices: [String]) -> String? {
        if choices.contains(value) { return value }
        let meant = Suggestion.closest(to: value, in: choices).map { "write `\(pair.name): \($0)`." }
        report(
            pair.line, pair.name, value, "is not known", accepted: accepted(pair.name),
            meant ?? "write one of these, or leave the line out.")
        return nil
    }

    /// `90s`, `15m` or `1h`: up to a day.
    private mutating func duration(_ pair: YAML.Pair, _ value: String) -> Duration? {
        let units = ["s": 1, "m": 60, "h": 3_600]
        if let unit = units[String(value.suffix(1))], let count = Int(value.dropLast()), (1...86_400 / unit).contains(count) {
            return .seconds(count * unit)
        }
        report(
            pair.line, pair.name, value, Int(value) == nil ? "is not a duration from 1s to 24h" : "has no unit",
            accepted: accepted(pair.name),
            "write `\(pair.name): \(example(pair.name))`, or leave the line out.")
        return nil
    }

    private mutating func number<T: LosslessStringConvertible & Comparable>(_ pair: YAML.Pair, _ value: String, _ range: ClosedRange<T>)
        -> T?
    {
        if let number = T(value), range.contains(number) { return number }
        let kind = T.self is any BinaryInteger.Type ? "a whole number" : "a number"
        let found = T(value) == nil ? "is not \(kind)" : "is out of range"
        report(
            pair.line, pair.name, value, found, accepted: accepted(pair.name),
            "write `\(pair.name): \(example(pair.name))`, or leave the line out.")
        return nil
    }

    private mutating func reportUnknown(_ pair: YAML.Pair) {
        guard !AgentFileParser.plannedFields.contains(pair.name) else {
            return report(
                pair.line, pair.name, nil, "is not supported in this version", accepted: AgentFileParser.fields.joined(separator: ", "),
                "leave `\(pair.name)` out.")
        }
        let meant = Suggestion.closest(to: pair.name, in: AgentFileParser.fields)
        report(
            pair.line, pair.name, nil, "is an unknown field", accepted: AgentFileParser.fields.joined(separator: ", "),
            meant.map { "did you mean `\($0)`?" } ?? "leave it out.")
    }

    private func accepted(_ field: String) -> String {
        switch field {
        case "kind": agent.kind
        case "model": "<provider>:<model>"
        case "continues": ModelSpec.continuations.joined(separator: ", ")
        case "input": "text"
        case "max_tokens": "a whole number from 1 to 1000000"
        case "temperature": "a number from 0 to 2"
        case "first_token_timeout": "a whole number with s, m or h, from 1s to 24h"
        case "tools": BuiltInTools.names.joined(separator: ", ")
        case "approve": "all, or names of the agent's tools"
        case "concurrent": ConcurrentInput.allCases.map(\.rawValue).joined(separator: ", ")
        default: "a whole number of characters from 100 to 10000000"
        }
    }

    private func example(_ field: String) -> String {
        switch field {
        case "kind": agent.kind
        case "model": "openai:gpt-5-mini"
        case "continues": "auto"
        case "input": "text"
        case "max_tokens": "800"
        case "temperature": "0.3"
        case "first_token_timeout": "90s"
        case "tools", "approve": "[\(BuiltInTools.names[0])]"
        case "concurrent": "steer"
        default: "\(AgentFile.contextCharactersDefault)"
        }
    }

    // MARK: Reports

    private mutating func report(
        _ line: Int?, _ field: String?, _ value: String?, _ problem: String, accepted: String? = nil, _ remedy: String
    ) {
        let shown = value.map { $0.count > 80 ? $0.prefix(79) + "…" : $0[...] }.map(String.init)
        problems.append(
            AgentFileProblem(file: agent.file, line: line, field: field, value: shown, problem: problem, accepted: accepted, remedy: remedy)
        )
    }

    private mutating func report(_ line: Int, _ field: String, _ value: String, _ found: SettingProblem) {
        report(line, field, value, found.problem, accepted: found.accepted, found.remedy)
    }
}
