package import ParleyChannels
package import ParleySystem

/// An entry that a client wants to append to an agent's channel, checked and stamped with its sender.
package struct InputEntry: Sendable {
    package let entry: NewEntry
    /// The client's own label; without one the entry's offset is its id.
    package let id: String?

    /// The most bytes an entry may have on the wire, stamps included.
    package static let bytesMax = 1 << 20

    package static let kinds: [EntryKind] = [
        .message, .steer, .interrupt, .cancel, .approve, .deny, .signal, .close, .resume,
    ]

    /// Members that only the server writes, or that readers take for its word. A client's values under these names are dropped.
    package static let stampedMembers: Set<String> = [
        "offset", "at", "by",  // Every entry's own.
        "receipt", "of", "state", "queued", "redacted",  // The entry's outcome.
        "turn", "step", "attempt", "run", "epoch", "input", "inputs",  // The entry's place in the agent's work.
        "channel", "from", "path", "child", "nominal_at",  // The entry's origin.
        "decision", "decided_by",  // Who decided.
    ]

    private static let idBytesMax = 256

    /// - Parameters:
    ///   - element: One JSON value as the client sent it.
    ///   - principal: The sender; becomes `by`.
    ///   - last: The one before it in a request, with which it shares what both have.
    /// - Throws: ``ChannelError`` with code `invalid_entry`, `unknown_entry_type` or `entry_too_large`.
    package init(_ element: Bytes, principal: String, after last: InputEntry? = nil) throws(ChannelError) {
        let members = try Members(element)
        guard let type = members.type else {
            throw ChannelError(
                "invalid_entry", "'type' is missing; expected one of \(InputEntry.kindNames). Try {\"type\":\"message\",\"text\":\"...\"}.")
        }
        guard case .string(let name) = type else { throw ChannelError("invalid_entry", "'type' is \(type.kindName); expected a string.") }
        guard let kind = InputEntry.kinds.first(where: { $0.name == name }) else {
            throw ChannelError("unknown_entry_type", "'type' is '\(name)'; expected one of \(InputEntry.kindNames).")
        }
        try members.check(for: kind)
        id = try InputEntry.checked(members.id)
        for (name, value) in members.conditions where value.string.flatMap({ Offset(token: $0) }) == nil {
            let found = value.string.map { "'\($0.prefix(64))'" } ?? value.kindName
            throw ChannelError("invalid_entry", "'\(name)' is \(found); expected an offset of this channel.")
        }
        var body = Bytes("\"by\":".utf8)
        JSON.write(string: principal, to: &body)
        body.append(contentsOf: members.kept)
        var entry = NewEntry(kind, members: body, hasID: id != nil)
        entry.inbox = members.inboxRow(kind, byteCount: entry.byteCount)
        // Signals of one name share the bytes of its digest.
        if let name = last?.entry.inbox?.name, name == entry.inbox?.name { entry.inbox?.name = name }
        self.entry = entry
        let byteCount = body.count + InputEntry.stampBytes + kind.name.utf8.count
        guard byteCount <= InputEntry.bytesMax else {
            throw ChannelError(
                "entry_too_large", "the entry has \(byteCount) bytes with its stamps; the limit is \(InputEntry.bytesMax).",
                [("limit", .integer(Int64(InputEntry.bytesMax)))])
        }
    }

    /// The entry alone: see ``init(_:principal:)``.
    package static func prepare(_ element: Bytes, principal: String) throws(ChannelError) -> NewEntry {
        try InputEntry(element, principal: principal).entry
    }

    /// The length of `{"offset":"...","at":"...","type":"","id":"...",}` around the members.
    private static let stampBytes = 96

    private static let kindNames = kinds.map(\.name).joined(separator: ", ")

    private static func checked(_ id: JSON?) throws(ChannelError) -> String? {
        guard let id else { return nil }
        guard case .string(let text) = id else { throw ChannelError("invalid_entry", "'id' is \(id.kindName); expected a string.") }
        guard (1...idBytesMax).contains(text.utf8.count) else {
            throw ChannelError("invalid_entry", "'id' has \(text.utf8.count) bytes; expected 1 to \(idBytesMax).")
        }
        return text
    }
}

