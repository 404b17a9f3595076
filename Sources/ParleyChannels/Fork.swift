internal import ParleyLog
internal import ParleySystem

/// What a fork shares with the channels that it comes from: entries by reference, in the same offset space.
package struct Fork: Sendable, Equatable {
    /// A stretch of another channel's entries: those behind the stretch before it, up to and including `upTo`.
    package struct Segment: Sendable, Equatable {
        package var number: UInt64
        package var upTo: UInt64
        /// The name of the channel when its entries were written: what an agent wrote is by it.
        package var owner: String
    }

    /// As it was asked for, to compare a repeated request with.
    package var source: String
    package var offset: UInt64
    package var subOffset: UInt64
    /// Oldest first. All are in the fork's own partition.
    package var segments: [Segment]
    /// The number of the message by which the home of its name was told of it; `nil`: name and rows were written in one commit.
    package var announced: UInt64?

    /// The direct source, which is kept as long as this fork exists.
    package var sourceNumber: UInt64 { segments.last!.number }

    /// Where the fork's own entries begin: behind this.
    package var head: UInt64 { segments.last!.upTo }
}

/// Where a new channel is to fork from.
package struct ForkRequest: Sendable {
    package var source: String
    /// `nil`: the tail.
    package var offset: UInt64?
    /// So many bytes, or JSON messages, behind the offset.
    package var subOffset: UInt64?

    package init(source: String, offset: UInt64?, subOffset: UInt64?) {
        (self.source, self.offset, self.subOffset) = (source, offset, subOffset)
    }
}

extension Fork {
    init?(_ json: JSON) {
        guard let source = json["source"]?.string, let offset = Fork.count(json["offset"]), let segments = json["segments"]?.array,
            !segments.isEmpty
        else { return nil }
        self.init(
            source: source, offset: offset, subOffset: Fork.count(json["sub_offset"]) ?? 0, segments: [],
            announced: Fork.count(json["announced"]))
        for segment in segments {
            guard let number = Fork.count(segment["number"]), let upTo = Fork.count(segment["up_to"]), let owner = segment["owner"]?.string
            else { return nil }
            self.segments.append(Segment(number: number, upTo: upTo, owner: owner))
        }
    }

    private static func count(_ value: JSON?) -> UInt64? { value?.integer.flatMap { UInt64(exactly: $0) } }

    var json: JSON {
        let segments = segments.map { segment -> JSON in
            ["number": .integer(Int64(segment.number)), "up_to": .integer(Int64(segment.upTo)), "owner": .string(segment.owner)]
        }
        return .compact(
            ("source", .string(source)), ("offset", .integer(Int64(offset))),
            ("sub_offset", subOffset == 0 ? nil : .integer(Int64(subOffset))), ("segments", .array(segments)),
            ("announced", announced.map { .integer(Int64($0)) }))
    }
}

// MARK: - The writer's side

extension Channels {
    /// Where a fork of `source` begins, and what of an entry that it begins in the middle of it takes along.
    ///
    /// - Throws: ``ChannelError`` `invalid_fork_offset` (beyond the tail, or a sub-offset that overshoots).
    func anchor(_ request: ForkRequest, in source: Channel) throws(ChannelRefusal) -> (fork: Fork, piece: Bytes?) {
        let head = source.staged.head
        let offset = request.offset ?? head
        guard offset <= head else {
            throw .refused(
                ChannelError(
                    "invalid_fork_offset",
                    "Stream-Fork-Offset is \(Offset(offset)), the tail of '\(source.name)' is \(Offset(head)): it was not given out for this stream."
                ))
        }
        let subOffset = request.subOffset ?? 0
        var (end, piece) = (offset, Bytes?.none)
        if source.isJSON {
            end = offset.addingReportingOverflow(subOffset).overflow ? .max : offset + subOffset
        } else if subOffset > Channels.subOffsetMax {
            throw .refused(Channels.overshoot(subOffset, offset, source))
        } else if subOffset > 0 {
            (end, piece) = try place(behind: subOffset, after: offset, in: source)
        }
        guard end <= head else { throw .refused(Channels.overshoot(subOffset, offset, source)) }
        var segments = (source.fork?.segments ?? []).filter { $0.upTo > 0 }
        // The segments that the source itself shares, cut at the fork's offset.
        segments = segments.map { Fork.Segment(number: $0.number, upTo: min($0.upTo, end), owner: $0.owner) }
        // A channel that was forked before it had entries of its own contributes no segment.
        segments = zip(segments, [0] + segments.map(\.upTo)).filter { $0.upTo > $1 }.map(\.0)
        segments.append(Fork.Segment(number: source.id.number, upTo: end, owner: source.name))
        guard segments.count <= Channels.forkDepthMax else {
            throw .refused(
                ChannelError(
                    "fork_too_deep",
                    "'\(source.name)' has its entries from \(segments.count - 1) channels, a fork from \(Channels.forkDepthMax) at most. Copy it."
                ))
        }
        return (Fork(source: source.name, offset: offset, subOffset: subOffset, segments: segments), piece)
    }

    /// Each has a part in the fork's row, which is rewritten as a whole.
    private static let forkDepthMax = 128
    /// What is looked through on the writer's thread: more than any message has.
    private static let subOffsetMax: UInt64 = 16 << 20

