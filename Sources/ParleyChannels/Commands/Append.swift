internal import ParleyLog
package import ParleySystem

/// Entries on their way into a channel: what must hold, and what is added.
package struct Append: Sendable {
    package typealias Answer = @Sendable (Result<Appended, ChannelError>) -> Void

    package let channelName: String
    /// The channel that the name was resolved to. Another channel of that name refuses the append, and only the partition of the rows is asked.
    package var id: ChannelID?
    package var entries: [NewEntry]
    /// Makes the channel when there is none of that name.
    package var creates: ChannelRow?
    /// Puts the entries into the agent's inbox.
    package var isInput = false
    /// What the client said the content is; must match the channel's.
    package var contentType: String?
    package var sequence: String?
    /// The tail must be at this offset: no append may have come since the client read it.
    package var ifTail: UInt64?
    package var producer: ProducerClaim?
    package var idempotency: IdempotencyKey?
    package var closes = false
    package var owner = OwnerPart()

    package init(to channelName: String, _ entries: [NewEntry]) { (self.channelName, self.entries) = (channelName, entries) }
}

extension Channel {
    /// Whether this request of a producer has closed the channel.
    fileprivate func isClosed(by producer: ProducerClaim?) -> Bool {
        guard let producer, let closedBy = staged.row.closure?.producer else { return false }
        return closedBy.hasSameBytes(as: producer.tuple)
    }
}

/// The parts of an append that only the owner of an agent uses.
package struct OwnerPart: Sendable {
    package var epoch: EpochClaim = .none
    /// Inbox entries that this append decides.
    package var decides: [UInt64] = []
    /// Refuses the append while an entry of these kinds waits to be decided: what ends a step or a turn must not overtake a request to
    /// stop it.
    package var yieldsTo: EntryKinds = []
    /// The owner has seen the waiting entries up to this offset, and has taken them into account.
    package var yieldsAfter: UInt64 = 0
    /// Rows of the same batch, in the order in which they are written.
    package var rows: [AppendRow] = []
    /// No client or program waits for it: it is written with what comes next, at the latest ``CommitTurn/pause`` later.
    package var isLazy = false

    package init(
        epoch: EpochClaim = .none, decides: [UInt64] = [], yieldsTo: EntryKinds = [], yieldsAfter: UInt64 = 0, rows: [AppendRow] = [],
        isLazy: Bool = false
    ) {
        (self.epoch, self.decides) = (epoch, decides)
        (self.yieldsTo, self.yieldsAfter, self.rows, self.isLazy) = (yieldsTo, yieldsAfter, rows, isLazy)
    }
}

/// The answer to an append.
package struct Appended: Sendable {
    /// The offset of each entry; merged text shares one.
    package var offsets: [UInt64] = []
    /// The channel's tail after it.
    package var tail: UInt64
    /// When the last entry was stamped; only for entries that are.
    package var at = Timestamp(milliseconds: 0)
    package var isClosed = false
    /// The append is a repeat: the same idempotency key or producer sequence.
    package var isReplay = false
    /// What the channel now holds for the producer.
    package var producer: ProducerState?

    package init(
        offsets: [UInt64] = [], tail: UInt64, at: Timestamp = Timestamp(milliseconds: 0), isClosed: Bool = false, isReplay: Bool = false,
        producer: ProducerState? = nil
    ) {
        (self.offsets, self.tail, self.at) = (offsets, tail, at)
        (self.isClosed, self.isReplay, self.producer) = (isClosed, isReplay, producer)
    }
}

/// The three producer headers of an append.
package struct ProducerClaim: Sendable {
    package var id: String
    package var epoch: UInt64
    package var sequence: UInt64

    package init(id: String, epoch: UInt64, sequence: UInt64) {
        self.id = id
        self.epoch = epoch
        self.sequence = sequence
    }

    var tuple: String { "\(epoch):\(sequence):\(id)" }
}

