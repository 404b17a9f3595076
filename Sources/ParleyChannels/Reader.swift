package import ParleyLog
package import ParleySystem

extension Channels {
    /// Walks the entries after `offset` up to `head`, from the log, until `visit` returns false. What has been trimmed is passed over.
    ///
    /// Blocks on the disk when the pages are not cached: not for event loops.
    /// - Throws: ``LogError`` with code `data_damaged` naming channel and offset; what came before has been visited.
    package func walk(
        _ channel: Channel, after offset: UInt64, upTo head: UInt64, _ visit: (_ offset: UInt64, _ frame: Frame) -> Bool
    ) throws(LogError) {
        for stretch in channel.stretches(after: offset, upTo: head) {
            guard try walk(stretch, of: channel, visit) else { return }
        }
    }

    /// - Returns: whether to continue with the next stretch.
    private func walk(
        _ stretch: Channel.Stretch, of channel: Channel, _ visit: (_ offset: UInt64, _ frame: Frame) -> Bool
    ) throws(LogError) -> Bool {
        // The value that holds the next entry begins at or before it: one step back, then forward.
        let id = stretch.id
        let start = try log.first(.log, from: id.key, to: id.key(stretch.after + 2), reversed: true)?.key ?? id.key
        var damaged: UInt64?
        var continues = true
        try log.scan(.log, from: start, to: id.key(stretch.upTo + 1), reversed: false) { key, value in
            let first: UInt64 = key.readBigEndian(at: 10)
            var isWithin = true
            let last = Frame.walk(value, first: first) { place, frame in
                if place > stretch.upTo {
                    isWithin = false
                } else if place > stretch.after, frame.kind != .hole {
                    continues = visit(place, frame)
                }
                return isWithin && continues
            }
            if last == nil { damaged = first }
            return isWithin && continues && damaged == nil
        }
        if let damaged {
            throw LogError(.damaged, "frames of channel '\(channel.name)' at offset \(Offset(damaged)) cannot be read")
        }
        return continues
    }

    /// Walks the entries from `head` back to the start, until `visit` returns false.
    package func walkBack(_ channel: Channel, from head: UInt64, _ visit: (_ offset: UInt64, _ frame: Frame) -> Bool) throws(LogError) {
        for stretch in channel.stretches(after: 0, upTo: head).reversed() {
            guard try walkBack(stretch, of: channel, visit) else { return }
        }
    }

    private func walkBack(
        _ stretch: Channel.Stretch, of channel: Channel, _ visit: (_ offset: UInt64, _ frame: Frame) -> Bool
    ) throws(LogError) -> Bool {
        var damaged: UInt64?
        var continues = true
        try log.scan(.log, from: stretch.id.key, to: stretch.id.key(stretch.upTo + 1), reversed: true) { key, value in
            var frames: [(UInt64, Frame)] = []
            let first: UInt64 = key.readBigEndian(at: 10)
            let last = Frame.walk(value, first: first) { place, frame in
                frames.append((place, frame))
                return true
            }
            guard let last else {
                damaged = first
                return false
            }
            continues = frames.reversed().allSatisfy { place, frame in
                place > stretch.upTo || place <= stretch.after || frame.kind == .hole || visit(place, frame)
            }
            return continues && last > stretch.after
        }
        if let damaged {
            throw LogError(.damaged, "frames of channel '\(channel.name)' at offset \(Offset(damaged)) cannot be read")
        }
        return continues
    }

    /// The entry at `offset`: what `make` makes of its frame, or `nil` when there is none.
    package func entry<Value>(_ channel: Channel, at offset: UInt64, _ make: (Frame) -> Value?) throws(LogError) -> Value? {
        var value: Value?
        try walk(channel, after: offset - 1, upTo: offset) { place, frame in
            value = make(frame)
            return false
        }
        return value
    }

    /// Whether the channel's removal is durable, also when it is not published yet. Cost: one lookup.
    package func isRemoved(_ channel: Channel) throws(LogError) -> Bool { try log.get(.channels, channel.id.key) == nil }

    /// Reads one page after `offset` in wire form: a JSON array of entries, or the bytes themselves.
    ///
    /// - Parameter bytesMax: The page ends after the entry that passes it, so it holds at least one; of text after the first from there on
    ///   that ends with a character, or soon.
    package func page(_ channel: Channel, after offset: UInt64, view: View, bytesMax: Int) throws(LogError) -> Page {
        let (head, isClosed, _) = channel.tail
        var page = Page(of: channel, next: offset)
        page.trims = channel.trims
        let filter =
            view == .settled && channel.isAgent
            ? try project(channel, after: offset, upTo: head, SettledFilter(bytesMax: bytesMax)) : nil
        var (read, isCut) = (0, false)
        try walk(channel, after: offset, upTo: head) { place, frame in
            if read >= bytesMax, page.mayEnd(before: frame) || read >= 2 * bytesMax {
                isCut = true
                return false
            }
            read += frame.payload.count + Frame.headerBytes
            if filter?.keeps(place, frame) ?? true {
                page.add(place, frame, owner: channel.owner(of: place), receipt: filter?.receipts[place])
            } else {
                page.leaveOut(place)
            }
            page.next = place
            return true
        }
        // What comes last may be a hole.
        page.isShort = !isCut && page.next < head
        if page.isShort { page.next = head }
        page.finish()
        page.isUpToDate = page.next >= head
        page.isEnd = page.isUpToDate && isClosed
        return page
    }
}

