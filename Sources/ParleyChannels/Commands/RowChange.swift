package import ParleyLog
package import ParleySystem

/// A row of a partition, written or deleted apart from what happens to channels: a mark, or a row that has served its turn.
package struct RowChange: Sendable {
    let (family, key): (Family, Bytes)
    /// `nil` deletes the row.
    let value: Bytes?
    /// Leaves a row alone that is gone: it went with its channel.
    let ifThere: Bool
    /// Whether it is refused where too much waits.
    package var isBounded = true

    private init(_ family: Family, _ key: Bytes, _ value: Bytes?, ifThere: Bool) {
        (self.family, self.key, self.value, self.ifThere) = (family, key, value, ifThere)
    }

    package static func put(_ family: Family, _ key: Bytes, _ value: Bytes, ifThere: Bool = false) -> RowChange {
        RowChange(family, key, value, ifThere: ifThere)
    }

    package static func delete(_ family: Family, _ key: Bytes, ifThere: Bool = false) -> RowChange {
        RowChange(family, key, nil, ifThere: ifThere)
    }

    var partition: UInt16 { key.readBigEndian(at: 0) }

    /// - Returns: whether it was written: ``ifThere`` was not asked for, or holds.
    func decide(in stage: inout Stage) throws(LogError) -> Bool {
        if ifThere, try stage.get(family, key) == nil { return false }
        if let value { stage.put(family, key, value) } else { stage.delete(family, key) }
        return true
    }
}
