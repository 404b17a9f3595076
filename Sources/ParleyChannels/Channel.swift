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
    /// The channel was removed while it had forks, and is kept for them alone.
    package let isSoftDeleted: Bool
    /// When its sliding lifetime was last renewed, in milliseconds.
    let accessed: Atomic<Int64>
    /// The value of ``accessed`` that the log has, or that has been submitted to it.
    let storedAccess: Atomic<Int64>
    /// The durable tail, which readers see.
    private let published: Mutex<Published>
    var staged: StagedTail

    private struct Published {
        var tail: PublishedTail
        var trims: Int64 = 0
        /// How many components keep the object without watching it.
        var pins = 0
    }

    /// A value of the log is cut when it exceeds this size, because reading one message reads the whole value.
    static let valueBytes = 64 << 10

    /// The number of entries from which it pays to count their bytes first.
    private static let reservedCountMin = 1_000

    init(row: ChannelRow, id: ChannelID, head: UInt64, lastAt: Timestamp) {
        name = row.name
        self.id = id
        contentType = row.contentType
        isAgent = row.isAgent
        (fork, lifetime, isSoftDeleted) = (row.fork, row.lifetime, row.isSoftDeleted)
        // The stored access may be late by the slack, and no channel may expire early.
        accessed = Atomic((row.accessed?.advanced(by: row.lifetime?.slack ?? .zero) ?? row.created).milliseconds)
        storedAccess = Atomic((row.accessed ?? row.created).milliseconds)
        published = Mutex(Published(tail: PublishedTail(TailState(head: head, isClosed: row.isClosed)), trims: row.trims))
        staged = StagedTail(row: row, head: head, lastAt: lastAt)
    }

    var reference: ChannelReference { ChannelReference(name: name, id: id) }

    /// Whether the channel is kept for its forks alone, including what is staged. Writer thread.
    var isGone: Bool { isSoftDeleted || staged.row.isSoftDeleted }

    /// How often text has been trimmed: a page that was read before may look different after.
    package var trims: Int64 { published.withLock { $0.trims } }

    /// Whether the channel was removed, and is kept for its forks alone.
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
            // A removal that is durable but not published yet has deleted the entries, and must not look like the end of the channel.
            guard page.isShort else { return page }
            if try !channels.isRemoved(self) { return page }
        } catch { throw ChannelError(error) }
        throw .removed(self)
    }

    package func touched(in channels: Channels) { channels.touched(self) }

    /// The update for a node that follows the channel and has everything up to `offset`.
    func update(after offset: UInt64) -> TailUpdate { published.withLock { TailUpdate($0.tail, after: offset, end) } }
}

extension Channel {
    /// Keeps this object in memory as the channel until ``unpin()``, so that its tail stays current.
    /// - Returns: false when another object has replaced it: look the channel up again.
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
    /// The undecided entries; `nil` until an append needs them.
    var undecided: UndecidedEntries?
    /// The steps to notify of the next entry; `nil` until an append needs them.
    var followers: Set<FollowKey>?
    /// The subscriptions of the channel, as of that version of all subscriptions.
    var subscribers: (version: UInt64, ids: [String])?
}

/// The frames staged in the current commit, which become one value of the log, or several when there are very many.
struct StagedFrames {
    var bytes = Bytes()
    /// The offset of the first.
    var first: UInt64 = 0
    /// Where each further value of the log begins, and its first offset.
    var cuts: [(start: Int, offset: UInt64)] = []
    /// Where the last frame begins, if it is text that more text of the same step can be merged into.
    var openText: (start: Int, position: Position, part: TextDelta.Part, end: UInt64)?

    /// Visits the values of the log that the frames become.
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
        // Reserved at once instead of by doubling: a request of very many messages takes megabytes.
        if entries.count > Channel.reservedCountMin {
            staged.frames.bytes.reserveCapacity(before + entries.reduce(0) { $0 + $1.byteCount })
        }
        // The frames are put into the batch when the commit is complete, but count from now on.
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
        // An empty piece marks the end of the text, and stays an entry of its own.
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

    /// Puts the staged row and frames into the commit.
    func flush(into stage: inout Stage) {
        if staged.isRowChanged {
            stage.put(.channels, id.key, staged.row.bytes)
            staged.isRowChanged = false
        }
        staged.frames.values { stage.put(.log, id.key($0), $1) }
    }

    /// Publishes what has become durable, and returns the watchers to notify.
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
    /// - Returns: the watchers to notify.
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
    /// The bytes that this chunk counts in ``largeBytes``.
    private let counted = Atomic(0)

    /// The bound of all large chunks together. Each channel keeps its newest chunk, however large.
    private static let largeBytesMax = 16 << 20
    private static let largeBytes = Atomic(0)

    init(first: UInt64, last: UInt64, frames: Bytes) {
        self.first = first
        self.last = last
        self.frames = frames
    }

    deinit { Chunk.largeBytes.subtract(counted.load(ordering: .relaxed), ordering: .relaxed) }

    /// Whether the chunk is small, or fits the bound of the large ones, in which it counts from now on. Called once.
    func isRoomy() -> Bool {
        guard isLarge else { return true }
        let isRoomy = Chunk.largeBytes.add(frames.count, ordering: .relaxed).newValue <= Chunk.largeBytesMax
        if isRoomy { counted.store(frames.count, ordering: .relaxed) } else { Chunk.largeBytes.subtract(frames.count, ordering: .relaxed) }
        return isRoomy
    }

    /// Whether one commit is larger than all recent commits that a channel keeps. Its wire forms are not kept.
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
