package import ParleyLog
package import ParleySystem
internal import Synchronization

/// The subscriptions of a node: the streams of each, what is new in them, and the wakes.
///
/// Everything is decided by the writer, one request after another (``SubscriptionChange``); what it decides by is in memory here, except for
/// the links, which are read from the log. Offsets are compared with published tails only: what is staged may be lost in a crash while
/// what is decided about it, in another partition, is not.
package final class Subscriptions: @unchecked Sendable {  // Guard: all but the constants belongs to the writer thread once it has started.
    package let channels: Channels
    let tokens: SubscriptionTokens
    private var entries: [TextKey: SubscriptionEntry] = [:]
    /// Their patterns.
    var index = SubscriptionIndex()
    /// The subscriptions that name a stream.
    private var byStream: [TextKey: Set<TextKey>] = [:]
    /// Rises when the patterns or the names above change: what channels remember of them is void then.
    private var version: UInt64 = 0
    var makings = Makings()
    private var notifier: (any SubscriptionNotifier)?
    /// Requests that wait for the scan of their subscription, or until it is made.
    private let waiting = Mutex<[TextKey: [SubscriptionWaiter]]>([:])
    private let counted = Mutex(SubscriptionCounters())
    /// The work of the start: subscriptions to check, and streams that an earlier version has not linked yet.
    private var found: (subscriptions: [String], orphans: [String], streams: [NewStream]) = ([], [], [])

    /// Subscriptions of a node; each takes some memory.
    static let countMax = 10_000
    /// Streams that one subscription may name, and that one may match when it is created.
    static let explicitMax = 10_000
    static let linksMax = 100_000
    /// Streams of one wake, those with something new first; the others follow in the next.
    static let streamsPerWakeMax = 1_000
    /// The bound up to which a wake also names streams without news: the writer looks each of them up.
    static let streamsPerWakeUsual = 100
    /// Streams with something new that one subscription remembers; beyond, its links are scanned again. No fewer than one wake names.
    static let candidatesMax = 1_024
    /// Links that are read or written at a time.
    static let pageLinks = 1_000
    /// A look at a link takes the writer as long as an append of so many bytes.
    static let linkBytes = 1 << 10
    /// The same for a link that is made: a commit has hardly more than a page of them.
    static let linkingBytes = 4 << 10

    /// - Parameter tokenKey: The secret that callback and claim tokens are made with.
    package init(_ channels: Channels, tokenKey: Bytes) {
        self.channels = channels
        tokens = SubscriptionTokens(key: tokenKey)
    }

    /// Sets the notifier that delivers wakes to webhooks.
    package func notify(_ notifier: any SubscriptionNotifier) { self.notifier = notifier }

    /// Reads the stored subscriptions, and observes every commit from now on. Call it before the writer starts.
    ///
    /// Cost: a visit of every subscription's rows.
    package func prepare() throws(LogError) {
        let open = channels.openPartitions.numbers
        for partition in open { takeIn(try read(partition)) }
        channels.observe(self)
        channels.observePartitions(self)
    }

    /// The stored subscriptions of a partition.
    private struct Stored: Sendable {
        var subscriptions: [(subscription: Subscription, explicit: [String])] = []
        /// Ids of links whose subscription was not made to its end.
        var orphans: [String] = []
        var newStreams: [NewStream] = []
    }

    private func read(_ partition: UInt16) throws(LogError) -> Stored {
        var stored = Stored()
        try SubscriptionRows.scan(channels.log, partition) { subscription in
            stored.subscriptions.append((subscription, []))
        } link: { id, stream, link in
            guard let last = stored.subscriptions.indices.last, stored.subscriptions[last].subscription.id.hasSameBytes(as: id) else {
                if stored.orphans.last?.hasSameBytes(as: id) != true { stored.orphans.append(id) }
                return
            }
            if link.isExplicit { stored.subscriptions[last].explicit.append(stream) }
        }
        try SubscriptionRows.newStreams(channels.log, partition) { stored.newStreams.append(NewStream(id: $0, name: $1)) }
        return stored
    }

    private func takeIn(_ stored: Stored) {
        for (subscription, explicit) in stored.subscriptions {
            var entry = SubscriptionEntry(subscription)
            entry.explicit = Set(explicit.map { TextKey($0) })
            keep(entry)
            found.subscriptions.append(subscription.id)
        }
        found.orphans += stored.orphans
        found.streams += stored.newStreams
    }

    /// What was done, as of the last commit. Thread-safe.
    package var counters: SubscriptionCounters { counted.withLock { $0 } }

    /// Resumes what the last process left. Call it once the writer has started.
    package func start() {
        for id in found.subscriptions.sorted() { request(.look, of: id) }
        for id in found.orphans { request(.unmake(nil), of: id) }
        for stream in found.streams { channels.submit(.linkNew(stream)) }
        found = ([], [], [])
    }

    /// Submits a request to the writer. `completion` is called once, on its thread, or here when the writer accepts nothing.
    package func request(
        _ request: SubscriptionRequest, of id: String,
        completion: @escaping @Sendable (Result<SubscriptionAnswer, ChannelError>) -> Void = { _ in }
    ) {
        channels.submit(.subscription(SubscriptionCommand(id: id, request: request)), completion) {
            if case .subscription(let answer) = $0 { answer } else { nil }
        }
    }
}

