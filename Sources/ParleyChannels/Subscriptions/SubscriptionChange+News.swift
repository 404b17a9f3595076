internal import ParleyLog
internal import ParleySystem

/// What is new in the streams of a subscription.
extension SubscriptionChange {
    enum Pending {
        case stream(String)
        case nothing
        /// The links have to be scanned.
        case unknown
    }

    /// The first stream with something new. Forgets candidates without news.
    ///
    /// - Parameter isNamed: Whether the wake names its streams at once, so that all of them must be known.
    func firstPending(
        _ entry: inout SubscriptionEntry, isNamed: Bool, in stage: inout Stage
    ) throws(ChannelRefusal) -> Pending {
        if isNamed, entry.news.isIncomplete { return try firstOfNext(&entry, in: &stage) }
        for name in entry.news.inTurn where try isPending(name, &entry, in: &stage) { return .stream(name) }
        return entry.news.isIncomplete ? .unknown : .nothing
    }

    /// The same where more streams have something new than are remembered.
    private func firstOfNext(_ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) -> Pending {
        guard entry.news.isNextKnown else { return .unknown }
        var pending: [String] = []
        for name in entry.news.nextInTurn where try isPending(name, &entry, in: &stage) { pending.append(name) }
        // Many of those that the scan has found were named by the last wake, and have been acknowledged or removed since.
        let isEnough = isAfterScan ? !pending.isEmpty : pending.count >= Subscriptions.streamsPerWakeMax
        if isEnough { return .stream(pending[0]) }
        entry.news.named(upTo: nil)
        return .unknown
    }

    /// A scan has just ended: another would hardly find more.
    private var isAfterScan: Bool {
        switch request {
        case .scanned, .claimAgain: true
        default: false
        }
    }

    /// Whether there is something new in a candidate that can be read.
    func isPending(_ name: String, _ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) -> Bool {
        stage.count(Subscriptions.linkBytes)
        switch try isPending(name, entry.subscription.configuration, in: &stage) {
        case true?: return true
        case false?: entry.news.remove(name)
        case nil: break
        }
        return false
    }

    /// - Returns: `nil` when there are new entries in a channel that has expired.
    private func isPending(
        _ name: String, _ configuration: SubscriptionConfiguration, in stage: inout Stage
    ) throws(ChannelRefusal) -> Bool? {
        let channel = try find(name)
        func isNew(_ channel: Channel, _ link: SubscriptionLink) -> Bool? {
            guard channel.tail.head > link.acked(in: channel) else { return false }
            return channel.isExpired(now) ? nil : true
        }
        guard var link = try stored(name, in: &stage) else {
            guard let channel, configuration.matches(name) else { return false }
            // The stream is newer than the subscription, so all of it is new.
            let link = SubscriptionLink(isExplicit: false, isGlob: true, acked: 0, channel: nil)
            put(link, name, in: &stage)
            return isNew(channel, link)
        }
        if let channel { return isNew(channel, link) }
        if !link.isExplicit {
            stage.delete(.index, SubscriptionRows.key(id, name))
        } else if link.channel != nil {
            (link.acked, link.channel) = (0, nil)
            put(link, name, in: &stage)
        }
        return false
    }

    mutating func scanned(_ outcome: SubscriptionScan.Outcome, _ entry: inout SubscriptionEntry) throws(ChannelRefusal) {
        effects.resumes = true
        guard outcome.incarnation == entry.subscription.incarnation else { return }
        do throws(ChannelError) {
            entry.news.scanned(try outcome.result.get())
        } catch {
            entry.news.scanFailed()
            subscriptions.keep(entry.news, of: id)
            throw .refused(error)
        }
    }
}
