package import ParleyAgents
package import ParleyChannels
internal import ParleyLog
package import ParleySystem
internal import Synchronization

extension AgentRuntime: AgentHost {
    package func status(of channelName: String, _ answer: @escaping @Sendable (JSON?) -> Void) {
        read(channelName) { runtime throws(LogError) in
            answer(try runtime.status(of: channelName))
        } failed: {
            answer(nil)
        }
    }

    package func list(_ query: AgentListQuery, answer: @escaping @Sendable (JSON) -> Void) {
        read("list") { runtime throws(LogError) in
            answer(try runtime.list(query))
        } failed: {
            answer(["agents": []])
        }
    }

    package func remove(_ channelName: String, ifTail: UInt64?, _ done: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        let (world, removed) = (world, observers.removed)
        channels.submit(DeleteChannel(channelName, ifTail: ifTail)) { result in
            guard case .success = result else { return done(result) }
            world.perform(blocking: .read, for: 0) {
                removed(channelName)
                done(result)
            }
        }
    }

    package func outcome(
        of turn: Offset, in channelName: String, gone: @escaping @Sendable (ChannelError) -> Void,
        _ tell: @escaping @Sendable (_ byteCount: Int, _ json: () -> Bytes) -> Void
    ) -> any Scheduled {
        let question = TurnQuestion(self, turn, in: channelName, gone, tell)
        question.observe(turn.value)
        return question
    }

    /// Runs `body` where reads may block, apart from the agents: neither their work, nor code of theirs that holds a thread, delays an answer.
    private func read(
        _ what: String, _ body: @escaping @Sendable (AgentRuntime) throws(LogError) -> Void, failed: @escaping @Sendable () -> Void
    ) {
        world.perform(blocking: .read, for: 0) { [self] in
            do throws(LogError) { try body(self) } catch {
                Diagnostics.log(.error, "agents cannot be read", ["what": what, "reason": error.message])
                failed()
            }
        }
    }
}

/// A client's wait for the end of the turn that an input begins or joins.
private final class TurnQuestion: Scheduled {
    private struct State {
        /// The turns that are observed, by their input, and how to withdraw that; `nil` once it is answered or cancelled.
        var observed: [UInt64: any Scheduled]? = [:]
        /// The channel as it was found first: another one of its name has other turns.
        var channel: ChannelID?
    }

    private let runtime: AgentRuntime
    private let input: Offset
    private let channelName: String
    private let gone: @Sendable (ChannelError) -> Void
    private let tell: @Sendable (_ byteCount: Int, _ json: () -> Bytes) -> Void
    private let state = Mutex(State())

    init(
        _ runtime: AgentRuntime, _ input: Offset, in channelName: String, _ gone: @escaping @Sendable (ChannelError) -> Void,
        _ tell: @escaping @Sendable (_ byteCount: Int, _ json: () -> Bytes) -> Void
    ) {
        (self.runtime, self.input, self.channelName) = (runtime, input, channelName)
        (self.gone, self.tell) = (gone, tell)
    }

    /// First observes, then looks: an end in between is seen by both.
    func observe(_ turn: UInt64) {
        let isNew = state.withLock { state in
            guard state.observed != nil, state.observed?[turn] == nil else { return false }
            state.observed?[turn] = runtime.observeTurn(turn, in: channelName) { [weak self] in self?.look() }
            return true
        }
        if isNew { look() }
    }

    private func look() {
        runtime.world.perform(blocking: .read, for: 0) { [self] in
            do throws(LogError) {
                guard let channel = try runtime.channels.find(channelName), isKnown(channel.id) else { return end(.deleted(channelName)) }
                let joined = try runtime.outcome(
                    of: input, in: channelName, tell: { byteCount, json in if withdraw() { tell(byteCount, json) } })
                if let joined { observe(joined) }
            } catch {
                if error.code == .partitionUnavailable { return end(ChannelError(error)) }
                Diagnostics.log(.error, "agents cannot be read", ["what": channelName, "reason": error.message])
            }
        }
    }

    private func isKnown(_ id: ChannelID) -> Bool {
        state.withLock { state in
            state.channel = state.channel ?? id
            return state.channel == id
        }
    }

    func cancel() { _ = withdraw() }

    private func end(_ error: ChannelError) { if withdraw() { gone(error) } }

    /// - Returns: Whether the wait was neither answered nor cancelled before.
    private func withdraw() -> Bool {
        let observed: [UInt64: any Scheduled]? = state.withLock { state in
            defer { state.observed = nil }
            return state.observed
        }
        for observer in (observed ?? [:]).values { observer.cancel() }
        return observed != nil
    }
}
