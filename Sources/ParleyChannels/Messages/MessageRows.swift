internal import ParleyLog
internal import ParleySystem

/// What a change of a row means for a message between partitions, for observers of commits.
package enum PartitionMessageChange: String, Sendable {
    case sent
    case taken
    case letGo = "let go"

    /// - Parameter key: Of family `outbox`. `nil` for rows that are of no such message.
    package init?(isPut: Bool, _ key: UnsafeRawBufferPointer) {
        guard key.count > 10, key.readBigEndian(at: 2, as: UInt64.self) == 0 else { return nil }
        switch (MessageRows.Mark(rawValue: key[10]), isPut) {
        case (.message, true): self = .sent
        case (.message, false): self = .letGo
        case (.taken, true): self = .taken
        default: return nil
        }
    }
}

/// From one partition to another.
struct Route: Hashable, Sendable, Comparable {
    let source: UInt16
    let destination: UInt16

    static func < (a: Route, b: Route) -> Bool { (a.source, a.destination) < (b.source, b.destination) }
}

/// The rows of messages between partitions, in family `outbox`, where no channel has the number 0:
///
///     [source][0][2][destination][sequence]    a message that has not been taken yet
///     [source][0][3]                           u64: the last sequence that was given
///     [destination][0][4][source]              u64: the last sequence that was taken
///
/// Sequences rise, and may have gaps.
enum MessageRows {
    fileprivate enum Mark: UInt8 {
        case message = 2
        case given
        case taken
    }

    private static func prefix(_ partition: UInt16, _ mark: Mark) -> Bytes {
        ChannelID(partition: partition, number: 0).key([mark.rawValue])
    }

    static func key(_ route: Route, _ sequence: UInt64) -> Bytes {
        var key = prefix(route.source, .message)
        key.append(bigEndian: route.destination)
        key.append(bigEndian: sequence)
        return key
    }

    static func given(_ source: UInt16) -> Bytes { prefix(source, .given) }

    static func taken(_ route: Route) -> Bytes {
        var key = prefix(route.destination, .taken)
        key.append(bigEndian: route.source)
        return key
    }

    /// Whether a row of the partition counts messages, and is none.
    static func isCounter(_ key: UnsafeRawBufferPointer) -> Bool { key[10] == Mark.given.rawValue || key[10] == Mark.taken.rawValue }

    /// Messages of a route, in order.
    struct Page: Sendable {
        var messages: [(sequence: UInt64, message: Bytes)] = []
        /// There were no more.
        var isWhole = true
    }

    /// The messages from `sequence` on, as of the last commit: as many as one delivery takes.
    static func page(_ route: Route, from sequence: UInt64, in log: any CommitLog) throws(LogError) -> Page {
        var (page, bytes) = (Page(), 0)
        let end = key(Route(source: route.source, destination: route.destination + 1), 0)
        try log.scan(.outbox, from: key(route, sequence), to: end, reversed: false) { key, value in
            page.messages.append((key.readBigEndian(at: key.count - 8), Bytes(value)))
            bytes += value.count
            page.isWhole = page.messages.count < Delivery.countMax && bytes < Delivery.bytesMax
            return page.isWhole
        }
        return page
    }

    /// To which partitions there are messages that have not been taken. Cost: a seek, and one for each that is found.
    static func destinations(from source: UInt16, in log: any CommitLog) throws(LogError) -> [UInt16] {
        var found: [UInt16] = []
        var (lower, upper) = (prefix(source, .message), prefix(source, .given))
        while let row = try log.first(.outbox, from: lower, to: upper) {
            let destination: UInt16 = row.key.readBigEndian(at: 11)
            found.append(destination)
            lower = key(Route(source: source, destination: destination + 1), 0)
        }
        return found
    }
}
