internal import ParleyChannels
internal import ParleySystem

/// A step as the program asks for it.
struct StepRequest: Sendable {
    var path: String
    var kind: StepKind
    var digest: String?
    /// Where in the program: `File.swift:12`.
    var source: String
    var work: Work
    /// What else its start says of it, beside the digest.
    var details: [JSON.Member] = []
    /// Neither a cancel nor an interrupt reaches it.
    var isShielded = false
    /// It takes back what the turn did.
    var isCompensation = false
    /// How many of its attempts have failed so far.
    var failures = 0

    enum Work: Sendable {
        case body(StepContract, RetryPolicy, @Sendable (StepContext) async throws -> JSON)
        case model(any Model, ModelRequest, RetryPolicy)
        case sleep(until: Timestamp)
        /// For a signal of that name whose data has these members.
        case wait(signal: String, match: [JSON.Member], until: Timestamp?)
        case approval(action: String, arguments: JSON, until: Timestamp?)
        /// For entries of another channel behind `after`: the one of that incarnation, where it is known already.
        case follow(channel: String, after: UInt64, incarnation: String?, until: Timestamp?)
    }

    /// When it ends by itself, as its timer has it.
    var due: Timestamp? {
        switch work {
        case .sleep(let instant): instant.clamped
        case .wait(_, _, let instant), .approval(_, _, let instant), .follow(_, _, _, let instant): instant?.clamped
        case .body, .model: nil
        }
    }

    /// The digest of the name of the signal that it waits for.
    var signal: Bytes? { if case .wait(let signal, _, _) = work { InboxRow.digest(name: signal) } else { nil } }

    /// The digest of a model's request as earlier versions computed it.
    var earlierDigest: String? {
        guard case .model(let model, let request, _) = work else { return nil }
        return request.earlierDigest(model.name)
    }

    var isFollow: Bool { if case .follow = work { true } else { false } }

    /// What was asked for, as its start has it.
    var asked: JSON? { digest.map { .object((["sha256": .string($0)] as JSON).members! + details) } }

    var text: String { "\(kind.rawValue) '\(path)'" + (digest.map { " (\($0.prefix(12)))" } ?? "") }
}