extension Subscriptions: PartitionObserver {
    package func prepare(_ partition: UInt16) throws(LogError) -> @Sendable () -> Void {
        let stored = try read(partition)
        return { [self] in
            takeIn(stored)
            start()
        }
    }

    package func partitionClosed(_ partition: UInt16) {
        for id in entries.keys.filter({ Placement.partition(of: $0.text) == partition }) { remove(id.text) }
        for id in makings.ids(in: partition) {
            endMaking(id)
            resume(id)
        }
    }
}

/// A stream that an earlier version has made and not linked yet, as its row tells.
struct NewStream: Sendable {
    let id: ChannelID
    let name: String

    /// Deletes the row, and links the stream to its subscriptions.
    func decide(_ channels: Channels, in stage: inout Stage) throws(LogError) {
        let subscribers = try channels.subscriptions?.toTell(of: name, from: id.partition, in: stage) ?? []
        for id in subscribers { channels.messages.post(.link(subscription: id, stream: name), from: self.id.partition, in: &stage) }
        stage.delete(.index, SubscriptionRows.newStreamKey(id))
    }
}

/// Delivers notifications to webhooks.
package protocol SubscriptionNotifier: AnyObject, Sendable {
    /// Writer thread, once the wake is durable; must only take note.
    func deliver(_ notification: SubscriptionNotification)
}

/// A wake that goes to a webhook.
package struct SubscriptionNotification: Sendable {
    package let subscription: Subscription
    package let wake: SubscriptionWake
    package let streams: [SubscriptionStream]
    package let token: String
}

/// A stream of a wake.
package struct SubscriptionStream: Sendable {
    package let path: String
    package let link: SubscriptionLink
    package let tail: UInt64

    package var isPending: Bool { tail > link.acked }
}

// MARK: - What the writer tells of channels

extension Subscriptions {
    /// The subscriptions to notify of a channel that is being created in that partition, because their patterns match it.
    ///
    /// Called before anything is changed.
    func toTell(of name: String, from partition: UInt16, in stage: Stage) throws(LogError) -> [String] {
        guard !index.isEmpty else { return [] }
        let matching = index.matching(name)
        if !matching.isEmpty { try channels.messages.ready(partition, in: stage) }
        return matching.texts
    }

