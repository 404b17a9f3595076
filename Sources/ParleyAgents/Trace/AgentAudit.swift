package import ParleyChannels
internal import ParleyLog
package import ParleySystem

/// Which records an audit shows.
package struct AuditQuery: Sendable {
    /// The principal who sent the entry, or decided the approval.
    package var by: String?
    /// Types of entries, or `approval`; empty for all.
    package var types: Set<String> = []
    /// Not before, by the record's first entry.
    package var since: Timestamp?
    /// Not after.
    package var until: Timestamp?
    /// Only what stands before this offset: what `next` of a page says.
    package var before: UInt64?
    package var limit = AuditQuery.limitDefault

    package static let limitDefault = 100
    package static let limitMax = 1_000
    /// The types there are.
    package static let allTypes = InputEntry.kinds.map(\.name) + [approval]
    static let approval = "approval"

    package init() {}
}

/// Who did what to an agent: every entry that somebody sent, with its receipt, and every approval as one record that shows what became of it.
///
/// Read from the log in two passes over its frames: back from the tail until the page is full, then forward to what the records still lack.
/// Both look at the kind of an entry before anything else, and parse only what they show. Blocks on the disk: not for event loops.
package struct AgentAudit {
    private let channels: Channels
    private let channel: Channel
    private let head: UInt64

    package init(_ channels: Channels, _ channel: Channel) {
        self.channels = channels
        self.channel = channel
        head = channel.tail.head
    }

    /// The answer as the route gives it: the newest records that match, oldest first.
    package func answer(_ query: AuditQuery) throws(ChannelError) -> JSON {
        do throws(LogError) {
            let (offsets, next) = try matches(query)
            let records = offsets.isEmpty ? [:] : try records(offsets)
            return JSON.compact(
                ("agent", .string(channel.name)), ("tail_offset", .string(Offset(head).token)),
                ("records", .array(offsets.reversed().compactMap { records[$0] })),
                ("next", next.map { .string(Offset($0).token) }))
        } catch {
            throw ChannelError(error)
        }
    }

    // MARK: Which

    /// Where the page's records begin, newest first.
    private func matches(_ query: AuditQuery) throws(LogError) -> (offsets: [UInt64], next: UInt64?) {
        let kinds = Set(InputEntry.kinds.filter { query.types.isEmpty || query.types.contains($0.name) })
        let hasApprovals = query.types.isEmpty || query.types.contains(AuditQuery.approval)
        // Whatever stamps `by` writes it first (`InputEntry`).
        let by = query.by.map { NewEntry.join([("by", .string($0))]) }
        var decided: Set<Position> = []
        var offsets: [UInt64] = []
        var next: UInt64?
        // Who decided stands after what was asked for, and then perhaps after `before`.
        let start = by == nil ? query.before.map { min(head, $0 - min($0, 1)) } ?? head : head
        try channels.walkBack(channel, from: start) { offset, frame in
            switch frame.kind {
            case .approvalDecided where hasApprovals && by != nil:
                if frame.body["decided_by"]?.string == query.by, let place = frame.position { decided.insert(place.ofStep) }
                return true
            case .approvalRequested where hasApprovals:
                guard by == nil || frame.position.map({ decided.contains($0.ofStep) }) == true else { return true }
            case let kind where kinds.contains(kind):
                // The closing quote is part of it: "ann" is not the beginning of "annette".
                guard by.map({ frame.membersBegin(with: $0) }) ?? true else { return true }
            default: return true
            }
            if let before = query.before, offset >= before { return true }
            // `at` never decreases, so what is older than the page may be is not looked at.
            if let since = query.since, frame.at! < since { return false }
            if let until = query.until, frame.at! > until { return true }
            guard offsets.count < query.limit else {
                next = offsets.last
                return false
            }
            offsets.append(offset)
            return true
        }
        return (offsets, next)
    }

    // MARK: What became of them

    private struct Collected {
        var inputs: [UInt64: (entry: InputRecord, receipt: JSON?)] = [:]
        var approvals = ApprovalRecords()
        /// Where each of them was requested.
        var requests: [UInt64] = []
    }

    private func records(_ offsets: [UInt64]) throws(LogError) -> [UInt64: JSON] {
        let wanted = Set(offsets)
        // What nobody has decided yet has no receipt to look for.
        var undecided: Set<UInt64> = []
        for offset in offsets where try channels.log.get(.inbox, channel.id.key(offset)) != nil { undecided.insert(offset) }
        var awaited = wanted.count
        var collected = Collected()
        try channels.walk(channel, after: offsets.last! - 1, upTo: head) { offset, frame in
            if wanted.contains(offset) {
                if AgentAudit.take(offset, frame, &collected) || undecided.contains(offset) { awaited -= 1 }
            } else if frame.kind == .receipt, let of = AgentAudit.takeReceipt(offset, frame, &collected), !undecided.contains(of) {
                awaited -= 1
            }
            if collected.approvals.isOpen, frame.kind != .text, let position = frame.position {
                collected.approvals.take(offset, frame, position)
            }
            return awaited > 0 || collected.approvals.isOpen
        }
        return AgentAudit.json(collected)
    }

    /// - Returns: whether it is an approval.
    private static func take(_ offset: UInt64, _ frame: Frame, _ collected: inout Collected) -> Bool {
        if let input = InputRecord(offset, frame) {
            collected.inputs[offset] = (input, nil)
        } else if let position = frame.position {
            _ = collected.approvals.add(offset, frame, position)
            collected.requests.append(offset)
            return true
        }
        return false
    }

    /// - Returns: the record whose receipt it is.
    private static func takeReceipt(_ offset: UInt64, _ frame: Frame, _ collected: inout Collected) -> UInt64? {
        guard let of = receiptOf(frame), collected.inputs[of] != nil else { return nil }
        let body = frame.body
        let position = frame.position
        collected.inputs[of]?.receipt = JSON.compact(
            ("offset", .string(Offset(offset).token)), ("at", .string(frame.at!.description)), ("state", body["state"]),
            ("reason", body["reason"]), ("turn", position.map { .string(Offset($0.turn).token) }),
            ("step", position.flatMap { $0.step.isEmpty ? nil : .string($0.step) }))
        return of
    }

    /// Which entry a receipt is for, without parsing it where it begins as `AgentMachine` writes it.
    private static func receiptOf(_ frame: Frame) -> UInt64? {
        guard frame.membersBegin(with: receiptPrefix), frame.members.count >= receiptPrefix.count + 16 else {
            return frame.body["of"]?.string.flatMap { Offset(token: $0)?.value }
        }
        let token = frame.members[receiptPrefix.count..<receiptPrefix.count + 16]
        return Offset(token: String(decoding: token, as: UTF8.self))?.value
    }

    private static let receiptPrefix = Bytes("\"of\":\"".utf8)

    private static func json(_ collected: Collected) -> [UInt64: JSON] {
        var records: [UInt64: JSON] = [:]
        for (offset, input) in collected.inputs {
            records[offset] = JSON.compact(input.entry.members + [("receipt", input.receipt ?? .null)])
        }
        for (offset, record) in zip(collected.requests, collected.approvals.all) {
            let stamps: [(String, JSON?)] = [
                ("offset", .string(Offset(offset).token)), ("type", .string(AuditQuery.approval)),
                ("by", record.decidedBy.map { .string($0) }),
            ]
            records[offset] = JSON.compact(stamps + record.members)
        }
        return records
    }
}

extension Position {
    /// The step, whatever the attempt.
    fileprivate var ofStep: Position { Position(turn: turn, step: step) }
}
