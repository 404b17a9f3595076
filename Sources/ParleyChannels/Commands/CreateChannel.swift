internal import ParleyLog
internal import ParleySystem

/// Creates a channel, or finds that it is there already with the same properties.
package struct CreateChannel: Sendable {
    package typealias Created = (isNew: Bool, tail: UInt64, isClosed: Bool)
    package typealias Answer = @Sendable (Result<Created, ChannelError>) -> Void

    let row: ChannelRow
    let entries: [NewEntry]
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
    func decide(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Created {
        let name = row.name
        if let channel = try ChannelRefusal.wrap({ () throws(LogError) in try channels.resolve(name, in: &stage) }) {
            guard !mustBeNew || channel.isGone else {
                throw .refused(ChannelError("precondition_failed", "If-None-Match is *, and '\(name)' exists: it was not created."))
            }
            let inherited = try inheritedLifetime(of: channel.fork, channels, in: &stage)
            do { return try compare(channel, inherited).get() } catch { throw .refused(error) }
        }
        try channels.limit?.check()
        var row = row
        var partition: UInt16?
        var piece: Bytes?
        if let fork {
            let source = fork.source
            guard let channel = try ChannelRefusal.wrap({ () throws(LogError) in try channels.resolve(source, in: &stage) }) else {
                if try ChannelRefusal.wrap({ () throws(LogError) in try channels.hasTombstone(source, in: &stage) }) {
                    throw .refused(CreateChannel.gone(source))
                }
                throw .refused(ChannelError("fork_source_not_found", "there is no channel '\(source)' to fork from."))
            }
            (row, piece) = try forked(from: channel, fork, channels)
            // The entries are shared where they are.
            partition = channel.id.partition
        }
        let channel = try ChannelRefusal.wrap { () throws(LogError) in try channels.create(row, in: &stage, partition: partition) }
        let now = channels.world.now
        _ = channel.stage((piece.map { [NewEntry(data: $0)] } ?? []) + entries, now: now, in: &stage)
        return (true, channel.staged.head, channel.staged.row.isClosed)
    }

    private func forked(from source: Channel, _ request: ForkRequest, _ channels: Channels) throws(ChannelRefusal) -> (ChannelRow, Bytes?) {
        guard !source.isGone else { throw .refused(CreateChannel.gone(source.name)) }
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

    private static func gone(_ source: String) -> ChannelError {
        ChannelError("fork_source_gone", "'\(source)' was deleted: nothing can be forked from it any more.")
    }

    /// The lifetime that a fork without one of its own has; `nil` when nobody can say any more.
    private func inheritedLifetime(of known: Fork?, _ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Lifetime?? {
        guard let fork, let known, row.lifetime == nil else { return .some(row.lifetime) }
        let source = try ChannelRefusal.wrap { () throws(LogError) in try channels.resolve(fork.source, in: &stage) }
        guard let source, !source.isGone, source.id.number == known.sourceNumber else { return nil }
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
