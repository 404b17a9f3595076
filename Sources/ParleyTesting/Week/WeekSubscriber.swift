internal import ParleyChannels
internal import ParleySystem

/// A subscription of a simulated week, its workers, and what is known of its cursors.
final class WeekSubscriber: @unchecked Sendable {  // Guard: as `SimulatedWeek`.
    /// How far a stream is acked.
    private struct Cursor {
        var acked: UInt64
        /// Its other possible offsets: acks that were not answered.
        var maybe: [UInt64: Int] = [:]
    }

    /// The holder of a wake.
    private struct Holder {
        var proof: SubscriptionProof
        var leaseEnd: Timestamp
        /// Whether it may have ended, or been extended, by a request that was not answered.
        var isUncertain = false
    }

    let id: String
    let isWebhook: Bool
    unowned var week: SimulatedWeek!
    private var isPatient = false
    /// Its workers have stopped.
    var isOver = false
    private let configuration: SubscriptionConfiguration
    private let pattern: SubscriptionPattern
    private var isThere = false
    private var lives = 1
    /// Whether a PUT or a DELETE was not answered.
    private var isUnsure = false
    /// The cursors, by the number of a stream's life.
    private var cursors: [Int: Cursor] = [:]
    /// Up to where each stream was given to a worker.
    private var given: [Int: UInt64] = [:]
    private var holder: Holder?
    private var generation: UInt64 = 0
    private var claimed: Set<UInt64> = []
    private var past: [(proof: SubscriptionProof, acks: [SubscriptionAck])] = []

    init(number: Int) {
        isWebhook = number % 2 == 1
        id = "\(isWebhook ? "hook" : "pull")-\(number)"
        pattern = SubscriptionPattern(["w/*", "w/once-*", "w/**"][number])!
        configuration = SubscriptionConfiguration(
            isWebhook ? .webhook(url: "https://\(id).example/wake") : .pullWake(stream: "wake/\(number)"), pattern: pattern,
            streams: ["w/a", "w/b"], leaseMilliseconds: [1_000, 30_000, 120_000][number])
    }

    var wakeStream: String? { configuration.wakeStream }

    private func ask(_ request: SubscriptionRequest, _ answered: @escaping @Sendable (Result<SubscriptionAnswer, ChannelError>) -> Void) {
        let process = week.process!
        process.subscriptions.request(request, of: id) { [weak self] result in
            guard let self, week.process === process else { return }
            if case .failure(let error) = result, error.code.hasPrefix("log_") { return }
            week.note("\(id) \(WeekSubscriber.text(request)): \(WeekSubscriber.text(result))")
            answered(result)
        }
    }

    // MARK: Making it, and continuing after a crash

    /// Continues in a new life of the server.
    func resume() {
        put()
        work()
        // A client that watches it creates it, sooner or later; workers may also claim without it.
        guard let stream = configuration.wakeStream, week.chance(2) else { return }
        let row = ChannelRow(name: stream, contentType: ContentType.json, isAgent: false, created: week.process.world.now)
        week.process.channels.submit(CreateChannel(row))
    }

    /// From now on, a woken worker does all there is to do.
    func finish() {
        isPatient = true
        work()
    }

    private func put() {
        isUnsure = true
        ask(.put(configuration, root: "https://localhost/v1/stream/")) { [self] result in
            switch result {
            case .success(.created): created()
            case .success: if !isThere { adopt() }
            case .failure(let error): week.violate("a subscription can be made", "\(id): \(error)")
            }
            (isThere, isUnsure) = (true, false)
        }
    }

    /// Streams that were there are linked at their tails.
    private func created() {
        if isThere { week.violate("a subscription stays", "\(id) was made anew") }
        forget()
        for link in links() {
            take(link.path, acked: link.acked)
            guard let stream = stream(link.path) else { continue }
            let before = week.published.streams[link.path]
            let lowest = before?.number == stream.number ? before!.head : 0
            if !(lowest...stream.head).contains(link.acked) {
                week.violate("a subscription begins at the tail", "\(id), \(link.path): \(link.acked), not \(lowest) to \(stream.head)")
            }
        }
    }

    private func forget() {
        (cursors, given, holder, past, claimed, generation) = ([:], [:], nil, [], [], 0)
    }

    /// Takes the server's cursors for right, when the model cannot know them.
    private func adopt() {
        forget()
        for link in links() { take(link.path, acked: link.acked) }
    }

