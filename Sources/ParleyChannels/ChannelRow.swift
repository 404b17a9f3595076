package import ParleySystem

/// What is stored of a channel beside its log: the row in family `channels`.
package struct ChannelRow: Sendable, Equatable {
    package var name: String
    package var contentType: String
    package var isAgent = false
    package var created: Timestamp
    package var isClosed = false
    /// Rises with each activation of the agent; whoever holds an older one appends nothing.
    package var epoch: UInt64 = 0
    /// What the agent is doing, as the index lists it.
    package var status = AgentStatus.idle
    /// The turn that has begun and not ended: the offset of its input.
    package var turn: UInt64?
    /// The last `Stream-Seq` that was accepted.
    package var lastSequence: String?
    /// The producer tuple that closed the channel: its retry is a duplicate, not an error.
    package var closedBy: String?
    package var lifetime: Lifetime?
    /// When its time was last begun anew; for a sliding lifetime. A little late: see `Channels.touched`.
    package var accessed: Timestamp?
    package var fork: Fork?
    /// Removed while others had been forked from it: it answers nothing any more, but its entries stay.
    package var isSoftDeleted = false
    /// How often text has been taken out of it.
    package var trims: Int64 = 0
    /// Somebody may be waiting to be told of its next entry.
    package var isFollowed = false

    package init(name: String, contentType: String, isAgent: Bool, created: Timestamp) {
        self.name = name
        self.contentType = contentType
        self.isAgent = isAgent
        self.created = created
    }

    package var bytes: Bytes { json.bytes }

    var json: JSON {
        .compact(
            ("name", .string(name)), ("content_type", .string(contentType)), ("agent", isAgent ? true : nil),
            ("created", .integer(created.milliseconds)), ("closed", isClosed ? true : nil),
            ("epoch", epoch == 0 ? nil : .integer(Int64(epoch))), ("status", isAgent ? .string(status.name) : nil),
            ("turn", turn.map { .integer(Int64($0)) }), ("last_sequence", lastSequence.map(JSON.string)),
            ("closed_by", closedBy.map(JSON.string)), ("ttl", lifetime?.seconds.map { .integer($0) }),
            ("expires_at", lifetime?.instant.map { .string($0.text) }),
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
        self.init(name: name, contentType: contentType, isAgent: json["agent"]?.bool ?? false, created: Timestamp(milliseconds: created))
        isClosed = json["closed"]?.bool ?? false
        epoch = json["epoch"]?.integer.flatMap { UInt64(exactly: $0) } ?? 0
        status = AgentStatus.allCases.first { $0.name == json["status"]?.string } ?? .idle
        turn = json["turn"]?.integer.flatMap { UInt64(exactly: $0) }
        lastSequence = json["last_sequence"]?.string
        closedBy = json["closed_by"]?.string
        lifetime = json["ttl"]?.integer.map { .ttl(seconds: $0) } ?? json["expires_at"]?.string.flatMap { Lifetime(until: $0) }
        accessed = json["accessed"]?.integer.map { Timestamp(milliseconds: $0) }
        fork = json["fork"].flatMap { Fork($0) }
        isSoftDeleted = json["soft_deleted"]?.bool ?? false
        trims = json["trims"]?.integer ?? 0
        isFollowed = json["followed"]?.bool ?? false
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

/// Media types as far as a channel cares.
package enum ContentType {
    package static let json = "application/json"

    /// Type and subtype in lower case, without parameters.
    package static func base(_ type: String) -> String {
        var type = type
        return type.withUTF8 { String(decoding: essence($0), as: UTF8.self) }.lowercased()
    }

    package static func isJSON(_ type: String) -> Bool { matches(type, json) }
    package static func isText(_ type: String) -> Bool { base(type).hasPrefix("text/") }

    /// Whether it is text in UTF-8, as far as it says.
    package static func isUTF8Text(_ type: String) -> Bool {
        guard isText(type) else { return false }
        return charset(of: type).map { ["utf-8", "utf8", "us-ascii", "ascii"].contains($0) } ?? true
    }

    /// The value of the parameter `charset`, in lower case and without quotes.
    private static func charset(of type: String) -> String? {
        for parameter in type.utf8.split(separator: UInt8(ascii: ";")).dropFirst() {
            let parts = parameter.split(separator: UInt8(ascii: "="), maxSplits: 1).map { String(Substring($0)).trimmingSpaces }
            guard parts.count == 2, parts[0].lowercased() == "charset" else { continue }
            return parts[1].filter { $0 != "\"" && $0 != "'" }.lowercased()
        }
        return nil
    }

    /// Whether type and subtype are the same. Without a copy: every append asks.
    package static func matches(_ a: String, _ b: String) -> Bool {
        if a == b { return true }
        var (a, b) = (a, b)
        return a.withUTF8 { a in
            b.withUTF8 { b in
                let (a, b) = (essence(a), essence(b))
                return a.count == b.count && zip(a, b).allSatisfy { lowercased($0) == lowercased($1) }
            }
        }
    }

    /// Type and subtype as they came.
    private static func essence(_ type: UnsafeBufferPointer<UInt8>) -> Slice<UnsafeBufferPointer<UInt8>> {
        func isText(_ byte: UInt8) -> Bool { byte != UInt8(ascii: " ") && byte != UInt8(ascii: "\t") }
        let text = type.prefix { $0 != UInt8(ascii: ";") }
        guard let first = text.firstIndex(where: isText), let last = text.lastIndex(where: isText) else { return text.prefix(0) }
        return text[first...last]
    }

    private static func lowercased(_ byte: UInt8) -> UInt8 { byte &- 0x41 < 26 ? byte | 0x20 : byte }
}

extension String {
    package var trimmingSpaces: String {
        // By bytes: by characters it took a twentieth of the time of an append.
        func isText(_ byte: UInt8) -> Bool { byte != UInt8(ascii: " ") && byte != UInt8(ascii: "\t") }
        guard let first = utf8.firstIndex(where: isText), let last = utf8.lastIndex(where: isText) else { return "" }
        return String(self[first...last])
    }
}
