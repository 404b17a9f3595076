internal import ParleyChannels

/// How far a wait has looked through the signals of its name: each is looked at once, some at a time.
struct SignalScan: Sendable {
    /// How many signals are looked at before others have their turn.
    private static let atOnce = 1_000

    /// Signals have been looked at up to here: whether one counts for the running turn does not change while that runs.
    private var seen: UInt64 = 0
    /// The offset at which the last scan stopped early; `nil`: it was complete.
    private(set) var stop: UInt64?

    /// The first signal called `name` that matches.
    ///
    /// - Parameter matches: Whether a signal counts for the turn, and has what is waited for.
    mutating func next(_ inbox: Inbox, _ name: String, _ matches: (Inbox.Entry) throws -> Bool) rethrows -> UInt64? {
        let signals = inbox.signals(name)
        stop = nil
        var looked = 0
        while let offset = signals.first(after: seen) {
            guard looked < SignalScan.atOnce else {
                stop = seen
                return nil
            }
            looked += 1
            if let entry = inbox[offset], try matches(entry) { return offset }
            seen = offset
        }
        return nil
    }
}
