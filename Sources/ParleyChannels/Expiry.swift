internal import ParleyLog
package import ParleySystem
internal import Synchronization

/// How long a channel lives.
package enum Lifetime: Sendable, Equatable {
    /// So many seconds after it was last read or written.
    case ttl(seconds: Int64)
    /// Until an instant, with its text as the client wrote it.
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

    /// How late the stored access may be: otherwise each read of a channel would be a write.
    var slack: Duration {
        switch self {
        case .ttl(let seconds): .seconds(max(1, seconds / 16))
        case .until: .zero
        }
    }
}

extension Channel {
    /// Whether the channel has expired. Thread-safe.
    package func isExpired(_ now: @autoclosure () -> Timestamp) -> Bool {
        guard !isSoftDeleted, let end else { return false }
        return now() >= end
    }

    /// When the channel expires unless it is used before. Thread-safe.
    package var end: Timestamp? { lifetime?.end(accessed: Timestamp(milliseconds: accessed.load(ordering: .relaxed))) }
}

extension ChannelRow {
    /// When to check the lifetime: the stored access may be late, and the channel must not expire early.
    var due: Timestamp? { lifetime.map { $0.end(accessed: accessed ?? created).advanced(by: $0.slack) } }
}

extension Channels {
    /// Renews the sliding lifetime of a channel that is being read or written. Thread-safe.
    ///
    /// In memory at once; in the log when the stored access is late by the slack, so that a process that takes over is late by no more than that.
    package func touched(_ channel: Channel) {
        guard case .ttl? = channel.lifetime else { return }
        let now = world.now
        let before = Timestamp(milliseconds: channel.accessed.exchange(now.milliseconds, ordering: .relaxed))
        let stored = Timestamp(milliseconds: channel.storedAccess.load(ordering: .relaxed))
        guard now > before, stored.duration(to: now) >= channel.lifetime!.slack else { return }
        channel.storedAccess.store(now.milliseconds, ordering: .relaxed)
        // If this is refused, the next access tries again. No request waits for it.
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

/// Checks a channel's lifetime on the writer thread, which knows of every access: removes the channel, or sets the next check.
struct LifetimeCheck: Sendable {
    let name: String
    let id: ChannelID
    /// The visit of the row that is due; `nil`: an access has asked for the check.
    var visit: DueVisit?

    /// Writer's thread.
    /// - Returns: when to check again.
    func decide(_ channels: Channels, in stage: inout Stage) throws(LogError) -> Timestamp? {
        if let visit { stage.delete(.index, visit.row) }
        // This removes the channel if it has expired.
        guard let channel = try channels.resolve(name, at: id, in: &stage), !channel.isGone else { return nil }
        channels.touch(channel)
        return channels.setDue(channel, in: &stage)
    }
}
