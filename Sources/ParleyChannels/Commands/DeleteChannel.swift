internal import ParleyLog

/// Removes a channel and everything it has.
package struct DeleteChannel: Sendable {
    let name: String
    /// Refuses the removal unless the tail is at this offset.
    let ifTail: UInt64?
    /// As ``Append/id``.
    let id: ChannelID?

    package init(_ name: String, at id: ChannelID? = nil, ifTail: UInt64? = nil) { (self.name, self.id, self.ifTail) = (name, id, ifTail) }

    /// Writer's thread.
    func decide(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        let channel = try found(channels, in: &stage)
        let effects = try ChannelRefusal.wrap { () throws(LogError) in try channels.delete(channel, in: &stage) }
        return Decision(reply: .done, effects: effects)
    }

    private func found(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Channel {
        guard let channel = try channels.resolve(name, expecting: id, in: &stage) else {
            let wasAgent = try ChannelRefusal.wrap { () throws(LogError) in try channels.hasTombstone(name, in: stage) }
            throw .refused(wasAgent ? .deleted(name) : .notFound(name))
        }
        guard !channel.isGone else { throw .refused(.gone(name)) }
        if let ifTail, ifTail != channel.staged.head { throw .refused(.tailMoved(from: ifTail, to: channel.staged.head)) }
        return channel
    }
}

extension Channels {
    /// Removes a channel as a request does.
    func delete(_ channel: Channel, in stage: inout Stage) throws(LogError) -> [Effect] {
        if let agent = channel.staged.row.agent { stage.delete(.index, AgentIndex.key(agent.status, channel.id)) }
        let outboxRows = outbox == nil ? 0 : try OutboxRow.count(of: channel.id, in: stage.log)
        try remove(channel, tombstone: channel.isAgent, in: &stage)
        var effects: [Effect] = []
        if channel.isAgent { effects.append(.agentDeleted(channel)) }
        if outboxRows > 0 { effects.append(.outboxRemoved(channel.id, rows: outboxRows)) }
        return effects
    }
}
