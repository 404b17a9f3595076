package import ParleyLog
package import ParleySystem

/// What an agent is doing, as the index lists it. The raw value is stored.
package enum AgentStatus: UInt8, Sendable, CaseIterable {
    case idle = 1
    case running, waiting, parked, stalled, closed

    package var name: String { "\(self)" }
}

/// The rows of family `index` that are about agents: `[partition][status][channel]` to the channel's name, and what their steps follow.
package enum AgentIndex {
    /// The row of a step that follows another channel; it goes with the channel.
    package static func followKey(_ id: ChannelID, _ step: String) -> Bytes {
        var key = IndexMark.follow.key(id)
        key.append(step)
        return key
    }

    /// What is followed in a partition.
    package static func follows(in partition: UInt16) -> (lower: Bytes, upper: Bytes) { IndexMark.follow.range(partition) }

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
        _ log: any CommitLog, _ statuses: [AgentStatus], _ visit: (_ name: String, _ status: AgentStatus) -> Bool
    ) throws(LogError) {
        var goesOn = true
        for partition in 0..<Placement.partitionCount {
            for status in statuses where goesOn {
                var end = prefix(status, partition: partition)
                end[2] += 1
                try log.scan(.index, from: prefix(status, partition: partition), to: end, reversed: false) { _, value in
                    goesOn = visit(String(decoding: value, as: UTF8.self), status)
                    return goesOn
                }
            }
        }
    }
}

extension Channel {
    /// Has the index and the channel's row say what the agent does from this commit on. Writer thread.
    package func move(to status: AgentStatus, turn: UInt64?, in stage: inout Stage) {
        if staged.row.status != status { stage.delete(.index, AgentIndex.key(staged.row.status, id)) }
        staged.row.status = status
        staged.row.turn = turn
        staged.isRowChanged = true
        stage.put(.index, AgentIndex.key(status, id), Bytes(name.utf8))
    }
}
