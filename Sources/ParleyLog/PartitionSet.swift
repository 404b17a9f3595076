/// Some of the partitions of a data folder, by number.
package struct PartitionSet: Sendable, Equatable {
    /// A bit for each, the lowest for number 0.
    package private(set) var bits: UInt64

    /// Numbers are below this.
    package static let countMax: UInt16 = 64

    package init() { bits = 0 }
    package init(bits: UInt64) { self.bits = bits }
    package init(_ numbers: some Sequence<UInt16>) {
        self.init()
        for number in numbers { insert(number) }
    }

    package static let all = PartitionSet(bits: .max)

    package var isEmpty: Bool { bits == 0 }
    package func contains(_ number: UInt16) -> Bool { number < PartitionSet.countMax && bits & 1 << UInt64(number) != 0 }
    package mutating func insert(_ number: UInt16) {
        precondition(number < PartitionSet.countMax, "partition \(number) of \(PartitionSet.countMax)")
        bits |= 1 << UInt64(number)
    }
    package mutating func remove(_ number: UInt16) { bits &= ~PartitionSet([number]).bits }
    package func isDisjoint(with other: PartitionSet) -> Bool { bits & other.bits == 0 }

    /// - Throws: ``LogError`` with code `partition_unavailable` when this, as the set of what a process owns, does not have it.
    package func require(_ number: UInt16) throws(LogError) {
        guard !contains(number) else { return }
        throw LogError(.partitionUnavailable, "partition \(number) is not open on this node: nothing was stored. Try again later.")
    }

    /// In rising order.
    package var numbers: [UInt16] { (0..<PartitionSet.countMax).filter(contains) }
}

/// The partitions that a process writes to, and their epochs.
struct PartitionOwnership: Sendable {
    private(set) var open = PartitionSet.all
    /// The last epoch of each acquired partition, see ``CommitLog/acquire(_:)``.
    private(set) var epochs: [UInt16: UInt64] = [:]

    init(_ open: PartitionSet = .all) { self.open = open }

    mutating func open(_ partition: UInt16, epoch: UInt64) {
        open.insert(partition)
        epochs[partition] = epoch
    }

    mutating func close(_ partition: UInt16) {
        // Earlier staged rows are still of the epoch.
        open.remove(partition)
    }
}
