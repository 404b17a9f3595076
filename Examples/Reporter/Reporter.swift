import Parley

/// What a person asks for.
struct Assignment: Codable, Sendable {
    var subject: String
    var questions: [String]
}

struct Report: Codable, Sendable {
    var text: String
    var number: Int
}

/// Answers several questions at the same time, waits a moment, and writes a summary: an agent in ordinary Swift.
///
/// Kill the process at any moment: complete answers are not requested again, an unfinished one continues, and each report is counted once.
struct Reporter: Agent {
    static let kind = "reporter"

    struct State: AgentState {
        var reports = 0
    }

    let model: any Model

    func receive(_ assignment: Assignment, _ turn: Turn, _ state: inout State) async throws -> Report {
        let answers = try await turn.map("research", assignment.questions) { question, turn in
            try await turn.generate("answer", model, .user("In one sentence, about \(assignment.subject): \(question)")).text
        }
        // A second here, but it could be a month: a sleeping turn needs neither memory nor this process.
        try await turn.sleep(.seconds(1), name: "let it rest")
        let notes = answers.joined(separator: "\n")
        let summary = try await turn.generate("summary", model, .user("Summarise in two sentences:\n\(notes)"))
        // Effects go into steps, with the step's key, so that the other system recognises a repeat after a crash.
        let number = try await turn.step("number") { [reports = state.reports] _ in reports + 1 }
        state.reports = number
        return Report(text: summary.text, number: number)
    }
}

@main
struct App {
    static func main() async throws {
        try await serve(Reporter(model: try ConfiguredModel()))
    }
}
