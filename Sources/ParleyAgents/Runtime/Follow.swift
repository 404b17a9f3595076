internal import FoundationEssentials
internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// A step of a turn that waits for entries of another channel: a row in family `index`, until it has ended.
struct Follow: Sendable, Hashable {
    /// The channel of the agent that follows.
    var follower: String
    /// `<turn>/<step>`.
    var id: String
    /// What it follows, and the offset up to which it has read.
    var followed: String
    var after: UInt64
    /// The channel that had the name when the step began (``ChannelID/incarnation``): another one of that name is not what is followed.
    var incarnation: String?

    func key(_ channel: ChannelID) -> Bytes { AgentIndex.followKey(channel, id) }

    var row: Bytes {
        JSON.compact(
            ("follower", .string(follower)), ("id", .string(id)), ("followed", .string(followed)), ("after", .string(Offset(after).token)),
            ("incarnation", incarnation.map { .string($0) })
        ).bytes
    }

    init(follower: String, id: String, followed: String, after: UInt64, incarnation: String?) {
        (self.follower, self.id, self.followed, self.after, self.incarnation) = (follower, id, followed, after, incarnation)
    }

    /// Whether `channel` is the one that is followed.
    func isOf(_ channel: Channel) -> Bool {
        !channel.tail.isDeleted && (incarnation == nil || incarnation == channel.id.incarnation)
    }

    init?(row: UnsafeRawBufferPointer) {
        guard let json = try? JSON.parse(Bytes(row)), let follower = json["follower"]?.string, let id = json["id"]?.string,
            let followed = json["followed"]?.string, let after = json["after"]?.string.flatMap({ Offset(token: $0) })
        else { return nil }
        self.init(follower: follower, id: id, followed: followed, after: after.value, incarnation: json["incarnation"]?.string)
    }
}

extension ChannelID {
    /// Tells channels apart that have had the same name one after another.
    var incarnation: String { "\(partition)-\(number)" }
}

extension Follow {
    private static let entriesMax = 64
    private static let bytesMax = 256 << 10

    /// What the step that follows gives; `nil` while there is nothing new.
    func outcome(_ channels: Channels) throws(LogError) -> StepOutcome? {
        guard let channel = try channels.find(followed), isOf(channel) else {
            let failure = StepFailure(
                code: "channel_not_found", message: "there is no channel '\(followed)' any more, or none yet", retryable: false)
            return .failed(failure)
        }
        let (head, isClosed, _) = channel.tail
        var (entries, bytes, last) = ([JSON](), 0, after)
        try channels.walk(channel, after: after, upTo: head) { offset, frame in
            last = offset
            if let value = frame.value(offset, of: channel) {
                entries.append(["offset": .string(Offset(offset).token), "value": value])
                bytes += frame.payload.count
            }
            return entries.count < Follow.entriesMax && bytes < Follow.bytesMax
        }
        let hasEnded = isClosed && last >= head
        guard !entries.isEmpty || hasEnded else { return nil }
        let result = JSON.compact(
            ("entries", .array(entries)), ("ended", hasEnded ? true : nil), ("incarnation", .string(channel.id.incarnation)))
        return .completed(["result": result])
    }
}

extension Frame {
    /// The entry as followers of its channel get it; `nil` for what is no entry any more.
    fileprivate func value(_ offset: UInt64, of channel: Channel) -> JSON? {
        guard kind != .hole else { return nil }
        var bytes = Bytes()
        writeJSON(offset: offset, owner: channel.name, to: &bytes)
        if channel.isJSON { return try? JSON.parse(bytes) }
        if ContentType.isText(channel.contentType) { return .string(bytes.text) }
        return .string(Data(bytes).base64EncodedString())
    }
}
