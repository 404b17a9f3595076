package import ParleyLog
package import ParleySystem

/// One channel of a list.
package struct ChannelListing: Sendable, Equatable {
    package var name: String
    package var contentType: String
    package var isAgent: Bool
    package var isClosed: Bool
    package var created: Timestamp
    package var tail: UInt64
}

extension Channels {
    /// The channels whose names begin with `prefix` and for which `isShown` holds, in the order of their names (bytewise), behind `after`.
    ///
    /// Reads the log. Cost: a seek a partition, up to `limit` rows of each, and two lookups a channel that is listed.
    /// - Returns: `limit` of them at most, and the name to continue behind when there may be more.
    package func list(
        prefix: String, after: String?, limit: Int, where isShown: (String) -> Bool = { _ in true }
    ) throws(LogError) -> (channels: [ChannelListing], next: String?) {
        try requireAllOpen()
        var names: [(name: Bytes, id: ChannelID)] = []
        for partition in 0..<Placement.partitionCount { try collect(partition, Bytes(prefix.utf8), after, limit, isShown, &names) }
        names.sort { $0.name.lexicographicallyPrecedes($1.name) }
        var channels: [ChannelListing] = []
        for (name, id) in names.prefix(limit) {
            // Half of a fork that a crash left may have a number that is another's.
            guard let row = try log.get(.channels, id.key).flatMap({ ChannelRow($0) }), !row.isSoftDeleted, Bytes(row.name.utf8) == name
            else { continue }
            let head = max(try Channels.head(of: id, in: log).0, row.fork?.head ?? 0)
            channels.append(
                ChannelListing(
                    name: name.text, contentType: row.contentType, isAgent: row.isAgent, isClosed: row.isClosed, created: row.created,
                    tail: head))
        }
        return (channels, names.count >= limit ? names[limit - 1].name.text : nil)
    }

    private func collect(
        _ partition: UInt16, _ prefix: Bytes, _ after: String?, _ limit: Int, _ isShown: (String) -> Bool,
        _ names: inout [(name: Bytes, id: ChannelID)]
    ) throws(LogError) {
        var first = prefix
        if let after = after.map({ Bytes($0.utf8) + [0] }), first.lexicographicallyPrecedes(after) { first = after }
        var (lower, upper) = (Bytes(), Bytes())
        lower.append(bigEndian: partition)
        lower.append(contentsOf: first)
        upper.append(bigEndian: partition + 1)
        var (found, count) = ([(name: Bytes, id: ChannelID)](), 0)
        try log.scan(.names, from: lower, to: upper, reversed: false) { key, value in
            let name = Bytes(key[2...])
            guard name.starts(with: prefix), count < limit else { return false }
            guard let row = NameRow(Bytes(value)), !row.isTombstone, isShown(name.text) else { return true }
            found.append((name, row.id))
            count += 1
            return true
        }
        names += found
    }
}
