internal import ParleySystem

/// The cursor of live answers: in which interval of 20 s since 2024-10-09 the answer was given.
///
/// It lets caches collapse readers that wait for the same data, and keeps them from giving one reader the same answer for ever.
enum StreamCursor {
    private static let epochMilliseconds: Int64 = 1_728_432_000_000
    private static let intervalMilliseconds: Int64 = 20_000
    /// The protocol's jitter is 1 s to 3,600 s.
    private static let jitterIntervals: ClosedRange<UInt64> = 1...180

    static func current(_ now: Timestamp) -> UInt64 {
        UInt64(max(0, (now.milliseconds - epochMilliseconds) / intervalMilliseconds))
    }

    /// The least cursor a reader may be given: above the one it came with, when that is not in the past.
    static func floor(client: UInt64?, _ world: any World) -> UInt64 {
        guard let client, client >= current(world.now) else { return 0 }
        let jitter = jitterIntervals.lowerBound + world.random() % UInt64(jitterIntervals.count)
        return client.addingReportingOverflow(jitter).overflow ? client : client + jitter
    }
}
