/// A right on a channel. Each route and each type of entry needs exactly one of these: docs/safety.md has the table.
package enum Verb: UInt8, CaseIterable, Sendable {
    /// Following and looking: streams, status, trace, audit.
    case read = 1
    /// Saying something: messages, signals, data; creating.
    case append = 2
    case steer = 4
    case approve = 8
    /// Ending what runs: interrupt, cancel, close.
    case stop = 16
    /// Everything, and removing.
    case admin = 32

    package var name: String { "\(self)" }

    package init?(name: some StringProtocol) {
        guard let verb = Verb.allCases.first(where: { $0.name == name }) else { return nil }
        self = verb
    }
}

/// A set of verbs.
package struct Verbs: OptionSet, Hashable, Sendable {
    package let rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }
    package init(_ verbs: [Verb]) { self.init(rawValue: verbs.reduce(0) { $0 | $1.rawValue }) }

    static let all = Verbs(Verb.allCases)

    /// Whether they allow `verb`: `admin` allows all.
    package func allow(_ verb: Verb) -> Bool { rawValue & (verb.rawValue | Verb.admin.rawValue) != 0 }

    package var names: [String] { Verb.allCases.filter { rawValue & $0.rawValue != 0 }.map(\.name) }
}
