package import ParleyChannels
package import ParleyLog
package import ParleySystem
internal import Synchronization

/// Runs the agents of a node: activates them when something waits for them, recovers what a crash left unfinished, lets them go when idle.
package final class AgentRuntime: Sendable {
    package let channels: Channels
    package let world: any World
    /// Names this process in `turn.started`.
    let process: (node: String, build: String)
    /// Takes sealed text out of the log.
    let trims: TrimService
    var timers: TimerService { timerService.withLock { $0! } }

    private let agents: Mutex<[String: AnyAgent]>
    /// The observers that the node has given.
    package let observers: AgentObservers
    private let timerService = Mutex<TimerService?>(nil)
    let directory: AgentDirectory
    let memory: AgentMemory
    let programs = ProgramWatch()
    let takeUp = TakeUp()
    private let watchers = TurnWatchers()

    package init(
        channels: Channels, world: any World, agents: [AnyAgent], node: String = "local", build: String = "",
        idleAfter: Duration = .seconds(30), activeMax: Int = AgentRuntime.activeMax,
        waitingMax: Int = AgentRuntime.waitingMax, textRetention: Duration = .seconds(3_600),
        conversations: ConversationBudget = ConversationBudget(), turnBytesMax: Int = TurnMemory.bytesUsual,
        answerTexts: AnswerTexts = AnswerTexts(),
        observers: AgentObservers = AgentObservers()
    ) {
        memory = AgentMemory(
            conversations: conversations, turns: TurnMemory(bytesMax: turnBytesMax, world: world), answers: answerTexts)
        directory = AgentDirectory(countMax: activeMax, waitingMax: waitingMax, idleAfter: idleAfter)
        self.channels = channels
        self.world = world
        process = (node, build)
        self.observers = observers
        self.agents = Mutex(Dictionary(agents.map { ($0.kind, $0) }, uniquingKeysWith: { $1 }))
        trims = TrimService(channels: channels, world: world, retention: textRetention)
        let timers = TimerService(log: channels.log, world: world, open: { channels.openPartitions }) { [weak self] name, id, timer in
            self?.timerDue(name, id, timer)
        }
        timerService.withLock { $0 = timers }
    }

    /// The kinds of agents there are, sorted.
    package var kinds: [String] { agents.withLock { $0.keys.sorted() } }

    /// The agent of a kind as it is declared now.
    func agent(ofKind kind: String) -> AnyAgent? { agents.withLock { $0[kind] } }

    /// Adds kinds, and replaces those that are declared otherwise now. A turn keeps the definition that it began with; the next one has the new.
    package func declare(_ declared: [AnyAgent]) throws(LogError) {
        let new = agents.withLock { agents in
            let new = declared.map(\.kind).filter { agents[$0] == nil }
            for agent in declared { agents[agent.kind] = agent }
            return Set(new)
        }
        guard !new.isEmpty else { return }
        try takeUp(in: channels.openPartitions) { new.contains($0) }
        // Timers that fired before there was a program for them.
        timers.lookAgain()
        for partition in channels.openPartitions.numbers {
            for follower in try unfinishedFollows(partition).told where new.contains(AgentName(channel: follower)?.kind ?? "") {
                wake(follower)
            }
        }
    }

    package var isDraining: Bool { directory.isClosed }

    /// How many agents are in memory at most, unless it is said otherwise.
    package static let activeMax = 10_000

    /// How many names of agents that wait for room are remembered; for more, the log is searched.
    package static let waitingMax = 100_000

    /// How many agents are in memory.
    package var activeCount: Int { directory.count }

    /// How many agents have something to do and wait for room in memory: for themselves, or for their next turn.
    package var waitingCount: Int { directory.waitingCount + memory.turns.waitingCount }

    func isActive(_ channel: String) -> Bool { directory.activation(channel) != nil }

    /// Passivates every agent, with everything its program holds, whatever its state: for a process whose log has been closed.
    package func abandon() { for activation in directory.activations { activation.deleted() } }

    // MARK: Starting

    /// Takes up what the last process left: interrupted turns, undecided input, timers that are due.
    ///
    /// Cost: some seeks a partition, and what is unfinished; agents that only wait are not touched.
    package func start() throws(LogError) {
        channels.observeInput(self)
        let open = channels.openPartitions
        try takeDrainMarks(in: open)
        try takeUp(in: open) { _ in true }
        for partition in open.numbers { try beside(partition)() }
        try trims.start()
        channels.observePartitions(self)
    }

    /// Takes up the rest of a partition, besides what is unfinished: timers that are to fire, agents that were told of entries they follow.
    private func beside(_ partition: UInt16) throws(LogError) -> @Sendable () -> Void {
        let (due, follows) = (try timers.firstDue(partition), try unfinishedFollows(partition))
        return { [self] in
            if let due { timers.set(due) }
            for follower in follows.told { wake(follower) }
            for follow in follows.unwatched { channels.submit(FollowAgain(follow)) }
        }
    }

    /// The agents of a partition that there is something new for in what they follow, and what is followed since an earlier version, which had no
    /// watches.
    private func unfinishedFollows(_ partition: UInt16) throws(LogError) -> (told: [String], unwatched: [FollowKey]) {
        var (told, unwatched) = (Set<String>(), [FollowKey]())
        try FollowRow.scan(channels.log, partition) { id, row in
            switch row.news {
            case .told: told.insert(row.follow.follower)
            case .unwatched: unwatched.append(row.follow.key(id))
            case .awaited: break
            }
        }
        return (told.sorted(), unwatched)
    }

    /// Takes up what is unfinished of agents of some kinds.
    private func takeUp(in partitions: PartitionSet, _ isMeant: (_ kind: String) -> Bool) throws(LogError) {
        wakeSlowly(try unfinished(in: partitions, isMeant))
    }

    /// Agents that have something to do, as the log tells.
    private struct Unfinished {
        var names: [String] = []
        /// The channel at which to continue the search; `nil`: there are no more.
        var next: ChannelID?
    }

    /// Returns the agents with an open turn or undecided input.
    private func unfinished(in partitions: PartitionSet, _ isMeant: (_ kind: String) -> Bool) throws(LogError) -> Unfinished {
        var unfinished: [String] = []
        try AgentIndex.scan(channels.log, in: partitions, [.running, .stalled]) { name, status in
            let isMeant = isMeant(AgentName(channel: name)?.kind ?? "")
            if isMeant, status == .stalled { takeUp.stalled(name) }
            if isMeant { unfinished.append(name) }
            return true
        }
        let undecided = try undecided(in: partitions, from: .first)
        var seen: Set<String> = []
        let names = (unfinished + undecided.names).filter { isMeant(AgentName(channel: $0)?.kind ?? "") && seen.insert($0).inserted }
        return Unfinished(names: names, next: undecided.next)
    }

    private func wakeSlowly(_ unfinished: Unfinished) {
        let names = unfinished.names
        // One after another with a pause, so that a thousand turns that were cut off do not all call their model in the same millisecond.
        for (index, name) in names.enumerated() {
            world.schedule(at: world.now.advanced(by: .milliseconds(2) * (index / AgentRuntime.recoveriesAtOnce))) { [weak self] in
                self?.call(name, .wake)
            }
        }
        guard let next = unfinished.next else { return }
        // After those, because it may be that no agent is passivated, and a passivation is what otherwise triggers the search.
        let pause = Duration.milliseconds(2) * (names.count / AgentRuntime.recoveriesAtOnce)
        world.schedule(at: world.now.advanced(by: pause)) { [weak self] in self?.ask(from: next) }
    }

    /// Searches the log for agents with work from that channel on, once all remembered ones have been admitted.
    private func ask(from place: ChannelID) {
        directory.continuePass(at: place)
        admit()
    }

    private func wake(_ name: String) { call(name, .wake) }

    /// Input reached an activation of `channel` that had been passivated: the next one takes it.
    func wakeAgain(_ channel: Channel) {
        guard !channel.tail.isDeleted else { return }
        wake(channel.name)
    }

    /// Tries an agent again whose log could not be read: its inbox has been acknowledged. Once, however often it was woken meanwhile in vain.
    func wakeLater(_ channel: Channel, _ timers: [DueTimer]) {
        guard takeUp.isFirstUnread(channel.id, timers) else { return }
        world.schedule(at: world.now.advanced(by: AgentRuntime.retryPause)) { [weak self] in self?.wakeUnread(channel) }
    }

    private func wakeUnread(_ channel: Channel) {
        let timers = takeUp.takeUnread(channel.id)
        wakeAgain(channel)
        // Sorted, so that a simulated run follows from its seed.
        for timer in timers.sorted(by: { $0.id < $1.id }) { timerDue(channel.name, channel.id, timer) }
    }

    private static let retryPause = Duration.seconds(10)

    private static let recoveriesAtOnce = 8

    /// The channels with input that has not been decided, from `start` on: as many as are asked for at a time.
    private func undecided(in partitions: PartitionSet, from start: ChannelID) throws(LogError) -> Unfinished {
        var ids: [ChannelID] = []
        var next: ChannelID?
        for partition in partitions.numbers where partition >= start.partition && next == nil {
            let lower = ChannelID(partition: partition, number: partition == start.partition ? start.number : 0).key
            let upper = ChannelID(partition: partition, number: .max).key
            try channels.log.scan(.inbox, from: lower, to: upper, reversed: false) { key, _ in
                let id = ChannelID(partition: partition, number: key.readBigEndian(at: 2))
                guard ids.last != id else { return true }
                guard ids.count < directory.pageMax else {
                    next = id
                    return false
                }
                ids.append(id)
                return true
            }
        }
        var names: [String] = []
        for id in ids {
            if let row = try channels.log.get(.channels, id.key).flatMap({ ChannelRow($0) }) { names.append(row.name) }
        }
        return Unfinished(names: names, next: next)
    }

    /// Submitted before anything else, so that it is gone before a turn of this process can write.
    private func takeDrainMarks(in partitions: PartitionSet) throws(LogError) {
        for partition in partitions.numbers {
            guard let mark = try drainMark(partition) else { continue }
            // Before there were marks of each partition, the one of the first stood for all.
            if mark.isEmpty { takeUp.drained(all: partitions) } else { takeUp.drained(partition) }
            removeDrainMark(partition)
        }
    }

    private func removeDrainMark(_ partition: UInt16) {
        var removal = RowChange.delete(.index, IndexMark.drained.key(partition))
        removal.isBounded = false
        channels.submit(removal)
    }

    private func drainMark(_ partition: UInt16) throws(LogError) -> Bytes? {
        try channels.log.get(.index, IndexMark.drained.key(partition))
    }

    /// Records for the next process that this one did not end because of a turn. Call it when nothing else will be written.
    package func markDrained() {
        for partition in channels.openPartitions.numbers { markDrained(partition) }
    }

    private func markDrained(_ partition: UInt16) {
        // Refused, the next process counts a crash that was none.
        channels.submit(RowChange.put(.index, IndexMark.drained.key(partition), [1]))
    }

    /// Hands a partition over to another owner: its agents are passivated, and no open turn is to blame for it.
    ///
    /// - Parameter completion: As that of ``Channels/close(_:completion:)``.
    package func handOver(_ partition: UInt16, completion: @escaping @Sendable (Result<Void, ChannelError>) -> Void) {
        markDrained(partition)
        channels.close(partition, completion: completion)
    }

    // MARK: Stopping

    /// Begins no turn and no step any more, and closes the connections to models; durable work continues at the next start.
    ///
    /// Bodies of steps that run continue, so that what they did is journaled: wait for ``runningBodies`` to become 0, as long as there is time.
    package func drain() {
        directory.close()
        timers.stop()
        trims.stop()
        for activation in directory.activations { activation.drain() }
    }

    /// How many bodies of steps run.
    package var runningBodies: Int { programs.runningBodies }

    /// A turn has continued without its memory: it is taken up again, and stays.
    func strayed(_ name: String, turn: UInt64) {
        programs.strayed(name, turn: turn)
        // Noted before looking: a turn that ends from here on takes the note away, and one that had ended before is seen here.
        guard isOpen(turn, of: name) else { return programs.noStray(name, turn: turn) }
        wake(name)
    }

    /// A log that cannot be read may have it.
    private func isOpen(_ turn: UInt64, of name: String) -> Bool {
        do throws(LogError) {
            return try channels.find(name).flatMap { channel throws(LogError) in try channels.row(channel) }?.agent?.turn == turn
        } catch {
            return true
        }
    }

    // MARK: Activations

    /// Delivers a call to the agent of that name, in memory or once there is room for it.
    private func call(_ name: String, _ call: AgentDirectory.Call) {
        guard !isDraining, let agent = agent(ofKind: AgentName(channel: name)?.kind ?? ""), let channel = find(name, for: call) else {
            return
        }
        switch directory.deliver(call, to: channel, { AgentDriver(runtime: self, channel: channel, agent: agent) }) {
        case .delivered: break
        case .isCrowded: for activation in directory.activations { activation.makeRoom() }
        case .isFull: refuse(call)
        case .isStale: self.call(name, call)
        }
    }

    private func refuse(_ call: AgentDirectory.Call) {
        guard case .fire(let timer, let id) = call else { return }
        timers.refused(timer, of: id)
        fireRefused()
    }

    /// Fires the timers again that there was no room for.
    private func fireRefused() { if directory.hasRoomForTimers { timers.fireRefused() } }

    /// The channel that the call is for; `nil` when there is none any more.
    private func find(_ name: String, for call: AgentDirectory.Call) -> Channel? {
        let channel: Channel?
        do throws(LogError) { channel = try channels.find(name) } catch {
            // Its new owner finds in the log what it has to do.
            if error.code == .partitionUnavailable { return nil }
            Diagnostics.log(.error, "agent cannot be activated", ["channel": name, "reason": error.message])
            world.schedule(at: world.now.advanced(by: AgentRuntime.retryPause)) { [weak self] in self?.call(name, call) }
            return nil
        }
        // Whose timer it was has been deleted, and may have a successor of that name.
        if case .fire(let timer, let id) = call, channel?.id != id {
            timers.remove(timer.key(id), channels)
            return nil
        }
        return channel
    }

    func forget(_ activation: AgentDriver) {
        directory.forget(activation)
        admit()
    }

    /// Lets go of an activation unless something has been delivered to it meanwhile.
    func forget(_ activation: AgentDriver, unlessNeeded: Bool) -> Bool {
        guard directory.forget(activation, unlessNeeded: true) else { return false }
        admit()
        return true
    }

    /// Gives the available room to the agents that wait for it.
    private func admit() {
        while let (name, calls) = directory.admitNext() {
            for call in calls { self.call(name, call) }
            directory.giveUp(name)
        }
        fireRefused()
        while !isDraining, let start = directory.takePass() { wakeUndecided(from: start) }
    }

    /// Searches the log for agents with work, a page at a time, when they could not all be remembered.
    private func wakeUndecided(from start: ChannelID) {
        do throws(LogError) {
            let found = try undecided(in: channels.openPartitions, from: start)
            if let next = found.next { directory.continuePass(at: next) }
            for name in found.names { wake(name) }
        } catch {
            guard error.code != .closed else { return }
            Diagnostics.log(.error, "what waits cannot be read", ["reason": error.message])
            world.schedule(at: world.now.advanced(by: AgentRuntime.retryPause)) { [weak self] in self?.ask(from: start) }
        }
    }

    func timerDue(_ name: String, _ id: ChannelID, _ timer: DueTimer) { call(name, .fire(timer, of: id)) }

    // MARK: Waiting for a turn

    /// Calls `notify` whenever the input at `turn` was decided, or its turn has ended, until that is withdrawn. Call it before looking.
    package func observeTurn(_ turn: UInt64, in channel: String, _ notify: @escaping @Sendable () -> Void) -> any Scheduled {
        watchers.add(world.random(), of: turn, in: channel, notify)
    }

    func turnEnded(_ channel: String, _ turn: UInt64) {
        programs.noStray(channel, turn: turn)
        decided([turn], in: channel)
    }

    /// Something has become of the input at these offsets.
    func decided(_ offsets: [UInt64], in channel: String) { watchers.decided(offsets, in: channel) }
}