/// How a reader wants an agent's channel.
package enum View: String, Sendable {
    /// The log as it is.
    case raw
    /// Without text that was sealed by its step's result or superseded by a later attempt, receipts folded into what they answer.
    case settled
}

/// A piece of a channel in wire form.
package struct Page: Sendable {
    package var body = Bytes()
    /// The offset to continue reading from.
    package var next: UInt64
    package var isUpToDate = false
    /// Nothing comes after it, ever.
    package var isEnd = false
    /// The log had no entry at the end offset: it is trimmed there, or the channel has been removed meanwhile.
    fileprivate(set) var isShort = false
    package private(set) var isEmpty = true
    /// The channels of agents that entries of this page say were started.
    package private(set) var children: [String] = []
    /// How often text had been taken out of the channel when the page was read.
    package fileprivate(set) var trims: Int64 = 0
    /// Which entries the view leaves out, in one number (FNV-1a): what comes later may seal or supersede what stands here.
    package private(set) var omissions: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Where the last entry ends behind which the page may be parted, as text: see ``TextSeam``. Only of text.
    package private(set) var seam: (next: UInt64, byteCount: Int)
    private let isJSON: Bool
    private let isText: Bool
    /// A longer page of JSON has a line for each message: what reads or passes on by lines does not take them at any length.
    package static let lineBytes = 1 << 10
    /// Where lines end, as long as they may still be joined to one.
    private var breaks: [Int] = []

    init(of channel: any Tail, next: UInt64) {
        (isJSON, isText) = (channel.isJSON, channel.isText)
        self.next = next
        seam = (next, 0)
        if isJSON { body.append(UInt8(ascii: "[")) }
    }

    mutating func add(_ offset: UInt64, _ frame: Frame, owner: String, receipt: Bytes?) {
        guard frame.kind != .hole else { return }
        if isJSON && !isEmpty { separate() }
        if isText && mayEnd(before: frame) { seam = (next, body.count) }
        isEmpty = false
        if let child = frame.startedChild { children.append(child) }
        frame.writeJSON(offset: offset, owner: owner, receipt: receipt, to: &body)
    }

    /// Whether what there is may be a page without `frame`.
    func mayEnd(before frame: Frame) -> Bool { !isText || TextSeam.parts(TextSeam.end(of: body), from: frame.payload.first) }

    mutating func leaveOut(_ offset: UInt64) {
        for shift in stride(from: 0, to: 64, by: 8) { omissions = (omissions ^ (offset >> shift & 0xff)) &* 0x100_0000_01b3 }
    }

    private mutating func separate() {
        body.append(UInt8(ascii: ","))
        if body.count < Page.lineBytes { breaks.append(body.count) }
        body.append(UInt8(ascii: "\n"))
    }

    mutating func finish() {
        if isText && TextSeam.end(of: body) == .whole { seam = (next, body.count) }
        guard isJSON else { return }
        body.append(UInt8(ascii: "]"))
        guard body.count <= Page.lineBytes, !breaks.isEmpty else { return }
        for place in breaks.reversed() { body.remove(at: place) }
        breaks = []
    }
}

extension Chunk {
    /// The channels of agents that this commit says were started. Cost: a look at the head of each frame.
    package var children: [String] {
        var children: [String] = []
        frames.withUnsafeBytes { bytes in
            _ = Frame.walk(bytes, first: first) { _, frame in
                if let child = frame.startedChild { children.append(child) }
                return true
            }
        }
        return children
    }

    /// This commit's entries in wire form, as ``Channels/page(_:after:view:bytesMax:)`` gives them.
    package func page(of channel: any Tail, view: View) -> Page {
        let owner = channel.name
        var page = Page(of: channel, next: first - 1)
        let filter = view == .settled && channel.isAgent ? project(SettledFilter()) : nil
        frames.withUnsafeBytes { bytes in
            _ = Frame.walk(bytes, first: first) { place, frame in
                if filter?.keeps(place, frame) ?? true { page.add(place, frame, owner: owner, receipt: filter?.receipts[place]) }
                page.next = place
                return true
            }
        }
        page.next = last
        page.finish()
        return page
    }
}

extension Frame {
    /// The channel of the agent that a `child.started` names.
    fileprivate var startedChild: String? { kind == .childStarted ? body["agent"]?.string : nil }
}

extension Channel {
    /// Entries that stand in one place of the log: this channel's own, or what it shares with one that it was forked from.
    struct Stretch {
        var id: ChannelID
        var after: UInt64
        var upTo: UInt64
    }

    /// Where the entries after `offset` up to `head` are, in order.
    func stretches(after offset: UInt64, upTo head: UInt64) -> [Stretch] {
        var (stretches, after) = ([Stretch](), offset)
        for segment in fork?.segments ?? [] where segment.upTo > after && after < head {
            let upTo = min(segment.upTo, head)
            stretches.append(Stretch(id: ChannelID(partition: id.partition, number: segment.number), after: after, upTo: upTo))
            after = upTo
        }
        if after < head { stretches.append(Stretch(id: id, after: after, upTo: head)) }
        return stretches
    }

    /// Who the entry at `offset` is by, if it is an agent's own.
    package func owner(of offset: UInt64) -> String { fork?.segments.first { offset <= $0.upTo }?.owner ?? name }
}
