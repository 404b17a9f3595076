import Foundation
import Parley

/// An agent whose message says what it is to do, for tests that talk to it meanwhile: operations, each a word and the name of the step.
///
/// | operation | what it does |
/// |---|---|
/// | `note`, `once` | a step that leaves its trace; `once` runs at most once |
/// | `hold` | a step that waits until it is cancelled |
/// | `gate` | a step that waits until the file `<STEPS_FILE>.<name>` is there |
/// | `print` | a step that prints its name |
/// | `flaky` | a step whose first two attempts fail |
/// | `dies` | a step that kills the process when it runs for the first time |
/// | `block`, `stuck` | a step, or the turn itself, that blocks its thread until the file is there |
/// | `nap`, `main` | the turn itself waits a moment; it does something on the main actor, and a step, too |
/// | `spin` | waits for a signal again and again, whatever that throws |
/// | `match` | waits for a signal whose data has the order `"42"` |
/// | `model`, `sleep`, `wait`, `approval`, `expiring` | what the turn has for that; an `expiring` approval is asked for one second |
///
/// The sleeps here are those of an author's operation that waits or blocks: no test waits by them.
struct Controlled: Agent {
    static let kind = "controlled"

    struct Plan: Codable, Sendable { var operations: [String] }

    struct Result: Codable, Sendable { var gave: [Gave] }

    /// The result of an operation; for a model also the messages that joined its request.
    struct Gave: Codable, Sendable {
        var step: String
        var text: String
        var redirection: String?
        var steers: [String]?
    }

    let model: any Model
    let trace: Trace

    func receive(_ plan: Plan, _ turn: Turn, _ state: inout NoState) async throws -> Result {
        var gave: [Gave] = []
        for operation in plan.operations {
            let words = operation.split(separator: " ").map(String.init)
            do {
                gave.append(try await perform(words[0], words[1], turn))
            } catch let error as Interrupted where error.redirection != nil {
                gave.append(Gave(step: words[1], text: "interrupted", redirection: error.redirection))
            } catch let error as ApprovalDenied {
                return Result(gave: gave + [Gave(step: words[1], text: "denied by \(error.by)")])
            } catch is ApprovalExpired {
                return Result(gave: gave + [Gave(step: words[1], text: "expired")])
            } catch let failure as StepFailure where failure.code == "outcome_unknown" {
                gave.append(Gave(step: words[1], text: failure.code))
            }
        }
        return Result(gave: gave)
    }

    private func perform(_ operation: String, _ name: String, _ turn: Turn) async throws -> Gave {
        switch operation {
        case "model":
            let answer = try await turn.generate(name, model, .user("Write."))
            return Gave(step: name, text: answer.text, redirection: answer.redirection, steers: answer.steers)
        case "sleep":
            try await turn.sleep(.seconds(30 * 86_400), name: name)
            return Gave(step: name, text: "slept")
        case "wait": return Gave(step: name, text: "\(try await turn.wait(for: name))")
        case "match": return Gave(step: name, text: try await turn.wait(for: name, match: ["order": "42"]).text)
        case "stuck":
            trace.block(until: name)
            return Gave(step: name, text: "free")
        case "nap":
            try await Task.sleep(for: .milliseconds(50))
            return Gave(step: name, text: "napped")
        case "main":
            let ownThread = await MainActor.run { "turn" }
            return Gave(step: name, text: ownThread + " " + (try await turn.step(name) { _ in await MainActor.run { "body" } }))
        case "spin": while true { if let data = try? await turn.wait(for: name) { return Gave(step: name, text: data.text) } }
        case "approval": return Gave(step: name, text: try await turn.approval(name, of: ["amount": 5]))
        case "expiring": return Gave(step: name, text: try await turn.approval(name, of: ["amount": 5], expires: .seconds(1)))
        default: return Gave(step: name, text: try await step(operation, name, turn))
        }
    }

    private func step(_ operation: String, _ name: String, _ turn: Turn) async throws -> String {
        let retry = RetryPolicy(initialInterval: .milliseconds(50))
        return try await turn.step(name, operation == "once" ? .atMostOnce : .atLeastOnce, retry: retry) { [trace] step in
            let isFirst = !trace.has(step.idempotencyKey)
            try trace.add(step.idempotencyKey)
            switch operation {
            case "hold": try await Task.sleep(for: .seconds(86_400))
            case "block": trace.block(until: name)
            case "gate": while !trace.isOpen(name) { try await Task.sleep(for: .milliseconds(2)) }
            case "print": print(name)
            case "flaky" where step.attempt < 3: throw StepFailure(code: "flaky", message: "not yet", retryable: true)
            case "dies" where isFirst:
                // The client that approved it is answered first.
                try await Task.sleep(for: .milliseconds(50))
                kill(getpid(), SIGKILL)
            default: break
            }
            return operation
        }
    }
}

/// The trace that the bodies of steps leave outside the log: a line with its key for each run.
struct Trace: Sendable {
    let file: String

    func add(_ key: String) throws {
        // One write to a file opened for appending: whole, or not there.
        let descriptor = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        defer { close(descriptor) }
        let line = key + "\n"
        guard write(descriptor, line, line.utf8.count) == line.utf8.count else {
            throw StepFailure(code: "steps_file", message: "cannot write '\(file)'", retryable: false)
        }
    }

    func has(_ key: String) -> Bool {
        let text = (try? String(contentsOf: URL(filePath: file), encoding: .utf8)) ?? ""
        return text.split(separator: "\n").contains { $0 == key }
    }

    func block(until gate: String) { while !isOpen(gate) { usleep(2_000) } }

    func isOpen(_ gate: String) -> Bool { access("\(file).\(gate)", F_OK) == 0 }
}
