internal import ParleyLog
internal import ParleySystem

/// What somebody wants of a subscription.
package enum SubscriptionRequest: Sendable {
    /// Makes it, or finds that it is there already with the same configuration.
    ///
    /// With a page the last of its streams are linked, and it is there.
    case put(SubscriptionConfiguration, root: String, SubscriptionMaking.Page? = nil)
    /// Links streams of a subscription that is being made.
    case link(SubscriptionMaking.Page)
    /// Removes what was linked for a subscription that is not there after all.
    case unmake(UInt64?)
    case delete
    /// Links streams by name, from their tails on.
    case add([String])
    /// Removes what links a stream by name.
    case remove(String)
    /// A worker wants to hold the wake.
    case claim(worker: String)
    /// The same, after it has waited for a scan of the links.
    case claimAgain(worker: String)
    /// Whoever was woken has done something, or is still about it.
    case acknowledge(SubscriptionProof, [SubscriptionAck], isDone: Bool, isCallback: Bool)
    /// Whoever holds the wake gives it back.
    case release(SubscriptionProof)
    /// The webhook has taken the wake; with `done` it has processed it.
    case delivered(wakeID: String, done: [SubscriptionAck]?)
    /// The webhook could not be told of the wake.
    case failed(wakeID: String)
    /// Something of it may be new, or due.
    case look
    /// The same, because of the time.
    case ring
    /// Its links have been scanned.
    case scanned(SubscriptionScan.Outcome)
    /// Removes links of streams that have gone.
    case sweep([String])
}

/// By what somebody shows that a wake is his.
package struct SubscriptionProof: Sendable {
    package var token: String
    package var wakeID: String
    package var generation: UInt64

    package init(token: String, wakeID: String, generation: UInt64) {
        (self.token, self.wakeID, self.generation) = (token, wakeID, generation)
    }
}

/// A stream has been processed up to that offset, the entry of the offset included.
package struct SubscriptionAck: Sendable {
    package var stream: String
    package var offset: UInt64

    package init(stream: String, offset: UInt64) { (self.stream, self.offset) = (stream, offset) }
}

package enum SubscriptionAnswer: Sendable {
    case created(Subscription)
    case confirmed(Subscription)
    case claimed(Subscription, SubscriptionWake, token: String, streams: [SubscriptionStream])
    case acknowledged(nextWake: Bool)
    case done
}

/// A request, of a subscription.
struct SubscriptionCommand: Sendable {
    let id: String
    let request: SubscriptionRequest

