package import ParleySystem

/// What family `inbox` has of an undecided entry: enough to decide which entry is next, without its body.
///
///     u8 kind | u8 flags | u32 bytes | if flag 1: u64 the turn it is for | of a signal: 16 bytes of the SHA-256 of its name
///
/// Numbers are big-endian. Rows of one byte, the kind, are from before there was more; what they lack is read from the entry.
package struct InboxRow: Sendable, Equatable {
    package var kind: EntryKind
    /// About as many as the entry takes.
    package var byteCount: UInt32 = 0
    /// The turn that it is for (`if_turn`).
    package var turn: UInt64?
    /// It must stand right behind another entry (`if_offset`): its body says which.
    package var hasOffset = false
    /// Tells signals of one name from others.
    package var name = Bytes()
    /// An interrupt that says what to do instead.
    package var hasText = false

    private enum Flag {
        static let turn: UInt8 = 1
        static let offset: UInt8 = 2
        static let text: UInt8 = 4
    }

    package init(_ kind: EntryKind) { self.kind = kind }

    /// The row of an entry whose members are `body`.
    package init(_ kind: EntryKind, body: EntryMembers, byteCount: Int) {
        self.kind = kind
        self.byteCount = UInt32(clamping: byteCount)
        turn = body["if_turn"].map { $0.string.flatMap { Offset(token: $0)?.value } ?? .max }
        hasOffset = body["if_offset"] != nil
        hasText = body["text"] != nil
        if kind == .signal { name = InboxRow.digest(name: body["name"]?.string ?? "") }
    }

    init(_ entry: NewEntry) {
        if let inbox = entry.inbox {
            self = inbox
        } else if case .members(let members, _) = entry.content {
            self.init(entry.kind, body: members.withUnsafeBytes { EntryMembers($0) }, byteCount: entry.byteCount)
        } else {
            self.init(entry.kind)
            byteCount = UInt32(clamping: entry.byteCount)
        }
    }

    package static func digest(name: String) -> Bytes { Bytes(SHA256.digest(Bytes(name.utf8)).prefix(16)) }

    package var bytes: Bytes {
        var flags: UInt8 = 0
        if turn != nil { flags |= Flag.turn }
        if hasOffset { flags |= Flag.offset }
        if hasText { flags |= Flag.text }
        var bytes: Bytes = [kind.rawValue, flags]
        bytes.append(bigEndian: byteCount)
        if let turn { bytes.append(bigEndian: turn) }
        bytes.append(contentsOf: name)
        return bytes
    }

    /// - Returns: `nil` for what is no row; a row of one byte has its kind only (``isWhole``).
    package init?(_ bytes: UnsafeRawBufferPointer) {
        guard let kind = bytes.first.flatMap({ EntryKind(rawValue: $0) }) else { return nil }
        self.kind = kind
        guard bytes.count >= 6 else { return }
        byteCount = bytes.readBigEndian(at: 2)
        let flags = bytes[1]
        var place = 6
        if flags & Flag.turn != 0, bytes.count >= 14 {
            turn = bytes.readBigEndian(at: 6)
            place = 14
        }
        hasOffset = flags & Flag.offset != 0
        hasText = flags & Flag.text != 0
        if kind == .signal, bytes.count >= place + 16 { name = Bytes(bytes[place..<(place + 16)]) }
    }

    /// Whether the row has all there is to know.
    package static func isWhole(_ bytes: UnsafeRawBufferPointer) -> Bool { bytes.count >= 6 }
}