    /// Links a stream that was created and matches: all of it is new. Stages the link, unless it was linked in another way meanwhile.
    func link(_ stream: String, to id: String, in stage: inout Stage) throws(LogError) -> [Effect] {
        guard let configuration = entries[id]?.subscription.configuration ?? makings[id], configuration.matches(stream) else { return [] }
        let key = SubscriptionRows.key(id, stream)
        if try stage.get(.index, key) == nil {
            // Until the subscription is there, what is in the stream came before it.
            let channel = makings[id] == nil ? nil : try? findLinked(stream)
            let link = SubscriptionLink(isExplicit: false, isGlob: true, acked: channel?.tail.head ?? 0, channel: channel?.id)
            stage.put(.index, key, link.bytes)
        }
        return [.linked(subscription: id, stream: stream)]
    }

    /// Notifies the subscriptions whose patterns match a channel that is being removed. The messages of its partition are ready.
    func removing(_ channel: Channel, in stage: inout Stage) throws(LogError) {
        for id in try toTell(of: channel.name, from: channel.id.partition, in: stage) {
            channels.messages.post(
                .unlink(subscription: id, stream: channel.name, channel: channel.id), from: channel.id.partition, in: &stage)
        }
    }

    /// Removes the link of a removed stream, independently of the wake, unless the stream is linked by name or was recreated.
    func unlink(_ stream: String, of channel: ChannelID, from id: String, in stage: inout Stage) throws(LogError) {
        let key = SubscriptionRows.key(id, stream)
        guard let link = try stage.get(.index, key).flatMap({ SubscriptionLink($0) }), !link.isExplicit,
            try !isReplaced(stream, channel, link)
        else { return }
        stage.delete(.index, key)
        guard var entry = entries[id] else { return }
        entry.forget(stream, link)
        keep(entry)
    }

    /// Whether there is another stream of the name of one that was removed: the link counts for that, from its start.
    private func isReplaced(_ stream: String, _ removed: ChannelID, _ link: SubscriptionLink) throws(LogError) -> Bool {
        do throws(LogError) {
            return try findLinked(stream).map { $0.id != removed } ?? false
        } catch {
            // The name is another node's. If the stream was recreated, the message that links it follows this one.
            guard error.code == .partitionUnavailable else { throw error }
            return link.channel.map { $0 != removed } ?? false
        }
    }

    /// Notes that the link is durable.
    func linked(_ stream: String, to id: String) {
        guard entries[id] != nil else { return }
        changed(stream, of: id)
    }

    /// Notes that these channels have changed durably. Cost: nothing without subscriptions, else a comparison for each
    /// channel that no subscription matches.
    func published(_ changed: [Channel]) {
        guard !entries.isEmpty else { return }
        for channel in changed {
            for id in subscribers(of: channel) { self.changed(channel.name, of: id) }
        }
    }

    private func changed(_ stream: String, of id: String) {
        let before = entries[id]!.news.candidates.count
        entries[id]!.news.add(stream)
        let new = entries[id]!.news.candidates.count - before
        if new != 0 { counted.withLock { $0.pendingStreams += new } }
        // The holder of a wake learns of it at its end.
        if entries[id]!.subscription.canWake(now: channels.world.now) { look(at: id) }
    }

    private func look(at id: String) {
        guard !entries[id]!.isLookQueued else { return }
        entries[id]!.isLookQueued = true
        request(.look, of: id)
    }

    /// The subscriptions of a channel, cached in the channel's staged half.
    private func subscribers(of channel: Channel) -> [String] {
        if let known = channel.staged.subscribers, known.version == version { return known.ids }
        let ids = subscribers(of: channel.name)
        channel.staged.subscribers = (version, ids)
        return ids
    }

    private func subscribers(of name: String) -> [String] {
        (byStream[name] ?? []).union(index.matching(name)).filter { entries[$0] != nil }.texts
    }

    // MARK: What is kept for the writer's decisions

    func entry(_ id: String) -> SubscriptionEntry? { entries[id] }

    var count: Int { entries.count + makings.count }

