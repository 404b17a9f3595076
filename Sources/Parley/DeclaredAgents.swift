internal import FoundationEssentials
internal import ParleyAgents
internal import ParleyHTTP
internal import ParleyModels
internal import ParleySystem
internal import Synchronization

/// The agents that files declare, as they were last read without a mistake.
final class DeclaredAgents: Sendable {
    /// A kind of agents with what runs them.
    struct Kind: Sendable {
        let file: AgentFile
        let model: String
        let agent: AnyAgent
        /// As `GET /v1/kinds` shows it.
        let json: JSON
        /// Why its model cannot be used.
        let problem: String?
    }

    /// `nil`: there is none.
    let folder: String?
    /// Its files are used by the agents' tools.
    let tools: BuiltInTools
    private let providers: ModelProviders
    private let state = Mutex(State())

    private struct State {
        var kinds: [String: Kind] = [:]
        /// The problems of the last read.
        var problems: Set<String> = []
        /// Kinds whose file was gone then.
        var gone: Set<String> = []
    }

    static let usualFolder = "./agents"
    /// The usual folder, if there is one.
    static var existingFolder: String? { FileManager.default.fileExists(atPath: usualFolder) ? usualFolder : nil }

    /// Refuses a folder that was named and is not there: without it the node would start with no agents, and be silent about it.
    static func require(_ folder: String) throws(ConfigurationError) {
        var isFolder = false
        guard FileManager.default.fileExists(atPath: folder, isDirectory: &isFolder) else {
            throw ConfigurationError(
                "--agents is '\(folder)', which does not exist; expected a folder with a file <kind>.md for each kind. Make it with: mkdir -p '\(folder)'."
            )
        }
        guard isFolder else {
            throw ConfigurationError("--agents is '\(folder)', which is a file; expected the folder of the files <kind>.md.")
        }
    }

    /// - Throws: ``ConfigurationError`` when the environment's models are wrong.
    init(
        folder: String?, files: String, _ environment: [String: String], transport: any OutgoingTransport, world: any World
    ) throws(ConfigurationError) {
        do { providers = ModelProviders(try ModelConfiguration(environment: environment), transport: transport, world: world) } catch {
            throw ConfigurationError("\(error)")
        }
        self.folder = folder ?? DeclaredAgents.existingFolder
        tools = BuiltInTools(folder: files, world: world)
    }

    /// Whether the folder had no file at all when it was read, neither a right nor a wrong one.
    var isEmpty: Bool { state.withLock { $0.kinds.isEmpty && $0.problems.isEmpty } }

    /// The kinds, by name.
    var kinds: [Kind] { state.withLock { $0.kinds.values.sorted { $0.file.kind < $1.file.kind } } }

    /// Reads all files at the start.
    ///
    /// An agent whose model is not configured is among them: its turns fail and say why. Left out, it would leave those that are open where they are.
    /// - Returns: the problems of files; for those of models see ``modelProblems``.
    func load() -> [String] {
        let (kinds, problems) = read()
        let all = problems.map(\.description) + kinds.compactMap(\.problem)
        state.withLock { state in
            state.kinds = Dictionary(kinds.map { ($0.file.kind, $0) }, uniquingKeysWith: { $1 })
            state.problems = Set(all)
        }
        return problems.map(\.description)
    }

    /// Why the models of kinds cannot be used, a line for each reason: one missing variable is often that of all.
    var modelProblems: [String] {
        let reasons = Dictionary(grouping: kinds.filter { $0.problem != nil }) { String($0.problem!.dropFirst($0.file.file.count)) }
        return reasons.map { reason, kinds in kinds.map(\.file.file).joined(separator: ", ") + reason }.sorted()
    }

    /// The changes in the folder since the last read.
    struct Changes {
        /// New or different, and right.
        var kinds: [Kind] = []
        /// Mistakes that were not there before.
        var problems: [String] = []
        /// Kinds that stay until the next start although their file is gone.
        var gone: [Kind] = []
    }

    /// Reads the files again. A new or changed definition that is valid applies from now on; where one is invalid or gone, the previous one stays.
    func reload() -> Changes {
        let (kinds, mistakes) = read()
        let problems = mistakes.map(\.description) + kinds.compactMap(\.problem)
        let there = Set(kinds.map(\.file.file) + mistakes.map(\.file))
        return state.withLock { state in
            var changes = Changes()
            changes.kinds = kinds.filter { kind in
                let known = state.kinds[kind.file.kind]
                return kind.problem == nil && (known?.file != kind.file || known?.problem != nil)
            }
            for kind in changes.kinds { state.kinds[kind.file.kind] = kind }
            changes.problems = problems.filter { !state.problems.contains($0) }
            let gone = folder.map { folder in state.kinds.values.filter { !there.contains($0.file.file) && !there.contains(folder) } } ?? []
            changes.gone = gone.filter { !state.gone.contains($0.file.kind) }.sorted { $0.file.kind < $1.file.kind }
            (state.problems, state.gone) = (Set(problems), Set(gone.map(\.file.kind)))
            return changes
        }
    }

    private func read() -> (kinds: [Kind], problems: [AgentFileProblem]) {
        guard let folder else { return ([], []) }
        let (files, problems) = AgentFile.loadAll(folder)
        return (files.map(kind), problems)
    }

    private func kind(_ file: AgentFile) -> Kind {
        var (model, problem): (any Model, String?)
        do {
            (model, problem) = (try providers.make(file.model, continues: file.continues, firstByteTimeout: file.firstTokenTimeout), nil)
        } catch {
            let name = (file.model ?? providers.configuration.defaultModel)?.description ?? ""
            (model, problem) = (UnconfiguredModel(name: name, problem: "\(error)"), "\(file.file): \(error)")
        }
        let agent = DeclaredAgent(file, model: model, tools: tools) { [providers] name, continues in
            do { return try providers.make(try ModelSpec(name), continues: continues, firstByteTimeout: file.firstTokenTimeout) } catch {
                return UnconfiguredModel(name: name, problem: "\(error)")
            }
        }.agent
        return Kind(
            file: file, model: model.name, agent: agent, json: file.json(model: model.name, tools: tools, problem: problem),
            problem: problem)
    }
}

extension AgentFile {
    /// The kind as `GET /v1/kinds` shows it.
    ///
    /// - Parameter problem: Why its model cannot be used.
    func json(model: String, tools: BuiltInTools, problem: String? = nil) -> JSON {
        func names(_ list: [String]) -> JSON? { list.isEmpty ? nil : .array(list.map { .string($0) }) }
        let approved = self.tools.filter { approve.contains($0) || tools.make($0).approval != .none }
        return JSON.compact(
            ("kind", .string(kind)), ("source", "file"), ("file", .string(file)), ("model", model.isEmpty ? nil : .string(model)),
            ("tools", names(self.tools)), ("approve", names(approved)), ("problem", problem.map { .string($0) }))
    }
}
