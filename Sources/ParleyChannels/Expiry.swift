internal import ParleyLog
package import ParleySystem
internal import Synchronization

/// How long a channel lives.
package enum Lifetime: Sendable, Equatable {
    /// So many seconds after it was last read or written.
    case ttl(seconds: Int64)
    /// Up to an instant, as it was given.
    case until(Timestamp, text: String)

    /// - Returns: `nil` unless `text` is RFC 3339.
    package init?(until text: String) {
        guard let instant = Timestamp(text) else { return nil }
        self = .until(instant, text: text)
    }

    package var seconds: Int64? { if case .ttl(let seconds) = self { seconds } else { nil } }
    package var instant: (instant: Timestamp, text: String)? {
        if case .until(let instant, let text) = self { (instant, text) } else { nil }
    }

    func end(accessed: Timestamp) -> Timestamp {
        switch self {
        case .ttl(let seconds): accessed.advanced(by: .seconds(seconds))
        case .until(let instant, _): instant
        }
    }

    /// How late what is stored of the last access may be: each read of a channel would be a write else.
    var slack: Duration {
        switch self {
        case .ttl(let seconds): .seconds(max(1, seconds / 16))
        case .until: .zero
        }
    }
}

extension Channel {
    /// Whether its time has come. Thread-safe.
    package func isExpired(_ now: @autoclosure () -> Timestamp) -> Bool {
        guard !isSoftDeleted, let end else { return false }
        return now() >= end
    }

    /// When its lifetime ends, if it is not used before. Thread-safe.
    package var end: Timestamp? { lifetime?.end(accessed: Timestamp(milliseconds: accessed.load(ordering: .relaxed))) }
}

extension ChannelRow {
    /// When it is to be looked at: what is stored of its last access may be late, and it must not end before its time.
    var due: Timestamp? { lifetime.map { $0.end(accessed: accessed ?? created).advanced(by: $0.slack) } }
}

extension Channels {
    /// Renews the sliding lifetime of a channel that is being read or written. Thread-safe.
    ///
    /// In memory at once; in the log when what stands there has become late, so that a process that takes over is late by no more than that.
    package func touched(_ channel: Channel) {
        guard case .ttl? = channel.lifetime else { return }
        let now = world.now
        let before = Timestamp(milliseconds: channel.accessed.exchange(now.milliseconds, ordering: .relaxed))
        let stored = Timestamp(milliseconds: channel.storedAccess.load(ordering: .relaxed))
        guard now > before, stored.duration(to: now) >= channel.lifetime!.slack else { return }
        channel.storedAccess.store(now.milliseconds, ordering: .relaxed)
        // Refused, the next access tries again; nobody waits for it.
        submit(.checkLifetime(LifetimeCheck(name: channel.name, id: channel.id))) { result in
            if case .failure = result { channel.storedAccess.store(stored.milliseconds, ordering: .relaxed) }
        }
    }

    /// The same for a write, on the writer thread.
    func written(_ channel: Channel, at now: Timestamp, in stage: inout Stage) {
        guard case .ttl? = channel.lifetime else { return }
        channel.accessed.store(now.milliseconds, ordering: .relaxed)
        let stored = Timestamp(milliseconds: channel.storedAccess.load(ordering: .relaxed))
        guard stored.duration(to: now) >= channel.lifetime!.slack else { return }
        channel.storedAccess.store(now.milliseconds, ordering: .relaxed)
        if let due = setDue(channel, in: &stage) { expiry.set(due) }
    }
}

/// Looks at a channel's lifetime where every access is known: removes the channel, or says when to look again.
struct LifetimeCheck: Sendable {
    let name: String
    let id: ChannelID
    /// Of the row that asked for it; without one it was an access.
    var visit: DueVisit?

    /// Writer's thread.
    /// - Returns: when it is to be looked at again.
    func decide(_ channels: Channels, in stage: inout Stage) throws(LogError) -> Timestamp? {
        if let visit { stage.delete(.index, visit.row) }
        // An expired one is removed on the way.
        guard let channel = try channels.resolve(name, at: id, in: &stage), !channel.isGone else { return nil }
        channels.touch(channel)
        return channels.setDue(channel, in: &stage)
    }
}
