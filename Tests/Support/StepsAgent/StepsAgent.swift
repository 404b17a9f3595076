import Foundation
import Parley

/// An agent whose steps leave a trace outside the log, for tests that kill the process: each run of a step's body appends the step's key to
/// the file `STEPS_FILE`.
struct Stepper: Agent {
    static let kind = "stepper"

    struct State: AgentState {
        var turns = 0
    }

    struct Result: Codable, Sendable {
        var text: String
        var nonces: [String]
        var turns: Int
    }

    let model: any Model
    let file: String

    func receive(_ text: String, _ turn: Turn, _ state: inout State) async throws -> Result {
        var nonces = try await turn.map("gather", [1, 2]) { _, turn in try await note("note", turn) }
        nonces.append(try await note("before", turn))
        let answer = try await turn.generate("answer", model, .user(text)).text
        nonces.append(try await note("after", turn))
        state.turns += 1
        return Result(text: answer, nonces: nonces, turns: state.turns)
    }

    /// Gives something that no second run gives.
    private func note(_ name: String, _ turn: Turn) async throws -> String {
        try await turn.step(name) { [file] step in
            // One write to a file opened for appending: whole, or not there.
            let descriptor = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
            defer { close(descriptor) }
            let line = step.idempotencyKey + "\n"
            guard write(descriptor, line, line.utf8.count) == line.utf8.count else {
                throw StepFailure(code: "steps_file", message: "cannot write '\(file)'", retryable: false)
            }
            return UUID().uuidString
        }
    }
}

@main
struct App {
    static func main() async throws {
        let environment = ProcessInfo.processInfo.environment
        let file = environment["STEPS_FILE"] ?? "/dev/null"
        let model = try ConfiguredModel()
        try await serve(
            Stepper(model: model, file: file),
            Controlled(model: model, trace: Trace(file: file)),
            Waiter(),
            Publisher(model: model, firstStep: environment["PUBLISHER_FIRST_STEP"] ?? "changes"))
    }
}
