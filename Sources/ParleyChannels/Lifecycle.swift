package import ParleyLog
internal import ParleySystem

/// Creates a channel, or finds that it is there already with the same properties.
package final class CreateChannel: Submission, @unchecked Sendable {  // Guard: as `Append`.
    package typealias Completion = @Sendable (Result<(isNew: Bool, tail: UInt64, isClosed: Bool), ChannelError>) -> Void

    private let channels: Channels
    private let row: ChannelRow
    private let entries: [NewEntry]
    private let completion: Completion
    private var result: Result<(isNew: Bool, tail: UInt64, isClosed: Bool), ChannelError>?

    /// - Parameters:
    ///   - row: Its name, type and whether it is created closed.
    ///   - entries: What it begins with. Ignored when it exists.
    package init(_ channels: Channels, _ row: ChannelRow, _ entries: [NewEntry], completion: @escaping Completion) {
        self.channels = channels
        self.row = row
        self.entries = entries
        self.completion = completion
    }

    package func submit() {
        do throws(LogError) { try channels.writer.submit(self) } catch { completion(.failure(ChannelError(error))) }
    }

    package var cost: Int { entries.reduce(512) { $0 + $1.byteCount } }

    package func stage(into stage: inout Stage) throws(LogError) {
        if let channel = try channels.resolve(row.name) {
            result = compare(channel)
            return
        }
        let channel = try channels.create(row, in: &stage)
        let now = channels.world.now
        for entry in entries { _ = channel.stage(entry, now: now) }
        result = .success((true, channel.staged.head, channel.staged.row.isClosed))
    }

    private func compare(_ channel: Channel) -> Result<(isNew: Bool, tail: UInt64, isClosed: Bool), ChannelError> {
        guard ContentType.matches(channel.contentType, row.contentType) else {
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

    package func committed() {
        channels.publish()
        completion(result!)  // Staged before it was settled.
    }

    package func failed(_ error: LogError) { completion(.failure(ChannelError(error))) }
}

/// Removes a channel and everything it has.
package final class DeleteChannel: Submission, @unchecked Sendable {  // Guard: as `Append`.
    private let channels: Channels
    private let name: String
    private let completion: @Sendable (Result<Void, ChannelError>) -> Void
    private var removed: Channel?
    private var outboxRows = 0

    package init(_ channels: Channels, _ name: String, completion: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        self.channels = channels
        self.name = name
        self.completion = completion
    }

    package func submit() {
        do throws(LogError) { try channels.writer.submit(self) } catch { completion(.failure(ChannelError(error))) }
    }

    package var cost: Int { 256 }

    package func stage(into stage: inout Stage) throws(LogError) {
        guard let channel = try channels.resolve(name) else { return }
        if channel.isAgent { stage.delete(.index, AgentIndex.key(channel.staged.row.status, channel.id)) }
        if channels.outbox != nil { outboxRows = try OutboxRow.count(of: channel.id, in: stage.log) }
        channels.remove(channel, tombstone: channel.isAgent, in: &stage)
        removed = channel
    }

    package func committed() {
        channels.publish()
        guard let removed else { return completion(.failure(.notFound(name))) }
        if removed.isAgent { channels.notifyDeleted(removed) }
        if outboxRows > 0 { channels.outbox?.removed(rows: outboxRows) }
        completion(.success(()))
    }

    package func failed(_ error: LogError) { completion(.failure(ChannelError(error))) }
}
