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
        seen.store(head, ordering: .relaxed)
        try readInbox(upTo: head)
        let last = try runtime.channels.log.first(.states, from: channel.id.key, to: channel.id.keyEnd, reversed: true)
        state.saved = try last.map { try JSON.parse($0.value) }
        try readLastEnd(upTo: head)
        state.isLoaded = true
        let hasStopped = runtime.hasStopped(channel.name)
        if let turn = row.turn { try takeUp(turn, row.status, hasStopped: hasStopped) }
    }

    private func readInbox(upTo head: UInt64, after: UInt64 = 0) throws {
        var found: [(offset: UInt64, row: InboxRow, isWhole: Bool)] = []
        try runtime.channels.log.scan(.inbox, from: channel.id.key(after + 1), to: channel.id.key(head + 1), reversed: false) {
            key, value in
            if let row = InboxRow(value) { found.append((key.readBigEndian(at: 10), row, InboxRow.isWhole(value))) }
            return true
        }
        for (offset, row, isWhole) in found {
            var entry = Inbox.Entry(offset: offset, row: row)
            if !isWhole || row.hasOffset, let body = try runtime.channels.entry(channel, at: offset, { EntryMembers($0.members) }) {
                if !isWhole { entry.row = InboxRow(row.kind, body: body, byteCount: 0) }
                let wanted = body["if_offset"]?.string.flatMap { Offset(token: $0)?.value }
                entry.isMisplaced = entry.row.hasOffset && wanted != offset - 1
            }
            state.inbox.insert(entry)
        }
    }

    func takeInput(upTo offset: UInt64) throws {
        let before = seen.load(ordering: .relaxed)
        guard offset > before else { return }
        try readInbox(upTo: offset, after: before)
        seen.store(offset, ordering: .relaxed)
    }

    /// When the last turn ended, and which it was.
    private func readLastEnd(upTo head: UInt64) throws {
        try runtime.channels.walkBack(channel, from: head) { offset, frame in
            guard frame.kind.endsTurn else { return true }
            (state.lastEnd, state.lastTurn) = (offset, frame.position?.turn)
            return false
        }
    }
}
