internal import ParleyAgents
internal import ParleySystem

/// The name of a model, as `<provider>:<model>`: `openai:gpt-5-mini`, `scripted:rate=50`.
package struct ModelSpec: Sendable, Equatable, CustomStringConvertible {
    package enum Provider: String, Sendable, CaseIterable {
        /// Anything that speaks Chat Completions.
        case openai
        /// ``ScriptedModel``.
        case scripted

        /// Names that are kept for later versions.
        static let planned = ["responses", "anthropic"]
    }

    package var provider: Provider
    /// The part after the colon.
    package var model: String

    package var description: String { "\(provider.rawValue):\(model)" }

    /// Parses `text` and checks what can be checked without a request.
    package init(_ text: String) throws(SettingError) {
        // It has one model only, so its name says everything.
        let text = text == Provider.scripted.rawValue ? text + ":" : text
        guard let colon = text.firstIndex(of: ":") else {
            let example = "openai:\(text.isEmpty ? ModelSpec.exampleModel : text)"
            throw SettingError(SettingProblem("has no provider", accepted: ModelSpec.accepted, remedy: "try \"\(example)\"."))
        }
        guard let provider = Provider(rawValue: String(text[..<colon])) else {
            throw SettingError(ModelSpec.unknownProvider(String(text[..<colon])))
        }
        self.provider = provider
        model = String(text[text.index(after: colon)...])
        switch provider {
        case .openai: try ModelSpec.check(model)
        case .scripted: _ = try ScriptedModel.Options(parsing: model)
        }
    }

    /// The problem with `continuation` for this provider; `nil` when it is possible.
    func problem(with continuation: Continuation) -> SettingProblem? {
        ModelSpec.problem(with: continuation, of: "with the provider \"\(provider.rawValue)\"")
    }

    /// The problem with `continuation` for a model that is not known yet; `nil` when it may be possible.
    static func problem(withAnyProvider continuation: Continuation) -> SettingProblem? {
        problem(with: continuation, of: "with any provider of this version")
    }

    /// The continuations that some provider has, as they are written.
    static let continuations = Continuation.allCases.filter { problem(withAnyProvider: $0) == nil }.map(\.rawValue)

    private static func problem(with continuation: Continuation, of providers: String) -> SettingProblem? {
        guard continuation == .resume else { return nil }
        return SettingProblem("is not possible \(providers)", accepted: "prefix, no, auto", remedy: "try \"auto\".")
    }

    // MARK: Pieces

    static let accepted = "<provider>:<model>, where the provider is \(providerNames)"
    static let exampleModel = "gpt-5-mini"
    private static let providerNames = Provider.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: " or ")

    private static func unknownProvider(_ name: String) -> SettingProblem {
        guard !Provider.planned.contains(name) else {
            return SettingProblem(
                "names the provider \"\(name)\", which this version does not have", accepted: accepted,
                remedy: "use \"openai:\" with a server that speaks Chat Completions.")
        }
        let meant = Suggestion.closest(to: name, in: Provider.allCases.map(\.rawValue))
        return SettingProblem(
            "names the unknown provider \"\(name)\"", accepted: accepted,
            remedy: meant.map { "did you mean \"\($0)\"?" } ?? "use \"openai:\" for any server that speaks Chat Completions.")
    }

    private static func check(_ model: String) throws(SettingError) {
        guard !model.isEmpty else {
            throw SettingError(SettingProblem("names no model", accepted: accepted, remedy: "try \"openai:\(exampleModel)\"."))
        }
        guard model.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7F }) else {
            throw SettingError(SettingProblem("has white space or control characters in the model's name", remedy: "take them out."))
        }
    }
}

extension ScriptedModel.Options {
    private static let names = ["tokens", "rate", "seed", "continues"]

    /// Parses `tokens=300,rate=50,seed=7,continues=prefix`; each may be missing.
    package init(parsing text: String) throws(SettingError) {
        self.init()
        var problems: [SettingProblem] = []
        for part in text.split(separator: ",") {
            let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            if let problem = read(pair[0], pair.count > 1 ? pair[1] : "") { problems.append(problem) }
        }
        guard problems.isEmpty else { throw SettingError(problems) }
    }

    private mutating func read(_ name: String, _ value: String) -> SettingProblem? {
        switch name {
        case "tokens": return number(name, value, 0...1_000_000, \.tokens)
        case "rate": return number(name, value, 0...100_000, \.rate)
        case "seed": return number(name, value, 0...UInt64.max, \.seed)
        case "continues":
            guard let continuation = Continuation(rawValue: value), continuation != .resume else {
                return SettingProblem("has continues=\"\(value)\"", accepted: "prefix, no, auto", remedy: "leave it out for prefix.")
            }
            continues = continuation
            return nil
        default:
            let meant = Suggestion.closest(to: name, in: Self.names)
            return SettingProblem(
                "has the unknown option \"\(name)\"", accepted: Self.names.joined(separator: ", "),
                remedy: meant.map { "did you mean \"\($0)\"?" } ?? "leave it out.")
        }
    }

    private mutating func number<T: FixedWidthInteger>(
        _ name: String, _ value: String, _ range: ClosedRange<T>, _ path: WritableKeyPath<Self, T>
    ) -> SettingProblem? {
        guard let number = T(value), range.contains(number) else {
            return SettingProblem(
                "has \(name)=\"\(value)\"", accepted: "a whole number from \(range.lowerBound) to \(range.upperBound)",
                remedy: "leave it out for \(self[keyPath: path]).")
        }
        self[keyPath: path] = number
        return nil
    }
}
