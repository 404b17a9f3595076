internal import ParleySystem
internal import Synchronization

/// The watchers that wait for the outcome of an input, and of its turn.
final class TurnWatchers: Sendable {
    private struct Watcher: Sendable {
        let id: UInt64
        let turn: UInt64
        let notify: @Sendable () -> Void
    }

    private struct Withdrawal: Scheduled {
        let withdraw: @Sendable () -> Void
        func cancel() { withdraw() }
    }

    private let watchers = Mutex<[String: [Watcher]]>([:])

    /// - Parameter id: A number that no other watcher of the channel has.
    /// - Returns: Withdraws it when it is cancelled.
    func add(_ id: UInt64, of turn: UInt64, in channel: String, _ notify: @escaping @Sendable () -> Void) -> any Scheduled {
        watchers.withLock { $0[channel, default: []].append(Watcher(id: id, turn: turn, notify: notify)) }
        return Withdrawal { [weak self] in
            self?.watchers.withLock { watchers in
                watchers[channel]?.removeAll { $0.id == id }
                if watchers[channel]?.isEmpty == true { watchers[channel] = nil }
            }
        }
    }

    /// Something has become of the input at these offsets.
    func decided(_ offsets: [UInt64], in channel: String) {
        guard !offsets.isEmpty else { return }
        let due = watchers.withLock { $0[channel]?.filter { offsets.contains($0.turn) } ?? [] }
        for watcher in due { watcher.notify() }
    }

    /// Nothing more is decided here in these channels: their watchers are to look again.
    func left(_ isLeft: (String) -> Bool) {
        let due = watchers.withLock { watchers in watchers.filter { isLeft($0.key) }.flatMap(\.value) }
        for watcher in due { watcher.notify() }
    }
}
