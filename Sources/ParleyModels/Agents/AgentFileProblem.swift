/// One mistake in an agent's file: its place, the value found, acceptable values, and the remedy.
package struct AgentFileProblem: Sendable, Equatable, CustomStringConvertible {
    /// As it was given, so that a terminal can open it.
    package var file: String
    /// Counted from 1; `nil` when the mistake is the file's as a whole.
    package var line: Int?
    package var field: String?
    /// The value found, shortened.
    package var value: String?
    /// The problem, as a predicate of the field or the file: `is not a number`.
    package var problem: String
    package var accepted: String?
    package var remedy: String

    /// `agents/a.md:4: temperature "hot" is not a number; accepted: 0 to 2. Remedy: write a number.`
    package var description: String {
        let place = line.map { "\(file):\($0)" } ?? file
        return "\(place): \(message)"
    }

    /// The same without the place: `temperature "hot" is not a number; accepted: 0 to 2. Remedy: write a number.`
    package var message: String {
        let subject = [field, value.map { "\"\($0)\"" }].compactMap { $0 }.joined(separator: " ")
        let found = SettingProblem(problem, accepted: accepted, remedy: remedy)
        return subject.isEmpty ? found.description : "\(subject) \(found)"
    }
}