    /// Stores the decided state of a subscription.
    func keep(_ entry: SubscriptionEntry) {
        let id = entry.subscription.id
        let old = entries.updateValue(entry, forKey: TextKey(id))
        if old == nil {
            index.insert(id, entry.subscription.configuration)
            version += 1
        }
        // The same set, as nearly always, costs nothing to compare.
        let before = old?.explicit ?? []
        if before != entry.explicit {
            for stream in before.subtracting(entry.explicit) { remove(id, from: stream.text) }
            for stream in entry.explicit.subtracting(before) { add(id, to: stream.text) }
        }
        count(entry.news.candidates.count - (old?.news.candidates.count ?? 0))
    }

    /// The same for what a refused request has found out of what is new.
    func keep(_ news: SubscriptionNews, of id: String) {
        guard let before = entries[id]?.news else { return }
        entries[id]!.news = news
        count(news.candidates.count - before.candidates.count)
    }

    private func count(_ pending: Int) {
        let subscriptions = entries.count
        counted.withLock { counted in
            counted.subscriptions = subscriptions
            counted.pendingStreams += pending
        }
    }

    func count(_ done: SubscriptionCounters) { counted.withLock { $0.add(done) } }

    func remove(_ id: String) {
        let entry = entries.removeValue(forKey: TextKey(id))
        if let entry { index.remove(id, entry.subscription.configuration) }
        for stream in entry?.explicit ?? [] { remove(id, from: stream.text) }
        version += 1
        entry?.alarm?.scheduled.cancel()
        count(-(entry?.news.candidates.count ?? 0))
        resume(id)
    }

    private func add(_ id: String, to stream: String) {
        byStream[stream, default: []].insert(id)
        version += 1
    }

    private func remove(_ id: String, from stream: String) {
        byStream[stream]?.remove(id)
        if byStream[stream]?.isEmpty == true { byStream[stream] = nil }
        version += 1
    }

    // MARK: Scans

    func wait(_ waiter: SubscriptionWaiter, for id: String) { waiting.withLock { $0[id, default: []].append(waiter) } }

    /// Submits the requests again that have waited for a scan. Thread-safe.
    func resume(_ id: String) {
        for waiter in waiting.withLock({ $0.removeValue(forKey: TextKey(id)) }) ?? [] {
            channels.submit(.subscription(SubscriptionCommand(id: id, request: waiter.request)), waiter.answer)
        }
    }

    /// Answers the requests that wait for a scan that failed. Thread-safe.
    func fail(_ id: String, _ error: ChannelError) {
        for waiter in waiting.withLock({ $0.removeValue(forKey: TextKey(id)) }) ?? [] { waiter.answer(.failure(error)) }
    }

    // MARK: What follows from a decision

    /// The subscription as of the last commit, for readers; `nil`: there is none. Thread-safe; reads the disk.
    package func describe(_ id: String) throws(LogError) -> (subscription: Subscription, streams: [SubscriptionStream])? {
        guard let subscription = try SubscriptionRows.subscription(id, in: channels.log) else { return nil }
        var links: [(name: String, link: SubscriptionLink)] = []
        try SubscriptionRows.links(of: id, in: channels.log) { name, link in
            links.append((name, link))
            return true
        }
        var streams: [SubscriptionStream] = []
        for (name, link) in links {
            var link = link
            let channel = try find(name)
            if let channel { link.acked = link.acked(in: channel) }
            streams.append(SubscriptionStream(path: name, link: link, tail: channel?.tail.head ?? 0))
        }
        return (subscription, streams)
    }

    /// The channel of that name as readers see it, which excludes channels that are kept for their forks alone. Thread-safe.
    func find(_ name: String) throws(LogError) -> Channel? {
        guard let channel = try channels.find(name), !channel.isSoftDeleted, !channel.tail.isDeleted else { return nil }
        return channel
    }

    /// The same, also for an expired channel: until it is removed, a process that takes over may give it a little longer, and needs its cursor.
    /// Thread-safe.
    func findLinked(_ name: String) throws(LogError) -> Channel? {
        guard let channel = try channels.findAny(name), !channel.isSoftDeleted, !channel.tail.isDeleted else { return nil }
        return channel
    }

