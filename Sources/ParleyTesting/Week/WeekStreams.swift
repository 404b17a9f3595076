internal import ParleyChannels
internal import ParleySystem

/// The plain streams of a simulated week as every reader may see them, in ordinary dictionaries: the model that the product is compared with.
///
/// Operations are applied in the order in which the writer decided them, and each must have been answered as it is here.
struct WeekStreams: Sendable {
    /// One life of a name, from its creation to its end.
    struct Stream: Sendable {
        let number: Int
        let name: String
        /// The partition of its rows: its root's.
        let partition: UInt16
        let contentType: String
        let lifetime: Lifetime?
        let fork: Origin?
        /// In wire form; in a fork of an agent's channel, `nil` is text that was trimmed.
        var entries: [Bytes?]
        var isClosed = false
        var closedBy: String?
        var sequence: String?
        var producers: [String: ProducerState] = [:]
        var keys: [String: (body: String, offsets: ClosedRange<UInt64>)] = [:]
        var access: Access
        var made: Timestamp { access.made }

        var head: UInt64 { UInt64(entries.count) }
        var isJSON: Bool { ContentType.isJSON(contentType) }
    }

    struct Origin: Sendable {
        let source: String
        let sourceNumber: Int?
        let offset: UInt64
        let subOffset: UInt64
        /// The entries up to here are shared, or a piece of one that is.
        let head: UInt64
    }

    /// When a sliding TTL was last renewed, as far as that is known.
    struct Access: Sendable {
        /// The last one, by the clock of its time.
        var last: Timestamp
        /// The latest that the log can have kept, and the last that no crash can undo.
        var latest: Timestamp
        var durable: Timestamp
        /// Reads whose trace may not be in the log yet: the number of commits by then.
        var commits: Int?
        /// Another process has taken over since: it knows the time of the last access only roughly.
        var isRough = false
        /// The clock was here before it was set back: the stream may have been removed then.
        var clock: Timestamp?

        let made: Timestamp

        init(_ instant: Timestamp) { (last, latest, durable, made) = (instant, instant, instant, instant) }

        mutating func renew(_ now: Timestamp, commits: Int?) {
            (last, latest, self.commits, isRough, clock) = (now, max(latest, now), commits, false, nil)
            if commits == nil { durable = now }
        }
    }

    enum Presence { case there, gone, uncertain }

    /// The streams that answer, by name.
    private(set) var streams: [String: Stream] = [:]
    /// Names that are not free: their stream was removed while there were forks of it.
    private var kept: [String: Int] = [:]
    /// The forks, by the number of their source, for as long as their rows may be there; and whether they certainly are.
    private var forks: [Int: [Int: Bool]] = [:]
    private var origins: [Int: Int] = [:]
    private var names: [Int: String] = [:]
    private var everForked: Set<String> = []
    /// Forks of which a crash has let through the name alone, at some time.
    var namesLeft: Set<String> = []
    private var nextNumber = 1

    func presence(_ stream: Stream, _ now: Timestamp) -> Presence {
        guard let lifetime = stream.lifetime else { return .there }
        let (earliest, latest) = WeekStreams.ends(lifetime, stream.access)
        if now >= latest { return .gone }
        return max(now, stream.access.clock ?? now) >= earliest ? .uncertain : .there
    }

    private static func ends(_ lifetime: Lifetime, _ access: Access) -> (earliest: Timestamp, latest: Timestamp) {
        switch lifetime {
        case .until(let instant, _): return (instant, instant)
        case .ttl(let seconds):
            let length = Duration.seconds(seconds)
            let earliest = access.last.advanced(by: length)
            guard access.isRough else { return (earliest, earliest) }
            return (earliest, access.latest.advanced(by: length).advanced(by: .seconds(max(1, seconds / 16))))
        }
    }
}

// MARK: - What clients do

/// The entries of an agent's channel, in wire form.
typealias WeekAgentEntries = (_ name: String) -> [Bytes?]?

