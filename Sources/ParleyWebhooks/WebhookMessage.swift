package import ParleyChannels
package import ParleyLog
package import ParleySystem

/// The message that a receiver gets for an entry.
///
///     {"type": "approval.requested", "agent": "<kind>/<id>", "channel": "agents/<kind>/<id>", "offset": "…", "at": "…", "entry": {…},
///      "answer": {"path": "/v1/agents/<kind>/<id>", "approve": {…}, "deny": {…}}}
package struct WebhookMessage: Sendable {
    /// The same over all attempts and processes, and of no other entry: an agent that was deleted and recreated under its name counts its
    /// offsets from the start again.
    package let id: String
    package let body: Bytes
    /// When the entry was written.
    package let at: Timestamp

    /// The message of a row; `nil` when its entry is gone with its channel.
    /// - Throws: ``LogError``; it blocks on the disk.
    package init?(_ row: OutboxRow, in channels: Channels) throws(LogError) {
        guard let channelRow = try channels.log.get(.channels, row.channel.key).flatMap({ ChannelRow($0) }),
            let channel = try channels.find(channelRow.name, at: row.channel)
        else { return nil }
        let found = try channels.entry(channel, at: row.offset) { frame in
            (WebhookMessage.body(frame, row.offset, channel.name), frame.at ?? Timestamp(milliseconds: 0))
        }
        guard let found else { return nil }
        (body, at) = found
        id = WebhookMessage.id(channelRow, row)
    }

    private static func id(_ channel: ChannelRow, _ row: OutboxRow) -> String {
        let parts = "\(channel.name)\n\(channel.created.milliseconds)\n\(row.channel.partition).\(row.channel.number)\n\(row.offset)"
        return "msg_" + SHA256.hex(Bytes(parts.utf8)).prefix(32)
    }

    private static func body(_ frame: Frame, _ offset: UInt64, _ channelName: String) -> Bytes {
        let prefix = "agents/"
        let agent = channelName.hasPrefix(prefix) ? String(channelName.dropFirst(prefix.count)) : channelName
        var body: Bytes = [UInt8(ascii: "{")]
        body += NewEntry.join([
            ("type", .string(frame.kind.name)), ("agent", .string(agent)), ("channel", .string(channelName)),
            ("offset", .string(Offset(offset).token)), ("at", frame.at.map { .string($0.description) }),
        ])
        body.append(",\"entry\":")
        frame.writeJSON(offset: offset, owner: channelName, to: &body)
        if frame.kind == .approvalRequested {
            body.append(",\"answer\":")
            answer(frame.body, agent).write(to: &body)
        }
        body.append(UInt8(ascii: "}"))
        return body
    }

    /// The body to POST, and where, to let the turn continue. The digest ensures that the approval is of what was seen.
    private static func answer(_ request: JSON, _ agent: String) -> JSON {
        func decision(_ type: String) -> JSON {
            .compact(("type", .string(type)), ("approval", request["approval"]), ("args_sha256", request["args_sha256"]))
        }
        return .compact(("path", .string("/v1/agents/\(agent)")), ("approve", decision("approve")), ("deny", decision("deny")))
    }
}
