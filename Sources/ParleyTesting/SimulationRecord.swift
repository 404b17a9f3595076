internal import ParleyChannels
internal import ParleySystem
internal import Synchronization

/// Writes a history down while the run continues, across all its processes; knows what became durable because it observes the log.
package final class SimulationRecord: Sendable {
    private struct State {
        var history = SimulationHistory()
        /// A process that has crashed does nothing any more: further actions of its remains are not part of the history.
        var isAlive = true
        /// The agents' names of their turns: by the request and the turn's first random number, because a request that is repeated after its channel
        /// was deleted begins another turn.
        var turns: [TurnKey: String] = [:]
        /// `<request>/<step>` of each step with a durable start, and with a durable result.
        var begun: Set<String> = []
        var recorded: Set<String> = []
        var callsOfKey: [String: Int] = [:]
        /// Every entry that was ever durable, in wire form, and also those that have been trimmed since; `nil`: not recorded.
        var entries: [ChannelID: [SimulationHistory.Entry]]?
        /// The last durable entry of each channel: trimming writes again what is known.
        var heads: [ChannelID: UInt64] = [:]
    }

    private struct TurnKey: Hashable {
        var channel: ChannelID
        var turn: UInt64
    }

    private let state = Mutex(State())

    /// - Parameter keepsEntries: Whether ``entries(of:)`` is to know what has been trimmed.
    package init(keepsEntries: Bool = false) {
        if keepsEntries { state.withLock { $0.entries = [:] } }
    }

    /// Every entry of a channel that was ever durable.
    func entries(of channel: ChannelID) -> [SimulationHistory.Entry] { state.withLock { $0.entries?[channel] ?? [] } }

    /// Every entry of every channel that was ever durable.
    var entries: [ChannelID: [SimulationHistory.Entry]] { state.withLock { $0.entries ?? [:] } }

    package var history: SimulationHistory { state.withLock { $0.history } }

    package func isAlive(_ value: Bool) { state.withLock { $0.isAlive = value } }
    package var isAlive: Bool { state.withLock { $0.isAlive } }

    func update(_ change: (inout SimulationHistory) -> Void) {
        state.withLock { if $0.isAlive { change(&$0.history) } }
    }

    func bodyRan(_ request: String, _ step: String, isAtMostOnce: Bool) {
        state.withLock { state in
            guard state.isAlive else { return }
            state.history.bodyRuns.append(
                SimulationHistory.BodyRun(
                    request: request, step: step, isAtMostOnce: isAtMostOnce, wasRecorded: state.recorded.contains("\(request)/\(step)")))
        }
    }

    func hasBegun(_ step: String) -> Bool { state.withLock { $0.begun.contains(step) } }

    /// The frames that a commit made durable.
    func durable(_ channel: ChannelID, _ offset: UInt64, _ frame: Frame) {
        let isNew = state.withLock { state in
            guard offset > state.heads[channel, default: 0] else { return false }
            state.heads[channel] = offset
            state.entries?[channel, default: []].append(SimulationHistory.Entry(offset, frame))
            return true
        }
        guard isNew else { return }
        switch frame.kind {
        case .message:
            guard let request = frame.body["data"]?["request"]?.string else { return }
            state.withLock { $0.turns[TurnKey(channel: channel, turn: offset)] = request }
        case .turnStarted:
            guard let turn = frame.position?.turn, let seed = frame.body["seed"]?.string.flatMap({ UInt64($0, radix: 16) }) else { return }
            var random = SplitMix64(seed: seed)
            let name = random.next()
            state.withLock { $0.turns[TurnKey(channel: channel, turn: turn)]? += "@\(name)" }
        case .stepStarted, .stepCompleted, .stepFailed:
            guard let position = frame.position else { return }
            let isRecorded = frame.kind == .stepCompleted || frame.kind == .stepFailed && frame.body["final"]?.bool == true
            state.withLock { state in
                guard let request = state.turns[TurnKey(channel: channel, turn: position.turn)] else { return }
                state.begun.insert("\(request)/\(position.step)")
                if isRecorded { state.recorded.insert("\(request)/\(position.step)") }
            }
        default: return
        }
    }

    /// A turn looks at the turns before it.
    func recalled(_ request: String, _ messages: [String]) {
        update { $0.recollections.append(SimulationHistory.Recollection(request: request, messages: messages)) }
    }

    // MARK: Models

    /// - Returns: The number of the call among all, and among those of its step (from 1).
    func modelCalled(_ call: SimulationHistory.ModelCall) -> (index: Int, ofKey: Int) {
        state.withLock { state in
            guard state.isAlive else { return (-1, 1) }  // Nothing asks for a call of a dead process by its number.
            state.history.modelCalls.append(call)
            state.callsOfKey[call.key, default: 0] += 1
            return (state.history.modelCalls.count - 1, state.callsOfKey[call.key]!)
        }
    }

    func modelGenerated(_ index: Int, _ text: String) {
        update { history in
            history.modelCalls[index].generated += text
            history.modelCalls[index].tokens += 1
        }
    }

    func modelFinished(_ index: Int) { update { $0.modelCalls[index].isFinished = true } }
}