extension AgentRuntime: PartitionObserver {
    package func prepare(_ partition: UInt16) throws(LogError) -> @Sendable () -> Void {
        let (unfinished, beside) = (try unfinished(in: PartitionSet([partition])) { _ in true }, try beside(partition))
        let isDrained = try drainMark(partition) != nil
        return { [self] in
            if isDrained {
                takeUp.drained(partition)
                removeDrainMark(partition)
            }
            wakeSlowly(unfinished)
            beside()
            trims.lookAgain()
        }
    }

    package func partitionClosed(_ partition: UInt16) {
        // Should it come back: this process has not ended, and none of its turns is to blame.
        takeUp.drained(partition)
        watchers.left { Placement.partition(of: $0) == partition }
        timers.closed(partition)
        for activation in directory.activations where activation.channel.id.partition == partition { activation.deleted() }
    }
}

extension AgentRuntime: InputObserver {
    package func inputCommitted(_ channel: Channel, offsets: ClosedRange<UInt64>) {
        call(channel.name, .takeInput(upTo: offsets.upperBound, of: channel.id))
    }

    package func channelDeleted(_ channel: Channel) {
        timers.channelDeleted(channel.id, channels)
        programs.noStray(channel.name)
        watchers.left { $0 == channel.name }
        // In memory may be its successor already.
        if let activation = directory.activation(channel.name), activation.channel.id == channel.id { activation.deleted() }
    }