/// The members of an entry that count, and those that are kept as they came.
private struct Members {
    var type: JSON?
    var id: JSON?
    /// The conditions under which the entry counts.
    var conditions: [(name: String, value: JSON)] = []
    /// The values of what some type requires; anything but a short value is there as `.null` only.
    private var strings: Set<String> = []
    /// A signal's name.
    private var name: String?
    private var present: Set<String> = []
    /// Each with a comma in front.
    var kept = Bytes()

    init(_ element: Bytes) throws(ChannelError) {
        if let first = element.first, "[\"-0123456789tfn".utf8.contains(first) {
            throw ChannelError("invalid_entry", "it is no object; expected e.g. {\"type\":\"message\",\"text\":\"Hello\"}.")
        }
        var scanner = JSONScanner(element)
        // Readers would disagree on a repeated name: one takes the first value, another the last.
        scanner.requiresUniqueNames = true
        do throws(JSONError) {
            try scanner.requireUTF8()
            try scanner.members { (name, scanner) throws(JSONError) in try self.take(name, &scanner, element) }
            try scanner.end()
        } catch {
            throw ChannelError("invalid_entry", error.description)
        }
    }

    private mutating func take(_ name: String, _ scanner: inout JSONScanner, _ element: Bytes) throws(JSONError) {
        let nameRange = scanner.nameRange
        switch name {
        case "type": type = try scanner.scalar()
        case _ where InputEntry.stampedMembers.contains(name): try scanner.skip()
        default:
            let isString = scanner.next(is: "\"")
            let range: Range<Int>
            if name == "name" || ["id", "if_turn", "if_offset"].contains(name) {
                let start = scanner.position
                let value = try scanner.scalar()
                range = start..<scanner.position
                switch name {
                case "id": id = value
                case "name": self.name = value.string
                default: conditions.append((name, value))
                }
            } else {
                range = try scanner.skip()
            }
            present.insert(name)
            if isString { strings.insert(name) } else { strings.remove(name) }
            kept.append(UInt8(ascii: ","))
            kept.append(contentsOf: element[nameRange])
            kept.append(UInt8(ascii: ":"))
            kept.append(contentsOf: element[range])
        }
    }

    func inboxRow(_ kind: EntryKind, byteCount: Int) -> InboxRow {
        var row = InboxRow(kind)
        row.byteCount = UInt32(clamping: byteCount)
        row.turn = conditions.last { $0.name == "if_turn" }?.value.string.flatMap { Offset(token: $0)?.value }
        row.hasOffset = conditions.contains { $0.name == "if_offset" }
        row.hasText = present.contains("text")
        if kind == .signal { row.name = InboxRow.digest(name: name ?? "") }
        return row
    }

    func check(for kind: EntryKind) throws(ChannelError) {
        switch kind {
        case .message, .steer:
            if present.contains("text") { return try requireString("text", kind) }
            guard present.contains("data") else {
                throw ChannelError("invalid_entry", "'\(kind.name)' needs 'text' (a string) or 'data'.")
            }
        // Not taken for a missing one: it would be another request.
        case .interrupt where present.contains("text"): try requireString("text", kind)
        case .approve, .deny:
            try requireString("approval", kind)
            if present.contains("args_sha256") { try requireString("args_sha256", kind) }
        case .signal: try requireString("name", kind)
        case .resume where present.contains("restart"):
            throw ChannelError(
                "invalid_entry", "'restart' of a 'resume' is not supported yet; without it the open turn is replayed from its journal.")
        default: break
        }
    }

    private func requireString(_ name: String, _ kind: EntryKind) throws(ChannelError) {
        guard strings.contains(name) else {
            throw ChannelError(
                "invalid_entry", "'\(kind.name)' needs '\(name)', a string\(present.contains(name) ? "; it is something else" : "").")
        }
    }
}
