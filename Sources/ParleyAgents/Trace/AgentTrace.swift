package import ParleyChannels
internal import ParleyLog
package import ParleySystem

/// Which turns a trace shows.
package struct TraceQuery: Sendable {
    /// The offset of one turn's input; `nil` for a page of turns.
    package var turn: UInt64?
    /// How many turns at most.
    package var limit = TraceQuery.limitDefault
    /// Only turns that began before this offset: what `next` of a page says.
    package var before: UInt64?

    package static let limitDefault = 20
    package static let limitMax = 200

    package init() {}
}

/// The turns of an agent as a tree of what happened in them, read from its log: `GET /v1/agents/<kind>/<id>/trace`.
///
/// A page is found by walking back from the tail as far as its turns reach, looking at nothing but what kind each entry is, and then read
/// forward once. Blocks on the disk: not for event loops.
package struct AgentTrace {
    /// How many steps an answer lists. Turns beyond it are left to the next page; of a turn that alone has more, the first are listed.
    static let stepsMax = 5_000

    private let channels: Channels
    private let channel: Channel
    private let head: UInt64

    package init(_ channels: Channels, _ channel: Channel) {
        self.channels = channels
        self.channel = channel
        head = channel.tail.head
    }

    /// The answer as the route gives it.
    ///
    /// - Throws: ``ChannelError`` with code `turn_not_found`, or that of the log that cannot be read.
    /// - Complexity: O(entries of the turns shown); a single turn is read from its input to the start of the turn after it.
    package func answer(_ query: TraceQuery) throws(ChannelError) -> JSON {
        do throws(LogError) {
            guard let turn = query.turn else { return try page(query) }
            let turns = try read(after: turn, from: turn) { $0.turn == turn }
            if let found = turns.first { return try answer([found], next: nil) }
        } catch {
            throw ChannelError(error)
        }
        let token = Offset(query.turn!).token
        throw ChannelError(
            "turn_not_found", "no turn of '\(channel.name)' has the input \(token): turn is the offset of the message that began it.")
    }

    private func page(_ query: TraceQuery) throws(LogError) -> JSON {
        let starts = try starts(query)
        guard let oldest = starts.last else { return try answer([], next: nil) }
        let before = query.before ?? .max
        let turns = try read(after: oldest - 1, from: oldest) { $0.offset < before }
        // In front of the first turn stand its message and its receipt.
        return try answer(turns, next: oldest > 3 ? oldest : nil)
    }

    /// Where the turns of the page begin, newest first.
    private func starts(_ query: TraceQuery) throws(LogError) -> [UInt64] {
        var starts: [UInt64] = []
        var steps = 0
        try channels.walkBack(channel, from: min(head, query.before.map { $0 - min($0, 1) } ?? head)) { offset, frame in
            if frame.kind == .stepStarted { steps += 1 }
            guard frame.kind == .turnStarted else { return true }
            guard starts.isEmpty || steps <= AgentTrace.stepsMax else { return false }
            starts.append(offset)
            return starts.count < query.limit
        }
        return starts
    }

    /// Reads turns from the one that begins at or after `first`, until one begins that is not `wanted`.
    private func read(
        after offset: UInt64, from first: UInt64, _ wanted: (_ start: (turn: UInt64, offset: UInt64)) -> Bool
    ) throws(LogError) -> [TurnTrace] {
        var turns: [TurnTrace] = []
        var room = AgentTrace.stepsMax
        try channels.walk(channel, after: offset, upTo: head) { place, frame in
            if frame.kind == .turnStarted, let turn = frame.position?.turn {
                guard wanted((turn, place)) else { return turns.isEmpty }
                turns.append(TurnTrace(turn: turn, offset: place, at: frame.at!, stepsMax: room))
            } else if let last = turns.indices.last {
                turns[last].add(place, frame)
                room = turns[last].room
            }
            return true
        }
        return turns
    }

    private func answer(_ turns: [TurnTrace], next: UInt64?) throws(LogError) -> JSON {
        var shown: [JSON] = []
        var totals = TraceTotals()
        for turn in turns {
            shown.append(
                try turn.json(
                    { offset throws(LogError) in try input(offset) },
                    { digest throws(LogError) in
                        guard let digest = Bytes(hexadecimal: digest) else { return nil }
                        return try channels.log.get(.big, channel.id.key(digest))
                    }))
            totals.add(turn.totals)
        }
        return JSON.compact(
            ("agent", .string(channel.name)), ("at", .string(channels.world.now.description)),
            ("tail_offset", .string(Offset(head).token)), ("turns", .array(shown)), ("totals", totals.json(turns: turns.count)),
            ("next", next.map { .string(Offset($0).token) }))
    }

    private func input(_ offset: UInt64) throws(LogError) -> InputRecord? {
        try channels.entry(channel, at: offset) { InputRecord(offset, $0) }
    }
}

