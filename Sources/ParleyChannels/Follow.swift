package import ParleyLog
internal import ParleySystem

/// A step of a turn that waits for entries of another channel: a row in family `index`, until it has ended.
///
/// The row is in the follower's partition. In that of the channel which is followed stands a ``Watch``, by which its next append, its end or its
/// removal has the follower told, once.
package struct Follow: Sendable, Hashable {
    /// The channel of the agent that follows.
    package var follower: String
    /// `<turn>/<step>`.
    package var id: String
    /// What it follows, and the offset up to which it has read.
    package var followed: String
    package var after: UInt64
    /// The channel that had the name when the step began (``ChannelID/text``): another one of that name is not what is followed.
    package var incarnation: String?

    package init(follower: String, id: String, followed: String, after: UInt64, incarnation: String?) {
        (self.follower, self.id, self.followed, self.after, self.incarnation) = (follower, id, followed, after, incarnation)
    }

    /// Whether `channel` is the one that is followed.
    package func isOf(_ channel: Channel) -> Bool {
        !channel.tail.isDeleted && (incarnation == nil || incarnation == channel.id.text)
    }

    package func key(_ channel: ChannelID) -> FollowKey { FollowKey(channel: channel, step: id) }

    /// What its channel is to be watched for; `nil` while there is none.
    fileprivate func watch(_ channel: ChannelID, after: UInt64) -> Watch? {
        incarnation.flatMap { ChannelID(text: $0) }.map { Watch(follow: key(channel), followed: $0, name: followed, after: after) }
    }
}

/// Which step of which agent follows something: the key of its row.
package struct FollowKey: Sendable, Hashable {
    package let channel: ChannelID
    /// `<turn>/<step>`.
    package let step: String

    package init(channel: ChannelID, step: String) { (self.channel, self.step) = (channel, step) }

    var bytes: Bytes {
        var key = IndexMark.follow.key(channel)
        key.append(step)
        return key
    }
}

/// A change of an agent's follows in a batch of its owner.
package enum FollowChange: Sendable {
    case begins(Follow)
    case ends(FollowKey)
}

/// What is stored of a follow.
package struct FollowRow: Sendable {
    package var follow: Follow
    /// What the follower knows about the channel that it follows.
    package var news: News

    package enum News: String, Sendable {
        /// It will be told.
        case awaited
        /// It has been told, and nothing watches the channel for it any more.
        case told
        /// Rows of before there were watches.
        case unwatched
    }

    init?(_ bytes: some Collection<UInt8>) {
        guard let json = try? JSON.parse(Bytes(bytes)), let follower = json["follower"]?.string, let id = json["id"]?.string,
            let followed = json["followed"]?.string, let after = json["after"]?.string.flatMap({ Offset(token: $0) })
        else { return nil }
        follow = Follow(follower: follower, id: id, followed: followed, after: after.value, incarnation: json["incarnation"]?.string)
        news = json["news"]?.string.flatMap { News(rawValue: $0) } ?? .unwatched
    }

    fileprivate init(_ follow: Follow, _ news: News) { (self.follow, self.news) = (follow, news) }

    fileprivate var bytes: Bytes {
        JSON.compact(
            ("follower", .string(follow.follower)), ("id", .string(follow.id)), ("followed", .string(follow.followed)),
            ("after", .string(Offset(follow.after).token)), ("incarnation", follow.incarnation.map { .string($0) }),
            ("news", .string(news.rawValue))
        ).bytes
    }

    /// Visits what is followed in a partition. Cost: one seek, and what is found.
    package static func scan(_ log: any CommitLog, _ partition: UInt16, _ visit: (ChannelID, FollowRow) -> Void) throws(LogError) {
        let (lower, upper) = IndexMark.follow.range(partition)
        try scan(log, from: lower, to: upper, visit)
    }

    /// Visits what an agent follows.
    fileprivate static func scan(_ log: any CommitLog, of id: ChannelID, _ visit: (FollowRow) -> Void) throws(LogError) {
        let (lower, upper) = IndexMark.follow.range(id)
        try scan(log, from: lower, to: upper) { visit($1) }
    }

    private static func scan(
        _ log: any CommitLog, from lower: Bytes, to upper: Bytes, _ visit: (ChannelID, FollowRow) -> Void
    ) throws(LogError) {
        try log.scan(.index, from: lower, to: upper, reversed: false) { key, value in
            if let row = FollowRow(value) { visit(ChannelID(partition: key.readBigEndian(at: 0), number: key.readBigEndian(at: 3)), row) }
            return true
        }
    }
}

/// A follower's wish to be told, once, that there is something behind an offset of a channel: a row in family `index`, in the channel's partition,
/// `[channel][follower][step]`, until the follower has been told.
struct Watch: Sendable, Equatable {
    let follow: FollowKey
    let followed: ChannelID
    /// The name of the channel.
    let name: String
    let after: UInt64

    static func key(_ followed: ChannelID, _ follow: FollowKey) -> Bytes {
        var key = IndexMark.watch.key(followed)
        key.append(contentsOf: follow.channel.key)
        key.append(follow.step)
        return key
    }
}

extension ChannelID {
    /// Tells channels apart that have had the same name one after another.
    package var text: String { "\(partition)-\(number)" }

    init?(text: String) {
        let parts = text.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 2, let partition = UInt16(parts[0]), let number = UInt64(parts[1]) else { return nil }
        self.init(partition: partition, number: number)
    }
}

// MARK: - The writer's side, for the follower

