package import ParleyLog
package import ParleySystem

/// What an agent is doing, as the index lists it. The raw value is stored.
package enum AgentStatus: UInt8, Sendable, CaseIterable {
    case idle = 1
    case running, waiting, parked, stalled, closed

    package var name: String { "\(self)" }
}

/// The rows of family `index` that say what agents do: `[partition][status][channel]` to the channel's name.
package enum AgentIndex {
    package static func key(_ status: AgentStatus, _ id: ChannelID) -> Bytes {
        var key = prefix(status, partition: id.partition)
        key.append(bigEndian: id.number)
        return key
    }

    private static func prefix(_ status: AgentStatus, partition: UInt16) -> Bytes {
        var key = Bytes()
        key.append(bigEndian: partition)
        key.append(status.rawValue)
        return key
    }

    /// Visits the names of the agents that do one of `statuses`, partition by partition, until `visit` returns false.
    /// Cost: one seek a partition and status, and what is visited.
    package static func scan(
        _ log: any CommitLog, in partitions: PartitionSet = .all, _ statuses: [AgentStatus],
        _ visit: (_ name: String, _ status: AgentStatus) -> Bool
    ) throws(LogError) {
        var continues = true
        for partition in partitions.numbers {
            for status in statuses where continues {
                let prefix = prefix(status, partition: partition)
                try log.scan(.index, from: prefix, to: prefix.endOfPrefix, reversed: false) { _, value in
                    continues = visit(String(decoding: value, as: UTF8.self), status)
                    return continues
                }
            }
        }
    }

    /// How many rows of each status are read at once to be put in order.
    private static let listedAtOnce = 256

    /// Visits the agents that do one of `statuses`, by partition and there by age, from behind the one named `after` on, until `visit` returns
    /// false.
    ///
    /// An agent keeps its place whatever it does, and also when it is deleted, so that a list continues where it stopped.
    /// Cost: as ``scan(_:_:_:)``, and up to 256 rows of each status and partition that are read without being visited.
    package static func list(
        _ log: any CommitLog, _ statuses: [AgentStatus], after: String?, _ visit: (_ name: String, _ status: AgentStatus) -> Bool
    ) throws(LogError) {
        var place = ChannelID(partition: 0, number: 0)
        if let after {
            // The name of an agent that never existed has a partition all the same, and a list may begin there.
            place =
                try log.get(.names, Placement.nameKey(after)).flatMap { NameRow($0) }?.id
                ?? ChannelID(partition: Placement.partition(of: after), number: 0)
        }
        for partition in place.partition..<Placement.partitionCount {
            var last: UInt64? = partition == place.partition ? place.number : 0
            while let number = last {
                let (rows, upTo) = try rows(log, statuses, behind: ChannelID(partition: partition, number: number))
                for row in rows where !visit(row.name, row.status) { return }
                last = upTo
            }
        }
    }

    /// The next rows of all statuses in the order of their channels, and up to which channel they are complete if there may be more.
    private static func rows(
        _ log: any CommitLog, _ statuses: [AgentStatus], behind place: ChannelID
    ) throws(LogError) -> (rows: [(number: UInt64, name: String, status: AgentStatus)], upTo: UInt64?) {
        var rows: [(number: UInt64, name: String, status: AgentStatus)] = []
        var upTo: UInt64?
        for status in statuses {
            var count = 0
            let end = prefix(status, partition: place.partition).endOfPrefix
            let first = key(status, ChannelID(partition: place.partition, number: place.number + 1))
            try log.scan(.index, from: first, to: end, reversed: false) { key, value in
                rows.append((key.readBigEndian(at: 3), String(decoding: value, as: UTF8.self), status))
                count += 1
                return count < listedAtOnce
            }
            if count == listedAtOnce { upTo = min(upTo ?? .max, rows.last!.number) }
        }
        return (rows.filter { $0.number <= upTo ?? .max }.sorted { $0.number < $1.number }, upTo)
    }
}

extension Channel {
    /// Sets what the agent is doing, in the index and in the channel's row, from this commit on. Writer thread.
    package func move(to status: AgentStatus, turn: UInt64?, in stage: inout Stage) {
        let before = staged.row.agent!.status
        if before != status { stage.delete(.index, AgentIndex.key(before, id)) }
        (staged.row.agent!.status, staged.row.agent!.turn) = (status, turn)
        staged.isRowChanged = true
        stage.put(.index, AgentIndex.key(status, id), Bytes(name.utf8))
    }
}
