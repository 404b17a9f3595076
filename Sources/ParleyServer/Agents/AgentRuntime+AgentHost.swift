package import ParleyAgents
package import ParleyChannels
internal import ParleyLog
package import ParleySystem

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
        DeleteChannel(channels, channelName, ifTail: ifTail) { result in
            guard case .success = result else { return done(result) }
            world.perform(blocking: .read, for: 0) {
                removed(channelName)
                done(result)
            }
        }.submit()
    }

    package func outcome(
        of turn: Offset, in channelName: String, _ tell: @escaping @Sendable (_ byteCount: Int, _ json: () -> Bytes) -> Void
    ) -> any Scheduled {
        let look = { @Sendable [self] in
            read(channelName) { runtime throws(LogError) in
                try runtime.outcome(of: turn, in: channelName, tell: tell)
            } failed: {
            }
        }
        // First observe, then look: what ends in between is seen by both, and the route takes the first answer.
        let observer = observeTurn(turn.value, in: channelName, look)
        look()
        return observer
    }

    /// Runs `body` where reads may block, apart from the agents: what they do, and what their code does to a thread, delays no answer.
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