extension WeekStreams {
    /// All that may have become of an operation now, with the answer to each: several where the product may have removed something already, or not.
    func outcomes(_ operation: WeekOperation, _ now: Timestamp, agent: WeekAgentEntries) -> [(answer: String, streams: WeekStreams)] {
        var worlds = settled(operation.name, now)
        if let source = operation.source {
            // Where the name is taken, the source is not checked: a crash may give more time to one that has expired.
            worlds = worlds.flatMap { $0.isFree(operation.name) ? $0.settled(source, now) : [$0] }
        }
        return worlds.map { streams in
            var streams = streams
            let answer = streams.apply(operation, now, agent)
            return (answer, streams)
        }
    }

    private func isFree(_ name: String) -> Bool { streams[name] == nil && kept[name] == nil }

    /// Without the doubt whether the stream of that name, or what keeps the name, is still there.
    private func settled(_ name: String, _ now: Timestamp) -> [WeekStreams] {
        var gone = self
        if let stream = streams[name] {
            switch presence(stream, now) {
            case .there: return [self]
            case .gone:
                gone.remove(stream, isCertain: false)
                return gone.settled(name, now)
            case .uncertain:
                gone.remove(stream, isCertain: false)
                return [self] + gone.settled(name, now)
            }
        }
        guard let number = kept[name], !holds(number, now) else { return [self] }
        gone.collect(number)
        return [self, gone]
    }

    private mutating func apply(_ operation: WeekOperation, _ now: Timestamp, _ agent: WeekAgentEntries) -> String {
        switch operation.action {
        case .create(let contentType, let lifetime, let isClosed):
            create(operation, contentType, lifetime, isClosed)
        case .fork(let source, let offset, let subOffset, let lifetime):
            fork(operation, source, offset, subOffset, lifetime, agent)
        case .append(let producer, let ifTail, let sequence, let key, let closes):
            append(operation, now, producer, ifTail, sequence, key, closes)
        case .delete: delete(operation.name)
        }
    }

    static func created(_ isNew: Bool, _ tail: UInt64, _ isClosed: Bool) -> String { "\(isNew ? "made" : "there") \(tail) \(isClosed)" }

    static func appended(_ offsets: [UInt64], _ tail: UInt64, _ isClosed: Bool, isReplay: Bool = false) -> String {
        "\(isReplay ? "again" : "appended") \(offsets) \(tail) \(isClosed)"
    }

    private mutating func create(_ operation: WeekOperation, _ contentType: String, _ lifetime: Lifetime?, _ isClosed: Bool) -> String {
        if kept[operation.name] != nil { return "channel_exists" }
        if let there = streams[operation.name] {
            guard there.fork == nil, there.lifetime == lifetime, there.contentType == contentType, there.isClosed == isClosed else {
                return "channel_exists"
            }
            return WeekStreams.created(false, there.head, there.isClosed)
        }
        var stream = Stream(
            number: nextNumber, name: operation.name, partition: Placement.partition(of: operation.name), contentType: contentType,
            lifetime: lifetime, fork: nil, entries: operation.entries, access: Access(operation.sent))
        stream.isClosed = isClosed
        add(stream)
        return WeekStreams.created(true, stream.head, isClosed)
    }

    private mutating func fork(
        _ operation: WeekOperation, _ source: String, _ offset: UInt64?, _ subOffset: UInt64?, _ lifetime: Lifetime?,
        _ agent: WeekAgentEntries
    ) -> String {
        if kept[operation.name] != nil { return "channel_exists" }
        if let there = streams[operation.name] {
            guard let origin = there.fork, origin.source == source, offset ?? origin.offset == origin.offset,
                subOffset ?? 0 == origin.subOffset, !there.isClosed
            else { return "channel_exists" }
            let wanted = lifetime.map { .some($0) } ?? inherited(source, origin.sourceNumber, agent)
            guard wanted.map({ $0 == there.lifetime }) ?? true else { return "channel_exists" }
            return WeekStreams.created(false, there.head, there.isClosed)
        }
        if kept[source] != nil { return "fork_source_gone" }
        let from: Stream
        if let stream = streams[source] {
            from = stream
        } else if let entries = agent(source) {
            from = Stream(
                number: 0, name: source, partition: Placement.partition(of: source), contentType: ContentType.json, lifetime: nil,
                fork: nil,
                entries: entries, access: Access(operation.sent))
        } else {
            return "fork_source_not_found"
        }
        let (start, count) = (offset ?? from.head, subOffset ?? 0)
        guard start <= from.head, var entries = from.entries(start: start, behind: count) else { return "invalid_fork_offset" }
        let head = UInt64(entries.count)
        entries += operation.entries
        // A piece of an entry is the fork's own, and new to its subscribers.
        let shared = from.isJSON || count == 0 ? head : from.wholeEntries(start: start, behind: count)
        let stream = Stream(
            number: nextNumber, name: operation.name, partition: from.partition, contentType: from.contentType,
            lifetime: lifetime ?? from.lifetime,
            fork: Origin(
                source: source, sourceNumber: from.number == 0 ? nil : from.number, offset: start, subOffset: count, head: shared),
            entries: entries, access: Access(operation.sent))
        add(stream)
        everForked.insert(source)
        if from.number > 0 {
            forks[from.number, default: [:]][stream.number] = true
            origins[stream.number] = from.number
        }
        return WeekStreams.created(true, stream.head, false)
    }

