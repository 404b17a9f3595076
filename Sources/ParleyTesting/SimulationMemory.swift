internal import ParleyAgents
internal import ParleySystem

/// The notes that an agent with typed state is told to remember, and its word on what it remembered.
enum SimulationMemory {
    struct Input: Codable, Sendable {
        var request: String
        /// The note to remember from here on; `nil`: none.
        var note: String?
    }

    struct Output: Codable, Sendable { var saw: String? }

    /// Agents that do what messages for ``kinds`` ask for.
    static var agents: [AnyAgent] { [AnyAgent(Forgetting()), AnyAgent(Defaulting())] }

    /// The kinds, and what their agents remember before they are told anything.
    static let kinds: [(kind: String, initially: String?)] = [("sim-state", nil), ("sim-default", "unset")]

    /// State that encodes to `{}` when there is nothing to remember.
    private struct Forgetting: Agent {
        static let kind = "sim-state"
        struct State: AgentState { var note: String? }

        func receive(_ input: Input, _ turn: Turn, _ state: inout State) async throws -> Output {
            let saw = state.note
            state.note = input.note
            try await turn.sleep(.milliseconds(1))
            return Output(saw: saw)
        }
    }

    /// State whose optional has a default.
    private struct Defaulting: Agent {
        static let kind = "sim-default"
        struct State: AgentState { var note: String? = "unset" }

        func receive(_ input: Input, _ turn: Turn, _ state: inout State) async throws -> Output {
            let saw = state.note
            state.note = input.note
            try await turn.sleep(.milliseconds(1))
            return Output(saw: saw)
        }
    }
}
