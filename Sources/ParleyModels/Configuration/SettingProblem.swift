/// A problem with a setting, wherever it came from: a predicate that follows its name and value.
package struct SettingProblem: Sendable, Equatable, CustomStringConvertible {
    /// `is not known`.
    package var problem: String
    package var accepted: String?
    package var remedy: String

    package init(_ problem: String, accepted: String? = nil, remedy: String) {
        (self.problem, self.accepted, self.remedy) = (problem, accepted, remedy)
    }

    package var description: String { "\(problem)\(accepted.map { "; accepted: \($0)" } ?? ""). Remedy: \(remedy)" }
}

/// The problems with a setting of one value.
package struct SettingError: Error, Sendable, Equatable {
    package var problems: [SettingProblem]

    init(_ problems: SettingProblem...) { self.problems = problems }
    init(_ problems: [SettingProblem]) { self.problems = problems }
}
