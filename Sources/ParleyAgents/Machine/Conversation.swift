internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// The turns before a turn, as a model's conversation has them: one function of the log between two offsets.
///
/// The first run of a turn and every replay fold the same entries by the same rule, because `turn.started` says where the conversation begins.
/// Only completed and interrupted turns are part of it, each with all that was said to it.
struct Conversation: Sendable {
    /// Oldest first.
    private(set) var items: [HistoryItem] = []
    /// Entries up to here have been folded.
    private(set) var upTo: UInt64
    private(set) var byteCount = 0
    private var open: OpenTurn?
    /// Its share of the room for conversations, once it is kept.
    private var share: ConversationBudget.Share?

    private struct OpenTurn {
        var turn: UInt64
        var input: UInt64
        var parts: [Part] = []
        /// The offset of a redirection whose partial answer is in the entries behind it.
        var redirection: UInt64?

        /// In log order, also where an interrupt was applied first: an earlier message joins the next call in its place, see `join`.
        mutating func say(_ offset: UInt64) {
            let before = parts.lastIndex { if case .said(let other) = $0 { other < offset } else { true } }
            parts.insert(.said(offset), at: before.map { $0 + 1 } ?? 0)
        }
    }

    private enum Part: Equatable {
        /// An entry that was applied to the turn.
        case said(UInt64)
        /// The model's text at the time of a redirection.
        case wrote(String)
    }

    /// A conversation that begins behind `offset`.
    init(after offset: UInt64) { upTo = offset }

    /// The offset of the conversation's first input; `nil` while it is empty.
    var first: UInt64? { items.first?.offsets.lowerBound }

    // MARK: Folding

    /// Takes the entries up to `offset`. Cost: reads them once, and one more read for each entry that joined a turn.
    mutating func extend(_ channels: Channels, _ channel: Channel, upTo offset: UInt64) throws(LogError) {
        guard offset > upTo else { return }
        var ended: [(turn: OpenTurn, end: UInt64, output: String)] = []
        var turn = open
        try channels.walk(channel, after: upTo, upTo: offset) { place, frame in
            if let end = Conversation.apply(place, frame, to: &turn) { ended.append(end) }
            return true
        }
        (open, upTo) = (turn, offset)
        for end in ended { add(try Conversation.item(channels, channel, end.turn, end.end, end.output)) }
    }

    /// - Returns: the turn that ended here, if it is part of the conversation.
    private static func apply(
        _ offset: UInt64, _ frame: Frame, to open: inout OpenTurn?
    ) -> (turn: OpenTurn, end: UInt64, output: String)? {
        switch frame.kind {
        case .turnStarted:
            guard let turn = frame.position?.turn else { break }
            open = OpenTurn(turn: turn, input: frame.body["input"]?.string.flatMap { Offset(token: $0)?.value } ?? turn)
        case .receipt:
            guard let turn = open, frame.position?.turn == turn.turn else { break }
            let body = frame.body
            guard body["state"] == "applied", let of = body["of"]?.string.flatMap({ Offset(token: $0)?.value }), of != turn.turn else {
                break
            }
            open?.say(of)
            open?.redirection = of
        case .stepCompleted:
            // The batch that applies a redirection has the partial answers right behind the receipt.
            guard let redirection = open?.redirection else { break }
            let body = frame.body
            // Without a redirection it is what the program says that it is: as a rule the output of an interrupted turn.
            guard body["interrupted_by"]?.string == Offset(redirection).token, body["redirection"] != nil,
                let text = body["text"]?.string, !text.isEmpty
            else { break }
            let place = open?.parts.lastIndex { $0 == .said(redirection) } ?? 0
            open?.parts.insert(.wrote(text), at: place)
        case .turnCompleted, .turnInterrupted:
            defer { open = nil }
            guard let turn = open, turn.turn == frame.position?.turn else { break }
            return (turn, offset, frame.body["output"]?.plainText ?? "")
        case .turnFailed, .turnCancelled: open = nil
        default: break
        }
        return nil
    }

    private static func item(
        _ channels: Channels, _ channel: Channel, _ turn: OpenTurn, _ end: UInt64, _ output: String
    ) throws(LogError) -> HistoryItem {
        var item = HistoryItem(input: try text(channels, channel, turn.input) ?? "", output: output, offsets: turn.input...end)
        for part in turn.parts {
            switch part {
            case .wrote(let text): item.between.append(.assistant(text))
            case .said(let offset):
                guard let text = try text(channels, channel, offset) else { continue }
                item.between.append(.user(text, source: Offset(offset).token))
            }
        }
        return item
    }

