package import ParleyChannels
package import ParleyLog
package import ParleySystem

extension AgentRuntime {
    /// The state of an agent, as `GET /v1/agents/<kind>/<id>` shows it; `nil` if the agent was never named. Reads the log: any thread but a loop's.
    package func status(of channelName: String) throws(LogError) -> JSON? {
        guard let name = AgentName(channel: channelName), let channel = try channels.find(channelName), let row = try channels.row(channel),
            let agent = row.agent
        else { return nil }
        var undecided = 0
        try channels.log.scan(.inbox, from: channel.id.key, to: channel.id.keyEnd, reversed: false) { _, _ in
            undecided += 1
            return undecided < 1_000
        }
        var members: [(String, JSON?)] = [
            ("agent", .string(channelName)), ("kind", .string(name.kind)), ("id", .string(name.id)), ("state", .string(agent.status.name)),
            ("turn", agent.turn.map { .string(Offset($0).token) }), ("epoch", .integer(Int64(agent.epoch))),
            ("created", .string(row.created.description)), ("tail_offset", .string(Offset(channel.tail.head).token)),
            ("undecided", .integer(Int64(undecided))), ("in_memory", .bool(isActive(channelName))),
        ]
        if let turn = agent.turn {
            let journal = try Journal(channels, channel, turn: turn)
            members.append(("restarts", .integer(Int64(journal.restarts))))
            members.append(("since", .string(journal.start.at.description)))
            members.append(("waiting_for", .array(try waits(channel, journal))))
        }
        if agent.status == .stalled || agent.status == .parked, let halt = try lastHalt(channel) {
            members += ["reason", "message", "remedy"].map { ($0, halt.body[$0]) }
            members.removeAll { $0.0 == "since" }
            members.append(("since", .string(halt.at.description)))
            if agent.status == .stalled { members.append(("stalled", halt.body)) }
        }
        members.append(("queued", try queued(channel, agent)))
        return .object(members.compactMap { name, value in value.map { JSON.Member(name, $0) } })
    }

    /// The entry that stalled or parked the agent.
    private func lastHalt(_ channel: Channel) throws(LogError) -> (body: JSON, at: Timestamp)? {
        var found: (body: JSON, at: Timestamp)?
        try channels.walkBack(channel, from: channel.tail.head) { _, frame in
            if frame.kind == .agentStalled || frame.kind == .agentParked, let at = frame.at { found = (frame.body, at) }
            return found == nil
        }
        return found
    }

    /// The messages that wait, and what for: the turn that runs, or a person. `nil`: none does.
    private func queued(_ channel: Channel, _ agent: ChannelRow.AgentPart) throws(LogError) -> JSON? {
        guard agent.turn != nil else { return nil }
        var (first, count): (UInt64?, Int64) = (nil, 0)
        try channels.log.scan(.inbox, from: channel.id.key, to: channel.id.keyEnd, reversed: false) { key, value in
            if value.first == EntryKind.message.rawValue {
                if first == nil { first = key.readBigEndian(at: 10) }
                count += 1
            }
            return count < 1_000
        }
        guard let first, let at = try channels.entry(channel, at: first, { $0.at }) ?? nil else { return nil }
        return ["reason": .string(agent.status.name), "since": .string(at.description), "ahead": .integer(count)]
    }

    /// The agents, ordered by partition and then by age whatever they do, in pages: `{agents: [{agent, state}], next, counts}`. Reads the log.
    package func list(_ query: AgentListQuery) throws(LogError) -> JSON {
        try channels.requireAllOpen()
        let statuses = query.state.map { state in AgentStatus.allCases.filter { $0.name == state } } ?? AgentStatus.allCases
        var agents: [(row: [JSON.Member], name: String, status: AgentStatus)] = []
        var next: String?
        try AgentIndex.list(channels.log, statuses, after: query.after) { name, status in
            guard let agent = AgentName(channel: name), query.shows(name) else { return true }
            guard agents.count < query.limit else {
                next = agents.last?.name
                return false
            }
            let row = [("agent", name), ("kind", agent.kind), ("id", agent.id), ("state", status.name)]
            agents.append((row.map { JSON.Member($0, .string($1)) }, name, status))
            return true
        }
        for index in agents.indices {
            let (name, status) = (agents[index].name, agents[index].status)
            if status == .stalled || status == .parked { agents[index].row += try reason(of: name) }
            if query.hasDetails { agents[index].row += try details(of: name, status) }
        }
        return JSON.compact(
            ("agents", .array(agents.map { .object($0.row) })), ("next", next.map { .string($0) }),
            ("counts", query.hasCounts ? try counts(query) : nil))
    }

