internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// What an agent reads from the log when it comes into memory, and when input comes.
extension Activation {
    func load() throws {
        // First the head, then the inbox: what comes later is noticed later, see `takeInput`.
        let head = channel.tail.head
        guard let row = try runtime.channels.row(channel) else { throw ChannelError.notFound(channel.name) }
        state.epoch = row.epoch
        state.isStalled = row.status == .stalled && !runtime.retriesStalled(channel.name)
        seen.store(head, ordering: .relaxed)
        state.inbox = try readInbox(upTo: head)
        let last = try runtime.channels.log.first(.states, from: channel.id.key, to: channel.id.keyEnd, reversed: true)
        state.saved = try last.map { try JSON.parse($0.value) }
        state.history = try readHistory(upTo: head, before: row.turn)
        state.isLoaded = true
        if let turn = row.turn, !state.isStalled { try recover(turn, row.status) }
    }

    private func readInbox(upTo head: UInt64, after: UInt64 = 0) throws -> [InboxItem] {
        var offsets: [UInt64] = []
        try runtime.channels.log.scan(.inbox, from: channel.id.key(after + 1), to: channel.id.key(head + 1), reversed: false) { key, _ in
            offsets.append(key.readBigEndian(at: 10))
            return true
        }
        return try offsets.compactMap { offset in
            try runtime.channels.entry(channel, at: offset) {
                InboxItem(offset: offset, kind: $0.kind, at: $0.at ?? Timestamp(milliseconds: 0), body: $0.body)
            }
        }
    }

    func takeInput(upTo offset: UInt64) throws {
        let before = seen.load(ordering: .relaxed)
        guard offset > before else { return }
        state.inbox += try readInbox(upTo: offset, after: before)
        seen.store(offset, ordering: .relaxed)
    }

    /// The completed turns before the unfinished one, from the end of the log back, as much as a conversation can use.
    private func readHistory(upTo head: UInt64, before turn: UInt64?) throws -> [HistoryItem] {
        var items: [HistoryItem] = []
        var outputs: [UInt64: (end: UInt64, text: String)] = [:]
        var bytes = 0
        try runtime.channels.walkBack(channel, from: head) { offset, frame in
            if frame.kind.endsTurn, offset > state.lastEnd { (state.lastEnd, state.lastTurn) = (offset, frame.position?.turn) }
            switch frame.kind {
            case .turnCompleted, .turnInterrupted:
                if let position = frame.position, position.turn != turn {
                    outputs[position.turn] = (offset, frame.body["output"]?.plainText ?? "")
                }
            case .message, .steer:
                guard let output = outputs.removeValue(forKey: offset) else { break }
                let item = HistoryItem(input: frame.body.messageText, output: output.text, offsets: offset...output.end)
                bytes += item.byteCount
                items.append(item)
            default: break
            }
            return bytes < Activation.historyBytesMax
        }
        return items.reversed()
    }

    /// How much of the conversation an agent keeps in memory; a model's context holds less.
    private static let historyBytesMax = 256 << 10

    func remember(_ item: HistoryItem) {
        state.history.append(item)
        var bytes = state.history.reduce(0) { $0 + $1.byteCount }
        while bytes > Activation.historyBytesMax, state.history.count > 1 { bytes -= state.history.removeFirst().byteCount }
    }
}
