internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

extension AgentDriver {
    /// The machine's view: the agent's log, and the current state of the node.
    struct View: AgentView {
        private let driver: AgentDriver
        private var runtime: AgentRuntime { driver.runtime }
        private var channel: Channel { driver.channel }

        init(_ driver: AgentDriver) { self.driver = driver }

        var now: Timestamp { runtime.world.now }
        func random() -> UInt64 { runtime.world.random() }
        var isDraining: Bool { runtime.isDraining }
        var isCrowded: Bool { runtime.directory.isCrowded }
        var idleAfter: Duration { runtime.directory.idleAfter }
        var isWritingText: Bool { driver.textsInFlight.load(ordering: .relaxed) > 0 }
        func hasStrayed(turn: UInt64) -> Bool { runtime.programs.hasStrayed(channel.name, turn: turn) }
        var keepsWaiting: Bool { runtime.programs.keepsInMemory(driver.state.agent.kind) }

        func declared() -> (traits: AgentTraits, program: Program) { (newest.traits, Program(receive: newest.receive)) }

        /// The agent as it is declared now, which counts from here on.
        private var newest: AnyAgent {
            let agent = runtime.agent(ofKind: driver.state.agent.kind) ?? driver.state.agent
            driver.state.agent = agent
            return agent
        }

        func interrupt(path: String) -> (members: [(String, JSON?)], last: NewEntry?)? { driver.state.calls[path]?.interrupt() }

        // MARK: The log

        var head: UInt64 { channel.tail.head }
        var isDeleted: Bool { channel.tail.isDeleted }

        func load() throws -> LoadedAgent {
            // The end offset is read before the inbox: an entry that comes later is noticed later, see `takeInput`.
            let head = channel.tail.head
            let leftRunning = try runtime.directory.leftRunning(runtime.channels.log)
            guard let row = try runtime.channels.row(channel)?.agent else { throw ChannelError.notFound(channel.name) }
            let inbox = try self.inbox(after: 0, upTo: head)
            let last = try runtime.channels.log.first(.states, from: channel.id.key, to: channel.id.keyEnd, reversed: true)
            var record = AgentRecord(epoch: row.epoch, saved: try last.map { try JSON.parse(stored: $0.value) })
            try runtime.channels.walkBack(channel, from: head) { offset, frame in
                guard frame.kind.endsTurn else { return true }
                (record.lastEnd, record.lastTurn) = (offset, frame.position?.turn)
                return false
            }
            return LoadedAgent(
                record: record, head: head, inbox: inbox, turn: row.turn, status: row.status,
                wasStopped: runtime.takeUp.hasStopped(channel.name),
                triesStalledAgain: row.status == .stalled && runtime.takeUp.retriesStalled(channel.name),
                hasDrained: runtime.takeUp.hasDrained(channel.id.partition), ranToo: leftRunning.filter { $0 != channel.name })
        }

        func inbox(after: UInt64, upTo head: UInt64) throws -> [Inbox.Entry] {
            var found: [(offset: UInt64, row: InboxRow, isWhole: Bool)] = []
            try runtime.channels.log.scan(.inbox, from: channel.id.key(after + 1), to: channel.id.key(head + 1), reversed: false) {
                key, value in
                if let row = InboxRow(value) { found.append((key.readBigEndian(at: 10), row, InboxRow.isWhole(value))) }
                return true
            }
            return try found.map { offset, row, isWhole in
                var entry = Inbox.Entry(offset: offset, row: row)
                if !isWhole || row.hasOffset, let body = try body(at: offset) {
                    if !isWhole { entry.row = InboxRow(row.kind, body: body, byteCount: 0) }
                    let wanted = body["if_offset"]?.string.flatMap { Offset(token: $0)?.value }
                    entry.isMisplaced = entry.row.hasOffset && wanted != offset - 1
                }
                return entry
            }
        }

        func item(at offset: UInt64) throws -> InboxItem? {
            try runtime.channels.entry(channel, at: offset) {
                InboxItem(offset: offset, kind: $0.kind, at: $0.at ?? Timestamp(milliseconds: 0), body: EntryMembers($0.members))
            }
        }

        func body(at offset: UInt64) throws -> EntryMembers? {
            try runtime.channels.entry(channel, at: offset) { EntryMembers($0.members) }
        }

        func journal(of turn: UInt64) throws -> Journal { try Journal(runtime.channels, channel, turn: turn) }

        /// Journals of earlier versions, and those of agents written in Swift, name no definition: they continue with the program of now.
        func program(of journal: Journal) throws -> Program {
            let agent = newest
            guard let name = journal.start.definition, name != agent.definition?.sha256, let beganWith = agent.beganWith,
                let digest = Bytes(hexadecimal: name), let content = try runtime.channels.log.get(.big, channel.id.key(digest))
            else { return Program(receive: agent.receive) }
            return Program(receive: beganWith(try JSON.parse(content)))
        }

        func decision(of item: InboxItem) throws -> String? {
            guard let name = item.body["approval"]?.string, let turn = Offset(token: String(name.prefix { $0 != "/" })) else { return nil }
            var reason: String?
            try runtime.channels.walk(channel, after: turn.value, upTo: channel.tail.head) { _, frame in
                if frame.kind == .approvalDecided, frame.body["approval"]?.string == name {
                    reason = frame.body["decision"] == "expired" ? "approval_expired" : "already_decided"
                }
                return reason == nil && !(frame.kind.endsTurn && frame.position?.turn == turn.value)
            }
            return reason
        }

        // MARK: Its conversation

        func conversation() throws -> ConversationExtent {
            let (head, bytes) = (channel.tail.head, driver.state.agent.historyBytes)
            // Asked twice for a turn: for its room, and when it begins.
            if let known = driver.state.extent, (known.head, known.bytesMax) == (head, bytes) { return known.extent }
            let conversation = try conversation(before: head + 1)
            let extent = ConversationExtent(first: conversation.first, byteCount: conversation.byteCount)
            driver.state.extent = (head, bytes, extent)
            return extent
        }

        func history(of journal: Journal) throws -> [HistoryItem] {
            guard journal.start.offset > 0 else { return [] }
            guard let first = journal.start.history else { return try conversation(before: journal.start.offset).items }
            var conversation = driver.state.conversation ?? Conversation(after: first - 1)
            try conversation.extend(runtime.channels, channel, upTo: journal.start.offset - 1)
            driver.state.conversation = runtime.memory.conversations.keep(conversation)
            return conversation.from(first)
        }

        /// The completed turns before the entry at `offset`, as many as the agent's conversations use.
        private func conversation(before offset: UInt64) throws -> Conversation {
            let bytes = driver.state.agent.historyBytes
            var conversation =
                try driver.state.conversation ?? Conversation.reading(runtime.channels, channel, before: offset, bytes: bytes)
            try conversation.extend(runtime.channels, channel, upTo: offset - 1)
            conversation.trim(to: bytes)
            driver.state.conversation = runtime.memory.conversations.keep(conversation)
            return conversation
        }

        // MARK: Other channels

        func incarnation(of name: String) throws -> String? { try runtime.channels.find(name)?.id.text }

        func read(_ follow: Follow) throws -> FollowReading { try follow.read(runtime.channels) }
    }
}
