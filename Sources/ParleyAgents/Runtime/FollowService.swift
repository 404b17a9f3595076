internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// Wakes agents when a channel that they follow has something new.
///
/// Each follow takes some memory for as long as it waits, also while its agent has none: a channel that is appended to must find its
/// followers without a look at the log.
final class FollowService: Sendable {
    private let channels: Channels
    private let world: any World
    private let wake: @Sendable (_ follower: String) -> Void
    private let state = Mutex(State())

    private struct State {
        /// By what is followed.
        var watches: [TextKey: Watch] = [:]
        var byFollower: [String: Follower] = [:]
    }

    private struct Follower {
        /// Where its rows are.
        let partition: UInt16
        var follows: Set<Follow> = []
    }

    init(channels: Channels, world: any World, wake: @escaping @Sendable (String) -> Void) {
        (self.channels, self.world, self.wake) = (channels, world, wake)
    }

    /// Who follows what in a partition: to be given to ``begin(_:in:)``. Cost: one seek, and what is found.
    func stored(in partition: UInt16) throws(LogError) -> [Follow] {
        var found: [Follow] = []
        let (lower, upper) = AgentIndex.follows(in: partition)
        try channels.log.scan(.index, from: lower, to: upper, reversed: false) { _, value in
            if let follow = Follow(row: value) { found.append(follow) }
            return true
        }
        return found
    }

    /// The followers of a partition are another's.
    func closed(_ partition: UInt16) {
        state.withLock { state in
            for (follower, _) in state.byFollower.filter({ $0.value.partition == partition }) { FollowService.endAll(of: follower, &state) }
        }
    }

    /// The follow's row is in the log, in that partition. Wakes its agent if there is something new, or nothing to follow, already.
    func begin(_ follow: Follow, in partition: UInt16) {
        do throws(LogError) {
            guard let channel = try channels.find(follow.followed), follow.isOf(channel) else {
                // Kept until it is told: its kind may not be there yet.
                state.withLock { FollowService.note(follow, in: partition, &$0) }
                return wake(follow.follower)
            }
            let isWatched = state.withLock { state in
                let watch: Watch
                if let known = state.watches[follow.followed], known.channel === channel {
                    watch = known
                } else {
                    watch = Watch(channel, world, wake) { [weak self] in self?.left($0) }
                    guard channel.attach(watch) else { return false }
                    state.watches[follow.followed] = watch
                }
                watch.add(follow)
                FollowService.note(follow, in: partition, &state)
                return true
            }
            // Let go of since it was found: there is another object by now.
            guard isWatched else { return begin(follow, in: partition) }
            let tail = channel.tail
            if tail.head > follow.after || tail.isClosed || tail.isDeleted { wake(follow.follower) }
        } catch {
            // Whoever follows sees it, too, and says so.
            wake(follow.follower)
        }
    }

    /// The agents that follow something, sorted.
    var followers: [String] { state.withLock { $0.byFollower.keys.sorted() } }

    /// The follow has ended, and its row is gone.
    func end(_ follow: Follow) { state.withLock { FollowService.end(follow, &$0) } }

    /// An agent was deleted, its rows with it.
    func endAll(of follower: String) { state.withLock { FollowService.endAll(of: follower, &$0) } }

    /// What is followed is not here any more: its followers find out.
    private func left(_ watch: Watch) {
        let isKnown = state.withLock { state in
            guard state.watches[watch.channel.name] === watch else { return false }
            state.watches[watch.channel.name] = nil
            return true
        }
        if isKnown { watch.channelChanged(watch.channel) }
    }

    private static func note(_ follow: Follow, in partition: UInt16, _ state: inout State) {
        state.byFollower[follow.follower, default: Follower(partition: partition)].follows.insert(follow)
    }

    private static func endAll(of follower: String, _ state: inout State) {
        for follow in state.byFollower[follower]?.follows ?? [] { end(follow, &state) }
    }

    private static func end(_ follow: Follow, _ state: inout State) {
        state.byFollower[follow.follower]?.follows.remove(follow)
        if state.byFollower[follow.follower]?.follows.isEmpty == true { state.byFollower[follow.follower] = nil }
        guard let watch = state.watches[follow.followed], watch.remove(follow) else { return }
        watch.channel.detach(watch)
        state.watches[follow.followed] = nil
    }

    /// One channel that is followed, and by whom.
    private final class Watch: ChannelWatcher {
        private struct State {
            var follows: Set<Follow> = []
            var isScheduled = false
        }

        let channel: Channel
        private let world: any World
        private let wake: @Sendable (String) -> Void
        private let left: @Sendable (Watch) -> Void
        private let lane: UInt64
        private let state = Mutex(State())

        init(
            _ channel: Channel, _ world: any World, _ wake: @escaping @Sendable (String) -> Void,
            left: @escaping @Sendable (Watch) -> Void
        ) {
            (self.channel, self.world, self.wake, self.left) = (channel, world, wake, left)
            lane = world.random()
        }

        func add(_ follow: Follow) { state.withLock { _ = $0.follows.insert(follow) } }

        /// - Returns: whether nobody is left.
        func remove(_ follow: Follow) -> Bool {
            state.withLock { state in
                state.follows.remove(follow)
                return state.follows.isEmpty
            }
        }

        func channelChanged(_ tail: any Tail) {
            let isFirst = state.withLock { state in
                defer { state.isScheduled = true }
                return !state.isScheduled
            }
            if isFirst { world.perform(lane: lane) { self.tell() } }
        }

        func channelLeft(_ tail: any Tail) { left(self) }

        private func tell() {
            let followers = state.withLock { state in
                state.isScheduled = false
                return Set(state.follows.map(\.follower))
            }
            // Sorted, so that a simulated run follows from its seed.
            for follower in followers.sorted() { wake(follower) }
        }
    }
}
