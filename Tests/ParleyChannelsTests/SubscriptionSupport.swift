import ParleyChannels
import ParleyLog
import ParleySystem
import ParleyTesting
import Synchronization

/// A process with subscriptions, in a simulated world.
final class SubscriptionProcess: Sendable {
    let world: SimulatedWorld
    let log: SimulatedLog
    let writer: GroupCommit
    let channels: Channels
    let subscriptions: Subscriptions
    private let notifier: Notifier
    /// What the writer has read from the log, unless that was made elsewhere.
    let reads: WriterReads

    init(
        seed: UInt64 = 1, now: Timestamp = Timestamp(milliseconds: 1_767_225_600_000), on log: SimulatedLog? = nil,
        reads: WriterReads = WriterReads(),
        notified: @escaping @Sendable (SubscriptionProcess, SubscriptionNotification) -> Void = { _, _ in }
    ) throws(LogError) {
        world = SimulatedWorld(seed: seed, now: now)
        let log = log ?? SimulatedLog(readError: { _, _ in reads.note() })
        (self.log, self.reads) = (log, reads)
        writer = GroupCommit(log: log)
        channels = Channels(log: log, writer: writer, world: world)
        subscriptions = Subscriptions(channels, tokenKey: Bytes(repeating: 7, count: 32))
        notifier = Notifier(notified)
        subscriptions.notify(notifier)
        notifier.process.withLock { $0.value = self }
        world.drive { [writer] in reads.measure { writer.pump() } }
        try subscriptions.prepare()
        try channels.start()
        subscriptions.start()
    }

    /// What the next process finds.
    func reopened(
        seed: UInt64 = 2, outcome: @escaping SimulatedLog.Decision = { _, _ in .acknowledged },
        notified: @escaping @Sendable (SubscriptionProcess, SubscriptionNotification) -> Void = { _, _ in }
    ) throws(LogError) -> SubscriptionProcess {
        let reads = WriterReads()
        let log = log.reopen(readError: { _, _ in reads.note() }, outcome: outcome)
        return try SubscriptionProcess(seed: seed, now: world.now, on: log, reads: reads, notified: notified)
    }

    private final class Notifier: SubscriptionNotifier {
        struct Weak: Sendable { weak var value: SubscriptionProcess? }
        let process = Mutex(Weak())
        let notified: @Sendable (SubscriptionProcess, SubscriptionNotification) -> Void

        init(_ notified: @escaping @Sendable (SubscriptionProcess, SubscriptionNotification) -> Void) { self.notified = notified }

        func deliver(_ notification: SubscriptionNotification) {
            guard let process = process.withLock({ $0.value }) else { return }
            process.world.perform(lane: 1) { [notified] in notified(process, notification) }
        }
    }

    // MARK: What clients do

    /// Creates a stream, or finds it, and appends.
    @discardableResult
    func append(_ name: String, _ text: String = "1") -> Answer<Appended> {
        let answer = Answer<Appended>()
        var append = Append(to: name, [NewEntry(data: Bytes(text.utf8))])
        append.creates = ChannelRow(name: name, contentType: ContentType.json, isAgent: false, created: world.now)
        channels.submit(append) { answer.set($0) }
        return answer
    }

    func delete(_ name: String) { channels.submit(DeleteChannel(name)) }

    @discardableResult
    func request(_ request: SubscriptionRequest, of id: String = "s") -> Answer<SubscriptionAnswer> {
        let answer = Answer<SubscriptionAnswer>()
        subscriptions.request(request, of: id) { answer.set($0) }
        return answer
    }

    /// The same, and everything that follows from it without time passing.
    func ask(_ request: SubscriptionRequest, of id: String = "s") -> Result<SubscriptionAnswer, ChannelError>? {
        let answer = self.request(request, of: id)
        world.settle()
        return answer.outcome
    }

    /// A claim that succeeds, or `nil`.
    func claim(_ worker: String = "w", of id: String = "s") -> Claim? {
        guard case .success(.claimed(let subscription, let wake, let token, let streams))? = ask(.claim(worker: worker), of: id) else {
            return nil
        }
        return Claim(
            proof: SubscriptionProof(token: token, wakeID: wake.id, generation: subscription.generation), worker: worker, streams: streams)
    }

    func acknowledge(_ claim: Claim, isDone: Bool = true, of id: String = "s") -> Result<SubscriptionAnswer, ChannelError>? {
        ask(.acknowledge(claim.proof, claim.acks, isDone: isDone, isCallback: false), of: id)
    }

    /// Until a search for streams is over, and its outcome waits for the writer.
    func search() {
        writer.pump()
        while writer.queued == 0 { world.doOne() }
    }

    func run(_ duration: Duration) { world.run(deadline: world.now.advanced(by: duration), until: { self.log.crashed }) }

    /// The wake events in a stream.
    func wakes(_ stream: String = "wake") throws -> [JSON] {
        guard let channel = try channels.find(stream) else { return [] }
        return try JSON.parse(try channels.page(channel, after: 0, view: .raw, bytesMax: .max).body).array ?? []
    }

    func streams(_ id: String = "s") throws -> [SubscriptionStream] { try subscriptions.describe(id)?.streams ?? [] }
}

/// Counts how often a commit has read the log.
final class WriterReads: Sendable {
    private let counts = Mutex((isWriting: false, count: 0, max: 0))

    /// The most reads of one commit.
    var max: Int { counts.withLock { $0.max } }

    func forget() { counts.withLock { $0.max = 0 } }

    func note() -> LogError? {
        counts.withLock { if $0.isWriting { $0.count += 1 } }
        return nil
    }

    func measure(_ commit: () -> Bool) -> Bool {
        counts.withLock { ($0.isWriting, $0.count) = (true, 0) }
        defer { counts.withLock { ($0.isWriting, $0.max) = (false, Swift.max($0.max, $0.count)) } }
        return commit()
    }
}

/// What a subscriber was woken with.
struct Claim: Sendable {
    var proof: SubscriptionProof
    var worker: String
    var streams: [SubscriptionStream]

    /// Acks of everything.
    var acks: [SubscriptionAck] { streams.filter(\.isPending).map { SubscriptionAck(stream: $0.path, offset: $0.tail) } }
}

extension SubscriptionConfiguration {
    static func pull(_ pattern: String? = "events/*", _ streams: [String] = [], lease: Int64 = 1_000) -> SubscriptionConfiguration {
        SubscriptionConfiguration(
            .pullWake(stream: "wake"), pattern: pattern.flatMap { SubscriptionPattern($0) }, streams: streams, leaseMilliseconds: lease)
    }

    static func hook(_ pattern: String? = "events/*", lease: Int64 = 1_000) -> SubscriptionConfiguration {
        SubscriptionConfiguration(
            .webhook(url: "https://example.com/hook"), pattern: pattern.flatMap { SubscriptionPattern($0) }, leaseMilliseconds: lease)
    }
}

/// A number that follows from a seed and from what it is for.
func chosen(_ seed: UInt64, _ what: Int) -> UInt64 {
    var random = SplitMix64(seed: seed &* 1_000_003 &+ UInt64(truncatingIfNeeded: what))
    return random.next()
}
