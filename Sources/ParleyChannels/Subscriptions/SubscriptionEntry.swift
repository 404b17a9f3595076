internal import ParleySystem

/// What is in memory of a subscription.
struct SubscriptionEntry {
    var subscription: Subscription
    /// Which of its streams may have something new.
    var news = SubscriptionNews()
    /// Streams of its wake that have gone.
    private(set) var gone: GoneStreams
    /// Streams it names. What was linked in the current commit cannot be read from the log yet.
    var explicit: Set<TextKey> = []
    var isLookQueued = false
    /// Wakes whose events are not in the wake stream yet, as far as this process knows, the oldest first.
    private(set) var announcements: [WakeAnnouncement] = []
    /// Whether the first of them is being written.
    var isAnnouncing = false
    var announceFailures: UInt32 = 0
    var nextAnnouncement: Timestamp?
    var alarm: (instant: Timestamp, scheduled: any Scheduled)?

    /// Generations end faster than their events are written only where the log takes none; then the oldest are left out.
    private static let announcementsMax = 64

    init(_ subscription: Subscription) {
        self.subscription = subscription
        gone = GoneStreams(subscription)
        // A process that ended before it could write the event leaves that to the next one; written twice, it is there once.
        if let wake = subscription.wake { announce(WakeAnnouncement(generation: subscription.generation, stream: wake.stream)) }
    }

    /// A stream has gone, and its link with it.
    mutating func forget(_ stream: String, _ link: SubscriptionLink) {
        news.remove(stream)
        // Without a channel it has not been given to anybody.
        if subscription.wake != nil, link.channel != nil { gone.add(stream, subscription.generation) }
    }

    /// Notes an event that has to be written.
    mutating func announce(_ announcement: WakeAnnouncement) {
        guard subscription.configuration.wakeStream != nil else { return }
        announcements.append(announcement)
        if announcements.count > SubscriptionEntry.announcementsMax { announcements.removeFirst() }
    }

    /// The event of this generation is in the stream, and so are those before it.
    mutating func announced(_ generation: UInt64) {
        announcements.removeAll { $0.generation <= generation }
        (announceFailures, nextAnnouncement) = (0, nil)
    }

    /// Leaves out the events of wakes that are over: nobody can claim them any more.
    mutating func dropOldAnnouncements() {
        announcements.removeAll { $0.generation != subscription.generation || subscription.wake == nil }
    }
}

/// The event that a generation of a subscription by pull-wake has in its wake stream.
struct WakeAnnouncement: Sendable {
    let generation: UInt64
    /// The stream that the wake began with.
    let stream: String
}