    /// The lifetime of a fork that is given none; `nil` where the source is no longer there.
    private func inherited(_ source: String, _ number: Int?, _ agent: WeekAgentEntries) -> Lifetime?? {
        if let stream = streams[source] { return stream.number == number ? .some(stream.lifetime) : nil }
        return agent(source) == nil ? nil : .some(nil)
    }

    private mutating func append(
        _ operation: WeekOperation, _ now: Timestamp, _ producer: ProducerClaim?, _ ifTail: UInt64?, _ sequence: String?, _ key: String?,
        _ closes: Bool
    ) -> String {
        if kept[operation.name] != nil { return "channel_gone" }
        guard var stream = streams[operation.name] else { return "channel_not_found" }
        if let key, let known = stream.keys[key] {
            guard known.body == operation.body else { return "idempotency_key_reused" }
            let last = known.offsets.upperBound
            return WeekStreams.appended(Array(known.offsets), last, stream.isClosed && stream.head == last, isReplay: true)
        }
        if let producer {
            switch WeekStreams.judge(producer, stream.producers[producer.id]) {
            case .refused(let code): return stream.isClosed ? "channel_closed" : code
            case .known: return WeekStreams.appended([], stream.head, stream.isClosed, isReplay: true)
            case .new: break
            }
        }
        let tuple = producer.map { "\($0.epoch):\($0.sequence):\($0.id)" }
        if stream.isClosed {
            let isAgain = closes && (operation.entries.isEmpty && producer == nil || producer != nil && stream.closedBy == tuple)
            return isAgain ? WeekStreams.appended([], stream.head, true, isReplay: true) : "channel_closed"
        }
        if let ifTail, ifTail != stream.head { return "tail_moved" }
        if let sequence, let last = stream.sequence, !last.utf8.lexicographicallyPrecedes(sequence.utf8) { return "sequence_conflict" }
        let before = stream.head
        stream.entries += operation.entries
        if let producer { stream.producers[producer.id] = ProducerState(epoch: producer.epoch, sequence: producer.sequence) }
        if let key, before < stream.head { stream.keys[key] = (operation.body, before + 1...stream.head) }
        if let sequence { stream.sequence = sequence }
        if closes { (stream.isClosed, stream.closedBy) = (true, tuple) }
        stream.access.renew(now, commits: nil)
        streams[operation.name] = stream
        let offsets = before < stream.head ? Array(before + 1...stream.head) : []
        return WeekStreams.appended(offsets, stream.head, stream.isClosed)
    }

    private enum Verdict { case new, known, refused(String) }

    private static func judge(_ claim: ProducerClaim, _ known: ProducerState?) -> Verdict {
        guard let known else { return claim.sequence == 0 ? .new : .refused("producer_gap") }
        if claim.epoch < known.epoch { return .refused("producer_fenced") }
        if claim.epoch > known.epoch { return claim.sequence == 0 ? .new : .refused("producer_epoch_sequence") }
        if claim.sequence <= known.sequence { return .known }
        return claim.sequence == known.sequence + 1 ? .new : .refused("producer_gap")
    }

    private mutating func delete(_ name: String) -> String {
        if kept[name] != nil { return "channel_gone" }
        guard let stream = streams[name] else { return "channel_not_found" }
        remove(stream, isCertain: true)
        return "deleted"
    }

