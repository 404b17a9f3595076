internal import ParleyChannels
internal import ParleySystem

/// A step as the program asks for it, as data: its ``StepCode`` is what runs.
///
/// It does not change, so that passing it on costs one reference: a step is passed on some twenty times from its start to its end.
final class StepRequest: Sendable {
    let path: String
    let kind: StepKind
    let digest: String?
    /// The place in the program: `File.swift:12`.
    let source: String
    let work: Work
    /// Further members of its start, besides the digest.
    let details: [JSON.Member]
    let origin: Origin

    /// The part of the program that asks for it.
    struct Origin: Sendable, Equatable {
        /// Neither a cancel nor an interrupt reaches it.
        var isShielded = false
        /// It comes from a task that the program has made itself: another one beside it may wait for something outside the turn.
        var isFromOwnTask = false
        /// It compensates what the turn did.
        var isCompensation = false
    }

    init(
        path: String, kind: StepKind, digest: String? = nil, source: String, work: Work, details: [JSON.Member] = [],
        origin: Origin = Origin()
    ) {
        (self.path, self.kind, self.digest, self.source) = (path, kind, digest, source)
        (self.work, self.details, self.origin) = (work, details, origin)
    }

    /// The same step with another work, details or origin.
    func with(work: Work? = nil, details: [JSON.Member]? = nil, origin: Origin? = nil) -> StepRequest {
        StepRequest(
            path: path, kind: kind, digest: digest, source: source, work: work ?? self.work, details: details ?? self.details,
            origin: origin ?? self.origin)
    }

    var isShielded: Bool { origin.isShielded }
    var isFromOwnTask: Bool { origin.isFromOwnTask }
    var isCompensation: Bool { origin.isCompensation }

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

    /// What the step was when it began: it still ends when its timer fires, if it has one, and follows the same channel.
    func restored(_ open: Journal.OpenStep) -> StepRequest {
        switch work {
        case .sleep(let asked): with(work: .sleep(until: open.due ?? asked))
        case .wait(let signal, let match, _): with(work: .wait(signal: signal, match: match, until: open.due))
        case .approval(let action, let arguments, _): with(work: .approval(action: action, arguments: arguments, until: open.due))
        case .follow(let channel, let after, let incarnation, _):
            with(work: .follow(channel: channel, after: after, incarnation: open.followed ?? incarnation, until: open.due))
        case .body, .model: self
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
    var name: String {
        let end = path.utf8.lastIndex(of: UInt8(ascii: "/")).map { path.utf8.index(after: $0) } ?? path.startIndex
        return String(path[end...].prefix { $0 != "#" })
    }
}

extension JSON {
    /// A string as it is, anything else as JSON.
    var plainText: String { string ?? text }
}
