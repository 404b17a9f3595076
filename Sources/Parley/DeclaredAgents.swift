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
        /// The tools for which a person is asked.
        let approved: [String]
        /// Why its model cannot be used.
        let problem: String?
    }

    /// `nil`: there is none.
    let folder: String?
    /// Its files are used by the agents' tools.
    let tools: BuiltInTools
    private let providers: ModelProviders
    private let loaded = Mutex<[String: Kind]>([:])

    static let usualFolder = "./agents"

    /// - Throws: ``ConfigurationError`` when the environment's models are wrong.
    init(
        folder: String?, files: String, _ environment: [String: String], transport: any OutgoingTransport, world: any World
    ) throws(ConfigurationError) {
        do { providers = ModelProviders(try ModelConfiguration(environment: environment), transport: transport, world: world) } catch {
            throw ConfigurationError("\(error)")
        }
        let usual = DeclaredAgents.usualFolder
        self.folder = folder ?? (FileManager.default.fileExists(atPath: usual) ? usual : nil)
        tools = BuiltInTools(folder: files, world: world)
    }

    /// The kinds, by name.
    var kinds: [Kind] { loaded.withLock { $0.values.sorted { $0.file.kind < $1.file.kind } } }

    /// Reads all files at the start.
    ///
    /// An agent whose model is not configured is among them: its turns fail and say why. Left out, it would leave those that are open where they are.
    /// - Returns: what is wrong.
    func load() -> [String] {
        let (kinds, problems) = read()
        loaded.withLock { $0 = Dictionary(kinds.map { ($0.file.kind, $0) }, uniquingKeysWith: { $1 }) }
        return problems + kinds.compactMap(\.problem)
    }

    /// Reads the files again. What is new or different, and right, counts from now on; of what is wrong or gone, what was read before does.
    /// - Returns: what has changed, and what is wrong.
    func reload() -> (changed: [Kind], problems: [String]) {
        let (kinds, problems) = read()
        return loaded.withLock { loaded in
            let changed = kinds.filter {
                $0.problem == nil && (loaded[$0.file.kind]?.file != $0.file || loaded[$0.file.kind]?.problem != nil)
            }
            for kind in changed { loaded[kind.file.kind] = kind }
            return (changed, problems + kinds.compactMap(\.problem))
        }
    }

    private func read() -> (kinds: [Kind], problems: [String]) {
        guard let folder else { return ([], []) }
        let (files, problems) = AgentFile.loadAll(folder)
        return (files.map(kind), problems.map(\.description))
    }

    private func kind(_ file: AgentFile) -> Kind {
        var (model, problem): (any Model, String?)
        do { (model, problem) = (try providers.make(file.model, continues: file.continues), nil) } catch {
            let name = (file.model ?? providers.configuration.defaultModel)?.description ?? ""
            (model, problem) = (UnconfiguredModel(name: name, problem: "\(error)"), "\(file.file): \(error)")
        }
        let agent = DeclaredAgent(file, model: model, tools: tools) { [providers] name, continues in
            do { return try providers.make(try ModelSpec(name), continues: continues) } catch {
                return UnconfiguredModel(name: name, problem: "\(error)")
            }
        }.agent
        let approved = file.tools.filter { file.approve.contains($0) || tools.make($0).approval != .none }
        return Kind(file: file, model: model.name, agent: agent, approved: approved, problem: problem)
    }
}

extension DeclaredAgents.Kind {
    /// As `GET /v1/kinds` shows it.
    var json: JSON {
        func names(_ list: [String]) -> JSON? { list.isEmpty ? nil : .array(list.map { .string($0) }) }
        return JSON.compact(
            ("kind", .string(file.kind)), ("source", "file"), ("file", .string(file.file)),
            ("model", model.isEmpty ? nil : .string(model)), ("tools", names(file.tools)), ("approve", names(approved)),
            ("problem", problem.map { .string($0) }))
    }
}

/// What `parley agents check` does: reads agent files as a node would, without one.
package enum AgentCheck {
    /// - Returns: the kinds that are right, and a line for each mistake.
    /// - Throws: ``ConfigurationError`` when there is no folder, or the environment's models are wrong.
    package static func run(folder: String?, _ environment: [String: String]) throws(ConfigurationError) -> (
        kinds: [JSON], problems: [String]
    ) {
        let loop = EventLoop(name: "models")
        let world = SystemWorld(threads: 1)
        let declared = try DeclaredAgents(folder: folder, files: "", environment, transport: CurlTransport(loop), world: world)
        guard declared.folder != nil else {
            throw ConfigurationError("there is no folder \(DeclaredAgents.usualFolder); name one: parley agents check <folder>.")
        }
        let problems = declared.load()
        return (declared.kinds.filter { $0.problem == nil }.map(\.json), problems)
    }
}
