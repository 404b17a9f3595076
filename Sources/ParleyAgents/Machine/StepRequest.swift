internal import ParleyChannels
internal import ParleySystem

/// A step as the program asks for it, as data: its ``StepCode`` is what runs.
struct StepRequest: Sendable {
    var path: String
    var kind: StepKind
    var digest: String?
    /// The place in the program: `File.swift:12`.
    var source: String
    var work: Work
    /// Further members of its start, besides the digest.
    var details: [JSON.Member] = []
    /// Neither a cancel nor an interrupt reaches it.
    var isShielded = false
    /// It comes from a task that the program has made itself: another one beside it may wait for something outside the turn.
    var isFromOwnTask = false
    /// It compensates what the turn did.
    var isCompensation = false

    enum Work: Sendable {
        case body(StepContract, RetryPolicy)
        case model(ModelTraits, ModelRequest, RetryPolicy)
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

    /// Restores what the step was when it began: it still ends when its timer fires, if it has one, and follows the same channel.
    mutating func keep(_ open: Journal.OpenStep) {
        switch work {
        case .sleep(let asked): work = .sleep(until: open.due ?? asked)
        case .wait(let signal, let match, _): work = .wait(signal: signal, match: match, until: open.due)
        case .approval(let action, let arguments, _): work = .approval(action: action, arguments: arguments, until: open.due)
        case .follow(let channel, let after, let incarnation, _):
            work = .follow(channel: channel, after: after, incarnation: open.followed ?? incarnation, until: open.due)
        case .body, .model: break
        }
    }

    /// The digest of the name of the signal that it waits for.
    var signal: Bytes? { if case .wait(let signal, _, _) = work { InboxRow.digest(name: signal) } else { nil } }

    /// The digest of a model's request as earlier versions computed it.
    var earlierDigest: String? {
        guard case .model(let model, let request, _) = work else { return nil }
        return request.earlierDigest(model.name)
    }

    var isModel: Bool { if case .model = work { true } else { false } }

    /// The same over all its attempts.
    func idempotencyKey(_ channelName: String, _ turn: UInt64) -> String { StepRequest.idempotencyKey(channelName, turn, path) }

    static func idempotencyKey(_ channelName: String, _ turn: UInt64, _ path: String) -> String { "\(channelName)/\(Offset(turn))/\(path)" }

    var isFollow: Bool { if case .follow = work { true } else { false } }

    /// The details of the request, as the step's start records them.
    var asked: JSON? {
        let members = (digest.map { [JSON.Member("sha256", .string($0))] } ?? []) + details
        return members.isEmpty ? nil : .object(members)
    }

    var text: String { "\(kind.rawValue) '\(path)'" + (digest.map { " (\($0.prefix(12)))" } ?? "") }
}

/// The traits of a model that decisions depend on.
struct ModelTraits: Sendable {
    /// The name as in the journal.
    var name: String
    var continues: Continuation

    init(_ model: any Model) { (name, continues) = (model.name, model.continues) }
}

/// The code of a step: it stays with the program that asked for it.
enum StepCode: Sendable {
    case body(@Sendable (StepContext) async throws -> JSON)
    case model(any Model)

    static func giving(nothing body: @escaping @Sendable (StepContext) async throws -> Void) -> StepCode {
        .body { context in
            try await body(context)
            return .null
        }
    }
}

extension StepRequest {
    /// The last segment of its path, without its number.
    var name: String { String(path.split(separator: "/").last?.prefix { $0 != "#" } ?? "") }
}

extension JSON {
    /// A string as it is, anything else as JSON.
    var plainText: String { string ?? text }
}
