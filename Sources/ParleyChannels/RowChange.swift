package import ParleyLog
package import ParleySystem

/// A row of a partition, written or deleted apart from what happens to channels: a mark, or a row that has served its turn.
package final class RowChange: Submission, @unchecked Sendable {  // Guard: `holds` is touched by the writer thread only.
    package typealias Completion = @Sendable (Result<Bool, LogError>) -> Void

    private let (family, key): (Family, Bytes)
    /// `nil` deletes the row.
    private let value: Bytes?
    /// Leaves a row alone that is gone: it went with its channel.
    private let ifThere: Bool
    private let completion: Completion
    private var holds = true

    /// - Parameter completion: Called once, on the writer thread, with whether it was written: ``ifThere`` was not asked for, or holds.
    private init(_ family: Family, _ key: Bytes, _ value: Bytes?, ifThere: Bool, _ completion: @escaping Completion) {
        (self.family, self.key, self.value, self.ifThere, self.completion) = (family, key, value, ifThere, completion)
    }

    package static func put(
        _ family: Family, _ key: Bytes, _ value: Bytes, ifThere: Bool = false, _ completion: @escaping Completion = { _ in }
    ) -> RowChange {
        RowChange(family, key, value, ifThere: ifThere, completion)
    }

    package static func delete(
        _ family: Family, _ key: Bytes, ifThere: Bool = false, _ completion: @escaping Completion = { _ in }
    ) -> RowChange {
        RowChange(family, key, nil, ifThere: ifThere, completion)
    }

    package var partition: UInt16? { key.readBigEndian(at: 0) }
    package var cost: Int { 128 + key.count + (value?.count ?? 0) }

    package func stage(into stage: inout Stage) throws(LogError) {
        if ifThere { holds = try stage.get(family, key) != nil }
        guard holds else { return }
        if let value { stage.put(family, key, value) } else { stage.delete(family, key) }
    }

    package func committed() { completion(.success(holds)) }
    package func failed(_ error: LogError) { completion(.failure(error)) }
}
