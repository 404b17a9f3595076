package import ParleySystem

/// What is stored of a channel beside its log: the row in family `channels`.
package struct ChannelRow: Sendable, Equatable {
    package var name: String
    package var contentType: String
    package var created: Timestamp
    /// What an agent's channel has beside a plain one; `nil` for a plain one.
    package var agent: AgentPart?
    /// `nil` while the channel accepts entries.
    package var closure: Closure?
    /// For whom the entries are there, and who waits for the next one.
    package var audience = Audience.readers
    package var lifetime: Lifetime?
    /// When a sliding lifetime was last renewed. May be a little late: see ``Channels/touched(_:)``.
    package var accessed: Timestamp?
    /// The last `Stream-Seq` that was accepted.
    package var lastSequence: String?
    package var fork: Fork?
    /// How often text has been trimmed from the channel.
    package var trims: Int64 = 0

    package init(name: String, contentType: String, isAgent: Bool, created: Timestamp) {
        (self.name, self.contentType, self.created) = (name, contentType, created)
        agent = isAgent ? AgentPart() : nil
    }

    package var isAgent: Bool { agent != nil }
    package var isClosed: Bool { closure != nil }
    package var isSoftDeleted: Bool { audience == .forksAlone }
    var isFollowed: Bool { audience == .readersAndSteps }
}

extension ChannelRow {
    /// What an agent's channel has beside a plain one.
    package struct AgentPart: Sendable, Equatable {
        /// Rises with each activation of the agent. The holder of an older one appends nothing.
        package var epoch: UInt64 = 0
        /// What the agent is doing, as the index lists it.
        package var status = AgentStatus.idle
        /// The turn that has begun and not ended: the offset of its input.
        package var turn: UInt64?
    }

    /// The end of a channel that accepts no more entries.
    package struct Closure: Sendable, Equatable {
        /// The producer tuple of the append that closed the channel: its retry is a duplicate, not an error.
        package var producer: String?

        package init(by producer: String? = nil) { self.producer = producer }
    }

    /// For whom a channel's entries are there.
    package enum Audience: Sendable {
        case readers
        /// A step of an agent may also be waiting to be told of the next entry.
        case readersAndSteps
        /// The channel was removed while it had forks (a soft deletion): it answers no request any more, but its entries stay.
        case forksAlone
    }
}

// MARK: - The stored form

extension ChannelRow {
    package var bytes: Bytes { json.bytes }

    var json: JSON {
        .compact(
            ("name", .string(name)), ("content_type", .string(contentType)), ("agent", isAgent ? true : nil),
            ("created", .integer(created.milliseconds)), ("closed", isClosed ? true : nil),
            ("epoch", agent.flatMap { $0.epoch == 0 ? nil : .integer(Int64($0.epoch)) }),
            ("status", agent.map { .string($0.status.name) }), ("turn", agent?.turn.map { .integer(Int64($0)) }),
            ("last_sequence", lastSequence.map(JSON.string)), ("closed_by", closure?.producer.map(JSON.string)),
            ("ttl", lifetime?.seconds.map { .integer($0) }), ("expires_at", lifetime?.instant.map { .string($0.text) }),
            ("accessed", accessed.map { .integer($0.milliseconds) }), ("fork", fork?.json), ("soft_deleted", isSoftDeleted ? true : nil),
            ("trims", trims == 0 ? nil : .integer(trims)), ("followed", isFollowed ? true : nil)
        )
    }

    package init?(_ bytes: Bytes) {
        guard let json = try? JSON.parse(bytes) else { return nil }
        self.init(json)
    }

    init?(_ json: JSON) {
        guard let name = json["name"]?.string, let contentType = json["content_type"]?.string,
            let created = json["created"]?.integer
        else { return nil }
        self.init(name: name, contentType: contentType, isAgent: false, created: Timestamp(milliseconds: created))
        agent = json["agent"]?.bool == true ? AgentPart(json) : nil
        closure = json["closed"]?.bool == true ? Closure(by: json["closed_by"]?.string) : nil
        audience = Audience(json)
        lifetime = json["ttl"]?.integer.map { .ttl(seconds: $0) } ?? json["expires_at"]?.string.flatMap { Lifetime(until: $0) }
        accessed = json["accessed"]?.integer.map { Timestamp(milliseconds: $0) }
        lastSequence = json["last_sequence"]?.string
        fork = json["fork"].flatMap { Fork($0) }
        trims = json["trims"]?.integer ?? 0
    }
}

extension ChannelRow.AgentPart {
    /// From the members of the row.
    fileprivate init(_ json: JSON) {
        epoch = json["epoch"]?.integer.flatMap { UInt64(exactly: $0) } ?? 0
        status = AgentStatus.allCases.first { $0.name == json["status"]?.string } ?? .idle
        turn = json["turn"]?.integer.flatMap { UInt64(exactly: $0) }
    }
}

extension ChannelRow.Audience {
    /// From the members of the row.
    fileprivate init(_ json: JSON) {
        // A removal tells all followers, so no stored row has both members.
        if json["soft_deleted"]?.bool == true {
            self = .forksAlone
        } else {
            self = json["followed"]?.bool == true ? .readersAndSteps : .readers
        }
    }
}

/// The row in family `names`: where the channel of that name is, or that it was removed.
package struct NameRow: Sendable {
    package var id: ChannelID
    /// An agent that was deleted: only an explicit PUT makes a new one.
    package var isTombstone = false
    /// The channel's rows may be in another partition than this one, and so be missing after a crash.
    package var isFork = false

    package init(id: ChannelID, isTombstone: Bool = false, isFork: Bool = false) {
        self.id = id
        self.isTombstone = isTombstone
        self.isFork = isFork
    }

    package var bytes: Bytes { id.key + [isTombstone ? 1 : isFork ? 2 : 0] }

    package init?(_ bytes: Bytes) {
        guard bytes.count == 11 else { return nil }
        self.init(
            id: ChannelID(partition: bytes.readBigEndian(at: 0), number: bytes.readBigEndian(at: 2)), isTombstone: bytes[10] == 1,
            isFork: bytes[10] == 2)
    }
}

/// What is stored of an idempotent producer: the row in family `producers`.
package struct ProducerState: Sendable, Equatable {
    package var epoch: UInt64
    /// The highest sequence number that was accepted.
    package var sequence: UInt64

    package init(epoch: UInt64, sequence: UInt64) {
        self.epoch = epoch
        self.sequence = sequence
    }

    package var bytes: Bytes {
        var bytes = Bytes()
        bytes.append(bigEndian: epoch)
        bytes.append(bigEndian: sequence)
        return bytes
    }

    package init?(_ bytes: Bytes) {
        guard bytes.count == 16 else { return nil }
        self.init(epoch: bytes.readBigEndian(at: 0), sequence: bytes.readBigEndian(at: 8))
    }
}
