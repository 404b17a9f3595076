internal import ParleyLog
internal import ParleySystem

/// Looks through the links of a subscription for streams with something new, off the writer's thread: there may be a hundred thousand.
///
/// It begins when what the writer has decided by then is durable. Streams that change from then on are noted by the writer
/// (``SubscriptionNews/add(_:)``), so together none is missed. A subscription has one scan at a time.
package final class SubscriptionScan: @unchecked Sendable {  // Guard: touched by the writer's thread, then by one lane.
    /// What a scan has found.
    struct Found: Sendable {
        /// Streams with something new, in turn.
        var pending: [String] = []
        /// Expired streams with something new.
        var expired: [String] = []
        /// All links were looked at; else there are more streams behind the last one.
        var isWhole = false
    }

    private let subscriptions: Subscriptions
    private let id: String
    /// A subscription of the same id that is made meanwhile is another.
    private let incarnation: String
    /// Behind which it begins, and where it ends; `nil`: at the first.
    private let start: String?
    /// Behind which the next page begins.
    private var place: String?
    private var isBehindEnd = false
    private var found = Found()

    init(_ subscriptions: Subscriptions, _ subscription: Subscription, after start: String?) {
        (self.subscriptions, id, incarnation, self.start) = (subscriptions, subscription.id, subscription.incarnation, start)
        place = start
    }

    /// Scans have few lanes for all, whose pages take turns: a start scans all subscriptions, and other work must not wait for that.
    private var lane: UInt64 { 1 << 32 | UInt64(Placement.partition(of: id) % SubscriptionScan.lanes) }
    private static let lanes: UInt16 = 2

    /// Goes through one page after another, and lets other work in between.
    func go() {
        subscriptions.channels.world.perform(lane: lane) { [self] in
            do throws(LogError) {
                let gone = try page()
                guard !gone.isEmpty else { return next() }
                // Refused, they are found again by the next scan.
                subscriptions.request(.sweep(gone), of: id) { [self] _ in next() }
            } catch {
                finish(.failure(ChannelError(error)))
            }
        }
    }

    private func next() {
        guard found.isWhole || found.pending.count >= Subscriptions.candidatesMax else { return go() }
        finish(.success(found))
    }

    /// - Returns: streams that are linked by their names' match alone, and that there are no more.
    private func page() throws(LogError) -> [String] {
        var links: [(name: String, link: SubscriptionLink)] = []
        let stop = isBehindEnd ? start.map { TextKey($0) } : nil
        var isEnd = true
        try SubscriptionRows.links(of: id, after: place, in: subscriptions.channels.log) { name, link in
            if let stop, stop < TextKey(name) { return false }
            links.append((name, link))
            isEnd = links.count < Subscriptions.pageLinks
            return isEnd
        }
        var gone: [String] = []
        for (name, link) in links where found.pending.count < Subscriptions.candidatesMax {
            if try isGone(name, link) { gone.append(name) }
        }
        place = links.last?.name ?? place
        if isEnd { wrap() }
        return gone
    }

    /// All links up to the last one were looked at: those up to the first come next.
    private func wrap() {
        if found.pending.count >= Subscriptions.candidatesMax { return }
        if isBehindEnd || start == nil { found.isWhole = true }
        (isBehindEnd, place) = (true, nil)
    }

    /// Notes whether a stream has something new.
    private func isGone(_ name: String, _ link: SubscriptionLink) throws(LogError) -> Bool {
        guard let channel = try subscriptions.findLinked(name) else { return !link.isExplicit }
        guard channel.tail.head > link.acked(in: channel) else { return false }
        if !channel.isExpired(subscriptions.channels.world.now) {
            found.pending.append(name)
        } else if found.expired.count < Subscriptions.candidatesMax {
            found.expired.append(name)
        }
        return false
    }

    private func finish(_ result: Result<Found, ChannelError>) {
        subscriptions.request(.scanned(Outcome(incarnation: incarnation, result: result)), of: id) { [subscriptions, id] result in
            if case .failure(let error) = result { subscriptions.fail(id, error) }
        }
    }

    /// How a scan ends.
    package struct Outcome: Sendable {
        let incarnation: String
        let result: Result<Found, ChannelError>
    }
}

/// Something that is done before a request can be answered, once what was decided of it is durable.
protocol SubscriptionWork {
    /// Writer's thread, once; `answer` is the request's.
    func start(_ answer: @escaping CommandSubmission.Answer)
    /// It is not wanted any more. Writer's thread, instead of ``start(_:)``.
    func abandon()
}

/// Has a request wait until the scan of its subscription has ended.
struct SubscriptionWait: SubscriptionWork {
    let subscriptions: Subscriptions
    let id: String
    let request: SubscriptionRequest

    func start(_ answer: @escaping CommandSubmission.Answer) {
        subscriptions.wait(SubscriptionWaiter(request: request, answer: answer), for: id)
    }
    func abandon() {}
}

struct SubscriptionWaiter: Sendable {
    let request: SubscriptionRequest
    let answer: CommandSubmission.Answer
}
