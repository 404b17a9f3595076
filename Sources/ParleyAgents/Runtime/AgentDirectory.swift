internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// The agents in memory, and those that wait for room: at most a fixed number are in memory, and the rest are admitted by name, first come, first
/// served.
///
/// A place in the queue can be lost without losing anything else: an agent's work is durable, and the queue only says which agents have some.
final class AgentDirectory: Sendable {
    /// The work of an agent.
    enum Call: Sendable {
        /// Take its inbox up to that offset of its channel.
        case takeInput(upTo: UInt64, of: ChannelID)
        /// Take up what there is: an open turn, its inbox, what it follows.
        case wake
        case fire(DueTimer, of: ChannelID)
    }

    enum Answer {
        case delivered
        /// It waits for room, the first to do so.
        case isCrowded
        /// No more names are remembered: a timer is to fire again once there is ``hasRoomForTimers``.
        case isFull
        /// The channel's object was released since it was found; find it again.
        case isStale
    }

    private struct State {
        var activations: [String: AgentDriver] = [:]
        /// Names with a place and no activation yet.
        var admitted: Set<String> = []
        var waiting: [String: [Call]] = [:]
        var order = Fifo<String>()
        /// Calls were dropped because too many names wait.
        var hasDropped = false
        /// The place that the pass over dropped calls has reached; `nil`: there is no pass.
        var pass: ChannelID?
    }

    private let countMax: Int
    private let waitingMax: Int
    /// How long an agent stays in memory with nothing to do.
    let idleAfter: Duration
    private let closed = Atomic<Bool>(false)
    /// The number of agents that the log names at a time. That leaves room for those that are called meanwhile: the ones named may be agents that can
    /// do nothing yet.
    var pageMax: Int { waitingMax / 2 }
    private let state = Mutex(State())
    private let crowded = Atomic<Bool>(false)
    /// The waits that lists have read of agents, in memory or not.
    let listed = ListedWaits()
    private let unfinished = Mutex<[String]?>(nil)
    private static let unfinishedMax = 1_000

    /// - Parameters:
    ///   - countMax: How many agents are in memory at most; at least 1.
    ///   - waitingMax: How many names are remembered at most; at least 2. Calls to others that the log can name are dropped, see ``takePass()``.
    init(countMax: Int, waitingMax: Int, idleAfter: Duration) {
        self.idleAfter = idleAfter
        self.countMax = max(1, countMax)
        self.waitingMax = max(2, waitingMax)
    }

    /// No agent is called any more: the process drains.
    var isClosed: Bool { closed.load(ordering: .relaxed) }
    func close() { closed.store(true, ordering: .relaxed) }

    var count: Int { state.withLock { $0.activations.count } }
    var waitingCount: Int { state.withLock { $0.waiting.count } }
    /// Whether agents wait for room: then those with nothing to do leave at once. Any thread; costs nothing.
    var isCrowded: Bool { crowded.load(ordering: .relaxed) }
    var activations: [AgentDriver] { state.withLock { Array($0.activations.values) } }
    func activation(_ name: String) -> AgentDriver? { state.withLock { $0.activations[name] } }

    /// Hands `call` to the agent of `channel`, or has it wait.
    ///
    /// Under the lock: an activation that is about to leave sees that something was delivered, and stays.
    func deliver(_ call: Call, to channel: Channel, _ make: () -> AgentDriver) -> Answer {
        state.withLock { state in
            let name = channel.name
            // The agent of that name that is in memory may be one that was deleted and has not left yet.
            if let known = state.activations[name], known.channel.id == channel.id {
                known.take(call.addressed(to: channel.id))
                return .delivered
            }
            guard hasPlace(name, state) else { return wait(name, call, &state) }
            guard channel.pin() else { return .isStale }
            state.activations[name]?.channel.unpin()
            state.admitted.remove(name)
            let activation = make()
            state.activations[name] = activation
            activation.take(call.addressed(to: channel.id))
            return .delivered
        }
    }

    /// The agents, or the first thousand of them, whose turns ran when the process before ended. Ask before an agent writes: it is read once.
    func leftRunning(_ log: any CommitLog) throws(LogError) -> [String] {
        if let known = unfinished.withLock({ $0 }) { return known }
        var names: [String] = []
        try AgentIndex.scan(log, [.running]) { name, _ in
            names.append(name)
            return names.count < AgentDirectory.unfinishedMax
        }
        return unfinished.withLock { unfinished in
            // A later scan may see what agents have written since.
            if unfinished == nil { unfinished = names }
            return unfinished!
        }
    }

