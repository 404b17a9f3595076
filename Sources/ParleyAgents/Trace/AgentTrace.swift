package import ParleyChannels
internal import ParleyLog
package import ParleySystem

/// Selects the turns that a trace shows.
package struct TraceQuery: Sendable {
    /// The offset of one turn's input; `nil` for a page of turns.
    package var turn: UInt64?
    /// How many turns at most.
    package var limit = TraceQuery.limitDefault
    /// Only turns that began before this offset: the `next` of a page.
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
    /// How many steps an answer lists. Turns beyond it are left to the next page; if a single turn has more, its first ones are listed.
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
            let turns = try channels.project(channel, after: turn, upTo: head, TracedTurns { $0.position?.turn == turn })
            if !turns.isEmpty { return try answer(turns, next: nil) }
        } catch {
            throw ChannelError(error)
        }
        let token = Offset(query.turn!).token
        throw ChannelError(
            "turn_not_found", "no turn of '\(channel.name)' has the input \(token): turn is the offset of the message that began it.")
    }

    private func page(_ query: TraceQuery) throws(LogError) -> JSON {
        let before = query.before ?? .max
        let starts = try channels.projectBack(channel, from: min(head, before - min(before, 1)), TurnStarts(limit: query.limit))
        guard let oldest = starts.last else { return try answer([], next: nil) }
        let turns = try channels.project(channel, after: oldest - 1, upTo: head, TracedTurns { $0.offset < before })
        // The first turn is preceded by its message and its receipt.
        return try answer(turns, next: oldest > 3 ? oldest : nil)
    }

    private func answer(_ turns: [TurnTrace], next: UInt64?) throws(LogError) -> JSON {
        var shown: [JSON] = []
        var totals = TraceTotals()
        for turn in turns {
            shown.append(try turn.json(channels, channel))
            totals.add(turn.totals)
        }
        return JSON.compact(
            ("agent", .string(channel.name)), ("at", .string(channels.world.now.description)),
            ("tail_offset", .string(Offset(head).token)), ("turns", .array(shown)), ("totals", totals.json(turns: turns.count)),
            ("next", next.map { .string(Offset($0).token) }))
    }
}

/// Finds where the turns of a page begin, newest first. Reads from the tail back.
private struct TurnStarts: Projection {
    let limit: Int
    private(set) var output: [UInt64] = []
    private(set) var isComplete = false
    var steps = 0

    mutating func apply(_ entry: LogEntry) {
        if entry.kind == .stepStarted { steps += 1 }
        guard entry.kind == .turnStarted else { return }
        guard output.isEmpty || steps <= AgentTrace.stepsMax else { return isComplete = true }
        output.append(entry.offset)
        isComplete = output.count >= limit
    }
}

/// Collects turns from the first one that is wanted until one begins that is not.
private struct TracedTurns: Projection {
    let isWanted: (_ start: LogEntry) -> Bool
    private(set) var output: [TurnTrace] = []
    private(set) var isComplete = false

    mutating func apply(_ entry: LogEntry) {
        guard entry.kind == .turnStarted, let turn = entry.position?.turn else {
            if let last = output.indices.last { output[last].apply(entry) }
            return
        }
        guard isWanted(entry) else { return isComplete = !output.isEmpty }
        output.append(TurnTrace(turn: turn, at: entry.at, stepsMax: output.last?.room ?? AgentTrace.stepsMax))
    }
}

extension Channels {
    /// Returns the record of an entry that a client sent to an agent.
    func input(_ offset: UInt64, of channel: Channel) throws(LogError) -> InputRecord? {
        try entry(channel, at: offset) { InputRecord(LogEntry(offset, $0)) }
    }

    /// Returns the content of a part of a model's request that is named by hash.
    func content(_ hash: String, of channel: Channel) throws(LogError) -> Bytes? {
        guard let digest = Bytes(hexadecimal: hash) else { return nil }
        return try log.get(.big, channel.id.key(digest))
    }
}

/// An entry that a client sent, as traces and audits show it.
struct InputRecord {
    var offset: UInt64
    var at: Timestamp
    var kind: EntryKind
    var body: JSON

    init?(_ entry: LogEntry) {
        guard entry.kind.isInput else { return nil }
        (offset, at, kind, body) = (entry.offset, entry.at, entry.kind, entry.body)
    }

    /// How much of a text is shown: enough to recognise it, the whole is in the channel.
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
    /// Time spent in steps, by kind of work; concurrent work counts twice.
    var modelMilliseconds: Int64 = 0
    var waitingMilliseconds: Int64 = 0
    var otherMilliseconds: Int64 = 0

    /// Counts a step that has ended.
    mutating func add(_ step: StepTrace, until ended: Timestamp) {
        let duration = ended.milliseconds - step.started.milliseconds
        switch step.start.kind {
        case StepKind.model.rawValue: modelMilliseconds += duration
        case _ where step.start.isWait: waitingMilliseconds += duration
        default: otherMilliseconds += duration
        }
        inputTokens += step.result.inputTokens ?? 0
        outputTokens += step.result.outputTokens ?? 0
        recoveredTokens += step.result.recoveredTokens ?? 0
    }

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
