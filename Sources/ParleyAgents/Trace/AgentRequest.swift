package import ParleyChannels
internal import ParleyLog
package import ParleySystem

/// The exact request of one model call, put together from the log: `GET /v1/agents/<kind>/<id>/request`.
///
/// A call's start has only what it adds to an earlier one's, so the chain of these is followed back to a request that is listed whole. Blocks on the
/// disk: not for event loops.
package struct AgentRequest {
    private let channels: Channels
    private let channel: Channel

    package init(_ channels: Channels, _ channel: Channel) {
        self.channels = channels
        self.channel = channel
    }

    /// A model call's start.
    private struct Call {
        var offset: UInt64
        var at: Timestamp
        var position: Position
        var body: JSON
        var request: JSON { body["request"] ?? .null }
    }

    /// The answer as the route gives it.
    ///
    /// - Parameter offset: That of the attempt's `step.started`, as traces have it.
    /// - Throws: ``ChannelError`` with code `step_not_found`, or that of the log that cannot be read.
    /// - Complexity: O(calls that it builds on + messages + the log between the turns that it shows); a call that continues from a prefix reads its turn
    ///   up to there.
    package func answer(_ offset: UInt64) throws(ChannelError) -> JSON {
        do throws(LogError) {
            if let call = try call(at: offset) { return try answer(call) }
        } catch {
            throw ChannelError(error)
        }
        throw ChannelError(
            "step_not_found",
            "no call of a model in '\(channel.name)' begins at \(Offset(offset).token): step is the offset of its step.started, as an attempt of the trace has it."
        )
    }

    private func answer(_ call: Call) throws(LogError) -> JSON {
        var messages: [JSON] = []
        for part in try parts(of: call) { messages.append(try message(part)) }
        let tools = try call.request["tools"]?.string.map { hash throws(LogError) in
            try channels.content(hash, of: channel).flatMap { try? JSON.parse(stored: $0) } ?? .null
        }
        return JSON.compact(
            ("agent", .string(channel.name)), ("turn", .string(Offset(call.position.turn).token)), ("step", .string(call.position.step)),
            ("attempt", .integer(Int64(call.position.attempt))), ("offset", .string(Offset(call.offset).token)),
            ("at", .string(call.at.description)), ("model", call.request["model"]), ("sha256", call.request["sha256"]),
            ("messages", .array(messages)), ("tools", tools), ("options", call.request["options"]),
            ("continues_at", call.body["continues_at"]), ("continuing", try continuing(call).map { .string($0) }))
    }

    private func call(at offset: UInt64) throws(LogError) -> Call? {
        guard offset > 0, offset <= channel.tail.head else { return nil }
        return try channels.entry(channel, at: offset) { frame -> Call? in
            guard frame.kind == .stepStarted, let position = frame.position, let at = frame.at else { return nil }
            let call = Call(offset: offset, at: at, position: position, body: frame.body)
            return call.body["kind"]?.string == StepKind.model.rawValue ? call : nil
        }
    }

    /// All parts of a request, those of the calls that it builds on first.
    private func parts(of call: Call) throws(LogError) -> [JSON] {
        var keep = Int.max
        var groups: [ArraySlice<JSON>] = []
        var next: Call? = call
        while let current = next {
            var own: [JSON] = []
            for part in current.request["parts"]?.array ?? [] { own += try expanded(part) }
            // Only the kept part of the requests below counts, by the one that keeps the least.
            let below = Int(current.request["keep"]?.integer ?? 0)
            groups.append(own.prefix(max(0, keep - below)))
            keep = min(keep, below)
            let base = current.request["base"]?.string.flatMap { Offset(token: $0)?.value }
            // A base comes before the requests that build on it, so this ends.
            guard let base, base < current.offset, keep > 0 else { break }
            next = try self.call(at: base)
            if next == nil { groups.append([["missing": true]]) }
        }
        return groups.reversed().flatMap { $0 }
    }

    /// A part for each message.
    private func expanded(_ part: JSON) throws(LogError) -> [JSON] {
        guard let turns = EarlierTurns(part: part) else { return [part] }
        guard let messages = try turns.messages(channels, channel) else {
            return [["missing": true, "from": part["from"]!, "to": part["to"]!]]
        }
        return messages.map { message in
            JSON.compact(
                ("role", .string(message.role.rawValue)), ("text", .string(message.text)), ("offset", message.source.map { .string($0) }))
        }
    }

    private func message(_ part: JSON) throws(LogError) -> JSON {
        if part["text"] != nil || part["missing"] != nil { return part }
        let role = part["role"] ?? .null
        if let token = part["offset"]?.string {
            let text = try Offset(token: token).flatMap { offset throws(LogError) in try self.text(at: offset.value) }
            return JSON.compact(
                ("role", role), ("text", text.map { .string($0) }), ("offset", part["offset"]), ("missing", text == nil ? true : nil))
        }
        guard let hash = part["sha256"]?.string, let content = try channels.content(hash, of: channel) else {
            return JSON.compact(("role", role), ("sha256", part["sha256"]), ("missing", true))
        }
        guard let form = AgentRequest.form(part, content) else { return ["role": role, "text": .string(content.text)] }
        return .object([JSON.Member("role", role)] + form)
    }

    /// The members of a message besides its text; `nil` when it is a text alone. Journals of earlier versions do not say which it is.
    private static func form(_ part: JSON, _ content: Bytes) -> [JSON.Member]? {
        let mayHaveForm = part["json"]?.bool ?? ["assistant", "tool"].contains(part["role"]?.string)
        guard mayHaveForm, let value = try? JSON.parse(content), let members = value.members, value["text"]?.string != nil else {
            return nil
        }
        return part["json"] != nil || ["tool_calls", "tool_call_id", "returned"].contains { value[$0] != nil } ? members : nil
    }

    /// The text of what was said in the channel, as it goes into a request.
    private func text(at offset: UInt64) throws(LogError) -> String? {
        guard offset > 0 else { return nil }
        return try channels.entry(channel, at: offset) { frame -> String? in
            frame.kind.isInput
                ? EntryMembers(frame.members).messageText ?? "" : (frame.body["output"] ?? frame.body["text"])?.plainText ?? ""
        }
    }

    /// The beginning of the answer that was sent along, for an attempt that continues.
    private func continuing(_ call: Call) throws(LogError) -> String? {
        guard let count = call.body["continues_at"]?.integer.map({ Int($0) }), count > 0 else { return nil }
        var (open, sealed) = (Journal.OpenStep(), nil as Bytes?)
        try channels.walk(channel, after: call.position.turn, upTo: channel.tail.head) { offset, frame in
            guard let place = frame.position, place.turn == call.position.turn, place.step == call.position.step else { return true }
            switch frame.kind {
            case .stepStarted where offset < call.offset: open.begin(place.attempt, continuesAt: frame.body["continues_at"]?.integer)
            case .text where offset < call.offset: if let text = frame.text { open.text.add(text) }
            // Streamed text may have been trimmed since; then the result has it.
            case .stepCompleted: sealed = frame.body["text"]?.string.map { Bytes($0.utf8) }
            default: break
            }
            return offset < call.offset || open.text.text.count < count && sealed == nil
        }
        let text = open.text.text.count >= count ? open.text.text : sealed ?? []
        guard text.count >= count else { return nil }
        let saved = Bytes(text.prefix(count))
        return Bytes(saved.prefix(ModelAttempt.prefixCount(of: saved))).text
    }
}
