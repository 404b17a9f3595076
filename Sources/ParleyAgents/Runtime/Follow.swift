internal import FoundationEssentials
internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// The findings of a step in the channel that it follows.
enum FollowReading: Sendable {
    /// Nothing to give up to that offset of the channel.
    case nothing(upTo: UInt64, of: ChannelID)
    case outcome(StepOutcome)
}

extension Follow {
    private static let entriesMax = 64
    private static let bytesMax = 256 << 10

    func read(_ channels: Channels) throws(LogError) -> FollowReading {
        guard let channel = try channels.find(followed), isOf(channel) else { return notFound }
        let (head, isClosed, isDeleted) = channel.tail
        guard !isDeleted else { return notFound }
        var (entries, bytes, last) = ([JSON](), 0, after)
        try channels.walk(channel, after: after, upTo: head) { offset, frame in
            last = offset
            if let value = frame.value(offset, of: channel) {
                entries.append(["offset": .string(Offset(offset).token), "value": value])
                bytes += frame.payload.count
            }
            return entries.count < Follow.entriesMax && bytes < Follow.bytesMax
        }
        // A removal that overtakes the walk must not look like the end of the channel.
        if entries.isEmpty, head > after, try channels.isRemoved(channel) { return notFound }
        let hasEnded = isClosed && last >= head
        guard !entries.isEmpty || hasEnded else { return .nothing(upTo: last, of: channel.id) }
        let result = JSON.compact(
            ("entries", .array(entries)), ("ended", hasEnded ? true : nil), ("incarnation", .string(channel.id.text)))
        return .outcome(.completed(["result": result]))
    }

    private var notFound: FollowReading {
        let failure = StepFailure(
            code: "channel_not_found", message: "there is no channel '\(followed)' any more, or none yet", retryable: false)
        return .outcome(.failed(failure))
    }
}

extension Frame {
    /// The entry as followers of its channel get it; `nil` for one that is no longer there.
    fileprivate func value(_ offset: UInt64, of channel: Channel) -> JSON? {
        guard kind != .hole else { return nil }
        var bytes = Bytes()
        writeJSON(offset: offset, owner: channel.name, to: &bytes)
        if channel.isJSON { return try? JSON.parse(stored: bytes) }
        if ContentType.isText(channel.contentType) { return .string(bytes.text) }
        return .string(Data(bytes).base64EncodedString())
    }
}