    /// The text of an entry for a model; `nil` for one without, such as an approval.
    private static func text(_ channels: Channels, _ channel: Channel, _ offset: UInt64) throws(LogError) -> String? {
        try channels.entry(channel, at: offset) { frame in
            switch frame.kind {
            case .message, .steer: EntryMembers(frame.members).messageText ?? ""
            case .interrupt: EntryMembers(frame.members)["text"]?.string
            default: nil
            }
        }
    }

    private mutating func add(_ item: HistoryItem) {
        items.append(item)
        byteCount += item.byteCount
    }

    // MARK: Its beginning

    /// Drops the oldest turns until it has no more than `bytes`, or only one turn.
    mutating func trim(to bytes: Int) {
        var drop = 0
        while byteCount > bytes, drop < items.count - 1 {
            byteCount -= items[drop].byteCount
            drop += 1
        }
        if drop > 0 { items.removeFirst(drop) }
    }

    /// The conversation of a turn that began with `first`, as its `turn.started` has it.
    func from(_ first: UInt64) -> [HistoryItem] {
        // Inputs are answered in an order of their own: an interrupt comes before messages that wait.
        Array(items.drop { $0.offsets.lowerBound != first })
    }

    /// The last turns before `offset` that have about `bytes`, or a little more. A turn that is open there is folded as far as it has come.
    static func reading(
        _ channels: Channels, _ channel: Channel, before offset: UInt64, bytes: Int
    ) throws(LogError) -> Conversation {
        var (start, size, counted): (UInt64?, Int, Set<UInt64>) = (nil, 0, [])
        var (open, hasEnded): (UInt64?, Bool) = (nil, false)
        try channels.walkBack(channel, from: offset - 1) { place, frame in
            guard let turn = frame.position?.turn else { return true }
            switch frame.kind {
            case .turnCompleted, .turnInterrupted:
                size += frame.payload.count
                counted.insert(turn)
                hasEnded = true
            case .turnFailed, .turnCancelled:
                hasEnded = true
                return true
            // Its input comes before it, and is part of the conversation.
            case .turnStarted where counted.remove(turn) != nil: start = turn
            case .turnStarted where !hasEnded:
                (open, hasEnded) = (place, true)
                return true
            default: return true
            }
            return size < bytes || !counted.isEmpty
        }
        guard let start else { return Conversation(after: (open ?? offset) - 1) }
        var conversation = Conversation(after: start - 1)
        try conversation.extend(channels, channel, upTo: offset - 1)
        conversation.trim(to: bytes)
        return conversation
    }
}

/// How much agents keep of their conversations from turn to turn, all together. A conversation without room is read from the log again at the next
/// turn.
package final class ConversationBudget: Sendable {
    private let bytesMax: Int
    private let used = Atomic<Int>(0)

    package init(bytesMax: Int = 32 << 20) { self.bytesMax = bytesMax }

    var usedBytes: Int { used.load(ordering: .relaxed) }

    /// The bytes of one conversation, as long as it is kept.
    fileprivate final class Share: Sendable {
        private let budget: ConversationBudget
        private let bytes = Atomic<Int>(0)

        init(_ budget: ConversationBudget) { self.budget = budget }

        deinit { budget.used.subtract(bytes.load(ordering: .relaxed), ordering: .relaxed) }

        /// - Returns: whether there is room for so many.
        func resize(to count: Int) -> Bool {
            let before = bytes.exchange(count, ordering: .relaxed)
            return budget.used.add(count - before, ordering: .relaxed).newValue <= budget.bytesMax
        }
    }

    /// The conversation, if there is room for it.
    func keep(_ conversation: Conversation) -> Conversation? { conversation.kept(by: self) }
}

extension Conversation {
    fileprivate func kept(by budget: ConversationBudget) -> Conversation? {
        var kept = self
        let share = share ?? ConversationBudget.Share(budget)
        kept.share = share
        return share.resize(to: byteCount) ? kept : nil
    }
}

/// One earlier turn, as a conversation remembers it.
public struct HistoryItem: Sendable, Equatable {
    /// The text of the input.
    public var input: String
    /// The text of the output.
    public var output: String
    /// The offset of the input, and of the entry that ended the turn.
    package var offsets: ClosedRange<UInt64>
    /// The messages to the turn while it ran, and the model's texts until then, in order.
    package var between: [ModelMessage] = []

    /// The turn as part of a model's conversation: messages and answers. An answer without text is left out.
    public var messages: [ModelMessage] {
        let said = ModelMessage.user(input, source: Offset(offsets.lowerBound).token)
        let answered = output.isEmpty ? [] : [ModelMessage.assistant(output, source: Offset(offsets.upperBound).token)]
        return [said] + between + answered
    }

    var byteCount: Int { input.utf8.count + output.utf8.count + between.reduce(64) { $0 + $1.text.utf8.count + 64 } }
}
