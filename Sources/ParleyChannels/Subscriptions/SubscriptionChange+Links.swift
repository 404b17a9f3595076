internal import ParleyLog
internal import ParleySystem

/// What links a subscription to its streams.
extension SubscriptionChange {
    func stored(_ name: String, in stage: inout Stage) throws(ChannelRefusal) -> SubscriptionLink? {
        try wrap { () throws(LogError) in try stage.get(.index, SubscriptionRows.key(id, name)) }.flatMap { SubscriptionLink($0) }
    }

    func put(_ link: SubscriptionLink, _ name: String, in stage: inout Stage) {
        stage.put(.index, SubscriptionRows.key(id, name), link.bytes)
    }

    /// The channel of that name as of the last commit. Includes an expired channel until it is removed: a process that takes over may give it
    /// a little longer, and needs its cursor.
    func find(_ name: String) throws(ChannelRefusal) -> Channel? {
        try wrap { () throws(LogError) in try subscriptions.findLinked(name) }
    }

    /// Links a stream at its tail, or notes one more reason for its link.
    func link(_ name: String, isExplicit: Bool, in stage: inout Stage) throws(ChannelRefusal) {
        stage.count(Subscriptions.linkingBytes)
        if var link = try stored(name, in: &stage) {
            if isExplicit { link.isExplicit = true } else { link.isGlob = true }
            return put(link, name, in: &stage)
        }
        let channel = try find(name)
        if channel == nil, !isExplicit { return }
        put(
            SubscriptionLink(isExplicit: isExplicit, isGlob: !isExplicit, acked: channel?.tail.head ?? 0, channel: channel?.id), name,
            in: &stage)
    }

    func add(_ streams: [String], _ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) {
        var new: [String] = []
        for name in streams where try stored(name, in: &stage)?.isExplicit != true { new.append(name) }
        try checkExplicit(entry.explicit.count + new.count)
        try checkWakeStream(entry.subscription.configuration, new)
        for name in new { try link(name, isExplicit: true, in: &stage) }
        entry.explicit.formUnion(new.map { TextKey($0) })
    }

    func remove(_ name: String, _ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) {
        guard var link = try stored(name, in: &stage), link.isExplicit else { return }
        link.isExplicit = false
        // A missing stream is linked by its name alone.
        let channel = try find(name)
        link.isGlob = channel != nil && entry.subscription.configuration.matches(name)
        if link.isGlob { put(link, name, in: &stage) } else { stage.delete(.index, SubscriptionRows.key(id, name)) }
        entry.explicit.remove(name)
    }

    /// Removes the links of removed streams, unless a stream exists again.
    func sweep(
        _ streams: [String], _ entry: inout SubscriptionEntry, in stage: inout Stage
    ) throws(ChannelRefusal) {
        for name in streams {
            stage.count(Subscriptions.linkBytes)
            guard let link = try stored(name, in: &stage), !link.isExplicit, try find(name) == nil else { continue }
            stage.delete(.index, SubscriptionRows.key(id, name))
            entry.forget(name, link)
        }
    }

    func checkExplicit(_ count: Int) throws(ChannelRefusal) {
        guard count <= Subscriptions.explicitMax else {
            throw .refused(
                ChannelError("INVALID_REQUEST", "a subscription names \(Subscriptions.explicitMax) streams at most. Use a pattern."))
        }
    }

    func checkWakeStream(_ configuration: SubscriptionConfiguration, _ streams: [String]) throws(ChannelRefusal) {
        guard let wakeStream = configuration.wakeStream, streams.contains(where: { $0.hasSameBytes(as: wakeStream) }) else { return }
        throw .refused(ChannelError("INVALID_REQUEST", "wake_stream is one of streams: each wake would be a reason for another."))
    }
}
