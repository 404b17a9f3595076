internal import ParleyChannels
internal import ParleySystem

/// The undecided entries of an agent in log order: the offset and the row of each. Bodies stay in the log until an entry is decided.
struct Inbox: Sendable {
    struct Entry: Sendable {
        var offset: UInt64
        var row: InboxRow
        /// The position that `if_offset` asks for is not this one's.
        var isMisplaced = false

        var kind: EntryKind { row.kind }

        /// No turn can be the one that it is for: that turn would begin with this entry, or later.
        var isForNoTurn: Bool { row.turn.map { $0 >= offset } ?? false }

        /// Whether a turn may begin with it.
        var mayBeginTurn: Bool {
            switch kind {
            case .message, .steer: true
            case .interrupt: row.hasText
            default: false
            }
        }
    }

    private var entries: [UInt64: Entry] = [:]
    /// All but signals: the input that makes an idle agent act.
    private var turnable = OffsetList()
    private(set) var controls = OffsetList()
    private(set) var messages = OffsetList()
    private(set) var steers = OffsetList()
    /// Entries whose condition can never hold: it asks for another position, or for a turn that cannot have begun.
    private(set) var misplaced = OffsetList()
    /// Entries with an `if_turn`, by the turn that they ask for.
    private var wanting: [UInt64: OffsetList] = [:]
    /// Signals, by the digest of their names.
    private var signals: [Bytes: OffsetList] = [:]
    /// Rises with each change.
    private(set) var version = 0

    init() {}

    private init(version: Int) { self.version = version }

    /// Nothing is left: earlier checks against it no longer count.
    mutating func removeAll() { self = Inbox(version: version + 1) }

    /// All offsets, in log order.
    var offsets: [UInt64] { entries.keys.sorted() }
    /// The first that begins a turn or is decided between turns.
    var first: Entry? { turnable.first.flatMap { entries[$0] } }
    /// The close entries, in log order.
    var closes: some Sequence<Entry> { controls.all.lazy.compactMap { entries[$0] }.filter { $0.kind == .close } }
    /// The first of all signals.
    var firstSignal: UInt64? { signals.values.lazy.compactMap(\.first).min() }

    subscript(offset: UInt64) -> Entry? { entries[offset] }

    /// Whether something in it can have an effect on a turn while that runs. Messages and steers that only queue have none, nor have signals that
    /// no step waits for.
    ///
    /// - Parameter awaits: Whether a step waits for signals with that digest of their name.
    func mayMatter(to policy: ConcurrentInput, awaits: (Bytes) -> Bool) -> Bool {
        !controls.isEmpty || signals.keys.contains(where: awaits) || ![.queue, .steer].contains(policy) && !messages.isEmpty
    }

    /// Whether a turn may begin with the undecided entry at `offset`.
    func mayBegin(_ offset: UInt64) -> Bool { entries[offset]?.mayBeginTurn ?? false }

    /// Entries that ask for a turn which is not `turn`, and whose message is not here: in log order for each turn that they ask for.
    func wantingOthers(than turn: UInt64?) -> some Sequence<UInt64> {
        wanting.keys.filter { $0 != turn && !mayBegin($0) }.sorted().lazy.flatMap { wanting[$0]!.all }
    }

    /// Signals of that name, in log order.
    func signals(_ name: String) -> OffsetList { signals[InboxRow.digest(name: name)] ?? OffsetList() }

    mutating func insert(_ entry: Entry) {
        version += 1
        var entry = entry
        // Signals of one name share the bytes of its digest.
        if let known = signals.index(forKey: entry.row.name) { entry.row.name = signals[known].key }
        entries[entry.offset] = entry
        // In one list only: an entry listed twice would be decided twice.
        if entry.isMisplaced || entry.isForNoTurn {
            misplaced.insert(entry.offset)
        } else if let turn = entry.row.turn {
            wanting[turn, default: OffsetList()].insert(entry.offset)
        }
        guard entry.kind != .signal else { return signals[entry.row.name, default: OffsetList()].insert(entry.offset) }
        turnable.insert(entry.offset)
        switch entry.kind {
        case .message: messages.insert(entry.offset)
        case .steer: steers.insert(entry.offset)
        default: controls.insert(entry.offset)
        }
    }

    mutating func remove(_ offset: UInt64) {
        guard let entry = entries.removeValue(forKey: offset) else { return }
        version += 1
        // Tables that have become empty keep their size.
        defer { if entries.isEmpty { self = Inbox(version: version) } }
        misplaced.remove(offset)
        if let turn = entry.row.turn {
            wanting[turn]?.remove(offset)
            if wanting[turn]?.isEmpty == true { wanting[turn] = nil }
        }
        guard entry.kind != .signal else {
            signals[entry.row.name]?.remove(offset)
            if signals[entry.row.name]?.isEmpty == true { signals[entry.row.name] = nil }
            return
        }
        turnable.remove(offset)
        switch entry.kind {
        case .message: messages.remove(offset)
        case .steer: steers.remove(offset)
        default: controls.remove(offset)
        }
    }
}
