package import ParleyChannels
package import ParleyLog
package import ParleySystem
internal import Synchronization

/// Selects the agents that a list shows, and how much it shows of each.
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
    /// Whether the caller may see the agent of that channel.
    package var isShown: @Sendable (_ channelName: String) -> Bool = { _ in true }

    package init() {}

    func shows(_ name: String) -> Bool { (kind == nil || AgentName(channel: name)?.kind == kind) && isShown(name) }
}

extension AgentRuntime {
    /// A count stops here: a list is asked for every few seconds.
    private static let countedMax = 10_000
    /// How far back the end of the last turn is looked for, in entries, and what an open one waits for.
    private static let detailEntriesMax = 256
    private static let turnEntriesMax = 65_536

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

    /// The fields of a listed agent besides its state.
    ///
    /// Reads what is new since it was asked last, the first time the whole turn: one that runs writes much behind what it waits for.
    func details(of name: String, _ status: AgentStatus) throws(LogError) -> [JSON.Member] {
        guard let channel = try channels.find(name) else { return [] }
        let head = channel.tail.head
        var details = AgentDetails(status, known: status.hasOpenTurn ? directory.listed[channel.id] : nil)
        var room = status.hasOpenTurn ? AgentRuntime.turnEntriesMax : AgentRuntime.detailEntriesMax
        try channels.walkBack(channel, from: head) { offset, frame in
            room -= 1
            return details.take(offset, frame) && room > 0
        }
        if room == 0 { details.forgetKnown() }
        directory.listed[channel.id] = status.hasOpenTurn ? OpenWaits(upTo: head, waits: details.waits) : nil
        return details.members
    }

    /// Returns the data that determines the agent's next turn: `definition` and `sha256`, if a file declares its kind; and `turn`, where the newest
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

/// The waits of a turn, as far as the log has been read.
struct OpenWaits: Sendable {
    var upTo: UInt64 = 0
    /// Oldest first.
    var waits: [Wait] = []

    struct Wait: Sendable {
        var step: String
        var json: JSON
    }
}

/// The agents with an open turn as lists have read them, so that a page that is requested every few seconds reads only what is new.
final class ListedWaits: Sendable {
    private let known = Mutex<(agents: [ChannelID: OpenWaits], count: Int)>(([:], 0))
    /// The largest number of agents, and of their waits; beyond it the memory starts over.
    private static let (agentsMax, waitsMax) = (4_096, 16_384)

    subscript(id: ChannelID) -> OpenWaits? {
        get { known.withLock { $0.agents[id] } }
        set {
            known.withLock { known in
                known.count -= known.agents.removeValue(forKey: id)?.waits.count ?? 0
                guard let newValue, newValue.waits.count <= ListedWaits.waitsMax else { return }
                if known.agents.count >= ListedWaits.agentsMax || known.count + newValue.waits.count > ListedWaits.waitsMax {
                    known = ([:], 0)
                }
                known.agents[id] = newValue
                known.count += newValue.waits.count
            }
        }
    }
}

/// An agent's details from its newest entries, taken from the end back.
private struct AgentDetails {
    private let status: AgentStatus
    private let known: OpenWaits
    private var updated: Timestamp?
    private var lastTurn: JSON?
    private var found: [OpenWaits.Wait] = []
    /// Steps of which something newer has been seen.
    private var seen: Set<String> = []
    /// When steps end by themselves whose start has not been seen.
    private var dues: [String: JSON] = [:]
    /// The known waits are of an earlier turn, or too far back.
    private var isKnownOver = false

    init(_ status: AgentStatus, known: OpenWaits?) { (self.status, self.known) = (status, known ?? OpenWaits()) }

    var members: [JSON.Member] {
        let waits = waits.map(\.json)
        let members: [(String, JSON?)] = [
            ("updated", updated.map { .string($0.description) }), ("last_turn", lastTurn),
            ("waiting_for", waits.isEmpty ? nil : .array(waits)),
        ]
        return members.compactMap { name, value in value.map { JSON.Member(name, $0) } }
    }

    /// Not all that came since has been taken.
    mutating func forgetKnown() { isKnownOver = true }

    /// The waits of the turn, oldest first.
    var waits: [OpenWaits.Wait] {
        (isKnownOver ? [] : known.waits.filter { !seen.contains($0.step) }) + found.reversed()
    }

    /// Takes the entry before the last one taken; returns whether older ones matter.
    mutating func take(_ offset: UInt64, _ frame: Frame) -> Bool {
        if updated == nil { updated = frame.at }
        if offset <= known.upTo { return false }
        if frame.kind.endsTurn {
            // The work of an open turn says more than how the one before it ended.
            if !status.hasOpenTurn { lastTurn = AgentDetails.end(frame) }
            isKnownOver = true
            return false
        }
        if frame.kind == .turnStarted {
            isKnownOver = true
            return false
        }
        if status.hasOpenTurn { takeWait(frame) }
        return true
    }

    private mutating func takeWait(_ frame: Frame) {
        guard let step = frame.position?.step, !step.isEmpty, !seen.contains(step) else { return }
        switch frame.kind {
        case .approvalRequested: add(step, frame, "approval", frame.body["action"], due: frame.body["expires_at"])
        case .timerSet: dues[step] = frame.body["due"]
        case .stepStarted:
            let kind = frame.body["kind"]?.string ?? "step"
            guard ["sleep", "wait"].contains(kind) else { return }
            add(step, frame, kind, frame.body["name"], due: dues[step], channel: frame.body["request"]?["channel"])
        case .approvalDecided, .stepCompleted: seen.insert(step)
        case .stepFailed where frame.body["final"]?.bool == true: seen.insert(step)
        default: break
        }
    }

    private mutating func add(_ step: String, _ frame: Frame, _ kind: String, _ name: JSON?, due: JSON?, channel: JSON? = nil) {
        seen.insert(step)
        let json = JSON.compact(
            ("step", .string(step)), ("kind", .string(kind)), ("name", name), ("since", frame.at.map { .string($0.description) }),
            ("due", due), ("channel", channel))
        found.append(OpenWaits.Wait(step: step, json: json))
    }

    private static func end(_ frame: Frame) -> JSON {
        let state = frame.kind.turnState
        return JSON.compact(
            ("state", state.map { .string($0) }), ("turn", frame.position.map { .string(Offset($0.turn).token) }),
            ("at", frame.at.map { .string($0.description) }), ("error", state == "failed" ? frame.body["error"] : nil))
    }
}

extension AgentStatus {
    fileprivate var hasOpenTurn: Bool { self != .idle && self != .closed }
}
