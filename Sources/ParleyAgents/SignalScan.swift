internal import ParleyChannels

/// How far a wait has looked through the signals of its name: each is looked at once, some at a time.
struct SignalScan: Sendable {
    /// How many signals are looked at before others have their turn.
    private static let atOnce = 1_000

    /// Signals without a condition have been looked at up to here.
    private var seen: UInt64 = 0
    /// Signals with a condition that held, and with other data.
    private var mismatched: Set<UInt64> = []
    /// Where the last look stopped before it was through; `nil`: it was through.
    private(set) var stop: UInt64?

    /// The first signal called `name` that matches.
    ///
    /// - Parameter matches: `nil` for a signal that does not count now.
    mutating func next(_ inbox: Inbox, _ name: String, _ matches: (Inbox.Entry) -> Bool?) -> UInt64? {
        let signals = inbox.signals(name)
        stop = nil
        let conditional = inbox.conditional.all.first { offset in
            guard let entry = inbox[offset], entry.kind == .signal, !mismatched.contains(offset),
                entry.row.name == InboxRow.digest(name: name),
                let isMatch = matches(entry)
            else { return false }
            if !isMatch { mismatched.insert(offset) }
            return isMatch
        }
        var looked = 0
        var place = seen
        while let offset = signals.first(after: place) {
            place = offset
            if let conditional, offset >= conditional { return conditional }
            guard let entry = inbox[offset], !entry.isConditional else { continue }
            guard looked < SignalScan.atOnce else {
                stop = seen
                return nil
            }
            looked += 1
            if matches(entry) == true { return offset }
            seen = offset
        }
        return conditional
    }
}
