internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// The owner's side of a follow: an offset in a channel, and what is published after it.
///
/// A feed queues nothing. The link asks for the next event when the connection has room for one, and a feed that has fallen behind the recent commits
/// says so instead of sending them: so a slow connection costs the owner an offset, as a slow reader does.
package final class ChannelFeed: ChannelWatcher {
    private struct State {
        /// `nil` once the last event has been given.
        var channel: Channel?
        var after: UInt64 = 0
        /// What was sent last.
        var sent: TailState?
        /// The event to end with.
        var last: FollowEvent?
        /// The link knows that there is an event.
        var isSignalled = true
    }

    private let state: Mutex<State>
    private let whenReady: @Sendable () -> Void

    init(_ channel: Channel, after offset: UInt64, whenReady: @escaping @Sendable () -> Void) {
        state = Mutex(State(channel: channel, after: offset))
        self.whenReady = whenReady
    }

    /// A feed whose first event is its last.
    init(last: FollowEvent) {
        state = Mutex(State(last: last))
        whenReady = {}
    }

    /// Returns the next event, or `nil` until `whenReady` is called. Thread-safe; the first event is there at once.
    package func next() -> FollowEvent? {
        state.withLock { state in
            // Before the look at the channel: what is published from here on is signalled again.
            state.isSignalled = false
            if let last = state.last {
                (state.last, state.channel) = (nil, nil)
                return last
            }
            guard let update = state.channel?.update(after: state.after), update.state != state.sent else { return nil }
            (state.sent, state.after) = (update.state, update.state.head)
            return .update(update)
        }
    }

    /// Stops watching the channel. Idempotent.
    package func end() {
        let channel = state.withLock { state in
            defer { state.channel = nil }
            return state.channel
        }
        channel?.detach(self)
    }

    package func channelChanged(_ tail: any Tail) { signal { _ in } }

    package func channelLeft(_ tail: any Tail) { signal { $0.last = .left } }

    private func signal(_ change: (inout State) -> Void) {
        let isNews = state.withLock { state in
            change(&state)
            defer { state.isSignalled = true }
            return !state.isSignalled
        }
        if isNews { whenReady() }
    }
}
