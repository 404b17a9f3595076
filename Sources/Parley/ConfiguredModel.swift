internal import FoundationEssentials
public import ParleyAgents
internal import ParleyHTTP
internal import ParleyModels
internal import ParleySystem
internal import Synchronization

/// A model by its spec, with the keys and addresses of the environment.
public struct ConfiguredModel: Model {
    private let model: any Model

    /// - Parameter spec: `<provider>:<model>`; without it `PARLEY_MODEL`.
    /// - Throws: nothing at present. ``serve(_:)`` reports a wrong configuration before it starts, with the variable and the remedy; without `serve`,
    ///   the model's calls fail with `model_not_configured`.
    public init(_ spec: String? = nil) throws {
        do { model = try ConfiguredModel.providers.get().make(try spec.map { try ModelSpec($0) }) } catch {
            let problem =
                (error as? SettingError).map { found in
                    found.problems.map { "the model \"\(spec ?? "")\" \($0)" }.joined(separator: "\n")
                } ?? "\(error)"
            ConfiguredModel.problems.withLock { $0.append(problem) }
            model = UnconfiguredModel(name: spec ?? "", problem: problem)
        }
    }

    private static let problems = Mutex<[String]>([])

    /// - Throws: ``ConfigurationError`` with what is wrong with the models that were made so far.
    static func requireUsable() throws(ConfigurationError) {
        if let problem = problems.withLock({ $0.first }) { throw ConfigurationError(problem) }
    }

    private static let providers = Result {
        let loop = EventLoop(name: "models")
        loop.start()
        let configuration = try ModelConfiguration(environment: ProcessInfo.processInfo.environment)
        return ModelProviders(configuration, transport: CurlTransport(loop), world: SystemWorld(threads: 1))
    }

    public var name: String { model.name }
    public var continues: Continuation { model.continues }
    public func start(_ request: ModelRequest, _ sink: any ModelSink) -> any ModelCall { model.start(request, sink) }
    public func probeContinuation(_ answer: @escaping @Sendable (Bool) -> Void) { model.probeContinuation(answer) }
}