    private func hasPlace(_ name: String, _ state: State) -> Bool {
        if state.admitted.contains(name) || state.activations[name] != nil { return true }
        return state.order.isEmpty && state.activations.count + state.admitted.count < countMax
    }

    private func wait(_ name: String, _ call: Call, _ state: inout State) -> Answer {
        let isFirst = state.order.isEmpty
        if state.waiting[name] == nil {
            let isFull = state.waiting.count >= waitingMax
            switch call {
            case .fire where isFull: return .isFull
            // Once one was dropped, all are: later ones must not overtake it for ever.
            case .takeInput where isFull || state.hasDropped:
                state.hasDropped = true
                return .delivered
            // The log may not name them.
            case .fire, .takeInput, .wake: break
            }
            state.order.append(name)
        }
        let later = call.later
        if !(state.waiting[name]?.contains { later.isCovered(by: $0) } ?? false) { state.waiting[name, default: []].append(later) }
        crowded.store(true, ordering: .relaxed)
        return isFirst ? .isCrowded : .delivered
    }

    /// The next name for which there is room, with what it has to do: deliver that, and then ``giveUp(_:)`` the place.
    func admitNext() -> (name: String, calls: [Call])? {
        state.withLock { state in
            guard state.activations.count + state.admitted.count < countMax, let name = state.order.popFirst() else { return nil }
            let calls = state.waiting.removeValue(forKey: name) ?? []
            if state.waiting.isEmpty { crowded.store(false, ordering: .relaxed) }
            state.admitted.insert(name)
            return (name, calls)
        }
    }

    /// Whether timers that were refused are to fire again. Ask when agents have been admitted, and behind each refusal.
    var hasRoomForTimers: Bool { state.withLock { $0.waiting.count <= pageMax } }

    /// Frees the place of a name that was admitted, unless an activation has taken it: there may be no agent of that name any more. Only the loop that
    /// admitted it calls this: another call for the same name may fail while the place is still needed.
    func giveUp(_ name: String) { _ = state.withLock { $0.admitted.remove(name) } }

    /// Returns the channel from which the log must be searched for agents with work: calls were dropped, and all remembered ones have been admitted.
    ///
    /// Each pass is over all channels, and calls that are dropped meanwhile begin another one: agents that can do nothing yet must not hide the rest.
    func takePass() -> ChannelID? {
        state.withLock { state in
            guard state.waiting.isEmpty else { return nil }
            if let place = state.pass {
                state.pass = nil
                return place
            }
            defer { state.hasDropped = false }
            return state.hasDropped ? .first : nil
        }
    }

    /// The pass is not over: the next page begins at `place`, or before it, where another pass has come to.
    func continuePass(at place: ChannelID) {
        state.withLock { $0.pass = [$0.pass, place].compactMap { $0 }.min { ($0.partition, $0.number) < ($1.partition, $1.number) } }
    }

    /// Lets go of an activation.
    ///
    /// - Parameter unlessNeeded: Not if something has been delivered to it meanwhile.
    /// - Returns: whether it has been released.
    @discardableResult
    func forget(_ activation: AgentDriver, unlessNeeded: Bool = false) -> Bool {
        state.withLock { state in
            if unlessNeeded, activation.lane.hasDeliveries { return false }
            guard state.activations[activation.channel.name] === activation else { return true }
            state.activations[activation.channel.name] = nil
            activation.channel.unpin()
            return true
        }
    }
}

extension ChannelID {
    /// No channel comes before it.
    static let first = ChannelID(partition: 0, number: 0)
}

extension AgentDirectory.Call {
    /// The same for the agent that has the name by then: one that comes into memory takes its whole inbox.
    fileprivate var later: Self { if case .takeInput = self { .wake } else { self } }

    /// The same for the agent of that channel, which may be a successor: an offset counts in its own channel only.
    fileprivate func addressed(to id: ChannelID) -> Self {
        if case .takeInput(_, let meant) = self, meant != id { .wake } else { self }
    }

    fileprivate func isCovered(by other: Self) -> Bool {
        if case (.wake, .wake) = (self, other) { true } else { false }
    }
}
