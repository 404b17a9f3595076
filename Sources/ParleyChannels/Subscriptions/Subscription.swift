package import ParleySystem

/// What a client subscribed to, and how far its current wake is: one half of what is stored of a subscription; the other half is a
/// ``SubscriptionLink`` for each of its streams.
///
/// Decides only: time and randomness are passed in. A wake has one holder at most, and a new one has a higher generation, so a client that comes
/// late with an old one is told from the current holder (PROTOCOL.md, section 7.3).
package struct Subscription: Sendable, Equatable {
    package let id: String
    package let configuration: SubscriptionConfiguration
    package let created: Timestamp
    /// Distinguishes the subscription from an earlier one of the same id: tokens and wake events of one do not count for the other.
    let incarnation: String
    /// The URL of the stream root, as the client that made it had it.
    package var root: String
    /// The number of its last wake.
    package internal(set) var generation: UInt64 = 0
    /// The wake that is in flight or held.
    package internal(set) var wake: SubscriptionWake?
    /// Deliveries that failed in a row, and when the next is due.
    private(set) var failures: UInt32 = 0
    package private(set) var nextAttempt: Timestamp?

    init(id: String, _ configuration: SubscriptionConfiguration, root: String, created: Timestamp, random: UInt64) {
        (self.id, self.configuration, self.root, self.created) = (id, configuration, root, created)
        incarnation = Offset(random).token
    }

    /// Whether retries of its webhook wait.
    package var hasFailed: Bool { nextAttempt != nil }

    private func leaseEnd(from now: Timestamp) -> Timestamp { now.advanced(by: .milliseconds(configuration.leaseMilliseconds)) }

    // MARK: Waking

    /// Ends an expired lease. For a webhook that has not even answered, that counts as a failure, so that it is not called for ever, once a
    /// lease.
    mutating func expire(now: Timestamp, random: UInt64) {
        guard let wake, let end = wake.leaseEnd, end <= now else { return }
        if configuration.isWebhook, !wake.isDelivered, !wake.hasFailed { failed(wake.id, now: now, random: random) }
        self.wake = nil
    }

    /// Whether a new wake may begin: none is in flight or held, or its delivery failed and is due again.
    func canWake(now: Timestamp) -> Bool {
        guard wake == nil || wake!.hasFailed else { return false }
        return nextAttempt.map { $0 <= now } ?? true
    }

    /// Begins a wake because of what is new in `stream`. By webhook its lease begins now, else when a worker claims it.
    mutating func begin(stream: String, now: Timestamp, random: (UInt64, UInt64)) {
        let leaseEnd = leaseEnd(from: now)
        generation += 1
        // Whether this one fails again is known in its time.
        nextAttempt = nil
        wake = SubscriptionWake(id: "w_" + Offset(random.0).token + Offset(random.1).token, stream: stream)
        if configuration.isWebhook { wake!.leaseEnd = leaseEnd }
    }

    /// Gives the wake in flight to a worker.
    mutating func claim(_ worker: String, now: Timestamp) {
        let leaseEnd = leaseEnd(from: now)
        wake?.holder = worker
        wake?.leaseEnd = leaseEnd
    }

    /// Extends the lease of the holder.
    mutating func extend(now: Timestamp) {
        let leaseEnd = leaseEnd(from: now)
        wake?.leaseEnd = leaseEnd
        wake?.isDelivered = true
        wake?.hasFailed = false
        (failures, nextAttempt) = (0, nil)
    }

    /// Ends the wake: the holder has finished, or has released it.
    mutating func end() {
        wake = nil
        (failures, nextAttempt) = (0, nil)
    }

    /// When the next lease ends or the next attempt is due.
    var due: Timestamp? {
        [wake?.leaseEnd, nextAttempt].compactMap { $0 }.min()
    }

    // MARK: Delivering

    /// Notes that the receiver has taken the wake.
    mutating func delivered() {
        wake?.isDelivered = true
        wake?.hasFailed = false
        (failures, nextAttempt) = (0, nil)
    }

    /// The wake of that id did not reach the receiver, as far as we know: a new one follows, 1 to 60 s later.
    mutating func failed(_ wakeID: String, now: Timestamp, random: UInt64) {
        guard wake?.id == wakeID else { return }
        wake?.hasFailed = true
        failures = min(failures + 1, 1_000)
        nextAttempt = now.advanced(by: Subscription.pause(failures: failures, random: random))
    }

    /// 1 s after the first failure and twice as long after each further one, up to 60 s; a fifth more or less by chance.
    static func pause(failures: UInt32, random: UInt64) -> Duration {
        let seconds = min(60.0, Double(UInt64(1) << UInt64(min(max(failures, 1) - 1, 6))))
        let chance = Double(random >> 11) / Double(UInt64(1) << 53)  // 0 to 1
        return .seconds(seconds) * (1 + 0.2 * (2 * chance - 1))
    }
}

/// One waking of a subscription.
package struct SubscriptionWake: Sendable, Equatable {
    package let id: String
    /// The stream it began with.
    package let stream: String
    /// The worker that has claimed it; a webhook's wake has none.
    package var holder: String?
    package var leaseEnd: Timestamp?
    /// The receiver has answered, or called back.
    var isDelivered = false
    /// Its delivery failed.
    var hasFailed = false
}

