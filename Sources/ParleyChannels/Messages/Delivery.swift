internal import ParleyLog
internal import ParleySystem

/// Messages on their way to the owner of a partition.
package struct Delivery: Sendable {
    let route: Route
    /// In the order in which they were posted, with none left out that has not been taken.
    let messages: [(sequence: UInt64, message: Bytes)]

    /// The bound of one delivery, which is decided at once.
    static let countMax = 256
    static let bytesMax = 256 << 10

    /// The partition that they are for.
    package var destination: UInt16 { route.destination }

    /// Writer's thread. What has been taken before is left alone, so a delivery can be repeated.
    func decide(_ channels: Channels, in stage: inout Stage) throws(LogError) -> Decision {
        let last = try channels.messages.taken(route, in: stage)
        var effects: [Effect] = []
        // What they are answered with leaves from here.
        try channels.messages.ready(route.destination, in: stage)
        for (sequence, bytes) in messages where sequence > last {
            guard let message = PartitionMessage(bytes) else {
                // An unknown or damaged message must not hold up the others.
                Diagnostics.log(.error, "message cannot be read", ["from": "\(route.source)", "to": "\(route.destination)"])
                continue
            }
            effects += try message.take(channels, in: &stage)
        }
        if let newest = messages.last?.sequence, newest > last {
            var row = Bytes()
            row.append(bigEndian: newest)
            stage.put(.outbox, MessageRows.taken(route), row)
        }
        return Decision(reply: .done, effects: effects)
    }
}

/// Messages that have been taken, so that their source can delete them.
struct MessageRemoval: Sendable {
    let route: Route
    let sequences: [UInt64]

    func decide(in stage: inout Stage) {
        for sequence in sequences { stage.delete(.outbox, MessageRows.key(route, sequence)) }
    }
}

extension PartitionMessage {
    /// Does what it says. ``Messages/ready(_:in:)`` of its destination has been called.
    fileprivate func take(_ channels: Channels, in stage: inout Stage) throws(LogError) -> [Effect] {
        switch self {
        case .watch(let watch): try watch.begin(channels, in: &stage)
        case .unwatch(let watch): try watch.end(channels, in: &stage)
        case .news(let follow): return try follow.tell(in: &stage)
        case .link(let subscription, let stream): return try channels.subscriptions?.link(stream, to: subscription, in: &stage) ?? []
        case .unlink(let subscription, let stream, let channel):
            try channels.subscriptions?.unlink(stream, of: channel, from: subscription, in: &stage)
        case .fork(let order): try order.take(channels, in: &stage)
        case .forked(let outcome): return try outcome.take(channels, in: &stage)
        case .unname(let channel): try channels.rowsAreGone(channel, in: &stage)
        case .hasRows(let fork): try channels.rowsAreThere(fork, in: &stage)
        case .hasName(let channel): try channels.nameIsThere(channel, in: &stage)
        case .unmake(let channel): return try channels.removeNameless(channel, in: &stage)
        }
        return []
    }
}
