/// What an entry of a channel is. The raw value is what is stored: never reused, never renumbered.
package enum EntryKind: UInt8, Sendable, CaseIterable {
    /// The bytes of a plain stream: one append of a byte stream, one message of a JSON stream.
    case data = 0
    /// Stands for offsets whose entries have been trimmed.
    case hole = 1

    // What anyone with the right to may append to an agent's channel.
    case message = 16
    case steer, interrupt, cancel, approve, deny, signal, close, resume

    // What only the agent's owner appends.
    case turnStarted = 32
    case turnCompleted, turnFailed, turnInterrupted, turnCancelled
    case stepStarted, text, stepCompleted, stepFailed
    case receipt
    case approvalRequested, approvalDecided
    case timerSet, timerFired
    case childStarted, childEnded
    case supervision, budget, agentStalled, agentClosed
    case memoryWritten, memoryRecalled, memoryForgotten
    case emit
    case agentParked, agentResumed

    /// The `type` on the wire.
    package var name: String {
        switch self {
        case .data: "data"
        case .hole: "hole"
        case .message: "message"
        case .steer: "steer"
        case .interrupt: "interrupt"
        case .cancel: "cancel"
        case .approve: "approve"
        case .deny: "deny"
        case .signal: "signal"
        case .close: "close"
        case .resume: "resume"
        case .turnStarted: "turn.started"
        case .turnCompleted: "turn.completed"
        case .turnFailed: "turn.failed"
        case .turnInterrupted: "turn.interrupted"
        case .turnCancelled: "turn.cancelled"
        case .stepStarted: "step.started"
        case .text: "text"
        case .stepCompleted: "step.completed"
        case .stepFailed: "step.failed"
        case .receipt: "receipt"
        case .approvalRequested: "approval.requested"
        case .approvalDecided: "approval.decided"
        case .timerSet: "timer.set"
        case .timerFired: "timer.fired"
        case .childStarted: "child.started"
        case .childEnded: "child.ended"
        case .supervision: "supervision"
        case .budget: "budget"
        case .agentStalled: "agent.stalled"
        case .agentClosed: "agent.closed"
        case .memoryWritten: "memory.written"
        case .memoryRecalled: "memory.recalled"
        case .memoryForgotten: "memory.forgotten"
        case .emit: "emit"
        case .agentParked: "agent.parked"
        case .agentResumed: "agent.resumed"
        }
    }

    /// Whether anyone with the right to may append it, and it then waits in the inbox until it is decided.
    package var isInput: Bool { (16..<32).contains(rawValue) }

    package var endsTurn: Bool {
        switch self {
        case .turnCompleted, .turnFailed, .turnInterrupted, .turnCancelled: true
        default: false
        }
    }
}

/// Some kinds of entries.
package struct EntryKinds: Sendable, Equatable, ExpressibleByArrayLiteral {
    /// A bit for each kind.
    private var bits: UInt64 = 0

    package init(_ kinds: some Sequence<EntryKind>) { for kind in kinds { bits |= 1 << kind.rawValue } }
    package init(arrayLiteral kinds: EntryKind...) { self.init(kinds) }

    package var isEmpty: Bool { bits == 0 }

    /// In the order of their numbers.
    package var kinds: some Sequence<EntryKind> {
        EntryKind.allCases.lazy.filter { [bits] in bits & 1 << $0.rawValue != 0 }
    }

    package func union(_ other: EntryKinds) -> EntryKinds {
        var all = self
        all.bits |= other.bits
        return all
    }
}
