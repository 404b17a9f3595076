import Glibc
import Parley
import Synchronization

/// How many trivial steps a turn is to make.
struct Steps: Codable, Sendable { var count: Int }

/// Makes steps that do nothing, so that what is measured is what a step costs.
struct Stepper: Agent {
    static let kind = "stepper"

    func receive(_ steps: Steps, _ turn: Turn, _ state: inout NoState) async throws -> Int {
        var sum = 0
        for index in 0..<steps.count { sum += try await turn.step("step") { _ in index } }
        return sum
    }
}

/// A number of tokens, and how many a second.
struct Speech: Codable, Sendable {
    var tokens: Int
    var rate: Int
}

/// Streams the answer of a model that says when each of its tokens was made.
struct Talker: Agent {
    static let kind = "talker"

    func receive(_ speech: Speech, _ turn: Turn, _ state: inout NoState) async throws -> Int {
        try await turn.generate("answer", ClockModel(speech: speech), .user("Say what time it is.")).text.utf8.count
    }
}

/// The kind of an agent's wait, for a month.
enum Wait: String, Codable, Sendable { case signal, sleep, approval }

/// Waits, and has nothing else to do.
struct Waiter: Agent {
    static let kind = "waiter"

    func receive(_ wait: Wait, _ turn: Turn, _ state: inout NoState) async throws -> String {
        switch wait {
        case .signal: _ = try await turn.wait(for: "go")
        case .sleep: try await turn.sleep(.seconds(30 * 86_400))
        case .approval: try await turn.approval("pay", of: ["amount": 5])
        }
        return "done"
    }
}

/// How many payments are to be asked for at once.
struct Payments: Codable, Sendable { var count: Int }

/// Asks for each payment, and makes it when it may: the records that an audit is about.
struct Treasurer: Agent {
    static let kind = "treasurer"

    func receive(_ payments: Payments, _ turn: Turn, _ state: inout NoState) async throws -> Int {
        try await turn.map("pay", Array(0..<payments.count)) { amount, turn in
            do { try await turn.approval("payment", of: ["amount": amount]) } catch is ApprovalDenied { return 0 }
            return try await turn.step("transfer", .atMostOnce) { _ in 1 }
        }.reduce(0, +)
    }
}

@main
struct App {
    static func main() async throws { try await serve(Stepper(), Talker(), Waiter(), Treasurer()) }
}