/// A client's key for "this request, once", with the digest of what it goes with.
package struct IdempotencyKey: Sendable {
    package var keyDigest: Bytes
    private let bodyDigest: Bytes
    /// The digest as it was before it said of which parts the request consists.
    private let formerDigest: Bytes

    /// - Parameters:
    ///   - contentType: What the body is; `nil` where there is none.
    ///   - closes: Whether it was the channel's last.
    package init(key: String, body: Bytes, contentType: String? = nil, closes: Bool = false) {
        keyDigest = SHA256.digest(Bytes(key.utf8))
        formerDigest = SHA256.digest(closes ? body + [0] : body)
        // What comes before the body has its length, so that no two requests are written in the same way.
        let type = contentType.map { Bytes(ContentType.base($0).utf8) } ?? []
        var request: Bytes = [closes ? 1 : 0]
        request.reserveCapacity(type.count + body.count + 5)
        request.append(bigEndian: UInt32(type.count))
        request += type
        request += body
        bodyDigest = SHA256.digest(request)
    }

    private static let version: UInt8 = 1

    /// What is kept of it:
    ///
    ///     digest (32 bytes) | u64 first offset | u64 last offset | u8 version
    ///
    /// Rows without a version have the former digest.
    func row(_ offsets: ClosedRange<UInt64>) -> Bytes {
        var row = bodyDigest
        row.append(bigEndian: offsets.lowerBound)
        row.append(bigEndian: offsets.upperBound)
        row.append(IdempotencyKey.version)
        return row
    }

    /// What the request with this key was answered with the first time, and whether it was this request; `nil` for a row that is none.
    func read(_ row: Bytes) -> (offsets: ClosedRange<UInt64>, isSame: Bool)? {
        guard row.count == 48 || row.count == 49 && row[48] == IdempotencyKey.version else { return nil }
        let (first, last): (UInt64, UInt64) = (row.readBigEndian(at: 32), row.readBigEndian(at: 40))
        guard first <= last else { return nil }
        return (first...last, row[..<32].elementsEqual(row.count == 48 ? formerDigest : bodyDigest))
    }
}

/// What the owner of an agent must be to append.
package enum EpochClaim: Sendable {
    /// Not an owner's append.
    case none
    /// The owner of that epoch; any other is fenced.
    case holds(UInt64)
    /// Becomes the owner of the epoch after this one, unless another owner has meanwhile.
    case takes(after: UInt64)

    /// There are as many owners as agents in memory. A refused owner could neither continue nor report why.
    var isOwner: Bool { if case .none = self { false } else { true } }
}

// MARK: - The writer's side

extension Append {
    /// All checks come first, so that a refusal has changed nothing.
    func decide(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        guard let channel = try found(channels, in: &stage) else { return try decideMissing(channels, in: &stage) }
        guard !channel.isGone else { throw .refused(.gone(channelName)) }
        if let replay = try replayed(channel, &stage) { return Decision(reply: .appended(replay)) }
        let producerState = try checkProducer(channel, &stage)
        if let producerState, producerState.isDuplicate {
            let (tail, isClosed) = (channel.staged.head, channel.staged.row.isClosed)
            return Decision(reply: .appended(Appended(tail: tail, isClosed: isClosed, isReplay: true, producer: producerState.state)))
        }
        if let idempotent = try checkOpen(channel) { return Decision(reply: .appended(idempotent)) }
        try check(contentType: channel.contentType)
        try checkTail(channel.staged.head)
        try checkSequence(channel)
        try checkEpoch(channel)
        let input = inboxRows
        try checkUndecided(channel, input, &stage)
        let follows = try ChannelRefusal.wrap { () throws(LogError) in try followRows(channel, channels, &stage) }
        return write(to: channel, input, producerState?.state, follows, channels, in: &stage)
    }

