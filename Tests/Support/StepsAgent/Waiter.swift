import Parley

/// An agent that lets a person decide.
struct Waiter: Agent {
    static let kind = "waiter"

    struct State: AgentState {}
    struct Order: Codable, Sendable { var what: String }

    func receive(_ text: String, _ turn: Turn, _ state: inout State) async throws -> String {
        try await turn.approval("order", of: Order(what: text))
        return "ordered"
    }
}