/// What a client asks of a subscription.
package struct SubscriptionConfiguration: Sendable, Equatable {
    package enum Delivery: Sendable, Equatable {
        /// A POST to the URL.
        case webhook(url: String)
        /// An entry of this stream, upon which workers claim.
        case pullWake(stream: String)
    }

    package var delivery: Delivery
    package var pattern: SubscriptionPattern?
    /// Streams by name, sorted, each once.
    package var streams: [String]
    package var leaseMilliseconds: Int64
    package var description: String?

    package static let leaseMillisecondsDefault: Int64 = 30_000
    package static let leaseMillisecondsRange: ClosedRange<Int64> = 1_000...600_000

    package init(
        _ delivery: Delivery, pattern: SubscriptionPattern? = nil, streams: [String] = [],
        leaseMilliseconds: Int64 = leaseMillisecondsDefault, description: String? = nil
    ) {
        (self.delivery, self.pattern, self.leaseMilliseconds, self.description) = (delivery, pattern, leaseMilliseconds, description)
        self.streams = Set(streams.map { TextKey($0) }).texts
    }

    package var isWebhook: Bool { if case .webhook = delivery { true } else { false } }

    package var webhookURL: String? { if case .webhook(let url) = delivery { url } else { nil } }

    package var wakeStream: String? { if case .pullWake(let stream) = delivery { stream } else { nil } }

    /// Whether a stream belongs to it by its name. Its own wake stream does not: each wake would be new work.
    func matches(_ name: String) -> Bool { pattern?.matches(name) == true && wakeStream?.hasSameBytes(as: name) != true }

    /// The same for configurations that are the same.
    package var digest: String { SHA256.hex(json.canonical) }

    var json: JSON {
        .compact(
            ("type", isWebhook ? "webhook" : "pull-wake"), ("pattern", pattern.map { .string($0.text) }),
            ("streams", .array(streams.map(JSON.string))), ("url", webhookURL.map(JSON.string)),
            ("wake_stream", wakeStream.map(JSON.string)), ("lease_ttl_ms", .integer(leaseMilliseconds)),
            ("description", description.map(JSON.string)))
    }

    init?(_ json: JSON) {
        let pattern = json["pattern"]?.string.flatMap { SubscriptionPattern($0) }
        guard let lease = json["lease_ttl_ms"]?.integer, let streams = json["streams"]?.array else { return nil }
        let delivery: Delivery
        if let url = json["url"]?.string {
            delivery = .webhook(url: url)
        } else if let stream = json["wake_stream"]?.string {
            delivery = .pullWake(stream: stream)
        } else {
            return nil
        }
        self.init(
            delivery, pattern: pattern, streams: streams.compactMap(\.string), leaseMilliseconds: lease,
            description: json["description"]?.string)
    }
}

// MARK: - The stored form

extension Subscription {
    var bytes: Bytes {
        JSON.compact(
            ("id", .string(id)), ("configuration", configuration.json), ("created", .integer(created.milliseconds)),
            ("incarnation", .string(incarnation)), ("root", .string(root)), ("generation", .integer(Int64(generation))),
            ("wake", wake?.json), ("failures", failures == 0 ? nil : .integer(Int64(failures))),
            ("next_attempt_at", nextAttempt.map { .integer($0.milliseconds) })
        ).bytes
    }

    init?(_ bytes: Bytes) {
        guard let json = try? JSON.parse(bytes), let id = json["id"]?.string,
            let configuration = json["configuration"].flatMap({ SubscriptionConfiguration($0) }), let created = json["created"]?.integer,
            let incarnation = json["incarnation"]?.string, let root = json["root"]?.string,
            let generation = json["generation"]?.integer.flatMap({ UInt64(exactly: $0) })
        else { return nil }
        (self.id, self.configuration, self.incarnation, self.root) = (id, configuration, incarnation, root)
        self.created = Timestamp(milliseconds: created)
        self.generation = generation
        wake = json["wake"].flatMap { SubscriptionWake($0) }
        failures = json["failures"]?.integer.flatMap { UInt32(exactly: $0) } ?? 0
        nextAttempt = json["next_attempt_at"]?.integer.map { Timestamp(milliseconds: $0) }
    }
}

extension SubscriptionWake {
    var json: JSON {
        .compact(
            ("id", .string(id)), ("stream", .string(stream)), ("holder", holder.map(JSON.string)),
            ("lease_end", leaseEnd.map { .integer($0.milliseconds) }), ("delivered", isDelivered ? true : nil),
            ("failed", hasFailed ? true : nil))
    }

    init?(_ json: JSON) {
        guard let id = json["id"]?.string, let stream = json["stream"]?.string else { return nil }
        (self.id, self.stream, holder) = (id, stream, json["holder"]?.string)
        leaseEnd = json["lease_end"]?.integer.map { Timestamp(milliseconds: $0) }
        isDelivered = json["delivered"]?.bool ?? false
        hasFailed = json["failed"]?.bool ?? false
    }
}
