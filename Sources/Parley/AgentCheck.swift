internal import FoundationEssentials
internal import ParleyModels
package import ParleySystem

/// The check of `parley agents check`: reads agent files as a node would, without one, and lists what each still needs from the environment.
package struct AgentCheck: Sendable {
    /// One file of the folder.
    package struct File: Sendable {
        /// The kind as `GET /v1/kinds` shows it; `nil` when the file has mistakes.
        package let kind: JSON?
        /// With file, line, field, value, what is accepted, and the remedy.
        package let problems: [String]
        /// The settings that a node's environment needs to start with this file.
        package let notices: [String]
        /// `{file, kind, ok, problems: [{line, field, message}], notices}`
        package let json: JSON
    }

    package let folder: String
    /// By name.
    package let files: [File]
    /// The problems of the folder or of the environment's models, which are no file's mistake.
    package let problems: [String]

    /// - Parameter folder: The folder, or one file; `nil`: the usual folder.
    /// - Throws: ``ConfigurationError`` when no folder is named and the usual one is not there.
    package init(folder: String?, _ environment: [String: String]) throws(ConfigurationError) {
        guard let folder = folder ?? DeclaredAgents.existingFolder else {
            throw ConfigurationError("there is no folder \(DeclaredAgents.usualFolder); name one: parley agents check <folder>.")
        }
        self.folder = folder
        var (models, problems) = (ModelConfiguration(), [String]())
        do { models = try ModelConfiguration(environment: environment) } catch { problems = error.problems }
        let (agents, found) = AgentCheck.load(folder)
        let tools = BuiltInTools(folder: "", world: SystemWorld(threads: 1))
        var files = agents.map { (name: $0.file, file: AgentCheck.file($0, models, tools)) }
        for (name, mistakes) in Dictionary(grouping: found, by: \.file) {
            // The folder itself cannot be read.
            guard name != folder || AgentCheck.isFile(folder) else {
                problems += mistakes.map(\.description)
                continue
            }
            files.append((name, AgentCheck.file(name, mistakes)))
        }
        (self.files, self.problems) = (files.sorted { $0.name < $1.name }.map(\.file), problems)
    }

    /// Whether a node could run all agents of the folder, once the environment has what the notices say.
    package var isRight: Bool { problems.isEmpty && files.allSatisfy(\.problems.isEmpty) }

    /// The files of a folder, or one file.
    private static func load(_ path: String) -> (agents: [AgentFile], problems: [AgentFileProblem]) {
        guard isFile(path) else { return AgentFile.loadAll(path) }
        return switch AgentFile.load(path) {
        case .agent(let agent): ([agent], [])
        case .problems(let problems): ([], problems)
        }
    }

    private static func isFile(_ path: String) -> Bool {
        var isFolder = false
        return FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) && !isFolder
    }

    private static func file(_ agent: AgentFile, _ models: ModelConfiguration, _ tools: BuiltInTools) -> File {
        let model = agent.model ?? models.defaultModel
        let needed =
            if let model {
                models.problem(with: model) == nil ? nil : "OPENAI_API_KEY or OPENAI_BASE_URL at start: its model is \(model)"
            } else {
                "PARLEY_MODEL at start: it names no model"
            }
        let notices = needed.map { ["\(agent.file): needs \($0)"] } ?? []
        return File(
            kind: agent.json(model: model?.description ?? "", tools: tools), problems: [], notices: notices,
            json: json(agent.file, agent.kind, [], needed.map { ["needs \($0)"] } ?? []))
    }

    private static func file(_ name: String, _ mistakes: [AgentFileProblem]) -> File {
        let kind = name.split(separator: "/").last.map { String($0.prefix { $0 != "." }) } ?? ""
        return File(kind: nil, problems: mistakes.map(\.description), notices: [], json: json(name, kind, mistakes, []))
    }

    private static func json(_ file: String, _ kind: String, _ mistakes: [AgentFileProblem], _ notices: [String]) -> JSON {
        let problems = mistakes.map { mistake in
            JSON.compact(
                ("line", mistake.line.map { .integer(Int64($0)) }), ("field", mistake.field.map { .string($0) }),
                ("message", .string(mistake.message)))
        }
        return [
            "file": .string(file), "kind": .string(kind), "ok": .bool(mistakes.isEmpty), "problems": .array(problems),
            "notices": .array(notices.map { .string($0) }),
        ]
    }
}
