package import ParleyLog
internal import ParleySystem

/// How many channels there may be: what a client can make by naming it needs a bound.
///
/// Counted only where there is a limit: the names there are, once at the start, and from then on by the writer. A channel that was deleted and
/// is kept for its forks counts again after a restart, until it is really gone.
struct ChannelLimit {
    /// By the partition of the name.
    private var counts: [UInt16: Int]
    let max: Int

    init(counts: [UInt16: Int], max: Int) { (self.counts, self.max) = (counts, max) }

    var count: Int { counts.values.reduce(0, +) }

    mutating func added(_ name: String) { counts[Placement.partition(of: name), default: 0] += 1 }
    mutating func removed(_ name: String) {
        let partition = Placement.partition(of: name)
        counts[partition] = Swift.max(0, counts[partition, default: 0] - 1)
    }
    mutating func opened(_ partition: UInt16, names: Int) { counts[partition] = names }
    mutating func closed(_ partition: UInt16) { counts[partition] = nil }

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
        var counts: [UInt16: Int] = [:]
        for partition in openPartitions.numbers { counts[partition] = try names(in: partition) }
        limit = ChannelLimit(counts: counts, max: max)
    }

    /// How many names of a partition are taken.
    func names(in partition: UInt16) throws(LogError) -> Int {
        var count = 0
        let (lower, upper) = Placement.range(partition)
        try log.scan(.names, from: lower, to: upper, reversed: false) { _, row in
            if NameRow(Array(row))?.isTombstone == false { count += 1 }
            return true
        }
        return count
    }
}