    /// For an expired stream, it may be the link of an earlier one.
    private func take(_ name: String, acked: UInt64) {
        guard let stream = week.streams.streams[name] else { return }
        cursors[stream.number] = self.stream(name) == nil ? Cursor(acked: first(stream), maybe: [acked: 1]) : Cursor(acked: acked)
    }

    func delete() {
        isUnsure = true
        lives += 1
        ask(.delete) { [self] _ in
            (isThere, isUnsure) = (false, false)
            forget()
        }
    }

    /// The process is dead; an unanswered operation may have happened, where its rows are durable.
    func takeOver(durable: Set<UInt16>) {
        holder?.isUncertain = true
        let (before, wasThere) = (isThere, isUnsure)
        guard wasThere else { return }
        isUnsure = false
        isThere = (try? week.process.subscriptions.describe(id)) != nil
        if !before || !isThere { adopt() }
    }

    func clockWasSet() { holder?.isUncertain = true }

    // MARK: Knowledge

    private func links() -> [(path: String, acked: UInt64, isPending: Bool)] {
        guard let described = try? week.process.subscriptions.describe(id) else { return [] }
        return described.streams.map { ($0.path, $0.link.acked, $0.isPending) }
    }

    /// The stream of that name, if it certainly is there.
    private func stream(_ name: String, isPublished: Bool = false) -> WeekStreams.Stream? {
        let streams = isPublished ? week.published : week.streams
        guard let stream = streams.streams[name], streams.presence(stream, week.process.world.now) == .there else { return nil }
        return stream
    }

    private func cursor(_ stream: WeekStreams.Stream) -> Cursor { cursors[stream.number] ?? Cursor(acked: first(stream)) }

    /// The offset at which a stream begins that is new to it.
    private func first(_ stream: WeekStreams.Stream) -> UInt64 { stream.fork?.head ?? 0 }

    /// The server has shown that a stream is acked up to there.
    private func observe(_ stream: WeekStreams.Stream, acked: UInt64, _ where_: String) {
        var known = cursor(stream)
        if acked != known.acked, known.maybe[acked] == nil {
            week.violate(
                "a cursor is where it was acked",
                "\(id), \(stream.name) \(where_): \(acked), acked was \(known.acked), maybe \(known.maybe.keys.sorted())")
        }
        if acked != known.acked || !known.maybe.isEmpty {
            known.acked = acked
            known.maybe = known.maybe.filter { $0.key > acked }
            cursors[stream.number] = known
        }
    }

    /// Compares its cursors with what was acked. Nothing may be in flight in the writer.
    func check() {
        guard isThere, !isUnsure else { return }
        guard let described = try? week.process.subscriptions.describe(id) else {
            return week.violate("a subscription stays", "\(id) is gone")
        }
        for stream in described.streams {
            guard let model = self.stream(stream.path), let channel = try? week.process.channels.find(stream.path),
                !channel.isSoftDeleted
            else { continue }
            observe(model, acked: stream.link.acked, "in the log")
            if stream.tail != model.head {
                week.violate("a subscription knows the tail", "\(id), \(stream.path): \(stream.tail), not \(model.head)")
            }
        }
    }

    /// Once there was time for everything, everything is acked.
    func checkEnd() {
        guard isThere else { return }
        let links = links()
        for link in links where link.isPending {
            week.violate("everything new is delivered", "\(id), \(link.path): acked is \(link.acked) only")
        }
        checkEvents()
        let linked = Set(links.map(\.path))
        for (name, stream) in week.streams.streams where pattern.matches(name) && !linked.contains(name) {
            guard week.streams.presence(stream, week.process.world.now) == .there else { continue }
            week.violate("what matches is subscribed to", "\(id): '\(name)' is not linked")
        }
    }

    /// Each generation has one event in the wake stream, in their order.
    private func checkEvents() {
        guard lives == 1, let name = configuration.wakeStream, let stream = try? week.process.channels.find(name),
            let page = try? week.process.channels.page(stream, after: 0, view: .raw, bytesMax: .max),
            let events = try? JSON.parse(page.body).array
        else { return }
        let generations = events.compactMap { $0["generation"]?.integer }
        if generations != Set(generations).sorted() { week.violate("a generation has one event", "\(id): \(generations)") }
    }

    // MARK: Workers

