internal import ParleyChannels
internal import ParleyLog
internal import ParleySystem

/// Something a client wants of a plain stream.
struct WeekOperation: Sendable {
    enum Action: Sendable {
        case create(contentType: String, Lifetime?, isClosed: Bool)
        case fork(source: String, offset: UInt64?, subOffset: UInt64?, Lifetime?)
        case append(ProducerClaim?, ifTail: UInt64?, sequence: String?, key: String?, closes: Bool)
        case delete
    }

    let name: String
    let action: Action
    /// The entries that it appends, or that the stream begins with.
    var entries: [Bytes] = []
    /// When it was sent: a TTL counts from here.
    var sent: Timestamp

    var source: String? { if case .fork(let source, _, _, _) = action { source } else { nil } }

    /// The text whose digest belongs to its Idempotency-Key.
    var body: String { entries.map(\.text).joined(separator: "\n") }

    var text: String { "\(name) \(action) \(entries.map(\.text))" }

    /// Hands it to the writer; the answer is as ``WeekStreams`` gives it, or the code of an error.
    func submit(to channels: Channels, _ answered: @escaping @Sendable (String) -> Void) {
        switch action {
        case .create(let contentType, let lifetime, let isClosed):
            var row = ChannelRow(name: name, contentType: contentType, isAgent: false, created: sent)
            (row.lifetime, row.closure) = (lifetime, isClosed ? ChannelRow.Closure() : nil)
            create(row, nil, channels, answered)
        case .fork(let source, let offset, let subOffset, let lifetime):
            var row = ChannelRow(name: name, contentType: ContentType.json, isAgent: false, created: sent)
            row.lifetime = lifetime
            create(row, ForkRequest(source: source, offset: offset, subOffset: subOffset), channels, answered)
        case .append(let producer, let ifTail, let sequence, let key, let closes):
            var append = Append(to: name, entries.map { NewEntry(data: $0) })
            (append.producer, append.ifTail, append.sequence, append.closes) = (producer, ifTail, sequence, closes)
            append.idempotency = key.map { IdempotencyKey(key: $0, body: Bytes(body.utf8)) }
            channels.submit(append) { result in
                switch result {
                case .success(let appended):
                    answered(WeekStreams.appended(appended.offsets, appended.tail, appended.isClosed, isReplay: appended.isReplay))
                case .failure(let error): answered(error.code)
                }
            }
        case .delete:
            channels.submit(DeleteChannel(name)) { result in
                switch result {
                case .success: answered("deleted")
                case .failure(let error): answered(error.code)
                }
            }
        }
    }

    private func create(
        _ row: ChannelRow, _ fork: ForkRequest?, _ channels: Channels, _ answered: @escaping @Sendable (String) -> Void
    ) {
        var create = CreateChannel(row, entries.map { NewEntry(data: $0) })
        create.fork = fork
        create.hasContentType = fork == nil
        channels.submit(create) { result in
            switch result {
            case .success(let created): answered(WeekStreams.created(created.isNew, created.tail, created.isClosed))
            case .failure(let error): answered(error.code)
            }
        }
    }
}

// MARK: - What clients think of

extension WeekOperation {
    /// The name of a stream: there are few, so that clients meet.
    static func name(_ random: inout SplitMix64) -> String { "w/\("abcdefgh".randomElement(using: &random)!)" }
}

