internal import ParleyLog
package import ParleySystem
internal import Synchronization

/// A durable, named, ordered stream of entries, as this process holds it in memory while it is in use.
///
/// Half of it belongs to the writer thread: what has been staged but may not be durable yet. The other half is published: what readers on
/// any thread may see, which is only what a crash cannot take back.
package final class Channel: @unchecked Sendable {
    // Guard: `staged` is touched by the writer thread only, the rest is immutable or locked.

    package let name: String
    package let id: ChannelID
    package let contentType: String
    package let isAgent: Bool
    package let fork: Fork?
    package let lifetime: Lifetime?
    /// Removed while others had been forked from it: there for them alone.
    package let isSoftDeleted: Bool
    /// When its sliding lifetime was last renewed, in milliseconds.
    let accessed: Atomic<Int64>
    /// What the log says of that, or is about to.
    let storedAccess: Atomic<Int64>
    /// The tail as readers may know it.
    private let published: Mutex<Published>
    var staged: StagedTail

    private struct Published {
        var tail: PublishedTail
        var trims: Int64 = 0
        /// How many hold on to the object without watching it.
        var pins = 0
    }

    /// A value of the log is cut where it passes this: one message is read by reading the whole value.
    static let valueBytes = 64 << 10

    /// From how many entries on it pays to count their bytes first.
    private static let reservedCountMin = 1_000

    init(row: ChannelRow, id: ChannelID, head: UInt64, lastAt: Timestamp) {
        name = row.name
        self.id = id
        contentType = row.contentType
        isAgent = row.isAgent
        (fork, lifetime, isSoftDeleted) = (row.fork, row.lifetime, row.isSoftDeleted)
        // What is stored may be late by the slack, and nothing may end before its time.
        accessed = Atomic((row.accessed?.advanced(by: row.lifetime?.slack ?? .zero) ?? row.created).milliseconds)
        storedAccess = Atomic((row.accessed ?? row.created).milliseconds)
        published = Mutex(Published(tail: PublishedTail(TailState(head: head, isClosed: row.isClosed)), trims: row.trims))
        staged = StagedTail(row: row, head: head, lastAt: lastAt)
    }

    var reference: ChannelReference { ChannelReference(name: name, id: id) }

    /// What the writer knows: there for its forks alone, from this commit on.
    var isGone: Bool { isSoftDeleted || staged.row.isSoftDeleted }

    /// How often text has been taken out of it: what was read before may be read differently after.
    package var trims: Int64 { published.withLock { $0.trims } }

    /// Whether it was removed, and is there for its forks alone.
    package var isKept: Bool { isSoftDeleted || published.withLock { $0.tail.state.isKept } }
}

// MARK: - Reading the tail

extension Channel: Tail {
    package var tail: (head: UInt64, isClosed: Bool, isDeleted: Bool) {
        published.withLock { ($0.tail.state.head, $0.tail.state.isClosed, $0.tail.state.isDeleted) }
    }

    package func tail(after offset: UInt64) -> TailRead { published.withLock { $0.tail.read(after: offset) } }

    package func attach(_ watcher: any ChannelWatcher) -> Bool { published.withLock { $0.tail.attach(watcher) } }

    package func detach(_ watcher: any ChannelWatcher) { published.withLock { _ = $0.tail.detach(watcher) } }

    package func page(after offset: UInt64, view: View, bytesMax: Int, in channels: Channels) throws(ChannelError) -> Page {
        guard !tail.isDeleted else { throw .removed(self) }
        do throws(LogError) {
            let page = try channels.page(self, after: offset, view: view, bytesMax: bytesMax)
            // A removal that is durable and not published yet has taken the entries away, and must not look like their end.
            guard page.isShort else { return page }
            if try !channels.isRemoved(self) { return page }
        } catch { throw ChannelError(error) }
        throw .removed(self)
    }

    package func touched(in channels: Channels) { channels.touched(self) }

    /// What a node that follows and has everything up to `offset` must be told.
    func update(after offset: UInt64) -> TailUpdate { published.withLock { TailUpdate($0.tail, after: offset, end) } }
}

extension Channel {
    /// Keeps this object the channel's own until ``unpin()``: what it knows of the tail stays true.
    /// - Returns: false when it is no longer the channel's: look it up again.
    package func pin() -> Bool {
        published.withLock { state in
            guard !state.tail.isLeft else { return false }
            state.pins += 1
            return true
        }
    }

    package func unpin() { published.withLock { $0.pins -= 1 } }

    package var isWatched: Bool { published.withLock { $0.tail.isWatched } }
}

// MARK: - The writer's side

/// What the writer has decided about a channel, durable or about to be.
struct StagedTail {
    var row: ChannelRow
    var head: UInt64
    var lastAt: Timestamp
    var frames = StagedFrames()
    var isRowChanged = false
    var isDeleted = false
    var producers: [TextKey: ProducerState] = [:]
    /// The entries that have not been decided; `nil` until an append needs to know.
    var undecided: UndecidedEntries?
    /// Who is to be told of its next entry; `nil` until an append needs to know.
    var followers: Set<FollowKey>?
    /// Who subscribes to it, as of that version of all subscriptions.
    var subscribers: (version: UInt64, ids: [String])?
}

/// The frames staged in the current commit: they become one value of the log, or several when they are very many.
struct StagedFrames {
    var bytes = Bytes()
    /// The offset of the first.
    var first: UInt64 = 0
    /// Where a further value of the log begins, and with which offset.
    var cuts: [(start: Int, offset: UInt64)] = []
    /// Where the last frame begins, when it is text that more of the same step can join.
    var openText: (start: Int, position: Position, part: TextDelta.Part, end: UInt64)?

