internal import ParleyLog
internal import ParleySystem

/// Creates a channel, or finds that it is there already with the same properties.
package struct CreateChannel: Sendable {
    package typealias Created = (isNew: Bool, tail: UInt64, isClosed: Bool)
    package typealias Answer = @Sendable (Result<Created, ChannelError>) -> Void

    let row: ChannelRow
    var entries: [NewEntry]
    /// As ``Append/id``: only compares, with a channel that is there.
    package var id: ChannelID?
    /// Shares the entries of another channel, whose content type it has, and whose lifetime unless it has one of its own.
    package var fork: ForkRequest?
    /// Whether the content type is what was asked for, and not just what there is without asking.
    package var hasContentType = true
    /// Refuses when there is a channel of that name.
    package var mustBeNew = false

    /// - Parameters:
    ///   - row: Its name, type and whether it is created closed.
    ///   - entries: What it begins with. Ignored when it exists.
    package init(_ row: ChannelRow, _ entries: [NewEntry] = []) { (self.row, self.entries) = (row, entries) }
}

// MARK: - The writer's side

extension CreateChannel {
    func decide(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        if let channel = try channels.resolve(row.name, expecting: id, in: &stage) {
            return Decision(reply: .created(try found(channel, channels, in: &stage)))
        }
        try channels.limit?.check()
        guard let fork else { return try create(row, in: nil, nil, channels, in: &stage) }
        guard let source = try source(fork, channels, in: &stage) else { return try order(fork, channels, in: &stage) }
        let (row, piece) = try forked(from: source, fork, channels)
        // The entries are shared where they are.
        return try create(row, in: source.id.partition, piece, channels, in: &stage)
    }

    /// The answer where the channel is there already.
    func found(_ channel: Channel, _ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Created {
        guard !mustBeNew || channel.isGone else {
            throw .refused(ChannelError("precondition_failed", "If-None-Match is *, and '\(row.name)' exists: it was not created."))
        }
        let inherited = try inheritedLifetime(of: channel, channels, in: &stage)
        do { return try compare(channel, inherited).get() } catch { throw .refused(error) }
    }

    private func create(
        _ row: ChannelRow, in partition: UInt16?, _ piece: Bytes?, _ channels: Channels, in stage: inout Stage
    ) throws(ChannelRefusal) -> Decision {
        let channel = try ChannelRefusal.wrap { () throws(LogError) in try channels.create(row, in: &stage, partition: partition) }
        let now = channels.world.now
        _ = channel.stage((piece.map { [NewEntry(data: $0)] } ?? []) + entries, now: now, in: &stage)
        return Decision(reply: .created((true, channel.staged.head, channel.staged.row.isClosed)))
    }

    /// - Returns: `nil` where this node does not own all that the source is in.
    private func source(_ fork: ForkRequest, _ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Channel? {
        guard channels.owns(Placement.partition(of: fork.source), in: &stage) else { return nil }
        switch try ChannelRefusal.wrap({ () throws(LogError) in try channels.locate(fork.source, in: &stage) }) {
        case .here(let channel): return channel
        case .at: return nil
        case .nowhere:
            let wasAgent = try ChannelRefusal.wrap { () throws(LogError) in try channels.hasTombstone(fork.source, in: stage) }
            throw .refused(wasAgent ? .sourceGone(fork.source) : .noSource(fork.source))
        }
    }

    /// Asks the owner of the source to make the rows. The client is answered when the owner has reported the outcome.
    private func order(_ fork: ForkRequest, _ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        let (messages, home) = (channels.messages, Placement.partition(of: row.name))
        try messages.answers.check()
        try ChannelRefusal.wrap { () throws(LogError) in try messages.ready(home, in: stage) }
        let order = ForkOrder(request: ForkOrder.Request(name: row.name, number: messages.next(from: home)), creation: self, fork: fork)
        messages.post(.fork(order), from: home, in: &stage)
        return Decision(reply: nil, effects: [.forkOrdered(order)])
    }

    func forked(from source: Channel, _ request: ForkRequest, _ channels: Channels) throws(ChannelRefusal) -> (ChannelRow, Bytes?) {
        guard !source.isGone else { throw .refused(.sourceGone(source.name)) }
        guard !hasContentType || ContentType.matches(row.contentType, source.contentType) else {
            throw .refused(.mismatch(row.contentType, source.contentType))
        }
        let (fork, piece) = try channels.anchor(request, in: source)
        var row = row
        row.contentType = hasContentType ? row.contentType : source.contentType
        row.lifetime = row.lifetime ?? source.lifetime
        row.fork = fork
        return (row, piece)
    }

    /// The lifetime that a fork inherits; `nil` when its source does not exist any more.
    private func inheritedLifetime(
        of channel: Channel, _ channels: Channels, in stage: inout Stage
    ) throws(ChannelRefusal) -> Lifetime?? {
        guard let fork, let known = channel.fork, row.lifetime == nil else { return .some(row.lifetime) }
        let source = try ChannelRefusal.wrap { () throws(LogError) in
            try channels.resolve(fork.source, at: ChannelID(partition: channel.id.partition, number: known.sourceNumber), in: &stage)
        }
        guard let source, !source.isGone else { return nil }
        return .some(source.lifetime)
    }

    private func compare(_ channel: Channel, _ lifetime: Lifetime??) -> Result<Created, ChannelError> {
        guard !channel.isGone else {
            return .failure(
                ChannelError("channel_exists", "'\(row.name)' was deleted; its name is free when the last of its forks is deleted, too."))
        }
        guard isSameFork(channel.fork) else {
            return .failure(
                ChannelError("channel_exists", "'\(row.name)' exists, and was forked from elsewhere, at another place, or not at all."))
        }
        guard lifetime.map({ $0 == channel.lifetime }) ?? true else {
            return .failure(ChannelError("channel_exists", "'\(row.name)' exists with another lifetime."))
        }
        guard ContentType.matches(channel.contentType, row.contentType) || fork != nil && !hasContentType else {
            return .failure(
                ChannelError(
                    "channel_exists", "'\(row.name)' exists with Content-Type '\(channel.contentType)', not '\(row.contentType)'."))
        }
        guard channel.staged.row.isClosed == row.isClosed else {
            return .failure(
                ChannelError("channel_exists", "'\(row.name)' exists and is \(channel.staged.row.isClosed ? "closed" : "open")."))
        }
        return .success((false, channel.staged.head, channel.staged.row.isClosed))
    }

    private func isSameFork(_ known: Fork?) -> Bool {
        guard let fork, let known else { return fork == nil && known == nil }
        return fork.source.hasSameBytes(as: known.source) && (fork.offset ?? known.offset) == known.offset
            && (fork.subOffset ?? 0) == known.subOffset
    }
}
