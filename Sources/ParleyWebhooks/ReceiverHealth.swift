internal import ParleySystem

/// Tracks which receivers fail, so that the log reports it once when it begins and once when it is over, however many attempts there are in between.
///
/// Decides only: time is passed in, and what is to be said is returned.
struct ReceiverHealth {
    enum Report: Equatable {
        /// A receiver that answered before, or was never asked, has begun to fail.
        case fails
        /// It answers again, after so many failed attempts.
        case answersAgain(afterFailures: Int)
    }

    private struct Failing {
        var count = 1
        var isTold: Bool
        var last: Timestamp
    }

    private var failing: [String: Failing] = [:]
    /// Before this, the same receiver's next failure is not logged: one that fails every other time would be logged for ever.
    private var quiet: [String: Timestamp] = [:]

    /// Receivers that are remembered, and how long one is quiet after a report that it fails.
    static let receiversMax = 1_000
    static let quietTime = Duration.seconds(60)
    /// Attempts come more often as long as there are any.
    private static let memory = Duration.seconds(7_200)

    /// An attempt has failed.
    mutating func failed(_ receiver: String, _ now: Timestamp) -> Report? {
        if failing[receiver] != nil {
            failing[receiver]!.count += 1
            failing[receiver]!.last = now
            return nil
        }
        if failing.count >= ReceiverHealth.receiversMax {
            // These have not been asked about for long.
            failing = failing.filter { $0.value.last.advanced(by: ReceiverHealth.memory) > now }
        }
        if quiet.count >= ReceiverHealth.receiversMax { quiet = quiet.filter { $0.value > now } }
        // More than can be remembered fail: the metrics count them.
        guard failing.count < ReceiverHealth.receiversMax, quiet.count < ReceiverHealth.receiversMax else { return nil }
        let isTold = quiet[receiver].map { $0 <= now } ?? true
        failing[receiver] = Failing(isTold: isTold, last: now)
        guard isTold else { return nil }
        quiet[receiver] = now.advanced(by: ReceiverHealth.quietTime)
        return .fails
    }

    /// An attempt was taken.
    mutating func delivered(_ receiver: String) -> Report? {
        guard let ended = failing.removeValue(forKey: receiver), ended.isTold else { return nil }
        return .answersAgain(afterFailures: ended.count)
    }
}