    // MARK: Time and others

    /// A read has begun.
    mutating func touch(_ name: String, _ now: Timestamp, commits: Int) {
        guard case .ttl? = streams[name]?.lifetime else { return }
        streams[name]!.access.renew(now, commits: commits)
    }

    /// The clock is about to be set back.
    mutating func clockStepsBack(from now: Timestamp) {
        for name in streams.keys { streams[name]!.access.clock = max(streams[name]!.access.clock ?? now, now) }
    }

    /// The process has died in the commit of that number. The next one knows only the accesses that are in the log.
    mutating func crashed(inCommit number: Int) {
        for name in streams.keys {
            var access = streams[name]!.access
            if let commits = access.commits, commits >= number {
                access.last = min(access.last, access.durable)
            } else {
                access.durable = access.last
            }
            access.isRough = true
            access.commits = nil
            streams[name]!.access = access
        }
        // A stream whose removal had begun may be there by halves.
        for source in forks.keys { for fork in forks[source]!.keys where names[fork] == nil { forks[source]![fork] = false } }
    }

    /// The removal was in flight when the process died, and only some of its rows are gone: streams that it kept alive may still be there.
    mutating func removeByHalves(_ name: String) {
        if let stream = streams[name] { remove(stream, isCertain: false) }
    }

    /// Whether a stream of these was forked from that channel.
    func isForkedFrom(_ source: String) -> Bool { everForked.contains(source) }

    /// Whether there may be forks of the stream of that name, so that its removal keeps it.
    func isForked(_ name: String) -> Bool { streams[name].map { forks[$0.number]?.isEmpty == false } ?? false }

    // MARK: Streams that keep others

    private mutating func add(_ stream: Stream) {
        streams[stream.name] = stream
        names[stream.number] = stream.name
        nextNumber += 1
    }

    /// Whether there certainly are forks of it.
    private func holds(_ number: Int, _ now: Timestamp) -> Bool {
        forks[number]?.contains { fork, isCertain in
            if let stream = names[fork].flatMap({ streams[$0] }) { return presence(stream, now) == .there }
            return isCertain && holds(fork, now)
        } ?? false
    }

    /// - Parameter isCertain: false when its rows may still be there: it has only expired, and the server may not have looked.
    private mutating func remove(_ stream: Stream, isCertain: Bool) {
        streams[stream.name] = nil
        names[stream.number] = nil
        if forks[stream.number]?.isEmpty == false {
            kept[stream.name] = stream.number
        } else if isCertain {
            collect(stream.number)
        } else if let source = origins[stream.number] {
            forks[source]?[stream.number] = false
        }
    }

    /// Nothing refers to it any more.
    private mutating func collect(_ number: Int) {
        for (name, keeper) in kept where keeper == number { kept[name] = nil }
        forks[number] = nil
        guard let source = origins.removeValue(forKey: number) else { return }
        forks[source]?[number] = nil
        if forks[source]?.isEmpty == true {
            forks[source] = nil
            // It may have been kept for this one alone.
            if names[source] == nil { collect(source) }
        }
    }
}

extension WeekStreams.Stream {
    /// The entries of a fork that leaves `behind` messages, or bytes, after `start`; `nil`: there are not so many.
    fileprivate func entries(start: UInt64, behind: UInt64) -> [Bytes?]? {
        if isJSON { return start + behind <= head ? Array(entries[..<Int(start + behind)]) : nil }
        var (found, rest) = (Array(entries[..<Int(start)]), Int(behind))
        for entry in entries[Int(start)...] where rest > 0 {
            guard let entry else { continue }
            found.append(Bytes(entry.prefix(rest)))
            rest -= min(rest, entry.count)
        }
        return rest == 0 ? found : nil
    }

    /// How many of those are not cut.
    fileprivate func wholeEntries(start: UInt64, behind: UInt64) -> UInt64 {
        var (whole, rest) = (start, Int(behind))
        for entry in entries[Int(start)...] {
            guard let entry, entry.count <= rest, rest > 0 else { break }
            rest -= entry.count
            whole += 1
        }
        return whole
    }
}
