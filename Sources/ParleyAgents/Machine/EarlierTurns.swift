internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// Turns of the conversation, one after another, with all their messages: two offsets tell them, because the log between the two is folded to the
/// same messages whenever it is read.
struct EarlierTurns {
    /// The offset of the first turn's input, and of the entry that ended the last turn.
    var offsets: ClosedRange<UInt64>
    var messageCount: Int

    /// Fewer messages are listed one by one: they are short enough, and read without the log before them.
    private static let messageCountMin = 8

    /// The turns that `messages` begin with; `nil` if they begin with something else, or if it is not worth it.
    init?(beginning messages: ArraySlice<ModelMessage>, in history: [HistoryItem]) {
        guard let first = messages.first.flatMap({ EarlierTurns.index(of: $0, in: history) }) else { return nil }
        var count = 0
        var end: UInt64?
        for item in history[first...] {
            let turn = item.messages
            guard messages.dropFirst(count).prefix(turn.count).elementsEqual(turn) else { break }
            count += turn.count
            end = item.offsets.upperBound
        }
        guard let end, count >= EarlierTurns.messageCountMin else { return nil }
        (offsets, messageCount) = (history[first].offsets.lowerBound...end, count)
    }

    /// The index of the turn whose input the message is. Inputs are decided in log order, so a binary search finds it.
    private static func index(of message: ModelMessage, in history: [HistoryItem]) -> Int? {
        guard message.role == .user, let offset = message.source.flatMap({ Offset(token: $0)?.value }) else { return nil }
        var (low, high) = (0, history.count)
        while low < high {
            let middle = (low + high) / 2
            if history[middle].offsets.lowerBound < offset { low = middle + 1 } else { high = middle }
        }
        return low < history.count && history[low].offsets.lowerBound == offset ? low : nil
    }

    /// The turns as a request's journal lists them.
    var part: JSON {
        [
            "from": .string(Offset(offsets.lowerBound).token), "to": .string(Offset(offsets.upperBound).token),
            "count": .integer(Int64(messageCount)),
        ]
    }

    /// `nil` for a part that lists one message.
    init?(part: JSON) {
        guard let from = part["from"]?.string.flatMap({ Offset(token: $0)?.value }), from > 0,
            let to = part["to"]?.string.flatMap({ Offset(token: $0)?.value }), from <= to, let count = part["count"]?.integer
        else { return nil }
        (offsets, messageCount) = (from...to, Int(count))
    }

    /// Their messages; `nil` if the log does not have all of them any more. Cost: reads the log between the two offsets.
    func messages(_ channels: Channels, _ channel: Channel) throws(LogError) -> [ModelMessage]? {
        var conversation = Conversation(after: offsets.lowerBound - 1)
        try conversation.extend(channels, channel, upTo: offsets.upperBound)
        // Between an input and its turn, turns of earlier inputs may have ended.
        let messages = conversation.items.drop { $0.offsets.lowerBound != offsets.lowerBound }.flatMap(\.messages)
        return messages.count == messageCount ? messages : nil
    }
}
