internal import ParleyLog
internal import ParleySystem

/// A fork that is to be made, on its way from the home of its name to the partition of its source's rows.
struct ForkOrder: Sendable {
    /// Which client's request it comes from.
    struct Request: Hashable, Sendable {
        let name: String
        /// That of the message that begins with it, among those of the name's home.
        let number: UInt64

        var home: UInt16 { Placement.partition(of: name) }
    }

    let request: Request
    let creation: CreateChannel
    let fork: ForkRequest
    /// What the home of the source's name has found: the source.
    var source: ChannelID?

    var destination: UInt16 { source?.partition ?? Placement.partition(of: fork.source) }
}

/// The outcome of such a fork, on its way back.
struct ForkOutcome: Sendable {
    /// The rows that were made.
    struct Made: Sendable {
        let id: ChannelID
        let tail: UInt64
        let isClosed: Bool
    }

    let request: ForkOrder.Request
    let result: Result<Made, ChannelError>
}

// MARK: - The writer's side, where the source is

extension ForkOrder {
    /// Makes the rows, or says why there are none, or passes the order on to where the source is. ``Messages/ready(_:in:)`` has been called.
    func take(_ channels: Channels, in stage: inout Stage) throws(LogError) {
        let result: Result<ForkOutcome.Made, ChannelError>
        do throws(ChannelRefusal) {
            let source = try located(channels, in: stage)
            guard source.partition == destination else { return passOn(to: source, channels, in: &stage) }
            result = .success(try make(source, channels, in: &stage))
        } catch {
            switch error {
            case .refused(let reason): result = .failure(reason)
            // A source that cannot be forked must not hold up the other messages.
            case .log(let error) where error.code == .damaged: result = .failure(ChannelError(error))
            case .log(let error): throw error
            }
        }
        channels.messages.post(.forked(ForkOutcome(request: request, result: result)), from: destination, in: &stage)
    }

    private func located(_ channels: Channels, in stage: Stage) throws(ChannelRefusal) -> ChannelID {
        if let source { return source }
        let row = try ChannelRefusal.wrap { () throws(LogError) in try channels.nameRow(fork.source, in: stage) }
        guard let row else { throw .refused(.noSource(fork.source)) }
        guard !row.isTombstone else { throw .refused(.sourceGone(fork.source)) }
        return row.id
    }

    private func passOn(to source: ChannelID, _ channels: Channels, in stage: inout Stage) {
        var order = self
        order.source = source
        channels.messages.post(.fork(order), from: destination, in: &stage)
    }

    private func make(_ id: ChannelID, _ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> ForkOutcome.Made {
        let source = try ChannelRefusal.wrap { () throws(LogError) in
            let source = try channels.resolve(fork.source, at: id, in: &stage)
            if source == nil { try channels.missing(ChannelReference(name: fork.source, id: id), in: &stage) }
            return source
        }
        guard let source else { throw .refused(.noSource(fork.source)) }
        var (row, piece) = try creation.forked(from: source, fork, channels)
        row.fork!.announced = channels.messages.next(from: id.partition)
        let channel = try ChannelRefusal.wrap { () throws(LogError) in try channels.makeRows(row, in: id.partition, &stage) }
        _ = channel.stage((piece.map { [NewEntry(data: $0)] } ?? []) + creation.entries, now: channels.world.now, in: &stage)
        // No name leads to it yet: a later look finds it in the log.
        channel.flush(into: &stage)
        return ForkOutcome.Made(id: channel.id, tail: channel.staged.head, isClosed: row.isClosed)
    }
}

// MARK: - The writer's side, at the home of the fork's name

extension ForkOutcome {
    /// Has the name lead to the rows and the client answered, or the rows removed. ``Messages/ready(_:in:)`` has been called.
    func take(_ channels: Channels, in stage: inout Stage) throws(LogError) -> [Effect] {
        switch result {
        case .failure(let error): return [.forkDecided(request, .failure(error))]
        case .success(let made):
            switch try channels.locate(request.name, in: &stage) {
            case .nowhere: return try name(made, channels, in: &stage)
            case .here(let channel):
                return try refuse(made, channels, &stage) { creation, stage throws(ChannelRefusal) in
                    .created(try creation.found(channel, channels, in: &stage))
                }
            case .at(let id):
                return try refuse(made, channels, &stage) { _, _ throws(ChannelRefusal) in throw .refused(.elsewhere(request.name, id)) }
            }
        }
    }

