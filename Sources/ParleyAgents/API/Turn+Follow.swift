internal import ParleyChannels
public import ParleySystem

extension Turn {
    /// Follows another channel: its entries become input of this turn, one by one, once each and in order, across every crash.
    ///
    /// ```swift
    /// var progress = try await turn.follow("workflows/42")
    /// while let entry = try await progress.next() { print(entry.value) }
    /// ```
    ///
    /// Waiting needs no memory, but a row on either side. The entries that were read are copied into this channel as the result of a step.
    ///
    /// - Parameters:
    ///   - channel: Its name: `workflows/42`, `agents/<kind>/<id>`.
    ///   - start: Where to begin. The end is where the channel's is when the turn comes here for the first time.
    ///   - name: The name of its steps in the journal.
    /// - Throws: ``StepFailure`` `channel_not_found` when there is none, with the start at the end.
    @concurrent public func follow(
        _ channel: String, from start: FollowStart = .beginning, name: String = "follow", file: StaticString = #fileID, line: UInt = #line
    ) async throws -> Followed {
        guard channel != task.channelName else {
            let error = TurnError(
                "follows_itself", "the agent asked to follow its own channel '\(channel)', in which each entry would cause the next.")
            try await task.refuse(error)
            throw error
        }
        var (after, incarnation): (UInt64, String?) = (0, nil)
        switch start {
        case .beginning: break
        case .after(let token):
            guard let offset = Offset(token: token) else {
                throw TurnError("invalid_offset", "'\(token)' is no offset; use one that an entry or a reader was given.")
            }
            after = offset.value
        case .end:
            let owner = try task.owner()
            let tail = try await step(name, file: file, line: line) { _ in try owner.tail(of: channel) }
            after = (tail["offset"] ?? tail).string.flatMap { Offset(token: $0) }?.value ?? 0
            incarnation = tail["incarnation"]?.string
        }
        return Followed(turn: self, channel: channel, name: name, after: after, incarnation: incarnation, source: "\(file):\(line)")
    }
}

/// Where to begin to follow a channel.
public enum FollowStart: Sendable, Equatable {
    case beginning
    case end
    /// Behind the entry of this offset.
    case after(String)
}

/// A channel that a turn follows.
public struct Followed: Sendable {
    private let turn: Turn
    private let channel: String
    private let name: String
    private let source: String
    private var after: UInt64
    /// The channel that was read of; `nil` before anything was.
    private var incarnation: String?
    private var read: [Entry] = []
    private var hasEnded = false

    public struct Entry: Sendable, Equatable {
        /// Where to continue behind it.
        public var offset: String
        /// A JSON channel's entry; the text of a channel of text; of any other, its bytes in base64.
        public var value: JSON
    }

    init(turn: Turn, channel: String, name: String, after: UInt64, incarnation: String?, source: String) {
        (self.turn, self.channel, self.name, self.after, self.source) = (turn, channel, name, after, source)
        self.incarnation = incarnation
    }

    /// The offset behind the last entry that was given.
    public var offset: String { Offset(after).token }

    /// The next entry, as soon as there is one; `nil` once the channel is closed and everything has been read.
    ///
    /// - Parameter timeout: How long to wait; `nil` waits for as long as it takes.
    /// - Throws: ``StepFailure`` `channel_not_found`, also when the channel was deleted, or `wait_timeout`.
    @concurrent public mutating func next(timeout: Duration? = nil) async throws -> Entry? {
        if read.isEmpty && !hasEnded {
            let until = try await turn.instant(after: timeout)
            let request = StepRequest(
                path: try await turn.path(name), kind: .wait, digest: SHA256.hex(Bytes("\(channel) \(Offset(after))".utf8)), source: source,
                work: .follow(channel: channel, after: after, incarnation: incarnation, until: until),
                details: [JSON.Member("channel", .string(channel)), JSON.Member("after", .string(Offset(after).token))])
            let result = try await turn.perform(request)["result"] ?? .null
            read = (result["entries"]?.array ?? []).map { Entry(offset: $0["offset"]?.string ?? "", value: $0["value"] ?? .null) }
            hasEnded = result["ended"]?.bool ?? false
            incarnation = result["incarnation"]?.string ?? incarnation
        }
        guard !read.isEmpty else { return nil }
        let entry = read.removeFirst()
        after = Offset(token: entry.offset)?.value ?? after
        return entry
    }
}