    private func work() {
        let pauses: [Duration] =
            isPatient ? [.milliseconds(1_500)] : [.milliseconds(5), .milliseconds(500), .seconds(2), .seconds(40), week.length / 40]
        week.later(pauses.randomElement(using: &week.random)!) { [self] in
            guard !isOver else { return }
            defer { work() }
            if !isPatient, week.chance(60) { return delete() }
            if !isThere, !isUnsure { return put() }
            guard !isWebhook else { return }
            claim()
            // Two at once: one of them at most holds it.
            if week.chance(4) { claim() }
            if week.chance(3), let late = past.randomElement(using: &week.random) { acknowledge(late.proof, late.acks, isDone: true) }
        }
    }

    private func claim() {
        ask(.claim(worker: "worker-\(week.random.next() % 1_000)")) { [self] result in
            guard case .success(.claimed(let subscription, let wake, let token, let streams)) = result else { return }
            let now = week.process.world.now
            if let holder, !holder.isUncertain, now < holder.leaseEnd {
                week.violate(
                    "a wake has one holder", "\(id): generation \(subscription.generation) was given away during \(holder.proof.generation)"
                )
            }
            if subscription.generation < generation {
                week.violate("generations rise", "\(id): \(subscription.generation) after \(generation)")
            }
            if !claimed.insert(subscription.generation).inserted {
                week.violate("a generation has one holder", "\(id): generation \(subscription.generation) again")
            }
            generation = subscription.generation
            let proof = SubscriptionProof(token: token, wakeID: wake.id, generation: generation)
            holder = Holder(proof: proof, leaseEnd: now.advanced(by: .milliseconds(configuration.leaseMilliseconds)))
            for stream in streams { give(stream.path, acked: stream.link.acked, tail: stream.tail) }
            finish(proof, streams.filter(\.isPending).map { SubscriptionAck(stream: $0.path, offset: $0.tail) })
        }
    }

    /// A worker, or a receiver, was given a stream up to its tail.
    private func give(_ name: String, acked: UInt64, tail: UInt64) {
        guard let stream = week.published.streams[name] else { return }
        if self.stream(name, isPublished: true) != nil { observe(stream, acked: acked, "in a wake") }
        given[stream.number] = max(given[stream.number] ?? 0, tail)
    }

    private func finish(_ proof: SubscriptionProof, _ acks: [SubscriptionAck]) {
        past.append((proof, acks))
        if past.count > 8 { past.removeFirst() }
        let lease = Duration.milliseconds(configuration.leaseMilliseconds)
        let pause = isPatient ? Duration.milliseconds(1) : lease * Double(week.random.next() % 130) / 100.0
        let part = Array(acks.shuffled(using: &week.random).prefix(Int(week.random.next() % UInt64(acks.count + 1))))
        switch isPatient ? 0 : week.random.next() % 6 {
        case 0, 1: week.later(pause) { [self] in acknowledge(proof, acks, isDone: true) }
        case 2: week.later(pause) { [self] in acknowledge(proof, part, isDone: true) }
        case 3:
            week.later(pause) { [self] in acknowledge(proof, part, isDone: false) }
            week.later(pause * 1.7) { [self] in acknowledge(proof, acks, isDone: true) }
        case 4: week.later(pause) { [self] in release(proof) }
        default: break  // Never heard of again.
        }
    }

    private func isHeld(_ proof: SubscriptionProof) -> Bool? {
        guard let holder, holder.proof.generation == proof.generation, holder.proof.wakeID == proof.wakeID else { return false }
        return holder.isUncertain ? nil : week.process.world.now < holder.leaseEnd
    }

    private func acknowledge(_ proof: SubscriptionProof, _ acks: [SubscriptionAck], isDone: Bool) {
        for ack in acks { doubt(ack) }
        ask(.acknowledge(proof, acks, isDone: isDone, isCallback: isWebhook)) { [self] result in
            switch result {
            case .success:
                if isHeld(proof) == false { week.violate("who comes late is fenced", "\(id): generation \(proof.generation) has acked") }
                for ack in acks { acked(ack) }
                if isDone {
                    holder = nil
                } else {
                    holder?.leaseEnd = week.process.world.now.advanced(by: .milliseconds(configuration.leaseMilliseconds))
                    holder?.isUncertain = false
                }
            case .failure(let error):
                for ack in acks { undoubt(ack) }
                if error.code == "FENCED", isHeld(proof) == true, !isWebhook {
                    week.violate("who holds a wake may ack", "\(id), generation \(proof.generation): \(error)")
                }
            }
        }
    }