    private func place(behind bytes: UInt64, after offset: UInt64, in source: Channel) throws(ChannelRefusal) -> (UInt64, Bytes?) {
        var rest = bytes
        var found: (UInt64, Bytes?)?
        try ChannelRefusal.wrap { () throws(LogError) in
            try walk(source, after: offset, upTo: source.tail.head) { place, frame in
                let count = UInt64(frame.payload.count)
                if rest == count { found = (place, nil) }
                if rest < count { found = (place - 1, Bytes(frame.payload[..<Int(rest)])) }
                rest -= min(rest, count)
                return found == nil
            }
        }
        guard let found else { throw .refused(Channels.overshoot(bytes, offset, source)) }
        return found
    }

    private static func overshoot(_ subOffset: UInt64, _ offset: UInt64, _ source: Channel) -> ChannelError {
        ChannelError(
            "invalid_fork_offset",
            "Stream-Fork-Sub-Offset is \(subOffset); '\(source.name)' has not so \(source.isJSON ? "many messages" : "much") behind \(Offset(offset))."
        )
    }

    /// Whether there are forks of the channel with that id, see ``keeper(of:in:)``.
    func hasForks(_ id: ChannelID, in stage: inout Stage) throws(LogError) -> Bool { try keeper(of: id, in: &stage) != nil }

    /// A fork for which the channel with that id is kept. Removes what a crash left of forks that come before it.
    ///
    /// Cost: a few lookups, for each that has been removed since the last commit as well.
    func keeper(of id: ChannelID, in stage: inout Stage) throws(LogError) -> ChannelReference? {
        for fork in forkedInThisCommit(id) where try isFork(fork, of: id, in: &stage) { return fork }
        var (lower, upper) = IndexMark.fork.range(id)
        while true {
            var forks: [(key: Bytes, name: String)] = []
            try stage.log.scan(.index, from: lower, to: upper, reversed: false) { key, name in
                forks.append((Bytes(key), String(decoding: name, as: UTF8.self)))
                return forks.count < Channels.forksAtOnce
            }
            for fork in forks {
                let number: UInt64 = fork.key.readBigEndian(at: 11)
                let fork = ChannelReference(name: fork.name, id: ChannelID(partition: id.partition, number: number))
                if try isFork(fork, of: id, in: &stage) { return fork }
            }
            guard forks.count == Channels.forksAtOnce else { return nil }
            lower = forks.last!.key + [0]
        }
    }

    private static let forksAtOnce = 16

    private func isFork(_ fork: ChannelReference, of id: ChannelID, in stage: inout Stage) throws(LogError) -> Bool {
        guard try stage.get(.index, ForkRow.key(id, fork.id)) != nil else { return false }
        let row = try stage.get(.channels, fork.id.key).flatMap { ChannelRow($0) }
        if try mayHaveName(fork, row?.fork?.announced, in: &stage) { return true }
        // The rows of a fork are in two partitions, and a crash may keep half of them. A fork without a name was never acknowledged, or is
        // removed, unless it is itself kept for its forks.
        if row?.isSoftDeleted == true, try hasForks(fork.id, in: &stage) { return true }
        if let row { strip(fork.id, row, in: &stage) }
        _ = try erase(fork.id, in: &stage)
        return false
    }

    /// Deletes what is left of a channel that nothing refers to any more, and of those that it kept alive.
    func collect(_ id: ChannelID, in stage: inout Stage) throws(LogError) {
        var next: ChannelID? = id
        while let id = next {
            let source = try erase(id, in: &stage)
            next = if let source, try releaseIfForsaken(source, in: &stage) { source } else { nil }
        }
    }

    /// - Returns: what it was forked from.
    private func erase(_ id: ChannelID, in stage: inout Stage) throws(LogError) -> ChannelID? {
        let row = try stage.get(.channels, id.key).flatMap { ChannelRow($0) }
        if let row { erased(id, row.name) }
        stage.delete(.log, from: id.key, to: id.keyEnd)
        stage.delete(.big, from: id.key, to: id.keyEnd)
        stage.delete(.channels, id.key)
        guard let fork = row?.fork else { return nil }
        let source = ChannelID(partition: id.partition, number: fork.sourceNumber)
        stage.delete(.index, ForkRow.key(source, id))
        return source
    }

    /// Frees the name of a removed channel once the forks are gone that it was kept for. ``Messages/ready(_:in:)`` has been called.
    /// - Returns: whether they are.
    func releaseIfForsaken(_ id: ChannelID, in stage: inout Stage) throws(LogError) -> Bool {
        guard let row = try stage.get(.channels, id.key).flatMap({ ChannelRow($0) }), row.isSoftDeleted else { return false }
        if let keeper = try keeper(of: id, in: &stage) {
            ask(keeper, in: &stage)
            return false
        }
        // An agent's name has its tombstone, and may have a successor.
        try unname(ChannelReference(name: row.name, id: id), in: &stage)
        return true
    }
}

/// The row of family `index` that says that one channel was forked from another.
enum ForkRow {
    static func key(_ source: ChannelID, _ fork: ChannelID) -> Bytes {
        var key = IndexMark.fork.key(source)
        key.append(bigEndian: fork.number)
        return key
    }
}