extension FollowChange {
    /// - Parameter before: What there is of it; only needed where it ends.
    func write(_ channel: ChannelID, _ before: FollowRow?, _ messages: Messages, in stage: inout Stage) {
        switch self {
        case .begins(let follow):
            stage.put(.index, follow.key(channel).bytes, FollowRow(follow, .awaited).bytes)
            if let watch = follow.watch(channel, after: follow.after) { messages.post(.watch(watch), from: channel.partition, in: &stage) }
        case .ends(let key):
            stage.delete(.index, key.bytes)
            before?.unwatch(channel, messages, in: &stage)
        }
    }
}

extension FollowRow {
    fileprivate func unwatch(_ channel: ChannelID, _ messages: Messages, in stage: inout Stage) {
        guard news == .awaited, let watch = follow.watch(channel, after: follow.after) else { return }
        messages.post(.unwatch(watch), from: channel.partition, in: &stage)
    }
}

extension Channels {
    /// Removes the watches of everything that an agent follows. ``Messages/ready(_:in:)`` has been called.
    func unwatchAll(of id: ChannelID, in stage: inout Stage) throws(LogError) {
        var rows: [FollowRow] = []
        try FollowRow.scan(stage.log, of: id) { rows.append($0) }
        for row in rows { row.unwatch(id, messages, in: &stage) }
    }
}

extension FollowKey {
    func row(in stage: Stage) throws(LogError) -> FollowRow? { try stage.get(.index, bytes).flatMap { FollowRow($0) } }

    /// Notes that there are new entries. The follower reads them, in this process or the next.
    func tell(in stage: inout Stage) throws(LogError) -> [Effect] {
        guard var row = try row(in: stage) else { return [] }
        row.news = .told
        stage.put(.index, bytes, row.bytes)
        return [.followed(row.follow.follower)]
    }
}

/// Watches a channel again for a step that was notified and found nothing to read.
package struct FollowAgain: Sendable {
    package let key: FollowKey
    /// The channel, and up to where there is nothing; `nil`: that is not known.
    package let read: (channel: ChannelID, upTo: UInt64)?

    package init(_ key: FollowKey) { (self.key, read) = (key, nil) }
    package init(_ key: FollowKey, of channel: ChannelID, after offset: UInt64) { (self.key, read) = (key, (channel, offset)) }

    func decide(_ channels: Channels, in stage: inout Stage) throws(LogError) -> Decision {
        guard var row = try key.row(in: stage) else { return Decision(reply: .done) }
        try channels.messages.ready(key.channel.partition, in: stage)
        // There may have been none when the step began.
        if let read { row.follow.incarnation = read.channel.text }
        guard let watch = row.follow.watch(key.channel, after: read?.upTo ?? row.follow.after) else {
            return Decision(reply: .done, effects: [.followed(row.follow.follower)])
        }
        row.news = .awaited
        stage.put(.index, key.bytes, row.bytes)
        channels.messages.post(.watch(watch), from: key.channel.partition, in: &stage)
        return Decision(reply: .done)
    }
}

// MARK: - The writer's side, for what is followed

extension Watch {
    /// Begins to watch, or notifies the follower at once of new entries or of the channel's removal. ``Messages/ready(_:in:)`` has been called.
    func begin(_ channels: Channels, in stage: inout Stage) throws(LogError) {
        guard let channel = try watched(channels, in: &stage), channel.staged.head <= after, !channel.staged.row.isClosed else {
            return channels.messages.post(.news(follow), from: followed.partition, in: &stage)
        }
        try channel.loadFollowers(stage)
        channel.staged.followers!.insert(follow)
        stage.put(.index, Watch.key(followed, follow), [])
        guard !channel.staged.row.isFollowed else { return }
        channel.staged.row.audience = .readersAndSteps
        channel.staged.isRowChanged = true
        channels.touch(channel)
    }

    func end(_ channels: Channels, in stage: inout Stage) throws(LogError) {
        try watched(channels, in: &stage)?.staged.followers?.remove(follow)
        stage.delete(.index, Watch.key(followed, follow))
    }

    /// The channel; `nil` when it is gone.
    private func watched(_ channels: Channels, in stage: inout Stage) throws(LogError) -> Channel? {
        let channel = try channels.resolve(name, at: followed, in: &stage)
        return channel?.isGone == true ? nil : channel
    }
}

extension Channel {
    /// Loads the followers of the channel. Call it before anything is changed: staged rows are not in the log yet.
    func loadFollowers(_ stage: Stage) throws(LogError) {
        guard staged.followers == nil else { return }
        var found: Set<FollowKey> = []
        if staged.row.isFollowed {
            let (lower, upper) = IndexMark.watch.range(id)
            try stage.log.scan(.index, from: lower, to: upper, reversed: false) { key, _ in
                let follower = ChannelID(partition: key.readBigEndian(at: 11), number: key.readBigEndian(at: 13))
                found.insert(FollowKey(channel: follower, step: Bytes(key[21...]).text))
                return true
            }
        }
        staged.followers = found
    }

    /// Notifies the followers of new entries, or of the end of the channel. ``loadFollowers(_:)`` and ``Messages/ready(_:in:)`` have
    /// been called.
    func tellFollowers(_ messages: Messages, in stage: inout Stage) {
        guard staged.row.isFollowed else { return }
        // Sorted, so that a simulated run follows from its seed.
        for follow in staged.followers!.sorted(by: { ($0.channel.text, $0.step) < ($1.channel.text, $1.step) }) {
            stage.delete(.index, Watch.key(id, follow))
            messages.post(.news(follow), from: id.partition, in: &stage)
        }
        staged.followers = []
        staged.row.audience = .readers
        staged.isRowChanged = true
    }
}
