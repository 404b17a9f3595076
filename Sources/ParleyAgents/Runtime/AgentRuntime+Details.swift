package import ParleyChannels
package import ParleyLog
package import ParleySystem

/// Which agents a list shows, and what it says of each.
package struct AgentListQuery: Sendable {
    package var kind: String?
    package var state: String?
    package var limit = 100
    /// The agent after which the page begins.
    package var after: String?
    /// Adds when an agent last wrote, how its last turn ended, and what it waits for.
    package var hasDetails = false
    /// Adds how many agents there are in each state.
    package var hasCounts = false
    /// Whether whoever asks may see the agent of that channel.
    package var isShown: @Sendable (_ channelName: String) -> Bool = { _ in true }

    package init() {}

    func shows(_ name: String) -> Bool { (kind == nil || AgentName(channel: name)?.kind == kind) && isShown(name) }
}

extension AgentRuntime {
    /// A count stops here: a list is asked for every few seconds.
    private static let countedMax = 10_000
    /// How far back the details of one agent are looked for, in entries.
    private static let detailEntriesMax = 256

    /// How many agents there are in each state, at most ``countedMax`` of each.
    func counts(_ query: AgentListQuery) throws(LogError) -> JSON {
        var members: [JSON.Member] = []
        for status in AgentStatus.allCases {
            var count = 0
            try AgentIndex.scan(channels.log, [status]) { name, _ in
                if query.shows(name) { count += 1 }
                return count < AgentRuntime.countedMax
            }
            members.append(JSON.Member(status.name, .integer(Int64(count))))
        }
        return .object(members)
    }

    /// What a list says of an agent beside its state. Reads the newest entries only, so that it costs the same however long the channel is.
    func details(of name: String, _ status: AgentStatus) throws(LogError) -> [JSON.Member] {
        guard let channel = try channels.find(name) else { return [] }
        var details = AgentDetails(status)
        var room = AgentRuntime.detailEntriesMax
        try channels.walkBack(channel, from: channel.tail.head) { _, frame in
            room -= 1
            return details.take(frame) && room > 0
        }
        return details.members
    }

    /// What decides what the agent's next turn asks for: `definition` and `sha256`, if a file declares its kind; and `turn`, where the newest
    /// turn began with another one.
    package func definition(of channel: Channel) throws(LogError) -> JSON {
        let agent = AgentName(channel: channel.name).flatMap { self.agent(ofKind: $0.kind) }
        let current = agent?.definition
        var began: (turn: UInt64, name: String)?
        try channels.walkBack(channel, from: channel.tail.head) { _, frame in
            guard frame.kind == .turnStarted, let turn = frame.position?.turn else { return true }
            if let name = frame.body["definition"]?.string, name != current?.sha256 { began = (turn, name) }
            return false
        }
        var turn: JSON?
        if let began, let digest = Bytes(hexadecimal: began.name), let content = try channels.log.get(.big, channel.id.key(digest)) {
            turn = JSON.compact(
                ("turn", .string(Offset(began.turn).token)), ("sha256", .string(began.name)), ("definition", try? JSON.parse(content)))
        }
        return JSON.compact(
            ("agent", .string(channel.name)), ("known", .bool(agent != nil)), ("declared", .bool(current != nil)),
            ("concurrent", agent.map { .string($0.policy.rawValue) }), ("sha256", current.map { .string($0.sha256) }),
            ("definition", current.flatMap { try? JSON.parse($0.content) }), ("turn", turn))
    }
}

/// What the newest entries of an agent say of it, taken from the tail back.
private struct AgentDetails {
    private let status: AgentStatus
    private var updated: Timestamp?
    private var lastTurn: JSON?
    private var waiting: [JSON] = []
    /// Steps of which something newer has been seen.
    private var known: Set<String> = []

    init(_ status: AgentStatus) { self.status = status }

    var members: [JSON.Member] {
        let found: [(String, JSON?)] = [
            ("updated", updated.map { .string($0.description) }), ("last_turn", lastTurn),
            ("waiting_for", waiting.isEmpty ? nil : .array(waiting.reversed())),
        ]
        return found.compactMap { name, value in value.map { JSON.Member(name, $0) } }
    }

    /// Takes the entry before the last one taken; returns whether older ones matter.
    mutating func take(_ frame: Frame) -> Bool {
        if updated == nil { updated = frame.at }
        if frame.kind.endsTurn {
            // What an open turn does says more than how the one before it ended.
            if status == .idle || status == .closed { lastTurn = AgentDetails.end(frame) }
            return false
        }
        if frame.kind == .turnStarted { return false }
        if status == .waiting { takeWait(frame) }
        return status != .running
    }

    private mutating func takeWait(_ frame: Frame) {
        guard let step = frame.position?.step, !step.isEmpty, !known.contains(step) else { return }
        switch frame.kind {
        case .approvalRequested: add(step, frame, "approval", frame.body["action"], due: frame.body["expires_at"])
        case .stepStarted:
            let kind = frame.body["kind"]?.string ?? "step"
            guard ["sleep", "wait"].contains(kind) else { return }
            add(step, frame, kind, frame.body["name"], due: nil)
        case .approvalDecided, .stepCompleted, .stepFailed: known.insert(step)
        default: break
        }
    }

    private mutating func add(_ step: String, _ frame: Frame, _ kind: String, _ name: JSON?, due: JSON?) {
        known.insert(step)
        waiting.append(
            JSON.compact(
                ("step", .string(step)), ("kind", .string(kind)), ("name", name), ("since", frame.at.map { .string($0.description) }),
                ("due", due)))
    }

    private static func end(_ frame: Frame) -> JSON {
        let state =
            switch frame.kind {
            case .turnFailed: "failed"
            case .turnInterrupted: "interrupted"
            case .turnCancelled: "cancelled"
            default: "completed"
            }
        return JSON.compact(
            ("state", .string(state)), ("turn", frame.position.map { .string(Offset($0.turn).token) }),
            ("at", frame.at.map { .string($0.description) }), ("error", state == "failed" ? frame.body["error"] : nil))
    }
}
