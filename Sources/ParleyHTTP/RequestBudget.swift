internal import Synchronization

/// What the requests that a server holds in memory may take together: bodies until they are answered, and what has come of a request that is not
/// complete.
///
/// No account gets all of it. What an account may hold shrinks with what is free: a large body is taken while its account holds no more than is left
/// for everybody, a small one while it holds no more than three times that. So one that uploads without end leaves room for its own small
/// requests, two leave room for a third, and so on.
package final class RequestBudget: Sendable {
    private struct State {
        var used = 0
        var accounts: [String: Int] = [:]
    }

    package let bytesMax: Int
    private let state = Mutex(State())

    /// A body up to this size is a small one.
    static let smallBytes = 64 << 10
    private static let smallFactor = 3

    package init(bytesMax: Int) { self.bytesMax = bytesMax }

    package var usedBytes: Int { state.withLock { $0.used } }

    fileprivate func resize(_ account: String, from old: Int, to new: Int) -> Bool {
        state.withLock { state in
            let (growth, held) = (new - old, state.accounts[account] ?? 0)
            if growth > 0 {
                let free = bytesMax - state.used - growth
                let share = new > RequestBudget.smallBytes ? free : free * RequestBudget.smallFactor
                guard free >= 0, held + growth <= share else { return false }
            }
            state.used += growth
            state.accounts[account] = held + growth > 0 ? held + growth : nil
            return true
        }
    }
}

/// What one request holds of the budget; given back when this goes.
final class RequestReservation {
    private let budget: RequestBudget
    /// Who is charged; the peer's address until the head has said who asks.
    private(set) var account: String
    private(set) var bytes = 0

    init(_ budget: RequestBudget, account: String) { (self.budget, self.account) = (budget, account) }

    deinit { _ = budget.resize(account, from: bytes, to: 0) }

    /// - Returns: false when there is no room; nothing has changed then.
    func resize(to count: Int) -> Bool {
        guard count != bytes else { return true }
        guard budget.resize(account, from: bytes, to: count) else { return false }
        bytes = count
        return true
    }
}