    /// Visits the values of the log that they become.
    func values(_ visit: (_ first: UInt64, _ value: Bytes) -> Void) {
        guard !bytes.isEmpty else { return }
        var (start, offset) = (0, first)
        for cut in cuts {
            visit(offset, Bytes(bytes[start..<cut.start]))
            (start, offset) = cut
        }
        visit(offset, start == 0 ? bytes : Bytes(bytes[start...]))
    }
}

extension Channel {
    /// Stamps entries, gives them their offsets and adds their frames; text may be merged into the text before it, whose offset it then has.
    func stage(_ entries: [NewEntry], now: Timestamp, in stage: inout Stage) -> [UInt64] {
        let before = staged.frames.bytes.count
        // Once, and not by doubling: a request of very many messages takes megabytes.
        if entries.count > Channel.reservedCountMin {
            staged.frames.bytes.reserveCapacity(before + entries.reduce(0) { $0 + $1.byteCount })
        }
        // They are put when the commit is complete, and count as soon as they are there.
        defer { stage.count(staged.frames.bytes.count - before) }
        return entries.map { self.stage($0, now: now) }
    }

    private func stage(_ entry: NewEntry, now: Timestamp) -> UInt64 {
        if merge(entry) { return staged.head }
        staged.lastAt = max(staged.lastAt, now)
        staged.head += 1
        if staged.frames.bytes.isEmpty { staged.frames.first = staged.head }
        let start = staged.frames.bytes.count
        if start - (staged.frames.cuts.last?.start ?? 0) >= Channel.valueBytes { staged.frames.cuts.append((start, staged.head)) }
        entry.write(to: &staged.frames.bytes, at: staged.lastAt)
        // An empty piece says that the text is over: it stays an entry of its own.
        if case .text(let text) = entry.content, let position = entry.position, !text.delta.isEmpty {
            staged.frames.openText = (start, position, text.part, text.index + UInt64(text.delta.count))
        } else {
            staged.frames.openText = nil
        }
        return staged.head
    }

    private func merge(_ entry: NewEntry) -> Bool {
        guard case .text(let text) = entry.content, let open = staged.frames.openText, open.position == entry.position,
            open.part == text.part,
            open.end == text.index, text.continuesAt == nil, !text.delta.isEmpty
        else { return false }
        staged.frames.bytes.append(contentsOf: text.delta)
        Frame.setLength(of: open.start, in: &staged.frames.bytes)
        Frame.addPieces(text.pieces, toTextAt: open.start, in: &staged.frames.bytes)
        staged.frames.openText!.end += UInt64(text.delta.count)
        return true
    }

    /// Hands what was staged to the commit.
    func flush(into stage: inout Stage) {
        if staged.isRowChanged {
            stage.put(.channels, id.key, staged.row.bytes)
            staged.isRowChanged = false
        }
        staged.frames.values { stage.put(.log, id.key($0), $1) }
    }

    /// Publishes what has become durable, and returns who must be told.
    func publish() -> [any ChannelWatcher] {
        let frames = staged.frames
        let chunk = frames.bytes.isEmpty ? nil : Chunk(first: frames.first, last: staged.head, frames: frames.bytes)
        staged.frames = StagedFrames()
        let trims = staged.row.trims
        let tail = TailState(
            head: staged.head, isClosed: staged.row.isClosed, isDeleted: staged.isDeleted, isKept: staged.row.isSoftDeleted)
        return published.withLock { state in
            state.tail.state = tail
            state.trims = trims
            if let chunk { state.tail.keep(chunk) }
            return state.tail.told
        }
    }

    /// Gives the object up, even while it is watched.
    /// - Returns: who must be told.
    func leave() -> [any ChannelWatcher] { published.withLock { $0.tail.leave() } }

    /// Gives the object up unless it is watched; nothing may be staged in it.
    func evict() -> Bool {
        published.withLock { state in
            guard !state.tail.isWatched, state.pins == 0 else { return false }
            _ = state.tail.leave()
            return true
        }
    }
}

/// What one commit appended to a channel, and its wire form, made once for all readers.
package final class Chunk: Sendable {
    package let first: UInt64
    package let last: UInt64
    package let frames: Bytes
    private let wire = Mutex<[String: Bytes]>([:])
    /// What it counts among the large ones.
    private let counted = Atomic(0)

    /// What all large ones may hold together: each channel keeps its newest one, however large.
    private static let largeBytesMax = 16 << 20
    private static let largeBytes = Atomic(0)

    init(first: UInt64, last: UInt64, frames: Bytes) {
        self.first = first
        self.last = last
        self.frames = frames
    }

    deinit { Chunk.largeBytes.subtract(counted.load(ordering: .relaxed), ordering: .relaxed) }

    /// Whether it is small, or there is room for it among the large ones, where it counts from now on. Asked once.
    func isRoomy() -> Bool {
        guard isLarge else { return true }
        let isRoomy = Chunk.largeBytes.add(frames.count, ordering: .relaxed).newValue <= Chunk.largeBytesMax
        if isRoomy { counted.store(frames.count, ordering: .relaxed) } else { Chunk.largeBytes.subtract(frames.count, ordering: .relaxed) }
        return isRoomy
    }

    /// Whether one commit is more than a channel keeps of many: forms of it are not kept.
    package var isLarge: Bool { frames.count > PublishedTail.recentBytesMax }

    /// The form called `key`, made by `make` when it is first asked for. Cost: a lock, else nothing.
    package func wire(_ key: String, _ make: (Chunk) -> Bytes) -> Bytes {
        wire.withLock { forms in
            if let form = forms[key] { return form }
            let form = make(self)
            forms[key] = form
            return form
        }
    }
}
