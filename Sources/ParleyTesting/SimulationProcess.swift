package import ParleyAgents
package import ParleyChannels
package import ParleyHTTP
package import ParleyLog
package import ParleySystem
package import ParleyWebhooks
internal import Synchronization

/// One life of the server in a simulated run, from its start to its death, on a log that outlives it.
///
/// Other than in ``SimulatedNode`` a commit takes simulated time, so that timers, streams of models and clients run into it.
package final class SimulationProcess: Sendable {
    package let world: SimulatedWorld
    package let log: SimulatedLog
    package let crash: SimulationCrash
    package let writer: GroupCommit
    package let channels: Channels
    package let runtime: AgentRuntime
    package let subscriptions: Subscriptions
    private let delivery: SubscriptionDelivery?
    package let record: SimulationRecord
    let readFaults: SimulationReadFaults
    private let syncing = Mutex(Syncing.idle)
    private let syncLongest: UInt64

    private enum Syncing { case idle, busy, due }

    /// - Parameters:
    ///   - previous: The log that the process before has left.
    ///   - schedule: How promptly threads run; one that holds them also has what they do interleaved with each commit.
    ///   - activeMax: How many agents are in memory at most.
    ///   - hardships: Its hardships besides its death.
    ///   - retention: How long sealed text stays; without it for ever, so that a checker can count every entry that there was.
    ///   - keys: The keys of tokens: the same in each life of a server.
    ///   - receiver: Makes the network in which the webhooks of subscriptions are.
    ///   - agents: Makes the agents, which live in the process's world.
    package init(
        seed: UInt64, now: Timestamp, after previous: SimulatedLog? = nil, plan: SimulationCrash.Plan? = nil,
        record: SimulationRecord = SimulationRecord(), schedule: SimulatedSchedule = SimulatedSchedule(),
        activeMax: Int = AgentRuntime.activeMax, hardships: SimulationHardships = SimulationHardships(),
        retention: Duration = .seconds(1_000_000_000),
        keys: SigningKeys = SigningKeys(), receiver: ((SimulatedWorld) -> any OutgoingTransport)? = nil,
        agents: (SimulatedWorld) -> [AnyAgent]
    ) throws(LogError) {
        let crash = SimulationCrash(plan, seed: seed, record: record)
        self.crash = crash
        self.record = record
        world = SimulatedWorld(seed: seed, now: now, schedule: schedule)
        syncLongest = schedule.heldLongest
        readFaults = SimulationReadFaults(hardships.failingReads)
        log =
            previous?.reopen(readError: readFaults.readError, outcome: { _, batches in crash.outcome(of: batches) })
            ?? SimulatedLog(readError: readFaults.readError, outcome: { _, batches in crash.outcome(of: batches) })
        writer = GroupCommit(log: log)
        channels = Channels(log: log, writer: writer, world: world)
        runtime = AgentRuntime(
            channels: channels, world: world, agents: agents(world), node: "simulated", idleAfter: .seconds(2), activeMax: activeMax,
            waitingMax: hardships.waitingMax, textRetention: retention)
        subscriptions = Subscriptions(channels, tokenKey: keys.tokenKey)
        delivery = receiver.map { [subscriptions, world] receiver in
            SubscriptionDelivery(subscriptions, keys: keys, allowsLoopback: true, world: world, transport: receiver(world))
        }
        record.isAlive(true)
        world.drive { [unowned self] in sync() }  // The world is driven by this process only.
        try subscriptions.prepare()
        try channels.start()
        try runtime.start()
        subscriptions.start()
        readFaults.begin()
        if let (after, takes) = hardships.drain { drain(after: after, takes) }
        guard schedule.holds else { return }
        log.meanwhile { [unowned world] in world.meanwhile(Int(world.random() % 6)) }
        channels.observeInput(InterruptedNotices(to: runtime, world))
    }

    /// Commits what is queued, some milliseconds after it was found to be queued.
    private func sync() -> Bool {
        guard writer.queued > 0 else { return false }
        let isDue = syncing.withLock { syncing in
            switch syncing {
            case .due:
                syncing = .idle
                return true
            case .busy: return false
            case .idle:
                syncing = .busy
                // Now and then a disk takes its time.
                let takes = Int(syncLongest > 0 && world.random() % 16 == 0 ? world.random() % syncLongest : world.random() % 8)
                world.schedule(at: world.now.advanced(by: .milliseconds(takes))) { [weak self] in self?.syncing.withLock { $0 = .due } }
                return false
            }
        }
        return isDue && writer.pump()
    }

    /// Shuts down in an orderly way: work that its bodies finish by then is journaled.
    private func drain(after pause: Duration, _ takes: Duration) {
        world.schedule(at: world.now.advanced(by: pause)) { [weak self] in
            guard let self else { return }
            runtime.drain()
            world.schedule(at: world.now.advanced(by: takes)) { [weak self] in self?.runtime.markDrained() }
            world.schedule(at: world.now.advanced(by: takes + .milliseconds(20))) { [weak self] in self?.crash.die() }
        }
    }

    /// Runs until it has died, or nothing is left to do.
    /// - Throws: ``SimulationStuck`` when it does neither within `steps`.
    package func run(until deadline: Timestamp, steps: Int) throws {
        var taken = 0
        world.run(deadline: deadline) {
            taken += 1
            return crash.isOver || taken > steps
        }
        if taken > steps { throw SimulationStuck(seed: world.seed, steps: steps) }
    }

    /// Lets what is left of a dead process come to its end, unheard: its tasks are freed.
    package func bury() {
        record.isAlive(false)
        log.close()
        runtime.abandon()
        var taken = 0
        world.run(deadline: world.now.advanced(by: .seconds(600))) {
            taken += 1
            return taken > 100_000
        }
        world.end()
        channels.observeInput(nil)
    }
}

/// Tells a runtime of input, with what other threads do in between.
private final class InterruptedNotices: InputObserver {
    private let runtime: AgentRuntime
    private let world: SimulatedWorld

    init(to runtime: AgentRuntime, _ world: SimulatedWorld) { (self.runtime, self.world) = (runtime, world) }

    func inputCommitted(_ channel: Channel, offsets: ClosedRange<UInt64>) {
        world.meanwhile(Int(world.random() % 4))
        runtime.inputCommitted(channel, offsets: offsets)
    }

    func channelDeleted(_ channel: Channel) {
        world.meanwhile(Int(world.random() % 4))
        runtime.channelDeleted(channel)
    }

    func followed(_ follower: String) {
        world.meanwhile(Int(world.random() % 4))
        runtime.followed(follower)
    }
}

/// A process that is always busy and gets nowhere.
package struct SimulationStuck: Error, CustomStringConvertible {
    var seed: UInt64
    var steps: Int
    package var description: String { "the simulated process with seed \(seed) is still busy after \(steps) steps" }
}
