internal import Glibc
internal import ParleySystem
internal import Synchronization

/// A server's memory for its clients: for requests, their bodies until they are answered, and the part that has come of an incomplete one; for
/// answers, the bytes that have not been taken.
///
/// No account gets all of it. An account's limit shrinks with what is free: a large piece is taken while its account holds no more than is left for
/// all, a small one while it holds no more than three times that. So one that uploads without end, or takes none of its answers, leaves room for its
/// own small requests, two leave room for a third, and so on.
package final class MemoryBudget: Sendable {
    private struct State {
        var used = 0
        var accounts: [String: Int] = [:]
    }

    package let bytesMax: Int
    private let state = Mutex(State())
    /// When a piece was last refused, in milliseconds of the system's monotonic clock.
    private let refusedAt = Atomic<Int64>(.min)

    /// A piece up to this size is a small one.
    static let smallBytes = 64 << 10
    private static let smallFactor = 3

    package init(bytesMax: Int) { self.bytesMax = bytesMax }

    package var usedBytes: Int { state.withLock { $0.used } }

    /// Room for `count` bytes, or `nil` when there is none.
    package func reserve(_ count: Int, for account: String) -> MemoryReservation? {
        let reservation = MemoryReservation(self, account: account)
        return reservation.resize(to: count) ? reservation : nil
    }

    /// Whether a piece found no room in the last seconds.
    package var isShort: Bool { refusedAt.load(ordering: .relaxed) > now - MemoryBudget.shortMilliseconds }

    private static let shortMilliseconds: Int64 = 2_000

    private var now: Int64 { SystemWorld.time(CLOCK_MONOTONIC).milliseconds }

    fileprivate func resize(_ account: String, from old: Int, to new: Int, isOwed: Bool = false) -> Bool {
        let hasRoom = take(account, from: old, to: new, isOwed: isOwed)
        if !hasRoom { refusedAt.store(now, ordering: .relaxed) }
        return hasRoom
    }

    private func take(_ account: String, from old: Int, to new: Int, isOwed: Bool) -> Bool {
        state.withLock { state in
            let (growth, held) = (new - old, state.accounts[account] ?? 0)
            if growth > 0, !isOwed {
                let free = bytesMax - state.used - growth
                let share = new > MemoryBudget.smallBytes ? free : free * MemoryBudget.smallFactor
                guard free >= 0, held + growth <= share else { return false }
            }
            state.used += growth
            state.accounts[account] = held + growth > 0 ? held + growth : nil
            return true
        }
    }
}

/// The share of one request or answer in the budget; given back when this is released.
package final class MemoryReservation: @unchecked Sendable {  // Guard: changed by the maker of the piece, and no longer once it is queued.
    private let budget: MemoryBudget
    /// The account that is charged; the peer's address until the head has named the sender.
    package let account: String
    package private(set) var bytes = 0

    package init(_ budget: MemoryBudget, account: String) { (self.budget, self.account) = (budget, account) }

    deinit { _ = budget.resize(account, from: bytes, to: 0) }

    /// - Parameter isOwed: The bytes are there and must be sent: they count also where there is no room.
    /// - Returns: false when there is no room; nothing has changed then.
    @discardableResult
    package func resize(to count: Int, isOwed: Bool = false) -> Bool {
        guard count != bytes else { return true }
        guard budget.resize(account, from: bytes, to: count, isOwed: isOwed) else { return false }
        bytes = count
        return true
    }
}
