internal import ParleySystem

/// A message from one partition to another, taken once and in the order of posting.
enum PartitionMessage: Sendable {
    /// A step of an agent follows a channel of the other partition: it wants to be told once there is something new.
    case watch(Watch)
    /// The step does not want to be told any more.
    case unwatch(Watch)
    /// There is something new in the channel that a step of an agent of the other partition follows, or it has ended.
    case news(FollowKey)
    /// A stream was made that matches the pattern of a subscription of the other partition.
    case link(subscription: String, stream: String)
    /// A stream was removed that matches the pattern of a subscription of the other partition.
    case unlink(subscription: String, stream: String, channel: ChannelID)
    /// A channel that is to be made forks from one whose name is of the other partition, or whose rows are there.
    case fork(ForkOrder)
    /// The outcome of such a fork.
    case forked(ForkOutcome)
    /// The channel is not there any more: if its name still leads to it, that goes, too.
    case unname(ChannelReference)
    /// There are rows of a fork: if its name does not lead to them, they are to be removed.
    case hasRows(ChannelReference)
    /// A name leads to a channel: if there is none, it is to be deleted.
    case hasName(ChannelReference)
    /// The name of the channel does not lead to it: its rows are to be removed.
    case unmake(ChannelReference)

    /// The partition that the message is for.
    var destination: UInt16 {
        switch self {
        case .watch(let watch), .unwatch(let watch): watch.followed.partition
        case .news(let follow): follow.channel.partition
        case .link(let subscription, _), .unlink(let subscription, _, _): Placement.partition(of: subscription)
        case .fork(let order): order.destination
        case .forked(let outcome): outcome.request.home
        case .unname(let channel), .hasRows(let channel): channel.home
        case .hasName(let channel), .unmake(let channel): channel.id.partition
        }
    }
}

// MARK: - The stored form

extension PartitionMessage {
    var bytes: Bytes {
        switch self {
        case .watch(let watch): watch.json("watch").bytes
        case .unwatch(let watch): watch.json("unwatch").bytes
        case .news(let follow):
            JSON.compact(("type", "news"), ("follower", .string(follow.channel.text)), ("step", .string(follow.step))).bytes
        case .link(let subscription, let stream):
            JSON.compact(("type", "link"), ("subscription", .string(subscription)), ("stream", .string(stream))).bytes
        case .unlink(let subscription, let stream, let channel):
            JSON.compact(
                ("type", "unlink"), ("subscription", .string(subscription)), ("stream", .string(stream)),
                ("channel", .string(channel.text))
            ).bytes
        case .fork(let order): order.json.bytes
        case .forked(let outcome): outcome.json.bytes
        case .unname(let channel): channel.json("unname").bytes
        case .hasRows(let channel): channel.json("has_rows").bytes
        case .hasName(let channel): channel.json("has_name").bytes
        case .unmake(let channel): channel.json("unmake").bytes
        }
    }

    init?(_ bytes: Bytes) {
        guard let json = try? JSON.parse(bytes) else { return nil }
        switch json["type"]?.string {
        case "watch":
            guard let watch = Watch(json) else { return nil }
            self = .watch(watch)
        case "unwatch":
            guard let watch = Watch(json) else { return nil }
            self = .unwatch(watch)
        case "news":
            guard let follow = FollowKey(json) else { return nil }
            self = .news(follow)
        case "link":
            guard let subscription = json["subscription"]?.string, let stream = json["stream"]?.string else { return nil }
            self = .link(subscription: subscription, stream: stream)
        case "unlink":
            guard let subscription = json["subscription"]?.string, let stream = json["stream"]?.string,
                let channel = json["channel"]?.string.flatMap({ ChannelID(text: $0) })
            else { return nil }
            self = .unlink(subscription: subscription, stream: stream, channel: channel)
        case "fork":
            guard let order = ForkOrder(json) else { return nil }
            self = .fork(order)
        case "forked":
            guard let outcome = ForkOutcome(json) else { return nil }
            self = .forked(outcome)
        case let type?:
            guard let channel = ChannelReference(json) else { return nil }
            switch type {
            case "unname": self = .unname(channel)
            case "has_rows": self = .hasRows(channel)
            case "has_name": self = .hasName(channel)
            case "unmake": self = .unmake(channel)
            default: return nil
            }
        default: return nil
        }
    }
}

extension ChannelReference {
    fileprivate func json(_ type: String) -> JSON {
        .compact(("type", .string(type)), ("name", .string(name)), ("channel", .string(id.text)))
    }

    fileprivate init?(_ json: JSON) {
        guard let name = json["name"]?.string, let id = json["channel"]?.string.flatMap({ ChannelID(text: $0) }) else { return nil }
        self.init(name: name, id: id)
    }
}

extension Watch {
    fileprivate func json(_ type: String) -> JSON {
        .compact(
            ("type", .string(type)), ("follower", .string(follow.channel.text)), ("step", .string(follow.step)),
            ("followed", .string(followed.text)), ("name", .string(name)), ("after", .string(Offset(after).token)))
    }

    fileprivate init?(_ json: JSON) {
        guard let follow = FollowKey(json), let followed = json["followed"]?.string.flatMap({ ChannelID(text: $0) }),
            let name = json["name"]?.string, let after = json["after"]?.string.flatMap({ Offset(token: $0) })
        else { return nil }
        self.init(follow: follow, followed: followed, name: name, after: after.value)
    }
}

extension FollowKey {
    fileprivate init?(_ json: JSON) {
        guard let channel = json["follower"]?.string.flatMap({ ChannelID(text: $0) }), let step = json["step"]?.string else { return nil }
        self.init(channel: channel, step: step)
    }
}
