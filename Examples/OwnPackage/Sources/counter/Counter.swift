import Parley

/// Counts the words that it has been told, over all messages and restarts.
struct Counter: Agent {
    static let kind = "counter"
    struct State: AgentState { var words = 0 }

    func receive(_ text: String, _ turn: Turn, _ state: inout State) async throws -> String {
        let count = try await turn.step("count") { _ in text.split(separator: " ").count }
        state.words += count
        return "\(count) words, \(state.words) in all."
    }
}

@main struct App {
    static func main() async throws { try await serve(Counter()) }
}
