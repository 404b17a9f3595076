package import ParleyLog
internal import ParleySystem

/// A stream of a subscription, and how far it has been processed.
package struct SubscriptionLink: Sendable, Equatable {
    /// The subscription names the stream.
    package var isExplicit: Bool
    /// The pattern of the subscription matches the stream.
    package var isGlob: Bool
    /// The last offset that was processed.
    package var acked: UInt64
    /// The channel that `acked` belongs to; one that was recreated under its name begins from the start. `nil`: there was none, or nobody has
    /// been given it yet.
    var channel: ChannelID?

    /// As answers say it: what was asked for by name counts before what is matched.
    package var typeName: String { isExplicit ? "explicit" : "glob" }

    /// Up to where `channel` has been processed.
    func acked(in channel: Channel) -> UInt64 { channel.id == self.channel ? acked : channel.fork?.head ?? 0 }
}

/// The rows of subscriptions in family `index`, all of one in the partition of its id:
///
///     [partition][132][id][0]             the subscription (JSON)
///     [partition][132][id][0][stream]     a link: u8 flags (1 explicit, 2 glob) | u64 acked | u16 partition and u64 number of the channel
///     [partition][133][channel]           name of a stream that was created and matches a pattern, until it is linked; written by
///                                         earlier versions, which sent no messages
package enum SubscriptionRows {
    static func key(_ id: String, _ stream: String = "") -> Bytes {
        var key = IndexMark.subscription.key(Placement.partition(of: id))
        key.append(id)
        key.append(0)
        key.append(stream)
        return key
    }

    /// Behind every row of a subscription.
    static func end(_ id: String) -> Bytes { key(id).endOfPrefix }

    static func newStreamKey(_ id: ChannelID) -> Bytes { IndexMark.newStream.key(id) }

    /// The subscription of that id as of the last commit.
    package static func subscription(_ id: String, in log: any CommitLog) throws(LogError) -> Subscription? {
        try log.get(.index, key(id)).flatMap { Subscription($0) }
    }

    /// Visits the links of a subscription as of the last commit, by name, until `visit` returns false.
    ///
    /// - Parameter after: Leaves out that stream and those before it.
    package static func links(
        of id: String, after: String? = nil, in log: any CommitLog, _ visit: (_ stream: String, _ link: SubscriptionLink) -> Bool
    ) throws(LogError) {
        let prefixBytes = key(id).count
        let first = after.map { key(id, $0) + [0] } ?? key(id)
        try log.scan(.index, from: first, to: end(id), reversed: false) { key, value in
            guard key.count > prefixBytes, let link = SubscriptionLink(Bytes(value)) else { return true }
            return visit(Bytes(key[prefixBytes...]).text, link)
        }
    }

    /// Visits all subscriptions of a partition, each before its links.
    static func scan(
        _ log: any CommitLog, _ partition: UInt16, subscription: (Subscription) -> Void,
        link: (_ id: String, _ stream: String, SubscriptionLink) -> Void
    ) throws(LogError) {
        let (lower, upper) = IndexMark.subscription.range(partition)
        try log.scan(.index, from: lower, to: upper, reversed: false) { key, value in
            guard let end = key.dropFirst(3).firstIndex(of: 0) else { return true }
            let id = Bytes(key[3..<end]).text
            if end == key.count - 1 {
                if let found = Subscription(Bytes(value)) { subscription(found) }
            } else if let found = SubscriptionLink(Bytes(value)) {
                link(id, Bytes(key[(end + 1)...]).text, found)
            }
            return true
        }
    }

    /// Visits the streams of a partition that may not be linked yet.
    package static func newStreams(_ log: any CommitLog, _ partition: UInt16, _ visit: (ChannelID, String) -> Void) throws(LogError) {
        let (lower, upper) = IndexMark.newStream.range(partition)
        try log.scan(.index, from: lower, to: upper, reversed: false) { key, value in
            visit(ChannelID(partition: partition, number: key.readBigEndian(at: 3)), Bytes(value).text)
            return true
        }
    }
}

extension SubscriptionLink {
    var bytes: Bytes {
        var bytes: Bytes = [(isExplicit ? 1 : 0) | (isGlob ? 2 : 0)]
        bytes.append(bigEndian: acked)
        bytes.append(bigEndian: channel?.partition ?? 0)
        bytes.append(bigEndian: channel?.number ?? 0)
        return bytes
    }

    init?(_ bytes: Bytes) {
        guard bytes.count == 19 else { return nil }
        (isExplicit, isGlob) = (bytes[0] & 1 != 0, bytes[0] & 2 != 0)
        acked = bytes.readBigEndian(at: 1)
        let number: UInt64 = bytes.readBigEndian(at: 11)
        channel = number == 0 ? nil : ChannelID(partition: bytes.readBigEndian(at: 9), number: number)
    }
}