    func deliver(_ notification: SubscriptionNotification) { notifier?.deliver(notification) }

    /// Looks again when a lease ends or an attempt is due.
    func setAlarm(_ id: String) {
        // What is due is decided when the scan has ended.
        guard let entry = entries[id], !entry.news.isScanning else { return }
        let announcement = entry.announcements.isEmpty ? nil : entry.nextAnnouncement
        // Never at once: an alarm that finds no work must not keep the writer busy.
        let earliest = channels.world.now.advanced(by: .milliseconds(10))
        let due = [entry.subscription.due, announcement].compactMap { $0 }.min().map { max($0, earliest) }
        guard entry.alarm?.instant != due else { return }
        entry.alarm?.scheduled.cancel()
        entries[id]!.alarm = due.map { due in
            (due, channels.world.schedule(at: due) { [weak self] in self?.request(.ring, of: id) })
        }
    }

    func rang(_ id: String) { entries[id]?.alarm = nil }
    func looked(_ id: String) { entries[id]?.isLookQueued = false }

    /// Every generation has its event, also one that was claimed, or was over, before the event could be written.
    func begun(_ announcement: WakeAnnouncement, of id: String) { entries[id]?.announce(announcement) }

    /// Writes the oldest event that is not written, unless one is being written, or the time to try again has not come. An event's generation is the
    /// epoch of its producer, so a second time, by the next process, adds nothing.
    func announce(_ id: String) {
        guard let entry = entries[id], !entry.isAnnouncing, let next = entry.announcements.first,
            entry.nextAnnouncement.map({ $0 <= channels.world.now }) ?? true, let stream = entry.subscription.configuration.wakeStream
        else { return }
        entries[id]!.isAnnouncing = true
        entries[id]!.nextAnnouncement = nil
        let event = JSON.compact(
            ("type", "wake"), ("subscription_id", .string(id)), ("stream", .string(next.stream)),
            ("generation", .integer(Int64(next.generation))), ("ts", .integer(channels.world.now.milliseconds)))
        let incarnation = entry.subscription.incarnation
        var append = Append(to: stream, [NewEntry(data: event.bytes)])
        append.producer = ProducerClaim(id: "subscription/\(incarnation)", epoch: next.generation, sequence: 0)
        channels.submit(append) { [weak self] result in self?.announced(next.generation, of: id, incarnation, result) }
    }

    /// Told by the writer, or by its refusal to take the event, which is on its thread, too.
    private func announced(_ generation: UInt64, of id: String, _ incarnation: String, _ result: Result<Appended, ChannelError>) {
        guard entries[id]?.subscription.incarnation == incarnation else { return }
        entries[id]!.isAnnouncing = false
        switch result {
        // Fenced: a later one is there already, and with it this one.
        case .success: entries[id]!.announced(generation)
        case .failure(let error) where error.code == "producer_fenced": entries[id]!.announced(generation)
        case .failure(let error) where error.code == "log_closed": return
        case .failure(let error): return unannounced(id, error)
        }
        announce(id)
    }

    /// Tries an event again that could not be written. If the stream itself refuses it, only while its wake is in flight or held.
    private func unannounced(_ id: String, _ error: ChannelError) {
        if error.code != "overloaded" { entries[id]!.dropOldAnnouncements() }
        entries[id]!.announceFailures = min(entries[id]!.announceFailures + 1, 1_000)
        if entries[id]!.announceFailures == 1 {
            Diagnostics.log(.warning, "wake event cannot be written", ["subscription": id, "reason": error.message])
        }
        let pause = Subscription.pause(failures: entries[id]!.announceFailures, random: channels.world.random())
        entries[id]!.nextAnnouncement = channels.world.now.advanced(by: pause)
        setAlarm(id)
    }
}
