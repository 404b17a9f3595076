package import ParleySystem
internal import Synchronization

/// The tail of a channel that another node owns, as this node follows it over a ``ChannelLink``.
///
/// It follows while it is watched, for all watchers at once: the recent commits are in memory as those of a channel of this node are, and readers
/// further behind get pages over the link. When the connection breaks it asks again, from its last offset.
///
/// An object follows once: with the last watcher it is given up, and the next reader looks the channel up again.
package final class ChannelMirror: Tail {
    package let name: String
    package let id: ChannelID
    package let contentType: String
    package let isAgent: Bool
    private let link: any ChannelLink
    private let mirrors: ChannelMirrors
    private let state: Mutex<State>

    fileprivate struct State {
        var tail: PublishedTail
        var end: Timestamp?
        /// The highest offset that the owner is known to have published: pages and lookups may be ahead of the follow.
        var reached: UInt64
        /// How often the link has been asked to follow: tells the events of the newest follow from those of earlier ones.
        var asked = 0
        var follow: (any ChannelFollow)?
    }

    init(_ description: ChannelDescription, over link: any ChannelLink, _ mirrors: ChannelMirrors) {
        (name, id) = (description.reference.name, description.reference.id)
        (contentType, isAgent) = (description.contentType, description.isAgent)
        (self.link, self.mirrors) = (link, mirrors)
        state = Mutex(State(tail: PublishedTail(description.state), end: description.end, reached: description.state.head))
    }

    package var end: Timestamp? { state.withLock { $0.end } }

    package var isKept: Bool { state.withLock { $0.tail.state.isKept } }

    package var tail: (head: UInt64, isClosed: Bool, isDeleted: Bool) {
        state.withLock { (max($0.tail.state.head, $0.reached), $0.tail.state.isClosed, $0.tail.state.isDeleted) }
    }

    package func tail(after offset: UInt64) -> TailRead { state.withLock { $0.tail.read(after: offset) } }

    /// Bytes of recent commits in memory.
    package var recentBytes: Int { state.withLock { $0.tail.recentBytes } }

    // MARK: Pages

    package func page(after offset: UInt64, view: View, bytesMax: Int, in channels: Channels) throws(ChannelError) -> Page {
        let request = PageRequest(channel: reference, after: offset, view: view, bytesMax: bytesMax)
        if let page = try link.page(request) {
            reaches(page.next)
            return page
        }
        // The follow would say so in a moment; until then the reader would ask for the same page over and over.
        publish { $0.tail.state.isDeleted = true }
        var page = Page(of: self, next: offset)
        page.finish()
        page.isUpToDate = true
        return page
    }

    /// Notes that the owner has published up to `offset`: what a client was given there is not beyond the tail.
    func reaches(_ offset: UInt64) { state.withLock { $0.reached = max($0.reached, offset) } }

    package func touched(in channels: Channels) { if end != nil { link.touch(reference) } }

    private var reference: ChannelReference { ChannelReference(name: name, id: id) }
}

// MARK: - Following

extension ChannelMirror {
    package func attach(_ watcher: any ChannelWatcher) -> Bool {
        guard mirrors.claim(self) else { return false }
        let (isAttached, isFirst) = state.withLock { state in
            let isFirst = !state.tail.isWatched
            return (state.tail.attach(watcher), isFirst)
        }
        guard isAttached else {
            mirrors.forget(self)
            return false
        }
        if isFirst { ask() }
        return true
    }

    package func detach(_ watcher: any ChannelWatcher) {
        let (isOver, follow) = state.withLock { state -> (Bool, (any ChannelFollow)?) in
            guard state.tail.detach(watcher), !state.tail.isWatched else { return (false, nil) }
            return (true, state.leave().follow)
        }
        guard isOver else { return }
        follow?.end()
        mirrors.forget(self)
    }

    /// Asks for everything after the last offset.
    private func ask() {
        let asked = state.withLock { state -> (number: Int, after: UInt64)? in
            guard !state.tail.isLeft else { return nil }
            state.asked += 1
            return (state.asked, state.tail.state.head)
        }
        guard let asked else { return }
        let follow = link.follow(FollowRequest(channel: reference, after: asked.after)) { [weak self] event in
            self?.received(event, of: asked.number)
        }
        // It may be over already: events come on another thread.
        let isWanted = state.withLock { state in
            guard state.asked == asked.number, !state.tail.isLeft else { return false }
            state.follow = follow
            return true
        }
        if !isWanted { follow.end() }
    }

    private func received(_ event: FollowEvent, of number: Int) {
        guard state.withLock({ $0.asked == number }) else { return }
        switch event {
        case .update(let update): publish { $0.take(update) }
        case .deleted: publish { $0.tail.state.isDeleted = true }
        case .broken: ask()
        case .left: leave()
        }
    }

    private func publish(_ change: (inout State) -> Void) {
        let (told, isDeleted) = state.withLock { state -> ([any ChannelWatcher], Bool) in
            guard !state.tail.isLeft, !state.tail.state.isDeleted else { return ([], false) }
            change(&state)
            return (state.tail.told, state.tail.state.isDeleted)
        }
        if isDeleted { mirrors.forget(self) }  // The next reader finds out what has the name now.
        for watcher in told { watcher.channelChanged(self) }
    }

    private func leave() {
        let told = state.withLock { $0.leave().told }
        mirrors.forget(self)
        for watcher in told { watcher.channelLeft(self) }
    }
}

extension ChannelMirror.State {
    mutating func leave() -> (told: [any ChannelWatcher], follow: (any ChannelFollow)?) {
        defer { follow = nil }
        return (tail.leave(), follow)
    }

    mutating func take(_ update: TailUpdate) {
        // What does not join on leaves a gap in memory, which is read as pages.
        let joins = update.commits.first.map { $0.first == tail.state.head + 1 } ?? (update.state.head == tail.state.head)
        if joins {
            for commit in update.commits { tail.keep(Chunk(first: commit.first, last: commit.last, frames: commit.frames)) }
        } else {
            tail.forgetRecent()
        }
        (tail.state, end) = (update.state, update.end)
    }
}
