package import ParleyLog
internal import ParleySystem

/// How many channels there may be: what a client can make by naming it needs a bound.
///
/// Counted only where there is a limit: the names there are, once at the start, and from then on by the writer. A channel that was deleted and
/// is kept for its forks counts again after a restart, until it is really gone.
struct ChannelLimit {
    private(set) var count: Int
    let max: Int

    mutating func added() { count += 1 }
    mutating func removed() { count = Swift.max(0, count - 1) }

    func check() throws(ChannelRefusal) {
        guard count >= max else { return }
        throw .refused(
            ChannelError(
                "too_many_channels", "there are \(count) channels; the limit is \(max). Delete some, or raise --max-channels.",
                [("limit", .integer(Int64(max)))]))
    }
}

extension Channels {
    /// Refuses to make channels beyond `max`, with `too_many_channels`. Called before the writer starts. Cost: a scan of all names.
    package func limitCount(to max: Int) throws(LogError) {
        var count = 0
        try log.scan(.names, from: [], to: [0xff, 0xff], reversed: false) { _, row in
            if NameRow(Array(row))?.isTombstone == false { count += 1 }
            return true
        }
        limit = ChannelLimit(count: count, max: max)
    }
}