    /// Why an agent needs a person, and since when. Cost: reads back to where it stopped.
    private func reason(of name: String) throws(LogError) -> [JSON.Member] {
        guard let channel = try channels.find(name), let halt = try lastHalt(channel) else { return [] }
        return [JSON.Member("reason", halt.body["reason"] ?? .null), JSON.Member("since", .string(halt.at.description))]
    }

    /// Tells what became of the input at `offset`: the entry that ended the turn which it began or joined, or the receipt that says it did
    /// neither; nothing while it is open.
    ///
    /// - Parameter tell: Is told about how many bytes the entry has, and gets its JSON if there is room for that.
    /// - Returns: The turn that the input has joined, for as long as that is open.
    package func outcome(
        of offset: Offset, in channelName: String, tell: (_ byteCount: Int, _ json: () -> Bytes) -> Void
    ) throws(LogError) -> UInt64? {
        guard let channel = try channels.find(channelName) else { return nil }
        var turn = offset.value
        var end: UInt64?
        try channels.walk(channel, after: offset.value, upTo: channel.tail.head) { place, frame in
            let decides = frame.kind == .receipt && frame.body["of"]?.string == offset.token
            if decides, let joined = frame.position?.turn { turn = joined }
            let isOfTurn = frame.position?.turn == turn
            if isOfTurn && frame.kind.endsTurn || decides && frame.position == nil {
                end = place
                return false
            }
            if isOfTurn, [.agentStalled, .agentParked].contains(frame.kind) { end = place }
            // It was taken up again.
            if isOfTurn, [.agentResumed, .supervision].contains(frame.kind) { end = nil }
            return true
        }
        guard let end else { return turn == offset.value ? nil : turn }
        try channels.entry(channel, at: end) { frame in
            tell(frame.payload.count) {
                var bytes = Bytes()
                frame.writeJSON(offset: end, owner: channelName, to: &bytes)
                return bytes
            }
        }
        return nil
    }
}

extension AgentRuntime {
    /// The number of steps whose names and details a status lists.
    private static let namedStepsMax = 256
    /// Longer arguments are left out, and so are those without room beside others.
    private static let (argumentBytesMax, allArgumentBytesMax) = (4 << 10, 64 << 10)

    /// The waits of the turn, as its status shows them.
    private func waits(_ channel: Channel, _ journal: Journal) throws(LogError) -> [JSON] {
        var (waits, room): ([JSON], Int) = ([], AgentRuntime.allArgumentBytesMax)
        for start in journal.starts {
            guard let open = journal.open[start.path] else { continue }
            var members: [(String, JSON?)] = [
                ("step", .string(start.path)), ("kind", .string(start.kind.rawValue)), ("attempt", .integer(Int64(open.attempt))),
                ("since", .string(start.at.description)), ("due", open.due.map { .string($0.description) }),
                ("retry_at", open.retryAt.map { .string($0.description) }),
            ]
            if waits.count < AgentRuntime.namedStepsMax { members += try asked(channel, start, &room) }
            waits.append(JSON.compact(members))
        }
        return waits
    }

    /// The name of a step, and the details of a wait or an approval.
    private func asked(_ channel: Channel, _ start: Journal.Start, _ room: inout Int) throws(LogError) -> [(String, JSON?)] {
        // The request to a person comes right after the start.
        let place = start.kind == .approval ? start.offset + 1 : start.offset
        guard let body = try channels.entry(channel, at: place, { $0.body }) else { return [] }
        guard start.kind == .approval else {
            return [("name", body["name"]), ("match", body["request"]?["match"]), ("channel", body["request"]?["channel"])]
        }
        let arguments = body["args"].flatMap { arguments in
            let count = arguments.bytes.count
            guard count <= min(room, AgentRuntime.argumentBytesMax) else { return nil as JSON? }
            room -= count
            return arguments
        }
        return [("name", body["action"]), ("args", arguments)]
    }
}
