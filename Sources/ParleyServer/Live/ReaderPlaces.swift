internal import ParleyHTTP
internal import Synchronization

/// Counts the live readers of each account on all loops, so that no account takes the places of the others.
final class ReaderPlaces: Sendable {
    /// Places that one account may have.
    let countMax: Int
    private let counts = Mutex<[String: Int]>([:])

    /// Fewer than this no account has, also where a server has few places.
    private static let countLeast = 64

    /// - Parameters:
    ///   - total: Places that there are.
    ///   - share: Places that one account may have; `nil`: half of all.
    init(total: Int, share: Int?) { countMax = share ?? max(ReaderPlaces.countLeast, total / 2) }

    /// Takes a place, which is free again when the returned object goes.
    ///
    /// - Throws: 429 `too_many_readers` that names the account.
    func take(_ account: String) throws(Problem) -> ReaderPlace {
        let isFree = counts.withLock { counts in
            let count = counts[account, default: 0]
            guard count < countMax else { return false }
            counts[account] = count + 1
            return true
        }
        guard isFree else {
            throw Problem(
                status: 429, code: "too_many_readers",
                detail:
                    "'\(account)' has \(countMax) live readers already, which is its share of this server's. End some, or follow several channels once on one socket.",
                headers: [("Retry-After", "5")])
        }
        return ReaderPlace(self, account)
    }

    func count(of account: String) -> Int { counts.withLock { $0[account] ?? 0 } }

    fileprivate func release(_ account: String) {
        counts.withLock { counts in
            let count = counts[account, default: 0]
            counts[account] = count > 1 ? count - 1 : nil
        }
    }
}

/// A live reader's place among those of its account. Several readers of one channel on one socket share it.
final class ReaderPlace: Sendable {
    private let places: ReaderPlaces
    let account: String

    fileprivate init(_ places: ReaderPlaces, _ account: String) { (self.places, self.account) = (places, account) }

    deinit { places.release(account) }
}
