internal import ParleyLog
internal import ParleySystem

/// One decision about a subscription.
struct SubscriptionChange {
    let subscriptions: Subscriptions
    let id: String
    let request: SubscriptionRequest
    var effects: SubscriptionEffects

    init(_ subscriptions: Subscriptions, _ id: String, _ request: SubscriptionRequest) {
        (self.subscriptions, self.id, self.request) = (subscriptions, id, request)
        effects = SubscriptionEffects(subscriptions: subscriptions, id: id)
    }

    var channels: Channels { subscriptions.channels }
    var now: Timestamp { channels.world.now }
}

// MARK: - Deciding

extension SubscriptionChange {
    /// The outcome of a request.
    enum Outcome {
        case answer(SubscriptionAnswer)
        /// The request to submit once the links have been scanned.
        case later(SubscriptionRequest)
        case making(SubscriptionMaking)
    }

    mutating func decide(in stage: inout Stage) throws(ChannelRefusal) -> Outcome {
        // Before the decision reads anything: later changes need another look.
        if case .look = request { subscriptions.looked(id) }
        if case .ring = request { subscriptions.rang(id) }
        guard var entry = subscriptions.entry(id) else {
            switch request {
            case .put(let configuration, let root, nil): return try begin(configuration, root, in: &stage)
            case .put(let configuration, let root, let page?): return .answer(try create(configuration, root, page, in: &stage))
            case .link(let page):
                try link(page, in: &stage)
                return .answer(.done)
            case .unmake(let number):
                try unmake(number, in: &stage)
                return .answer(.done)
            default: break
            }
            throw .refused(ChannelError("SUBSCRIPTION_NOT_FOUND", "there is no subscription '\(id)'."))
        }
        let before = entry.subscription
        entry.subscription.expire(now: now, random: channels.world.random())
        let expired = before.wake != nil && entry.subscription.wake == nil
        var outcome = try apply(to: &entry, in: &stage)
        if case .delete = request { return outcome }
        count(before, entry.subscription, expired: expired, outcome)
        if entry.subscription.canWake(now: now) { try wake(&entry, &outcome, in: &stage) }
        if entry.subscription.generation > before.generation, let wake = entry.subscription.wake {
            effects.begun = WakeAnnouncement(generation: entry.subscription.generation, stream: wake.stream)
        }
        scan(&entry)
        if entry.subscription != before { stage.put(.index, SubscriptionRows.key(id), entry.subscription.bytes) }
        subscriptions.keep(entry)
        return outcome
    }

    /// Begins a scan of the links once this is durable, if the streams of the next wake are unknown and no scan is in flight.
    mutating func scan(_ entry: inout SubscriptionEntry) {
        guard !entry.news.isNextKnown, !entry.news.isScanning else { return }
        effects.scan = SubscriptionScan(subscriptions, entry.subscription, after: entry.news.beginScan())
    }

    /// Counts what the request has done, before a new wake begins.
    private mutating func count(_ before: Subscription, _ after: Subscription, expired: Bool, _ outcome: Outcome) {
        if expired { effects.done.leasesExpired = 1 }
        if after.failures > before.failures { effects.done.failed = 1 }
        if case .delivered(let wakeID, _) = request, before.wake?.id == wakeID, !expired { effects.done.delivered = 1 }
        if case .answer(.claimed) = outcome { effects.done.claims = 1 }
        effects.done.wakes = Int(after.generation - before.generation)
    }

    private mutating func apply(to entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) -> Outcome {
        switch request {
        case .put(let configuration, let root, _):
            guard configuration.digest == entry.subscription.configuration.digest else {
                throw .refused(ChannelError("SUBSCRIPTION_EXISTS", "'\(id)' exists with another configuration. Delete it first."))
            }
            entry.subscription.root = root
            return .answer(.confirmed(entry.subscription))
        case .delete:
            stage.delete(.index, from: SubscriptionRows.key(id), to: SubscriptionRows.end(id))
            subscriptions.remove(id)
        case .add(let streams): try add(streams, &entry, in: &stage)
        case .remove(let stream): try remove(stream, &entry, in: &stage)
        case .claim(let worker), .claimAgain(let worker): return try claim(worker, &entry, in: &stage)
        case .acknowledge(let proof, let acks, let isDone, let isCallback):
            try check(proof, entry.subscription, isWebhook: isCallback)
            try acknowledge(acks, entry, in: &stage)
            if isDone { entry.subscription.end() } else { entry.subscription.extend(now: now) }
            return .answer(.acknowledged(nextWake: false))
        case .release(let proof):
            try check(proof, entry.subscription, isWebhook: false)
            entry.subscription.end()
        case .delivered(let wakeID, let acks): try delivered(wakeID, acks, &entry.subscription, in: &stage)
        case .failed(let wakeID): entry.subscription.failed(wakeID, now: now, random: channels.world.random())
        case .scanned(let outcome): try scanned(outcome, &entry)
        case .sweep(let streams): try sweep(streams, &entry, in: &stage)
        case .look, .ring, .link, .unmake: break
        }
        return .answer(.done)
    }

    func wrap<Value>(_ body: () throws(LogError) -> Value) throws(ChannelRefusal) -> Value { try ChannelRefusal.wrap(body) }
}