/// Offsets in rising order: cheap to append to, to take from at the front, and to look behind.
package struct OffsetList: Sendable {
    private var offsets: [UInt64] = []
    private var start = 0

    package init() {}

    package var isEmpty: Bool { start == offsets.count }
    package var count: Int { offsets.count - start }
    package var first: UInt64? { isEmpty ? nil : offsets[start] }
    package var all: ArraySlice<UInt64> { offsets[start...] }

    /// The first one behind `offset`.
    package func first(after offset: UInt64) -> UInt64? {
        let index = index(of: offset == .max ? offset : offset + 1)
        return index < offsets.count ? offsets[index] : nil
    }

    package mutating func insert(_ offset: UInt64) {
        if let last = offsets.last, last >= offset {
            let index = index(of: offset)
            if index < offsets.count, offsets[index] == offset { return }
            offsets.insert(offset, at: index)
        } else {
            offsets.append(offset)
        }
    }

    package mutating func remove(_ offset: UInt64) {
        let index = index(of: offset)
        guard index < offsets.count, offsets[index] == offset else { return }
        guard index == start else {
            offsets.remove(at: index)
            return
        }
        start += 1
        if start == offsets.count {
            (offsets, start) = ([], 0)
        } else if start > 1_024, start * 2 > offsets.count {
            offsets.removeFirst(start)
            start = 0
        }
    }

    /// Where `offset` is, or would be.
    private func index(of offset: UInt64) -> Int {
        var (low, high) = (start, offsets.count)
        while low < high {
            let middle = (low + high) / 2
            if offsets[middle] < offset { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

/// The undecided entries of a channel, as the writer knows them: how much of the inbox they take, and which come first.
struct UndecidedEntries {
    /// The most undecided entries an agent has, beside controls, and the most bytes of them.
    static let countMax = 100_000
    static let bytesMax = 256 << 20
    /// Controls have places of their own, so that a flooded agent can still be cancelled.
    static let controlsMax = 1_000

    private var lists: [EntryKind: OffsetList] = [:]
    private var sizes: [UInt64: UInt32] = [:]
    private var count = 0
    private var controls = 0
    private var bytes = 0

    mutating func add(_ offset: UInt64, _ row: InboxRow) {
        lists[row.kind, default: OffsetList()].insert(offset)
        guard !row.kind.isControl else { return controls += 1 }
        sizes[offset] = row.byteCount
        count += 1
        bytes += Int(row.byteCount)
    }

    mutating func remove(_ offset: UInt64) {
        // An agent that has decided everything keeps no tables for it: there are many of them.
        defer { if count == 0, controls == 0 { self = UndecidedEntries() } }
        if let size = sizes.removeValue(forKey: offset) {
            count -= 1
            bytes -= Int(size)
            for kind in [EntryKind.message, .steer, .signal] { lists[kind]?.remove(offset) }
        } else {
            for kind in EntryKind.controls {
                guard let before = lists[kind]?.count else { continue }
                lists[kind]!.remove(offset)
                if lists[kind]!.count < before { return controls -= 1 }
            }
        }
    }

    /// The first entry that the owner's append yields to.
    func first(against owner: OwnerPart) -> UInt64? {
        owner.yieldsTo.kinds.compactMap { kind -> UInt64? in
            var place = owner.yieldsAfter
            while let found = lists[kind]?.first(after: place) {
                guard owner.decides.contains(found) else { return found }
                place = found
            }
            return nil
        }.min()
    }

    /// Why entries like these do not fit; `nil` when they do.
    func refusal(of rows: [InboxRow]) -> ChannelError? {
        let others = rows.filter { !$0.kind.isControl }
        if controls + rows.count - others.count > UndecidedEntries.controlsMax {
            return .inboxFull("\(controls) controls wait to be decided; the limit is \(UndecidedEntries.controlsMax)")
        }
        if count + others.count > UndecidedEntries.countMax {
            return .inboxFull("\(count) entries wait to be decided; the limit is \(UndecidedEntries.countMax)")
        }
        if bytes + others.reduce(0, { $0 + Int($1.byteCount) }) > UndecidedEntries.bytesMax {
            return .inboxFull("entries of \(bytes) bytes wait to be decided; the limit is \(UndecidedEntries.bytesMax) bytes")
        }
        return nil
    }
}

extension EntryKind {
    /// The kinds that control an agent, as opposed to messages, which give it work.
    package static let controls: [EntryKind] = [.interrupt, .cancel, .close, .approve, .deny, .resume]

    package var isControl: Bool { EntryKind.controls.contains(self) }
}

extension ChannelError {
    static func inboxFull(_ detail: String) -> ChannelError {
        ChannelError(
            "inbox_full", "\(detail). Nothing was stored; send it again when the agent has decided some, or cancel what it does.")
    }
}