extension SimulatedWeek {
    func newOperation() -> WeekOperation {
        // Now and then a name that was never used before.
        let name = chance(16) ? "w/once-\(operations)" : WeekOperation.name(&random)
        let now = process.world.now
        let action: WeekOperation.Action
        switch random.next() % 16 {
        case 0..<3: action = .create(contentType: isJSON(name) ? ContentType.json : "text/plain", lifetime(now), isClosed: chance(16))
        case 3..<6: action = fork(now)
        case 6: action = .delete
        default:
            // A client that appends makes sure that the stream is there.
            if streams.streams[name] == nil, !chance(4) {
                action = .create(contentType: isJSON(name) ? ContentType.json : "text/plain", lifetime(now), isClosed: false)
            } else {
                action = append(to: name)
            }
        }
        let isFork = if case .fork = action { true } else { false }
        let count: UInt64 =
            switch action {
            case .delete: 0
            case .append(_, _, _, _, let closes) where closes && chance(2): 0
            case .append: 1 + random.next() % 3
            default: isFork ? 0 : random.next() % 3
            }
        let entries = (0..<count).map { entry in
            isJSON(name) ? Bytes("{\"n\":\(operations),\"of\":\(entry)}".utf8) : Bytes("<\(operations).\(entry)>".utf8)
        }
        return WeekOperation(name: name, action: action, entries: entries, sent: now)
    }

    private func isJSON(_ name: String) -> Bool { !"cfg".contains(name.last!) }

    private func lifetime(_ now: Timestamp) -> Lifetime? {
        switch random.next() % 4 {
        case 0: return .ttl(seconds: [2, 20, 300, 3_600, 86_400].randomElement(using: &random)!)
        case 1:
            let instant = now.advanced(by: .seconds([5, 600, 10_000, 200_000].randomElement(using: &random)!))
            return Lifetime(until: "\(instant)")
        default: return nil
        }
    }

    private func fork(_ now: Timestamp) -> WeekOperation.Action {
        let lifetime = chance(3) ? lifetime(now) : nil
        if chance(8), let channel = try? process.channels.find(SimulatedWeek.agents[0]) {
            return .fork(source: channel.name, offset: random.next() % (channel.tail.head + 1), subOffset: nil, lifetime)
        }
        let source = WeekOperation.name(&random)
        guard let stream = streams.streams[source], !chance(4) else { return .fork(source: source, offset: nil, subOffset: nil, lifetime) }
        let offset = random.next() % (stream.head + (chance(8) ? 3 : 1))
        // Entries behind an offset that were not answered yet may be counted or not: a sub-offset stays within those that were.
        let rest: UInt64 =
            stream.isJSON
            ? stream.head - min(offset, stream.head)
            : stream.entries.dropFirst(Int(offset)).reduce(0) { $0 + UInt64($1?.count ?? 0) }
        let subOffset = chance(2) ? (chance(8) ? 1 << 40 : random.next() % (rest + 1)) : nil
        return .fork(source: source, offset: offset, subOffset: subOffset, lifetime)
    }

    private func append(to name: String) -> WeekOperation.Action {
        let stream = streams.streams[name]
        var producer: ProducerClaim?
        if chance(3) {
            let id = "producer-\(random.next() % 2)"
            let known = stream?.producers[id] ?? ProducerState(epoch: 0, sequence: .max)
            // The next, mostly; or again, out of order, of a new life or an old one.
            let (epoch, sequence): (UInt64, UInt64) =
                switch random.next() % 10 {
                case 0: (known.epoch, known.sequence &- (known.sequence == .max ? .max : random.next() % (known.sequence + 1)))
                case 1: (known.epoch, known.sequence &+ 2)
                case 2: (known.epoch + 1, 0)
                case 3: (known.epoch + 1, 1)
                case 4 where known.epoch > 0: (known.epoch - 1, 0)
                default: (known.epoch, known.sequence &+ 1)
                }
            producer = ProducerClaim(id: id, epoch: epoch, sequence: sequence)
        }
        let ifTail = chance(6) ? (stream?.head ?? 0) + (chance(4) ? 1 : 0) : nil
        let sequence = chance(6) ? String(1_000 + operations - Int(random.next() % 40)) : nil
        // Some are used again, with the same body or another.
        let key = producer == nil && chance(4) ? "key-\(random.next() % 16)" : nil
        return .append(producer, ifTail: ifTail, sequence: sequence, key: key, closes: chance(24))
    }
}