    /// What the node itself asks is bounded by the number of subscriptions.
    var isBounded: Bool {
        switch request {
        case .look, .ring, .delivered, .failed, .scanned, .sweep, .link, .unmake: false
        // It has been let in already.
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

/// One decision about a subscription.
struct SubscriptionChange {
    private let subscriptions: Subscriptions
    private let id: String
    private let request: SubscriptionRequest
    private(set) var effects: SubscriptionEffects

    init(_ subscriptions: Subscriptions, _ id: String, _ request: SubscriptionRequest) {
        (self.subscriptions, self.id, self.request) = (subscriptions, id, request)
        effects = SubscriptionEffects(subscriptions: subscriptions, id: id)
    }

    private var channels: Channels { subscriptions.channels }
    private var now: Timestamp { channels.world.now }
}

// MARK: - Deciding

extension SubscriptionChange {
    /// How a request is answered.
    enum Outcome {
        case answer(SubscriptionAnswer)
        /// By that request, once the links have been scanned.
        case later(SubscriptionRequest)
        case making(SubscriptionMaking)
    }

    mutating func decide(in stage: inout Stage) throws(ChannelRefusal) -> Outcome {
        // Before anything is looked at: what comes after needs another look.
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

    /// Begins a wake if something is new.
    private mutating func wake(
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
            // What could not be delivered is gone.
            if entry.subscription.wake != nil || entry.subscription.hasFailed { entry.subscription.end() }
        case .unknown: break
        }
    }

    /// Has the links looked through once this is durable, if that is needed to tell the streams of the next wake, and not being done.
    private mutating func scan(_ entry: inout SubscriptionEntry) {
        guard !entry.news.isNextKnown, !entry.news.isScanning else { return }
        effects.scan = SubscriptionScan(subscriptions, entry.subscription, after: entry.news.beginScan())
    }

    /// Notes what the request has done, before a new wake begins.
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

    private func wrap<Value>(_ body: () throws(LogError) -> Value) throws(ChannelRefusal) -> Value { try ChannelRefusal.wrap(body) }

    // MARK: Creating and removing

    /// Begins to make it; where there is little to link, that is all.
    private mutating func begin(
        _ configuration: SubscriptionConfiguration, _ root: String, in stage: inout Stage
    ) throws(ChannelRefusal) -> Outcome {
        // Another request is making it: whether that is the same is seen when it is there.
        if subscriptions.configurationInMaking(id) != nil { return .later(.put(configuration, root: root)) }
        guard subscriptions.count < Subscriptions.countMax else {
            throw .refused(
                ChannelError("TOO_MANY_SUBSCRIPTIONS", "there are \(Subscriptions.countMax) subscriptions already. Delete one first."))
        }
        // A refusal is an answer, and what was staged by then would stay.
        try checkExplicit(configuration.streams.count)
        try checkWakeStream(configuration, configuration.streams)
        guard configuration.pattern == nil, configuration.streams.count <= Subscriptions.pageLinks else {
            return .making(SubscriptionMaking(subscriptions, id, configuration, root: root))
        }
        let number = subscriptions.beginMaking(id, configuration)
        return .answer(
            try create(configuration, root, SubscriptionMaking.Page(number: number, links: configuration.links, isWhole: true), in: &stage))
    }

    private mutating func create(
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

    private func link(_ page: SubscriptionMaking.Page, in stage: inout Stage) throws(ChannelRefusal) {
        // Its partition has been another's meanwhile.
        guard subscriptions.isMaking(id, page.number) else {
            throw .refused(ChannelError(LogError(.partitionUnavailable, "the partition of '\(id)' was closed meanwhile")))
        }
        for item in page.links { try link(item.stream, isExplicit: item.isExplicit, in: &stage) }
    }

    /// - Parameter number: The making that has failed; `nil` for one of an earlier process.
    private mutating func unmake(_ number: UInt64?, in stage: inout Stage) throws(ChannelRefusal) {
        if let number {
            guard subscriptions.isMaking(id, number) else { return }
            subscriptions.endMaking(id, number)
            effects.resumes = true
        } else {
            // A row that cannot be read is not gone.
            let row = try wrap { () throws(LogError) in try stage.get(.index, SubscriptionRows.key(id)) }
            guard subscriptions.configurationInMaking(id) == nil, row == nil else { return }
        }
        stage.delete(.index, from: SubscriptionRows.key(id), to: SubscriptionRows.end(id))
    }

    // MARK: Links

    private func stored(_ name: String, in stage: inout Stage) throws(ChannelRefusal) -> SubscriptionLink? {
        try wrap { () throws(LogError) in try stage.get(.index, SubscriptionRows.key(id, name)) }.flatMap { SubscriptionLink($0) }
    }

    private func put(_ link: SubscriptionLink, _ name: String, in stage: inout Stage) {
        stage.put(.index, SubscriptionRows.key(id, name), link.bytes)
    }

    /// The channel of that name, as the last commit has it. One whose time has come is there until it is removed: a process that takes over may
    /// give it a little longer, and its cursor must be there then.
    private func find(_ name: String) throws(ChannelRefusal) -> Channel? {
        try wrap { () throws(LogError) in try subscriptions.findLinked(name) }
    }

    /// Links a stream at its tail, or notes one more reason for its link.
    private func link(_ name: String, isExplicit: Bool, in stage: inout Stage) throws(ChannelRefusal) {
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

    private func checkExplicit(_ count: Int) throws(ChannelRefusal) {
        guard count <= Subscriptions.explicitMax else {
            throw .refused(
                ChannelError("INVALID_REQUEST", "a subscription names \(Subscriptions.explicitMax) streams at most. Use a pattern."))
        }
    }

    private func checkWakeStream(_ configuration: SubscriptionConfiguration, _ streams: [String]) throws(ChannelRefusal) {
        guard let wakeStream = configuration.wakeStream, streams.contains(where: { $0.hasSameBytes(as: wakeStream) }) else { return }
        throw .refused(ChannelError("INVALID_REQUEST", "wake_stream is one of streams: each wake would be a reason for another."))
    }

    private func add(_ streams: [String], _ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) {
        var new: [String] = []
        for name in streams where try stored(name, in: &stage)?.isExplicit != true { new.append(name) }
        try checkExplicit(entry.explicit.count + new.count)
        try checkWakeStream(entry.subscription.configuration, new)
        for name in new { try link(name, isExplicit: true, in: &stage) }
        entry.explicit.formUnion(new.map { TextKey($0) })
    }

    private func remove(_ name: String, _ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) {
        guard var link = try stored(name, in: &stage), link.isExplicit else { return }
        link.isExplicit = false
        // One that there is not is linked by its name alone.
        let channel = try find(name)
        link.isGlob = channel != nil && entry.subscription.configuration.matches(name)
        if link.isGlob { put(link, name, in: &stage) } else { stage.delete(.index, SubscriptionRows.key(id, name)) }
        entry.explicit.remove(name)
    }

    // MARK: What is new

    private enum Pending {
        case stream(String)
        case nothing
        /// The links have to be scanned.
        case unknown
    }

    /// The first stream with something new. On the way those that have nothing new are forgotten.
    ///
    /// - Parameter isNamed: Its wake tells its streams at once: all of them must be known, and not only the first.
    private func firstPending(
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
        // Of those that the scan has found many were named by the last wake, and have been acknowledged since, or have gone.
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
    private func isPending(_ name: String, _ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) -> Bool {
        stage.count(Subscriptions.linkBytes)
        switch try isPending(name, entry.subscription.configuration, in: &stage) {
        case true?: return true
        case false?: entry.news.remove(name)
        case nil: break
        }
        return false
    }

    private mutating func scanned(_ outcome: SubscriptionScan.Outcome, _ entry: inout SubscriptionEntry) throws(ChannelRefusal) {
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

    /// Removes links of streams that have gone; a stream may be there again.
    private func sweep(
        _ streams: [String], _ entry: inout SubscriptionEntry, in stage: inout Stage
    ) throws(ChannelRefusal) {
        for name in streams {
            stage.count(Subscriptions.linkBytes)
            guard let link = try stored(name, in: &stage), !link.isExplicit, try find(name) == nil else { continue }
            stage.delete(.index, SubscriptionRows.key(id, name))
            entry.forget(name, link)
        }
    }

    /// - Returns: `nil` when something is, but nobody can read it any more.
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
            // It came after the subscription: all of it is new.
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

    private mutating func notify(_ entry: inout SubscriptionEntry, in stage: inout Stage) throws(ChannelRefusal) {
        guard let wake = entry.subscription.wake else { return }
        effects.notification = SubscriptionNotification(
            subscription: entry.subscription, wake: wake, streams: try streams(&entry, in: &stage),
            token: subscriptions.tokens.make(entry.subscription, wake))
    }

    // MARK: Holding a wake

    private mutating func claim(
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
        // Whoever is faster than the event does not need it; others, who count wakes by their events, do.
        if entry.subscription.wake == nil {
            entry.subscription.begin(stream: pending, now: now, random: (channels.world.random(), channels.world.random()))
        }
        entry.subscription.claim(worker, now: now)
        let wake = entry.subscription.wake!
        let token = subscriptions.tokens.make(entry.subscription, wake)
        return .answer(.claimed(entry.subscription, wake, token: token, streams: try streams(&entry, in: &stage)))
    }

    private func require(isWebhook: Bool, _ subscription: Subscription) throws(ChannelRefusal) {
        guard subscription.configuration.isWebhook != isWebhook else { return }
        let expected = isWebhook ? "by pull-wake: its wakes are claimed, acked and released." : "by webhook: its wakes have a callback."
        throw .refused(ChannelError("INVALID_REQUEST", "'\(id)' is delivered \(expected)"))
    }

    /// Refuses whoever does not hold the current wake.
    private func check(_ proof: SubscriptionProof, _ subscription: Subscription, isWebhook: Bool) throws(ChannelRefusal) {
        // Before anything is said of the subscription.
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

    /// Moves cursors, all or none.
    private func acknowledge(
        _ acks: [SubscriptionAck], _ entry: SubscriptionEntry, in stage: inout Stage
    ) throws(ChannelRefusal) {
        var links: [TextKey: SubscriptionLink] = [:]
        for ack in acks {
            guard var link = try stored(ack.stream, in: &stage) else {
                // Its link has gone with it.
                if isGone(ack.stream, entry) { continue }
                throw .refused(ChannelError("INVALID_OFFSET", "'\(ack.stream)' is no stream of '\(id)'."))
            }
            // Deleted meanwhile: there is nothing to go on from, and if another was made in its place, nobody has been given that yet.
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

    /// Whether the wake may have named a stream that has gone since.
    private func isGone(_ stream: String, _ entry: SubscriptionEntry) -> Bool {
        entry.subscription.configuration.matches(stream) && entry.gone.contains(stream, entry.subscription.generation)
    }

    private func delivered(
        _ wakeID: String, _ acks: [SubscriptionAck]?, _ subscription: inout Subscription, in stage: inout Stage
    ) throws(ChannelRefusal) {
        // One whose lease is over is fenced like a callback.
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
}
