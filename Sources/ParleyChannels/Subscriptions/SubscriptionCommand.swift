internal import ParleyLog

/// A request to a subscription.
struct SubscriptionCommand: Sendable {
    let id: String
    let request: SubscriptionRequest

    /// The number of the node's own requests is bounded by that of the subscriptions.
    var isBounded: Bool {
        switch request {
        case .look, .ring, .delivered, .failed, .scanned, .sweep, .link, .unmake: false
        // The request was admitted with its first page.
        case .put(_, _, let page): page == nil
        default: true
        }
    }

    /// Writer's thread.
    func decide(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        // Without them, the server is being taken apart.
        guard let subscriptions = channels.subscriptions else { throw .log(LogError(.closed, "the log is closing")) }
        var change = SubscriptionChange(subscriptions, id, request)
        switch try change.decide(in: &stage) {
        case .answer(let answer): return Decision(reply: .subscription(answer), effects: [.subscriptionDecided(change.effects)])
        case .later(let request):
            let wait = SubscriptionWait(subscriptions: subscriptions, id: id, request: request)
            return Decision(effects: [.subscriptionDecided(change.effects), .search(wait)])
        case .making(let making): return Decision(effects: [.search(making)])
        }
    }
}

/// What follows from a decision about a subscription.
struct SubscriptionEffects {
    let subscriptions: Subscriptions
    let id: String
    var notification: SubscriptionNotification?
    var begun: WakeAnnouncement?
    var scan: SubscriptionScan?
    /// What has waited for it is asked again.
    var resumes = false
    var done = SubscriptionCounters()

    /// Writer's thread.
    func carryOut() {
        subscriptions.count(done)
        scan?.go()
        if resumes { subscriptions.resume(id) }
        if let notification { subscriptions.deliver(notification) }
        if let begun { subscriptions.begun(begun, of: id) }
        subscriptions.announce(id)
        subscriptions.setAlarm(id)
    }
}
