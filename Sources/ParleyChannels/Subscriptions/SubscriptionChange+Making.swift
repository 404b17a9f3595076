internal import ParleyLog
internal import ParleySystem

/// Creating and removing a subscription.
extension SubscriptionChange {
    /// Begins to create the subscription. With few streams to link, one commit is enough.
    mutating func begin(
        _ configuration: SubscriptionConfiguration, _ root: String, in stage: inout Stage
    ) throws(ChannelRefusal) -> Outcome {
        // Another request is creating it. Whether the configuration is the same is decided when that has ended.
        if subscriptions.configurationInMaking(id) != nil { return .later(.put(configuration, root: root)) }
        guard subscriptions.count < Subscriptions.countMax else {
            throw .refused(
                ChannelError("TOO_MANY_SUBSCRIPTIONS", "there are \(Subscriptions.countMax) subscriptions already. Delete one first."))
        }
        // Checked first: a refusal is an answer, so what was staged before it would stay.
        try checkExplicit(configuration.streams.count)
        try checkWakeStream(configuration, configuration.streams)
        guard configuration.pattern == nil, configuration.streams.count <= Subscriptions.pageLinks else {
            return .making(SubscriptionMaking(subscriptions, id, configuration, root: root))
        }
        let number = subscriptions.beginMaking(id, configuration)
        return .answer(
            try create(configuration, root, SubscriptionMaking.Page(number: number, links: configuration.links, isWhole: true), in: &stage))
    }

    mutating func create(
        _ configuration: SubscriptionConfiguration, _ root: String, _ page: SubscriptionMaking.Page, in stage: inout Stage
    ) throws(ChannelRefusal) -> SubscriptionAnswer {
        try link(page, in: &stage)
        let subscription = Subscription(id: id, configuration, root: root, created: now, random: channels.world.random())
        var entry = SubscriptionEntry(subscription)
        entry.explicit = Set(configuration.streams.map { TextKey($0) })
        stage.put(.index, SubscriptionRows.key(id), subscription.bytes)
        // What was linked in this commit is at the tail of its stream.
        if page.isWhole { entry.news.isKnown() } else { scan(&entry) }
        subscriptions.keep(entry)
        subscriptions.endMaking(id, page.number)
        effects.resumes = true
        return .created(subscription)
    }

    func link(_ page: SubscriptionMaking.Page, in stage: inout Stage) throws(ChannelRefusal) {
        // The partition has had another owner meanwhile.
        guard subscriptions.isMaking(id, page.number) else {
            throw .refused(ChannelError(LogError(.partitionUnavailable, "the partition of '\(id)' was closed meanwhile")))
        }
        for item in page.links { try link(item.stream, isExplicit: item.isExplicit, in: &stage) }
    }

    /// - Parameter number: The making that has failed; `nil` for one of an earlier process.
    mutating func unmake(_ number: UInt64?, in stage: inout Stage) throws(ChannelRefusal) {
        if let number {
            guard subscriptions.isMaking(id, number) else { return }
            subscriptions.endMaking(id, number)
            effects.resumes = true
        } else {
            // A row that cannot be read may still exist.
            let row = try wrap { () throws(LogError) in try stage.get(.index, SubscriptionRows.key(id)) }
            guard subscriptions.configurationInMaking(id) == nil, row == nil else { return }
        }
        stage.delete(.index, from: SubscriptionRows.key(id), to: SubscriptionRows.end(id))
    }
}