    private func found(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Channel? {
        guard let id, owner.epoch.isOwner else { return try channels.resolve(channelName, expecting: id, in: &stage) }
        if let channel = try ChannelRefusal.wrap({ () throws(LogError) in try channels.resolve(channelName, at: id, in: &stage) }) {
            return channel
        }
        try checkTombstone(channels, in: stage)
        throw .refused(ChannelError("fenced", "'\(channelName)' was deleted and made anew: its former agent appends nothing."))
    }

    private func checkTombstone(_ channels: Channels, in stage: Stage) throws(ChannelRefusal) {
        guard try ChannelRefusal.wrap({ () throws(LogError) in try channels.hasTombstone(channelName, in: stage) }) else { return }
        throw .refused(.deleted(channelName))
    }

    /// As ``decide(_:in:)``, for a channel that does not exist.
    private func decideMissing(_ channels: Channels, in stage: inout Stage) throws(ChannelRefusal) -> Decision {
        try checkTombstone(channels, in: stage)
        guard let creates else { throw .refused(.notFound(channelName)) }
        try checkTail(0)
        try check(contentType: creates.contentType)
        let input = inboxRows
        if let refusal = UndecidedEntries().refusal(of: input) { throw .refused(refusal) }
        try channels.limit?.check()
        let producerState = try producer.map { producer throws(ChannelRefusal) in try Append.judge(producer, known: nil).state }
        let channel = try ChannelRefusal.wrap { () throws(LogError) in try channels.create(creates, in: &stage) }
        return write(to: channel, input, producerState, [:], channels, in: &stage)
    }

    private var inboxRows: [InboxRow] { isInput ? entries.map { InboxRow($0) } : [] }

    private func replayed(_ channel: Channel, _ stage: inout Stage) throws(ChannelRefusal) -> Appended? {
        guard let idempotency else { return nil }
        let key = channel.id.key(idempotency.keyDigest)
        let row = try ChannelRefusal.wrap { () throws(LogError) in try stage.get(.idempotency, key) }
        guard let (offsets, isSame) = row.flatMap({ idempotency.read($0) }) else { return nil }
        guard isSame else {
            throw .refused(
                ChannelError(
                    "idempotency_key_reused",
                    "the Idempotency-Key was used before for another request: body, Content-Type or Stream-Closed differ. Use a new key for a new request."
                ))
        }
        // The same answer as the first time: a reader that resumes there misses nothing of what came after it.
        let isClosed = channel.staged.row.isClosed && channel.staged.head == offsets.upperBound
        return Appended(offsets: Array(offsets), tail: offsets.upperBound, isClosed: isClosed, isReplay: true)
    }

    private func checkProducer(_ channel: Channel, _ stage: inout Stage) throws(ChannelRefusal) -> (
        state: ProducerState, isDuplicate: Bool
    )? {
        guard let producer else { return nil }
        let known = try known(producer, of: channel, &stage)
        do throws(ChannelRefusal) {
            return try Append.judge(producer, known: known)
        } catch {
            // A closed channel accepts nothing, and a producer that is told to send what is missing first would retry for ever.
            _ = try checkOpen(channel)
            throw error
        }
    }

    private func known(_ producer: ProducerClaim, of channel: Channel, _ stage: inout Stage) throws(ChannelRefusal) -> ProducerState? {
        var known = channel.staged.producers[producer.id]
        if known == nil {
            let key = channel.id.key(producer.id.utf8)
            known = try ChannelRefusal.wrap({ () throws(LogError) in try stage.get(.producers, key) }).flatMap { ProducerState($0) }
            // Bounded: a channel with very many producers looks them up in the log again.
            if channel.staged.producers.count > 1_000 { channel.staged.producers.removeAll() }
            channel.staged.producers[producer.id] = known
        }
        return known
    }

    private static func judge(
        _ producer: ProducerClaim, known: ProducerState?
    ) throws(ChannelRefusal) -> (state: ProducerState, isDuplicate: Bool) {
        let next = ProducerState(epoch: producer.epoch, sequence: producer.sequence)
        guard let known, producer.epoch <= known.epoch else {
            guard producer.sequence == 0 else {
                if known == nil { throw .refused(gap(expected: 0, producer)) }
                throw .refused(
                    ChannelError("producer_epoch_sequence", "Producer-Seq is \(producer.sequence); a new epoch begins with 0."))
            }
            return (next, false)
        }
        guard producer.epoch == known.epoch else {
            throw .refused(
                ChannelError(
                    "producer_fenced",
                    "Producer-Epoch is \(producer.epoch), but \(known.epoch) has been seen: a newer producer has taken over.",
                    [("producer_epoch", .integer(Int64(known.epoch)))]))
        }
        if producer.sequence <= known.sequence { return (known, true) }
        guard producer.sequence == known.sequence + 1 else { throw .refused(gap(expected: known.sequence + 1, producer)) }
        return (next, false)
    }

    private static func gap(expected: UInt64, _ producer: ProducerClaim) -> ChannelError {
        ChannelError(
            "producer_gap", "Producer-Seq is \(producer.sequence); expected \(expected). Send what is missing first.",
            [("expected_seq", .integer(Int64(expected))), ("received_seq", .integer(Int64(producer.sequence)))])
    }

    /// - Returns: the answer when the channel is closed and this only closes it again.
    private func checkOpen(_ channel: Channel) throws(ChannelRefusal) -> Appended? {
        guard channel.staged.row.isClosed else { return nil }
        if closes && entries.isEmpty && producer == nil || closes && channel.isClosed(by: producer) {
            return Appended(tail: channel.staged.head, isClosed: true, isReplay: true)
        }
        throw .refused(.closed(channelName, tail: Offset(channel.staged.head)))
    }

    private func check(contentType expected: String) throws(ChannelRefusal) {
        guard let contentType, !ContentType.matches(contentType, expected) else { return }
        throw .refused(.mismatch(contentType, expected))
    }

    private func checkTail(_ head: UInt64) throws(ChannelRefusal) {
        guard let ifTail, ifTail != head else { return }
        throw .refused(.tailMoved(from: ifTail, to: head))
    }

    private func checkSequence(_ channel: Channel) throws(ChannelRefusal) {
        if let sequence, let last = channel.staged.row.lastSequence, !last.utf8.lexicographicallyPrecedes(sequence.utf8) {
            throw .refused(
                ChannelError("sequence_conflict", "Stream-Seq is '\(sequence)', not above the last one, '\(last)' (compared bytewise)."))
        }
    }

    private func checkEpoch(_ channel: Channel) throws(ChannelRefusal) {
        let held = channel.staged.row.agent?.epoch ?? 0
        switch owner.epoch {
        case .none: return
        case .holds(let epoch) where epoch == held: return
        case .takes(let epoch) where epoch == held: return
        case .holds(let epoch), .takes(let epoch):
            throw .refused(
                ChannelError(
                    "fenced", "the agent's epoch is \(held), not \(epoch): another activation has taken over.",
                    [("epoch", .integer(Int64(held)))]))
        }
    }

    private func checkUndecided(_ channel: Channel, _ input: [InboxRow], _ stage: inout Stage) throws(ChannelRefusal) {
        // Known before the first input of a commit is staged, so that the log and what is staged are not counted together.
        if channel.staged.undecided == nil, isInput || !owner.yieldsTo.isEmpty {
            channel.staged.undecided = try ChannelRefusal.wrap { () throws(LogError) in try Append.undecided(channel.id, stage.log) }
        }
        if isInput, let refusal = channel.staged.undecided?.refusal(of: input) { throw .refused(refusal) }
        guard !owner.yieldsTo.isEmpty, let first = channel.staged.undecided?.first(against: owner) else { return }
        throw .refused(
            ChannelError(
                ChannelError.undecided, "an entry at \(Offset(first)) waits to be decided first.",
                [("offset", .string(Offset(first).token))]))
    }

    private static func undecided(_ id: ChannelID, _ log: any CommitLog) throws(LogError) -> UndecidedEntries {
        var found = UndecidedEntries()
        try log.scan(.inbox, from: id.key, to: id.keyEnd, reversed: false) { key, value in
            if let row = InboxRow(value) { found.add(key.readBigEndian(at: 10), row) }
            return true
        }
        return found
    }

    /// Reads what has to be known before followers can be told of the append, or of what the agent follows.
    /// - Returns: what there is of the follows that end, by the number of their row.
    private func followRows(_ channel: Channel, _ channels: Channels, _ stage: inout Stage) throws(LogError) -> [Int: FollowRow] {
        guard channel.staged.row.isFollowed || owner.rows.contains(where: \.isOfFollow) else { return [:] }
        try channels.messages.ready(channel.id.partition, in: stage)
        try channel.loadFollowers(stage)
        var found: [Int: FollowRow] = [:]
        for (number, row) in owner.rows.enumerated() { found[number] = try row.before(in: stage) }
        return found
    }

    private func write(
        to channel: Channel, _ input: [InboxRow], _ producerState: ProducerState?, _ follows: [Int: FollowRow], _ channels: Channels,
        in stage: inout Stage
    ) -> Decision {
        let now = channels.world.now
        channels.touch(channel)
        channels.written(channel, at: now, in: &stage)
        let offsets = channel.stage(entries, now: now, in: &stage)
        for (row, offset) in zip(input, offsets) {
            stage.put(.inbox, channel.id.key(offset), row.bytes)
            channel.staged.undecided?.add(offset, row)
        }
        for offset in owner.decides {
            stage.delete(.inbox, channel.id.key(offset))
            channel.staged.undecided?.remove(offset)
        }
        if let producer, let producerState {
            channel.staged.producers[producer.id] = producerState
            stage.put(.producers, channel.id.key(producer.id.utf8), producerState.bytes)
        }
        if let idempotency, let first = offsets.first {
            stage.put(.idempotency, channel.id.key(idempotency.keyDigest), idempotency.row(first...offsets.last!))
        }
        if let sequence { change(channel) { $0.lastSequence = sequence } }
        if case .takes(let epoch) = owner.epoch { change(channel) { $0.agent?.epoch = epoch + 1 } }
        if closes { change(channel) { $0.closure = ChannelRow.Closure(by: producer?.tuple) } }
        let outboxRows = channels.outbox?.stage(entries, offsets, of: channel, in: &stage) ?? 0
        if !entries.isEmpty || closes { channel.tellFollowers(channels.messages, in: &stage) }
        for (number, row) in owner.rows.enumerated() { row.write(follows[number], to: channel, offsets, channels.messages, in: &stage) }
        let appended = Appended(
            offsets: offsets, tail: channel.staged.head, at: channel.staged.lastAt, isClosed: channel.staged.row.isClosed,
            producer: producerState)
        var effects: [Effect] = []
        if isInput, let first = offsets.first { effects.append(.inputCommitted(channel, first...offsets.last!)) }
        if outboxRows > 0 { effects.append(.outboxCommitted(channel.id, rows: outboxRows)) }
        return Decision(reply: .appended(appended), effects: effects)
    }

    private func change(_ channel: Channel, _ body: (inout ChannelRow) -> Void) {
        body(&channel.staged.row)
        channel.staged.isRowChanged = true
    }
}
