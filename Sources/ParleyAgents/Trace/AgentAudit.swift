package import ParleyChannels
internal import ParleyLog
package import ParleySystem

/// Selects the records that an audit shows.
package struct AuditQuery: Sendable {
    /// The principal who sent the entry, or decided the approval.
    package var by: String?
    /// Types of entries, or `approval`; empty for all.
    package var types: Set<String> = []
    /// Not before, by the record's first entry.
    package var since: Timestamp?
    /// Not after.
    package var until: Timestamp?
    /// Only entries before this offset: the `next` of a page.
    package var before: UInt64?
    package var limit = AuditQuery.limitDefault

    package static let limitDefault = 100
    package static let limitMax = 1_000
    /// The types there are.
    package static let allTypes = InputEntry.kinds.map(\.name) + [approval]
    static let approval = "approval"

    package init() {}
}

/// Who did what to an agent: every entry that a client sent, with its receipt, and every approval as one record that shows its outcome.
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
            // The decision comes after the request, and so perhaps after `before`.
            let start = query.by == nil ? query.before.map { min(head, $0 - min($0, 1)) } ?? head : head
            let (offsets, next) = try channels.projectBack(channel, from: start, AuditSearch(query))
            let records = offsets.isEmpty ? [:] : try records(offsets)
            return JSON.compact(
                ("agent", .string(channel.name)), ("tail_offset", .string(Offset(head).token)),
                ("records", .array(offsets.reversed().compactMap { records[$0] })),
                ("next", next.map { .string(Offset($0).token) }))
        } catch {
            throw ChannelError(error)
        }
    }

    private func records(_ offsets: [UInt64]) throws(LogError) -> [UInt64: JSON] {
        var undecided: Set<UInt64> = []
        for offset in offsets where try channels.log.get(.inbox, channel.id.key(offset)) != nil { undecided.insert(offset) }
        return try channels.project(
            channel, after: offsets.last! - 1, upTo: head, AuditRecords(Set(offsets), undecided: undecided))
    }
}

/// Finds where the records of a page begin, newest first. Reads from the tail back.
private struct AuditSearch: Projection {
    private let query: AuditQuery
    private let kinds: Set<EntryKind>
    /// The server writes `by` first when it stamps an entry (`InputEntry`), with its closing quote: "ann" is not the beginning of "annette".
    private let by: Bytes?
    /// The steps of approvals that the queried principal decided.
    private var decided: Set<Position> = []
    private var offsets: [UInt64] = []
    private var next: UInt64?
    private(set) var isComplete = false

    var output: (offsets: [UInt64], next: UInt64?) { (offsets, next) }

    init(_ query: AuditQuery) {
        self.query = query
        let types = query.types.isEmpty ? Set(AuditQuery.allTypes) : query.types
        kinds = Set(InputEntry.kinds.filter { types.contains($0.name) } + (types.contains(AuditQuery.approval) ? [.approvalRequested] : []))
        by = query.by.map { NewEntry.join([("by", .string($0))]) }
    }

    mutating func apply(_ entry: LogEntry) {
        noteDecision(entry)
        guard kinds.contains(entry.kind), isByWhom(entry) else { return }
        if let before = query.before, entry.offset >= before { return }
        // `at` never decreases, so what is older than the page may be is not looked at.
        if let since = query.since, entry.at < since { return isComplete = true }
        if let until = query.until, entry.at > until { return }
        guard offsets.count < query.limit else { return (next, isComplete) = (offsets.last, true) }
        offsets.append(entry.offset)
    }

    private mutating func noteDecision(_ entry: LogEntry) {
        guard by != nil, entry.kind == .approvalDecided, kinds.contains(.approvalRequested), let place = entry.position else { return }
        if entry.body["decided_by"]?.string == query.by { decided.insert(place.ofStep) }
    }

    private func isByWhom(_ entry: LogEntry) -> Bool {
        guard let by else { return true }
        if entry.kind == .approvalRequested { return entry.position.map { decided.contains($0.ofStep) } == true }
        return entry.frame.membersBegin(with: by)
    }
}

/// Collects what became of the entries and approvals that an audit shows, by the offsets at which they begin.
private struct AuditRecords: Projection {
    private let wanted: Set<UInt64>
    /// Inputs without a receipt to look for: nothing has decided them yet.
    private let undecided: Set<UInt64>
    /// Entries that have not been read yet, and inputs whose receipt has not been.
    private var awaited: Set<UInt64>
    private var inputs: [UInt64: InputRecord] = [:]
    private var receipts: [UInt64: Receipt] = [:]
    private var approvals: ApprovalRecords

    init(_ wanted: Set<UInt64>, undecided: Set<UInt64>) {
        (self.wanted, self.undecided, awaited) = (wanted, undecided, wanted)
        approvals = ApprovalRecords(requestedAt: wanted)
    }

    var isComplete: Bool { awaited.isEmpty && approvals.isComplete }

    mutating func apply(_ entry: LogEntry) {
        approvals.apply(entry)
        if wanted.contains(entry.offset) {
            inputs[entry.offset] = InputRecord(entry)
            if !entry.kind.isInput || undecided.contains(entry.offset) { awaited.remove(entry.offset) }
        } else if let receipt = Receipt(entry, isWanted: { inputs[$0] != nil }) {
            receipts[receipt.of] = receipt
            awaited.remove(receipt.of)
        }
    }

    var output: [UInt64: JSON] {
        var records = inputs.mapValues { input in
            let receipt = receipts[input.offset].map { JSON.compact($0.members(at: $0.at)) }
            return JSON.compact(input.members + [("receipt", receipt ?? .null)])
        }
        for record in approvals.output {
            let stamps: [(String, JSON?)] = [
                ("offset", .string(Offset(record.offset).token)), ("type", .string(AuditQuery.approval)),
                ("by", record.decidedBy.map { .string($0) }),
            ]
            records[record.offset] = JSON.compact(stamps + record.members)
        }
        return records
    }
}
