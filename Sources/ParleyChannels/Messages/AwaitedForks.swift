internal import ParleyLog
internal import ParleySystem
internal import Synchronization

/// The clients that wait for the outcome of a fork whose source has another owner. In memory only: when the process ends, or the partition is
/// given up, they repeat their request and get the answer.
final class AwaitedForks: Sendable {
    private struct Wait {
        /// Without its entries.
        let creation: CreateChannel
        let answer: CommandSubmission.Answer
        let end: any Scheduled
    }

    private let world: any World
    private let waits = Mutex<[ForkOrder.Request: Wait]>([:])

    private static let countMax = 4_096
    /// After this time the client is told that the outcome is unknown.
    private static let patience = Duration.seconds(30)

    init(_ world: any World) { self.world = world }

    /// Refuses with `overloaded` when too many wait.
    func check() throws(ChannelRefusal) {
        guard waits.withLock({ $0.count }) >= AwaitedForks.countMax else { return }
        throw .refused(ChannelError("overloaded", "\(AwaitedForks.countMax) forks wait for the owners of their sources; try again later."))
    }

    /// The order is durable.
    func wait(_ order: ForkOrder, _ answer: @escaping CommandSubmission.Answer) {
        let request = order.request
        let end = world.schedule(at: world.now.advanced(by: AwaitedForks.patience)) { [weak self] in
            self?.give(.failure(AwaitedForks.unknown(request.name)), to: request)
        }
        var creation = order.creation
        creation.entries = []
        waits.withLock { $0[request] = Wait(creation: creation, answer: answer, end: end) }
    }

    /// What the client asked for; `nil`: no client waits.
    func creation(_ request: ForkOrder.Request) -> CreateChannel? { waits.withLock { $0[request]?.creation } }

    func give(_ result: Result<Reply, ChannelError>, to request: ForkOrder.Request) {
        guard let wait = waits.withLock({ $0.removeValue(forKey: request) }) else { return }
        wait.end.cancel()
        wait.answer(result)
    }

    /// Answers the clients of a partition that was given up: its next owner receives the outcomes.
    func fail(_ partition: UInt16) {
        let requests = waits.withLock { $0.keys.filter { $0.home == partition } }
        // Sorted, so that a simulated run follows from its seed.
        for request in requests.sorted(by: { $0.number < $1.number }) { give(.failure(AwaitedForks.unknown(request.name)), to: request) }
    }

    private static func unknown(_ name: String) -> ChannelError {
        ChannelError(
            LogError.Code.partitionUnavailable.text,
            "it is not known yet what has become of '\(name)'. Repeat the request: made meanwhile, it is found.")
    }
}