    private func doubt(_ ack: SubscriptionAck) {
        // Also of one that has come to its end: a crash may give it more time, and the ack counts then.
        if let stream = week.streams.streams[ack.stream] { doubt(stream, ack.offset) }
    }

    /// It may be acked up to there, from now on.
    private func doubt(_ stream: WeekStreams.Stream, _ offset: UInt64) {
        var known = cursor(stream)
        guard offset > known.acked else { return }
        known.maybe[offset, default: 0] += 1
        cursors[stream.number] = known
    }

    private func undoubt(_ ack: SubscriptionAck) {
        guard let stream = week.streams.streams[ack.stream], let count = cursors[stream.number]?.maybe[ack.offset] else { return }
        cursors[stream.number]?.maybe[ack.offset] = count > 1 ? count - 1 : nil
    }

    private func acked(_ ack: SubscriptionAck) {
        guard let stream = stream(ack.stream, isPublished: true) else { return }
        let before = cursor(stream)
        // When it was recreated since, no worker was given anything of it: the ack is for the one before.
        guard ack.offset > before.acked, let given = given[stream.number] else { return }
        if ack.offset > given {
            week.violate("what is acked was given to somebody", "\(id), \(ack.stream): \(ack.offset), given was up to \(given)")
        }
        cursors[stream.number] = Cursor(acked: ack.offset)
    }

    private func release(_ proof: SubscriptionProof) {
        ask(.release(proof)) { [self] result in
            switch result {
            case .success:
                if isHeld(proof) == false { week.violate("who comes late is fenced", "\(id): generation \(proof.generation) was released") }
                holder = nil
            case .failure(let error):
                if isHeld(proof) == true {
                    week.violate("who holds a wake may release it", "\(id), generation \(proof.generation): \(error)")
                }
            }
        }
    }

    // MARK: Webhooks

    /// The receiver was sent a wake, and answers with `isDone`, or calls back.
    func received(_ wake: JSON, isTaken: Bool, isDone: Bool) {
        // In flight when the subscription was deleted.
        guard isThere else { return }
        guard let generation = wake["generation"]?.integer.map({ UInt64($0) }), let wakeID = wake["wake_id"]?.string,
            let token = wake["callback_token"]?.string, let streams = wake["streams"]?.array
        else { return week.violate("a wake can be read", "\(id): \(wake.text)") }
        if generation <= self.generation { week.violate("generations rise", "\(id): \(generation) after \(self.generation)") }
        self.generation = generation
        let proof = SubscriptionProof(token: token, wakeID: wakeID, generation: generation)
        holder = Holder(proof: proof, leaseEnd: week.process.world.now, isUncertain: true)
        var acks: [SubscriptionAck] = []
        for stream in streams {
            guard let path = stream["path"]?.string, let model = week.streams.streams[path],
                let acked = stream["acked_offset"]?.string.flatMap({ Offset(token: $0)?.value }),
                let tail = stream["tail_offset"]?.string.flatMap({ Offset(token: $0)?.value }), tail <= model.head
            else { continue }
            // It may have been recreated since the wake was decided.
            if self.stream(path, isPublished: true)?.number == model.number, self.stream(path) != nil, !week.isYoung(model) {
                observe(model, acked: acked, "in a wake")
            }
            guard isTaken else { continue }
            given[model.number] = max(given[model.number] ?? 0, tail)
            if isDone { doubt(model, tail) }
            if tail > acked { acks.append(SubscriptionAck(stream: path, offset: tail)) }
        }
        if isTaken, !isDone { finish(proof, acks) }
    }

    // MARK: As a history tells it

    private static func text(_ request: SubscriptionRequest) -> String {
        switch request {
        case .put: "put"
        case .delete: "delete"
        case .claim(let worker): "claim \(worker)"
        case .acknowledge(let proof, let acks, let isDone, _):
            "ack \(proof.generation) \(acks.map { "\($0.stream):\($0.offset)" }) \(isDone ? "done" : "")"
        case .release(let proof): "release \(proof.generation)"
        default: "\(request)"
        }
    }

    private static func text(_ result: Result<SubscriptionAnswer, ChannelError>) -> String {
        switch result {
        case .success(.claimed(let subscription, _, _, let streams)):
            "claimed \(subscription.generation) \(streams.map { "\($0.path):\($0.link.acked)-\($0.tail)" })"
        case .success(.acknowledged(let nextWake)): "acked \(nextWake)"
        case .success: "ok"
        case .failure(let error): error.code
        }
    }
}
