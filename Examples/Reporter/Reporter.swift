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
/// Kill the process anywhere: answers that were complete are not bought again, the one that was being written goes on, and the number
/// of the report counts each report once.
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
        // A wait of a second here, of a month in earnest: it needs neither memory nor this process.
        try await turn.sleep(.seconds(1), name: "let it rest")
        let notes = answers.joined(separator: "\n")
        let summary = try await turn.generate("summary", model, .user("Summarise in two sentences:\n\(notes)"))
        // Whatever acts on the world goes into a step, and hands on its key, so that a repeat after a crash is recognised.
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
