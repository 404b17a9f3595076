internal import ParleyLog
internal import ParleySystem

/// Waking a subscriber, and what it does with its wake.
extension SubscriptionChange {
    /// Begins a wake if something is new.
    mutating func wake(
        _ entry: inout SubscriptionEntry, _ outcome: inout Outcome, in stage: inout Stage
    ) throws(ChannelRefusal) {
        let isWebhook = entry.subscription.configuration.isWebhook
        switch try firstPending(&entry, isNamed: isWebhook, in: &stage) {
        case .stream(let stream):
            entry.subscription.begin(stream: stream, now: now, random: (channels.world.random(), channels.world.random()))
            effects.done.wakes += 1
            if entry.subscription.failures > 0 { effects.done.retries += 1 }
            if isWebhook { try notify(&entry, in: &stage) }
            if case .answer(.acknowledged) = outcome { outcome = .answer(.acknowledged(nextWake: true)) }
        case .nothing:
            // The streams of the failed wake have no news any more.
            if entry.subscription.wake != nil || entry.subscription.hasFailed { entry.subscription.end() }
        case .unknown: break
        }
    }

    private mutating func notify(_ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) {
        guard let wake = entry.subscription.wake else { return }
        effects.notification = SubscriptionNotification(
            subscription: entry.subscription, wake: wake, streams: try streams(&entry, in: &stage),
            token: subscriptions.tokens.make(entry.subscription, wake))
    }

    /// The streams of a wake: those with something new, and others where there are few. Acks of it count for these channels, and not for others
    /// that are made under their names while it is held.
    private func streams(_ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) -> [SubscriptionStream] {
        var pending: [String] = []
        for name in entry.news.nextInTurn where pending.count < Subscriptions.streamsPerWakeMax {
            if try isPending(name, &entry, in: &stage) { pending.append(name) }
        }
        entry.news.named(upTo: pending.last)
        var names = Set(pending.map { TextKey($0) })
        try wrap { () throws(LogError) -> Void in
            try SubscriptionRows.links(of: id, in: stage.log) { name, _ in
                guard names.count < Subscriptions.streamsPerWakeUsual else { return false }
                names.insert(name)
                return true
            }
        }
        var streams: [SubscriptionStream] = []
        for name in names.texts {
            stage.count(Subscriptions.linkBytes)
            guard var link = try stored(name, in: &stage) else { continue }
            let channel = try wrap { () throws(LogError) in try subscriptions.find(name) }
            let isNew = channel.map { $0.id != link.channel } ?? false
            (link.acked, link.channel) = (channel.map { link.acked(in: $0) } ?? 0, channel?.id)
            if isNew { put(link, name, in: &stage) }
            streams.append(SubscriptionStream(path: name, link: link, tail: channel?.tail.head ?? 0))
        }
        return streams
    }

    mutating func claim(
        _ worker: String, _ entry: inout SubscriptionEntry, in stage: inout Stage
    ) throws(ChannelRefusal) -> Outcome {
        try require(isWebhook: false, entry.subscription)
        if let holder = entry.subscription.wake?.holder {
            throw .refused(
                ChannelError(
                    "ALREADY_CLAIMED", "'\(holder)' holds the wake.",
                    [("current_holder", .string(holder)), ("generation", .integer(Int64(entry.subscription.generation)))]))
        }
        let pending: String
        switch try firstPending(&entry, isNamed: true, in: &stage) {
        case .stream(let stream): pending = stream
        case .nothing:
            subscriptions.keep(entry.news, of: id)
            throw .refused(ChannelError("NO_PENDING_WORK", "nothing is new in the streams of '\(id)'."))
        case .unknown: return .later(.claimAgain(worker: worker))
        }
        // A worker that claims before the event does not need it; workers that count wakes by their events do.
        if entry.subscription.wake == nil {
            entry.subscription.begin(stream: pending, now: now, random: (channels.world.random(), channels.world.random()))
        }
        entry.subscription.claim(worker, now: now)
        let wake = entry.subscription.wake!
        let token = subscriptions.tokens.make(entry.subscription, wake)
        return .answer(.claimed(entry.subscription, wake, token: token, streams: try streams(&entry, in: &stage)))
    }