    private func name(_ made: Made, _ channels: Channels, in stage: inout Stage) throws(LogError) -> [Effect] {
        let subscribers = try channels.subscriptions?.toTell(of: request.name, from: request.home, in: stage) ?? []
        channels.giveName(request.name, NameRow(id: made.id, isFork: true), telling: subscribers, from: request.home, in: &stage)
        return [.forkDecided(request, .success(.created((true, made.tail, made.isClosed))))]
    }

    /// Removes the rows, because the name has been taken meanwhile. The client gets the answer to a request that finds that channel.
    private func refuse(
        _ made: Made, _ channels: Channels, _ stage: inout Stage,
        _ answer: (CreateChannel, inout Stage) throws(ChannelRefusal) -> Reply
    ) throws(LogError) -> [Effect] {
        channels.messages.post(.unmake(ChannelReference(name: request.name, id: made.id)), from: request.home, in: &stage)
        guard let creation = channels.messages.answers.creation(request) else { return [] }
        return [.forkDecided(request, try ChannelRefusal.outcome { () throws(ChannelRefusal) in try answer(creation, &stage) })]
    }
}

// MARK: - The stored form

extension ForkOrder {
    var json: JSON {
        .compact(
            ("type", "fork"), ("number", .string("\(request.number)")), ("source", .string(fork.source)),
            ("offset", fork.offset.map { .string("\($0)") }), ("sub_offset", fork.subOffset.map { .string("\($0)") }),
            ("channel", source.map { .string($0.text) }), ("row", creation.row.json), ("typed", .bool(creation.hasContentType)),
            ("entries", .array(creation.entries.map { .string($0.base64) })))
    }

    init?(_ json: JSON) {
        guard let row = json["row"].flatMap({ ChannelRow($0) }), let number = ForkOrder.number(json["number"]),
            let source = json["source"]?.string, let entries = json["entries"]?.array
        else { return nil }
        request = Request(name: row.name, number: number)
        fork = ForkRequest(source: source, offset: ForkOrder.number(json["offset"]), subOffset: ForkOrder.number(json["sub_offset"]))
        var creation = CreateChannel(row, entries.compactMap { $0.string.flatMap { Base64.decode($0) }.map { NewEntry(data: $0) } })
        guard creation.entries.count == entries.count else { return nil }
        (creation.fork, creation.hasContentType) = (fork, json["typed"]?.bool ?? false)
        self.creation = creation
        self.source = json["channel"]?.string.flatMap { ChannelID(text: $0) }
    }

    fileprivate static func number(_ value: JSON?) -> UInt64? { value?.string.flatMap { UInt64($0) } }
}

extension NewEntry {
    /// The bytes of a plain channel's entry.
    fileprivate var base64: String {
        guard case .data(let bytes) = content else { preconditionFailure("a plain channel is created with \(kind)") }
        var text = Bytes()
        Base64.encode(bytes, to: &text)
        return text.text
    }
}

extension ForkOutcome {
    var json: JSON {
        switch result {
        case .success(let made):
            .compact(
                ("type", "forked"), ("name", .string(request.name)), ("number", .string("\(request.number)")),
                ("channel", .string(made.id.text)), ("tail", .string(Offset(made.tail).token)), ("closed", .bool(made.isClosed)))
        case .failure(let error):
            .compact(
                ("type", "forked"), ("name", .string(request.name)), ("number", .string("\(request.number)")),
                ("error", .string(error.code)), ("message", .string(error.message)),
                ("details", .object(error.details.map { JSON.Member($0.name, $0.value) })))
        }
    }

    init?(_ json: JSON) {
        guard let name = json["name"]?.string, let number = ForkOrder.number(json["number"]) else { return nil }
        request = ForkOrder.Request(name: name, number: number)
        if let code = json["error"]?.string {
            let details = json["details"]?.members?.map { (name: $0.name, value: $0.value) } ?? []
            result = .failure(ChannelError(code, json["message"]?.string ?? "", details))
        } else {
            guard let id = json["channel"]?.string.flatMap({ ChannelID(text: $0) }),
                let tail = json["tail"]?.string.flatMap({ Offset(token: $0) })
            else { return nil }
            result = .success(Made(id: id, tail: tail.value, isClosed: json["closed"]?.bool ?? false))
        }
    }
}
