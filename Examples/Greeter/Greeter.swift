import Parley

struct Greeter: Agent {
    static let kind = "greeter"
    struct State: AgentState { var greeted = 0 }  // saved in the batch that ends a turn
    let model: any Model  // dependencies: given, not saved

    func receive(_ name: String, _ turn: Turn, _ state: inout State) async throws -> String {
        let number = state.greeted + 1
        let greeting = try await turn.generate("greet", model, .user("Greet \(name), guest number \(number)."))
        try await turn.sleep(.seconds(60))  // or a month: needs no memory, survives restarts
        try turn.compensate("forget") { _ in print("would forget") }  // should the turn fail or be cancelled
        try await turn.step("note", .atMostOnce) { step in
            print("would note", step.idempotencyKey)  // effects go into steps; each has a stable key and a fence
        }
        state.greeted = number
        return greeting.text
    }
}

@main struct App {
    static func main() async throws { try await serve(Greeter(model: try ConfiguredModel())) }
}
