internal import ParleyChannels
internal import ParleyHTTP
internal import ParleySystem

/// An event for the readers that follow a channel at this moment, never stored: presence, typing, progress.
struct EphemeralEvent {
    static let types = ["typing", "presence", "progress"]
    /// The limit of one as JSON.
    static let bytesMax = 4 << 10

    /// The members that only the server may set: an event's sender, its time and the channel it came through.
    static let stamped: Set<String> = ["by", "at", "channel", "offset"]

    private let members: [JSON.Member]

    /// - Throws: 400 `invalid_event` or 413 `event_too_large`.
    init(_ value: JSON?) throws(Problem) {
        guard let members = value?.members else {
            throw .bad("invalid_event", "event is \(value?.kindName ?? "missing"); expected an object with type.")
        }
        guard case .string(let type) = value?["type"], EphemeralEvent.types.contains(type) else {
            let given = value?["type"].map { $0.string.map { "'\($0.prefix(64))'" } ?? $0.kindName } ?? "missing"
            throw .bad("invalid_event", "event.type is \(given); expected one of \(EphemeralEvent.types.joined(separator: ", ")).")
        }
        let count = value!.bytes.count
        guard count <= EphemeralEvent.bytesMax else {
            throw Problem(
                status: 413, code: "event_too_large", detail: "event has \(count) bytes; expected at most \(EphemeralEvent.bytesMax).")
        }
        self.members = members.filter { !EphemeralEvent.stamped.contains($0.name) }
    }

    /// The event as it is delivered: its sender and time are set by the server.
    func json(by principal: String, at instant: Timestamp) -> Bytes {
        JSON.object(members + [.init("by", .string(principal)), .init("at", .string(instant.utf8.text))]).bytes
    }
}

/// An event on its way to the followers of a channel: framed once for all of them.
struct EphemeralDelivery: Sendable {
    let channel: String
    /// `"channel":...,"ephemeral":{...}}`: a socket's message behind its reference.
    let socketForm: Bytes
    /// A server-sent event without an id, so that no client resumes from it.
    let eventForm: Bytes

    init(_ event: Bytes, channel: String) {
        self.channel = channel
        var message = Bytes("\"channel\":".utf8)
        JSON.write(string: channel, to: &message)
        message.append(",\"ephemeral\":")
        message.append(contentsOf: event)
        message.append(UInt8(ascii: "}"))
        socketForm = message
        eventForm = Bytes("event: ephemeral\ndata:".utf8) + event + Bytes("\n\n".utf8)
    }
}

/// A limit on how many at once, and how many a second.
struct RateLimit {
    private let burst: Double
    private let perSecond: Double
    private var tokens: Double
    private var last: Duration

    init(burst: Int, perSecond: Int, now: Duration) {
        (self.burst, self.perSecond) = (Double(burst), Double(perSecond))
        tokens = self.burst
        last = now
    }

    /// - Returns: whether one more is within the limit; it is then counted.
    mutating func take(_ now: Duration) -> Bool {
        let passed = now - last
        last = now
        tokens = min(burst, tokens + perSecond * (Double(passed.components.seconds) + Double(passed.components.attoseconds) / 1e18))
        guard tokens >= 1 else { return false }
        tokens -= 1
        return true
    }
}
