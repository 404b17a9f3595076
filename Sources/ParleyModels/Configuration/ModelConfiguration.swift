package import ParleyAgents
internal import ParleySystem

/// Where the models are, and which one is used by agents that name none.
package struct ModelConfiguration: Sendable {
    /// The model of agents that name none; `nil` when there is no such model.
    package var defaultModel: ModelSpec?
    /// Whether models continue from a prefix, where the agent does not say; `nil` leaves it to the provider.
    package var continues: Continuation?
    package var baseURL = BaseURL.openAI
    package var apiKey: String?
    /// How long a model may take until its answer begins.
    package var firstByteTimeout = Duration.seconds(600)
    /// How many calls there are at a time; the others wait.
    package var callsMax = 256

    package init() {}

    /// The setting that is missing for a call to `spec`; `nil` when none is.
    package func problem(with spec: ModelSpec) -> String? {
        guard spec.provider == .openai, baseURL.host == BaseURL.openAI.host, apiKey == nil else { return nil }
        let problem = SettingProblem(
            "is not set, and \(baseURL) answers nobody without a key",
            remedy: "set it, or set OPENAI_BASE_URL to a server of your own, or use \"scripted\", which needs neither.")
        return "OPENAI_API_KEY \(problem)"
    }
}

/// All that is wrong with the configuration of models.
package struct ModelConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
    /// One line each: where the value came from, the value, what is accepted, the remedy.
    package var problems: [String]
    package var description: String { problems.joined(separator: "\n") }

    init(problems: [String]) { self.problems = problems }
}

extension ModelConfiguration {
    /// Reads `PARLEY_MODEL`, `PARLEY_MODEL_CONTINUES`, `PARLEY_MODEL_FIRST_BYTE`, `PARLEY_MODEL_CALLS`, `OPENAI_BASE_URL` and `OPENAI_API_KEY`. An
    /// empty variable counts as not set.
    ///
    /// - Throws: ``ModelConfigurationError`` with every problem there is, each naming its variable. The key's value is in none of them.
    package init(environment: [String: String]) throws(ModelConfigurationError) {
        var reader = ModelEnvironmentReader(environment)
        self = reader.read()
        guard reader.problems.isEmpty else { throw ModelConfigurationError(problems: reader.problems) }
    }
}

private struct ModelEnvironmentReader {
    private let environment: [String: String]
    private(set) var problems: [String] = []

    init(_ environment: [String: String]) { self.environment = environment.filter { !$0.value.isEmpty } }

    mutating func read() -> ModelConfiguration {
        var configuration = ModelConfiguration()
        let hasBaseURL = readBaseURL(&configuration)
        readKey(&configuration)
        readContinues(&configuration)
        if let seconds = readNumber("PARLEY_MODEL_FIRST_BYTE", 1...86_400, "seconds", example: 600) {
            configuration.firstByteTimeout = .seconds(seconds)
        }
        if let calls = readNumber("PARLEY_MODEL_CALLS", 1...10_000, "calls at a time", example: 256) { configuration.callsMax = calls }
        readModel(&configuration)
        guard let spec = configuration.defaultModel else { return configuration }
        if let problem = configuration.continues.flatMap(spec.problem) { report("PARLEY_MODEL_CONTINUES", shown: "resume", problem) }
        // A wrong base URL is reported already, and says nothing of whether a key is needed.
        if hasBaseURL, let problem = configuration.problem(with: spec) { problems.append(problem) }
        return configuration
    }

    /// Whether the base URL is known: not given, or given as one.
    private mutating func readBaseURL(_ configuration: inout ModelConfiguration) -> Bool {
        guard let text = environment["OPENAI_BASE_URL"] else { return true }
        guard let url = BaseURL(text) else {
            let problem = SettingProblem(
                "is not a usable address", accepted: "an http or https URL without query or fragment", remedy: "try \"\(BaseURL.openAI)\".")
            // A URL with an @ may hold a password.
            report("OPENAI_BASE_URL", shown: text.contains("@") ? nil : text, problem)
            return false
        }
        configuration.baseURL = url
        return true
    }

    private mutating func readKey(_ configuration: inout ModelConfiguration) {
        configuration.apiKey = environment["OPENAI_API_KEY"]
        guard let key = configuration.apiKey, key.utf8.contains(where: { $0 <= 0x20 || $0 >= 0x7F }) else { return }
        let problem = SettingProblem(
            "(\(key.utf8.count) bytes, not shown) has white space, control or non-ASCII characters", remedy: "copy the key again.")
        report("OPENAI_API_KEY", shown: nil, problem)
    }

    private mutating func readContinues(_ configuration: inout ModelConfiguration) {
        guard let text = environment["PARLEY_MODEL_CONTINUES"] else { return }
        configuration.continues = Continuation(rawValue: text)
        guard configuration.continues == nil else { return }
        let names = ModelSpec.continuations
        let meant = Suggestion.closest(to: text, in: names)
        let problem = SettingProblem(
            "is not known", accepted: names.joined(separator: ", "), remedy: meant.map { "did you mean \"\($0)\"?" } ?? "try \"auto\".")
        report("PARLEY_MODEL_CONTINUES", shown: text, problem)
    }

    private mutating func readNumber(_ name: String, _ range: ClosedRange<Int>, _ unit: String, example: Int) -> Int? {
        guard let text = environment[name] else { return nil }
        if let number = Int(text), range.contains(number) { return number }
        let problem = SettingProblem(
            "is out of range", accepted: "\(range.lowerBound) to \(range.upperBound) (\(unit))", remedy: "try \"\(example)\".")
        report(name, shown: text, problem)
        return nil
    }

    private mutating func readModel(_ configuration: inout ModelConfiguration) {
        guard let text = environment["PARLEY_MODEL"] else { return }
        do throws(SettingError) { configuration.defaultModel = try ModelSpec(text) } catch {
            for problem in error.problems { report("PARLEY_MODEL", shown: text, problem) }
        }
    }

    private mutating func report(_ name: String, shown value: String?, _ problem: SettingProblem) {
        problems.append("\(name)\(value.map { " \"\($0)\"" } ?? "") \(problem)")
    }
}