/// What somebody sent, as traces and audits show it.
struct InputRecord {
    var offset: UInt64
    var at: Timestamp
    var kind: EntryKind
    var body: JSON

    init?(_ offset: UInt64, _ frame: Frame) {
        guard frame.kind.isInput, let at = frame.at else { return nil }
        (self.offset, self.at, kind, body) = (offset, at, frame.kind, frame.body)
    }

    /// How much of a text is shown: enough to recognise it, the whole stands in the channel.
    private static let textMax = 200

    /// Its members: who sent what when, in short.
    var members: [(String, JSON?)] {
        let token = JSON.string(Offset(offset).token)
        let text = kind == .signal ? nil : body["text"]?.string ?? body["data"]?.text
        return [
            ("offset", token), ("at", .string(at.description)), ("type", .string(kind.name)), ("by", body["by"] ?? ""),
            ("id", body["id"] ?? token), ("text", text.map { .string(String($0.prefix(InputRecord.textMax))) }),
            ("text_bytes", text.map { .integer(Int64($0.utf8.count)) }), ("name", body["name"]), ("approval", body["approval"]),
            ("args_sha256", body["args_sha256"]), ("reason", body["reason"]), ("if_turn", body["if_turn"]),
            ("if_offset", body["if_offset"]),
        ]
    }
}

/// Sums over a turn, or over the turns of a page.
struct TraceTotals {
    var steps = 0
    var attempts = 0
    var failures = 0
    var restarts = 0
    var inputTokens: Int64 = 0
    var outputTokens: Int64 = 0
    var recoveredTokens: Int64 = 0
    /// Time spent in steps by what it was spent on; what runs at once counts twice.
    var modelMilliseconds: Int64 = 0
    var waitingMilliseconds: Int64 = 0
    var otherMilliseconds: Int64 = 0

    mutating func add(_ kind: String, _ duration: Int64) {
        switch kind {
        case StepKind.model.rawValue: modelMilliseconds += duration
        case _ where TraceTotals.isWait(kind): waitingMilliseconds += duration
        default: otherMilliseconds += duration
        }
    }

    /// Whether a step of this kind does nothing but wait.
    static func isWait(_ kind: String) -> Bool { [StepKind.sleep, .wait, .approval].contains { $0.rawValue == kind } }

    mutating func add(_ other: TraceTotals) {
        steps += other.steps
        attempts += other.attempts
        failures += other.failures
        restarts += other.restarts
        inputTokens += other.inputTokens
        outputTokens += other.outputTokens
        recoveredTokens += other.recoveredTokens
        modelMilliseconds += other.modelMilliseconds
        waitingMilliseconds += other.waitingMilliseconds
        otherMilliseconds += other.otherMilliseconds
    }

    func json(turns: Int? = nil) -> JSON {
        JSON.compact(
            ("turns", turns.map { .integer(Int64($0)) }), ("steps", .integer(Int64(steps))), ("attempts", .integer(Int64(attempts))),
            ("failed_attempts", .integer(Int64(failures))), ("restarts", .integer(Int64(restarts))),
            ("input_tokens", .integer(inputTokens)), ("output_tokens", .integer(outputTokens)),
            ("recovered_tokens", .integer(recoveredTokens)), ("model_ms", .integer(modelMilliseconds)),
            ("waiting_ms", .integer(waitingMilliseconds)), ("other_ms", .integer(otherMilliseconds)))
    }
}