    package func followed(_ follower: String) { wake(follower) }
}

/// Receives what happens to agents and is not in their channels, or is of interest beside them.
package struct AgentObservers: Sendable {
    /// A turn of the agent with this channel has failed. Called on the agent's serial executor; must not block.
    package var turnFailed: @Sendable (_ channel: String, _ failure: StepFailure) -> Void = { _, _ in }
    /// The agent with this channel was removed, durably. Called where reads may block, before the removal is answered.
    package var removed: @Sendable (_ channel: String) -> Void = { _ in }

    package init() {}
}

/// An agent's name: `agents/<kind>/<id>` is its channel.
package struct AgentName: Hashable, Sendable {
    package var kind: String
    package var id: String

    /// `nil` unless both are 1 to 128 characters of `[A-Za-z0-9._~-]`, and neither is `.` or `..`, which mean another place in a path.
    package init?(kind: some StringProtocol, id: some StringProtocol) {
        guard AgentName.isSegment(kind), AgentName.isSegment(id) else { return nil }
        self.kind = String(kind)
        self.id = String(id)
    }

    package init?(channel: String) {
        let parts = channel.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 3, parts[0] == "agents" else { return nil }
        self.init(kind: parts[1], id: parts[2])
    }

    package var channel: String { "agents/\(kind)/\(id)" }

    package static func isSegment(_ text: some StringProtocol) -> Bool {
        (1...128).contains(text.utf8.count) && text != "." && text != ".."
            && text.utf8.allSatisfy { byte in
                switch byte {
                case 48...57, 65...90, 97...122, UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "~"), UInt8(ascii: "-"): true
                default: false
                }
            }
    }
}