    /// Moves cursors, all or none.
    func acknowledge(
        _ acks: [SubscriptionAck], _ entry: SubscriptionEntry, in stage: inout Stage
    ) throws(ChannelRefusal) {
        var links: [TextKey: SubscriptionLink] = [:]
        for ack in acks {
            guard var link = try stored(ack.stream, in: &stage) else {
                // The link was removed with the stream.
                if isGone(ack.stream, entry) { continue }
                throw .refused(ChannelError("INVALID_OFFSET", "'\(ack.stream)' is no stream of '\(id)'."))
            }
            // Deleted meanwhile: there is nothing to resume from, and if it was recreated, no worker has been given the new one yet.
            guard let channel = try find(ack.stream), channel.id == link.channel else { continue }
            let acked = link.acked(in: channel)
            guard ack.offset >= acked else {
                throw .refused(
                    ChannelError(
                        "INVALID_OFFSET", "'\(ack.stream)' is acked up to \(Offset(acked)) already, which is after \(Offset(ack.offset))."))
            }
            guard ack.offset <= channel.tail.head else {
                throw .refused(
                    ChannelError(
                        "INVALID_OFFSET", "\(Offset(ack.offset)) is after the tail of '\(ack.stream)', \(Offset(channel.tail.head))."))
            }
            link.acked = max(ack.offset, links[ack.stream]?.acked ?? 0)
            links[ack.stream] = link
        }
        for (name, link) in links { put(link, name.text, in: &stage) }
    }

    /// Whether the wake may have named a stream that was removed since.
    private func isGone(_ stream: String, _ entry: SubscriptionEntry) -> Bool {
        entry.subscription.configuration.matches(stream) && entry.gone.contains(stream, entry.subscription.generation)
    }

    func delivered(
        _ wakeID: String, _ acks: [SubscriptionAck]?, _ subscription: inout Subscription, in stage: inout Stage
    ) throws(ChannelRefusal) {
        // A delivery whose lease has expired is fenced like a callback.
        guard subscription.wake?.id == wakeID else { return }
        subscription.delivered()
        guard let acks else { return }
        for ack in acks {
            guard var link = try stored(ack.stream, in: &stage), let channel = try find(ack.stream), channel.id == link.channel,
                (link.acked(in: channel)...channel.tail.head).contains(ack.offset)
            else { continue }
            link.acked = ack.offset
            put(link, ack.stream, in: &stage)
        }
        subscription.end()
    }

    /// Refuses a request that does not hold the current wake.
    func check(_ proof: SubscriptionProof, _ subscription: Subscription, isWebhook: Bool) throws(ChannelRefusal) {
        // Checked before any detail of the subscription is disclosed.
        guard let token = subscriptions.tokens.read(proof.token, of: subscription) else {
            throw .refused(ChannelError("TOKEN_INVALID", SubscriptionTokens.wrong(id)))
        }
        try require(isWebhook: isWebhook, subscription)
        guard let wake = subscription.wake, isWebhook || wake.holder != nil, token.generation == subscription.generation,
            proof.generation == subscription.generation, token.wakeID == wake.id, proof.wakeID == wake.id
        else {
            throw .refused(ChannelError("FENCED", "the wake is over; the subscription is at generation \(subscription.generation)."))
        }
    }

    private func require(isWebhook: Bool, _ subscription: Subscription) throws(ChannelRefusal) {
        guard subscription.configuration.isWebhook != isWebhook else { return }
        let expected = isWebhook ? "by pull-wake: its wakes are claimed, acked and released." : "by webhook: its wakes have a callback."
        throw .refused(ChannelError("INVALID_REQUEST", "'\(id)' is delivered \(expected)"))
    }
}
