internal import ParleyLog

/// Removes a channel and everything it has.
package struct DeleteChannel: Sendable {
    let name: String
    /// Refuses when the tail is elsewhere.
    let ifTail: UInt64?

    package init(_ name: String, ifTail: UInt64? = nil) { (self.name, self.ifTail) = (name, ifTail) }

    /// Writer's thread.
    func decide(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        let channel = try found(channels, in: &stage)
        if channel.isAgent { stage.delete(.index, AgentIndex.key(channel.staged.row.status, channel.id)) }
        let outboxRows = try ChannelRefusal.wrap { () throws(LogError) in
            let rows = channels.outbox == nil ? 0 : try OutboxRow.count(of: channel.id, in: stage.log)
            try channels.remove(channel, tombstone: channel.isAgent, in: &stage)
            return rows
        }
        var effects: [Effect] = []
        if channel.isAgent { effects.append(.agentDeleted(channel)) }
        if outboxRows > 0 { effects.append(.outboxRemoved(channel.id, rows: outboxRows)) }
        return Decision(reply: .done, effects: effects)
    }

    private func found(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Channel {
        guard let channel = try ChannelRefusal.wrap({ () throws(LogError) in try channels.resolve(name, in: &stage) }) else {
            let wasAgent = try ChannelRefusal.wrap { () throws(LogError) in try channels.hasTombstone(name, in: &stage) }
            throw .refused(wasAgent ? .deleted(name) : .notFound(name))
        }
        guard !channel.isGone else { throw .refused(.gone(name)) }
        if let ifTail, ifTail != channel.staged.head { throw .refused(.tailMoved(from: ifTail, to: channel.staged.head)) }
        return channel
    }
}
